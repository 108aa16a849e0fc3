"""Pools the faces of a track into one vector, and the tracks of an identity into one centroid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ZERO = 1e-9


@dataclass(frozen=True)
class PooledTrack:
    """A track's vector.

    Attributes:
        vector: Unit vector, shape (d,).
        spread: Mean cosine distance of the pooled faces to it.
        used: Indices of the faces that were pooled.
    """

    vector: NDArray[np.float32]
    spread: float
    used: NDArray[np.intp]


def pool_faces(
    embeddings: NDArray[np.floating],
    quality: NDArray[np.floating],
    *,
    max_samples: int,
    sim_delta: float,
    sim_min: float,
) -> PooledTrack:
    """Quality-weighted mean of the best faces of a track, without those unlike the rest.

    The quality-weighted medoid stands for the track. A face is left out when it is both less similar to the medoid
    than ``sim_min`` and more than ``sim_delta`` below the median similarity.

    Args:
        embeddings: Unit rows, shape (n, d), n >= 1.
        quality: Weights 0..1, shape (n,).
        max_samples: How many of the best faces are pooled.
        sim_delta: See above.
        sim_min: See above.
    """
    vectors = np.asarray(embeddings, np.float64)
    weights = np.maximum(np.nan_to_num(np.asarray(quality, np.float64), nan=0.5), 1e-3)
    # The weighted similarities of a face to all others add up to its similarity to their weighted sum.
    medoid = int(np.argmax((vectors @ (weights @ vectors)).round(9)))
    to_medoid = vectors @ vectors[medoid]
    is_kept = (to_medoid >= sim_min) | (to_medoid >= np.median(to_medoid) - sim_delta)
    candidates = np.flatnonzero(is_kept)
    best = candidates[np.argsort(-weights[candidates], kind="stable")][:max_samples]
    used = np.sort(best)
    centre = weights[used] @ vectors[used]
    norm = float(np.linalg.norm(centre))
    if norm < _ZERO:
        centre, norm = vectors[medoid], 1.0
    vector = centre / norm
    return PooledTrack(vector.astype(np.float32), float(np.mean(1 - vectors[used] @ vector)), used)


def find_views(
    embeddings: NDArray[np.floating], quality: NDArray[np.floating], *, min_similarity: float, max_views: int = 3
) -> NDArray[np.float32]:
    """Sub-centroids of a track that shows a person from several sides.

    Faces in order of quality join the view they resemble most, or open a new one. A view of a single face does not
    count beside others: it may be anything.

    Args:
        embeddings: Unit rows, shape (n, d), n >= 1.
        quality: Weights 0..1, shape (n,).
        min_similarity: Cosine to a view's mean from which a face belongs to it.
        max_views: How many views at the most.

    Returns:
        Unit rows, shape (k, d) with 1 <= k <= ``max_views``.
    """
    vectors = np.asarray(embeddings, np.float64)
    weights = np.maximum(np.nan_to_num(np.asarray(quality, np.float64), nan=0.5), 1e-3)
    sums: list[NDArray[np.float64]] = []
    sizes: list[int] = []
    for i in np.argsort(-weights, kind="stable"):
        similarity = [float(vectors[i] @ s) / max(float(np.linalg.norm(s)), _ZERO) for s in sums]
        nearest = int(np.argmax(similarity)) if similarity else -1
        if nearest < 0 or (similarity[nearest] < min_similarity and len(sums) < max_views):
            sums.append(weights[i] * vectors[i])
            sizes.append(1)
        else:
            sums[nearest] = sums[nearest] + weights[i] * vectors[i]
            sizes[nearest] += 1
    kept = [s for s, n in zip(sums, sizes, strict=True) if n > 1 or len(sums) == 1] or [sums[0]]
    return np.array([s / max(float(np.linalg.norm(s)), _ZERO) for s in kept], np.float32)


@dataclass(frozen=True)
class Centroid:
    """An identity's centroid.

    Attributes:
        vector: Unit vector, shape (d,).
        norm: Length of the mean before normalising, 0..1; 1 when all tracks agree.
        cohesion: Mean cosine of the tracks to it.
    """

    vector: NDArray[np.float32]
    norm: float
    cohesion: float


def compute_centroid(vectors: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> Centroid:
    """Centroid of unit rows of shape (n, d), n >= 1; opposite vectors that cancel give the first one."""
    rows = np.asarray(vectors, np.float64)
    share = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    mean = share @ rows / share.sum()
    norm = float(np.linalg.norm(mean))
    vector = rows[0] if norm < _ZERO else mean / norm
    return Centroid(vector.astype(np.float32), norm, float(np.mean(rows @ vector)))
