"""Jobs are stopped where they run, and no other process than theirs ever gets a signal."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cleanup.edges.job_records import CANCELED, FAILED, QUEUED, RUNNING, Job
from cleanup.edges.job_store import JobStore
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints import job_pool
from cleanup.entrypoints.job_pool import JobPool, ProcessRunner
from cleanup.errors import BusyError, StorageError
from cleanup.names import check_ep_id
from tests.edges.test_job_store import start_holder, write_job

EP = check_ep_id("show-s01e01")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobPool:
    monkeypatch.setattr(job_pool, "_UNSEEN_PATIENCE_S", 0.3)
    monkeypatch.setattr(job_pool, "_PATIENCE_S", 0.3)
    return JobPool(RootPath(tmp_path), ProcessRunner(), max_running=0, max_waiting=9, max_kept=9)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def reboot(process: ProcessIdentity) -> ProcessIdentity:
    return dataclasses.replace(process, boot_id="an earlier boot")


def enter_container(process: ProcessIdentity) -> ProcessIdentity:
    return dataclasses.replace(process, pid_namespace=process.pid_namespace + 1)


def claim(process: ProcessIdentity) -> ProcessIdentity:
    return process


def restart(process: ProcessIdentity) -> ProcessIdentity:
    return dataclasses.replace(process, start_ticks=process.start_ticks - 1)


@pytest.mark.parametrize("change", [reboot, enter_container, restart, claim, None])
def test_a_process_that_a_record_names_and_that_is_not_the_job_gets_no_signal(
    pool: JobPool,
    tmp_path: Path,
    stranger: subprocess.Popen[bytes],
    change: Callable[[ProcessIdentity], ProcessIdentity] | None,
) -> None:
    job = pool.submit("episode", (EP,), {})
    holder = start_holder(tmp_path, job.job_id)
    record = tmp_path / "runs" / "jobs" / job.job_id / "process.json"
    known = None if change is None else change(ProcessIdentity.of(stranger.pid)).to_json()
    written: dict[str, Any] = orjson.loads(record.read_bytes())
    record.write_bytes(orjson.dumps(written | {"pid": stranger.pid, "process": known}))

    with pytest.raises(BusyError, match=rf"cannot see it \(process {stranger.pid} on .*asked to stop"):
        pool.cancel(job.job_id)

    assert stranger.poll() is None and holder.poll() is None
    assert pool.store.is_asked_to_stop(job.job_id)
    holder.kill(), holder.wait()
    assert pool.cancel(job.job_id).error is not None


def test_a_job_that_hangs_is_killed_and_its_end_noted(pool: JobPool, tmp_path: Path) -> None:
    job = pool.submit("episode", (EP,), {})
    hold = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from tests.edges.test_job_store import HOLD\nexec(HOLD)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path, job.job_id], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"

    ended = pool.cancel(job.job_id)

    assert holder.wait(5) == -9 and ended.state == CANCELED and "killed" in str(ended.error)


def test_another_api_that_hangs_costs_a_request_a_while_and_a_line(
    pool: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_pool, "_HOLD_PATIENCE_S", 0.2)
    job = pool.submit("episode", (EP,), {})
    with JobStore(RootPath(tmp_path)).hold_all(0):
        for decide in (
            lambda: pool.submit("episode", (check_ep_id("show-s01e02"),), {}),
            lambda: pool.cancel(job.job_id),
        ):
            with pytest.raises(StorageError, match="is it stopped"):
                decide()
    assert pool.cancel(job.job_id).state == CANCELED


class _Starting(ProcessRunner):
    """Starts nothing, but opens the log as the real one does."""

    def start(self, root: RootPath, job_id: str) -> None:
        (root / "runs" / "jobs" / job_id / "log.txt").open("ab").close()


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_a_job_that_cannot_be_started_or_ended_holds_no_other_up(
    pool: JobPool, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    dead = tmp_path / "runs" / "jobs" / write_job(tmp_path, end=None)
    put(dead / "end.lock")
    first = pool.submit("episode", (EP,), {}).job_id
    put(tmp_path / "runs" / "jobs" / first / "log.txt")
    other = JobPool(RootPath(tmp_path), _Starting(), max_running=1, max_waiting=9, max_kept=9)
    second = other.submit("episode", (check_ep_id("show-s01e02"),), {}).job_id

    other.tend()

    assert (tmp_path / "runs" / "jobs" / second / "log.txt").is_file()
    assert (other.store.read(first).state, other.store.read(second).state) == (FAILED, QUEUED)
    assert "log.txt" in str(other.store.read(first).error) and not (dead / "end.json").exists()


def test_a_job_that_another_api_has_started_as_well_goes_on(tmp_path: Path) -> None:
    begun = []

    class Late(_Starting):
        def find_end(self, job: Job) -> str | None:
            begun.append(start_holder(tmp_path, job.job_id))
            return "its process ended with 2 before it began"

    pool = JobPool(RootPath(tmp_path), Late(), max_running=1, max_waiting=9, max_kept=9)
    job = pool.submit("episode", (EP,), {})

    pool.tend()

    assert len(begun) == 1 and pool.store.read(job.job_id).state == RUNNING
    begun[0].kill(), begun[0].wait()
