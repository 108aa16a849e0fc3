"""Jobs of the HTTP API on disk: what was asked for, who works on it, how it ended. They outlive the API.

A job is a folder under ``runs/jobs`` of the data root. The process that does it holds the lock in its folder while it
lives, so whether a job is running is asked of the system and not remembered. (Of a job on a Ray cluster the cluster is
asked, by whoever submitted it: locks need not reach from host to host.) The first three are written once, whole:

    request.json   what was asked for, by the API
    process.json   process and start, by the job
    end.json       state, error, time and report, by the job; by the API if the job never began or died without a word
    progress.json  where it stands, as cleanup_progress.json or season_progress.json, by the job
    events.jsonl   every state of progress.json there was, a line each, by the job
    log.txt        the job's standard error
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.file_writing import write_synced
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, JobError
from cleanup.names import EpId, check_ep_id

EPISODE, SEASON = "episode", "season"
QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED = "queued", "running", "succeeded", "failed", "canceled"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELED})
JOB_ID_PATTERN = r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9a-f]{8}"
_JOB_ID = re.compile(JOB_ID_PATTERN)
_GLANCE_S = 1.0
_DIED = "the job's process ended without a word; the episode's files are as they were, or the next run finishes them"


@dataclass(frozen=True)
class Job:
    """A job as its folder tells it.

    Attributes:
        job_id: Its id; ids sort by time.
        kind: ``episode`` or ``season``.
        ep_ids: The episodes, as asked for.
        requested: The options, as asked for.
        created_at: When it was asked for, ISO 8601.
        is_on_ray: Whether it is a job of a Ray cluster, and not a process of the API's host.
        key: The caller's Idempotency-Key, or None.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``canceled``.
        started_at: When its process began, or None.
        ended_at: When it ended, or None.
        host: Where its process is or was, or None.
        pid: Its process while it runs on this host, or None.
        error: One line if it failed or was canceled, or None.
        summary: The report if it succeeded, or None.
    """

    job_id: str
    kind: str
    ep_ids: tuple[EpId, ...]
    requested: Mapping[str, Any]
    created_at: str
    is_on_ray: bool
    key: str | None
    state: str
    started_at: str | None
    ended_at: str | None
    host: str | None
    pid: int | None
    error: str | None
    summary: Mapping[str, Any] | None


class JobStore:
    """The jobs of one data root; several processes may use one.

    Args:
        folder: ``runs/jobs`` of the data root.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def hold_all(self) -> Iterator[None]:
        """Held by who decides whether a job is created or started; others wait."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def create(
        self,
        kind: str,
        ep_ids: tuple[EpId, ...],
        requested: Mapping[str, Any],
        *,
        is_on_ray: bool = False,
        key: str | None = None,
    ) -> Job:
        """Notes a new job, queued."""
        now = datetime.now(UTC)
        job_id = f"{now:%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(4)}"
        request = {"kind": kind, "ep_ids": ep_ids, "requested": requested, "created_at": _format(now),
                   "is_on_ray": is_on_ray, "key": key}  # fmt: skip
        staged = self._folder / f".{job_id}"
        staged.mkdir(parents=True)
        write_synced(RootPath.of_file(staged / "request.json"), orjson.dumps(request, option=orjson.OPT_INDENT_2))
        staged.rename(self._folder / job_id)
        return self.read(job_id)

    def read(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            JobError: There is no such job.
        """
        folder = self.folder_of(job_id)
        request = _load(folder / "request.json")
        if request is None:
            raise JobError(f"job {job_id} has just been removed")
        is_held = _is_held(folder / "lock")  # before end.json: who lets go has written it
        process, end = _load(folder / "process.json"), _load(folder / "end.json")
        state = QUEUED if process is None else RUNNING if is_held or request["is_on_ray"] else FAILED
        return Job(
            job_id=job_id,
            kind=request["kind"],
            ep_ids=tuple(check_ep_id(ep_id) for ep_id in request["ep_ids"]),
            requested=request["requested"],
            created_at=request["created_at"],
            is_on_ray=request["is_on_ray"],
            key=request["key"],
            state=state if end is None else end["state"],
            started_at=None if process is None else process["started_at"],
            ended_at=None if end is None else end["ended_at"],
            host=None if process is None else process["host"],
            pid=process["pid"] if process is not None and is_held and process["host"] == socket.gethostname() else None,
            error=end["error"] if end is not None else _DIED if state == FAILED else None,
            summary=None if end is None else end["summary"],
        )

    def list_ids(self) -> list[str]:
        """All jobs, newest first."""
        names = [p.name for p in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted((name for name in names if _JOB_ID.fullmatch(name)), reverse=True)

    def read_all(self, before: str | None = None) -> Iterator[Job]:
        """Jobs, newest first, from before one of them on; those that are pruned meanwhile are left out."""
        for job_id in self.list_ids():
            if before is None or job_id < before:
                with contextlib.suppress(JobError):
                    yield self.read(job_id)

    def folder_of(self, job_id: str) -> Path:
        """A job's folder.

        Raises:
            JobError: There is no such job.
        """
        if not _JOB_ID.fullmatch(job_id) or not (self._folder / job_id).is_dir():
            raise JobError(f"there is no job {job_id!r}; GET /jobs lists them")
        return self._folder / job_id

    @contextlib.contextmanager
    def hold(self, job_id: str) -> Iterator[Path]:
        """Holds a job for the process that does it, and notes which one that is.

        Raises:
            BusyError: Another process does it, or it has ended.
        """
        folder = self.folder_of(job_id)
        with (folder / "lock").open("ab") as stream:
            _lock(stream.fileno(), job_id)
            if (folder / "process.json").exists() or (folder / "end.json").exists():
                raise BusyError(f"job {job_id} was begun before; start a new one")
            who = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": _format(datetime.now(UTC))}
            write_synced(RootPath.of_file(folder / "process.json"), orjson.dumps(who))
            yield folder

    def end(self, job_id: str, state: str, error: str | None = None, summary: Mapping[str, Any] | None = None) -> None:
        """Notes how a job ended; what is noted already stays."""
        path = self.folder_of(job_id) / "end.json"
        end = {"state": state, "error": error, "summary": summary, "ended_at": _format(datetime.now(UTC))}
        staged = path.with_name(f".end.{os.getpid()}")
        write_synced(RootPath.of_file(staged), orjson.dumps(end))
        with contextlib.suppress(FileExistsError):
            os.link(staged, path)
        staged.unlink()

    def prune(self, n_kept: int) -> list[str]:
        """Removes the oldest jobs that have ended, beyond so many; gives their ids."""
        ended = [job_id for job_id in self.list_ids() if self.read(job_id).state in ENDED]
        for job_id in ended[n_kept:]:
            shutil.rmtree(self.folder_of(job_id))
        return ended[n_kept:]


def _lock(handle: int, job_id: str) -> None:
    """Takes the lock; whoever only looks whether it is held has it for an instant."""
    deadline = time.monotonic() + _GLANCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BusyError(f"job {job_id} is being done by another process") from None
            time.sleep(0.01)


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise JobError(f"{path}: not a record of a job ({error}); remove its folder") from error


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
