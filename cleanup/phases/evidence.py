"""What an episode shows for free: pairs of faces that are one person, and pairs in one frame, which mostly are two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.embedding_pooling import PooledTrack
from cleanup.algorithms.frame_sampling import find_roots
from cleanup.algorithms.threshold_evidence import Evidence, collect_pair_means
from cleanup.episode import Episode
from cleanup.phases.identity_rows import SAME_FACE_IOU
from cleanup.phases.track_samples import group_rows

# Two faces of one track this far apart have seen some change of pose and light, as two tracks of one person have.
_APART_S = 1.0
_MAX_PAIRS_PER_TRACK = 40
# Faces whose embedding is so much shorter than the episode's good ones are no evidence of anything.
_MIN_RELATIVE_NORM = 0.6


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
    keys: list[tuple[int, int]] = []
    together: list[float] = []
    for _, rows in group_rows(frames):
        if len(rows) < 2:
            continue
        rows = rows[np.argsort(lineage[rows], kind="stable")]
        apart = np.triu(compute_iou_matrix(boxes[rows], boxes[rows]) < SAME_FACE_IOU, k=1)
        similarity = embeddings[rows] @ embeddings[rows].T
        for i, j in np.argwhere(apart & (lineage[rows][:, None] != lineage[rows])):
            keys.append((int(lineage[rows[i]]), int(lineage[rows[j]])))
            together.append(float(similarity[i, j]))
    joined = np.concatenate(same) if same else np.zeros(0)
    return Evidence(joined, collect_pair_means(keys, np.array(together)))


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
    together = [
        float(pooled[a].vector @ pooled[b].vector)
        for a, b in sorted(shared_frames)
        if a in pooled and b in pooled and not {a, b} & doubtful
    ]
    return Evidence(np.concatenate(same) if same else np.zeros(0), np.array(together))
