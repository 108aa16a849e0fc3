"""Decides which person an identity is, from its similarity to every known person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from cleanup.algorithms.similarity_scale import SimilarityScale

ASSIGNED, AMBIGUOUS, SUGGESTED, UNKNOWN = "assigned", "ambiguous", "suggested", "unknown"
# Below the threshold by no more than this, on the model's scale, a match is worth a look but not a name.
_SUGGESTION_BAND = 0.15
# Of this probability a match names; of this one it is worth a person's look, and of this one it is likely.
MIN_PROBABILITY, _SUGGESTED_PROBABILITY, _LIKELY_PROBABILITY = 0.95, 0.50, 0.80
# Of less than this, photos speak against it.
_SPOKEN_AGAINST = 0.05
# Log odds of a match by its place on the model's scale and its lead over the second person there, fitted to identities
# of rendered episodes with photos of two thirds of the people, with two models and on shifted scales.
_INTERCEPT, _PER_POSITION, _PER_LEAD = -3.1, 3.5, 19.5
# Where a second person is at the least: of few photos the next one is far away by chance.
_MIN_SECOND = 0.10
LIKELY, POSSIBLE = "likely", "possible"


# Several seeds of a person have to agree: the second nearest one takes part with this weight, so that one mislabelled
# photo among good ones does not speak alone.
_SECOND_SEED_WEIGHT = 0.25
# From this share of members that clearly are somebody else, an identity is not labelled.
_MIN_DISSENT = 0.25


Similarity = TypeVar("Similarity", float, NDArray[np.float32])


def combine_seeds(best: Similarity, second: Similarity) -> Similarity:
    """Similarity to a person with several seeds: mostly the nearest one, a quarter the second nearest.

    Args:
        best: Cosine to the nearest seed, of one person or of many.
        second: Cosine to the second nearest; of a person with one seed, that to the nearest.
    """
    return best - _SECOND_SEED_WEIGHT * (best - second)


def find_dissent(person_id: str, votes: Sequence[str]) -> dict[str, int]:
    """Votes of an identity's members for other people, if they are too many to ignore; else nothing.

    Args:
        person_id: The person the identity as a whole matches.
        votes: The person each member clearly matches; members that match nobody do not vote.
    """
    others = Counter(v for v in votes if v != person_id)
    return dict(sorted(others.items())) if others and others.total() >= _MIN_DISSENT * len(votes) else {}


@dataclass(frozen=True)
class PersonSimilarity:
    """Similarity of an identity to one person."""

    person_id: str
    name: str
    similarity: float


@dataclass(frozen=True)
class MatchLimits:
    """What a match has to reach.

    Attributes:
        similarity: Cosine.
        margin: Lead over the second person, as a difference of cosines.
        probability: Of the match, by ``rate_match``.
        scale: The model's scale.
    """

    similarity: float
    margin: float
    probability: float
    scale: SimilarityScale


@dataclass(frozen=True)
class MatchDecision:
    """What follows from the similarities of one identity.

    Attributes:
        status: ``assigned``, ``ambiguous`` (two people are too close to each other), ``suggested`` (one person, not
            sure enough) or ``unknown``.
        best: The nearest person, or None where the show has none.
        second: The runner-up, or None.
        probability: That the nearest person is the right one.
    """

    status: str
    best: PersonSimilarity | None
    second: PersonSimilarity | None
    probability: float = 0.0


def rate_match(position: float, second: float | None) -> float:
    """Probability that the nearest person is the right one.

    Args:
        position: Place of the similarity on the model's scale.
        second: That of the second person, or None where there is none.
    """
    lead = position - max(_MIN_SECOND, -1.0 if second is None else second)
    return float(expit(_INTERCEPT + _PER_POSITION * position + _PER_LEAD * lead))


def find_telling_person(
    first: Sequence[PersonSimilarity], second: Sequence[PersonSimilarity], limits: MatchLimits
) -> str | None:
    """The person that one of two vectors clearly is and the other by the photos is not; None where nothing is clear.

    Args:
        first: Similarity of the one to every person, in any order.
        second: Of the other.
        limits: What a match has to reach.
    """
    for near, other in ((first, second), (second, first)):
        decision = decide_match(near, limits)
        if decision.status != ASSIGNED or decision.best is None:
            continue
        person_id = decision.best.person_id
        own = next((p.similarity for p in other if p.person_id == person_id), None)
        rest = [p.similarity for p in other if p.person_id != person_id]
        scale = limits.scale
        place = scale.position_of(own if own is not None else min(rest, default=scale.strangers))
        if rate_match(place, scale.position_of(max(rest)) if rest else None) < _SPOKEN_AGAINST:
            return person_id
    return None


def find_tier(probability: float) -> str:
    """How sure a suggestion is."""
    return LIKELY if probability >= _LIKELY_PROBABILITY else POSSIBLE


def decide_match(people: Sequence[PersonSimilarity], limits: MatchLimits) -> MatchDecision:
    """The decision for one identity, from its similarity to every person, in any order."""
    ranked = sorted(people, key=lambda p: (-p.similarity, p.person_id))
    best = ranked[0] if ranked else None
    second = ranked[1] if len(ranked) > 1 else None
    if best is None:
        return MatchDecision(UNKNOWN, None, None)
    scale = limits.scale
    second_place = None if second is None else scale.position_of(second.similarity)
    probability = rate_match(scale.position_of(best.similarity), second_place)
    if best.similarity < limits.similarity - scale.width(_SUGGESTION_BAND):
        status = UNKNOWN
    elif second is not None and best.similarity - second.similarity < limits.margin:
        status = AMBIGUOUS
    elif best.similarity >= limits.similarity and probability >= limits.probability:
        status = ASSIGNED
    else:
        status = SUGGESTED if probability >= _SUGGESTED_PROBABILITY else UNKNOWN
    return MatchDecision(status, best, second, probability)
