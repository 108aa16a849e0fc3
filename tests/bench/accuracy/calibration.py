"""Whether what the report states as a probability comes true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.accuracy.scene import Outcome, Scene

_N_BINS = 10


@dataclass(frozen=True)
class Statement:
    """A probability that was stated, the share of its cases that came true, and how much it weighs."""

    stated: float
    observed: float
    weight: int


def check_names(scene: Scene, clusters: Outcome, grouping: Mapping[str, Any]) -> list[Statement]:
    """Names that were given, each weighing as many faces as its cluster has.

    Args:
        scene: With truth.
        clusters: As they were before any were named and joined.
        grouping: Of the report.
    """
    statements = []
    for entry in grouping["across_episodes"]["assigned"]:
        people = [scene.person[i] for i in scene.known if clusters.identity[i] == entry["cluster_id"]]
        if "probability" in entry and people:
            share = people.count(entry["person_id"]) / len(people)
            statements.append(Statement(entry["probability"], share, len(people)))
    return statements


def check_merges(scene: Scene, outcome: Outcome, merges: Sequence[Mapping[str, Any]]) -> list[Statement]:
    """Merges of clusters, each by the share of its pairs of tracks that are one person; they weigh the same.

    A track is the person that most of its faces show. Clustering of those seen twice starts anew from single tracks.
    """
    faces: dict[int, Counter[str]] = {}
    for i in scene.known:
        faces.setdefault(outcome.piece[i], Counter())[str(scene.person[i])] += 1
    person = {track: count.most_common(1)[0][0] for track, count in faces.items()}
    members: dict[int, list[int]] = {}
    statements = []
    for merge in merges:
        (first, second), sizes = merge["track_ids"], tuple(merge["sizes"])
        if (len(members.get(first, [first])), len(members.get(second, [second]))) != sizes:
            members = {}
        left, right = members.pop(first, [first]), members.pop(second, [second])
        members[first] = left + right
        pairs = [person[a] == person[b] for a in left for b in right if a in person and b in person]
        if "probability" in merge and pairs:
            statements.append(Statement(merge["probability"], sum(pairs) / len(pairs), 1))
    return statements


def bin_statements(statements: Sequence[Statement]) -> list[tuple[str, float, float, int]]:
    """Range, mean stated, mean observed and weight of each tenth that was stated."""
    place = [min(int(s.stated * _N_BINS), _N_BINS - 1) for s in statements]
    rows = []
    for k in sorted(set(place)):
        inside = [s for s, p in zip(statements, place, strict=True) if p == k]
        weights = [s.weight for s in inside]
        stated, observed = (
            np.average(v, weights=weights) for v in ([s.stated for s in inside], [s.observed for s in inside])
        )
        rows.append((f"{k / _N_BINS:.1f}-{(k + 1) / _N_BINS:.1f}", float(stated), float(observed), sum(weights)))
    return rows
