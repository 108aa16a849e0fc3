"""Outliers leave, singletons find their cluster, and conflicts hold whatever happens."""

from __future__ import annotations

import numpy as np

from cleanup.algorithms.average_linkage import Conflicts
from cleanup.algorithms.track_clustering import attach_singletons, eject_outliers, find_twins, find_view_merges
from tests.builders import make_faces, make_people

NONE = Conflicts.of([])


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


def test_a_singleton_joins_the_cluster_it_belongs_to() -> None:
    people = make_people(2)
    vectors = np.concatenate([make_faces(people[0], 5), make_faces(people[0], 1, noise=0.9, seed=9), people[1:2]])
    labels = np.array([0, 0, 0, 0, 0, 1, 2])

    joins = attach_singletons(vectors, labels, NONE, min_similarity=0.5, n_neighbours=30)

    assert [(i, label) for i, label, _ in joins] == [(5, 0)]


def test_a_singleton_in_conflict_with_a_cluster_stays_alone() -> None:
    vectors = make_faces(make_people(1)[0], 6)
    labels = np.array([0, 0, 0, 0, 0, 1])

    assert attach_singletons(vectors, labels, Conflicts.of([(5, 2)]), min_similarity=0.5, n_neighbours=30) == []


def two_sided_person(n_frontal: int, n_profile: int, n_both: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of one person: frontal tracks, profile tracks, and tracks that show both; pooled labels keep them apart."""
    frontal, profile = make_people(2)
    views, tracks = [], []
    for i in range(n_frontal + n_both):
        views.append(make_faces(frontal, 1, 0.2, i)[0])
        tracks.append(i)
    for i in range(n_both + n_profile):
        views.append(make_faces(profile, 1, 0.2, 50 + i)[0])
        tracks.append(n_frontal + i)
    labels = np.array([0] * (n_frontal + n_both) + [1] * n_profile)
    return np.array(views), np.array(tracks), labels


def test_tracks_that_show_both_sides_join_profile_and_frontal_clusters() -> None:
    views, tracks, labels = two_sided_person(3, 3, 2)

    merges = find_view_merges(views, tracks, labels, NONE, 0.5)

    assert set(labels) == {0}
    assert [(m.evidence, m.sizes) for m in merges] == [("views", (5, 3))]


def test_one_track_that_shows_both_sides_is_not_enough() -> None:
    views, tracks, labels = two_sided_person(3, 3, 1)

    assert find_view_merges(views, tracks, labels, NONE, 0.5) == []


def test_views_do_not_join_what_shares_a_frame() -> None:
    views, tracks, labels = two_sided_person(3, 3, 2)

    assert find_view_merges(views, tracks, labels, Conflicts.of([(0, 6)]), 0.5) == []
