"""Jobs on disk: their state is what the system says, whatever was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cleanup.edges.job_store import CANCELED, FAILED, QUEUED, RUNNING, SUCCEEDED, JobStore
from cleanup.errors import BusyError, JobError

HOLD = "import sys, time; from pathlib import Path; from cleanup.edges.job_store import JobStore\n" \
       "with JobStore(Path(sys.argv[1])).hold(sys.argv[2]):\n    print('held', flush=True); time.sleep(60)"  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


def start_holder(tmp_path: Path, job_id: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "jobs", job_id], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_job_is_queued_then_running_then_ended(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {"stride": 8})
    assert (job.state, job.started_at, job.requested) == (QUEUED, None, {"stride": 8})

    holder = start_holder(tmp_path, job.job_id)
    running = store.read(job.job_id)
    store.end(job.job_id, SUCCEEDED, summary={"tracks_after": 3})
    store.end(job.job_id, CANCELED, "too late")
    holder.kill(), holder.wait()

    ended = store.read(job.job_id)
    assert (running.state, running.pid) == (RUNNING, holder.pid) and running.started_at is not None
    assert (ended.state, ended.error, ended.summary) == (SUCCEEDED, None, {"tracks_after": 3})
    assert ended.created_at <= running.started_at <= str(ended.ended_at)


def test_a_job_whose_process_was_killed_has_failed(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    holder = start_holder(tmp_path, job.job_id)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()

    ended = store.read(job.job_id)

    assert ended.state == FAILED and "without a word" in str(ended.error)
    with pytest.raises(BusyError, match="begun before"), store.hold(job.job_id):
        pass


def test_a_job_is_done_by_one_process(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    holder = start_holder(tmp_path, job.job_id)
    with pytest.raises(BusyError, match="another process"), store.hold(job.job_id):
        pass
    holder.kill(), holder.wait()


def test_a_glance_at_the_state_does_not_keep_a_job_from_starting(store: JobStore) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    reader = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_SH); "
         "print('read', flush=True); time.sleep(0.3)", store.folder_of(job.job_id) / "lock"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout is not None and reader.stdout.readline() == b"read\n"
    started = time.monotonic()
    with store.hold(job.job_id):
        assert store.read(job.job_id).state == RUNNING
    assert time.monotonic() - started > 0.1
    reader.wait()


def test_the_newest_come_first_and_only_ended_ones_go(store: JobStore) -> None:
    jobs = [store.create("episode", (f"show-s01e0{i}",), {}).job_id for i in range(4)]
    for job_id in jobs[:3]:
        store.end(job_id, SUCCEEDED)
    assert store.list_ids() == jobs[::-1]

    assert store.prune(1) == [jobs[1], jobs[0]]
    assert store.list_ids() == [jobs[3], jobs[2]]


@pytest.mark.parametrize("job_id", ["", "..", "../x", "20260101T000000.000000Z-00000000", "a/b", "x\0"])
def test_an_id_that_is_no_job_is_refused(store: JobStore, job_id: str) -> None:
    store.create("episode", ("show-s01e01",), {})
    with pytest.raises(JobError, match="no job"):
        store.read(job_id)
