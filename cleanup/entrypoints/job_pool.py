"""Starts the jobs of the HTTP API, so many at a time, and stops them. What runs outlives this process."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import psutil

from cleanup.edges.job_records import CANCELED, ENDED, FAILED, QUEUED, RUNNING, Job
from cleanup.edges.job_store import JobStore
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.errors import BusyError, EngineError, StorageError
from cleanup.names import EpId

_log = logging.getLogger(__name__)
_POLL_S = 0.05
# A run stops at once or at its next step; one that does not is killed, and its journal keeps the files whole.
_PATIENCE_S = 3.0
_KILL_S = 1.0
# What a job has started ends by itself when the job does; so long it is waited for.
_REST_S = 3.0
# One that cannot be seen from here looks by itself whether it is asked to stop, and cannot be killed.
_UNSEEN_PATIENCE_S = 10.0
# How long a request, or a look at the jobs, waits for another API that decides something.
_HOLD_PATIENCE_S, _TEND_PATIENCE_S = 4.0, 1.0
_RAY_PATIENCE_S = 20.0
_START_PATIENCE_S = 120.0


class Runner(Protocol):
    """How jobs are done: as processes of this host, or on a Ray cluster."""

    is_ray: bool

    def start(self, root: RootPath, job_id: str) -> None:
        """Starts a job that nobody has begun; one that was started before stays as it is."""

    def find_end(self, job: Job) -> str | None:
        """Why a job that has noted no end is not going to; None while it runs or may still begin."""

    def stop(self, store: JobStore, job_id: str) -> None:
        """Stops a job and comes back when nothing of it is left."""


class ProcessRunner:
    """Jobs as processes of this host, each the leader of a session."""

    is_ray = False

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, root: RootPath, job_id: str) -> None:
        """See Runner."""
        with (root / "runs" / "jobs" / job_id / "log.txt").open("ab") as log:
            self._children[job_id] = subprocess.Popen(
                [sys.executable, "-m", "cleanup.entrypoints.job_process", str(root), job_id],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def find_end(self, job: Job) -> str | None:
        """See Runner."""
        child = self._children.get(job.job_id)
        if child is not None and child.poll() is not None:
            del self._children[job.job_id]
            if job.state == QUEUED:
                return f"its process ended with {child.returncode} before it began; see the job's log"
        return job.error

    def stop(self, store: JobStore, job_id: str) -> None:
        """See Runner."""
        # One that was started just now can be stopped once it has said that it runs.
        own = self._children.get(job_id)
        _wait(lambda: own is None or own.poll() is not None or store.read(job_id).state != QUEUED, _PATIENCE_S)
        job = store.read(job_id)
        if job.state in ENDED or (job.state == QUEUED and own is not None and own.poll() is not None):
            return
        process = job.process if job.process is not None and _does(job.process, job_id) else None
        started = [] if process is None else _find_children(process)
        if process is None or not process.send(signal.SIGTERM):
            ask_to_stop(store, job)
        elif not process.wait(_PATIENCE_S):
            process.send(signal.SIGKILL)
            if not process.wait(_KILL_S):
                raise EngineError(f"job {job_id}: {job.where} cannot be stopped; it hangs in the system")
        deadline = time.monotonic() + _REST_S
        for child in started:  # each sees to its own end
            child.wait(max(0.0, deadline - time.monotonic()))


def _does(process: ProcessIdentity, job_id: str) -> bool:
    """Whether a process is one that does a job, as its command line says: the record may name anybody's."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.is_here and job_id in psutil.Process(process.pid).cmdline()
    return False


def _find_children(process: ProcessIdentity) -> list[ProcessIdentity]:
    """What a process has started, and what that has, as far as it works still."""
    found: list[ProcessIdentity] = []
    if process.is_alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(ProcessLookupError):
                    found.append(ProcessIdentity.of(child.pid))
    return found


def ask_to_stop(store: JobStore, job: Job) -> None:
    """Stops a job that runs where no signal reaches it: in another container, on another host.

    Raises:
        BusyError: It has not stopped.
    """
    store.ask_to_stop(job.job_id)
    if not _wait(lambda: store.read(job.job_id).state in ENDED, _UNSEEN_PATIENCE_S):
        raise BusyError(
            f"job {job.job_id} runs where this API cannot see it ({job.where or 'not begun yet'}); it was asked to "
            "stop and has not yet: ask again, or stop it there"
        )


class RayRunner:
    """Jobs on a Ray cluster. The cluster's nodes see the data root under the same path.

    Args:
        address: URL of the cluster's dashboard.
        environment: Environment variables of every job, none of them secret.
    """

    is_ray = True

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        from cleanup.edges.ray_jobs import RayJobs

        self.jobs = RayJobs(address, environment)

    def start(self, root: RootPath, job_id: str) -> None:
        """See Runner."""
        self.jobs.start(str(root), job_id)

    def find_end(self, job: Job) -> str | None:
        """See Runner."""
        end = self.jobs.find_end(job.job_id)
        return None if end is None else f"the Ray job ended without a word: {' '.join(end.split())[:300]}"

    def stop(self, store: JobStore, job_id: str) -> None:  # noqa: ARG002 -- the cluster reaches its jobs
        """See Runner."""
        self.jobs.stop(job_id)
        if not _wait(lambda: self.jobs.find_end(job_id) is not None, _RAY_PATIENCE_S):
            raise EngineError(f"job {job_id}: Ray has not stopped it yet; ask again")


class JobPool:
    """The jobs of one data root.

    Args:
        root: Data root.
        runner: How they are done.
        max_running: Jobs at a time; the others wait their turn.
        max_waiting: Jobs that may wait.
        max_kept: Jobs that are kept after they have ended.
    """

    def __init__(self, root: RootPath, runner: Runner, *, max_running: int, max_waiting: int, max_kept: int) -> None:
        self.store = JobStore(root)
        self._root, self._runner = root, runner
        self._max_running, self._max_waiting, self._max_kept = max_running, max_waiting, max_kept
        self._lock = threading.Lock()
        self._started: set[str] = set()
        self._stopping: set[str] = set()
        self._refused_since: dict[str, float] = {}

    @property
    def is_on_ray(self) -> bool:
        """Whether its jobs are those of a Ray cluster."""
        return self._runner.is_ray

    @contextlib.contextmanager
    def _hold(self, patience_s: float) -> Iterator[None]:
        """Held by who decides something about jobs, in this API and in others."""
        deadline = time.monotonic() + patience_s
        if not self._lock.acquire(timeout=patience_s):
            raise StorageError("the API is busy with other requests about jobs; try again")
        try:
            with self.store.hold_all(max(0.0, deadline - time.monotonic())):
                yield
        finally:
            self._lock.release()

    def submit(
        self,
        kind: Literal["episode", "season"],
        ep_ids: tuple[EpId, ...],
        requested: Mapping[str, Any],
        key: str | None = None,
    ) -> Job:
        """Notes a job and starts it if there is room; with the key of an earlier one it is that one.

        Raises:
            BusyError: A job for one of the episodes has not ended (the message names it), too many wait, or the key
                was used for something else.
            StorageError: Another API decides something for long; the message says which.
        """
        with self._hold(_HOLD_PATIENCE_S):
            if key is not None:
                for job in self.store.read_all():
                    if job.key == key:
                        if (job.kind, job.ep_ids, dict(job.requested)) != (kind, ep_ids, dict(requested)):
                            raise BusyError(f"Idempotency-Key {key!r} was used for another request: job {job.job_id}")
                        return job
            waiting = 0
            for job in self._list_open():
                waiting += job.state == QUEUED
                taken = set(job.ep_ids) & set(ep_ids)
                if taken:
                    raise BusyError(f"{sorted(taken)[0]}: job {job.job_id} is {job.state} for it; wait or cancel it")
            if waiting >= self._max_waiting:
                raise BusyError(f"{waiting} jobs are waiting already; try again later")
            job_id = self.store.create(kind, ep_ids, requested, is_on_ray=self._runner.is_ray, key=key).job_id
            self.store.prune(self._max_kept)
            self._tend()
        return self.store.read(job_id)

    def tend(self) -> None:
        """Notes the end of jobs that died without a word; starts those that wait, oldest first, while there is room."""
        with self._hold(_TEND_PATIENCE_S):
            self._tend()

    def _tend(self) -> None:
        jobs = self._list_open()
        n_running = 0
        for job in jobs:
            if job.state == RUNNING or job.job_id in self._started:
                n_running += 1 - self._note_end(job)
        for job in reversed(jobs):
            if job.state == QUEUED and job.job_id not in self._started and n_running < self._max_running:
                n_running += self._start(job.job_id)

    def cancel(self, job_id: str) -> Job:
        """Stops a job, all of it, and gives it as it is then; one that has ended stays as it is.

        Raises:
            JobError: There is no such job.
            BusyError: It runs where this API cannot stop it.
            EngineError: It does not stop.
            StorageError: Another API decides something for long; the message says which.
        """
        with self._hold(_HOLD_PATIENCE_S):
            if self.store.read(job_id).state == QUEUED and job_id not in self._started:
                # Another API may be starting it just now; whoever comes second sees what the other one has written.
                self.store.ask_to_stop(job_id)
                if self.store.read(job_id).state == QUEUED:
                    self.store.end(job_id, CANCELED, "canceled before it began")
            self._stopping.add(job_id)
        try:
            self._stop(self.store.read(job_id))
        finally:
            self._stopping.discard(job_id)
        return self.store.read(job_id)

    def _stop(self, job: Job) -> None:
        if job.state not in ENDED:
            if job.is_on_ray == self._runner.is_ray:
                self._runner.stop(self.store, job.job_id)
            else:
                ask_to_stop(self.store, job)
            self.store.end(job.job_id, CANCELED, "canceled; its process had to be killed, no file is half written")

    def count_by_state(self) -> dict[str, int]:
        """Jobs by state."""
        counts = dict.fromkeys((QUEUED, RUNNING, *sorted(ENDED)), 0)
        for job in self.store.read_all():
            counts[job.state] += 1
        return counts

    def _start(self, job_id: str) -> bool:
        """Whether a job takes a place: it was started, or nobody starts any now."""
        self._started.add(job_id)
        try:
            self._runner.start(self._root, job_id)
        except (EngineError, UnsafePathError, OSError) as error:
            _log.warning("job %s cannot be started: %s", job_id, error)
            self._started.discard(job_id)  # a cluster that is busy or away may be back at the next look
            since = self._refused_since.setdefault(job_id, time.monotonic())
            if isinstance(error, UnsafePathError) or time.monotonic() - since > _START_PATIENCE_S:
                self._note_failure(job_id, f"could not be started: {error}")
            return isinstance(error, EngineError)
        return True

    def _note_end(self, job: Job) -> bool:
        """Whether a job has come to its end without noting it; it is noted now."""
        if job.job_id in self._stopping:
            return False  # who stops it notes it
        try:
            why = self._runner.find_end(job) if job.is_on_ray == self._runner.is_ray else job.error
        except EngineError as error:
            _log.warning("%s", error)  # whether the job lives cannot be known now
            return False
        if why is None or self.store.read(job.job_id).state != job.state:
            return False  # or it has begun meanwhile: another API has started it as well
        self._note_failure(job.job_id, why)
        return True

    def _note_failure(self, job_id: str, why: str | None) -> None:
        """Notes an end; whoever was ending it meanwhile has noted so, and that stays."""
        with self.store.going_on("its end stays unnoted"):
            self.store.end(job_id, FAILED, why)

    def _list_open(self) -> Sequence[Job]:
        """Jobs that have not ended, newest first; those found dead are noted as failed, unless somebody stops them."""
        jobs = []
        for job in self.store.read_all():
            if job.ended_at is None and job.state in ENDED and job.job_id not in self._stopping:
                self._note_failure(job.job_id, job.error)
            elif job.ended_at is None:
                jobs.append(job)
                continue
            self._started.discard(job.job_id)
        return jobs


def _wait(is_done: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
