"""The Ray engine: a pool of actors with loaded models, and the final task. The only module that imports Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanup.edges.local_workers import merge_observations
from cleanup.edges.observation_worker import ObservationWorker, WorkerSpec
from cleanup.errors import CleanupError, EngineError, first_line
from cleanup.progress import ReportItems

# A lost actor is started again and its shard done again; shards have no side effects, so doing one twice is harmless.
_MAX_RESTARTS = 3
_MAX_TASK_RETRIES = 3


@dataclass(frozen=True)
class PoolSize:
    """How an actor pool is cut out of a cluster: number of actors, and what each of them holds."""

    n_actors: int
    cpus_per_actor: float
    gpus_per_actor: float


def plan_pool(n_shards: int, n_cpus: float, n_gpus: float, device: str) -> PoolSize:
    """Sizes the pool; pure.

    With GPUs (and a device that may use them) every actor owns one GPU and its share of the CPUs. Without, one CPU
    each: on CPU many single-threaded models beat few many-threaded ones.

    Args:
        n_shards: There is no use for more actors than shards.
        n_cpus: CPUs of the cluster.
        n_gpus: GPUs of the cluster.
        device: Device asked for.
    """
    if n_gpus >= 1 and device in ("auto", "cuda"):
        n_actors = max(min(n_shards, int(n_gpus)), 1)
        return PoolSize(n_actors, float(max(int(n_cpus / n_gpus), 1)), 1.0)
    return PoolSize(max(min(n_shards, int(n_cpus)), 1), 1.0, 0.0)


class RayEngine:
    """Engine of clusters; see ``cleanup.interfaces.Engine``. Joins RAY_ADDRESS, else starts a local Ray.

    Args:
        spec: What every actor loads.

    Raises:
        EngineError: Ray does not start or cannot be joined.
    """

    name = "ray"

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._actors: list[Any] = []
        self._owns_ray = False
        if not ray.is_initialized():
            self._start()

    def _start(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=None if address else False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"RAY_ADDRESS={address}" if address else "a local Ray"
            raise EngineError(
                f"{where} cannot be used ({first_line(error)}); check it or use --engine local"
            ) from error
        self._owns_ray = True

    def _pool(self, n_shards: int) -> list[Any]:
        if not self._actors:
            resources = ray.cluster_resources()
            size = plan_pool(n_shards, resources.get("CPU", 1.0), resources.get("GPU", 0.0), self._spec.models.device)
            n_threads = max(int(size.cpus_per_actor), 1)
            models = replace(self._spec.models, n_threads=n_threads)
            spec = replace(self._spec, n_threads=n_threads, models=models)
            actor = ray.remote(ObservationWorker).options(
                num_cpus=size.cpus_per_actor,
                num_gpus=size.gpus_per_actor,
                max_restarts=_MAX_RESTARTS,
                max_task_retries=_MAX_TASK_RETRIES,
            )
            self._actors = [actor.remote(spec) for _ in range(size.n_actors)]
        return self._actors

    def describe_models(self) -> dict[str, dict[str, object]]:
        described: dict[str, dict[str, object]] = self._get(self._pool(1)[0].describe_models.remote())
        return described

    def observe(self, shards: Sequence[pa.Table], report: ReportItems) -> pa.Table:
        actors = self._pool(len(shards))
        sizes = [int(sum(shard["is_sampled"].to_pylist())) for shard in shards]
        waiting = list(range(len(shards)))
        idle = list(actors)
        running: dict[Any, tuple[int, Any]] = {}
        tables: dict[int, pa.Table] = {}
        while waiting or running:
            while waiting and idle:
                number, actor = waiting.pop(0), idle.pop()
                running[actor.observe.remote(shards[number])] = (number, actor)
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                number, actor = running.pop(reference)
                tables[number] = self._get(reference)
                idle.append(actor)
                report(sum(sizes[i] for i in tables), sum(sizes))
        return merge_observations([tables[i] for i in range(len(shards))])

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        # On the driver's node: the embedded Facebank listens on a socket of that machine only.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.close_pool()
        task = ray.remote(function).options(num_cpus=1, scheduling_strategy=here)
        return self._get(task.remote(*args))

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, CleanupError):
                raise type(cause)(*cause.args) from None
            raise EngineError(f"a worker failed: {first_line(cause)}") from error
        except ray.exceptions.RayError as error:
            raise EngineError(f"a worker was lost for good: {first_line(error)}") from error

    def close_pool(self) -> None:
        """Frees the actors; their CPUs and GPUs are free for what comes next."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def close(self) -> None:
        self.close_pool()
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
