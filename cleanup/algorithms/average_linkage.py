"""Exact average-linkage clustering of track vectors on cosine similarity, with pairs that must not be joined.

The mean cosine between two clusters of unit vectors is the product of their sums over the product of their sizes, so no
matrix of all pairs is needed: one pass over the blocks of it finds the components of the similarity graph, and each
component is linked by itself. Average linkage is reducible (a union is to nobody nearer than the nearer of its parts),
also with forbidden pairs, so two clusters that are each other's nearest may be joined at any time and the partition is
that of joining the most similar pair again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cleanup.interfaces import RunMany, run_in_turn

# Rows and columns of the similarity matrix that are computed at a time.
_BLOCK = 2048
# Pairs of the similarity graph that are held before they are boiled down to the components they make.
_MAX_PAIRS = 1 << 22
# Clusters whose matrix of means is held at once: 512 MB. More are first joined in rounds.
_MAX_DENSE = 8192
# A round that joins less than this share of the clusters is not worth its matrix product.
_MIN_ROUND_SHARE = 0.02
# Means are compared after rounding, so that the order of additions in a BLAS does not decide a tie.
_DECIMALS = 9
# What single precision leaves open between two means; in a round nothing is decided inside it.
_ROUND_MARGIN = 1e-5
# Sum of squared component sizes from which other processes are worth their start: some seconds of work.
_WORTH_SPREADING = 1e8
# The graph is computed in single precision and may hold a few pairs too many, none too few.
_GRAPH_MARGIN = 1e-5


@dataclass(frozen=True)
class Conflicts:
    """Tracks that must not share a cluster, as indices into the vectors.

    Attributes:
        pairs: Index pairs, the lower one first, shape (m, 2).
        people: Number of the person a human named a track after, -1 for none, shape (n,); two people never share a
            cluster. None where nobody named any.
    """

    pairs: NDArray[np.int64]
    people: NDArray[np.int64] | None = None

    @staticmethod
    def of(pairs: Iterable[tuple[int, int]]) -> Conflicts:
        """Conflicts from index pairs in any order."""
        unique = sorted({(min(a, b), max(a, b)) for a, b in pairs if a != b})
        return Conflicts(np.array(unique, np.int64).reshape(-1, 2))

    def people_of(self, n_tracks: int) -> NDArray[np.int64]:
        """The person of each track, shape (n,)."""
        return np.full(n_tracks, -1) if self.people is None else self.people

    def count(self) -> int:
        """How many pairs of tracks must not share a cluster."""
        if self.people is None:
            return len(self.pairs)
        sizes = np.bincount(self.people[self.people >= 0])
        n_named_apart = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
        return len(self.pairs) + n_named_apart - int(are_apart(*self.people[self.pairs].T).sum())


def are_apart(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether two numbers of people are of two people; -1 is nobody."""
    return np.asarray((first >= 0) & (second >= 0) & (first != second))


@dataclass(frozen=True)
class Merge:
    """Two clusters that were joined, named by their lowest indices.

    Attributes:
        first: Lowest index in the one cluster.
        second: Lowest index in the other.
        sizes: Tracks in each.
        similarity: Mean cosine between them.
    """

    first: int
    second: int
    sizes: tuple[int, int]
    similarity: float

    @property
    def n_pairs(self) -> int:
        """Pairs of tracks the similarity is the mean of."""
        return self.sizes[0] * self.sizes[1]


@dataclass(frozen=True)
class Clustering:
    """Labels 0..k-1 in order of first appearance, shape (n,), and the merges that led to them, most similar first."""

    labels: NDArray[np.int64]
    merges: list[Merge]


def cluster_tracks(
    vectors: NDArray[np.floating], min_similarity: float, conflicts: Conflicts, run_many: RunMany = run_in_turn
) -> Clustering:
    """Average-linkage agglomerative clustering down to a mean similarity.

    The two clusters with the highest mean pairwise cosine are joined, again and again, as long as that mean reaches
    the cut and no pair between them is in conflict. Without conflicts the partition is that of scikit-learn's
    AgglomerativeClustering (average, cosine) at distance ``1 - min_similarity``, except that a mean of just the cut
    joins. Ties (to nine digits) go to the lowest indices.

    Beside the vectors it holds twice a component's vectors in double precision and at most 600 MB, whatever the number
    of tracks and the size of the largest component.

    Args:
        vectors: Unit rows, shape (n, d).
        min_similarity: The cut, as a cosine.
        conflicts: Pairs that are never joined.
        run_many: Runs the components side by side where that is worth it.
    """
    rows = np.asarray(vectors, np.float32)
    component = find_components(rows, min_similarity)
    order = np.argsort(component, kind="stable")
    groups = [g for g in np.split(order, np.flatnonzero(np.diff(component[order])) + 1) if len(g) > 1]
    first, second = conflicts.pairs[:, 0], conflicts.pairs[:, 1]
    inside = conflicts.pairs[component[first] == component[second]]
    inside = inside[np.argsort(component[inside[:, 0]], kind="stable")]
    owners = component[inside[:, 0]]
    people = conflicts.people_of(len(rows))
    tasks = []
    for members in groups:
        low, high = np.searchsorted(owners, component[members[0]] + np.array([0, 1]))
        tasks.append((rows[members], min_similarity, np.searchsorted(members, inside[low:high]), people[members]))
    lowest = np.arange(len(rows))
    merges: list[Merge] = []
    is_heavy = len(tasks) > 1 and sum(len(g) ** 2 for g in groups) > _WORTH_SPREADING
    linked = run_many(link_component, tasks) if is_heavy else run_in_turn(link_component, tasks)
    for members, steps in zip(groups, linked, strict=True):
        for step in steps:
            first_index, second_index = int(members[step.first]), int(members[step.second])
            lowest[second_index] = first_index
            merges.append(Merge(first_index, second_index, step.sizes, step.similarity))
    while (lowest[lowest] != lowest).any():
        lowest = lowest[lowest]
    merges.sort(key=lambda m: (-m.similarity, m.first, m.second))
    return Clustering(np.unique(lowest, return_inverse=True)[1].astype(np.int64), merges)


def find_components(vectors: NDArray[np.float32], min_similarity: float) -> NDArray[np.int64]:
    """Connected components of the graph of pairs with at least this similarity; shape (n,).

    A mean at or above a cut needs one pair at or above it, so no average-linkage cluster spans two components. Half of
    the similarity matrix is computed, block by block.
    """
    n_tracks = len(vectors)
    labels = np.arange(n_tracks)
    pairs: list[NDArray[np.int64]] = []
    n_pairs = 0
    limit = np.float32(min_similarity - _GRAPH_MARGIN)
    for a in range(0, n_tracks, _BLOCK):
        for b in range(a, n_tracks, _BLOCK):
            found = np.argwhere(vectors[a : a + _BLOCK] @ vectors[b : b + _BLOCK].T >= limit)
            if len(found):
                pairs.append(labels[found + np.array([a, b])])
                n_pairs += len(found)
            if n_pairs > _MAX_PAIRS:
                labels, pairs, n_pairs = _join_labels(labels, pairs), [], 0
    return _join_labels(labels, pairs)


def _join_labels(labels: NDArray[np.int64], pairs: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Labels after those in a pair have become one."""
    if not pairs:
        return labels
    joined = np.concatenate(pairs)
    shape = (int(labels.max()) + 1,) * 2
    graph = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=shape)
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)[labels]


@dataclass(frozen=True)
class LinkStep:
    """Two clusters of a component that were joined: lowest members (first < second), sizes, and their mean cosine."""

    first: int
    second: int
    sizes: tuple[int, int]
    similarity: float


def link_component(
    vectors: NDArray[np.float32], min_similarity: float, conflicts: NDArray[np.int64], people: NDArray[np.int64]
) -> list[LinkStep]:
    """Average linkage inside one component, down to the cut.

    Args:
        vectors: Unit rows, shape (m, d).
        min_similarity: The cut.
        conflicts: Index pairs that are never joined, shape (p, 2).
        people: Person of each, -1 for none, shape (m,); two people are never joined.

    Returns:
        The merges, each before those that build on it.
    """
    clusters = _Clusters(np.asarray(vectors, np.float64), conflicts, people.copy())
    limit = min_similarity - 0.5 * 10.0**-_DECIMALS
    steps: list[LinkStep] = []
    while len(clusters.sums) > _MAX_DENSE:
        n_clusters = len(clusters.sums)
        joined = clusters.join_reciprocal_nearest(limit)
        steps += joined
        if len(joined) < _MIN_ROUND_SHARE * n_clusters:
            break
    means: _Means = _MatrixOfMeans(clusters) if len(clusters.sums) <= _MAX_DENSE else _MeansOnDemand(clusters)
    return steps + _follow_chains(means, clusters, limit)


class _Clusters:
    """The clusters of a component that may still grow, in order of their lowest members.

    Attributes:
        sums: Sum of each cluster's vectors, shape (k, d).
        sizes: Shape (k,).
        lowest: Lowest member, shape (k,).
        conflicts: Pairs of places, lower first, shape (p, 2).
        people: Person of each, -1 for none, shape (k,).
    """

    def __init__(self, vectors: NDArray[np.float64], conflicts: NDArray[np.int64], people: NDArray[np.int64]) -> None:
        self.sums = vectors
        self.sizes = np.ones(len(vectors))
        self.lowest = np.arange(len(vectors))
        self.conflicts, self.people = conflicts, people

    def compute_means(self) -> NDArray[np.float64]:
        """Mean cosines between all clusters; minus infinity where they are one or must not be joined."""
        means = self.sums @ self.sums.T
        means /= self.sizes[:, None]
        means /= self.sizes
        np.round(means, _DECIMALS, out=means)
        i, j = self.conflicts.T
        means[i, j] = means[j, i] = -np.inf
        _keep_apart(means, self.people, self.people)
        np.fill_diagonal(means, -np.inf)
        return means

    def join_reciprocal_nearest(self, limit: float) -> list[LinkStep]:
        """Joins clusters that clearly are each other's nearest, and lets go of those that nobody comes near enough to.

        Where the nearest and the next are too close to tell apart in single precision, nothing is decided.
        """
        near = self._find_nearest()
        places = np.arange(len(self.sums))
        is_clear = near.second < near.best - _ROUND_MARGIN
        mutual = np.flatnonzero(is_clear & (near.place[near.place] == places) & is_clear[near.place])
        first = mutual[mutual < near.place[mutual]]
        second = near.place[first]
        similarity = (self.sums[first] * self.sums[second]).sum(axis=1) / (self.sizes[first] * self.sizes[second])
        is_joined = similarity >= limit
        first, second, similarity = first[is_joined], second[is_joined], similarity[is_joined].round(_DECIMALS)
        steps = [
            LinkStep(int(self.lowest[a]), int(self.lowest[b]), (int(self.sizes[a]), int(self.sizes[b])), float(s))
            for a, b, s in zip(first, second, similarity, strict=True)
        ]
        self.sums[first] += self.sums[second]
        self.sizes[first] += self.sizes[second]
        self.people[first] = np.maximum(self.people[first], self.people[second])
        is_kept = near.best >= limit - _ROUND_MARGIN
        is_kept[second] = False
        owner = places.copy()
        owner[second] = first
        moved = owner[self.conflicts]
        moved = (np.cumsum(is_kept) - 1)[moved[is_kept[moved].all(axis=1)]]
        self.conflicts = np.unique(np.sort(moved, axis=1), axis=0)
        self.sums, self.sizes = self.sums[is_kept], self.sizes[is_kept]
        self.lowest, self.people = self.lowest[is_kept], self.people[is_kept]
        return steps

    def _find_nearest(self) -> _Nearest:
        n_clusters = len(self.sums)
        centres = (self.sums / self.sizes[:, None]).astype(np.float32)
        near = _Nearest(n_clusters)
        for start in range(0, n_clusters, _BLOCK):
            for other in range(start, n_clusters, _BLOCK):
                means = centres[start : start + _BLOCK] @ centres[other : other + _BLOCK].T
                i, j = self.conflicts[:, 0] - start, self.conflicts[:, 1] - other
                inside = (i >= 0) & (i < means.shape[0]) & (j >= 0) & (j < means.shape[1])
                means[i[inside], j[inside]] = -np.inf
                _keep_apart(means, self.people[start : start + _BLOCK], self.people[other : other + _BLOCK])
                if start == other:
                    means[j[inside], i[inside]] = -np.inf
                    np.fill_diagonal(means, -np.inf)
                near.offer(means, start, other)
                if start != other:
                    near.offer(means.T, other, start)
        return near


def _keep_apart(means: NDArray[np.floating], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Takes out of a block of means what would join two people, given those of its rows and columns."""
    is_named = second >= 0
    for person in np.unique(first[first >= 0]):
        means[np.ix_(first == person, is_named & (second != person))] = -np.inf


class _Nearest:
    """The place of each cluster's nearest, its mean cosine, and that of the next; shape (k,)."""

    def __init__(self, n_clusters: int) -> None:
        self.place = np.zeros(n_clusters, np.int64)
        self.best = np.full(n_clusters, -np.inf, np.float32)
        self.second = np.full(n_clusters, -np.inf, np.float32)

    def offer(self, means: NDArray[np.float32], first_row: int, first_column: int) -> None:
        """Takes a block of the matrix of means into account."""
        rows = slice(first_row, first_row + means.shape[0])
        top = means.max(axis=1)
        is_better = top > self.best[rows]
        self.second[rows] = np.maximum(self.second[rows], np.where(is_better, self.best[rows], top))
        better = np.flatnonzero(is_better)
        # Few rows improve in later blocks, so the place and the next are looked for in those alone.
        block = means[better]
        place = block.argmax(axis=1)
        block[np.arange(len(better)), place] = -np.inf
        if block.shape[1]:
            self.second[first_row + better] = np.maximum(self.second[first_row + better], block.max(axis=1))
        self.best[first_row + better] = top[better]
        self.place[first_row + better] = place + first_column


class _Means(Protocol):
    """Mean cosines between clusters that change as clusters are joined."""

    def row(self, place: int) -> NDArray[np.float64]:
        """Means to all clusters; minus infinity to itself, to what is in conflict, and to what is gone."""

    def join(self, first: int, second: int) -> None:
        """Puts the second cluster into the first."""

    def remove(self, place: int) -> None:
        """Takes out a cluster that stays as it is."""


class _MatrixOfMeans:
    """Held as a matrix; a union's row is the weighted mean of its parts' rows."""

    def __init__(self, clusters: _Clusters) -> None:
        self._means = clusters.compute_means()
        self._sizes = clusters.sizes.copy()

    def row(self, place: int) -> NDArray[np.float64]:
        return self._means[place]

    def join(self, first: int, second: int) -> None:
        a, b = self._sizes[first], self._sizes[second]
        # Rounded, a union is never nearer to anybody than the nearer of its parts, not even by the last bit.
        union = ((a * self._means[first] + b * self._means[second]) / (a + b)).round(_DECIMALS)
        union[first] = -np.inf
        self._means[first], self._means[:, first] = union, union
        self._sizes[first] = a + b
        self.remove(second)

    def remove(self, place: int) -> None:
        self._means[place], self._means[:, place] = -np.inf, -np.inf


class _MeansOnDemand:
    """Computed from the sums row by row; slower, for what is too large to hold."""

    def __init__(self, clusters: _Clusters) -> None:
        self._sums, self._sizes = clusters.sums.copy(), clusters.sizes.copy()
        self._is_gone = np.zeros(len(self._sums), bool)
        self._people = clusters.people.copy()
        self._conflicts: dict[int, set[int]] = {}
        for a, b in clusters.conflicts.tolist():
            self._conflicts.setdefault(a, set()).add(b)
            self._conflicts.setdefault(b, set()).add(a)

    def row(self, place: int) -> NDArray[np.float64]:
        means = (self._sums @ self._sums[place] / (self._sizes * self._sizes[place])).round(_DECIMALS)
        means[self._is_gone] = -np.inf
        means[are_apart(self._people, self._people[place])] = -np.inf
        means[[place, *self._conflicts.get(place, ())]] = -np.inf
        return means

    def join(self, first: int, second: int) -> None:
        self._sums[first] += self._sums[second]
        self._sizes[first] += self._sizes[second]
        self._people[first] = max(self._people[first], self._people[second])
        for other in self._conflicts.pop(second, set()):
            self._conflicts[other].discard(second)
            self._conflicts[other].add(first)
            self._conflicts.setdefault(first, set()).add(other)
        self.remove(second)

    def remove(self, place: int) -> None:
        self._is_gone[place] = True


def _follow_chains(means: _Means, clusters: _Clusters, limit: float) -> list[LinkStep]:
    """Nearest-neighbour chains (Murtagh, 1983): from each cluster on to its nearest, until two are each other's."""
    sizes = clusters.sizes.astype(np.int64)
    is_gone = np.zeros(len(sizes), bool)
    steps: list[LinkStep] = []
    for start in range(len(sizes)):
        chain = [] if is_gone[start] else [start]
        while chain:
            top = chain[-1]
            row = means.row(top)
            nearest = int(row.argmax())
            if row[nearest] < limit:
                means.remove(top)
                is_gone[top] = True
                chain.pop()
            elif nearest in chain:
                del chain[chain.index(nearest) :]
                a, b = min(top, nearest), max(top, nearest)
                both = (int(sizes[a]), int(sizes[b]))
                steps.append(LinkStep(int(clusters.lowest[a]), int(clusters.lowest[b]), both, float(row[nearest])))
                means.join(a, b)
                sizes[a] += sizes[b]
                is_gone[b] = True
                chain = chain or [a]
            else:
                chain.append(nearest)
    return steps
