"""What the gate and the pooling see of each track, drawn from an episode's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.appearance_gate import GateSamples
from cleanup.algorithms.embedding_pooling import PooledTrack, pool_faces
from cleanup.episode import Episode
from cleanup.settings import PoolingSettings


@dataclass(frozen=True)
class TrackSamples:
    """The embedded samples of one track in time order.

    Attributes:
        track_id: The track.
        frames: Frame numbers, shape (n,).
        gate: What the gate sees; boxes in the episode's unit.
    """

    track_id: int
    frames: NDArray[np.int64]
    gate: GateSamples


def group_rows(track_ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(track id, row numbers in table order) for every track, ascending."""
    order = np.argsort(track_ids, kind="stable")
    if len(order) == 0:
        return
    bounds = np.flatnonzero(np.diff(track_ids[order])) + 1
    for rows in np.split(order, bounds):
        yield int(track_ids[rows[0]]), rows


def iterate_samples(episode: Episode) -> Iterator[TrackSamples]:
    """Samples of every track that has any: the observations, or without a pass over the pixels faces.jsonl."""
    if episode.observations is not None:
        table = episode.observations.filter(pc.is_valid(episode.observations["embedding"]))
        norms, sharpness = schemas.floats_of(table, "norm"), schemas.floats_of(table, "sharpness")
    else:
        table = episode.embedded_faces
        norms, sharpness = np.ones(len(table)), np.full(len(table), np.nan)
    frames, times = schemas.ints_of(table, "frame_idx"), schemas.floats_of(table, "ts")
    boxes, embeddings = schemas.matrix_of(table["bbox"], 4), schemas.embeddings_of(table)
    for track_id, rows in group_rows(schemas.ints_of(table, "track_id")):
        rows = rows[np.argsort(frames[rows], kind="stable")]
        gate = GateSamples(embeddings[rows], boxes[rows], times[rows], norms[rows], sharpness[rows])
        yield TrackSamples(track_id, frames[rows], gate)


def pool_tracks(episode: Episode, settings: PoolingSettings) -> dict[int, PooledTrack]:
    """The pooled vector of every track that has an embedded face."""
    faces = episode.embedded_faces
    embeddings, quality = schemas.embeddings_of(faces), schemas.floats_of(faces, "quality")
    frames = schemas.ints_of(faces, "frame_idx")
    pooled = {}
    for track_id, rows in group_rows(schemas.ints_of(faces, "track_id")):
        rows = rows[np.argsort(frames[rows], kind="stable")]
        pooled[track_id] = pool_faces(
            embeddings[rows],
            quality[rows],
            max_samples=settings.prototype_max_samples,
            sim_delta=settings.prototype_sim_delta,
            sim_min=settings.prototype_sim_min,
        )
    return pooled
