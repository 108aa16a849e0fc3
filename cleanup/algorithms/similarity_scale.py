"""Where a model's similarities begin: what two different people look like to it, learned from the episode itself.

Models differ in scale. Two people are at a cosine of 0 with one, at 0.4 or 0.85 with another; one person is at 1 with
all of them. So thresholds are said on a scale on which strangers are at 0 and a face and itself at 1, and are carried
over to the cosines of the model at hand. What strangers look like is the median of the pairs that are two people, and
an episode shows thousands of them: tracks in one frame, and tracks of different clusters. It does not show what one
person looks like in two shots: the samples of one track are of one light and one pose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks

# Positions on the scale. Means over two clusters of one person come down to about a quarter of the way, means over two
# people stay below it, whatever the model; single pairs of strangers reach 0.2 and, one in a thousand, a half.
CUT_POSITION = 0.25
SEEN_TWICE_POSITION = 0.50
# Fewer pairs in one frame are anecdotes; a third of them may be one person seen twice without changing their quartile.
_MIN_TOGETHER = 6
# People between whom strangers are measured: below three a single pair of people decides.
_MIN_CLUSTERS, _MIN_PAIRS = 3, 12
# Strangers lie close to each other on the scale: their lower tail, from the quartile, is no longer than this.
_MAX_TAIL = 0.25
_MAX_ROUNDS, _TOLERANCE = 6, 1e-3
# Tracks that are compared with each other; more tell nothing more.
_MAX_TRACKS = 1500

# So many people have to be on photos before they tell what two people look like.
MIN_PEOPLE = 3

EPISODE, CALIBRATION, ASSUMED = "episode", "calibration", "assumed"


@dataclass(frozen=True)
class SimilarityScale:
    """The similarities of a model.

    Attributes:
        strangers: Median cosine of two different people.
        source: ``episode``, ``calibration`` (measured on photos of known people) or ``assumed``: nothing tells, and
            strangers are taken to be at 0.
        n_pairs: Pairs the median is of.
    """

    strangers: float = 0.0
    source: str = ASSUMED
    n_pairs: int = 0

    def at(self, position: float) -> float:
        """The cosine at a place on the scale: 0 is strangers, 1 is a face and itself."""
        return self.strangers + position * (1.0 - self.strangers)

    def width(self, position: float) -> float:
        """The difference of cosines that a difference on the scale is."""
        return position * (1.0 - self.strangers)

    def position_of(self, cosine: float) -> float:
        """The place of a cosine on the scale."""
        return (cosine - self.strangers) / max(1.0 - self.strangers, 1e-6)

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return {"strangers": round(self.strangers, 4), "source": self.source, "pairs": self.n_pairs}


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and how it came about.

    Attributes:
        value: The cosine.
        source: ``explicit``, or the source of the scale.
        reason: In words.
    """

    value: float
    source: str
    reason: str

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return {"value": round(self.value, 4), "source": self.source, "reason": self.reason}


_REASONS = {
    EPISODE: "{position:g} of the way from {strangers:.3f} (two people of this episode) to 1",
    CALIBRATION: "{position:g} of the way from {strangers:.3f} (two people on photos) to 1; the episode shows too few",
    ASSUMED: "{position:g}, as configured: the episode shows too few people to tell the model's scale",
}


def place_threshold(scale: SimilarityScale, position: float, *, is_auto: bool) -> ThresholdChoice:
    """A threshold on a model's scale; a number that was given explicitly is a cosine and is obeyed as it is."""
    if not is_auto:
        return ThresholdChoice(position, "explicit", "given explicitly")
    reason = _REASONS[scale.source].format(position=position, strangers=scale.strangers)
    return ThresholdChoice(round(scale.at(position), 4), scale.source, reason)


def measure_scale(
    vectors: NDArray[np.floating], together: NDArray[np.int64], calibrated: SimilarityScale | None = None
) -> SimilarityScale:
    """Measures what two people look like, from the vectors of an episode's tracks.

    Tracks are clustered, the median over the pairs of different clusters is taken for strangers, the cut moves with it,
    and so on until nothing changes. Pairs in one frame, of which most are two people, say where to begin if there are
    enough of them and they lie as close together as strangers do.

    Args:
        vectors: Unit rows, one per track, shape (n, d).
        together: Index pairs of tracks that share a frame, shape (m, 2).
        calibrated: What is known of the model from elsewhere; holds where the episode tells nothing.
    """
    known = calibrated or SimilarityScale()
    chosen = _spread(len(vectors))
    if len(chosen) < _MIN_CLUSTERS:
        return known
    rows = np.asarray(vectors, np.float64)[chosen]
    place = np.full(len(vectors), -1)
    place[chosen] = np.arange(len(chosen))
    pairs = place[together.reshape(-1, 2)]
    pairs = np.unique(np.sort(pairs[(pairs >= 0).all(axis=1)], axis=1), axis=0)
    cosines = (rows @ rows.T).round(6)
    beside = cosines[pairs[:, 0], pairs[:, 1]]
    for start in _find_starts(beside, cosines[np.triu_indices(len(rows), 1)], known):
        found = _settle(rows, cosines, pairs, start)
        if found is not None:
            return found
    return known


def _find_starts(
    beside: NDArray[np.float64], everything: NDArray[np.float64], known: SimilarityScale
) -> Iterator[SimilarityScale]:
    """First guesses of what strangers look like, rather too low than too high."""
    far = known.at(SEEN_TWICE_POSITION)
    low, quartile = np.percentile(beside, (10, 25)) if len(beside) else (-1.0, -1.0)
    # Those in one frame are no more alike than any two tracks; a face and its reflection are. Where they are no
    # reflections, and all as alike as one person would be with the model that is assumed, it is another model.
    are_strangers = quartile <= np.percentile(everything, 75)
    is_believed = known.source == CALIBRATION or quartile <= far or are_strangers
    if len(beside) >= _MIN_TOGETHER and quartile - low <= _MAX_TAIL * (1.0 - quartile) and is_believed:
        yield SimilarityScale(float(quartile))
    else:
        yield known
    if known.source == ASSUMED and len(beside) and beside.min() > far and are_strangers:
        yield SimilarityScale(float(np.median(everything)))


def _settle(
    rows: NDArray[np.float64],
    cosines: NDArray[np.float64],
    pairs: NDArray[np.int64],
    scale: SimilarityScale,
) -> SimilarityScale | None:
    """Clusters and measures in turn until nothing changes; None where that ends with too few people to learn from."""
    first, second = np.triu_indices(len(cosines), 1)
    everything, beside = cosines[first, second], cosines[pairs[:, 0], pairs[:, 1]]
    for _ in range(_MAX_ROUNDS):
        walls = Conflicts(pairs[beside <= scale.at(SEEN_TWICE_POSITION)])
        labels = cluster_tracks(rows, scale.at(CUT_POSITION), walls).labels
        apart = everything[labels[first] != labels[second]]
        if labels.max() + 1 < _MIN_CLUSTERS or len(apart) < _MIN_PAIRS:
            return None
        # Many people cannot all be unlike each other; a few may happen to be, and would pull the cut down.
        measured = SimilarityScale(max(float(np.median(apart)), 0.0), EPISODE, len(apart))
        if abs(measured.strangers - scale.strangers) < _TOLERANCE:
            break
        scale = measured
    return measured


@dataclass(frozen=True)
class SamePerson:
    """How alike photos of one person are: pairs, and median and 10th percentile of their cosines."""

    n_pairs: int
    median: float
    tenth: float


def calibrate_scale(vectors: NDArray[np.floating], people: Sequence[str]) -> SimilarityScale | None:
    """Measures what two people look like, from photos of people who are known.

    Args:
        vectors: Unit rows, one per photo, or the mean of a person's, shape (n, d).
        people: Who is on each.

    Returns:
        The scale by the median over pairs of people, each of which counts by its mean whatever the number of photos;
        None where there are fewer than three people.
    """
    owners, place = np.unique(np.array(people, str), return_inverse=True)
    if len(owners) < MIN_PEOPLE:
        return None
    # The mean over all pairs of two people's photos is the product of the two means.
    means = np.zeros((len(owners), np.shape(vectors)[1]))
    np.add.at(means, place, np.asarray(vectors, np.float64))
    means = (means / np.bincount(place)[:, None])[_spread(len(owners))]
    apart = (means @ means.T)[np.triu_indices(len(means), 1)]
    return SimilarityScale(max(round(float(np.median(apart)), 4), 0.0), CALIBRATION, len(apart))


def measure_same_person(vectors: NDArray[np.floating], people: Sequence[str]) -> SamePerson | None:
    """How alike one person's photos are, over those who have several; arguments as in ``calibrate_scale``."""
    owners = np.array(people, str)
    cosines = []
    for person in np.unique(owners):
        rows = np.asarray(vectors, np.float64)[np.flatnonzero(owners == person)]
        rows = rows[_spread(len(rows))]
        cosines.append((rows @ rows.T)[np.triu_indices(len(rows), 1)])
    pairs = np.concatenate(cosines) if cosines else np.zeros(0)
    return SamePerson(len(pairs), float(np.median(pairs)), float(np.percentile(pairs, 10))) if len(pairs) else None


def _spread(n_rows: int) -> NDArray[np.int64]:
    """Places of all rows, or of as many as tell enough."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, _MAX_TRACKS)).astype(np.int64))
