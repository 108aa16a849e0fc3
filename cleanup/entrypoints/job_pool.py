"""Starts the jobs of the HTTP API as processes of their own, so many at a time, and stops them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleanup.edges.job_store import CANCELED, ENDED, QUEUED, RUNNING, Job, JobStore
from cleanup.errors import BusyError

_POLL_S = 0.1
# A run stops at its next step of progress; one that does not is killed, and its journal keeps the files whole.
_PATIENCE_S = 4.0


class JobPool:
    """Jobs of one data root, done by processes that outlive this one.

    Args:
        root: Data root.
        max_running: Jobs at a time; the others wait their turn.
        max_kept: Jobs that are kept after they have ended.
    """

    def __init__(self, root: Path, *, max_running: int, max_kept: int) -> None:
        self.store = JobStore(root / "runs" / "jobs")
        self._max_running, self._max_kept = max_running, max_kept
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, kind: str, ep_ids: tuple[str, ...], requested: Mapping[str, Any]) -> Job:
        """Notes a job, and starts it if there is room.

        Raises:
            BusyError: A job for one of the episodes has not ended; the message names it.
        """
        with self._lock:
            for job in self._list_open():
                taken = set(job.ep_ids) & set(ep_ids)
                if taken:
                    raise BusyError(f"{sorted(taken)[0]}: job {job.job_id} is {job.state} for it; wait or cancel it")
            job_id = self.store.create(kind, ep_ids, requested).job_id
            self.store.prune(self._max_kept)
        self.start_waiting()
        return self.store.read(job_id)

    def start_waiting(self) -> None:
        """Starts jobs that wait, oldest first, while there is room."""
        with self._lock:
            for job_id in [job_id for job_id, child in self._children.items() if child.poll() is not None]:
                del self._children[job_id]
            jobs = self._list_open()
            starting = {job.job_id for job in jobs if job.state == QUEUED and job.job_id in self._children}
            n_running = sum(job.state == RUNNING for job in jobs) + len(starting)
            waiting = [job for job in reversed(jobs) if job.state == QUEUED and job.job_id not in starting]
            for job in waiting[: max(0, self._max_running - n_running)]:
                self._children[job.job_id] = self._start(job.job_id)

    def cancel(self, job_id: str) -> Job:
        """Stops a job, all of it, and gives it as it is then; one that has ended stays as it is."""
        job = self.store.read(job_id)
        if job.state == QUEUED:
            with contextlib.suppress(BusyError), self.store.hold(job_id):
                self.store.end(job_id, CANCELED, "canceled before it began")
        deadline = time.monotonic() + _PATIENCE_S
        is_asked = False
        while (job := self.store.read(job_id)).state not in ENDED:
            if job.pid is not None and not is_asked:
                is_asked = True
                _signal(job.pid, signal.SIGTERM)
            if job.pid is not None and time.monotonic() > deadline:
                _signal(job.pid, signal.SIGKILL)
                self.store.end(job_id, CANCELED, "canceled; its process did not stop and was killed")
            time.sleep(_POLL_S)
        self.start_waiting()
        return job

    def _list_open(self) -> list[Job]:
        jobs = [self.store.read(job_id) for job_id in self.store.list_ids()]
        return [job for job in jobs if job.state not in ENDED]

    def _start(self, job_id: str) -> subprocess.Popen[bytes]:
        folder = self.store.folder_of(job_id)
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cleanup.entrypoints.job_process", str(folder.parent), job_id],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


def _signal(pid: int, number: signal.Signals) -> None:
    """To the process and, as it leads a group, to those it started."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
