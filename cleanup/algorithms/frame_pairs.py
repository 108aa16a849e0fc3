"""Pairs of tracks with different faces in one frame: each pair is kept once, however many frames the two share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.pair_sums import PairSums

# Two boxes of one frame that overlap this much are one face found twice, not two people.
SAME_FACE_IOU = 0.5
# Faces of a frame that are compared with all others of it at a time.
_BLOCK = 512


@dataclass(frozen=True)
class FramePairs:
    """Pairs of tracks that share a frame.

    Attributes:
        tracks: Track ids, the lower one first, sorted, shape (m, 2).
        similarities: Mean cosine of their faces in the frames they share, shape (m,).
    """

    tracks: NDArray[np.int64]
    similarities: NDArray[np.float64]


def find_frame_pairs(
    frames: NDArray[np.int64],
    tracks: NDArray[np.int64],
    boxes: NDArray[np.floating],
    embeddings: NDArray[np.float32] | None = None,
) -> FramePairs:
    """Finds the pairs of tracks that have two different faces in some frame.

    Args:
        frames: Frame of each face, shape (n,).
        tracks: Its track, shape (n,).
        boxes: Its box, shape (n, 4).
        embeddings: Unit rows, shape (n, d); without them the similarities are 0.
    """
    names, places = np.unique(tracks, return_inverse=True)
    found = PairSums(len(names))
    order = np.lexsort((places, frames))
    for rows in np.split(order, np.flatnonzero(np.diff(frames[order])) + 1):
        for start in range(0, len(rows) - 1, _BLOCK):
            first, second = rows[start : start + _BLOCK], rows[start:]
            apart = np.triu(compute_iou_matrix(boxes[first], boxes[second]) < SAME_FACE_IOU, k=1)
            i, j = np.nonzero(apart & (places[first][:, None] != places[second]))
            if len(i):
                cosines = np.zeros(len(i)) if embeddings is None else (embeddings[first] @ embeddings[second].T)[i, j]
                found.add(places[first[i]], places[second[j]], cosines)
    low, high, sums, counts = found.finish()
    return FramePairs(np.stack([names[low], names[high]], axis=1), sums / counts)


def places_of_pairs(pairs: NDArray[np.int64], tracks: Sequence[int]) -> NDArray[np.int64]:
    """The pairs of which both tracks are in a list, as places in it; shape (k, 2).

    Args:
        pairs: Track ids, shape (m, 2).
        tracks: Track ids, ascending.
    """
    if len(tracks) == 0:
        return np.zeros((0, 2), np.int64)
    known = np.asarray(tracks, np.int64)
    places = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    return places[(known[places] == pairs).all(axis=1)]
