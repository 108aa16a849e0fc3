"""The shared real episodes, start to end, scored against truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def enroll(root: Path, shared: Path, show: str) -> None:
    cleanup("facebank", "enroll", "--show", show, "--out-root", root, "--models", shared / "models",
            shared / "facebank" / show)  # fmt: skip


@pytest.mark.parametrize("profile", ["balanced", "high_accuracy"])
@pytest.mark.parametrize("ep_id", ["bbt-s01e01", "bbt-s01e02"])
def test_a_rendered_season_is_right(shared: Path, shared_data: Path, ep_id: str, profile: str) -> None:
    enroll(shared_data, shared, "bbt")
    run_shared(shared_data, shared, ep_id, profile)

    result = score(shared_data, shared, ep_id)
    assert result["bcubed_f"] >= 0.99
    assert result["track_purity"] >= 0.998
    assert result["coverage"] >= 0.99
    assert result["label_acc"] >= 0.97
    assert result["label_wrong"] == 0
    cleanup("validate", "--ep-id", ep_id, "--out-root", shared_data)


@pytest.mark.parametrize("profile", ["balanced", "high_accuracy"])
def test_a_broadcast_clip_is_right(shared: Path, shared_data: Path, profile: str) -> None:
    ep_id = "hamilton-s01e01"
    enroll(shared_data, shared, "hamilton")
    run_shared(shared_data, shared, ep_id, profile)

    result = score(shared_data, shared, ep_id)
    assert result["bcubed_f"] >= 0.97
    assert result["track_purity"] >= 0.998
    assert result["label_wrong"] == 0
    manifests = shared_data / "manifests" / ep_id
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
def test_a_second_run_changes_nothing(shared: Path, shared_data: Path, ep_id: str, profile: str, without: str) -> None:
    manifests = shared_data / "manifests" / ep_id
    if without == "detections":
        (manifests / "detections.jsonl").unlink()
    if without == "landmarks":
        for path in (manifests / "tracks.jsonl", manifests / "faces.jsonl"):
            records = [drop_landmarks(r) for r in read_lines(path)]
            path.write_text("".join(json.dumps(r) + "\n" for r in records))
    enroll(shared_data, shared, "bbt")
    enroll(shared_data, shared, "hamilton")
    run_shared(shared_data, shared, ep_id, profile)
    before = artifacts(shared_data)

    report = run_shared(shared_data, shared, ep_id, profile)

    assert report["files"]["changed"] == []
    assert artifacts(shared_data) == before


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
