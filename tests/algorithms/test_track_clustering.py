"""Outliers leave, of two who are seen together one leaves, and doubtful merges are found again."""

from __future__ import annotations

import numpy as np

from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from cleanup.algorithms.track_clustering import eject_outliers, find_last_merges, find_twins, rate_merge
from tests.builders import make_faces, make_people


def test_a_member_unlike_its_cluster_is_ejected() -> None:
    people = make_people(2)
    vectors = np.concatenate([make_faces(people[0], 6), people[1:2]])

    assert list(eject_outliers(vectors, np.zeros(7, int), 0.45)) == [6]


def test_a_reflection_leaves_and_the_face_stays() -> None:
    face = make_faces(make_people(1)[0], 6)
    vectors = np.concatenate([face, face[:2]])
    pairs = np.array([[0, 6], [1, 7]])

    assert find_twins(vectors, np.zeros(8, int), pairs, 0.1).tolist() == [6, 7]
    assert find_twins(vectors, np.array([0] * 6 + [1, 2]), pairs, 0.1).tolist() == [], "they are apart already"


def test_between_two_mirrors_one_of_each_pair_leaves() -> None:
    vectors = np.repeat(make_people(1), 4, axis=0)

    assert find_twins(vectors, np.zeros(4, int), np.array([[0, 1], [0, 2], [1, 2]]), 0.1).tolist() == [1, 2]


def test_twins_who_can_be_told_apart_end_up_on_their_sides() -> None:
    """Whoever is first in a pair; all of them are near enough to be in one cluster."""
    base, one, other = make_people(3)
    twins = [make_faces(base + 0.6 * own, 5, noise=0.05, seed=seed) for seed, own in enumerate((one, other))]
    pairs = np.array([[0, 5], [6, 1], [2, 7], [8, 3], [4, 9]])

    leaving = find_twins(np.concatenate(twins), np.zeros(10, int), pairs, 0.1).tolist()

    assert leaving in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_the_last_merge_of_a_cluster_and_its_two_sides_are_found() -> None:
    near, far, else_ = make_people(3)
    mixed = near + 0.5 * far
    vectors = np.concatenate(
        [make_faces(near, 4, 0.2), make_faces(mixed / np.linalg.norm(mixed), 3, 0.2, seed=1), make_faces(else_, 2, 0.2)]
    )
    result = cluster_tracks(vectors, 0.5, Conflicts.of([]))
    assert len(set(result.labels.tolist())) == 2

    [parting] = find_last_merges(result.merges, result.labels, 0.9)

    assert (parting.first.tolist(), parting.second.tolist()) == ([0, 1, 2, 3], [4, 5, 6])
    assert parting.merge.sizes == (4, 3)
    assert find_last_merges(result.merges, result.labels, 0.6) == [], "above it no merge is doubtful"


def test_a_merge_is_surer_the_more_alike_its_sides_are() -> None:
    rated = [rate_merge(position) for position in (0.0, 0.25, 0.5, 1.0)]

    assert rated == sorted(rated)
    assert rated[0] < 0.5 < rated[1] < 0.7
    assert rated[-1] > 0.98
    assert rate_merge(-1e6) == 0.0, "where strangers are all but one, the scale goes far down"
