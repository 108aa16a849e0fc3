"""What could be had with the right cut, or with right pieces as well: these look at truth, so they are no methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from tests.bench.accuracy.methods import cut_plainly, pool_plainly
from tests.bench.accuracy.scene import Outcome, Scene, bcubed

ORACLE = "oracle: truth split, best cut (peeks)"
ORACLE_TWO_PEOPLE = "oracle, only two people apart (peeks)"
SAME_PIECES = "same pieces, best cut (peeks)"
PLAIN_BEST = "plain gate, best fixed cut (peeks)"


def sweep_cuts(vectors: NDArray[np.floating], conflicts: Conflicts) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Every partition that average linkage yields, with the highest cut that yields it: first nothing is joined."""
    labels = np.arange(len(vectors))
    merges = cluster_tracks(vectors, -1.0, conflicts).merges
    yield 1.0, labels
    for i, merge in enumerate(merges):
        labels = np.where(labels == labels[merge.second], labels[merge.first], labels)
        if i + 1 == len(merges) or merges[i + 1].similarity < merge.similarity:
            yield merge.similarity, labels


def find_best_cut(
    scene: Scene,
    piece: list[Any],
    vectors: Mapping[Any, NDArray[np.floating]],
    apart: Iterable[tuple[Any, Any]],
) -> Outcome:
    """The pieces at the cut that scores best.

    Args:
        scene: With truth.
        piece: Of each face.
        vectors: Unit vector of each piece; one that has none stays alone.
        apart: Pairs of pieces that never join.
    """
    places = {p: i for i, p in enumerate([*vectors, *(set(piece) - vectors.keys())])}
    conflicts = Conflicts.of((places[a], places[b]) for a, b in apart if a in vectors and b in vectors)
    people = {person: i for i, person in enumerate(sorted({str(scene.person[i]) for i in scene.known}))}
    counts = np.zeros((len(people), len(places)), np.int64)
    for i in scene.known:
        counts[people[str(scene.person[i])], places[piece[i]]] += 1

    def rate(labels: NDArray[np.int64]) -> float:
        joined = np.zeros_like(counts)
        np.add.at(joined.T, np.concatenate([labels, np.arange(len(labels), len(places))]), counts.T)
        return bcubed(joined)[2]

    cut, labels = max(sweep_cuts(np.array(list(vectors.values())), conflicts), key=lambda found: rate(found[1]))
    owner = dict(zip(vectors, labels.tolist(), strict=True))
    return Outcome(piece, [owner.get(p, places[p]) for p in piece], cut=cut)


def oracle(scene: Scene, *, joins_pictures: bool = False) -> Outcome:
    """Tracks cut where truth changes, a track's raw embeddings pooled as they are, apart what shares a frame.

    A person and a poster or mirror image of them share frames as well, and what keeps the two apart spreads through the
    linkage, so better can be had: with ``joins_pictures`` only two people are kept apart.
    """
    piece: list[int] = [0] * len(scene.person)
    n_pieces = 0
    for track in scene.tracks(range(len(scene.person))):
        for k, i in enumerate(track):
            n_pieces += k == 0 or scene.person[i] != scene.person[track[k - 1]]
            piece[i] = n_pieces
    rows = scene.embeddings * scene.norms[:, None]
    sums = {p: rows[np.array(piece) == p].sum(axis=0) for p in range(1, n_pieces + 1)}
    at_frame: dict[int, set[int]] = {}
    for frame, p in zip(scene.frames.tolist(), piece, strict=True):
        at_frame.setdefault(frame, set()).add(p)
    person = dict(zip(piece, scene.person, strict=True))
    apart = {pair for pieces in at_frame.values() for pair in combinations(sorted(pieces), 2)}
    if joins_pictures:
        apart = {(a, b) for a, b in apart if person[a] != person[b]}
    return find_best_cut(scene, piece, {p: s / np.linalg.norm(s) for p, s in sums.items()}, apart)


def plain_gate_best(scene: Scene) -> Outcome:
    """The plain gate at the fixed cut that scores best."""
    piece = cut_plainly(scene)
    return find_best_cut(scene, piece, pool_plainly(scene, piece), ())
