"""Names are given only where they are clear; metrics count what they say."""

from __future__ import annotations

import numpy as np
import pytest

from cleanup.algorithms.episode_metrics import compute_metrics, find_missed_targets
from cleanup.algorithms.facebank_matching import (
    MIN_PROBABILITY,
    MatchLimits,
    PersonSimilarity,
    combine_seeds,
    decide_match,
    find_dissent,
    find_telling_person,
    find_tier,
    rate_match,
)
from cleanup.algorithms.similarity_scale import SimilarityScale

LIMITS = MatchLimits(0.4, 0.1, MIN_PROBABILITY, SimilarityScale())


def people(*similarities: float) -> list[PersonSimilarity]:
    return [PersonSimilarity(f"p{i}", f"P {i}", s) for i, s in enumerate(similarities)]


@pytest.mark.parametrize("strangers", [0.0, 0.4, 0.85])
@pytest.mark.parametrize(
    ("positions", "status"),
    [
        ((0.7, 0.2), "assigned"),
        ((0.7,), "assigned"),
        ((0.42, 0.1), "assigned"),
        ((0.45, 0.3), "suggested"),
        ((0.42, 0.3), "suggested"),
        ((0.7, 0.65), "ambiguous"),
        ((0.38, 0.1), "suggested"),
        ((0.35, 0.33), "ambiguous"),
        ((0.26, 0.25), "ambiguous"),
        ((0.2, 0.1), "unknown"),
        ((), "unknown"),
    ],
)
def test_the_decision_follows_place_and_lead_whatever_the_scale(
    positions: tuple[float, ...], status: str, strangers: float
) -> None:
    scale = SimilarityScale(strangers, "episode", 100)
    limits = MatchLimits(scale.at(0.4), scale.width(0.1), MIN_PROBABILITY, scale)

    assert decide_match(people(*map(scale.at, positions)), limits).status == status


def test_limits_that_are_given_are_enough() -> None:
    limits = MatchLimits(0.4, 0.1, 0.0, SimilarityScale())

    assert decide_match(people(0.45, 0.34), limits).status == "assigned"
    assert decide_match(people(0.45, 0.34), LIMITS).status == "suggested"


def test_a_match_is_surer_the_nearer_and_the_farther_ahead_it_is() -> None:
    assert rate_match(0.5, 0.1) > rate_match(0.4, 0.1) > rate_match(0.4, 0.3) > rate_match(0.3, 0.3)
    assert rate_match(0.6, None) == rate_match(0.6, -0.2), "one photo more or less of somebody far away changes nothing"
    assert rate_match(-1e6, 0.5) == 0.0, "where strangers are all but one, the scale goes far down"
    assert [find_tier(p) for p in (0.9, 0.6)] == ["likely", "possible"]


@pytest.mark.parametrize(
    ("second", "told_apart"),
    [((0.3, 0.6), "p0"), ((0.25, 0.35), "p0"), ((0.35, 0.2), None), ((0.6, 0.1), None)],
    ids=["somebody else", "rather somebody else", "unsure", "the same"],
)
def test_photos_tell_apart_only_what_is_clear(second: tuple[float, ...], told_apart: str | None) -> None:
    clear = people(0.7, 0.1)

    assert find_telling_person(clear, people(*second), LIMITS) == (told_apart if second[0] < 0.6 else None)
    assert (find_telling_person(people(*second), clear, LIMITS) is None) == (told_apart is None)
    assert find_telling_person(people(0.3, 0.2), people(0.2, 0.3), LIMITS) is None, "neither is anybody"


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
