"""The local engine: one worker in this process. No Ray is imported; ONNX Runtime uses the cores."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pyarrow as pa

from cleanup import schemas
from cleanup.edges.observation_worker import ObservationWorker, WorkerSpec
from cleanup.interfaces import OnShard, ShardResult, VideoSource, ignore_shard
from cleanup.progress import ReportItems, ignore_items


class LocalEngine:
    """Engine of the laptop; see ``cleanup.interfaces.Engine``. Serves one episode at a time.

    Args:
        make_spec: Gives what the worker loads; asked on first use, since not every run has work for it.
    """

    name = "local"

    def __init__(self, make_spec: Callable[[], WorkerSpec]) -> None:
        self._make_spec = make_spec
        self._worker: ObservationWorker | None = None
        self.n_model_loads = 0

    def _loaded(self) -> ObservationWorker:
        if self._worker is None:
            self._worker = ObservationWorker(self._make_spec())
            self.n_model_loads += 1
        return self._worker

    def describe_models(self, report: ReportItems = ignore_items) -> dict[str, dict[str, object]]:  # noqa: ARG002 -- the contract's
        return self._loaded().describe_models()

    def observe(
        self,
        ep_id: str,  # noqa: ARG002 -- the contract's
        video: VideoSource,
        shards: Sequence[pa.Table],
        report: ReportItems,
        on_shard: OnShard = ignore_shard,
    ) -> list[ShardResult]:
        total = sum(schemas.count_sampled(shard) for shard in shards)
        results: list[ShardResult] = []
        done = 0
        for number, shard in enumerate(shards):
            table = self._loaded().observe(video, shard, lambda n, base=done: report(base + n, total))  # type: ignore[misc]
            result = ShardResult(table)
            results.append(result)
            on_shard(number, result)
            done += schemas.count_sampled(shard)
            report(done, total)
        return results

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def run_many(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(mp_context=context, initializer=_end_with_parent) as pool:
            return list(pool.map(function, *zip(*tasks, strict=True)))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def _end_with_parent() -> None:
    """Ends this process with the one that started it, which may be killed; the pool's pipes do not tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
