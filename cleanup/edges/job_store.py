"""Jobs of the HTTP API on disk: what was asked for, who works on it, how it ended. They outlive the API.

A job is a folder under ``runs/jobs`` of the data root. The process that does it holds the lock in its folder while it
lives, so whether a job is running is asked of the system and not remembered. (Of a job on a Ray cluster the cluster is
asked, by whoever submitted it: locks need not reach from host to host.) The first five are written once, whole:

    request.json   what was asked for, by the API
    process.json   process and start, by the job
    cancel.json    that it is to stop, by an API that cannot reach its process
    report.json    the report, if it succeeded, by the job, before its end
    end.json       state, error and time, by the job; by the API if the job never began or died without a word
    progress.json  where it stands, as cleanup_progress.json or season_progress.json, by the job
    events.jsonl   every state of progress.json there was, a line each, by the job
    log.txt        the job's standard error

Jobs are ordered by a number that counts them. A dot before a job's id says that it was being made or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from cleanup.edges.file_writing import replace_file, write_synced
from cleanup.edges.job_records import (
    FAILED,
    JOB_ID_PATTERN,
    QUEUED,
    RUNNING,
    VERSION,
    EndRecord,
    Job,
    ProcessRecord,
    ProgressRecord,
    RequestRecord,
    dump_record,
    read_record,
)
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.records import take_fragment
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.errors import (
    ArtifactError,
    BusyError,
    DamagedJobError,
    JobError,
    StorageError,
    describe_os_error,
    one_line,
)
from cleanup.input_limits import MAX_DOCUMENT_BYTES
from cleanup.names import EpId

_log = logging.getLogger(__name__)
_JOB_ID = re.compile(JOB_ID_PATTERN)
# A job that was being made or removed, and a draft of who holds all.
_RUBBISH = re.compile(rf"\.({JOB_ID_PATTERN}|holder\..*)")
_GLANCE_S = 1.0
_END_PATIENCE_S = 5.0
_RETRY_S = 0.01
# One that is not whole is looked at again after so long: somebody may have mended it.
_LEFT_OUT_S = 60.0
_MAX_HOLDER_BYTES = 4096
_DIED = "the job's process ended without a word; the episode's files are as they were, or the next run finishes them"


class JobStore:
    """The jobs of one data root; several processes may use one.

    Args:
        root: Data root.
    """

    def __init__(self, root: RootPath) -> None:
        self._root, self._folder = root, root / "runs" / "jobs"
        self._holder = f"process {os.getpid()} on {socket.gethostname()}, which started at {_now()}".encode()
        # What has ended does not change any more.
        self._ended: dict[str, Job] = {}
        self._left_out: dict[str, float] = {}
        self._named: set[str] = set()

    @contextlib.contextmanager
    def hold_all(self, patience_s: float) -> Iterator[None]:
        """Held by who decides whether a job is created or started; others wait.

        Raises:
            StorageError: Somebody holds it for longer than that; the message says who. Or the data root is gone.
        """
        if not self._root.is_dir():
            raise StorageError(f"{self._root}: the data root is not there any more; is its disk away?")
        self._folder.mkdir()
        holder = self._folder / "holder"
        with (self._folder / "lock").open_lock() as stream:
            if not _lock(stream, patience_s):
                who = one_line(_read_text(holder)) or "another process"
                raise StorageError(f"{self._folder}/lock: held by {who}; is it stopped? Let it go on, or end it")
            if _read_text(holder).encode() != self._holder:
                with contextlib.suppress(OSError):  # a full disk keeps nobody from stopping a job
                    replace_file(holder, self._holder)
            yield

    def create(
        self,
        kind: Literal["episode", "season"],
        ep_ids: tuple[EpId, ...],
        requested: Mapping[str, Any],
        *,
        is_on_ray: bool = False,
        key: str | None = None,
    ) -> Job:
        """Notes a new job, queued; for whoever holds all."""
        job_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(4)}"
        number = 1 + max((job.number for job in self.read_all()), default=0)
        request = RequestRecord(
            kind=kind, ep_ids=list(ep_ids), requested=dict(requested), created_at=_now(), is_on_ray=is_on_ray, key=key,
            number=number,
        )  # fmt: skip
        staged = self._folder / f".{job_id}"
        staged.mkdir()
        write_synced(staged / "request.json", dump_record(request))
        staged.replace(self._folder / job_id)
        self._folder.sync()
        return self.read(job_id)

    def read(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            JobError: There is no such job, or its record is not whole.
        """
        folder = self.folder_of(job_id)
        if job_id not in self._ended:
            job = self._read(folder, job_id)
            if job.ended_at is None:
                return job
            self._ended[job_id] = job
        return self._ended[job_id]

    def _read(self, folder: RootPath, job_id: str) -> Job:
        request = read_record(folder / "request.json", RequestRecord)
        if request is None:
            self.folder_of(job_id)  # it may have been removed meanwhile
            raise DamagedJobError(f"{folder}: request.json is missing; remove the folder")
        # What is written last is looked for first, and who lets go of the lock has written the end: a job that begins
        # or ends meanwhile is seen as it was or as it is.
        has_progress = (folder / "progress.json").exists()
        process = read_record(folder / "process.json", ProcessRecord)
        is_held = _is_held(folder / "lock")
        end = self._read_end(folder)
        if process is None and end is None and has_progress:
            raise DamagedJobError(f"{folder}: process.json is missing, but it has begun; remove the folder")
        state = QUEUED if process is None else RUNNING if is_held or request.is_on_ray else FAILED
        return Job(
            job_id=job_id,
            number=request.number,
            kind=request.kind,
            ep_ids=tuple(request.ep_ids),
            requested=request.requested,
            created_at=request.created_at,
            is_on_ray=request.is_on_ray,
            key=request.key,
            state=state if end is None else end.state,
            started_at=None if process is None else process.started_at,
            ended_at=None if end is None else end.ended_at,
            where=None if process is None else f"process {process.pid} on {process.host}",
            process=process.process if process is not None and is_held and end is None else None,
            error=end.error if end is not None else _DIED if state == FAILED else None,
            run_id=None if end is None else end.run_id,
        )

    def _read_end(self, folder: RootPath) -> EndRecord | None:
        """How the job ended; a report that is part of it, as it was once, gets a file of its own."""
        path = folder / "end.json"
        end = read_record(path, EndRecord, MAX_DOCUMENT_BYTES)
        if end is not None and end.summary is not None:
            self._name(f"{self._folder}: reports of jobs of an older version get files of their own, once")
            summary, end = end.summary, EndRecord.of(end.state, end.error, end.ended_at, end.summary)
            with self.going_on("the job is slow to read, and its report is not shown"):
                write_synced(folder / "report.json", orjson.dumps(summary))
                write_synced(path, dump_record(end))
        return end

    def read_report(self, job_id: str) -> orjson.Fragment | None:
        """The report of a job, or None where it has none.

        Raises:
            JobError: There is no such job, or its report is not whole.
            UnsafePathError: Its report is no file.
        """
        try:
            return take_fragment(self.folder_of(job_id) / "report.json")
        except UnsafePathError:
            raise
        except ArtifactError as error:
            raise DamagedJobError(str(error)) from None

    def read_progress(self, job_id: str) -> ProgressRecord | None:
        """Where a job says that it stands, or None where it has said nothing that can be read."""
        try:
            return read_record(self.folder_of(job_id) / "progress.json", ProgressRecord, MAX_DOCUMENT_BYTES)
        except DamagedJobError as error:
            self._name(str(error))
            return None

    def read_all(self) -> list[Job]:
        """All jobs, newest first; one whose record is not whole is left out, and named once."""
        jobs = []
        names = self._list_names()
        for job_id in names:
            if self._left_out.get(job_id, 0.0) > time.monotonic():
                continue
            try:
                jobs.append(self._ended.get(job_id) or self.read(job_id))
            except (DamagedJobError, UnsafePathError) as error:
                self._left_out[job_id] = time.monotonic() + _LEFT_OUT_S
                self._name(f"{error}; the job is left out")
            except OSError as error:
                self._name(f"{describe_os_error(error)}; the job is left out")
            except JobError:  # removed meanwhile
                continue
        for gone in self._ended.keys() - set(names):
            self._ended.pop(gone, None)
        return sorted(jobs, key=lambda job: job.place, reverse=True)

    def _list_names(self) -> list[str]:
        try:
            return [path.name for path in self._folder.iterdir() if _JOB_ID.fullmatch(path.name)]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def going_on(self, outcome: str) -> Iterator[None]:
        """One job that the system or another program is in the way of holds no others up."""
        try:
            yield
        except OSError as error:
            self._name(f"{describe_os_error(error)}; {outcome}")
        except (StorageError, UnsafePathError) as error:
            self._name(f"{error}; {outcome}")

    def _name(self, message: str) -> None:
        if message not in self._named:
            self._named.add(message)
            _log.warning("%s", message)

    def folder_of(self, job_id: str) -> RootPath:
        """A job's folder.

        Raises:
            JobError: There is no such job.
        """
        if not _JOB_ID.fullmatch(job_id) or not (self._folder / job_id).is_dir():
            raise JobError(f"there is no job {job_id[:100]!r}; GET /jobs lists them")
        return self._folder / job_id

    @contextlib.contextmanager
    def hold(self, job_id: str) -> Iterator[RootPath]:
        """Holds a job for the process that does it, and notes which one that is.

        Raises:
            BusyError: Another process does it, or it has ended.
        """
        folder = self.folder_of(job_id)
        with (folder / "lock").open_lock() as stream:
            # Whoever only looks whether it is held has it for an instant.
            if not _lock(stream, _GLANCE_S):
                raise BusyError(f"job {job_id} is being done by another process")
            if (folder / "process.json").exists() or (folder / "end.json").exists():
                raise BusyError(f"job {job_id} was begun before; start a new one")
            who = {"version": VERSION, "pid": os.getpid(), "host": socket.gethostname(), "started_at": _now()}
            write_synced(folder / "process.json", orjson.dumps({**who, "process": _identify()}))
            yield folder

    def ask_to_stop(self, job_id: str) -> None:
        """Lets a job know that it is to stop, wherever it runs; it looks for that by itself."""
        path = self.folder_of(job_id) / "cancel.json"
        write_synced(path, orjson.dumps({"version": VERSION, "asked_at": _now(), "by": self._holder.decode()}))

    def is_asked_to_stop(self, job_id: str) -> bool:
        """Whether somebody has let a job know that it is to stop."""
        return (self.folder_of(job_id) / "cancel.json").exists()

    def end(self, job_id: str, state: str, error: str | None = None, summary: Mapping[str, Any] | None = None) -> None:
        """Notes how a job ended; what is noted already stays.

        Raises:
            StorageError: Another process has been noting it for long.
        """
        folder = self.folder_of(job_id)
        # A lock, which dies with its process, and not a link: not every file system has those.
        with (folder / "end.lock").open_lock() as stream:
            if not _lock(stream, _END_PATIENCE_S):
                raise StorageError(f"{folder}: another process has been noting the job's end for long; is it stopped?")
            if (folder / "end.json").exists():
                return
            if summary is not None:
                write_synced(folder / "report.json", orjson.dumps(summary))
            write_synced(folder / "end.json", dump_record(EndRecord.of(state, error, _now(), summary)))

    def prune(self, n_kept: int) -> None:
        """Removes the oldest ended jobs beyond so many, and what a kill left of others; for whoever holds all."""
        ended = [job for job in self.read_all() if job.ended_at is not None]
        for job in ended[n_kept:]:
            # Out of the way in one step: what is left of a removal that is cut off is no job.
            with self.going_on("the job stays"):
                (self._folder / job.job_id).replace(self._folder / f".{job.job_id}")
        for path in self._folder.iterdir():
            if _RUBBISH.fullmatch(path.name):
                with self.going_on("the rest of a removed job stays"):
                    if path.is_dir():
                        path.rmtree()
                    else:
                        path.unlink(missing_ok=True)


def _lock(stream: io.BufferedReader, patience_s: float) -> bool:
    """Takes a lock; false if it is held by somebody for longer than that."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_RETRY_S)


def _is_held(lock: RootPath) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _identify() -> dict[str, Any] | None:
    """This process; None where the system does not tell, and then no signal reaches it either."""
    try:
        return ProcessIdentity.of(os.getpid()).to_json()
    except StorageError:
        return None


def _read_text(path: RootPath) -> str:
    try:
        return path.read_bytes(_MAX_HOLDER_BYTES).decode(errors="replace")
    except (OSError, ArtifactError):
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
