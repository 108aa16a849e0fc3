"""The appearance gate: finds where a track changes person.

A gate in the manner of ByteTrack-style trackers (similarity to a running prototype, hard and soft limits, box overlap)
proposes candidates. A proposal alone proves nothing: one blurred, covered or turned face makes the similarity fall as
well. So the candidates only cut the track into segments; adjacent segments that show the same person are joined again,
and short segments whose faces cannot be trusted never stand between two people.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_quality import estimate_trust

# Samples next to a boundary that speak for a segment there; a longer window would mix in earlier head poses.
_N_LOCAL = 5
# A segment speaks for a person of its own with this much summed trust: two good samples that agree.
_MIN_SUPPORT = 1.5
# A run of untrusted samples is taken for a burst of blur or an occlusion up to this length; longer ones are somebody.
_MAX_BURST_S = 1.0


@dataclass(frozen=True)
class GateThresholds:
    """Thresholds of the gate; similarities are cosines.

    Attributes:
        hard: Similarity to the prototype below which one sample proposes a change.
        soft: Similarity below which ``streak`` samples in a row propose a change.
        streak: Number of samples for ``soft``.
        min_iou: Overlap of consecutive boxes below which a change is proposed.
        prototype_momentum: Share of the old prototype kept at each update.
        same_person: Similarity of what lies before and after from which a proposal is refused.
    """

    hard: float
    soft: float
    streak: int
    min_iou: float
    prototype_momentum: float
    same_person: float


@dataclass(frozen=True)
class Candidate:
    """A proposed change.

    Attributes:
        index: First sample of what comes after.
        reason: ``hard``, ``streak`` or ``iou``.
        similarity: Cosine between what lies before and after, at the moment of the decision.
        is_split: Whether the proposal was confirmed.
    """

    index: int
    reason: str
    similarity: float
    is_split: bool


@dataclass
class _Segment:
    start: int
    stop: int
    reason: str

    def __len__(self) -> int:
        return self.stop - self.start


def compute_consecutive_iou(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of each box with the one before it; shape (n,), the first is 1.

    Args:
        boxes: Corners x1, y1, x2, y2, shape (n, 4).
    """
    if len(boxes) == 0:
        return np.ones(0)
    a, b = np.asarray(boxes[:-1], np.float64), np.asarray(boxes[1:], np.float64)
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    intersection = sides.prod(axis=1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return np.concatenate([[1.0], intersection / np.maximum(area_a + area_b - intersection, 1e-9)])


def propose_candidates(
    embeddings: NDArray[np.floating], boxes: NDArray[np.floating], thresholds: GateThresholds
) -> list[tuple[int, str]]:
    """Walks one track in time order and proposes changes.

    Args:
        embeddings: Unit rows in time order, shape (n, d).
        boxes: Boxes of the same samples, shape (n, 4).
        thresholds: The limits.

    Returns:
        Pairs (index of the first sample after the change, reason), in order.
    """
    proposals: list[tuple[int, str]] = []
    ious = compute_consecutive_iou(boxes)
    prototype = np.asarray(embeddings[0], np.float64) if len(embeddings) else np.zeros(0)
    n_low = 0
    for i in range(1, len(embeddings)):
        sample = np.asarray(embeddings[i], np.float64)
        similarity = float(prototype @ sample)
        n_low = n_low + 1 if similarity < thresholds.soft else 0
        reason, index = None, i
        if similarity < thresholds.hard:
            reason = "hard"
        elif n_low >= thresholds.streak:
            reason, index = "streak", i - n_low + 1
        elif ious[i] < thresholds.min_iou:
            reason = "iou"
        if reason is not None:
            proposals.append((index, reason))
            prototype, n_low = sample, 0
        elif similarity >= thresholds.soft:
            prototype = thresholds.prototype_momentum * prototype + (1 - thresholds.prototype_momentum) * sample
            prototype /= max(float(np.linalg.norm(prototype)), 1e-9)
    return proposals


class _Track:
    """The samples of one track with the similarities its segments are judged by."""

    def __init__(
        self, embeddings: NDArray[np.floating], times_s: NDArray[np.floating], trust: NDArray[np.floating]
    ) -> None:
        self.embeddings = np.asarray(embeddings, np.float64)
        self.times_s = np.asarray(times_s, np.float64)
        self.trust = np.asarray(trust, np.float64)
        steps = np.diff(self.times_s)
        self.step_s = float(np.median(steps)) if len(steps) else 0.0

    def duration_s(self, segment: _Segment) -> float:
        return float(self.times_s[segment.stop - 1] - self.times_s[segment.start]) + self.step_s

    def support(self, segment: _Segment) -> float:
        return float(self.trust[segment.start : segment.stop].sum())

    def stands_alone(self, segment: _Segment) -> bool:
        return self.support(segment) >= _MIN_SUPPORT or (self.duration_s(segment) >= _MAX_BURST_S and len(segment) >= 2)

    def centre(self, indices: NDArray[np.intp]) -> NDArray[np.float64]:
        weights = self.trust[indices] + 1e-3
        mean = weights @ self.embeddings[indices]
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9))

    def similarity(self, before: _Segment, after: _Segment) -> float:
        """The higher of two views: the samples next to the boundary, and the segments as a whole."""
        local = self.centre(self._nearest(before, is_end=True)) @ self.centre(self._nearest(after, is_end=False))
        whole = self.centre(np.arange(before.start, before.stop)) @ self.centre(np.arange(after.start, after.stop))
        return float(max(local, whole))

    def _nearest(self, segment: _Segment, *, is_end: bool) -> NDArray[np.intp]:
        indices = np.arange(segment.start, segment.stop)
        trusted = indices[self.trust[indices] >= 0.5]
        chosen = trusted if len(trusted) else indices
        return chosen[-_N_LOCAL:] if is_end else chosen[:_N_LOCAL]

    def best_boundary(self, burst: _Segment, before: _Segment, after: _Segment) -> int:
        """Where to divide a burst so that its samples lie with the side they resemble more."""
        samples = self.embeddings[burst.start : burst.stop]
        lead = samples @ self.centre(self._nearest(before, is_end=True)) - samples @ self.centre(
            self._nearest(after, is_end=False)
        )
        return burst.start + int(np.argmax(np.concatenate([[0.0], np.cumsum(lead)])))


@dataclass(frozen=True)
class GateSamples:
    """The samples of one track in time order.

    Attributes:
        embeddings: Unit rows, shape (n, d).
        boxes: Corners x1, y1, x2, y2, shape (n, 4).
        times_s: Times in seconds, shape (n,), ascending.
        norms: Norms of the raw embeddings, shape (n,).
        sharpness: Laplacian variances, shape (n,); NaN where no pixels were read.
    """

    embeddings: NDArray[np.floating]
    boxes: NDArray[np.floating]
    times_s: NDArray[np.floating]
    norms: NDArray[np.floating]
    sharpness: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, part: slice) -> GateSamples:
        return GateSamples(
            self.embeddings[part], self.boxes[part], self.times_s[part], self.norms[part], self.sharpness[part]
        )


def find_changes(samples: GateSamples, thresholds: GateThresholds) -> list[Candidate]:
    """Finds the changes of person in one track.

    Args:
        samples: The track.
        thresholds: The limits.

    Returns:
        All candidates in time order, confirmed or refused. A piece cut at the confirmed ones holds none any more:
        running this again on each piece confirms nothing, because pieces are divided, each judged by itself alone,
        until that is so.
    """
    found: dict[int, Candidate] = {}
    _divide(samples, 0, thresholds, found)
    return [found[i] for i in sorted(found)]


def _divide(samples: GateSamples, offset: int, thresholds: GateThresholds, found: dict[int, Candidate]) -> None:
    # Trust is relative to what a track reaches, so each piece is measured by what it reaches itself.
    trust = estimate_trust(samples.norms, samples.sharpness)
    proposals = propose_candidates(samples.embeddings, samples.boxes, thresholds)
    candidates = _judge(_Track(samples.embeddings, samples.times_s, trust), proposals, thresholds)
    for candidate in candidates:
        index = offset + candidate.index
        if index not in found or candidate.is_split:
            found[index] = Candidate(index, candidate.reason, candidate.similarity, candidate.is_split)
    edges = [0, *(c.index for c in candidates if c.is_split), len(samples)]
    if len(edges) > 2:
        for a, b in pairwise(edges):
            _divide(samples[a:b], offset + a, thresholds, found)


def _judge(track: _Track, proposals: list[tuple[int, str]], thresholds: GateThresholds) -> list[Candidate]:
    """Joins the segments between proposals until only changes of person are left."""
    bounds = sorted(dict(proposals).items())
    edges = [0, *(i for i, _ in bounds), len(track.embeddings)]
    reasons = ["", *(reason for _, reason in bounds)]
    segments = [_Segment(a, b, r) for a, b, r in zip(edges, edges[1:], reasons, strict=False)]
    limit = min(thresholds.same_person, thresholds.hard)
    refused: list[Candidate] = []
    _absorb_bursts(track, segments, limit, refused)
    while len(segments) > 1:
        pairs = [track.similarity(a, b) for a, b in pairwise(segments)]
        best = int(np.argmax(pairs))
        if pairs[best] < limit:
            break
        refused.append(Candidate(segments[best + 1].start, segments[best + 1].reason, pairs[best], is_split=False))
        segments[best].stop = segments.pop(best + 1).stop
    confirmed = [Candidate(b.start, b.reason, track.similarity(a, b), is_split=True) for a, b in pairwise(segments)]
    return sorted(confirmed + refused, key=lambda c: c.index)


def _absorb_bursts(track: _Track, segments: list[_Segment], limit: float, refused: list[Candidate]) -> None:
    """Gives segments that cannot stand alone to their neighbours, the weakest first."""
    while len(segments) > 1:
        weak = [s for s in segments if not track.stands_alone(s)]
        if not weak:
            return
        burst = min(weak, key=lambda s: (track.support(s), len(s), s.start))
        i = segments.index(burst)
        before = segments[i - 1] if i > 0 else None
        after = segments[i + 1] if i + 1 < len(segments) else None
        if before is not None and after is not None:
            similarity = track.similarity(before, after)
            boundary = track.best_boundary(burst, before, after)
            if similarity >= limit:
                refused.append(Candidate(burst.start, burst.reason, similarity, is_split=False))
                before.stop = after.stop
                segments[i : i + 2] = []
                continue
            before.stop = boundary
            after.start = boundary
            if boundary > burst.start:
                refused.append(Candidate(burst.start, burst.reason, track.similarity(before, burst), is_split=False))
            else:
                after.reason = burst.reason
        elif before is not None:
            refused.append(Candidate(burst.start, burst.reason, track.similarity(before, burst), is_split=False))
            before.stop = burst.stop
        elif after is not None:
            refused.append(Candidate(after.start, after.reason, track.similarity(burst, after), is_split=False))
            after.start = burst.start
            after.reason = burst.reason
        segments.pop(i)
