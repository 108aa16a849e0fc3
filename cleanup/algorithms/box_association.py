"""Which detection continues which track, for artifacts whose detections carry no track id."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class KnownTrack:
    """What is known of one track before association.

    Attributes:
        track_id: Its id.
        first_frame: First frame of its span.
        last_frame: Last frame of its span, inclusive.
        frames: Frames of its known boxes, ascending, shape (n,).
        boxes: Those boxes, shape (n, 4).
    """

    track_id: int
    first_frame: int
    last_frame: int
    frames: NDArray[np.int64]
    boxes: NDArray[np.float64]
    _last: tuple[int, NDArray[np.float64]] | None = field(default=None, repr=False)

    def references(self, frame_idx: int, max_gap_frames: int) -> list[NDArray[np.float64]]:
        """Boxes a detection in this frame may continue: the last one given, the known ones around, one between them."""
        i = int(np.searchsorted(self.frames, frame_idx))
        near = [(int(self.frames[j]), self.boxes[j]) for j in (i - 1, i) if 0 <= j < len(self.frames)]
        if len(near) == 2 and near[1][0] > near[0][0]:
            share = (frame_idx - near[0][0]) / (near[1][0] - near[0][0])
            near.append((frame_idx, near[0][1] * (1 - share) + near[1][1] * share))
        if self._last is not None:
            near.append(self._last)
        return [box for frame, box in near if abs(frame - frame_idx) <= max_gap_frames]


def compute_iou_matrix(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of every pair of boxes; shape (len(a), len(b)). Boxes are corners x1, y1, x2, y2."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.clip(sides, 0, None).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return intersection / np.maximum(area_a[:, None] + area_b[None] - intersection, 1e-12)


def associate_detections(
    detections: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]],
    tracks: Sequence[KnownTrack],
    *,
    min_iou: float,
    max_gap_frames: int,
    sure_confidence: float,
) -> dict[int, list[int]]:
    """Gives detections to the tracks they continue, in time order, as ByteTrack does (Zhang et al., 2022).

    Sure detections are given away first, the others fill what is left; in a frame a track gets at most one detection
    and a detection at most one track, the best overlap first.

    Args:
        detections: Frame -> (boxes of shape (n, 4), confidences of shape (n,)).
        tracks: The tracks with the boxes known of them.
        min_iou: Overlap from which a detection continues a track.
        max_gap_frames: How far away in time a reference box may lie.
        sure_confidence: Confidence of the first round.

    Returns:
        Frame -> track index for each detection of that frame, -1 where it belongs to none.
    """
    result: dict[int, list[int]] = {}
    waiting = deque(sorted(range(len(tracks)), key=lambda k: (tracks[k].first_frame, tracks[k].track_id)))
    active: list[int] = []
    for frame_idx in sorted(detections):
        boxes, confidence = detections[frame_idx]
        while waiting and tracks[waiting[0]].first_frame <= frame_idx:
            active.append(waiting.popleft())
        active = [k for k in active if frame_idx <= tracks[k].last_frame]
        scores = np.zeros((len(active), len(boxes)))
        for row, k in enumerate(active):
            references = tracks[k].references(frame_idx, max_gap_frames)
            if references:
                scores[row] = compute_iou_matrix(np.array(references), boxes).max(axis=0)
        owner = [-1] * len(boxes)
        taken: set[int] = set()
        for is_sure in (True, False):
            in_round = (confidence >= sure_confidence) == is_sure
            rows, columns = np.nonzero((scores >= min_iou) & in_round)
            for k in np.argsort(-scores[rows, columns], kind="stable"):
                row, j = int(rows[k]), int(columns[k])
                if row not in taken and owner[j] < 0:
                    taken.add(row)
                    owner[j] = active[row]
                    tracks[active[row]]._last = (frame_idx, boxes[j])
        result[frame_idx] = owner
    return result
