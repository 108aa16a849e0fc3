"""Places similarity thresholds from the evidence an episode holds for free.

Models differ in scale: what separates people at 0.35 with one needs 0.25 or 0.5 with another. But every episode shows
what the same person looks like (samples of one track) and what two people look like (tracks that share a frame). Tracks
that share a frame may also be one person seen twice (a mirror, a screen, a poster) or twins: pairs that are about as
alike as one person are no evidence of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Below these numbers the distributions are anecdotes and the configured value holds.
_MIN_SAME, _MIN_DIFFERENT = 30, 12
# The low end of "same": blur and occlusion reach further down and are no evidence of scale.
_SAME_PERCENTILE = 10
# The high end of "different": median plus so many robust standard deviations, about the 99.4th percentile of a normal
# distribution; a plain percentile would follow the few pairs that are two people who look alike.
_DIFFERENT_SIGMAS = 2.5
_MAD_TO_SIGMA = 1.4826
# Two people who are always seen together give many pairs of one similarity and no spread. Over many people the spread
# is about a twelfth of the way from two people to one, whatever the model's scale; less is not believed.
_MIN_RELATIVE_SPREAD = 0.08
# Where between two people and one a pair in one frame may be one person: look-alikes stay below it; reflections and
# pictures in the picture, which are worse copies, come down to near it.
_SEEN_TWICE_POSITION = 0.70
# What two people look like is learned from the least alike pairs first: the rest may be one person seen twice.
_LEAST_ALIKE_SHARE = 0.25
_SHOWN_PERCENTILES = (1, 10, 50, 90, 99)


@dataclass(frozen=True)
class Evidence:
    """Similarities of pairs known to be one person, and of pairs in one frame, which are two people but for some.

    Attributes:
        same: Cosines, shape (n,).
        together: Cosines, shape (m,); one figure per pair of tracks, not per frame.
    """

    same: NDArray[np.float64]
    together: NDArray[np.float64]

    @property
    def same_low(self) -> float:
        """Where one person's similarities begin."""
        return float(np.percentile(self.same, _SAME_PERCENTILE))

    @property
    def different(self) -> NDArray[np.float64]:
        """The pairs in one frame that are two people; cosines, shape (k,), ascending."""
        return np.sort(self.together[self.together <= self.seen_twice_limit])

    @property
    def different_high(self) -> float:
        """Where two people's similarities end."""
        return self._end_of(self.different)

    @cached_property
    def seen_twice_limit(self) -> float:
        """The cosine above which a pair in one frame may be one person seen twice; infinite where nothing tells.

        Most pairs may be one person (a dancer before a mirror), so the end of two people is found from below: from the
        least alike pairs, and then again from all pairs below the limit that these give, until no more come in.
        """
        if len(self.same) < _MIN_SAME:
            return np.inf
        ordered = np.sort(self.together)
        n_below = int(np.searchsorted(ordered, self.same_low))
        if n_below < _MIN_DIFFERENT:
            return self.same_low
        n_taken, n_more = 0, int(np.ceil(_LEAST_ALIKE_SHARE * n_below))
        while n_more > n_taken:
            n_taken = n_more
            end = self._end_of(ordered[:n_taken])
            limit = end + _SEEN_TWICE_POSITION * max(self.same_low - end, 0.0)
            n_more = int(np.searchsorted(ordered, limit, side="right"))
        return limit

    def _end_of(self, different: NDArray[np.float64]) -> float:
        median = float(np.median(different))
        spread = _MAD_TO_SIGMA * float(np.median(np.abs(different - median)))
        least = _MIN_RELATIVE_SPREAD * max(self.same_low - median, 0.0)
        return median + _DIFFERENT_SIGMAS * max(spread, least)

    def explain_shortage(self) -> str | None:
        """Why this evidence places no threshold, or None if it does."""
        if len(self.same) < _MIN_SAME:
            return f"only {len(self.same)} pairs of one person, {_MIN_SAME} are needed"
        if len(self.different) < _MIN_DIFFERENT:
            return f"only {len(self.different)} pairs of two people in one frame, {_MIN_DIFFERENT} are needed"
        if self.same_low <= self.different_high:
            return "pairs of one person and pairs of two overlap"
        return None

    def describe(self) -> dict[str, Any]:
        """Both distributions, for the report."""

        def summary(values: NDArray[np.float64]) -> dict[str, Any]:
            shown = np.percentile(values, _SHOWN_PERCENTILES).round(4).tolist() if len(values) else []
            return {"n": len(values), **dict(zip((f"p{p}" for p in _SHOWN_PERCENTILES), shown, strict=False))}

        limit = self.seen_twice_limit
        return {
            "same_person": summary(self.same),
            "different_people": summary(self.different),
            "maybe_seen_twice": {
                "n": int((self.together > limit).sum()),
                "above": round(limit, 4) if np.isfinite(limit) else None,
            },
        }


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and how it came about.

    Attributes:
        value: The cosine.
        source: ``evidence``, ``configured`` (too little evidence) or ``explicit``.
        reason: In words.
    """

    value: float
    source: str
    reason: str

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return {"value": round(self.value, 4), "source": self.source, "reason": self.reason}


def place_threshold(evidence: Evidence, position: float, configured: float, *, is_auto: bool) -> ThresholdChoice:
    """Places a threshold between where two people end and where one person begins.

    Args:
        evidence: The episode's evidence.
        position: 0 at the end of "different", 1 at the beginning of "same".
        configured: The value where nothing is placed.
        is_auto: False obeys the configured value without a look at the evidence.
    """
    if not is_auto:
        return ThresholdChoice(configured, "explicit", "given explicitly")
    shortage = evidence.explain_shortage()
    if shortage is not None:
        return ThresholdChoice(configured, "configured", shortage)
    low, high = evidence.different_high, evidence.same_low
    value = low + position * (high - low)
    reason = f"{position:g} of the way from {low:.3f} (two people end) to {high:.3f} (one person begins)"
    return ThresholdChoice(round(value, 4), "evidence", reason)
