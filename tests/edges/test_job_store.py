"""Jobs on disk: their state is what the system says, whatever was killed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import orjson
import pytest

from cleanup.edges import job_store
from cleanup.edges.job_records import CANCELED, FAILED, QUEUED, RUNNING, SUCCEEDED, Job
from cleanup.edges.job_store import JobStore
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, DamagedJobError, JobError, StorageError

HOLD = """
import sys, time
from pathlib import Path
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
with JobStore(RootPath(Path(sys.argv[1]))).hold(sys.argv[2]):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(RootPath(tmp_path))


def ids_of(store: JobStore) -> list[str]:
    return [job.job_id for job in store.read_all()]


def report_of(store: JobStore, job: Job) -> Any:
    return orjson.loads(orjson.dumps(store.read_report(job.job_id)))


def start_holder(tmp_path: Path, job_id: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, job_id], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_job_is_queued_then_running_then_ended(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {"stride": 8})
    assert (job.state, job.started_at, job.requested) == (QUEUED, None, {"stride": 8})

    holder = start_holder(tmp_path, job.job_id)
    running, who = store.read(job.job_id), ProcessIdentity.of(holder.pid)
    store.end(job.job_id, SUCCEEDED, summary={"tracks_after": 3})
    store.end(job.job_id, CANCELED, "too late")
    ended = store.read(job.job_id)
    holder.kill(), holder.wait()

    assert running.state == RUNNING and running.started_at is not None
    assert running.process == who
    assert (ended.state, ended.error, ended.process) == (SUCCEEDED, None, None)
    assert report_of(store, job) == {"tracks_after": 3}
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


def test_a_job_that_begins_while_it_is_looked_at_has_not_failed(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    look, begun = job_store._is_held, []

    def look_slowly(lock: RootPath) -> bool:
        is_held = look(lock)
        begun.append(start_holder(tmp_path, job.job_id))
        (tmp_path / "runs" / "jobs" / job.job_id / "progress.json").write_bytes(b"{}")
        return is_held

    with monkeypatch.context() as patched:
        patched.setattr(job_store, "_is_held", look_slowly)
        assert store.read(job.job_id).state == QUEUED
    assert store.read(job.job_id).state == RUNNING
    begun[0].kill(), begun[0].wait()


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
         "print('read', flush=True); time.sleep(0.3)", str(store.folder_of(job.job_id) / "lock")], stdout=subprocess.PIPE,
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
    assert ids_of(store) == jobs[::-1]

    store.prune(1)

    assert ids_of(store) == [jobs[3], jobs[2]]


@pytest.mark.parametrize("job_id", ["", "..", "../x", "20260101T000000.000000Z-00000000", "a/b", "x\0"])
def test_an_id_that_is_no_job_is_refused(store: JobStore, job_id: str) -> None:
    store.create("episode", ("show-s01e01",), {})
    with pytest.raises(JobError, match="no job"):
        store.read(job_id)


def test_jobs_come_in_the_order_of_their_making_also_when_the_clock_goes_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        behind = timedelta(0)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.behind += timedelta(hours=1)
            return datetime.now(UTC) - cls.behind

    monkeypatch.setattr(job_store, "datetime", Clock)
    jobs = [store.create("episode", (f"show-s01e0{i}",), {}).job_id for i in range(4)]
    for job_id in jobs:
        store.end(job_id, SUCCEEDED)
    assert sorted(jobs) == jobs[::-1] and ids_of(store) == jobs[::-1]

    store.prune(2)

    assert ids_of(store) == [jobs[3], jobs[2]]


def write_job(root: Path, number: int = 0, **files: Any) -> str:
    """A job's folder with these records, over those of a job that has succeeded."""
    job_id = f"20250101T000000.{number:06}Z-deadbeef"
    folder = root / "runs" / "jobs" / job_id
    folder.mkdir(parents=True)
    request = {"kind": "episode", "ep_ids": ["show-s01e01"], "requested": {"stride": 8}, "created_at": "2025-01-01"}
    process = {"pid": 1, "host": "h", "started_at": "2025-01-01"}
    end = {"state": "succeeded", "error": None, "summary": None, "ended_at": "2025-01-01"}
    for name, whole in (("request", request), ("process", process), ("end", end)):
        content = files.get(name, {})
        if content is not None:
            content = whole | content if isinstance(content, dict) else content
            (folder / f"{name}.json").write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
    return job_id


@pytest.mark.parametrize(
    "files",
    [
        {"request": None}, {"request": b""}, {"request": b"[]"}, {"request": {"ep_ids": ["../x"]}},
        {"request": {"kind": "x"}}, {"request": {"requested": {"stride": {"deep": 1}}}}, {"request": {"number": -1}},
        {"request": {"key": 5}}, {"process": {"pid": "1"}}, {"process": {"process": {"pid": 1}}}, {"end": b"{"},
        {"end": {"state": "running"}}, {"end": {"ended_at": None}}, {"request": {"x": "y" * (1 << 20)}},
    ],
)  # fmt: skip
def test_a_record_that_is_not_whole_is_named_once_and_holds_nobody_up(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, files: dict[str, Any]
) -> None:
    damaged = write_job(tmp_path, **files)

    with caplog.at_level(logging.WARNING):
        job = store.create("episode", ("show-s01e01",), {})
        store.end(job.job_id, SUCCEEDED)
        assert ids_of(store) == [job.job_id]
        store.prune(0)

    assert ids_of(store) == [] and (tmp_path / "runs" / "jobs" / damaged).is_dir()
    assert [damaged in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(DamagedJobError, match=damaged):
        store.read(damaged)


def test_a_link_or_a_fifo_in_place_of_a_record_is_left_alone(store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"state": "failed", "error": "secret", "ended_at": "x"}')
    linked, piped = write_job(tmp_path, 1, end=None), write_job(tmp_path, 2, request=None)
    (tmp_path / "runs" / "jobs" / linked / "end.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(tmp_path / "runs" / "jobs" / piped / "request.json")

    assert store.read_all() == [] and (tmp_path / "secret.json").exists()


def test_jobs_of_an_older_version_are_read_and_their_reports_kept_apart(store: JobStore, tmp_path: Path) -> None:
    report = {"run_id": "20250101T000000.000000Z-17", "tracks_after": 3}
    older = [write_job(tmp_path, i, end={"summary": report}) for i in range(3)]
    failed = write_job(tmp_path, 3, end={"state": "failed", "error": "why"})
    newest = store.create("episode", ("show-s01e01",), {})

    assert ids_of(store) == [newest.job_id, failed, *older[::-1]]
    job = store.read(older[0])
    assert (job.state, job.run_id, job.requested) == (SUCCEEDED, report["run_id"], {"stride": 8})
    assert report_of(store, job) == report and report_of(store, store.read(failed)) is None
    assert "summary" not in orjson.loads((tmp_path / "runs" / "jobs" / older[0] / "end.json").read_bytes())
    assert JobStore(RootPath(tmp_path)).read(older[0]) == job


def test_a_job_of_a_newer_version_is_left_alone(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = write_job(tmp_path, request={"version": 2})
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs" / "jobs" / newer).iterdir()}

    store.read_all()
    store.prune(0)

    assert {path.name: path.read_bytes() for path in (tmp_path / "runs" / "jobs" / newer).iterdir()} == before
    assert "newer" in caplog.text


def test_what_a_removal_left_by_older_versions_does_not_run_again(store: JobStore, tmp_path: Path) -> None:
    left = write_job(tmp_path, process=None, end=None)
    (tmp_path / "runs" / "jobs" / left / "progress.json").write_text("{}")

    assert store.read_all() == []


def test_a_list_reads_no_report(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    store.end(job.job_id, SUCCEEDED, summary={"tracks_after": 3})
    (tmp_path / "runs" / "jobs" / job.job_id / "report.json").write_bytes(b"{")

    assert [j.state for j in JobStore(RootPath(tmp_path)).read_all()] == [SUCCEEDED]
    with pytest.raises(DamagedJobError, match="report.json"):
        store.read_report(job.job_id)


def test_of_many_that_note_an_end_one_does(store: JobStore, tmp_path: Path) -> None:
    job = store.create("episode", ("show-s01e01",), {})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: JobStore(RootPath(tmp_path)).end(job.job_id, FAILED, f"why {i}"), range(8)))
    first = store.read(job.job_id).error

    store.end(job.job_id, SUCCEEDED, summary={})

    assert JobStore(RootPath(tmp_path)).read(job.job_id).error == first


@pytest.fixture(params=["refused", "vfat"])
def linkless(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which nothing can be linked: a vfat where there may be one, and a system that refuses."""
    if request.param == "refused":
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
        yield tmp_path
        return
    image, place = tmp_path / "image", tmp_path / "vfat"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mkfs.vfat") is None:
        pytest.skip("mounting a vfat wants root and mkfs.vfat (Debian: dosfstools)")
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.vfat", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False, capture_output=True).returncode != 0:
        pytest.skip("no vfat can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_job_ends_where_there_are_no_links(linkless: Path) -> None:
    store = JobStore(RootPath(linkless))
    (linkless / "file").touch()
    with pytest.raises(PermissionError):
        (linkless / "link").hardlink_to(linkless / "file")
    with store.hold_all(1):
        job = store.create("episode", ("show-s01e01",), {})
    with store.hold(job.job_id):
        assert store.read(job.job_id).state == RUNNING
        store.end(job.job_id, SUCCEEDED, summary={"tracks_after": 3})
    store.end(job.job_id, CANCELED, "too late")

    assert store.read(job.job_id).state == SUCCEEDED and report_of(store, job) == {"tracks_after": 3}
    with store.hold_all(1):
        store.prune(0)
    assert store.read_all() == []


def test_who_holds_the_jobs_for_long_is_named(store: JobStore, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace(".hold(sys.argv[2])", ".hold_all(1)"), tmp_path],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"held by process {holder.pid} on"), store.hold_all(0.2):
        pass
    assert time.monotonic() - started < 2
    holder.kill(), holder.wait()
    with store.hold_all(0.2):
        pass


def test_a_data_root_that_is_gone_is_said_and_not_made_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    store = JobStore(RootPath(root))
    store.create("episode", ("show-s01e01",), {})
    root.rename(tmp_path / "elsewhere")

    with pytest.raises(StorageError, match="not there any more"), store.hold_all(0):
        pass

    assert not root.exists()
