"""Where faces are lost: false splits, wrong cuts and wrong names by kind of shot, merges by quality and size."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tests.bench.accuracy.scene import Outcome, Scene, find_changes

# Below that, in a video of 540 lines, a face is small; the product's own gate is near it.
_SMALL_PX = 45


def _find_parts(
    keys: Sequence[Any], values: Sequence[Any], faces: Sequence[int]
) -> Iterator[tuple[int, list[list[int]]]]:
    """For each key how many faces have it, and these faces by their values, the most first."""
    parts: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i in faces:
        parts[keys[i]][values[i]].append(i)
    for part in parts.values():
        yield sum(map(len, part.values())), sorted(part.values(), key=len, reverse=True)


def count_by_shot(scene: Scene, outcome: Outcome) -> dict[str, dict[str, float]]:
    """By kind of shot what goes wrong there; ``lost R`` adds up to one minus B-cubed recall.

    Two clusters of one person are a false split; what it loses is laid on the shots of the smaller one's faces, and the
    split is counted where most of these are.
    """
    known = scene.known
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for i in known:
        counts[scene.shot[i]]["faces"] += 1
    lost: dict[str, float] = defaultdict(float)
    for n_person, clusters in _find_parts(scene.person, outcome.identity, known):
        for larger, smaller in combinations(clusters, 2):
            shots = Counter(scene.shot[i] for i in smaller)
            counts[shots.most_common(1)[0][0]]["false splits"] += 1
            for shot, n_faces in shots.items():
                lost[shot] += 2 * len(larger) * n_faces / (n_person * len(known))
    missed, false_cuts = find_changes(scene, outcome)
    for what, faces in (("missed changes", missed), ("false cuts", false_cuts)):
        for i in faces:
            counts[scene.shot[i]][what] += 1
    people = outcome.person
    for i, person in [(i, people[i]) for i in known] if people is not None else ():
        counts[scene.shot[i]]["named right"] += person == scene.person[i]
        counts[scene.shot[i]]["named wrong"] += person is not None and person != scene.person[i]
    return {shot: {**count, "lost R": lost[shot]} for shot, count in sorted(counts.items())}


def count_merges(scene: Scene, outcome: Outcome) -> dict[str, dict[str, float]]:
    """Pairs of people in one cluster, by size and quality of the fewer faces; ``lost P`` adds up to one minus precision.

    Size is the median of their boxes' shorter sides; of clean faces most are clean.
    """
    known = scene.known
    counts: dict[str, dict[str, float]] = {}
    for n_cluster, people in _find_parts(outcome.identity, scene.person, known):
        for larger, smaller in combinations(people, 2):
            size = "small" if np.median(scene.size_px[smaller]) < _SMALL_PX else "large"
            quality = "clean" if scene.is_clean[smaller].mean() > 0.5 else "not clean"
            row = counts.setdefault(f"{size}, {quality}", {"merges": 0, "faces": 0, "lost P": 0.0})
            row["merges"] += 1
            row["faces"] += len(smaller)
            row["lost P"] += 2 * len(larger) * len(smaller) / (n_cluster * len(known))
    return dict(sorted(counts.items()))
