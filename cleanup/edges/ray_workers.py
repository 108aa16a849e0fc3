"""The Ray engine: one pool of actors with loaded models for all episodes, and the final task.

Beside ray_jobs.py the only module that imports Ray. Why the pool is made of plain actors, and not of Ray Data's, stands
in CONTRIBUTING.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray.util.metrics import Counter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanup import schemas
from cleanup.edges.observation_worker import ObservationWorker, WorkerSpec
from cleanup.edges.pool_sizing import NodeGroup, PoolSize, plan_pool
from cleanup.errors import CleanupError, EngineError, StorageError, VideoError, first_line
from cleanup.interfaces import OnShard, ShardResult, VideoSource, ignore_shard, run_in_turn
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import ClusterSettings

_log = logging.getLogger(__name__)
# An actor without work gives its GPU back after this; loading its models again takes seconds.
_IDLE_S = 60.0
_POLL_S = 0.1
# Actors that die one after the other before one of them has loaded its models: then it is not bad luck.
_MAX_FAILED_STARTS = 5
_CONNECT_TIMEOUT_S = 10.0


class RayWorker:
    """What an actor runs: an ObservationWorker, loaded once, and the counters seen in Ray's metrics.

    Args:
        spec: What to load.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ObservationWorker | None = None
        self._frames = Counter("cleanup_frames_decoded", "Video frames decoded.", ("ep_id",))
        self._faces = Counter("cleanup_faces_embedded", "Faces embedded.", ("ep_id",))

    def load(self) -> dict[str, dict[str, object]]:
        """Loads the models and says what they are; not in the constructor, so that its error keeps its kind."""
        self._worker = ObservationWorker(self._spec)
        return self._worker.describe_models()

    def observe(self, ep_id: str, video: VideoSource, samples: pa.Table) -> pa.Table:
        """Observes one shard; see ObservationWorker."""
        assert self._worker is not None
        try:
            table = self._worker.observe(video, samples)
        except VideoError as error:
            # The driver could read it, so it is this node that does not.
            raise VideoError(
                f"{error} (on {socket.gethostname()}); every node has to see the data root at the same path, or it has "
                "to be a URL"
            ) from error
        n_frames = schemas.read_provenance(table).n_frames
        n_faces = len(table) - table["embedding"].null_count
        for counter, value in ((self._frames, n_frames), (self._faces, n_faces)):
            if value:
                counter.inc(value, {"ep_id": ep_id})
        return table


@dataclass
class _Actor:
    handle: Any
    idle_since: float = 0.0


@dataclass
class _Shard:
    """A shard on its way through the pool."""

    ep_id: str
    number: int
    n_shards: int
    video: VideoSource
    samples: pa.Table
    n_attempts: int = 0
    future: Future[ShardResult] = field(default_factory=Future)


class _ActorPool:
    """Actors that take shards of any episode, oldest first; grows with the shards that wait, shrinks when idle.

    Ray's own restarts are off: a lost actor's shard goes to the next free actor at once, and retries are counted.
    One thread talks to Ray; the others hand in shards and wait for futures.
    """

    def __init__(self, spec: WorkerSpec, size: PoolSize, n_retries: int) -> None:
        n_threads = max(int(size.cpus), 1)
        self._spec = replace(spec, n_threads=n_threads, models=replace(spec.models, n_threads=n_threads))
        self.size, self._n_retries = size, n_retries
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._waiting: deque[_Shard] = deque()
        self._idle: list[_Actor] = []
        self._starting: dict[Any, _Actor] = {}
        self._running: dict[Any, tuple[_Actor, _Shard]] = {}
        self._n_started = self._n_failed_starts = 0
        self.n_loads = 0
        self._is_closed = False
        self._broken: BaseException | None = None
        self.models: Future[dict[str, dict[str, object]]] = Future()
        self._retried = Counter("cleanup_shards_retried", "Shards begun again.", ("ep_id",))
        self._thread = threading.Thread(target=self._run, name="actor-pool", daemon=True)
        self._thread.start()

    @property
    def has_workers(self) -> bool:
        """Whether any actor has loaded its models."""
        return bool(self._idle or self._running)

    def submit(self, shards: Sequence[_Shard]) -> None:
        """Hands in shards; their futures get the results."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._waiting.extend(shards)
        self._wake.set()

    def withdraw(self, shards: Sequence[_Shard]) -> None:
        """Takes back what has not been begun; what has is finished and forgotten."""
        taken = {id(s) for s in shards}
        with self._lock:
            self._waiting = deque(s for s in self._waiting if id(s) not in taken)

    def close(self) -> None:
        """Ends the actors."""
        with self._lock:
            self._is_closed = True
        self._wake.set()
        self._thread.join()
        for actor in [*self._idle, *self._starting.values(), *(a for a, _ in self._running.values())]:
            ray.kill(actor.handle)

    def _run(self) -> None:
        try:
            while not self._is_closed:
                with self._lock:
                    self._scale()
                    self._assign()
                    pending = [*self._starting, *self._running]
                if not pending:
                    self._wake.wait(1.0)
                    self._wake.clear()
                    continue
                ready, _ = ray.wait(pending, num_returns=len(pending), timeout=_POLL_S, fetch_local=False)
                for reference in ready:
                    self._settle(reference)
        except BaseException as error:  # noqa: BLE001 -- whoever waits for a shard has to hear of it
            self._break(error if isinstance(error, CleanupError) else EngineError(f"Ray failed: {first_line(error)}"))

    def _break(self, error: BaseException) -> None:
        """Nothing works any more: everybody who waits is told."""
        with self._lock:
            self._broken = error
            shards = [*self._waiting, *(s for _, s in self._running.values())]
            self._waiting.clear()
        for shard in shards:
            if not shard.future.done():
                shard.future.set_exception(error)
        if not self.models.done():
            self.models.set_exception(error)

    def _scale(self) -> None:
        n_actors = len(self._idle) + len(self._starting) + len(self._running)
        n_wanted = len(self._waiting) + len(self._running) + (0 if self.models.done() else 1)
        for _ in range(self.size.count_to_start(n_wanted, n_actors, len(self._starting))):
            self._start_actor()
        now = time.monotonic()
        for actor in [a for a in self._idle if now - a.idle_since > _IDLE_S]:
            if n_actors > max(n_wanted, self.size.min_actors):
                self._idle.remove(actor)
                ray.kill(actor.handle)
                n_actors -= 1

    def _start_actor(self) -> None:
        self._n_started += 1
        kind = ray.remote(RayWorker).options(
            name=f"cleanup-worker-{self._n_started}",
            num_cpus=self.size.cpus,
            num_gpus=self.size.gpus,
            memory=self.size.memory or None,
            max_restarts=0,
            max_task_retries=0,
        )
        actor = _Actor(kind.remote(self._spec))
        self._starting[actor.handle.load.options(name="load models").remote()] = actor

    def _assign(self) -> None:
        while self._waiting and self._idle:
            shard, actor = self._waiting.popleft(), self._idle.pop()
            shard.n_attempts += 1
            call = actor.handle.observe.options(name=f"observe {shard.ep_id} {shard.number + 1}/{shard.n_shards}")
            self._running[call.remote(shard.ep_id, shard.video, shard.samples)] = (actor, shard)

    def _settle(self, reference: Any) -> None:
        """Takes in what a call has become."""
        if reference in self._starting:
            self._settle_start(reference)
            return
        with self._lock:
            actor, shard = self._running.pop(reference)
        try:
            result = ShardResult(ray.get(reference), None, shard.n_attempts)
        except ray.exceptions.RayTaskError as error:
            self._release(actor)
            cause = error.cause
            if isinstance(cause, StorageError) and shard.n_attempts <= self._n_retries:
                self._begin_again(shard, str(cause))
            else:
                shard.future.set_exception(_own_error(error))
        except ray.exceptions.RayError as error:
            self._discard(actor)
            reason = f"its worker was lost ({_reason_of_loss(error)})"
            if shard.n_attempts <= self._n_retries:
                self._begin_again(shard, reason)
            else:
                failure = f"begun {shard.n_attempts} times, the last time {reason}"
                shard.future.set_result(ShardResult(None, failure, shard.n_attempts))
        else:
            self._release(actor)
            shard.future.set_result(result)

    def _settle_start(self, reference: Any) -> None:
        with self._lock:
            actor = self._starting.pop(reference)
        try:
            models = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._discard(actor)
            raise _own_error(error) from None
        except ray.exceptions.RayError as error:
            self._discard(actor)
            self._n_failed_starts += 1
            if self._n_failed_starts >= _MAX_FAILED_STARTS:
                reason = _reason_of_loss(error)
                raise EngineError(
                    f"{self._n_failed_starts} workers were lost as they loaded models: {reason}"
                ) from error
            return
        self._n_failed_starts = 0
        self.n_loads += 1
        if not self.models.done():
            self.models.set_result(models)
        self._release(actor)

    def _release(self, actor: _Actor) -> None:
        actor.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(actor)

    def _discard(self, actor: _Actor) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor.handle)  # one that is only out of reach must not come back

    def _begin_again(self, shard: _Shard, reason: str) -> None:
        _log.warning("%s: shard %d of %d is begun again: %s", shard.ep_id, shard.number + 1, shard.n_shards, reason)
        self._retried.inc(1, {"ep_id": shard.ep_id})
        with self._lock:
            self._waiting.appendleft(shard)


def _own_error(error: ray.exceptions.RayTaskError) -> CleanupError:
    """What a worker raised, in its own kind."""
    cause = error.cause
    if isinstance(cause, CleanupError):
        return type(cause)(*cause.args)
    return EngineError(f"a worker failed: {type(cause).__name__}: {first_line(cause)}")


def _reason_of_loss(error: ray.exceptions.RayError) -> str:
    """Why Ray says an actor was lost, in one line."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "killed as its node was out of memory; reserve more (--memory-per-actor) or take fewer (--max-actors)"
    text = str(error)
    if getattr(error, "preempted", False):
        return "its node was preempted"
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return said[1] if len(said) > 1 else said[0] if said else type(error).__name__


def read_node_groups() -> list[NodeGroup]:
    """The nodes of the cluster as it is now."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [NodeGroup(1, n.get("CPU", 0.0), n.get("GPU", 0.0), n.get("memory", 0.0)) for n in alive]


def _check_address(address: str) -> None:
    """Makes sure that somebody listens at ``host:port``; Ray itself would go on trying for many minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts signal handlers of its own in place, which would end a run without its clean stop."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class RayEngine:
    """Engine of clusters; see ``cleanup.interfaces.Engine``. Joins RAY_ADDRESS, else starts a local Ray.

    Made in the main thread, because it keeps signal handlers. Several episodes may be observed at once, from threads;
    their shards share one pool.

    Args:
        make_spec: Gives what every actor loads; asked when the pool is made, since not every run has work for it.
        cluster: How large the pool and its actors are.

    Raises:
        EngineError: Ray does not start or cannot be joined, or no node can hold an actor.
        SettingsError: The sizes asked for make no sense.
    """

    name = "ray"

    def __init__(self, make_spec: Callable[[], WorkerSpec], cluster: ClusterSettings) -> None:
        self._make_spec, self._cluster = make_spec, cluster
        self._pool: _ActorPool | None = None
        self._lock = threading.Lock()
        self._owns_ray = self._is_local = False
        if not ray.is_initialized():
            self._start()

    def _start(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            if address:
                _check_address(address)
            with _handlers_kept():
                ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                    configure_logging=False,
                )
        except (OSError, RuntimeError, ValueError) as error:
            where = f"RAY_ADDRESS={address}" if address else "a local Ray"
            raise EngineError(
                f"{where} cannot be used ({first_line(error)}); check it or use --engine local"
            ) from error
        self._owns_ray, self._is_local = True, not address

    def _started_pool(self) -> _ActorPool:
        with self._lock:
            if self._pool is None:
                # A Ray of our own has this machine and no more; a cluster that was joined may have an autoscaler.
                can_grow = not self._is_local
                spec = self._make_spec()
                size = plan_pool(read_node_groups(), self._cluster, spec.models.device, can_grow=can_grow)
                self._pool = _ActorPool(spec, size, self._cluster.shard_retries)
            return self._pool

    @property
    def n_model_loads(self) -> int:
        return self._pool.n_loads if self._pool is not None else 0

    def describe_models(self, report: ReportItems = ignore_items) -> dict[str, dict[str, object]]:
        pool = self._started_pool()
        while not wait([pool.models], timeout=_POLL_S).done:
            report(0, 0, f"waiting for workers ({pool.size.describe()})")
        return pool.models.result()

    def observe(
        self,
        ep_id: str,
        video: VideoSource,
        shards: Sequence[pa.Table],
        report: ReportItems,
        on_shard: OnShard = ignore_shard,
    ) -> list[ShardResult]:
        pool = self._started_pool()
        work = [_Shard(ep_id, i, len(shards), video, shard) for i, shard in enumerate(shards)]
        sizes = [schemas.count_sampled(shard) for shard in shards]
        number_of = {shard.future: shard.number for shard in work}
        pending, done = set(number_of), 0
        pool.submit(work)
        try:
            while pending:
                finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=number_of.__getitem__):
                    on_shard(number_of[future], future.result())
                    done += sizes[number_of[future]]
                report(done, sum(sizes), "" if pool.has_workers else f"waiting for workers ({pool.size.describe()})")
        finally:
            pool.withdraw(work)
        return [shard.future.result() for shard in work]

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        # On the driver's node, because the embedded Facebank listens on a socket of that machine only; without a CPU of
        # its own, because the pool may hold them all, and a head node may offer none.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        name = f"final {function.__name__}"
        task = ray.remote(function).options(name=name, num_cpus=0, max_retries=3, scheduling_strategy=here)
        return _get_results([task.remote(*args)], "the final task")[0]

    def run_many(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        # No CPUs of their own, as above; so there are no more groups of tasks than the cluster has CPUs.
        n_groups = max(min(int(ray.cluster_resources().get("CPU", 1)), len(tasks)), 1)
        options = {"name": function.__name__, "num_cpus": 0, "max_retries": 3, "scheduling_strategy": "SPREAD"}
        group = ray.remote(run_in_turn).options(**options)
        found = _get_results([group.remote(function, tasks[k::n_groups]) for k in range(n_groups)], "a task")
        return [found[i % n_groups][i // n_groups] for i in range(len(tasks))]

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None
            if self._owns_ray:
                ray.shutdown()
                self._owns_ray = False


def _get_results(references: list[Any], what: str) -> list[Any]:
    """Results of tasks; their own errors as they are, the loss of a task as ours."""
    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        raise _own_error(error) from None
    except ray.exceptions.RayError as error:
        raise EngineError(f"{what} was lost: {_reason_of_loss(error)}") from error
