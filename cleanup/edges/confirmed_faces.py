"""Cuts the best faces of an identity out of the video, so that what a person confirmed can become seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cleanup import schemas
from cleanup.edges.video_frames import VideoFrames
from cleanup.episode import Episode
from cleanup.errors import FacebankError

# Room around the box, as a share of its size: the detector needs some.
_MARGIN = 0.5


def write_best_faces(episode: Episode, identity_id: str, video: VideoFrames, folder: Path, n_faces: int) -> list[Path]:
    """Writes pictures of an identity's best faces, of as many tracks as there are; their bytes are always the same.

    Args:
        episode: The episode.
        identity_id: The identity.
        video: Its video.
        folder: Where the pictures go.
        n_faces: How many at the most.

    Raises:
        FacebankError: The identity has no face with an embedding.
        VideoError: The video is too short.
    """
    track_ids = next(r["track_ids"] for r in episode.identities.to_pylist() if r["identity_id"] == identity_id)
    chosen = _choose([r for r in schemas.face_rows(episode.faces) if r["track_id"] in track_ids], n_faces)
    if not chosen:
        raise FacebankError(f"{episode.ep_id}: identity {identity_id} has no face that is good enough for a seed")
    by_frame = {row["frame_idx"]: row for row in chosen}
    paths = []
    for frame_idx, frame in video.read(by_frame):
        if frame is None:
            continue
        image = frame.rgb
        height, width = image.shape[:2]
        scale = np.array([width, height]) if episode.is_normalised else np.ones(2)
        box = np.array(by_frame[frame_idx]["bbox"]).reshape(2, 2) * scale
        margin = _MARGIN * (box[1] - box[0])
        (x1, y1), (x2, y2) = np.maximum(box[0] - margin, 0).astype(int), (box[1] + margin).astype(int)
        path = folder / f"{episode.ep_id}-{identity_id}-{frame_idx:06d}.png"
        done, data = cv2.imencode(".png", cv2.cvtColor(image[y1:y2, x1:x2], cv2.COLOR_RGB2BGR))
        if not done:
            raise FacebankError(f"{episode.ep_id}: the face in frame {frame_idx} cannot be cut out")
        path.write_bytes(data.tobytes())
        paths.append(path)
    if not paths:
        raise FacebankError(f"{episode.ep_id}: no frame with a good face of identity {identity_id} can be decoded")
    return paths


def _choose(rows: list[dict[str, Any]], n_faces: int) -> list[dict[str, Any]]:
    """The best face of each track, then the second best of each, and so on; one face per frame."""
    ranked: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (-(r["quality"] or 0.0), r["frame_idx"])):
        if row["has_embedding"] and row["kept_despite"] is None:
            ranked.setdefault(row["track_id"], []).append(row)
    turns = [
        (turn, -(row["quality"] or 0.0), row["frame_idx"], row) for r in ranked.values() for turn, row in enumerate(r)
    ]
    chosen: dict[int, dict[str, Any]] = {}
    for *_, row in sorted(turns, key=lambda t: t[:3]):
        if len(chosen) < n_faces:
            chosen.setdefault(row["frame_idx"], row)
    return list(chosen.values())
