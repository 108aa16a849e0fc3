"""What a video file holds and what a run does with it: ``cleanup doctor --video``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Stream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from cleanup.edges.frame_counts import FrameCounts
from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.video_index import count_frames
from cleanup.edges.video_streams import is_cover, open_stream
from cleanup.interfaces import VideoInfo
from cleanup.video_check import format_time

# Of a matrix, a transfer and primaries (ITU-T H.273); of a range it is 0, and has a name.
_UNSPECIFIED = 2


def describe_video(path: Path, counts: FrameCounts | None = None) -> dict[str, Any]:
    """Reads a video in both ways, by its packets and by decoding all of it.

    Args:
        path: The video file.
        counts: Where the counts of frames are kept, or None.

    Returns:
        Plain JSON values, sizes in pixels, times in seconds, distances in frames; ``does`` are sentences on what a run
        does with the video.

    Raises:
        VideoError: It is no video, or one that is not read.
    """
    opened = open_stream(path)
    with opened.container as container:
        streams = [_describe_stream(s, is_read=s.index == opened.stream.index) for s in container.streams]
        name = container.format.long_name
    with VideoFrames(path, 0, counts) as video:
        index, display, info, views = video.index, video.display, video.info, video.list_views()
        first = video.find_first()
    decoded = index.packet_of_frame if index.reason else count_frames(path, 0, len(index.packets.size)).packet_of_frame
    is_lost = ~np.isin(index.packet_of_frame, decoded)
    damage = _find_stretches(is_lost, index.times)
    distances = np.diff([*index.key_frames, index.n_frames])
    frames = {
        "by_packets": int((~index.packets.is_discard).sum()),
        "by_decoding": len(decoded),
        "numbered_by": "decoding" if index.reason else "packets",
        "reason": index.reason or None,
        "break_off": index.packets.break_off or None,
    }
    return {
        "video": str(path),
        "container": name,
        "streams": streams,
        "picture": {
            "width": display.coded_width,
            "height": display.coded_height,
            "pixel_format": first.format.name,
            "interlaced": first.interlaced_frame,
        },
        "frames": frames,
        "fps": round(info.fps, 3) or None,
        "duration_s": round(info.duration_s, 3) or None,
        "key_frames": {
            "count": len(distances),
            "mean_distance": round(float(distances.mean()), 1),
            "longest_distance": int(distances.max()),
        },
        "rotation": {"clockwise_deg": 90 * display.quarter_turns, "mirrored": display.is_mirrored},
        "pixel_aspect": round(display.stretch_x, 6),
        "colour": {
            "matrix": _name_of(Colorspace, first.colorspace),
            "range": ColorRange(first.color_range).name.lower(),
            "transfer": _name_of(ColorTrc, first.color_trc),
            "primaries": _name_of(ColorPrimaries, first.color_primaries),
        },
        "damage": damage,
        "does": [*info.notes, *_tell(first, views, streams, damage)],
    }


def _describe_stream(stream: Stream, *, is_read: bool) -> dict[str, Any]:
    codec = stream.codec_context
    described: dict[str, Any] = {
        "index": stream.index,
        "type": stream.type,
        "codec": codec.name if codec is not None else None,
        "is_cover": is_cover(stream),
        "is_read": is_read,
    }
    if isinstance(stream, av.VideoStream) and codec is not None:
        described |= {"width": stream.codec_context.width, "height": stream.codec_context.height}
    return described


def _find_stretches(is_lost: NDArray[np.bool_], times: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Runs of frames that no decoder gives."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_lost, [False]])))
    return [
        {"first_frame": int(a), "last_frame": int(b) - 1, "first_s": round(float(times[a]), 3),
         "last_s": round(float(times[b - 1]), 3)}
        for a, b in edges.reshape(-1, 2)
    ]  # fmt: skip


def _name_of(kind: type[IntEnum], value: int) -> str | int:
    """A colour tag by its name, or the number of one that PyAV has no name for."""
    if value == _UNSPECIFIED:
        return "unspecified"
    return kind(value).name.lower() if value in {int(member) for member in kind} else int(value)


def _tell(
    first: av.VideoFrame,
    views: Sequence[VideoInfo],
    streams: Sequence[dict[str, Any]],
    damage: Sequence[dict[str, Any]],
) -> list[str]:
    """What a run does with the video, in sentences."""
    told = []
    others = [s for s in streams if s["type"] == "video" and not s["is_read"] and not s["is_cover"]]
    if others:
        told.append(f"of {len(others) + 1} video streams only the largest is read")
    if len(views) > 1:
        sizes = " or ".join(f"{view.width}x{view.height}" for view in views)
        told.append(f"whether artifacts count in {sizes} is found out from their faces")
    if DecodedFrame(first).is_high_dynamic_range:
        told.append("its high dynamic range is brought to standard range before a model sees a face")
    if first.interlaced_frame:
        told.append("its two fields are looked at as one picture")
    told += [
        f"what is between {format_time(s['first_s'])} and {format_time(s['last_s'])} cannot be decoded; tracks there "
        "are left as they were"
        for s in damage
    ]
    return told
