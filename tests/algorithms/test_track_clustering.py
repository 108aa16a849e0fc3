"""Clustering is exact average linkage, and conflicts hold whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from cleanup.algorithms.track_clustering import (
    Conflicts,
    attach_singletons,
    cluster_tracks,
    eject_outliers,
    find_components,
    find_view_merges,
    relabel,
)
from tests.builders import make_faces, make_people

NONE = Conflicts.of([])


def make_tracks(n_people: int, n_tracks: int, noise: float, seed: int) -> np.ndarray:
    people = make_people(n_people, 32, seed)
    return np.concatenate([make_faces(p, n_tracks, noise, seed + i) for i, p in enumerate(people)])


@pytest.mark.parametrize("noise", [0.3, 0.9, 1.5])
@pytest.mark.parametrize("cut", [0.2, 0.45, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_the_partition_is_that_of_scikit_learn(noise: float, cut: float, seed: int) -> None:
    vectors = make_tracks(7, 9, noise, seed)
    oracle = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - cut, metric="cosine", linkage="average"
    ).fit_predict(vectors)

    assert adjusted_rand_score(oracle, cluster_tracks(vectors, cut, NONE).labels) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_a_conflict_nobody_would_break_changes_nothing(seed: int) -> None:
    """The constrained path agrees with the free one where the constraint does not bind."""
    vectors = make_tracks(4, 10, 0.6, seed)
    free = cluster_tracks(vectors, 0.4, NONE).labels
    apart = [(i, j) for i in range(40) for j in range(i) if free[i] != free[j]]

    assert np.array_equal(cluster_tracks(vectors, 0.4, Conflicts.of(apart)).labels, free)


def test_two_tracks_in_conflict_never_join_even_when_identical() -> None:
    vectors = np.tile(make_people(1), (4, 1))

    labels = cluster_tracks(vectors, 0.5, Conflicts.of([(0, 1)])).labels

    assert labels[0] != labels[1]
    assert len(set(labels)) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_conflicts_hold(seed: int, pairs: list[tuple[int, int]]) -> None:
    vectors = make_tracks(4, 5, 1.0, seed)
    conflicts = Conflicts.of(pairs)

    labels = cluster_tracks(vectors, 0.2, conflicts).labels

    assert all(labels[a] != labels[b] for a, b in conflicts.pairs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_tracks_does_not_matter(seed: int) -> None:
    vectors = make_tracks(5, 6, 0.9, seed)
    order = np.random.default_rng(seed).permutation(len(vectors))
    place = np.argsort(order)
    conflicts = [(0, 1), (7, 20), (3, 12)]

    labels = cluster_tracks(vectors, 0.35, Conflicts.of(conflicts)).labels
    moved = Conflicts.of((place[a], place[b]) for a, b in conflicts)
    shuffled = cluster_tracks(vectors[order], 0.35, moved).labels

    assert adjusted_rand_score(labels, shuffled[place]) == 1.0


def test_components_are_those_of_the_similarity_graph() -> None:
    vectors = np.array([[1.0, 0], [0.9, np.sqrt(1 - 0.81)], [-1, 0], [0, -1]])

    assert len(set(find_components(vectors, 0.8))) == 3


@pytest.mark.parametrize("n_tracks", [0, 1])
def test_no_track_and_one_track(n_tracks: int) -> None:
    assert list(cluster_tracks(make_people(1)[:n_tracks], 0.5, NONE).labels) == [0] * n_tracks


def test_a_member_unlike_its_cluster_is_ejected() -> None:
    people = make_people(2)
    vectors = np.concatenate([make_faces(people[0], 6), people[1:2]])

    assert list(eject_outliers(vectors, np.zeros(7, int), 0.45)) == [6]


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


def test_noise_keeps_its_label() -> None:
    assert list(relabel(np.array([5, -1, 5, 2]))) == [0, -1, 0, 1]


@pytest.mark.parametrize("pairs", [[], [(0, 19)]], ids=["free", "constrained"])
def test_every_merge_is_told_and_reached_the_cut(pairs: list[tuple[int, int]]) -> None:
    vectors = make_tracks(4, 5, 0.6, 0)

    result = cluster_tracks(vectors, 0.4, Conflicts.of(pairs))

    assert len(result.merges) == len(vectors) - (result.labels.max() + 1)
    assert all(m.similarity >= 0.4 - 1e-6 and m.first < m.second for m in result.merges)
    assert sum(m.n_supporting_pairs == 1 for m in result.merges) > 0


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
