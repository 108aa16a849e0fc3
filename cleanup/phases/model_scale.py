"""What two people look like in an episode to the model at hand, before tracks are split and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import PooledTrack
from cleanup.algorithms.frame_pairs import find_frame_pairs, places_of_pairs
from cleanup.algorithms.frame_sampling import find_roots
from cleanup.algorithms.similarity_scale import SimilarityScale, measure_scale
from cleanup.episode import Episode
from cleanup.phases.track_samples import group_rows

# Faces whose embedding is so much shorter than the episode's good ones are no evidence of anything.
_MIN_RELATIVE_NORM = 0.6
# The longest embedding is that of the best face. Of a model that normalises its output, lengths differ by noise alone,
# and the sharpest face is taken; of equals the first.
_DECIMALS = 3


def measure_face_scale(episode: Episode, known: SimilarityScale | None = None) -> SimilarityScale:
    """The model's scale by the best face of each track: a mean of several people's faces is nobody's.

    Tracks are taken together with the pieces split from them, so that a second run measures the same.

    Args:
        episode: With observations; without them its faces are taken as they are.
        known: What is known of the model from elsewhere.
    """
    parents = episode.tracks.select(["track_id", "parent_track_id"]).to_pylist()
    roots = find_roots({r["track_id"]: r["parent_track_id"] for r in parents})
    if episode.observations is not None:
        table = episode.observations.filter(
            pc.and_(pc.is_valid(episode.observations["embedding"]), episode.observations["is_sampled"])
        )
        norms = schemas.floats_of(table, "norm")
        table = table.filter(norms >= _MIN_RELATIVE_NORM * np.percentile(norms, 80)) if len(table) else table
        quality, sharpness = schemas.floats_of(table, "norm"), np.nan_to_num(schemas.floats_of(table, "sharpness"))
    else:
        table = episode.embedded_faces
        quality, sharpness = np.nan_to_num(schemas.floats_of(table, "quality")), np.zeros(len(table))
    if len(table) == 0:
        return known or SimilarityScale()
    embeddings, frames = schemas.embeddings_of(table), schemas.ints_of(table, "frame_idx")
    lineage = np.array([roots[t] for t in table["track_id"].to_pylist()], np.int64)
    order = np.lexsort((-frames, sharpness, quality.round(_DECIMALS)))
    groups = list(group_rows(lineage[order]))
    vectors = embeddings[[order[rows[-1]] for _, rows in groups]]
    together = find_frame_pairs(frames, lineage, schemas.matrix_of(table["bbox"], 4)).tracks
    return measure_scale(vectors, places_of_pairs(together, [root for root, _ in groups]), known)


def measure_track_scale(
    pooled: Mapping[int, PooledTrack],
    shared_frames: Iterable[tuple[int, int]],
    known: SimilarityScale | None = None,
) -> SimilarityScale:
    """The model's scale by the vectors of tracks.

    Args:
        pooled: Vector of each track.
        shared_frames: Pairs of tracks that share a frame.
        known: What is known of the model from elsewhere.
    """
    tracks = sorted(pooled)
    if not tracks:
        return known or SimilarityScale()
    pairs: NDArray[np.int64] = np.array(sorted(shared_frames), np.int64).reshape(-1, 2)
    return measure_scale(np.array([pooled[t].vector for t in tracks]), places_of_pairs(pairs, tracks), known)
