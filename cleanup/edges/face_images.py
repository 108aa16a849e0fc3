"""Writes pictures of the kept faces: aligned crops, a thumbnail per track, whole frames. Only when asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.face_alignment import CROP_SIZE, estimate_similarity
from cleanup.edges.file_writing import replace_file
from cleanup.edges.root_path import RootPath
from cleanup.edges.video_frames import VideoFrames
from cleanup.episode import Episode
from cleanup.errors import ArtifactError
from cleanup.settings import OutputSettings

_THUMB_MARGIN = 0.35


@dataclass(frozen=True)
class ImageFolder:
    """Where pictures go: the folder itself, and how artifacts name it (relative to the data root)."""

    folder: RootPath
    name: str


def save_images(
    episode: Episode, video: VideoFrames, target: ImageFolder, settings: OutputSettings, on_frame: Callable[[], None]
) -> Episode:
    """Writes the pictures and notes the crops' paths on the faces.

    Args:
        episode: The refined episode.
        video: Its video; faces in frames that it does not give get no picture.
        target: ``crops/TRACK/FRAME.jpg``, ``thumbs/TRACK.jpg`` and ``frames/FRAME.jpg`` are made under it.
        settings: What to save, JPEG quality and thumbnail size.
        on_frame: Called before each frame's are written; what it raises ends it.

    Returns:
        The episode with ``crop_path`` set on every face that has a crop.

    Raises:
        VideoError: The video is shorter than the artifacts say.
        ArtifactError: A picture cannot be written.
    """
    rows = schemas.face_rows(episode.faces)
    by_frame: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["has_embedding"]:
            by_frame[row["frame_idx"]].append(i)
    best = _best_of_tracks(rows)
    for frame_idx, frame in video.read(by_frame):
        on_frame()
        if frame is None:
            continue
        image = frame.rgb
        if settings.save_frames:
            _write(target.folder / "frames" / f"{frame_idx:06d}.jpg", image, settings.jpeg_quality)
        for i in by_frame[frame_idx] if settings.save_crops else []:
            _save_face(rows[i], image, target, settings, is_best=best[rows[i]["track_id"]] == i, episode=episode)
    paths = [row["crop_path"] for row in rows]
    return episode.replace(faces=schemas.set_column(episode.faces, "crop_path", paths))


def _best_of_tracks(rows: list[dict[str, Any]]) -> dict[int, int]:
    best: dict[int, int] = {}
    for i, row in enumerate(rows):
        if row["has_embedding"]:
            held = best.get(row["track_id"])
            if held is None or (row["quality"] or 0) > (rows[held]["quality"] or 0):
                best[row["track_id"]] = i
    return best


def _save_face(
    row: dict[str, Any],
    image: NDArray[np.uint8],
    target: ImageFolder,
    settings: OutputSettings,
    *,
    is_best: bool,
    episode: Episode,
) -> None:
    height, width = image.shape[:2]
    scale = np.array([width, height]) if episode.is_normalised else np.ones(2)
    track = f"track_{row['track_id']:05d}"
    if row["landmarks"] is not None:
        landmarks = np.array(row["landmarks"]).reshape(1, 5, 2) * scale
        crop = cv2.warpAffine(image, estimate_similarity(landmarks)[0], (CROP_SIZE, CROP_SIZE), borderValue=0.0)
        name = f"crops/{track}/{row['frame_idx']:06d}.jpg"
        _write(target.folder / name, crop, settings.jpeg_quality)
        row["crop_path"] = f"{target.name}/{name}"
    if is_best:
        box = np.array(row["bbox"]).reshape(2, 2) * scale
        margin = _THUMB_MARGIN * (box[1] - box[0])
        corners = np.array([box[0] - margin, box[1] + margin])
        (x1, y1), (x2, y2) = np.clip(corners, 0, [width, height]).astype(int)
        region = image[y1:y2, x1:x2]
        if region.size == 0:
            raise ArtifactError(
                f"{episode.ep_id}: face {row['face_id']} has its box {row['bbox']} outside the picture of frame "
                f"{row['frame_idx']}, which is {width}x{height}: the video is another one, or the box is wrong"
            )
        factor = settings.thumb_size / max(region.shape[:2])
        size = (max(round(region.shape[1] * factor), 1), max(round(region.shape[0] * factor), 1))
        _write(target.folder / "thumbs" / f"{track}.jpg", cv2.resize(region, size), settings.jpeg_quality)


def _write(path: RootPath, image: NDArray[np.uint8], quality: int) -> None:
    path.parent.mkdir()
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ArtifactError(f"{path}: the picture cannot be encoded")
    try:
        replace_file(path, data.tobytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error
