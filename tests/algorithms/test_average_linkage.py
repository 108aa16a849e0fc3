"""Clustering is exact average linkage, however large the components, and conflicts hold whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from cleanup.algorithms import average_linkage
from cleanup.algorithms.average_linkage import Conflicts, are_apart, cluster_tracks, find_components
from cleanup.edges.local_workers import LocalEngine
from cleanup.edges.observation_worker import WorkerSpec
from cleanup.edges.onnx_models import ModelSpec
from cleanup.edges.remote_files import NodeCache
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


@pytest.mark.parametrize("pairs", [[], [(0, 19)]], ids=["free", "constrained"])
def test_every_merge_is_told_and_reached_the_cut(pairs: list[tuple[int, int]]) -> None:
    vectors = make_tracks(4, 5, 0.6, 0)

    result = cluster_tracks(vectors, 0.4, Conflicts.of(pairs))

    assert len(result.merges) == len(vectors) - (result.labels.max() + 1)
    assert all(m.similarity >= 0.4 - 1e-6 and m.first < m.second for m in result.merges)
    assert sum(m.n_pairs == 1 for m in result.merges) > 0


def join_step_by_step(vectors: np.ndarray, cut: float, conflicts: Conflicts) -> np.ndarray:
    """The definition: of all pairs of clusters that may be joined, the most similar one, the first among equals."""
    clusters = [[i] for i in range(len(vectors))]
    similarity = (vectors @ vectors.T).round(9)
    forbidden = {tuple(pair) for pair in conflicts.pairs.tolist()}
    while True:
        options = [
            (-np.mean(similarity[np.ix_(a, b)]).round(9), i, j)
            for i, a in enumerate(clusters)
            for j, b in enumerate(clusters[:i])
            if not any((min(x, y), max(x, y)) in forbidden for x in a for y in b)
        ]
        best = min(((s, min(i, j), max(i, j)) for s, i, j in options), default=(1.0, 0, 0))
        if -best[0] < cut - 1e-9:
            break
        clusters[best[1]] += clusters.pop(best[2])
    labels = np.zeros(len(vectors), int)
    for label, members in enumerate(clusters):
        labels[members] = label
    return labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_conflicts", [0, 12])
def test_the_partition_is_that_of_joining_step_by_step(seed: int, n_conflicts: int) -> None:
    vectors = make_tracks(4, 6, 1.1, seed)
    conflicts = Conflicts.of(map(tuple, np.random.default_rng(seed).integers(0, 24, (n_conflicts, 2)).tolist()))

    labels = cluster_tracks(vectors, 0.25, conflicts).labels

    assert adjusted_rand_score(join_step_by_step(vectors, 0.25, conflicts), labels) == 1.0


@pytest.mark.parametrize("max_dense", [8192, 4])
def test_people_who_are_named_keep_apart_as_all_pairs_of_their_tracks_do(
    monkeypatch: pytest.MonkeyPatch, max_dense: int
) -> None:
    monkeypatch.setattr(average_linkage, "_MAX_DENSE", max_dense)  # all ways of finding the nearest
    for seed in range(12):
        rng = np.random.default_rng(seed)
        vectors, people = make_tracks(3, 8, 1.1, seed), rng.integers(-1, 3, 24)
        named = [(i, j) for i in range(24) for j in range(i) if are_apart(people[i], people[j])]
        shared = list(map(tuple, rng.integers(0, 24, (6, 2)).tolist()))
        pairs = Conflicts.of([*named, *shared])
        mixed = Conflicts(Conflicts.of(shared).pairs, people)

        assert np.array_equal(cluster_tracks(vectors, 0.25, mixed).labels, cluster_tracks(vectors, 0.25, pairs).labels)
        assert mixed.count() == len(pairs.pairs)


@pytest.mark.parametrize("cut", [0.3, 0.5])
def test_identical_tracks_and_ties_are_joined_in_order(cut: float) -> None:
    """Ten tracks of one picture, ten of another, at equal distances; a conflict decides who may join whom."""
    people = make_people(2)
    half = (people[0] + people[1]) / np.sqrt(2)
    vectors = np.concatenate([np.tile(people[:1], (10, 1)), np.tile(people[1:], (10, 1)), half[None]])

    labels = cluster_tracks(vectors, cut, NONE).labels

    assert np.array_equal(labels, join_step_by_step(vectors, cut, NONE))
    assert labels[20] == labels[0] != labels[10]


def test_a_mean_of_just_the_cut_joins() -> None:
    vectors = np.array([[1.0, 0.0], [0.6, 0.8]])

    assert len(set(cluster_tracks(vectors, 0.6, NONE).labels)) == 1


@pytest.mark.parametrize("n_conflicts", [0, 600])
@pytest.mark.parametrize("min_round_share", [0.02, 2.0], ids=["rounds", "rows-on-demand"])
def test_a_component_too_large_for_a_matrix_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch, min_round_share: float, n_conflicts: int
) -> None:
    vectors = make_tracks(12, 40, 1.2, 3)
    conflicts = Conflicts.of(map(tuple, np.random.default_rng(0).integers(0, 480, (n_conflicts, 2)).tolist()))
    whole = cluster_tracks(vectors, 0.25, conflicts)
    assert np.bincount(find_components(vectors.astype(np.float32), 0.25)).max() > 400

    monkeypatch.setattr(average_linkage, "_MAX_DENSE", 32)
    monkeypatch.setattr(average_linkage, "_BLOCK", 64)
    monkeypatch.setattr(average_linkage, "_MAX_PAIRS", 100)
    monkeypatch.setattr(average_linkage, "_MIN_ROUND_SHARE", min_round_share)
    piecewise = cluster_tracks(vectors, 0.25, conflicts)

    assert np.array_equal(piecewise.labels, whole.labels)
    assert [(m.first, m.second, m.sizes) for m in piecewise.merges] == [
        (m.first, m.second, m.sizes) for m in whole.merges
    ]


def test_components_may_be_linked_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_tracks(6, 20, 0.3, 0)
    spec = WorkerSpec(ModelSpec("none"), NodeCache("none", 0), 1, 0.5, 0.5, 0.7)
    monkeypatch.setattr(average_linkage, "_WORTH_SPREADING", 0)
    asked = []

    def run_many(function, tasks):
        asked.append(len(tasks))
        return LocalEngine(lambda: spec).run_many(function, tasks)

    spread = cluster_tracks(vectors, 0.4, NONE, run_many)

    assert asked[0] > 1
    assert spread.merges == cluster_tracks(vectors, 0.4, NONE).merges
