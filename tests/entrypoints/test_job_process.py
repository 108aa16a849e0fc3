"""The process of one job: it does what the command does and notes its end, also when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.job_records import CANCELED, FAILED, SUCCEEDED
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
from tests.builders import artifacts_of

EP = "demo-s01e01"


def start(root: Path, **requested: Any) -> tuple[JobStore, str, subprocess.Popen[bytes]]:
    store = JobStore(RootPath(root))
    job_id = store.create("episode", (EP,), {"write_back": True, **requested}).job_id
    process = subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.job_process", root, job_id],
        env={**os.environ, "SCREENALYTICS_DATA_ROOT": str(root), "CLEANUP_MODELS": str(root / "models")},
        start_new_session=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    return store, job_id, process


def test_a_job_does_what_the_command_does(drawn: Path) -> None:
    store, job_id, process = start(drawn, actions=["split_tracks", "recluster"], stride=4)
    assert process.wait(120) == 0

    job = store.read(job_id)

    assert job.state == SUCCEEDED and job.error is None
    report = orjson.loads(orjson.dumps(store.read_report(job_id)))
    assert report["actions_completed"] == ["split_tracks", "recluster"] and report["run_id"] == job.run_id
    assert report["settings"]["stride"]["value"] == 4
    assert (store.folder_of(job_id) / "progress.json").exists()


def test_a_stopped_job_is_canceled_and_leaves_the_files(drawn: Path) -> None:
    before = artifacts_of(drawn, EP)
    store, job_id, process = start(drawn)
    progress = store.folder_of(job_id) / "progress.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(30)

    job = store.read(job_id)

    assert (job.state, job.error) == (CANCELED, "canceled; no file is half written")
    assert artifacts_of(drawn, EP) == before


def test_a_job_that_cannot_be_done_says_why(drawn: Path) -> None:
    store, job_id, process = start(drawn, stride=0)
    process.wait(60)

    job = store.read(job_id)

    assert job.state == FAILED and "stride" in str(job.error) and "\n" not in str(job.error)
