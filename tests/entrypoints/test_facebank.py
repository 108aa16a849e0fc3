"""Seeds as a user keeps them: enrolled, shown, moved to another server and another model."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.postgres_facebank import Seed
from cleanup.edges.root_path import RootPath
from tests.builders import make_faces, make_people, snapshot
from tests.entrypoints.test_cli import cleanup

SHOW = "demo"


def facebank(root: Path, *arguments: str | Path, code: int = 0) -> Any:
    return cleanup("facebank", *arguments, "--out-root", root, code=code)


def enroll(root: Path, drawn: Path, *arguments: str | Path, code: int = 0) -> Any:
    return facebank(root, "enroll", "--show", SHOW, "--aligned", "--models", drawn / "models", *arguments, code=code)


def listed(root: Path) -> dict[str, int]:
    return {p["person_id"]: p["n_seeds"] for p in json.loads(facebank(root, "list", "--json").stdout)}


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn / "seed_photos", tmp_path / "photos"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def enrolled(root: Path, drawn: Path, photos: Path) -> Path:
    enroll(root, drawn, photos, "--keep-originals")
    return root


def test_pictures_are_kept_and_checked(enrolled: Path, drawn: Path, photos: Path) -> None:
    assert "0 problems" in facebank(enrolled, "check").stdout
    [seed] = json.loads(facebank(enrolled, "show", "actor-1", "--show", SHOW, "--json").stdout)
    crop = cv2.imread(str(enrolled / seed["embed_path"]))
    assert crop.shape == (112, 112, 3)
    assert max(cv2.imread(str(enrolled / seed["display_path"])).shape) <= 512
    original = enrolled / seed["original_path"]
    assert hashlib.sha256(original.read_bytes()).hexdigest() == seed["image_sha256"]

    original.write_bytes(b"another photo")
    (enrolled / seed["embed_path"]).unlink()
    problems = facebank(enrolled, "check", code=1).stdout
    assert "is gone" in problems and "not the photo that was enrolled" in problems

    facebank(
        enrolled, "backfill", photos, "--show", SHOW, "--aligned", "--keep-originals", "--models", drawn / "models"
    )
    assert "0 problems" in facebank(enrolled, "check").stdout


def test_a_dry_run_does_nothing(root: Path, drawn: Path, photos: Path, tmp_path: Path) -> None:
    assert "would be enrolled" in enroll(root, drawn, photos, "--dry-run").stdout
    assert listed(root) == {} and not (root / "facebank" / "seeds").exists()

    enroll(root, drawn, photos)
    before = listed(root)
    facebank(root, "remove", "--show", SHOW, "--person", "actor-1", "--dry-run")
    facebank(root, "reembed", "--models", drawn / "models", "--dry-run")
    [seed] = json.loads(facebank(root, "show", "actor-1", "--show", SHOW, "--json").stdout)
    told = json.loads(facebank(root, "feature", seed["seed_id"], "--dry-run", "--json").stdout)
    assert told["dry_run"] and told["seed_id"] == seed["seed_id"] and not told["featured"]
    assert listed(root) == before
    assert json.loads(facebank(root, "show", "actor-1", "--show", SHOW, "--json").stdout) == [seed]


def test_what_changes_the_facebank_says_so_for_programs(enrolled: Path, drawn: Path, tmp_path: Path) -> None:
    archive, n_seeds = tmp_path / "seeds.tar.gz", sum(listed(enrolled).values())

    exported = json.loads(facebank(enrolled, "export", archive, "--json").stdout)
    removed = json.loads(facebank(enrolled, "remove", "--show", SHOW, "--person", "actor-1", "--json").stdout)
    imported = json.loads(facebank(enrolled, "import", archive, "--json").stdout)
    reembedded = json.loads(facebank(enrolled, "reembed", "--models", drawn / "models", "--json").stdout)

    assert exported["seeds"] == imported["seeds"] == reembedded["seeds"] == n_seeds
    assert removed["seeds"] == imported["enrolled"] == 1
    events = json.loads(cleanup("people", "log", "--show", SHOW, "--out-root", enrolled, "--json").stdout)
    assert [(e["kind"], e["person_id"]) for e in events] == [("remove", "actor-1")]


def test_one_photo_cannot_be_two_people(root: Path, drawn: Path, photos: Path) -> None:
    photo = next((photos / "actor-1").iterdir())
    (photos / "somebody").mkdir()
    shutil.copy(photo, photos / "somebody" / "x.png")
    shutil.copy(photo, photos / "actor-1" / "again.png")
    image = cv2.imread(str(photo))
    cv2.imwrite(str(photos / "actor-1" / "lighter.png"), cv2.convertScaleAbs(image, alpha=1.0, beta=2))

    result = json.loads(enroll(root, drawn, photos, "--json").stdout)

    files = {Path(f["file"]).name: f for f in result["files"] if f["person_id"] in ("actor-1", "somebody")}
    assert "of actor-1; one of the two is somebody else" in files["x.png"]["problem"]
    assert "nearly the same picture" in files["lighter.png"]["note"]
    assert "somebody" not in listed(root) and listed(root)["actor-1"] == 2


def test_a_blurred_photo_is_refused(root: Path, drawn: Path, photos: Path) -> None:
    photo = next((photos / "actor-1").iterdir())
    cv2.imwrite(str(photo), cv2.GaussianBlur(cv2.imread(str(photo)), (0, 0), 12))

    assert "blurred: sharpness" in enroll(root, drawn, photos).stdout
    assert "actor-1" not in listed(root)


def test_one_seed_stands_for_a_person(enrolled: Path, drawn: Path, photos: Path) -> None:
    photo = next((photos / "actor-1").iterdir())
    image = cv2.imread(str(photo))
    cv2.imwrite(str(photos / "actor-1" / "other.png"), cv2.flip(image, 1))
    enroll(enrolled, drawn, photos)
    seeds = json.loads(facebank(enrolled, "show", "actor-1", "--show", SHOW, "--json").stdout)
    for seed in seeds:
        facebank(enrolled, "feature", seed["seed_id"][:13])

    featured = [s["seed_id"] for s in json.loads(facebank(enrolled, "show", "actor-1", "--show", SHOW, "--json").stdout)
                if s["featured"]]  # fmt: skip
    assert featured == [seeds[-1]["seed_id"]] and len(seeds) == 2
    assert "no seed id begins" in facebank(enrolled, "feature", "zzz", code=2).stderr


def test_an_archive_gives_another_server_the_same_seeds(enrolled: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "seeds.tar.gz", tmp_path / "other"
    facebank(enrolled, "export", archive)
    assert "there already" in facebank(enrolled, "export", archive, code=2).stderr

    facebank(other, "import", archive)

    assert "0 new, " in facebank(other, "import", archive).stdout
    assert "0 problems" in facebank(other, "check").stdout
    vectors = make_people(3, 64).astype(np.float32)
    matches = []
    for root in (enrolled, other):
        with open_embedded_facebank(RootPath.of_file(root / "facebank" / "postgres")) as opened:
            model = opened.list_seeds()[0].model
            matches.append(opened.match(SHOW, model, vectors))
    assert matches[0] == matches[1] and len(matches[0]) == 12


def rewrite(archive: Path, change: Callable[[dict[str, bytes]], None], link: str = "") -> None:
    """Repacks an archive with its members changed."""
    with tarfile.open(archive) as opened:
        members = {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(archive, "w:gz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("facebank/seeds/link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            opened.addfile(member)


def edit_manifest(members: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()


def add_outside(members: dict[str, bytes]) -> None:
    members["facebank/seeds/../../../outside.png"] = b"x"


FORGED: dict[str, tuple[Callable[[dict[str, bytes]], None], str, str]] = {
    "a path out of the root": (add_outside, "", "does not lie under"),
    "an absolute path": (lambda m: m.update({"/tmp/outside.png": b"x"}), "", "does not lie under"),
    "a link": (lambda m: None, "/etc/passwd", "no plain file"),
    "a picture that is another": (lambda m: m.update({max(m): b"x"} if max(m) != "manifest.json" else {
        sorted(m)[0]: b"x"}), "", "not those its manifest lists"),
    "no manifest": (lambda m: m.pop("manifest.json"), "", "has no manifest.json"),  # type: ignore[dict-item]
    "a long vector": (lambda m: edit_manifest(m, lambda f: f["seeds"][0].update(embedding=[1.0, 1.0])), "",
                      "no unit vector"),
    "a person id that is a path": (lambda m: edit_manifest(m, lambda f: f["seeds"][0].update(person_id="../x")), "",
                                   "letters, digits"),
    "a name with an escape": (lambda m: edit_manifest(m, lambda f: f["seeds"][0].update(name="A\x1b[2J")), "",
                             "U+001B"),
    "a show that is a path": (lambda m: edit_manifest(m, lambda f: f["seeds"][0].update(show="../x")), "",
                              "letters, digits"),
    "a field missing": (lambda m: edit_manifest(m, lambda f: f["seeds"][0].pop("model")), "", "not valid"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_archive_is_refused_whole(enrolled: Path, tmp_path: Path, case: str) -> None:
    archive, other = tmp_path / "seeds.tar.gz", tmp_path / "other"
    facebank(enrolled, "export", archive)
    change, link, message = FORGED[case]
    rewrite(archive, change, link)

    stderr = facebank(other, "import", archive, code=2).stderr

    assert message in stderr and len(stderr.strip().splitlines()) == 1, stderr
    assert listed(other) == {} and not (other / "facebank" / "seeds").exists()
    assert not (tmp_path / "outside.png").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    assert "damaged" in facebank(tmp_path, "import", tmp_path / "x.tar.gz", code=2).stderr
    assert "no such file" in facebank(tmp_path, "import", tmp_path / "y.tar.gz", code=2).stderr


@pytest.mark.shared
def test_a_change_of_model_goes_for_all_seeds_or_none(enrolled: Path, shared: Path, drawn: Path, photos: Path) -> None:
    models = shared / "models"
    refused = facebank(enrolled, "enroll", "--show", SHOW, "--aligned", "--models", models, photos, code=2)
    assert f"cleanup facebank reembed --show {SHOW}" in refused.stderr

    crop = next((enrolled / "facebank" / "seeds" / SHOW / "actor-1").glob("*/embed.png"))
    kept = crop.read_bytes()
    crop.unlink()
    before = snapshot(enrolled / "facebank" / "seeds"), facebank(enrolled, "stats", "--json").stdout
    assert "backfill" in facebank(enrolled, "reembed", "--models", models, code=2).stderr
    assert (snapshot(enrolled / "facebank" / "seeds"), facebank(enrolled, "stats", "--json").stdout) == before
    crop.write_bytes(kept)

    facebank(enrolled, "reembed", "--models", models)

    stats = json.loads(facebank(enrolled, "stats", "--json").stdout)
    assert stats[0]["models"] == ["mobilefacenet_y1"] and stats[0]["seeds"] == 4
    assert "0 new seeds" in facebank(
        enrolled, "enroll", "--show", SHOW, "--aligned", "--models", models, photos
    ).stdout  # fmt: skip
    assert "0 problems" in facebank(enrolled, "check").stdout


def enroll_in_a_process(dsn_folder: str, number: int) -> None:
    vectors = make_faces(make_people(4, 32)[number % 4], 5, 0.2, seed=number // 2)
    seeds = [
        Seed(f"p{number % 4}", "P", f"{i}.jpg", f"digest-{number // 2}-{i}", v.astype(np.float32), 0.9)
        for i, v in enumerate(vectors)
    ]
    with open_embedded_facebank(RootPath.of_file(Path(dsn_folder))) as opened:
        opened.enroll(SHOW, "m", "sha", seeds)


def test_eight_processes_that_enrol_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "facebank" / "postgres"
    with open_embedded_facebank(RootPath.of_file(folder)):
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=enroll_in_a_process, args=(str(folder), n)) for n in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
    assert [p.exitcode for p in processes] == [0] * 8
    expected = {(n % 4, n // 2, i) for n in range(8) for i in range(5)}

    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        seeds = opened.list_seeds(SHOW)
    found = [(int(s.seed.person_id[1:]), *map(int, s.seed.image_sha256.split("-")[1:])) for s in seeds]
    assert sorted(found) == sorted(expected)


@pytest.mark.shared
def test_faces_that_a_person_confirmed_become_seeds(shared: Path, shared_data: Path) -> None:
    document = json.loads((shared_data / "manifests" / "bbt-s01e01" / "identities.json").read_text())
    identity = max(document["identities"], key=lambda i: len(i["track_ids"]))["identity_id"]
    arguments = ("enroll", "--from-episode", "bbt-s01e01", "--identity", identity, "--models", shared / "models")

    assert "not confirmed by a person" in facebank(shared_data, *arguments, code=2).stderr
    assert not (shared_data / "facebank").exists()
    first = json.loads(facebank(shared_data, *arguments, "--person", "penny", "--faces", "3", "--json").stdout)
    again = json.loads(facebank(shared_data, *arguments, "--person", "penny", "--faces", "3", "--json").stdout)

    assert first["enrolled"] == 3 and again["enrolled"] == 0
    assert listed(shared_data) == {"penny": 3}
    assert all(f["file"].startswith(f"bbt-s01e01-{identity}-") for f in first["files"])
    assert "0 problems" in facebank(shared_data, "check").stdout
    assert "either DIR" in facebank(shared_data, "enroll", code=2).stderr


def test_every_file_of_a_folder_is_taken_or_named_and_nobody_is_forgotten(
    root: Path, drawn: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "mine"
    for folder in ("Jose\u0301 R", "lisa/2019", "raj", "@eaDir"):
        (photos / folder).mkdir(parents=True)
    crops = [Image.open(p / "seed1.png") for p in sorted((drawn / "seed_photos").iterdir())[:2]]
    crops[0].save(photos / "Jose\u0301 R" / "a.webp", lossless=True)
    crops[1].save(photos / "lisa" / "2019" / "b.tiff")
    (photos / "lisa" / "notes.txt").write_text("her best side")
    (photos / "loose.jpg").write_bytes(b"x")
    (photos / "raj" / "Thumbs.db").write_bytes(b"x")

    told = enroll(root, drawn, photos, "--dry-run").stdout.splitlines()
    result = json.loads(enroll(root, drawn, photos, "--json").stdout)
    people = json.loads(facebank(root, "list", "--json").stdout)

    assert f"{photos}/Jose\u0301 R/a.webp: jose-r, one face" in told
    assert f"{photos}/lisa/notes.txt: not a readable picture" in told
    assert f"{photos}/loose.jpg: lies in no person's folder; put it into one, {photos}/PERSON" in told
    assert "left out: 2 hidden and system files and folders (@eaDir, Thumbs.db)" in told
    assert "nothing was taken for Raj (raj): no picture lies in the folder" in told
    assert told[-1] == "demo: 2 photos of 2 people would be enrolled, 2 refused; nothing was done"
    assert [(p["person_id"], p["reason"]) for p in result["people_without_seeds"]] == [
        ("raj", "no picture lies in the folder")
    ]
    assert result["enrolled"] == 2 and len(result["files"]) == 4 and len(result["left_out"]) == 2
    assert {p["person_id"]: p["name"] for p in people} == {"jose-r": "Jos\u00e9 R", "lisa": "Lisa"}
