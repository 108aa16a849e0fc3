"""Photos become seeds if they show one clear face, and say why not otherwise."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from cleanup.edges.onnx_models import FaceModels, ModelSpec, load_models
from cleanup.edges.photo_folders import Person, find_photos
from cleanup.edges.seed_photos import SeedRules, embed_photos
from cleanup.errors import ModelError

RULES = SeedRules(min_confidence=0.5, max_yaw_deg=45)


@pytest.fixture(scope="module")
def models(shared: Path) -> FaceModels:
    return load_models(ModelSpec(str(shared / "models"), "cpu"))


@pytest.mark.shared
def test_every_shared_photo_becomes_a_seed_of_unit_norm(shared: Path, models: FaceModels) -> None:
    for show in ("bbt", "hamilton"):
        for outcome in embed_photos(find_photos(shared / "facebank" / show).photos, models, RULES):
            assert outcome.seed is not None, (outcome.path, outcome.problem)
            assert np.linalg.norm(outcome.seed.embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.shared
def test_a_photo_lying_on_its_side_is_turned_upright(shared: Path, models: FaceModels, tmp_path: Path) -> None:
    """The picture is stored turned, with the EXIF orientation that says so."""
    source = shared / "facebank" / "hamilton" / "lin-manuel-miranda" / "seed1.png"
    image = cv2.imread(str(source))
    (tmp_path / "straight").mkdir()
    (tmp_path / "turned").mkdir()
    cv2.imwrite(str(tmp_path / "straight" / "a.jpg"), image)
    turned = cv2.imencode(".jpg", cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    app1 = b"Exif\0\0" + tiff
    exif = b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1
    (tmp_path / "turned" / "a.jpg").write_bytes(turned[:2] + exif + turned[2:])

    straight, upright = embed_photos(find_photos(tmp_path).photos, models, RULES)

    assert straight.seed is not None and upright.seed is not None
    assert float(straight.seed.embedding @ upright.seed.embedding) > 0.95


@pytest.mark.shared
def test_what_is_wrong_with_a_photo_is_said(shared: Path, models: FaceModels, tmp_path: Path) -> None:
    face = cv2.imread(str(shared / "facebank" / "hamilton" / "barack-obama" / "seed2.jpg"))
    folder = tmp_path / "p"
    folder.mkdir()
    cv2.imwrite(str(folder / "1-none.png"), np.full((200, 200, 3), 127, np.uint8))
    cv2.imwrite(str(folder / "2-two.png"), np.hstack([face, face]))
    (folder / "3-broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "4-empty.jpg").write_bytes(b"")

    problems = [o.problem for o in embed_photos(find_photos(tmp_path).photos, models, RULES)]

    assert problems == [
        "no face found",
        "2 faces found; crop the photo to one, or use --largest",
        "not a readable picture",
        "not a readable picture",
    ]
    largest = SeedRules(0.5, 45, use_largest=True)
    assert next(embed_photos([(Person("p", "P", folder), folder / "2-two.png")], models, largest)).seed is not None


@pytest.mark.shared
def test_a_picture_that_is_all_length_shows_no_face(models: FaceModels, tmp_path: Path) -> None:
    """At the size the detector looks at, nothing is left of its width, or of its height."""
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p" / "high.png"), np.zeros((1000, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "p" / "wide.png"), np.zeros((2, 3000, 3), np.uint8))

    outcomes = list(embed_photos(find_photos(tmp_path).photos, models, RULES))

    assert [o.problem for o in outcomes] == ["no face found"] * 2


@pytest.mark.shared
def test_a_large_tight_crop_is_found_as_a_small_one_is_and_takes_little_memory(
    shared: Path, models: FaceModels, tmp_path: Path
) -> None:
    """It is found with a border only, and that is not as large as the picture would have it."""
    picture = cv2.imread(str(shared / "facebank" / "hamilton" / "lin-manuel-miranda" / "seed1.png"))
    assert models.detector is not None
    [face] = models.detector.detect(picture[..., ::-1], 0.5)
    x1, y1, x2, y2 = face.bbox.clip(0).astype(int)
    crop = picture[y1:y2, x1:x2]
    large = cv2.resize(crop, None, fx=4096 / crop.shape[0], fy=4096 / crop.shape[0])
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p" / "1-small.png"), crop)
    cv2.imwrite(str(tmp_path / "p" / "2-large.png"), large)

    tracemalloc.start()
    try:
        outcomes = list(embed_photos(find_photos(tmp_path).photos, models, RULES))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    seeds = [o.seed for o in outcomes if o.seed is not None]
    assert len(seeds) == 2, [o.problem for o in outcomes]
    assert float(seeds[0].embedding @ seeds[1].embedding) > 0.9
    assert peak < 8 * large.nbytes


def test_aligned_crops_need_no_detector(drawn: Path) -> None:
    models = load_models(ModelSpec(str(drawn / "models"), "cpu"))
    photos = find_photos(drawn / "seed_photos").photos

    outcomes = list(embed_photos(photos, models, SeedRules(0.5, None, is_aligned=True)))

    assert all(o.seed is not None for o in outcomes)
    with pytest.raises(ModelError, match="no face detector"):
        list(embed_photos(photos, models, RULES))


def test_a_crop_of_another_size_is_not_aligned(drawn: Path) -> None:
    models = load_models(ModelSpec(str(drawn / "models"), "cpu"))
    photo = drawn / "seed_photos" / "actor-1" / "seed1.png"
    cv2.imwrite(str(photo), np.zeros((100, 112, 3), np.uint8))

    [outcome] = embed_photos(
        [(Person("actor-1", "Actor 1", photo.parent), photo)], models, SeedRules(0.5, None, is_aligned=True)
    )

    assert outcome.problem == "112x100 instead of an aligned 112x112 crop"
