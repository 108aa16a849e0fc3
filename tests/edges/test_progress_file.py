"""The progress file is whole at every moment and never goes back."""

from __future__ import annotations

import json
from pathlib import Path

from cleanup.edges.progress_file import ProgressFile
from cleanup.edges.root_path import RootPath
from cleanup.names import check_run_id
from cleanup.progress import PhaseProgress

RUN = check_run_id("20260314T092653.589793Z-4711")


def test_the_documented_keys_are_there_and_the_end_carries_the_summary(tmp_path: Path) -> None:
    progress = ProgressFile(RootPath.of_file(tmp_path / "a" / "progress.json"), "x-s01e01", RUN)
    progress(PhaseProgress("split_tracks", 1, 4, 5, 10, "gate"))
    first = json.loads(progress.path.read_bytes())
    progress.finish({"ep_id": "x-s01e01"})
    last = json.loads(progress.path.read_bytes())

    assert {"stage", "ep_id", "phase", "phase_index", "phase_total", "phase_progress", "total_elapsed_seconds", "message",
            "items_done", "items_total", "eta_seconds", "updated_at"} <= set(first)  # fmt: skip
    assert (first["stage"], first["phase"], first["phase_progress"]) == ("episode_cleanup", "split_tracks", 0.5)
    assert (last["phase"], last["phase_index"], last["phase_progress"]) == ("done", 4, 1.0)
    assert last["summary"] == {"ep_id": "x-s01e01"}


def test_no_number_goes_backwards_and_writes_are_rare(tmp_path: Path) -> None:
    progress = ProgressFile(RootPath.of_file(tmp_path / "progress.json"), "x-s01e01", RUN)
    writes, seen = 0, []
    for done in [0, 1, 50, 40, 60, 3, 100]:
        before = progress.path.read_bytes() if progress.path.exists() else b""
        progress(PhaseProgress("reembed", 2, 4, done, 100))
        if progress.path.read_bytes() != before:
            writes += 1
            seen.append(json.loads(progress.path.read_bytes())["phase_progress"])

    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert writes <= 3


def test_a_failure_says_why(tmp_path: Path) -> None:
    progress = ProgressFile(RootPath.of_file(tmp_path / "progress.json"), "x-s01e01", RUN)
    progress(PhaseProgress("reembed", 2, 4, 1, 2))
    progress.fail("disk full")

    record = json.loads(progress.path.read_bytes())
    assert (record["phase"], record["error"], record["phase_index"]) == ("failed", "disk full", 2)
    assert not list(tmp_path.glob(".*"))
