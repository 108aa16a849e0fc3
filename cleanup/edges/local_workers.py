"""The local engine: one worker in this process. No Ray is imported; ONNX Runtime uses the cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from cleanup.edges.observation_worker import ObservationWorker, WorkerSpec
from cleanup.progress import ReportItems


class LocalEngine:
    """Engine of the laptop; see ``cleanup.interfaces.Engine``.

    Args:
        spec: What the worker loads, on first use.
    """

    name = "local"

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ObservationWorker | None = None

    def _loaded(self) -> ObservationWorker:
        if self._worker is None:
            self._worker = ObservationWorker(self._spec)
        return self._worker

    def describe_models(self) -> dict[str, dict[str, object]]:
        return self._loaded().describe_models()

    def observe(self, shards: Sequence[pa.Table], report: ReportItems) -> pa.Table:
        total = sum(_n_faces(shard) for shard in shards)
        done = 0
        tables = []
        for shard in shards:
            tables.append(self._loaded().observe(shard, lambda n, base=done: report(base + n, total)))  # type: ignore[misc]
            done += _n_faces(shard)
        return merge_observations(tables)

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def close(self) -> None:
        self._worker = None


def _n_faces(shard: pa.Table) -> int:
    return int(sum(shard["is_sampled"].to_pylist()))


def merge_observations(tables: Sequence[pa.Table]) -> pa.Table:
    """Observation tables as one, sorted by track and frame."""
    return pa.concat_tables(tables).sort_by([("track_id", "ascending"), ("frame_idx", "ascending")])
