"""Names are given only where they are clear; metrics count what they say."""

from __future__ import annotations

import numpy as np
import pytest

from cleanup.algorithms.episode_metrics import compute_metrics, find_missed_targets
from cleanup.algorithms.facebank_matching import PersonSimilarity, combine_seeds, decide_match, find_dissent, find_tier


def decide(*similarities: float) -> str:
    people = [PersonSimilarity(f"p{i}", f"P {i}", s) for i, s in enumerate(similarities)]
    return decide_match(people, min_similarity=0.4, min_margin=0.1).status


@pytest.mark.parametrize(
    ("similarities", "status"),
    [
        ((0.7, 0.2), "assigned"),
        ((0.7,), "assigned"),
        ((0.4, 0.3), "assigned"),
        ((0.7, 0.65), "ambiguous"),
        ((0.35, 0.1), "suggested"),
        ((0.35, 0.33), "ambiguous"),
        ((0.2, 0.1), "unknown"),
        ((), "unknown"),
    ],
)
def test_the_decision_follows_similarity_and_margin(similarities: tuple[float, ...], status: str) -> None:
    assert decide(*similarities) == status


@pytest.mark.parametrize(("similarity", "tier"), [(0.39, "likely"), (0.36, "likely"), (0.34, "possible")])
def test_a_suggestion_near_the_threshold_is_likelier(similarity: float, tier: str) -> None:
    assert find_tier(similarity, 0.4) == tier


def test_metrics_of_a_small_episode() -> None:
    metrics = compute_metrics(np.array([0.5, 1.0, 4.0, 4.0]), [1, 3], 2, 120.0)

    assert metrics == {
        "tracks_per_minute": 2.0,
        "short_track_fraction": 0.25,
        "id_switch_rate": 0.5,
        "singleton_fraction": 0.5,
        "largest_cluster_fraction": 0.75,
    }


def test_an_empty_episode_has_zero_everywhere() -> None:
    assert set(compute_metrics(np.zeros(0), [], 0, 0.0).values()) == {0.0}


def test_every_missed_target_gets_a_sentence() -> None:
    metrics = compute_metrics(np.full(100, 0.5), [1] * 100, 90, 60.0)

    sentences = find_missed_targets(metrics)

    assert [s.split(" ")[0] for s in sentences] == [
        "tracks_per_minute", "short_track_fraction", "id_switch_rate", "singleton_fraction",
    ]  # fmt: skip


def test_one_mislabelled_seed_does_not_speak_alone() -> None:
    assert combine_seeds(0.6, 0.6) == 0.6
    assert combine_seeds(0.6, 0.1) < combine_seeds(0.55, 0.5)


@pytest.mark.parametrize(
    ("votes", "dissent"),
    [
        (["a"] * 8, {}),
        (["a"] * 7 + ["b"], {}),
        (["a"] * 6 + ["b", "c"], {"b": 1, "c": 1}),
        (["a", "b"], {"b": 1}),
        ([], {}),
    ],
)
def test_members_that_clearly_are_somebody_else_keep_a_cluster_unnamed(
    votes: list[str], dissent: dict[str, int]
) -> None:
    assert find_dissent("a", votes) == dissent
