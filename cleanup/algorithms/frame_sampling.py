"""Which boxes of a track are looked at, and how the work is cut into shards. Pure functions of the artifacts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def plan_shards(loads: Sequence[LineageLoad], max_faces: int) -> list[list[int]]:
    """Cuts the work into shards: runs of whole lineages in time order.

    Lineages that overlap in time stay together, so that no frame is decoded for two shards. A shard is closed once it
    holds ``max_faces``; only lineages that hang together in time can make it larger.

    Args:
        loads: One entry per lineage.
        max_faces: Faces to embed per shard.

    Returns:
        Lineage ids per shard, in time order.
    """
    shards: list[list[int]] = []
    n_faces, end = 0, -1
    for load in sorted(loads, key=lambda x: (x.first_frame, x.lineage_id)):
        if not shards or (n_faces >= max_faces and load.first_frame > end):
            shards.append([])
            n_faces = 0
        shards[-1].append(load.lineage_id)
        n_faces += load.n_samples
        end = max(end, load.last_frame)
    return shards
