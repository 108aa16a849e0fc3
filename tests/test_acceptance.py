"""The shared real episodes, start to end, scored against truth."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import adjusted_rand_score

from tests.builders import read_lines, snapshot
from tests.entrypoints.test_cli import artifacts, cleanup, report_of

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def run_shared(root: Path, shared: Path, ep_id: str, profile: str) -> dict[str, Any]:
    arguments = ["--ep-id", ep_id, "--out-root", root, "--models", shared / "models", "--profile", profile]
    return report_of(cleanup("run", *arguments, "--device", "cpu", "--write-back", "--json"))


def score(root: Path, shared: Path, ep_id: str, truth: Path | None = None) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, shared / "evaluate.py", root, ep_id, (truth or shared / "truth") / f"{ep_id}.json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("profile", ["balanced", "high_accuracy"])
@pytest.mark.parametrize("ep_id", ["bbt-s01e01", "bbt-s01e02"])
def test_a_rendered_season_is_right(shared: Path, enrolled_data: Path, ep_id: str, profile: str) -> None:
    run_shared(enrolled_data, shared, ep_id, profile)

    result = score(enrolled_data, shared, ep_id)
    assert result["bcubed_f"] >= 0.99
    assert result["track_purity"] >= 0.998
    assert result["coverage"] >= 0.99
    assert result["label_acc"] >= 0.97
    assert result["label_wrong"] == 0
    cleanup("validate", "--ep-id", ep_id, "--out-root", enrolled_data)


@pytest.mark.parametrize("profile", ["balanced", "high_accuracy"])
def test_a_broadcast_clip_is_right(shared: Path, enrolled_data: Path, profile: str) -> None:
    ep_id = "hamilton-s01e01"
    run_shared(enrolled_data, shared, ep_id, profile)

    result = score(enrolled_data, shared, ep_id)
    assert result["bcubed_f"] >= 0.97
    assert result["track_purity"] >= 0.998
    assert result["label_wrong"] == 0
    manifests = enrolled_data / "manifests" / ep_id
    pieces = [t for t in read_lines(manifests / "tracks.jsonl") if t.get("parent_track_id") == 4]
    assert [t["first_frame_idx"] for t in pieces] == pytest.approx([82, 211], abs=3)
    named = {i.get("person_id") for i in json.loads((manifests / "identities.json").read_text())["identities"]}
    assert named == {None, "barack-obama", "lin-manuel-miranda"}


@pytest.mark.parametrize(
    ("ep_id", "profile", "without"),
    [
        ("bbt-s01e01", "fast_cpu", ""),
        ("bbt-s01e01", "balanced", "detections"),
        ("hamilton-s01e01", "balanced", ""),
        ("hamilton-s01e01", "high_accuracy", "landmarks"),
    ],
)
def test_a_second_run_changes_nothing(
    shared: Path, enrolled_data: Path, ep_id: str, profile: str, without: str
) -> None:
    manifests = enrolled_data / "manifests" / ep_id
    if without == "detections":
        (manifests / "detections.jsonl").unlink()
    if without == "landmarks":
        for path in (manifests / "tracks.jsonl", manifests / "faces.jsonl"):
            records = [drop_landmarks(r) for r in read_lines(path)]
            path.write_text("".join(json.dumps(r) + "\n" for r in records))
    run_shared(enrolled_data, shared, ep_id, profile)
    before = artifacts(enrolled_data)

    report = run_shared(enrolled_data, shared, ep_id, profile)

    assert report["files"]["changed"] == []
    assert artifacts(enrolled_data) == before


def drop_landmarks(record: dict[str, Any]) -> dict[str, Any]:
    """What a tool without a landmark detector would have written."""
    record.pop("landmarks", None)
    for box in record.get("bboxes_sampled", []):
        box.pop("landmarks")
    return record


def test_seeds_of_a_model_of_another_dimension_are_refused(shared: Path, shared_data: Path, drawn: Path) -> None:
    cleanup("facebank", "enroll", "--show", "bbt", "--aligned", "--out-root", shared_data, "--models", drawn / "models",
            drawn / "seed_photos")  # fmt: skip
    before = snapshot(shared_data / "manifests")

    result = cleanup("run", "--ep-id", "bbt-s01e02", "--out-root", shared_data, "--actions", "group_clusters", "--models",
                     shared / "models", code=2)  # fmt: skip

    assert "demo_only_drawn_faces (64 dimensions)" in result.stderr
    assert "mobilefacenet_y1 (128" in result.stderr
    assert snapshot(shared_data / "manifests") == before


def labels_of_faces(root: Path, shared: Path, ep_id: str) -> list[tuple[str, str | None]]:
    """(true person, person_id of the identity) of every face of the truth, matched as the scorer does it."""
    spec = importlib.util.spec_from_file_location("evaluate", shared / "evaluate.py")
    assert spec is not None and spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    truth = json.loads((shared / "truth" / f"{ep_id}.json").read_text())
    tracks, boxes, owner, label = evaluate.load(root, ep_id, truth["width"], truth["height"])
    found = []
    for face in truth["faces"]:
        best, frame = (0.0, None), face["frame_idx"]
        for track, (first, last) in tracks.items():
            if first <= frame <= last and track in boxes:
                box = min(boxes[track], key=lambda b: abs(b[0] - frame))[1]
                best = max(best, (evaluate.iou(box, face["bbox_xyxy"]), track), key=lambda b: b[0])
        if face["person"] and best[1] is not None:
            found.append((face["person"], label.get(owner.get(best[1]))))
    return found


def test_a_season_with_half_its_cast_enrolled(shared: Path, shared_data: Path, tmp_path: Path) -> None:
    """The others are the same unknown people in both episodes, and naming one names them everywhere."""
    half = tmp_path / "half"
    for person in ("amy", "howard", "leonard", "raj"):
        shutil.copytree(shared / "facebank" / "bbt" / person, half / person)
    arguments = ("--out-root", shared_data, "--models", shared / "models")
    cleanup("facebank", "enroll", "--show", "bbt", *arguments, half)
    episodes = ("bbt-s01e01", "bbt-s01e02")
    for ep_id in episodes:
        run_shared(shared_data, shared, ep_id, "balanced")

    faces = [face for ep_id in episodes for face in labels_of_faces(shared_data, shared, ep_id)]
    known = {"amy", "howard", "leonard", "raj"}
    assert all(found in (None, true) for true, found in faces if true in known)
    assert not [found for true, found in faces if true not in known and found in known]
    assert adjusted_rand_score([true for true, _ in faces], [str(found) for _, found in faces]) >= 0.97

    unknown = Counter(found for true, found in faces if true == "sheldon").most_common(1)[0][0]
    assert unknown is not None and unknown.startswith("unknown-")
    cleanup("people", "name", unknown, "Sheldon", "--show", "bbt", "--out-root", shared_data)
    for ep_id in episodes:
        of_sheldon = [found for true, found in labels_of_faces(shared_data, shared, ep_id) if true == "sheldon"]
        assert of_sheldon.count("sheldon") >= 0.97 * len(of_sheldon)
        cleanup("validate", "--ep-id", ep_id, "--out-root", shared_data)


def test_people_without_seeds_stay_unknown_under_stable_ids(shared: Path, enrolled_data: Path) -> None:
    people = []
    for _ in range(2):
        run_shared(enrolled_data, shared, "hamilton-s01e01", "balanced")
        listed = json.loads(
            cleanup("people", "list", "--show", "hamilton", "--json", "--out-root", enrolled_data).stdout
        )
        people.append({p["person_id"]: (p["n_identities"], p["n_faces"]) for p in listed})

    assert people[0] == people[1]
    assert sum(person_id.startswith("unknown-") for person_id in people[0]) >= 2
    assert people[0]["joe-biden"] == (0, 0)
