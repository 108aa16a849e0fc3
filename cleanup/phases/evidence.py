"""What an episode shows for free: pairs of faces that are one person, and pairs in one frame, which mostly are two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import PooledTrack
from cleanup.algorithms.frame_pairs import find_frame_pairs, places_of_pairs
from cleanup.algorithms.frame_sampling import find_roots
from cleanup.algorithms.threshold_evidence import Evidence
from cleanup.episode import Episode
from cleanup.phases.track_samples import group_rows

# Two faces of one track this far apart have seen some change of pose and light, as two tracks of one person have.
_APART_S = 1.0
_MAX_PAIRS_PER_TRACK = 40
# Faces whose embedding is so much shorter than the episode's good ones are no evidence of anything.
_MIN_RELATIVE_NORM = 0.6
_PAIRS_AT_A_TIME = 1 << 14


def gather_gate_evidence(episode: Episode) -> Evidence:
    """Sample by sample: neighbours in a track against faces in two places of one frame.

    Tracks are taken together with the pieces split from them, so that a second run gathers the same.
    """
    parents = episode.tracks.select(["track_id", "parent_track_id"]).to_pylist()
    roots = find_roots({r["track_id"]: r["parent_track_id"] for r in parents})
    if episode.observations is not None:
        table = episode.observations.filter(
            pc.and_(pc.is_valid(episode.observations["embedding"]), episode.observations["is_sampled"])
        )
        norms = schemas.floats_of(table, "norm")
        table = table.filter(norms >= _MIN_RELATIVE_NORM * np.percentile(norms, 80)) if len(table) else table
    else:
        table = episode.embedded_faces
    embeddings, frames = schemas.embeddings_of(table), schemas.ints_of(table, "frame_idx")
    boxes = schemas.matrix_of(table["bbox"], 4)
    lineage = np.array([roots[t] for t in table["track_id"].to_pylist()], np.int64)
    same: list[NDArray[np.float64]] = []
    for _, rows in group_rows(lineage):
        rows = rows[np.argsort(frames[rows], kind="stable")]
        same.append((embeddings[rows[1:]] * embeddings[rows[:-1]]).sum(axis=1).astype(np.float64))
    joined = np.concatenate(same) if same else np.zeros(0)
    return Evidence(joined, find_frame_pairs(frames, lineage, boxes, embeddings).similarities)


def gather_cluster_evidence(
    episode: Episode, pooled: Mapping[int, PooledTrack], shared_frames: Iterable[tuple[int, int]]
) -> Evidence:
    """Track by track: kept faces of one track far apart in time against the vectors of tracks that share a frame."""
    faces = episode.embedded_faces
    embeddings, times = schemas.embeddings_of(faces), schemas.floats_of(faces, "ts")
    doubtful = {
        t
        for t, despite in zip(faces["track_id"].to_pylist(), faces["kept_despite"].to_pylist(), strict=True)
        if despite is not None
    }
    same: list[NDArray[np.float64]] = []
    for track_id, rows in group_rows(schemas.ints_of(faces, "track_id")):
        if track_id in doubtful or len(rows) < 2:
            continue
        rows = rows[np.argsort(times[rows], kind="stable")]
        partner = np.searchsorted(times[rows], times[rows] + _APART_S)
        first = np.flatnonzero(partner < len(rows))[:_MAX_PAIRS_PER_TRACK]
        same.append((embeddings[rows[first]] * embeddings[rows[partner[first]]]).sum(axis=1).astype(np.float64))
    sure = sorted(pooled.keys() - doubtful)
    pairs = places_of_pairs(np.array(sorted(shared_frames), np.int64).reshape(-1, 2), sure)
    together = np.zeros(len(pairs))
    vectors = np.array([pooled[t].vector for t in sure])
    for i in range(0, len(pairs), _PAIRS_AT_A_TIME):
        part = slice(i, i + _PAIRS_AT_A_TIME)
        together[part] = (vectors[pairs[part, 0]] * vectors[pairs[part, 1]]).sum(axis=1)
    return Evidence(np.concatenate(same) if same else np.zeros(0), together)
