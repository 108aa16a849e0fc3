"""The appearance gate: finds where a track changes person.

A gate in the manner of ByteTrack-style trackers (similarity to a running prototype, hard and soft limits, box overlap)
proposes candidates. A proposal alone proves nothing: one blurred, covered or turned face makes the similarity fall as
well. So the candidates only cut the track into segments; adjacent segments that show the same person are joined again.
How far a face can be trusted is measured by the best of its track, which may be another person's. So a segment of faces
that are worse than those is somebody only if they agree with each other and look like nobody beside them.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_quality import estimate_trust

# Samples next to a boundary that speak for a segment there; a longer window would mix in earlier head poses.
_N_LOCAL = 5
# A segment speaks for a person of its own with this much summed trust: two good samples that agree.
_MIN_SUPPORT = 1.5
# Beside one person only, a run of untrusted samples is taken for blur or an occlusion up to this length.
_MAX_BURST_S = 1.0
# Faces whose embeddings are only so long as those beside them say nothing about who they are; if their crops are so
# blurred (Laplacian variance, as in the gate of blurred faces), longer ones say nothing either.
_ILLEGIBLE_NORM, _BLURRED_NORM, _BLURRED_SHARPNESS = 0.55, 0.75, 18.0


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
        strangers: Similarity below which two stretches are no more alike than two people are.
        coherent: Mean similarity from which the samples of a stretch agree with each other.
    """

    hard: float
    soft: float
    streak: int
    min_iou: float
    prototype_momentum: float
    same_person: float
    strangers: float
    coherent: float


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


@dataclass(eq=False)
class _Segment:
    """Samples from ``start`` to before ``stop``; what it begins with was proposed for ``reason``.

    Attributes:
        total: Weighted sum of its embeddings, shape (d,).
        before: The segment before it, or None.
        after: The segment after it, or None.
    """

    start: int
    stop: int
    reason: str
    total: NDArray[np.float64]
    before: _Segment | None = None
    after: _Segment | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def absorb(self, following: _Segment) -> None:
        """Joins the segment after this one to it; an empty one is left of that."""
        self.stop, self.total = following.stop, self.total + following.total
        self.after = following.after
        if self.after is not None:
            self.after.before = self
        following.stop = following.start


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
    """The samples of one track with the similarities its segments are judged by.

    A segment carries its sum, so judging two of them costs the same however long they are.
    """

    def __init__(self, samples: GateSamples, thresholds: GateThresholds) -> None:
        # Trust is relative to what a track reaches, so each piece is measured by what it reaches itself.
        self.trust = np.asarray(estimate_trust(samples.norms, samples.sharpness), np.float64)
        self._norms, self._sharpness = samples.norms, np.asarray(samples.sharpness, np.float64)
        self._is_jump = compute_consecutive_iou(samples.boxes) < thresholds.min_iou
        self._strangers, self._coherent = thresholds.strangers, thresholds.coherent
        self.limit = min(thresholds.same_person, thresholds.hard)
        self.embeddings = np.asarray(samples.embeddings, np.float64)
        self.times_s = np.asarray(samples.times_s, np.float64)
        self._trusted = np.flatnonzero(self.trust >= 0.5)
        steps = np.diff(self.times_s)
        self.step_s = float(np.median(steps)) if len(steps) else 0.0

    def cut(self, proposals: list[tuple[int, str]]) -> list[_Segment]:
        """The segments between proposals, in time order."""
        bounds = sorted(dict(proposals).items())
        edges = [0, *(i for i, _ in bounds), len(self.embeddings)]
        reasons = ["", *(reason for _, reason in bounds)]
        segments = [_Segment(a, b, r, self.sum(a, b)) for (a, b), r in zip(pairwise(edges), reasons, strict=True)]
        for first, second in pairwise(segments):
            first.after, second.before = second, first
        return segments

    def sum(self, start: int, stop: int) -> NDArray[np.float64]:
        """Trust-weighted sum of embeddings."""
        return np.asarray((self.trust[start:stop] + 1e-3) @ self.embeddings[start:stop])

    def duration_s(self, segment: _Segment) -> float:
        return float(self.times_s[segment.stop - 1] - self.times_s[segment.start]) + self.step_s

    def support(self, segment: _Segment) -> float:
        return float(self.trust[segment.start : segment.stop].sum())

    def is_trusted(self, segment: _Segment) -> bool:
        """Whether its faces, measured by the best of the track, are good enough to speak for themselves."""
        return self.support(segment) >= _MIN_SUPPORT

    def stands_alone(self, segment: _Segment) -> bool:
        """Whether a segment is a person of its own, and no burst of blur and no occlusion of those beside it.

        Between two stretches of one person a short segment is such a burst, and a long one unless its faces agree with
        each other and look like nobody beside them. Elsewhere a long one stands, and a short one whose faces do so.
        """
        before, after = segment.before, segment.after
        if self.is_trusted(segment) or (before is None and after is None):
            return True
        is_long = len(segment) >= 2 and self.duration_s(segment) >= _MAX_BURST_S
        if self._is_illegible(segment):
            return is_long and self._resemblance(segment) < self._strangers
        is_between = before is not None and after is not None and self.similarity(before, after) >= self.limit
        if is_long != is_between:
            return is_long
        return self._agrees(segment) and self._resemblance(segment) < self._strangers

    def _is_illegible(self, segment: _Segment) -> bool:
        """Whether its faces say nothing of who they are, beside those that it follows or leads to without a jump."""
        before, after = segment.before, segment.after
        beside = [
            near
            for near, is_jump in ((before, self._is_jump[segment.start]), (after, self._jumps_to(after)))
            if near is not None and not is_jump
        ]
        if not beside:
            return False
        norm = max(float(np.median(self._norms[near.start : near.stop])) for near in beside)
        part = slice(segment.start, segment.stop)
        is_blurred = np.median(self._sharpness[part]) < _BLURRED_SHARPNESS
        return bool(np.median(self._norms[part]) <= (_BLURRED_NORM if is_blurred else _ILLEGIBLE_NORM) * norm)

    def _jumps_to(self, segment: _Segment | None) -> bool:
        return segment is not None and bool(self._is_jump[segment.start])

    def _agrees(self, segment: _Segment) -> bool:
        n_samples = len(segment)
        if n_samples < 2:
            return False
        total = self.embeddings[segment.start : segment.stop].sum(axis=0)
        return bool((total @ total - n_samples) / (n_samples * (n_samples - 1)) >= self._coherent)

    def _resemblance(self, segment: _Segment) -> float:
        """Similarity to the nearer of the segments beside it."""
        before, after = segment.before, segment.after
        return max(
            self.similarity(before, segment) if before is not None else -1.0,
            self.similarity(segment, after) if after is not None else -1.0,
        )

    def similarity(self, before: _Segment, after: _Segment) -> float:
        """The higher of two views: the samples next to the boundary, and the segments as a whole."""
        local = self._centre_near(before, is_end=True) @ self._centre_near(after, is_end=False)
        return float(max(local, _unit(before.total) @ _unit(after.total)))

    def _centre_near(self, segment: _Segment, *, is_end: bool) -> NDArray[np.float64]:
        """Centre of the samples at an end of a segment: trusted ones, where there are any."""
        low, high = np.searchsorted(self._trusted, (segment.start, segment.stop))
        n_near = _N_LOCAL if high > low else min(_N_LOCAL, len(segment))
        if high > low:
            indices = self._trusted[max(high - n_near, low) : high] if is_end else self._trusted[low:high][:n_near]
        else:
            indices = np.arange(n_near) + (segment.stop - n_near if is_end else segment.start)
        return _unit((self.trust[indices] + 1e-3) @ self.embeddings[indices])

    def best_boundary(self, burst: _Segment, before: _Segment, after: _Segment) -> int:
        """Where to divide a burst so that its samples lie with the side they resemble more."""
        samples = self.embeddings[burst.start : burst.stop]
        lead = samples @ self._centre_near(before, is_end=True) - samples @ self._centre_near(after, is_end=False)
        return burst.start + int(np.argmax(np.concatenate([[0.0], np.cumsum(lead)])))


def _unit(total: NDArray[np.float64]) -> NDArray[np.float64]:
    return total / max(float(np.linalg.norm(total)), 1e-9)


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
    pieces = [(0, len(samples))]
    while pieces:
        start, stop = pieces.pop()
        piece = samples[start:stop]
        proposals = propose_candidates(piece.embeddings, piece.boxes, thresholds)
        candidates = _judge(_Track(piece, thresholds), proposals)
        for candidate in candidates:
            index = start + candidate.index
            if index not in found or candidate.is_split:
                found[index] = replace(candidate, index=index)
        edges = [start, *(start + c.index for c in candidates if c.is_split), stop]
        if len(edges) > 2:
            pieces += pairwise(edges)
    return [found[i] for i in sorted(found)]


def _judge(track: _Track, proposals: list[tuple[int, str]]) -> list[Candidate]:
    """Joins the segments between proposals, the most similar first, until only changes of person are left."""
    refused: list[Candidate] = []
    segments = _absorb_bursts(track, track.cut(proposals), refused)
    # Similarity (negative), first sample of the second segment, a number that decides ties, and the two with their
    # lengths: a pair of which one has grown or gone since then is passed over.
    pairs: list[tuple[float, int, int, _Segment, int, _Segment, int]] = []
    numbers = count()

    def offer(first: _Segment | None, second: _Segment | None) -> None:
        if first is not None and second is not None:
            entry = (second.start, next(numbers), first, len(first), second, len(second))
            heapq.heappush(pairs, (-track.similarity(first, second), *entry))

    for first, second in pairwise(segments):
        offer(first, second)
    while pairs:
        negative, _, _, first, n_first, second, n_second = heapq.heappop(pairs)
        if len(first) != n_first or len(second) != n_second:
            continue
        if -negative < track.limit:
            break
        refused.append(Candidate(second.start, second.reason, -negative, is_split=False))
        first.absorb(second)
        offer(first.before, first)
        offer(first, first.after)
    left = [s for s in segments if len(s)]
    confirmed = [Candidate(b.start, b.reason, track.similarity(a, b), is_split=True) for a, b in pairwise(left)]
    return sorted(confirmed + refused, key=lambda c: c.index)


def _absorb_bursts(track: _Track, segments: list[_Segment], refused: list[Candidate]) -> list[_Segment]:
    """Gives segments that cannot stand alone to their neighbours, the weakest first; gives those that are left."""
    weak: list[tuple[float, int, int, int, _Segment]] = []
    numbers = count()

    def offer(segment: _Segment | None) -> None:
        if segment is not None and not track.is_trusted(segment):
            heapq.heappush(weak, (track.support(segment), len(segment), segment.start, next(numbers), segment))

    for segment in segments:
        offer(segment)
    while weak:
        _, length, start, _, burst = heapq.heappop(weak)
        # A segment that has grown is there once more, and so are those whose neighbours have changed.
        if (len(burst), burst.start) != (length, start) or length == 0 or track.stands_alone(burst):
            continue
        before, after = burst.before, burst.after
        if before is not None and after is not None:
            grown = _share_out(track, burst, before, after, refused)
        elif before is not None:
            refused.append(Candidate(burst.start, burst.reason, track.similarity(before, burst), is_split=False))
            before.absorb(burst)
            grown = [before]
        elif after is not None:
            refused.append(Candidate(after.start, after.reason, track.similarity(burst, after), is_split=False))
            burst.absorb(after)
            grown = [burst]
        else:
            break
        for near in (grown[0].before, *grown, grown[-1].after):
            offer(near)
    return [s for s in segments if len(s)]


def _share_out(
    track: _Track, burst: _Segment, before: _Segment, after: _Segment, refused: list[Candidate]
) -> list[_Segment]:
    """Divides a burst between its neighbours, or joins all three if they are one person; gives what has grown."""
    similarity = track.similarity(before, after)
    if similarity >= track.limit:
        refused.append(Candidate(burst.start, burst.reason, similarity, is_split=False))
        before.absorb(burst)
        before.absorb(after)
        return [before]
    boundary = track.best_boundary(burst, before, after)
    before.stop, before.total = boundary, before.total + track.sum(burst.start, boundary)
    after.start, after.total = boundary, after.total + track.sum(boundary, burst.stop)
    if boundary > burst.start:
        refused.append(Candidate(burst.start, burst.reason, track.similarity(before, burst), is_split=False))
    else:
        after.reason = burst.reason
    before.after, after.before = after, before
    burst.stop = burst.start
    return [before, after]
