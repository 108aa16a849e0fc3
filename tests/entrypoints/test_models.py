"""A model is measured once on photos; episodes that show too few people stand on what was found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cleanup.algorithms.similarity_scale import CALIBRATION, SimilarityScale
from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.postgres_calibrations import Calibration, KnownScales
from cleanup.edges.postgres_facebank import Seed
from cleanup.edges.root_path import RootPath
from tests.builders import EMITTED_EP, make_people, push_up, write_episode
from tests.entrypoints.test_cli import cleanup, report_of

# Strangers of the small episodes' model.
PUSH, STRANGERS = 0.75, 0.36


def calibrate(drawn: Path, photos: Path, *arguments: str, code: int = 0) -> Any:
    given = ("--photos", photos, "--aligned", "--models", drawn / "models", "--out-root", drawn)
    return cleanup("models", "calibrate", *given, *arguments, code=code)


def listed(root: Path) -> list[dict[str, Any]]:
    return list(json.loads(cleanup("models", "list", "--out-root", root, "--json").stdout))


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """Four people, one photo each, and a second one of the first."""
    copied = Path(shutil.copytree(drawn / "seed_photos", tmp_path / "photos"))
    image = cv2.imread(str(copied / "actor-1" / "seed1.png"))
    cv2.imwrite(str(copied / "actor-1" / "seed2.png"), cv2.convertScaleAbs(image, alpha=0.7, beta=10))
    return copied


def test_a_model_is_measured_on_photos_and_measuring_again_replaces_it(drawn: Path, photos: Path) -> None:
    (photos / "actor-2" / "notes.txt").write_text("her best side")

    told = calibrate(drawn, photos, "--dry-run").stdout.splitlines()

    assert f"{photos}/actor-2/notes.txt: not a readable picture" in told
    assert told[-3].endswith("the median of 6 pairs (4 people, 5 photos, 1 refused)")
    assert "the median of 1 pair of photos; 10th percentile" in told[-2]
    assert told[-1].endswith("nothing was kept") and not (drawn / "facebank").exists()

    first = json.loads(calibrate(drawn, photos, "--json").stdout)
    shutil.copy(photos / "actor-1" / "seed1.png", photos / "actor-1" / "again.png")
    shutil.rmtree(photos / "actor-4")
    calibrate(drawn, photos)
    [kept] = listed(drawn)

    assert (first["people"], first["photos"], first["pairs"], first["one_person"]["pairs"]) == (4, 5, 6, 1)
    assert (kept["people"], kept["photos"], kept["pairs"]) == (3, 4, 3), "a photo that lies there twice counts once"
    assert kept["model_sha256"] == first["model_sha256"] and 0 <= kept["strangers"] < 0.5


def test_photos_that_tell_nothing_are_refused_in_one_line(drawn: Path, photos: Path) -> None:
    mixed = photos.parent / "mixed"
    for place, folder in enumerate(("monday", "monday", "tuesday", "wednesday"), start=1):
        (mixed / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"actor-{place}" / "seed1.png", mixed / folder / f"{place}.png")
    for place in (3, 4):
        shutil.rmtree(photos / f"actor-{place}")

    too_few = calibrate(drawn, photos, code=2).stderr
    by_date = calibrate(drawn, mixed, code=2).stderr

    assert "photos of at least 3 people are needed, and 2 have one" in too_few and len(too_few.splitlines()) == 1
    assert "each folder has to hold one person's photos" in by_date and len(by_date.splitlines()) == 1
    assert not (drawn / "facebank").exists()


def group(root: Path, code: int = 0) -> dict[str, Any]:
    given = ("--actions", "recluster,group_clusters", "--out-root", root, "--json", "--write-back")
    return dict(report_of(cleanup("season", "--ep-id", EMITTED_EP, *given, code=code))["episodes"][EMITTED_EP])


def report_on_disk(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "manifests" / EMITTED_EP / "cleanup_report.json").read_text()))


def test_an_episode_of_two_people_stands_on_what_is_known_of_the_model(tmp_path: Path) -> None:
    """Without, two people are taken for one: strangers of this model are above the cut of an ordinary one."""
    write_episode(tmp_path, "emitted", (("a",), ("b",), ("a",)), push=PUSH)
    folder = RootPath.of_file(tmp_path / "facebank" / "postgres")
    with open_embedded_facebank(folder) as facebank:
        facebank.check()

    group(tmp_path)
    assumed = report_on_disk(tmp_path)
    assert group(tmp_path)["state"] == "unchanged"
    with open_embedded_facebank(folder) as facebank:
        facebank.enroll("other", "tiny", "sha", make_seeds(4))
    assert group(tmp_path)["state"] == "succeeded"
    by_seeds = report_on_disk(tmp_path)
    with open_embedded_facebank(folder) as facebank:
        facebank.calibrations.keep(
            Calibration("tiny", "sha", SimilarityScale(0.33, CALIBRATION, 10), n_people=5, n_photos=9)
        )
    assert group(tmp_path)["state"] == "succeeded"
    calibrated = report_on_disk(tmp_path)

    [warning] = [w for w in assumed["warnings"] if "cleanup models calibrate --photos DIR" in w]
    assert "too few people" in warning and assumed["clusters_after"] == 1
    for report, strangers, n_pairs in ((by_seeds, STRANGERS, 6), (calibrated, 0.33, 10)):
        assert not any("calibrate" in w for w in report["warnings"])
        for phase in ("recluster", "group_clusters"):
            scale = report[phase]["thresholds"]["scale"]
            assert (scale["source"], scale["pairs"]) == (CALIBRATION, n_pairs)
            assert scale["strangers"] == pytest.approx(strangers, abs=0.05)
        assert "(two people on photos)" in report["recluster"]["thresholds"]["cluster_thresh"]["reason"]
        assert report["clusters_after"] == 2


def make_seeds(n_people: int, first: int = 0) -> list[Seed]:
    looks = push_up(make_people(n_people + first), PUSH)[first:].astype(np.float32)
    return [Seed(f"p{i}", f"P {i}", "1.jpg", f"digest {first + i}", look, 0.9) for i, look in enumerate(looks)]


def test_seeds_tell_of_their_own_model_alone_and_two_people_of_nothing(tmp_path: Path) -> None:
    with open_embedded_facebank(RootPath.of_file(tmp_path / "facebank" / "postgres")) as facebank:
        facebank.enroll("show", "tiny", "sha", make_seeds(2))
        facebank.enroll("other", "tiny", "new", make_seeds(3, first=4))
        scales = facebank.calibrations.find_scales("show")

    assert scales.find("tiny", ["sha"]) is None
    found = scales.find("tiny", ["detector", "new"])
    assert found is not None and found.strangers == pytest.approx(STRANGERS, abs=0.05)
    assert scales.find("tiny", None) == found, "of embeddings on disk only the model's name is known"
    assert scales.find("large", None) is None is KnownScales().find("tiny", None)
