"""Pairs of tracks that share a frame, against a walk over every two faces of every frame."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cleanup.algorithms import frame_pairs, pair_sums
from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.frame_pairs import SAME_FACE_IOU, find_frame_pairs, places_of_pairs
from tests.builders import make_people


def walk(
    frames: np.ndarray, tracks: np.ndarray, boxes: np.ndarray, embeddings: np.ndarray
) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], list[float]] = {}
    for i, j in combinations(range(len(frames)), 2):
        is_apart = compute_iou_matrix(boxes[i], boxes[j])[0, 0] < SAME_FACE_IOU
        if frames[i] == frames[j] and tracks[i] != tracks[j] and is_apart:
            pair = (int(min(tracks[i], tracks[j])), int(max(tracks[i], tracks[j])))
            found.setdefault(pair, []).append(float(embeddings[i] @ embeddings[j]))
    return {pair: float(np.mean(values)) for pair, values in found.items()}


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
    assert found.similarities == pytest.approx([expected[pair] for pair in sorted(expected)], abs=1e-6)
    assert len(expected) > 50


def test_faces_that_are_alone_give_no_pair() -> None:
    found = find_frame_pairs(np.arange(3), np.arange(3), np.tile([0.0, 0, 1, 1], (3, 1)))

    assert found.tracks.shape == (0, 2)
    assert find_frame_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4))).tracks.shape == (0, 2)


def test_pairs_are_placed_where_both_tracks_are_known() -> None:
    pairs = np.array([[1, 5], [1, 9], [5, 7], [7, 9]])

    assert places_of_pairs(pairs, [5, 7, 9]).tolist() == [[0, 1], [1, 2]]
    assert places_of_pairs(pairs, []).shape == (0, 2)
