"""Checkpoints of finished shards: Arrow files in the episode's run folder, so that a run that was cut off goes on.

The key of a shard is a digest of all that its observations depend on: the video, its samples, the models and the
settings of the pass. A changed input has another key, so a checkpoint is never used for what it was not made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.ipc

from cleanup import schemas
from cleanup.edges.file_writing import write_synced
from cleanup.edges.records import RecordError, set_aside
from cleanup.edges.remote_root import RemoteRoot
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, first_line
from cleanup.interfaces import Engine, OnShard, ShardResult, VideoSource, VideoView, ignore_shard
from cleanup.progress import ReportItems, ignore_items

if TYPE_CHECKING:
    from cleanup.edges.observation_worker import WorkerSpec

# Goes up when observations are made in another way from the same inputs.
_FORMAT = 3
# The observations of one shard: some hundred faces of a few kilobytes each.
_MAX_BYTES = 1 << 30


def compute_pass_key(video_sha256: str, model_sha256: Sequence[str], spec: WorkerSpec) -> str:
    """Digest of what all shards of a pass have in common."""
    inputs = {
        "format": _FORMAT,
        "video": video_sha256,
        "models": sorted(model_sha256),
        "devices": [spec.models.device, spec.models.embed_device],
        "settings": [spec.min_confidence, spec.min_iou, spec.refine_below],
    }
    return hashlib.sha256(orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def compute_shard_key(samples: pa.Table, view: VideoView) -> str:
    """Digest of a shard's samples, and of how they count in the video."""
    return hashlib.sha256(orjson.dumps([samples.to_pydict(), view])).hexdigest()[:32]


class CheckpointedEngine:
    """An engine that does no shard again that is checkpointed; see ``cleanup.interfaces.Engine``.

    Args:
        engine: Does the rest; its owner closes it.
        folder: Where the checkpoints of the episode lie.
        pass_key: ``compute_pass_key``.
        remote: Data root behind a URL that the checkpoints are stored in as well, or None.
    """

    def __init__(self, engine: Engine, folder: RootPath, pass_key: str, remote: RemoteRoot | None = None) -> None:
        self._engine, self._folder, self._pass_key, self._remote = engine, folder, pass_key, remote
        self._used: set[RootPath] = set()
        self.name = engine.name

    @property
    def n_model_loads(self) -> int:
        return self._engine.n_model_loads

    def describe_models(self, report: ReportItems = ignore_items) -> dict[str, dict[str, object]]:
        for path in sorted(self._folder.glob(f"{self._pass_key}-*.arrow")):
            table = _read(path)
            if table is not None:
                return schemas.read_provenance(table).models
        return self._engine.describe_models(report)

    def observe(
        self,
        ep_id: str,
        video: VideoSource,
        shards: Sequence[pa.Table],
        report: ReportItems,
        on_shard: OnShard = ignore_shard,
    ) -> list[ShardResult]:
        paths = [self._folder / f"{self._pass_key}-{compute_shard_key(shard, video.view)}.arrow" for shard in shards]
        self._used.update(paths)
        found = {i: _read(path) for i, path in enumerate(paths)}
        results = {i: ShardResult(table, None, 0) for i, table in found.items() if table is not None}
        for i, result in results.items():
            on_shard(i, result)
        missing = [i for i in range(len(shards)) if i not in results]
        ready = sum(schemas.count_sampled(shards[i]) for i in results)

        def keep(number: int, result: ShardResult) -> None:
            if result.observations is not None:
                self._write(paths[missing[number]], result.observations)
            on_shard(missing[number], result)

        def tell(done: int, total: int, message: str = "") -> None:
            report(ready + done, ready + total, message)

        if missing:
            fresh = self._engine.observe(ep_id, video, [shards[i] for i in missing], tell, keep)
            results.update(zip(missing, fresh, strict=True))
        return [results[i] for i in range(len(shards))]

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._engine.run_final(function, *args)

    def run_many(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._engine.run_many(function, tasks)

    def close(self) -> None:
        """Nothing: the engine belongs to whoever made it."""

    def remove_unused(self) -> None:
        """Removes checkpoints that the finished run had no use for."""
        for path in self._folder.glob("*.arrow"):
            if path not in self._used:
                path.unlink()
                if self._remote is not None:
                    self._remote.remove(path)

    def _write(self, path: RootPath, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_synced(path, sink.getvalue().to_pybytes())
        if self._remote is not None:
            self._remote.put(path)


def _read(path: RootPath) -> pa.Table | None:
    """A checkpoint, or None where it is not there or not one: it was only ever worth the time of its shard."""
    if not path.is_taken():
        return None
    try:
        return _parse(path.read_bytes(_MAX_BYTES))
    except (pa.ArrowException, ArtifactError, KeyError, AttributeError, TypeError, ValueError) as error:
        set_aside(
            path, RecordError(f"{path}: not a readable checkpoint ({first_line(error)})"), "its shard is done again"
        )
        return None


def _parse(content: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except OSError as error:  # Arrow's word for what is torn; nothing is read from a disk here
        raise ValueError(first_line(error)) from error
    table.validate(full=True)
    provenance = schemas.read_provenance(table)
    dimension = table.schema.field("embedding").type.list_size
    if not table.schema.equals(schemas.observation_schema(dimension)):
        raise ValueError("columns of another kind")
    if not isinstance(provenance.models, dict) or not isinstance(provenance.timings, dict):
        raise ValueError("it does not say where it comes from")
    return table
