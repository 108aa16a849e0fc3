"""What follows the linkage: shared views, people seen twice, ejected outliers, a second look at singletons."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.average_linkage import Conflicts, Merge, are_apart
from cleanup.algorithms.pair_sums import PairSums

# Tracks whose views are compared with those of as many others at a time.
_BLOCK_TRACKS = 1024
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
    people = np.full(len(names), -1)
    np.maximum.at(people, inverse, conflicts.people_of(len(labels)))
    blocked = _blocked_places(inverse, counts, conflicts)
    nearest: dict[int, list[tuple[float, int]]] = {}
    for place in np.flatnonzero(counts == 1).tolist():
        similarity = (centroids @ centroids[place]).round(_DECIMALS)
        similarity[place] = -np.inf
        order = np.argsort(-similarity, kind="stable")[:n_neighbours]
        nearest[place] = [
            (float(similarity[k]), int(k))
            for k in order
            if similarity[k] >= min_similarity
            and int(k) not in blocked.get(place, ())
            and not are_apart(people[k], people[place])
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
    support = _collect_support(views, track_of_view, labels, conflicts, min_similarity)
    merges: list[Merge] = []
    while True:
        supported = _find_supported(support, labels)
        best = next((pair for pair in supported if not _labels_conflict(labels, conflicts, *pair.labels)), None)
        if best is None:
            return merges
        i, j = best.labels
        low, high = sorted((int((labels == i).argmax()), int((labels == j).argmax())))
        merges.append(Merge(low, high, best.sizes, best.similarity, "views", best.n_pairs))
        labels[labels == j] = i
        support = support.join(i, j)


@dataclass(frozen=True)
class _Support:
    """What speaks for joining clusters: for each track the clusters of which it has a view in common with some tracks.

    Attributes:
        track: Track index, shape (m,).
        cluster: Label of another cluster, shape (m,); no two entries have both in common.
        total: Sum of the track's similarities to tracks of it, shape (m,).
        n_pairs: How many tracks of it these are, shape (m,).
    """

    track: NDArray[np.int64]
    cluster: NDArray[np.int64]
    total: NDArray[np.float64]
    n_pairs: NDArray[np.float64]

    def join(self, first: int, second: int) -> _Support:
        """After the second cluster has become part of the first."""
        cluster = np.where(self.cluster == second, first, self.cluster)
        order = np.lexsort((cluster, self.track))
        track, cluster = self.track[order], cluster[order]
        starts = np.flatnonzero(np.diff(track, prepend=-1) | np.diff(cluster, prepend=-1))
        total, n_pairs = (np.add.reduceat(values[order], starts) for values in (self.total, self.n_pairs))
        return _Support(track[starts], cluster[starts], total, n_pairs)


@dataclass(frozen=True)
class _Supported:
    """Two clusters, by their labels, with enough support to be joined."""

    labels: tuple[int, int]
    sizes: tuple[int, int]
    similarity: float
    n_pairs: int


def _collect_support(
    views: NDArray[np.floating],
    track_of_view: NDArray[np.int64],
    labels: NDArray[np.int64],
    conflicts: Conflicts,
    min_similarity: float,
) -> _Support:
    """All pairs of tracks of two clusters that may be joined whose nearest views reach the similarity, summed up."""
    rows = np.asarray(views, np.float32)
    starts = np.append(np.flatnonzero(np.diff(track_of_view, prepend=-1))[::_BLOCK_TRACKS], len(rows)).tolist()
    n_tracks = max(len(labels), int(labels.max()) + 1)
    apart, sums = _ApartLabels(labels, conflicts), PairSums(n_tracks)
    for n, (a, a_end) in enumerate(pairwise(starts)):
        for b, b_end in pairwise(starts[n:]):
            block = rows[a:a_end] @ rows[b:b_end].T
            i, j = np.nonzero(block >= min_similarity - 10.0**-_DECIMALS)
            first, second = track_of_view[i + a], track_of_view[j + b]
            is_kept = (first < second) & ~apart.are(labels[first], labels[second])
            codes, inverse = np.unique(first[is_kept] * n_tracks + second[is_kept], return_inverse=True)
            best = np.full(len(codes), -1.0)
            np.maximum.at(best, inverse, block[i[is_kept], j[is_kept]].astype(np.float64).round(_DECIMALS))
            first, second = np.divmod(codes[best >= min_similarity], n_tracks)
            sums.add(first, labels[second], best[best >= min_similarity])
            sums.add(second, labels[first], best[best >= min_similarity])
    return _Support(*sums.finish())


class _ApartLabels:
    """Which clusters may not be joined, or are one."""

    def __init__(self, labels: NDArray[np.int64], conflicts: Conflicts) -> None:
        self._n_labels = int(labels.max()) + 1
        self._codes = np.unique(self._code(*labels[conflicts.pairs].T))
        self._people = np.full(self._n_labels, -1)
        np.maximum.at(self._people, labels, conflicts.people_of(len(labels)))

    def _code(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(first, second) * self._n_labels + np.maximum(first, second)

    def are(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For pairs of labels."""
        result = (first == second) | are_apart(self._people[first], self._people[second])
        if len(self._codes):
            result |= np.isin(self._code(first, second), self._codes)
        return result


def _find_supported(support: _Support, labels: NDArray[np.int64]) -> list[_Supported]:
    """Pairs of clusters with enough support, the most similar first."""
    own, n_labels = labels[support.track], int(labels.max()) + 1
    is_other = own != support.cluster
    own, other = own[is_other], support.cluster[is_other]
    is_first = own < other
    codes, inverse = np.unique(np.minimum(own, other) * n_labels + np.maximum(own, other), return_inverse=True)
    i, j = np.divmod(codes, n_labels)
    n_first = np.bincount(inverse[is_first], minlength=len(codes))
    n_second = np.bincount(inverse[~is_first], minlength=len(codes))
    total, n_pairs = (
        np.bincount(inverse[is_first], weights=values[is_other][is_first], minlength=len(codes))
        for values in (support.total, support.n_pairs)
    )
    sizes = np.bincount(labels)
    smaller, n_smaller = np.minimum(sizes[i], sizes[j]), np.where(sizes[i] <= sizes[j], n_first, n_second)
    is_enough = (np.minimum(n_first, n_second) >= 2) & (n_smaller * 2 >= smaller)
    is_enough = np.where(smaller == 1, np.maximum(n_first, n_second) >= 2, is_enough)
    similarity = (total / n_pairs).round(9)
    chosen = np.flatnonzero(is_enough)
    return [
        _Supported((int(i[k]), int(j[k])), (int(sizes[i[k]]), int(sizes[j[k]])), float(similarity[k]), int(n_pairs[k]))
        for k in chosen[np.lexsort((codes[chosen], -similarity[chosen]))]
    ]


def _labels_conflict(labels: NDArray[np.int64], conflicts: Conflicts, i: int, j: int) -> bool:
    a, b = labels[conflicts.pairs[:, 0]], labels[conflicts.pairs[:, 1]]
    people = conflicts.people_of(len(labels))
    named_apart = are_apart(people[labels == i].max(), people[labels == j].max())
    return bool(named_apart or (((a == i) & (b == j)) | ((a == j) & (b == i))).any())


def _blocked_places(inverse: NDArray[np.intp], counts: NDArray[np.intp], conflicts: Conflicts) -> dict[int, set[int]]:
    """For each cluster of one track the clusters it must not join."""
    pairs = inverse[np.concatenate([conflicts.pairs, conflicts.pairs[:, ::-1]])]
    pairs = pairs[counts[pairs[:, 0]] == 1]
    blocked: dict[int, set[int]] = {}
    for code in np.unique(pairs[:, 0] * len(counts) + pairs[:, 1]).tolist():
        blocked.setdefault(code // len(counts), set()).add(code % len(counts))
    return blocked
