"""Alignment agrees with InsightFace's, and the pose has the right signs."""

from __future__ import annotations

import numpy as np
import pytest

from cleanup.algorithms.face_alignment import ARCFACE_TEMPLATE, estimate_pose, estimate_similarity


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_similarity_is_insightfaces() -> None:
    from insightface.utils.face_align import estimate_norm

    rng = np.random.default_rng(0)
    landmarks = ARCFACE_TEMPLATE * 1.7 + rng.normal(0, 3, (20, 5, 2)) + [300, 120]

    ours = estimate_similarity(landmarks)

    for matrix, points in zip(ours, landmarks, strict=True):
        assert matrix == pytest.approx(estimate_norm(points.astype(np.float32)), abs=1e-3)


def test_landmarks_in_one_point_give_no_matrix_and_an_extreme_pose() -> None:
    landmarks = np.ones((1, 5, 2))

    assert np.isnan(estimate_similarity(landmarks)).all()
    assert estimate_pose(landmarks)[0][0] == 90


@pytest.mark.parametrize(("shift", "sign"), [(9.0, 1), (-9.0, -1), (0.0, 0)])
def test_a_nose_to_the_right_is_a_head_turned_right(shift: float, sign: int) -> None:
    landmarks = ARCFACE_TEMPLATE.copy()[None]
    landmarks[0, 2, 0] += shift

    yaw = estimate_pose(landmarks)[0][0]

    assert np.sign(yaw) == sign if sign else abs(yaw) < 3


def test_pose_does_not_depend_on_size_or_place() -> None:
    landmarks = ARCFACE_TEMPLATE.copy()[None]
    landmarks[0, 2] += [6, -5]

    assert np.array(estimate_pose(landmarks)) == pytest.approx(np.array(estimate_pose(landmarks * 3 + 50)))
