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
import pytest

from cleanup.edges.job_records import CANCELED, FAILED, SUCCEEDED
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.job_process import run_job
from cleanup.entrypoints.stop_signals import Stop
from cleanup.names import check_ep_id
from tests.builders import artifacts_of
from tests.serving import wait_for

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


def test_a_job_that_no_signal_reaches_is_asked_to_stop_and_does(drawn: Path) -> None:
    before = artifacts_of(drawn, EP)
    store, job_id, process = start(drawn, profile="high_accuracy", stride=1)
    wait_for(lambda: store.read_progress(job_id))

    store.ask_to_stop(job_id)

    assert process.wait(30) == 0 and store.read(job_id).state == CANCELED
    assert artifacts_of(drawn, EP) == before


def test_a_job_that_is_canceled_while_it_begins_does_nothing(drawn: Path) -> None:
    store = JobStore(RootPath(drawn))
    job_id = store.create("episode", (check_ep_id(EP),), {"write_back": True}).job_id
    store.ask_to_stop(job_id)

    assert run_job(store, job_id, Stop()) == store.read(job_id).state == CANCELED
    assert store.read_progress(job_id) is None


@pytest.mark.parametrize(
    ("requested", "told"),
    [
        ({"models": "/elsewhere"}, "models: no option"), ({"facebank_dsn": "host=elsewhere"}, "facebank_dsn: no option"),
        ({"video": "/etc/passwd"}, "outside the data root"), ({"video": "http://127.0.0.1:9/x.mp4"}, "no such video"),
    ],
)  # fmt: skip
def test_a_record_asks_for_nothing_that_a_request_may_not(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, requested: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("SCREENALYTICS_DATA_ROOT", str(drawn))
    monkeypatch.setenv("CLEANUP_MODELS", str(drawn / "models"))
    store = JobStore(RootPath(drawn))
    job_id = store.create("episode", (check_ep_id(EP),), requested).job_id

    assert run_job(store, job_id, Stop()) == FAILED and told in str(store.read(job_id).error)


def test_a_video_that_a_link_puts_outside_is_none_of_a_job(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCREENALYTICS_DATA_ROOT", str(drawn))
    store, video = JobStore(RootPath(drawn)), drawn / "videos" / EP / "episode.mp4"
    job_id = store.create("episode", (check_ep_id(EP),), {}).job_id
    video.rename(drawn.parent / "elsewhere.mp4")
    video.symlink_to(drawn.parent / "elsewhere.mp4")

    assert run_job(store, job_id, Stop()) == FAILED and "outside the data root" in str(store.read(job_id).error)
