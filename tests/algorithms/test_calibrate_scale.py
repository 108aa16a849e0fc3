"""What photos of known people tell of a model: everybody counts once, however many photos there are of them."""

from __future__ import annotations

import numpy as np
import pytest

from cleanup.algorithms.similarity_scale import CALIBRATION, calibrate_scale, measure_same_person
from tests.builders import make_faces, make_people, push_up

COUNTS = (40, 40, 1, 2, 3, 1, 2)


@pytest.mark.parametrize("push", [0.0, 0.75, 2.4], ids=["ordinary", "strangers near 0.36", "near 0.85"])
def test_two_people_of_whom_there_are_many_photos_count_as_one_pair(push: float) -> None:
    """The first two look like each other, and 1600 of 2,600 pairs of photos are theirs."""
    looks = make_people(len(COUNTS), 128)
    looks[1] = looks[0] + 0.8 * looks[1]
    looks[1] /= np.linalg.norm(looks[1])
    photos = np.concatenate([make_faces(looks[i], n, 0.3, seed=i) for i, n in enumerate(COUNTS)])
    people = [f"p{i}" for i, n in enumerate(COUNTS) for _ in range(n)]

    scale = calibrate_scale(push_up(photos, push), people)

    assert scale is not None and (scale.source, scale.n_pairs) == (CALIBRATION, 21)
    assert scale.strangers == pytest.approx(push**2 / (1 + push**2), abs=0.05)


def test_it_is_the_same_by_the_means_of_people() -> None:
    people = ["b", "a", "c", "a", "b", "d"]
    vectors = push_up(make_faces(make_people(1)[0], 6, 0.9), 0.5)
    names = sorted(set(people))
    means = np.array(
        [np.mean([v for v, p in zip(vectors, people, strict=True) if p == name], axis=0) for name in names]
    )

    assert calibrate_scale(vectors, people) == calibrate_scale(means, names)


def test_two_people_tell_nothing() -> None:
    assert calibrate_scale(make_people(4), ["a", "b", "a", "b"]) is None
    assert calibrate_scale(np.zeros((0, 8)), []) is None


def test_one_persons_photos_are_compared_with_each_other_alone() -> None:
    looks = make_people(3)
    same = measure_same_person(np.concatenate([np.repeat(looks[:1], 3, axis=0), looks[1:], looks[2:]]), list("aaabcc"))

    assert same is not None and (same.n_pairs, same.median, same.tenth) == (4, pytest.approx(1), pytest.approx(1))
    assert measure_same_person(looks, list("abc")) is None
