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
    """Pairs of tracks that have two different faces in some frame.

    Attributes:
        tracks: Track ids, the lower one first, sorted, shape (m, 2).
        n_apart: Frames in which their faces are different ones, shape (m,).
        n_overlapping: Frames in which they are one face found twice, shape (m,).
        similarities: Mean cosine of the different ones, shape (m,); empty where no embeddings were given.
    """

    tracks: NDArray[np.int64]
    n_apart: NDArray[np.int64]
    n_overlapping: NDArray[np.int64]
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
        embeddings: Unit rows, shape (n, d), or None where similarities are not asked for.
    """
    names, places = np.unique(tracks, return_inverse=True)
    seen, cosines = PairSums(len(names)), PairSums(len(names))
    order = np.lexsort((places, frames))
    for rows in np.split(order, np.flatnonzero(np.diff(frames[order])) + 1):
        for start in range(0, len(rows) - 1, _BLOCK):
            first, second = rows[start : start + _BLOCK], rows[start:]
            i, j = np.nonzero(np.triu(places[first][:, None] != places[second], k=1))
            if len(i) == 0:
                continue
            is_apart = (compute_iou_matrix(boxes[first], boxes[second]) < SAME_FACE_IOU)[i, j]
            seen.add(places[first[i]], places[second[j]], is_apart)
            if embeddings is not None:
                i, j = i[is_apart], j[is_apart]
                cosines.add(places[first[i]], places[second[j]], (embeddings[first] @ embeddings[second].T)[i, j])
    low, high, n_apart, n_frames = seen.finish()
    is_pair = n_apart > 0
    _, _, totals, counts = cosines.finish()
    return FramePairs(
        np.stack([names[low], names[high]], axis=1)[is_pair],
        n_apart[is_pair].astype(np.int64),
        (n_frames - n_apart)[is_pair].astype(np.int64),
        totals / counts,
    )


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
