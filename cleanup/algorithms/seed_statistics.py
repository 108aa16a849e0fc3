"""Figures on a show's seeds: how many, and who could be taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Seeds that are compared with all others at a time.
_BLOCK = 256


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
    highest, pair = -np.inf, (0, 0)
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        similarity = vectors[rows] @ vectors.T
        similarity[owners[rows, None] == owners] = -np.inf
        if similarity.max() > highest:
            highest = float(similarity.max())
            row, column = divmod(int(similarity.argmax()), len(vectors))
            pair = (start + row, column)
    names = sorted(people[i] for i in pair)
    return {**counts, "most_alike": {"people": names, "similarity": round(highest, 4)}}
