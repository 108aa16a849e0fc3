"""The gate splits at a change of person and at nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanup.algorithms.appearance_gate import GateSamples, GateThresholds, compute_consecutive_iou, find_changes
from tests.builders import make_faces, make_people

GATE = GateThresholds(
    hard=0.70,
    soft=0.78,
    streak=2,
    min_iou=0.55,
    prototype_momentum=0.85,
    same_person=0.40,
    strangers=0.20,
    coherent=0.75,
)
PEOPLE = make_people(4)
BLUR = 3  # the direction that all blurred faces share


def find_splits(runs: Sequence[tuple[int, int]], *, gate: GateThresholds = GATE, step_s: float = 1 / 12) -> list[int]:
    """Split indices of a track made of (person, number of samples) runs; person 3 stands for untrusted blur."""
    parts = [make_faces(PEOPLE[p], n, noise=0.35, seed=i) for i, (p, n) in enumerate(runs)]
    samples = make_samples(np.concatenate(parts), runs, step_s)
    return [c.index for c in find_changes(samples, gate) if c.is_split]


def make_samples(embeddings: np.ndarray, runs: Sequence[tuple[int, int]], step_s: float = 1 / 12) -> GateSamples:
    """Samples in one place of the picture; blurred ones have a third of the norm and a tenth of the sharpness."""
    n_samples = len(embeddings)
    is_blurred = np.concatenate([np.full(n, p == BLUR) for p, n in runs]) if runs else np.zeros(n_samples, bool)
    boxes = np.tile([0.0, 0.0, 100.0, 100.0], (n_samples, 1))
    norms, sharpness = np.where(is_blurred, 4.0, 12.0), np.where(is_blurred, 20.0, 200.0)
    return GateSamples(embeddings, boxes, np.arange(n_samples) * step_s, norms, sharpness)


def test_one_person_is_not_split() -> None:
    assert find_splits([(0, 40)]) == []


def test_a_swap_is_split_at_its_first_sample() -> None:
    assert find_splits([(0, 15), (1, 20)]) == [15]


def test_a_burst_of_blur_does_not_split() -> None:
    assert find_splits([(0, 15), (BLUR, 6), (0, 15)]) == []


def test_blur_at_the_end_does_not_split() -> None:
    assert find_splits([(0, 15), (BLUR, 4)]) == []


def test_a_person_who_comes_and_goes_is_cut_out() -> None:
    assert find_splits([(0, 12), (1, 12), (0, 12)]) == [12, 24]


@pytest.mark.parametrize("runs", [[(0, 2), (1, 20)], [(0, 20), (1, 2)]], ids=["first two samples", "last two samples"])
def test_a_change_at_the_edge_is_found(runs: list[tuple[int, int]]) -> None:
    assert find_splits(runs) == [runs[0][1]]


def test_one_odd_sample_is_no_person() -> None:
    assert find_splits([(0, 15), (1, 1), (0, 15)]) == []


def test_a_change_behind_blur_is_split_once() -> None:
    splits = find_splits([(0, 15), (BLUR, 4), (1, 15)])

    assert len(splits) == 1
    assert 15 <= splits[0] <= 19


def test_a_long_stretch_of_untrusted_faces_of_somebody_else_is_split() -> None:
    assert find_splits([(BLUR, 30), (0, 30)]) == [30]


def soft_samples(runs: Sequence[tuple[int, int, float]], *, norm: float = 12.0) -> GateSamples:
    """Samples of (person, number, sharpness) runs, all with embeddings of one length."""
    parts = [make_faces(PEOPLE[p], n, noise=0.35, seed=i) for i, (p, n, _) in enumerate(runs)]
    samples = make_samples(np.concatenate(parts), [])
    samples.norms[:] = norm
    samples.sharpness[:] = np.concatenate([np.full(n, sharpness) for _, n, sharpness in runs])
    return samples


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_half_a_second_of_a_person_in_a_softer_shot_is_somebody(place: str) -> None:
    """What sharpness the neighbours reach in their shots says nothing about the faces of this one."""
    soft, sharp, other = (0, 5, 30.0), (1, 12, 500.0), (2, 12, 500.0)
    runs = {"first": [soft, sharp], "between": [sharp, soft, other], "last": [sharp, soft]}[place]

    cuts = np.cumsum([n for _, n, _ in runs])[:-1].tolist()
    assert [c.index for c in find_changes(soft_samples(runs), GATE) if c.is_split] == cuts


def test_a_short_soft_stretch_between_two_stretches_of_one_person_is_theirs() -> None:
    runs = [(0, 12, 500.0), (1, 4, 30.0), (0, 12, 500.0)]

    assert not [c for c in find_changes(soft_samples(runs), GATE) if c.is_split]


def blur(person: int, n_samples: int, likeness: float, seed: int) -> np.ndarray:
    """Faces of a person that look mostly like all blurred faces, and by a cosine of ``likeness`` like the person."""
    direction = likeness * PEOPLE[person] + np.sqrt(1 - likeness**2) * PEOPLE[BLUR]
    return make_faces(direction, n_samples, noise=0.2, seed=seed)


@pytest.mark.parametrize(("sharpness", "n_pieces"), [(5.0, 1), (60.0, 2)], ids=["illegible", "legible"])
def test_a_long_stretch_too_blurred_to_tell_belongs_to_whom_it_follows(sharpness: float, n_pieces: int) -> None:
    samples = make_samples(np.concatenate([make_faces(PEOPLE[0], 20, 0.3), blur(0, 25, 0.35, 1)]), [])
    samples.norms[20:] = 8.0
    samples.sharpness[20:] = sharpness

    assert sum(c.is_split for c in find_changes(samples, GATE)) == n_pieces - 1
    samples.boxes[20:] += 300
    assert sum(c.is_split for c in find_changes(samples, GATE)) == 1, "where the box jumps, it is another shot"


def test_a_long_stretch_too_blurred_to_tell_that_looks_like_nobody_stays_by_itself() -> None:
    samples = make_samples(np.concatenate([make_faces(PEOPLE[0], 20, 0.3), blur(0, 25, 0.0, 1)]), [])
    samples.norms[20:] = 6.0
    samples.sharpness[20:] = 5.0

    assert [c.index for c in find_changes(samples, GATE) if c.is_split] == [20]


@pytest.mark.parametrize("hard", [0.30, 0.45, 0.60, 0.70])
def test_the_hard_threshold_does_not_decide_a_clear_case(hard: float) -> None:
    gate = replace(GATE, hard=hard, soft=hard + 0.08)

    assert find_splits([(0, 15), (1, 15), (2, 15)], gate=gate) == [15, 30]


def test_a_jumping_box_alone_does_not_split() -> None:
    samples = make_samples(make_faces(PEOPLE[0], 20), [(0, 20)])
    samples.boxes[10:] += 300

    candidates = find_changes(samples, GATE)

    assert [(c.index, c.reason, c.is_split) for c in candidates] == [(10, "iou", False)]


@pytest.mark.parametrize("n_samples", [0, 1, 2])
def test_tiny_tracks_are_left_alone(n_samples: int) -> None:
    assert find_splits([(0, n_samples)]) == []


def test_identical_and_zero_vectors_are_survived() -> None:
    assert find_changes(make_samples(np.zeros((5, 8)), [(0, 5)]), GATE) is not None


def test_iou_of_equal_boxes_is_one_and_of_distant_ones_zero() -> None:
    boxes = np.array([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])

    assert compute_consecutive_iou(boxes) == pytest.approx([1, 1, 0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 15)), min_size=1, max_size=6))
def test_no_piece_is_split_again(runs: list[tuple[int, int]]) -> None:
    """Cutting at the confirmed changes is final: a second run on the pieces finds nothing."""
    samples = make_samples(
        np.concatenate([make_faces(PEOPLE[p], n, noise=0.5, seed=i) for i, (p, n) in enumerate(runs)]), runs
    )
    samples.norms[:] *= 1 + 0.3 * np.sin(np.arange(len(samples)))
    cuts = [c.index for c in find_changes(samples, GATE) if c.is_split]

    for start, stop in pairwise([0, *cuts, len(samples)]):
        assert not any(c.is_split for c in find_changes(samples[start:stop], GATE))
