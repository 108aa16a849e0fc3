"""Decides which person an identity is, from its similarity to every known person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ASSIGNED, AMBIGUOUS, SUGGESTED, UNKNOWN = "assigned", "ambiguous", "suggested", "unknown"
# Below the threshold by no more than this, a match is worth a person's look but not a name.
_SUGGESTION_BAND = 0.10


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
