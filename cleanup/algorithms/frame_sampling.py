"""Which boxes of a track are looked at, and how the work is cut into shards. Pure functions of the artifacts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Decoding a frame costs about a seventh of embedding a face (1,205 frames/s and 170 faces/s, measured on two cores).
_FACES_PER_FRAME = 1 / 7
# The costliest shard is at most so many times the mean, where tracks allow it.
MAX_SHARD_IMBALANCE = 1.2
# Numbers of shards that are tried for it.
_MAX_SHARD_COUNTS = 16


def sampling_step(stride: int, max_fps: float, min_step: int, video_fps: float) -> int:
    """Frames from one sample of a track to the next: the stride, but no denser than ``max_fps`` and ``min_step``."""
    return max(stride, min_step, math.ceil(round(video_fps / max_fps, 6)))


def select_samples(frames: NDArray[np.int64], step: int, face_frames: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks the boxes of one lineage that are embedded in any case.

    The grid is laid over the frame numbers of the video, not over the track, and over a track together with all pieces
    ever split from it. So a second run on the result of the first looks at the very same faces.

    Args:
        frames: Frames of the lineage's boxes, ascending, shape (n,).
        step: Width of a grid cell in frames; the first box of each is taken.
        face_frames: Frames that have a line in faces.jsonl; all of them are taken.

    Returns:
        Mask of shape (n,). The first and the last box are always taken.
    """
    cells = np.asarray(frames) // step
    mask = np.ones(len(frames), bool)
    mask[1:] = cells[1:] != cells[:-1]
    mask[-1:] = True
    return mask | np.isin(frames, face_frames)


def find_roots(parents: Mapping[int, int | None]) -> dict[int, int]:
    """The first ancestor of every track; a track that was never split off is its own.

    Args:
        parents: Track id -> parent track id or None. A cycle ends at the smallest id in it.
    """
    roots: dict[int, int] = {}
    for track_id in parents:
        seen = [track_id]
        parent = parents[track_id]
        while parent is not None and parent in parents and parent not in seen:
            seen.append(parent)
            parent = parents[parent]
        roots[track_id] = min(seen) if parent in seen else seen[-1]
    return roots


@dataclass(frozen=True)
class LineageLoad:
    """What one lineage costs: its span in frames (inclusive) and the faces to embed."""

    lineage_id: int
    first_frame: int
    last_frame: int
    n_samples: int


def plan_shards(loads: Sequence[LineageLoad], faces_per_shard: int) -> list[list[int]]:
    """Cuts the work into shards of about the same cost: runs of whole lineages in time order.

    Lineages that overlap in time stay together, so that no frame is decoded for two shards. Of the numbers of shards
    near the wanted one, the nearest is taken with which the costliest shard is at most 1.2 times the mean; if lineages
    that hang together allow none, the one that comes nearest to it.

    Args:
        loads: One entry per lineage.
        faces_per_shard: What a shard is meant to cost, in faces to embed.

    Returns:
        Lineage ids per shard, in time order.
    """
    blocks = _find_blocks(loads)
    costs = np.array([_cost_of(block) for block in blocks])
    if len(blocks) == 0:
        return []
    wanted = min(max(round(costs.sum() / faces_per_shard), 1), len(blocks))
    best: tuple[bool, float, int] | None = None
    ends: list[int] = []
    # With more shards than this the costliest block alone is more than a shard may be.
    centre = max(min(wanted, int(MAX_SHARD_IMBALANCE * costs.sum() / costs.max())), 1)
    near = range(max(centre // 2, 1), min(2 * centre, len(blocks)) + 1)
    for n_shards in sorted(near, key=lambda n: abs(n - centre))[:_MAX_SHARD_COUNTS]:
        candidate = _cut_evenly(costs, n_shards)
        sums = np.add.reduceat(costs, [0, *candidate[:-1]])
        imbalance = float(sums.max() / sums.mean())
        is_even = imbalance <= MAX_SHARD_IMBALANCE
        rank = (not is_even, 0.0 if is_even else imbalance, abs(n_shards - wanted))
        if best is None or rank < best:
            best, ends = rank, candidate
        if is_even:
            break
    starts = [0, *ends[:-1]]
    return [[load.lineage_id for block in blocks[a:b] for load in block] for a, b in zip(starts, ends, strict=True)]


def _find_blocks(loads: Sequence[LineageLoad]) -> list[list[LineageLoad]]:
    """Lineages that overlap in time, directly or through others, in time order."""
    blocks: list[list[LineageLoad]] = []
    end = -1
    for load in sorted(loads, key=lambda x: (x.first_frame, x.lineage_id)):
        if not blocks or load.first_frame > end:
            blocks.append([])
        blocks[-1].append(load)
        end = max(end, load.last_frame)
    return blocks


def _cost_of(block: Sequence[LineageLoad]) -> float:
    """Cost of a block in faces to embed."""
    n_frames = max(load.last_frame for load in block) - block[0].first_frame + 1
    return sum(load.n_samples for load in block) + n_frames * _FACES_PER_FRAME


def _cut_evenly(costs: NDArray[np.float64], n_parts: int) -> list[int]:
    """Ends of ``n_parts`` runs of which the costliest is as cheap as can be; of those, the ends nearest to equal parts.

    Args:
        costs: Cost of each block, positive, shape (n,).
        n_parts: From 1 to n.
    """
    total = np.concatenate([[0.0], np.cumsum(costs)])
    low, high = max(float(costs.max()), total[-1] / n_parts), float(total[-1])
    while high - low > 1e-6 * total[-1]:
        middle = (low + high) / 2
        low, high = (low, middle) if _count_parts(total, middle) <= n_parts else (middle, high)
    limit = high * (1 + 1e-9)
    # Where the last 0, 1, 2 .. parts may start at the earliest.
    earliest = [len(costs)]
    for _ in range(n_parts - 1):
        earliest.append(int(np.searchsorted(total, total[earliest[-1]] - limit)))
    ends: list[int] = []
    start = 0
    for n_left in range(n_parts - 1, 0, -1):
        first = max(start + 1, earliest[n_left])
        last = min(int(np.searchsorted(total, total[start] + limit, side="right")) - 1, len(costs) - n_left)
        ideal = total[start] + (total[-1] - total[start]) / (n_left + 1)
        start = first + int(np.argmin(np.abs(total[first : last + 1] - ideal)))
        ends.append(start)
    return [*ends, len(costs)]


def _count_parts(total: NDArray[np.float64], limit: float) -> int:
    """How many runs of at most ``limit`` the blocks with these cumulative costs need."""
    n_parts, start = 0, 0
    while start < len(total) - 1:
        start = int(np.searchsorted(total, total[start] + limit * (1 + 1e-9), side="right")) - 1
        n_parts += 1
    return n_parts
