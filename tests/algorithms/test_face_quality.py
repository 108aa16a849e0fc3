"""Quality falls with what spoils an embedding, and each gate names its own reason."""

from __future__ import annotations

import numpy as np
import pytest

from cleanup.algorithms.face_quality import (
    REJECT_REASONS,
    AgreementScale,
    QualityGates,
    combine_quality,
    estimate_occlusion,
    estimate_trust,
    find_reject_reasons,
    measure_agreement,
    score_face,
)
from tests.builders import make_faces, make_people

SCALE = AgreementScale(0.20, 0.70)
OPEN = QualityGates(0, 0, 0, 0, 90, 90, 1, -1, 0)
GOOD = {"size_px": 100.0, "confidence": 0.9, "sharpness": 200.0, "contrast": 50.0, "yaw": 0.0, "pitch": 0.0,
        "occlusion": 0.0, "agreement": 0.9, "quality": 0.8}  # fmt: skip


def test_a_perfect_face_scores_one_and_the_weights_are_the_documented_ones() -> None:
    one, zero = np.ones(1), np.zeros(1)

    assert score_face(one, one * 112, one * 100, zero, zero)[0] == pytest.approx(1.0)
    assert score_face(one, zero, zero, one * 90, zero)[0] == pytest.approx(0.4)
    assert score_face(zero, one * 112, zero, one * 90, zero)[0] == pytest.approx(0.3)
    assert score_face(zero, zero, one * 100, one * 90, zero)[0] == pytest.approx(0.2)
    assert score_face(zero, zero, zero, zero, zero)[0] == pytest.approx(0.1)


def test_an_unknown_confidence_neither_helps_nor_harms() -> None:
    unknown, one, zero = np.full(1, np.nan), np.ones(1), np.zeros(1)

    assert score_face(unknown, one * 112, one * 100, zero, zero)[0] == pytest.approx(1.0)
    assert score_face(unknown, zero, zero, one * 90, zero)[0] == pytest.approx(0.0)
    assert estimate_occlusion(np.array([10.0, 5.0]), np.full(2, np.nan)).max() == 0


def test_trust_falls_with_blur_and_with_the_norm() -> None:
    norms = np.array([10.0] * 8 + [10.0, 6.0])
    sharpness = np.array([200.0] * 8 + [20.0, 200.0])

    trust = estimate_trust(norms, sharpness)

    assert trust[:8].min() == 1.0
    assert trust[8:].max() == 0.0


def test_trust_without_pixels_rests_on_the_norm_alone() -> None:
    assert list(estimate_trust(np.ones(3), np.full(3, np.nan))) == [1.0, 1.0, 1.0]


def test_occlusion_needs_both_norm_and_confidence_to_fall() -> None:
    occlusion = estimate_occlusion(np.array([10, 10, 10, 10, 6.0, 6.0]), np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.9]))

    assert occlusion[4] > 0.9
    assert occlusion[5] == 0


def test_the_consensus_is_that_of_the_majority() -> None:
    people = make_people(2)
    faces = np.concatenate([make_faces(people[0], 12), make_faces(people[1], 5)])

    agreement = measure_agreement(faces, np.ones(17), SCALE)

    assert agreement[:12].min() > 0.8
    assert agreement[12:].max() < 0.3


def test_a_face_alone_agrees_with_itself() -> None:
    assert list(measure_agreement(make_people(1), np.ones(1), SCALE)) == [1.0]


def test_opposite_faces_have_no_consensus_but_do_not_fail() -> None:
    vector = make_people(1)

    assert np.isfinite(measure_agreement(np.concatenate([vector, -vector]), np.ones(2), SCALE)).all()


def test_nothing_raises_the_score() -> None:
    assert combine_quality(np.array([0.5]), np.array([1.0]), np.array([1.0]), SCALE)[0] == pytest.approx(0.5)
    assert combine_quality(np.array([0.5]), np.array([0.0]), np.array([1.0]), SCALE)[0] == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("reason", "change", "gates"),
    [
        ("too_small", {"size_px": 10}, {"min_size_px": 20}),
        ("low_confidence", {"confidence": 0.3}, {"min_confidence": 0.5}),
        ("blurry", {"sharpness": 5}, {"min_sharpness": 18}),
        ("low_contrast", {"contrast": 2}, {"min_contrast": 10}),
        ("extreme_pose", {"yaw": -70}, {"max_yaw_deg": 60}),
        ("extreme_pose", {"pitch": 50}, {"max_pitch_deg": 45}),
        ("occluded", {"occlusion": 0.8}, {"max_occlusion": 0.6}),
        ("mixed", {"agreement": 0.1}, {"min_agreement": 0.4}),
        ("low_quality", {"quality": 0.2}, {"min_quality": 0.35}),
    ],
)
def test_each_gate_names_its_reason(reason: str, change: dict[str, float], gates: dict[str, float]) -> None:
    parts = {k: np.array([v, change.get(k, v)], float) for k, v in GOOD.items()}

    assert find_reject_reasons(QualityGates(**{**vars(OPEN), **gates}), parts) == [None, reason]
    assert reason in REJECT_REASONS


def test_what_was_not_measured_fails_no_gate() -> None:
    parts = {k: np.array([v]) for k, v in GOOD.items()} | {"sharpness": np.array([np.nan])}

    assert find_reject_reasons(QualityGates(0, 0, 18, 0, 90, 90, 1, -1, 0), parts) == [None]
