"""The scale is what two people look like to the model, whoever is in the picture and however often."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cleanup.algorithms.similarity_scale import (
    ASSUMED,
    CALIBRATION,
    EPISODE,
    SimilarityScale,
    measure_scale,
    place_threshold,
)
from tests.builders import make_faces, make_people, push_up

NOBODY = np.zeros((0, 2), np.int64)
PUSHES = pytest.mark.parametrize("push", [0.0, 0.75, 2.4], ids=["ordinary", "strangers near 0.4", "near 0.86"])


def make_tracks(counts: list[int], push: float = 0.0, noise: float = 0.9, dimension: int = 128) -> NDArray[np.float64]:
    """Vectors of so many tracks of each person; with this noise two tracks of one person are at about 0.55."""
    people = make_people(len(counts), dimension)
    rows = [make_faces(people[i], n, noise, seed=i) for i, n in enumerate(counts)]
    return push_up(np.concatenate(rows), push)


def strangers_at(push: float) -> float:
    return push**2 / (1 + push**2)


@PUSHES
@pytest.mark.parametrize("counts", [[4] * 12, [60, 3, 3, 2, 2, 1], [1] * 40], ids=["even", "one in most", "once each"])
def test_strangers_are_found_whatever_the_scale_and_whoever_is_seen_most(push: float, counts: list[int]) -> None:
    """In the second case two of three pairs are one person; some pairs are seen beside each other."""
    vectors = make_tracks(counts, push)
    beside = np.array([(i % counts[0], i) for i in range(counts[0], len(vectors))])

    scale = measure_scale(vectors, beside)

    assert scale.source == EPISODE
    assert scale.strangers == pytest.approx(strangers_at(push), abs=0.05)


@PUSHES
def test_reflections_are_no_strangers(push: float) -> None:
    """Half of the pairs in one frame are a face and its reflection."""
    vectors = make_tracks([6] * 8, push)
    reflections = [(6 * k, 6 * k + 1) for k in range(8)]
    strangers = [(6 * k, 6 * ((k + 1) % 8) + 2) for k in range(8)]

    scale = measure_scale(vectors, np.array(reflections + strangers))

    assert scale.strangers == pytest.approx(strangers_at(push), abs=0.05)


@pytest.mark.parametrize("counts", [[], [1], [20], [15, 15]], ids=["nobody", "a track", "a person", "two people"])
def test_of_fewer_than_three_people_nothing_is_learned(counts: list[int]) -> None:
    vectors = make_tracks(counts) if counts else np.zeros((0, 128))

    assert measure_scale(vectors, NOBODY) == SimilarityScale(0.0, ASSUMED)
    calibrated = SimilarityScale(0.31, CALIBRATION, 400)
    assert measure_scale(make_tracks(counts, 0.67) if counts else vectors, NOBODY, calibrated) == calibrated


def test_a_person_before_a_mirror_is_no_crowd_of_strangers() -> None:
    """One person in twenty tracks, clear ones and poor ones, each of them beside its reflection."""
    person = make_people(1, 128)[0]
    faces = np.concatenate([make_faces(person, 1, noise, seed=i) for i, noise in enumerate(np.linspace(0.2, 1.1, 20))])
    reflections = np.concatenate([make_faces(face, 1, 0.4, seed=50 + i) for i, face in enumerate(faces)])

    scale = measure_scale(np.concatenate([faces, reflections]), np.stack([np.arange(20), 20 + np.arange(20)], axis=1))

    assert scale == SimilarityScale(0.0, ASSUMED)


def test_a_few_people_who_are_very_unlike_each_other_do_not_pull_the_scale_down() -> None:
    corners = np.eye(4, 64) - 0.25 * np.ones((4, 1)) * np.eye(4, 64).sum(axis=0)
    vectors = np.concatenate([make_faces(c / np.linalg.norm(c), 5, 0.3, seed=i) for i, c in enumerate(corners)])

    assert measure_scale(vectors, NOBODY).strangers == 0.0


def test_a_number_given_is_obeyed_and_a_place_is_carried_over() -> None:
    scale = SimilarityScale(0.4, EPISODE, 100)

    assert place_threshold(scale, 0.61, is_auto=False).value == 0.61
    placed = place_threshold(scale, 0.25, is_auto=True)
    assert placed.value == pytest.approx(0.55)
    assert placed.source == EPISODE
    assert "0.25 of the way from 0.400" in placed.reason
    assert place_threshold(SimilarityScale(), 0.25, is_auto=True).value == 0.25
