"""Sampling does not move when a track is split; detections go to the tracks they continue."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanup.algorithms.box_association import KnownTrack, associate_detections
from cleanup.algorithms.frame_sampling import (
    MAX_SHARD_IMBALANCE,
    LineageLoad,
    find_roots,
    plan_shards,
    sampling_step,
    select_samples,
)


@pytest.mark.parametrize(
    ("stride", "max_fps", "min_step", "video_fps", "step"),
    [(5, 24, 3, 24, 5), (1, 30, 3, 24, 3), (1, 8, 1, 24, 3), (1, 30, 1, 29.97, 1), (8, 8, 3, 25, 8)],
)
def test_the_step_keeps_every_limit(stride: int, max_fps: float, min_step: int, video_fps: float, step: int) -> None:
    assert sampling_step(stride, max_fps, min_step, video_fps) == step


def test_one_box_per_cell_and_the_ends_are_sampled() -> None:
    frames = np.array([3, 4, 5, 6, 9, 10, 11, 14])

    assert list(frames[select_samples(frames, 5, np.array([], int))]) == [3, 5, 10, 14]


def test_every_line_of_faces_is_sampled() -> None:
    frames = np.arange(20)

    assert select_samples(frames, 10, np.array([7]))[7]


def test_pieces_of_pieces_have_one_root() -> None:
    assert find_roots({1: None, 5: 1, 9: 5, 2: None}) == {1: 1, 5: 1, 9: 1, 2: 2}


def test_a_cycle_of_parents_ends() -> None:
    assert find_roots({1: 2, 2: 1}) == {1: 1, 2: 1}


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60), st.integers(1, 50)), max_size=40), st.integers(1, 99)
)
def test_shards_hold_every_lineage_once_and_never_share_a_frame(
    spans: list[tuple[int, int, int]], max_faces: int
) -> None:
    loads = [LineageLoad(i, start, start + length, n) for i, (start, length, n) in enumerate(spans)]

    shards = plan_shards(loads, max_faces)

    assert sorted(i for shard in shards for i in shard) == list(range(len(loads)))
    ends = [(min(loads[i].first_frame for i in s), max(loads[i].last_frame for i in s)) for s in shards]
    assert all(a[1] < b[0] for a, b in pairwise(ends))


@pytest.mark.parametrize("n_lineages", [40, 400, 4000])
def test_the_costliest_shard_is_near_the_mean_where_lineages_allow_it(n_lineages: int) -> None:
    rng = np.random.default_rng(n_lineages)
    lengths = rng.integers(10, 200, n_lineages)
    starts = np.concatenate([[0], np.cumsum(lengths + 5)[:-1]])
    loads = [
        LineageLoad(i, int(a), int(a + n), int(n) // 5) for i, (a, n) in enumerate(zip(starts, lengths, strict=True))
    ]

    costs = [sum(loads[i].n_samples + (loads[i].last_frame - loads[i].first_frame + 1) / 7 for i in shard)
             for shard in plan_shards(loads, 256)]  # fmt: skip

    assert max(costs) <= MAX_SHARD_IMBALANCE * np.mean(costs)
    assert 0.7 * 256 < np.mean(costs) < 1.5 * 256


def test_shards_are_made_larger_where_that_makes_them_even() -> None:
    # One crowd of 600 faces that cannot be cut, among many single tracks.
    crowd = [LineageLoad(i, 0, 20, 10) for i in range(60)]
    single = [LineageLoad(100 + i, 100 * (i + 1), 100 * (i + 1) + 20, 20) for i in range(90)]

    shards = plan_shards(crowd + single, 256)

    sizes = [sum(10 if i < 60 else 20 for i in shard) for shard in shards]
    assert max(sizes) <= 1.25 * np.mean(sizes)
    assert max(sizes) == 600


def make_track(track_id: int, x: float, first: int, last: int) -> KnownTrack:
    frames = np.array([first, last])
    return KnownTrack(track_id, first, last, frames, np.tile([x, 0, x + 10, 10], (2, 1)).astype(float))


def associate(detections: dict[int, list[tuple[float, float]]], tracks: list[KnownTrack]) -> dict[int, list[int]]:
    frames = {
        f: (np.array([[x, 0, x + 10, 10] for x, _ in found]), np.array([c for _, c in found]))
        for f, found in detections.items()
    }
    return associate_detections(frames, tracks, min_iou=0.35, max_gap_frames=90, sure_confidence=0.55)


def test_a_detection_goes_to_the_track_it_overlaps() -> None:
    tracks = [make_track(1, 0, 0, 20), make_track(2, 50, 0, 20)]

    assert associate({10: [(51, 0.9), (1, 0.9), (200, 0.9)]}, tracks) == {10: [1, 0, -1]}


def test_a_sure_detection_goes_before_a_better_placed_unsure_one() -> None:
    assert associate({10: [(0, 0.3), (2, 0.9)]}, [make_track(1, 0, 0, 20)]) == {10: [-1, 0]}


def test_nobody_continues_a_track_outside_its_span() -> None:
    assert associate({30: [(0, 0.9)]}, [make_track(1, 0, 0, 20)]) == {30: [-1]}


def test_a_moving_face_is_followed_from_box_to_box() -> None:
    track = KnownTrack(1, 0, 40, np.array([0]), np.array([[0.0, 0, 10, 10]]))

    owners = associate({f: [(f * 1.0, 0.9)] for f in range(1, 40)}, [track])

    assert all(owner == [0] for owner in owners.values())
