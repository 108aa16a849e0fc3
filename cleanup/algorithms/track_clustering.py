"""What follows the linkage: people seen twice, merges that are worth a second look, ejected outliers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from cleanup.algorithms.average_linkage import Merge

# Similarities are compared after rounding, so that the order of additions in a BLAS does not decide a tie.
_DECIMALS = 6
# Who of a pair stays is decided anew with what the last round made of the cluster, at most so often.
_MAX_TWIN_ROUNDS = 10
# Log odds that two clusters joined at a place on the model's scale are one person, fitted to the merges in rendered
# episodes with two models and on shifted scales.
_INTERCEPT, _PER_POSITION = -1.1, 5.3


def rate_merge(position: float) -> float:
    """Probability that the tracks of two clusters are one person, by the place of their mean similarity."""
    return float(expit(_INTERCEPT + _PER_POSITION * position))


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


@dataclass(frozen=True)
class Parting:
    """The last merge of a cluster, and its two sides.

    Attributes:
        label: The cluster.
        merge: How its sides came together.
        first: Members of the side with the lowest one, ascending, shape (k,).
        second: Members of the other.
        person_id: The person that one side is and the other is not, once that is known.
    """

    label: int
    merge: Merge
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    person_id: str | None = None


def find_last_merges(merges: Sequence[Merge], labels: NDArray[np.int64], max_similarity: float) -> list[Parting]:
    """The last merge of every cluster where it was made at less than a similarity.

    Args:
        merges: Those of average linkage that led to the clusters, in any order.
        labels: Cluster of each member, shape (n,).
        max_similarity: Merges at this similarity or above are not looked at.

    Returns:
        By label.
    """
    own: dict[int, list[Merge]] = defaultdict(list)
    for merge in merges:
        own[int(labels[merge.first])].append(merge)
    found = []
    for label in sorted(own):
        last = min(own[label], key=lambda m: (m.similarity, -sum(m.sizes)))
        if last.similarity >= max_similarity:
            continue
        root = {int(i): int(i) for i in np.flatnonzero(labels == label)}
        for merge in own[label]:
            if merge is not last:
                _join(root, merge.first, merge.second)
        sides = defaultdict(list)
        for i in root:
            sides[_root_of(root, i)].append(i)
        first, second = (np.array(side, np.intp) for side in sorted(sides.values()))
        found.append(Parting(label, last, first, second))
    return found


def _root_of(root: dict[int, int], i: int) -> int:
    while root[i] != i:
        i = root[i]
    return i


def _join(root: dict[int, int], a: int, b: int) -> None:
    a, b = sorted((_root_of(root, a), _root_of(root, b)))
    root[b] = a
