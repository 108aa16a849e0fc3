"""Thresholds follow the evidence where there is enough of it, and a number given is obeyed."""

from __future__ import annotations

import numpy as np
import pytest
from cleanup.algorithms.threshold_evidence import Evidence, place_threshold
from numpy.typing import NDArray


def make_evidence(same: float, different: float, n_same: int = 200, n_different: int = 60) -> Evidence:
    rng = np.random.default_rng(0)
    return Evidence(rng.normal(same, 0.03, n_same), rng.normal(different, 0.05, n_different))


@pytest.mark.parametrize(("same", "different"), [(0.9, 0.05), (0.6, -0.1), (0.95, 0.5)])
def test_the_threshold_lies_between_two_people_and_one(same: float, different: float) -> None:
    choice = place_threshold(make_evidence(same, different), 0.35, 0.52, is_auto=True)

    assert choice.source == "evidence"
    assert different + 0.1 < choice.value < same - 0.05


def test_a_given_number_is_obeyed() -> None:
    choice = place_threshold(make_evidence(0.9, 0.05), 0.35, 0.61, is_auto=False)

    assert (choice.value, choice.source) == (0.61, "explicit")


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (make_evidence(0.9, 0.05, n_same=5), "only 5 pairs of one person"),
        (make_evidence(0.9, 0.05, n_different=3), "only 3 pairs of two people in one frame"),
        (make_evidence(0.3, 0.25), "overlap"),
        (Evidence(np.zeros(0), np.zeros(0)), "only 0 pairs"),
    ],
)
def test_too_little_evidence_leaves_the_configured_value(evidence: Evidence, reason: str) -> None:
    choice = place_threshold(evidence, 0.35, 0.52, is_auto=True)

    assert (choice.value, choice.source) == (0.52, "configured")
    assert reason in choice.reason
    assert set(evidence.describe()) == {"same_person", "different_people", "maybe_seen_twice"}


def test_a_few_people_seen_twice_do_not_move_the_end_of_two_people() -> None:
    clean = make_evidence(0.9, 0.05)
    dirty = Evidence(clean.same, np.concatenate([clean.different, np.full(4, 0.95)]))

    assert abs(dirty.different_high - clean.different_high) < 0.05


@pytest.mark.parametrize("push", [0.0, 0.75, 2.4], ids=["ordinary", "strangers near 0.4", "strangers near 0.86"])
def test_people_seen_twice_are_no_evidence_of_two_people_whatever_the_scale(push: float) -> None:
    """More than half of the pairs in one frame are a face and its reflection, clear or blurred."""

    def pushed(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((cosines + push**2) / (1 + push**2))

    clean, reflections = make_evidence(0.9, 0.05, n_different=40), np.linspace(0.76, 0.99, 60)
    alone = Evidence(pushed(clean.same), pushed(clean.together))
    mixed = Evidence(alone.same, np.concatenate([alone.together, pushed(reflections)]))

    assert mixed.different == pytest.approx(np.sort(alone.together))
    assert place_threshold(mixed, 0.35, 0.52, is_auto=True) == place_threshold(alone, 0.35, 0.52, is_auto=True)
    assert (pushed(reflections) > mixed.seen_twice_limit).all()


def test_where_everybody_in_a_frame_is_seen_twice_one_persons_similarity_is_the_limit() -> None:
    evidence = Evidence(make_evidence(0.9, 0.05).same, np.linspace(0.93, 0.99, 60))

    assert evidence.seen_twice_limit == evidence.same_low
    assert "only 0 pairs of two people" in str(evidence.explain_shortage())


def test_people_who_look_alike_stay_evidence_of_two_people() -> None:
    alike = np.concatenate([make_evidence(0.9, 0.05).together, [0.45, 0.5, 0.55]])

    assert len(Evidence(make_evidence(0.9, 0.05).same, alike).different) == len(alike)


def test_two_people_always_together_do_not_pull_the_threshold_down() -> None:
    """All pairs are of the same two people, who happen to be very unlike each other."""
    rng = np.random.default_rng(0)
    evidence = Evidence(rng.normal(0.93, 0.03, 200), rng.normal(-0.10, 0.005, 40))

    assert place_threshold(evidence, 0.35, 0.52, is_auto=True).value > 0.35
