"""What follows the linkage: shared views, people seen twice, ejected outliers, a second look at singletons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.average_linkage import Conflicts, Merge

# Rows of the similarity matrix computed at a time: bounds memory at this many rows times all views, in float32.
_BLOCK_ROWS = 2048
# Similarities are compared after rounding, so that the order of additions in a BLAS does not decide a tie.
_DECIMALS = 6
# Who of a pair stays is decided anew with what the last round made of the cluster, at most so often.
_MAX_TWIN_ROUNDS = 10


def eject_outliers(vectors: NDArray[np.floating], labels: NDArray[np.int64], min_similarity: float) -> dict[int, float]:
    """Members too unlike their cluster's centroid.

    Returns:
        Index -> similarity to the centroid of the other members, for every member to be ejected.
    """
    ejected: dict[int, float] = {}
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        total = np.asarray(vectors[members], np.float64).sum(axis=0)
        norm = float(np.linalg.norm(total))
        if norm == 0:
            continue
        similarity = np.asarray(vectors[members], np.float64) @ (total / norm)
        for i, value in zip(members.tolist(), similarity.tolist(), strict=True):
            if value < min_similarity:
                ejected[i] = value
    return ejected


def find_twins(
    vectors: NDArray[np.floating], labels: NDArray[np.int64], pairs: NDArray[np.int64], min_lead: float
) -> NDArray[np.intp]:
    """Who leaves a cluster, so that no pair that may be one person seen twice stays in one.

    The first of a pair stays, unless the second is clearly more like those who stay and less like those who leave: so
    twins end up on their sides, and which of a face and its reflection stays is not left to chance.

    Args:
        vectors: Unit rows, shape (n, d).
        labels: Cluster of each, shape (n,).
        pairs: Index pairs, shape (m, 2); who rather stays first. Those of two clusters mean nothing.
        min_lead: Difference of cosines that is clear.

    Returns:
        Indices, ascending.
    """
    inside = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    label_of_pair = labels[inside[:, 0]]
    leaving = [
        _choose_twins(vectors, np.flatnonzero(labels == label), inside[label_of_pair == label], min_lead)
        for label in np.unique(label_of_pair)
    ]
    return np.sort(np.concatenate(leaving)) if leaving else np.zeros(0, np.intp)


def _choose_twins(
    vectors: NDArray[np.floating], members: NDArray[np.intp], pairs: NDArray[np.int64], min_lead: float
) -> NDArray[np.intp]:
    staying = np.setdiff1d(members, pairs)
    if len(staying) == 0:
        staying = pairs[:1, 0]
    leaving = np.zeros(0, np.intp)
    for _ in range(_MAX_TWIN_ROUNDS):
        before = leaving
        direction = _mean_direction(vectors[staying]) - _mean_direction(vectors[leaving])
        lead = np.asarray(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], np.float64) @ direction
        leaving = _decide_pairs(pairs, np.where(np.abs(lead) < min_lead, 0.0, lead.round(_DECIMALS)))
        staying = np.setdiff1d(members, leaving)
        if np.array_equal(leaving, before):
            break
    return leaving


def _mean_direction(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    total = np.asarray(vectors, np.float64).sum(axis=0)
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12))


def _decide_pairs(pairs: NDArray[np.int64], lead: NDArray[np.float64]) -> NDArray[np.intp]:
    """One of each pair, the clearest pairs first; who stays in one pair stays in the others where that can be."""
    leaving: set[int] = set()
    staying: set[int] = set()
    for place in np.argsort(-np.abs(lead), kind="stable"):
        first, second = pairs[place].tolist()
        if first in leaving or second in leaving:
            continue
        stays, leaves = (first, second) if lead[place] >= 0 else (second, first)
        if leaves in staying and stays not in staying:
            stays, leaves = leaves, stays
        leaving.add(leaves)
        staying.add(stays)
    return np.array(sorted(leaving), np.intp)


def attach_singletons(
    vectors: NDArray[np.floating],
    labels: NDArray[np.int64],
    conflicts: Conflicts,
    *,
    min_similarity: float,
    n_neighbours: int,
) -> list[tuple[int, int, float]]:
    """A second look at singletons: which join the cluster, or the other singleton, nearest to them.

    A singleton joins at most one cluster and a cluster's centroid is taken before anybody joins, so that no singleton
    can pull two people together. Two singletons join only if each is the other's nearest.

    Args:
        vectors: Unit rows, shape (n, d).
        labels: Current labels, shape (n,).
        conflicts: Pairs that are never joined.
        min_similarity: Cosine to the centroid that must be reached.
        n_neighbours: How many of the nearest centroids are tried.

    Returns:
        (index, label it joins, similarity), the most similar first.
    """
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return []
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, inverse, np.asarray(vectors, np.float64))
    centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    blocked = _blocked_labels(labels, conflicts)
    nearest: dict[int, list[tuple[float, int]]] = {}
    for place in np.flatnonzero(counts == 1).tolist():
        similarity = (centroids @ centroids[place]).round(_DECIMALS)
        similarity[place] = -np.inf
        order = np.argsort(-similarity, kind="stable")[:n_neighbours]
        nearest[place] = [
            (float(similarity[k]), int(k))
            for k in order
            if similarity[k] >= min_similarity and int(names[k]) not in blocked.get(int(names[place]), set())
        ]
    joins: list[tuple[int, int, float]] = []
    for place, options in nearest.items():
        if not options:
            continue
        similarity_best, target = options[0]
        if counts[target] == 1:
            mutual = nearest.get(target) or [(0.0, -1)]
            if mutual[0][1] != place or target > place:
                continue
        joins.append((int(np.flatnonzero(inverse == place)[0]), int(names[target]), similarity_best))
    return sorted(joins, key=lambda join: (-join[2], join[0]))


def find_view_merges(
    views: NDArray[np.floating],
    track_of_view: NDArray[np.int64],
    labels: NDArray[np.int64],
    conflicts: Conflicts,
    min_similarity: float,
) -> list[Merge]:
    """Clusters whose tracks show the same view of a person, though their means lie apart: profile and frontal tracks.

    Two clusters are joined when at least two tracks of each side, and at least half of the smaller side, have a view
    as similar to a view of the other side as the cut asks of whole clusters; a cluster of one track needs two
    different tracks of the other side. One pair alone never joins anything.

    Args:
        views: Unit rows, one or more per track, shape (m, d).
        track_of_view: Track index of each view, shape (m,).
        labels: Cluster of each track, shape (n,); changed in place.
        conflicts: Pairs of tracks that are never joined.
        min_similarity: See above.

    Returns:
        The merges, in the order they were made; ``first`` and ``second`` are lowest track indices.
    """
    pairs = _similar_track_pairs(views, track_of_view, labels, min_similarity)
    merges: list[Merge] = []
    while True:
        support: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
        for a, b, similarity in pairs:
            if labels[a] != labels[b]:
                i, j, x, y = (labels[a], labels[b], a, b) if labels[a] < labels[b] else (labels[b], labels[a], b, a)
                support.setdefault((int(i), int(j)), []).append((x, y, similarity))
        best: Merge | None = None
        best_labels = (0, 0)
        for (i, j), found in sorted(support.items()):
            merge = _judge_support(np.flatnonzero(labels == i), np.flatnonzero(labels == j), found)
            is_better = merge is not None and (best is None or merge.similarity > best.similarity)
            if is_better and not _labels_conflict(labels, conflicts, i, j):
                best, best_labels = merge, (i, j)
        if best is None:
            return merges
        labels[labels == best_labels[1]] = best_labels[0]
        merges.append(best)


def _similar_track_pairs(
    views: NDArray[np.floating], track_of_view: NDArray[np.int64], labels: NDArray[np.int64], min_similarity: float
) -> list[tuple[int, int, float]]:
    """(track, other track, similarity of their nearest views) for pairs of two clusters that reach the similarity."""
    rows = np.asarray(views, np.float32)
    label_of_view = labels[track_of_view]
    keys: list[NDArray[np.int64]] = []
    similarities: list[NDArray[np.float64]] = []
    for a in range(0, len(rows), _BLOCK_ROWS):
        for b in range(a, len(rows), _BLOCK_ROWS):
            block = rows[a : a + _BLOCK_ROWS] @ rows[b : b + _BLOCK_ROWS].T
            i, j = np.nonzero(block >= min_similarity - 10.0**-_DECIMALS)
            apart = (label_of_view[i + a] != label_of_view[j + b]) & (i + a < j + b)
            i, j = i[apart], j[apart]
            keys.append(np.sort(np.stack([track_of_view[i + a], track_of_view[j + b]], axis=1), axis=1))
            similarities.append(block[i, j].astype(np.float64).round(_DECIMALS))
    pairs, inverse = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    best = np.full(len(pairs), -1.0)
    np.maximum.at(best, inverse.ravel(), np.concatenate(similarities))
    return [(a, b, s) for (a, b), s in zip(pairs.tolist(), best.tolist(), strict=True) if s >= min_similarity]


def _judge_support(
    first: NDArray[np.intp], second: NDArray[np.intp], found: list[tuple[int, int, float]]
) -> Merge | None:
    n_first, n_second = len({x for x, _, _ in found}), len({y for _, y, _ in found})
    smaller = min(len(first), len(second))
    if smaller == 1:
        is_enough = max(n_first, n_second) >= 2
    else:
        n_supporting = n_first if len(first) <= len(second) else n_second
        is_enough = min(n_first, n_second) >= 2 and n_supporting * 2 >= smaller
    if not is_enough:
        return None
    similarity = float(np.mean([s for _, _, s in found]))
    low, high = sorted((int(first[0]), int(second[0])))
    return Merge(low, high, (len(first), len(second)), similarity, "views", len(found))


def _labels_conflict(labels: NDArray[np.int64], conflicts: Conflicts, i: int, j: int) -> bool:
    a, b = labels[conflicts.pairs[:, 0]], labels[conflicts.pairs[:, 1]]
    return bool((((a == i) & (b == j)) | ((a == j) & (b == i))).any())


def _blocked_labels(labels: NDArray[np.int64], conflicts: Conflicts) -> dict[int, set[int]]:
    blocked: dict[int, set[int]] = {}
    for a, b in conflicts.pairs.tolist():
        blocked.setdefault(int(labels[a]), set()).add(int(labels[b]))
        blocked.setdefault(int(labels[b]), set()).add(int(labels[a]))
    return blocked
