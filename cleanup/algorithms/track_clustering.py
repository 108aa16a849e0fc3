"""Exact average-linkage clustering of track vectors on cosine similarity, with pairs that must not be joined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

NOISE = -1
# Rows of the similarity matrix computed at a time: bounds memory at this many rows times all tracks, in float32.
_BLOCK_ROWS = 2048
# Similarities are compared after rounding, so that the order of additions in a BLAS does not decide a tie.
_DECIMALS = 6


@dataclass(frozen=True)
class Conflicts:
    """Pairs of tracks that must not share a cluster, as index pairs into the vectors, shape (m, 2)."""

    pairs: NDArray[np.int64]

    @staticmethod
    def of(pairs: Iterable[tuple[int, int]]) -> Conflicts:
        """Conflicts from index pairs in any order."""
        unique = sorted({(min(a, b), max(a, b)) for a, b in pairs if a != b})
        return Conflicts(np.array(unique, np.int64).reshape(-1, 2))


@dataclass(frozen=True)
class Merge:
    """Two clusters that were joined, named by their lowest indices.

    Attributes:
        first: Lowest index in the one cluster.
        second: Lowest index in the other.
        sizes: Tracks in each.
        similarity: Mean cosine between them, or of the supporting pairs.
        evidence: ``average_linkage``, ``views`` or ``singleton``.
        n_supporting_pairs: Pairs of tracks the similarity is the mean of.
    """

    first: int
    second: int
    sizes: tuple[int, int]
    similarity: float
    evidence: str
    n_supporting_pairs: int


@dataclass(frozen=True)
class Clustering:
    """Labels 0..k-1 in order of first appearance, shape (n,), and the merges that led to them."""

    labels: NDArray[np.int64]
    merges: list[Merge]


def find_components(vectors: NDArray[np.floating], min_similarity: float) -> NDArray[np.int64]:
    """Connected components of the graph of pairs with at least this similarity; shape (n,).

    An average at or above a cut needs one pair at or above it, so no average-linkage cluster spans two components.
    """
    n_tracks = len(vectors)
    rows = np.asarray(vectors, np.float32)
    sources, targets = [], []
    for start in range(0, n_tracks, _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS] @ rows.T
        i, j = np.nonzero(block >= min_similarity - 10.0**-_DECIMALS)
        keep = i + start < j
        sources.append(i[keep] + start)
        targets.append(j[keep])
    source, target = np.concatenate(sources), np.concatenate(targets)
    graph = coo_array((np.ones(len(source), bool), (source, target)), shape=(n_tracks, n_tracks))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def cluster_tracks(vectors: NDArray[np.floating], min_similarity: float, conflicts: Conflicts) -> Clustering:
    """Average-linkage agglomerative clustering down to a mean similarity.

    The two clusters with the highest mean pairwise cosine are joined, again and again, as long as that mean reaches
    the cut and no pair between them is in conflict. Without conflicts the partition is that of scikit-learn's
    AgglomerativeClustering (average, cosine) at distance ``1 - min_similarity``. Ties go to the lowest indices.

    Args:
        vectors: Unit rows, shape (n, d).
        min_similarity: The cut, as a cosine.
        conflicts: Pairs that are never joined.
    """
    n_tracks = len(vectors)
    if n_tracks == 0:
        return Clustering(np.zeros(0, np.int64), [])
    merges: list[Merge] = []
    component = find_components(vectors, min_similarity)
    order = np.argsort(component, kind="stable")
    bounds = np.flatnonzero(np.diff(component[order])) + 1
    inside = component[conflicts.pairs[:, 0]] == component[conflicts.pairs[:, 1]]
    pairs_of: dict[int, list[tuple[int, int]]] = {}
    for a, b in conflicts.pairs[inside].tolist():
        pairs_of.setdefault(int(component[a]), []).append((a, b))
    labels = np.zeros(n_tracks, np.int64)
    n_labels = 0
    for members in np.split(order, bounds):
        pairs = pairs_of.get(int(component[members[0]]), [])
        rows = np.asarray(vectors[members], np.float64)
        local = _cluster_component(rows, min_similarity, members, pairs, merges)
        labels[members] = local + n_labels
        n_labels += int(local.max()) + 1
    merges.sort(key=lambda m: (-m.similarity, m.first, m.second))
    return Clustering(relabel(labels), merges)


def _cluster_component(
    vectors: NDArray[np.float64],
    min_similarity: float,
    members: NDArray[np.intp],
    pairs: list[tuple[int, int]],
    merges: list[Merge],
) -> NDArray[np.int64]:
    if len(vectors) == 1:
        return np.zeros(1, np.int64)
    similarity = (vectors @ vectors.T).round(_DECIMALS)
    if not pairs:
        distance = np.clip(1 - similarity, 0, 2)
        np.fill_diagonal(distance, 0)
        tree = linkage(squareform(distance, checks=False), method="average")
        cut = 1 - min_similarity + 0.5 * 10.0**-_DECIMALS
        merges += _merges_of_tree(tree, cut, members)
        return np.asarray(fcluster(tree, cut, criterion="distance"), np.int64) - 1
    place = {int(m): i for i, m in enumerate(members)}
    local_pairs = [(place[a], place[b]) for a, b in pairs]
    return _constrained_average_linkage(similarity, min_similarity, local_pairs, members, merges)


def _merges_of_tree(tree: NDArray[np.float64], cut: float, members: NDArray[np.intp]) -> list[Merge]:
    """The merges of a SciPy linkage tree up to a cut."""
    lowest = members.tolist()
    size = [1] * len(members)
    merges = []
    for a, b, height, n_joined in tree.tolist():
        i, j = int(a), int(b)
        first, second = min(lowest[i], lowest[j]), max(lowest[i], lowest[j])
        if height <= cut:
            merges.append(Merge(first, second, (size[i], size[j]), 1 - height, "average_linkage", size[i] * size[j]))
        lowest.append(first)
        size.append(int(n_joined))
    return merges


def _constrained_average_linkage(
    similarity: NDArray[np.float64],
    min_similarity: float,
    pairs: list[tuple[int, int]],
    members: NDArray[np.intp],
    merges: list[Merge],
) -> NDArray[np.int64]:
    """Average linkage where a conflict between two members keeps their whole clusters apart. O(n^2) in memory."""
    n = len(similarity)
    mean = similarity.copy()
    np.fill_diagonal(mean, -np.inf)
    for a, b in pairs:
        mean[a, b] = mean[b, a] = -np.inf
    size = np.ones(n)
    labels = np.arange(n)
    best = mean.argmax(axis=1)
    best_value = mean[np.arange(n), best]
    while True:
        a = int(best_value.argmax())
        if best_value[a] < min_similarity - 0.5 * 10.0**-_DECIMALS:
            return relabel(labels)
        b = int(best[a])
        a, b = min(a, b), max(a, b)
        sizes = (int(size[a]), int(size[b]))
        similarity_now = float(best_value[a])
        merges.append(
            Merge(int(members[a]), int(members[b]), sizes, similarity_now, "average_linkage", sizes[0] * sizes[1])
        )
        # A pair in conflict is -inf and stays so in any mean.
        merged = (size[a] * mean[a] + size[b] * mean[b]) / (size[a] + size[b])
        merged[a] = -np.inf
        mean[a], mean[:, a] = merged, merged
        mean[b], mean[:, b] = -np.inf, -np.inf
        size[a] += size[b]
        labels[labels == b] = a
        stale = np.flatnonzero((best == a) | (best == b) | (merged >= best_value))
        stale = np.union1d(stale, [a, b])
        best[stale] = mean[stale].argmax(axis=1)
        best_value[stale] = mean[stale, best[stale]]


def relabel(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels renumbered 0..k-1 in order of first appearance; noise (-1) stays."""
    names: dict[int, int] = {}
    result = np.empty(len(labels), np.int64)
    for i, label in enumerate(labels.tolist()):
        result[i] = NOISE if label == NOISE else names.setdefault(label, len(names))
    return result


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
    best: dict[tuple[int, int], float] = {}
    rows = np.asarray(views, np.float32)
    label_of_view = labels[track_of_view]
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = (rows[start : start + _BLOCK_ROWS] @ rows.T).round(_DECIMALS)
        is_apart = label_of_view[start : start + _BLOCK_ROWS, None] != label_of_view
        for i, j in np.argwhere((block >= min_similarity) & is_apart):
            a, b = int(track_of_view[i + start]), int(track_of_view[j])
            if a < b:
                best[(a, b)] = max(best.get((a, b), -1.0), float(block[i, j]))
    return [(a, b, s) for (a, b), s in sorted(best.items())]


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
