"""Pairs of tracks that share a frame, against a walk over every two faces of every frame."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cleanup.algorithms import frame_pairs, pair_sums
from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.frame_pairs import SAME_FACE_IOU, find_frame_pairs, places_of_pairs
from tests.builders import make_people


def walk(
    frames: np.ndarray, tracks: np.ndarray, boxes: np.ndarray, embeddings: np.ndarray
) -> dict[tuple[int, int], tuple[int, int, float]]:
    """Pair -> frames in which its faces are two, frames in which they are one, and the mean cosine of the two."""
    apart: dict[tuple[int, int], list[float]] = {}
    overlapping: Counter[tuple[int, int]] = Counter()
    for i, j in combinations(range(len(frames)), 2):
        if frames[i] != frames[j] or tracks[i] == tracks[j]:
            continue
        pair = (int(min(tracks[i], tracks[j])), int(max(tracks[i], tracks[j])))
        if compute_iou_matrix(boxes[i], boxes[j])[0, 0] < SAME_FACE_IOU:
            apart.setdefault(pair, []).append(float(embeddings[i] @ embeddings[j]))
        else:
            overlapping[pair] += 1
    return {pair: (len(values), overlapping[pair], float(np.mean(values))) for pair, values in apart.items()}


@pytest.mark.parametrize(("block", "pending"), [(512, 1 << 16), (3, 5)])
def test_every_pair_is_found_once_with_its_mean(monkeypatch: pytest.MonkeyPatch, block: int, pending: int) -> None:
    monkeypatch.setattr(frame_pairs, "_BLOCK", block)
    monkeypatch.setattr(pair_sums, "_MIN_PENDING", pending)
    rng = np.random.default_rng(0)
    frames, tracks = rng.integers(0, 12, 150), rng.integers(0, 20, 150) * 7
    corners = rng.integers(0, 4, (150, 2)) * 10.0
    boxes, embeddings = np.concatenate([corners, corners + 15], axis=1), make_people(150).astype(np.float32)

    found = find_frame_pairs(frames, tracks, boxes, embeddings)
    expected = walk(frames, tracks, boxes, embeddings)

    assert [tuple(pair) for pair in found.tracks.tolist()] == sorted(expected)
    n_apart, n_overlapping, similarities = zip(*(expected[pair] for pair in sorted(expected)), strict=True)
    assert (found.n_apart.tolist(), found.n_overlapping.tolist()) == (list(n_apart), list(n_overlapping))
    assert found.similarities == pytest.approx(similarities, abs=1e-6)
    assert len(expected) > 50 and sum(n_overlapping) > 5


def test_faces_that_are_alone_give_no_pair() -> None:
    found = find_frame_pairs(np.arange(3), np.arange(3), np.tile([0.0, 0, 1, 1], (3, 1)))

    assert found.tracks.shape == (0, 2)
    assert find_frame_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4))).tracks.shape == (0, 2)


def test_pairs_are_placed_where_both_tracks_are_known() -> None:
    pairs = np.array([[1, 5], [1, 9], [5, 7], [7, 9]])

    assert places_of_pairs(pairs, [5, 7, 9]).tolist() == [[0, 1], [1, 2]]
    assert places_of_pairs(pairs, []).shape == (0, 2)
