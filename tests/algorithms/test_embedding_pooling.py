"""Pooling stands on the good faces of a track."""

from __future__ import annotations

import numpy as np

from cleanup.algorithms.embedding_pooling import compute_centroid, find_views, pool_faces
from tests.builders import make_faces, make_people

RULES = {"max_samples": 6, "sim_delta": 0.08, "sim_min": 0.6}


def test_a_stranger_among_the_faces_is_left_out() -> None:
    people = make_people(2)
    faces = np.concatenate([make_faces(people[0], 5), people[1:2]])

    pooled = pool_faces(faces, np.ones(6), **RULES)

    assert 5 not in pooled.used
    assert float(pooled.vector @ people[0]) > 0.97


def test_the_best_faces_are_pooled_first() -> None:
    faces = make_faces(make_people(1)[0], 10, noise=0.2)
    quality = np.linspace(0.1, 1.0, 10)

    assert list(pool_faces(faces, quality, **RULES).used) == [4, 5, 6, 7, 8, 9]


def test_one_face_and_unknown_quality_are_enough() -> None:
    pooled = pool_faces(make_people(1), np.array([np.nan]), **RULES)

    assert np.allclose(pooled.vector, make_people(1)[0])
    assert pooled.spread < 1e-6


def test_a_centroid_of_equal_vectors_has_length_one() -> None:
    centroid = compute_centroid(np.tile(make_people(1), (3, 1)))

    assert round(centroid.norm, 6) == round(centroid.cohesion, 6) == 1


def test_vectors_that_cancel_still_give_a_unit_centroid() -> None:
    vector = make_people(1)

    assert np.linalg.norm(compute_centroid(np.concatenate([vector, -vector])).vector) > 0.99


def test_a_track_that_turns_has_two_views_and_a_stray_face_none() -> None:
    frontal, profile, stray = make_people(3)
    faces = np.concatenate([make_faces(frontal, 5, 0.2), make_faces(profile, 4, 0.2), stray[None]])

    views = find_views(faces, np.linspace(1, 0.5, 10), min_similarity=0.7)

    assert (views @ np.array([frontal, profile]).T).max(axis=0).min() > 0.95
    assert len(views) == 2


def test_a_track_of_one_face_has_one_view() -> None:
    assert len(find_views(make_people(1), np.ones(1), min_similarity=0.7)) == 1
