"""Decides which person an identity is, from its similarity to every known person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ASSIGNED, AMBIGUOUS, SUGGESTED, UNKNOWN = "assigned", "ambiguous", "suggested", "unknown"
# Below the threshold by no more than this, a match is worth a person's look but not a name.
_SUGGESTION_BAND = 0.10
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
class MatchDecision:
    """What follows from the similarities of one identity.

    Attributes:
        status: ``assigned``, ``ambiguous`` (two people are too close to each other), ``suggested`` (one person, not
            similar enough) or ``unknown``.
        best: The nearest person, or None where the show has none.
        second: The runner-up, or None.
    """

    status: str
    best: PersonSimilarity | None
    second: PersonSimilarity | None


def find_tier(similarity: float, min_similarity: float) -> str:
    """How sure a suggestion is: ``likely`` in the upper half of the band below the threshold, else ``possible``."""
    return LIKELY if similarity >= min_similarity - _SUGGESTION_BAND / 2 else POSSIBLE


def decide_match(people: Sequence[PersonSimilarity], *, min_similarity: float, min_margin: float) -> MatchDecision:
    """The decision for one identity.

    Args:
        people: Similarity to every person, in any order.
        min_similarity: Similarity from which the nearest person may be named.
        min_margin: Lead over the second person that naming needs.
    """
    ranked = sorted(people, key=lambda p: (-p.similarity, p.person_id))
    best = ranked[0] if ranked else None
    second = ranked[1] if len(ranked) > 1 else None
    if best is None or best.similarity < min_similarity - _SUGGESTION_BAND:
        return MatchDecision(UNKNOWN, best, second)
    if second is not None and best.similarity - second.similarity < min_margin:
        return MatchDecision(AMBIGUOUS, best, second)
    return MatchDecision(ASSIGNED if best.similarity >= min_similarity else SUGGESTED, best, second)
