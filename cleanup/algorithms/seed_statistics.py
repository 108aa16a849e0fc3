"""Figures on a show's seeds: how many, and who could be taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def describe_seeds(people: Sequence[str], embeddings: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """Counts, and the two people with the most similar seeds; None where there are no two of one dimension.

    Args:
        people: Person id of each seed.
        embeddings: Its unit vector, shape (d,).
    """
    counts: dict[str, Any] = {"people": len(set(people)), "seeds": len(people), "most_alike": None}
    if len({len(e) for e in embeddings}) != 1 or counts["people"] < 2:
        return counts
    vectors, owners = np.stack(embeddings), np.array(people)
    similarity = vectors @ vectors.T
    similarity[owners[:, None] == owners[None, :]] = -np.inf
    first, second = np.unravel_index(int(similarity.argmax()), similarity.shape)
    pair = sorted([people[int(first)], people[int(second)]])
    return {**counts, "most_alike": {"people": pair, "similarity": round(float(similarity.max()), 4)}}
