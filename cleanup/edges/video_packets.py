"""The packets of a video's picture: what they say of themselves, and the frames that a decoder makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from cleanup.edges.video_streams import AnyPacket, OpenedStream, reason_of
from cleanup.errors import VideoError, raise_shortage
from cleanup.input_limits import MAX_VIDEO_FRAMES

NumberedFrame = tuple[int, av.VideoFrame]
# A time that a packet does not have.
NO_TIME = np.iinfo(np.int64).min


class DamageError(Exception):
    """A packet cannot be decoded."""


@dataclass(frozen=True)
class Packets:
    """What the packets of a stream say of themselves, in the order of the file; ``is_cut`` is of the last one."""

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    pos: NDArray[np.int64]
    size: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    is_discard: NDArray[np.bool_]
    is_cut: bool
    break_off: str


def read_packets(opened: OpenedStream, path: Path) -> Packets:
    """Reads a video to its end, without decoding.

    Raises:
        VideoError: It has no packets or too many, or cannot be read.
    """
    rows: list[tuple[int, int, int, int, bool, bool]] = []
    is_cut = False
    break_off = ""
    try:
        for packet in opened.container.demux(opened.stream):
            if packet.size == 0:
                continue
            pts, dts, pos = packet.pts, packet.dts, packet.pos
            rows.append(
                (
                    NO_TIME if pts is None else pts,
                    NO_TIME if dts is None else dts,
                    -1 if pos is None else pos,
                    packet.size,
                    packet.is_keyframe,
                    packet.is_discard,
                )
            )
            is_cut = packet.is_corrupt
            if len(rows) > MAX_VIDEO_FRAMES:
                raise VideoError(f"{path}: more than {MAX_VIDEO_FRAMES:,} frames; no episode is so long")
    except av.error.FFmpegError as error:
        raise_shortage(error, path)
        if not rows or isinstance(error, OSError):
            raise VideoError(f"{path}: the video breaks off after {len(rows)} frames ({reason_of(error)})") from error
        break_off = reason_of(error)
    if not rows:
        raise VideoError(f"{path}: the video holds no frames")
    table = np.array(rows, np.int64)
    pts, dts, pos, size = np.ascontiguousarray(table[:, :4].T)
    return Packets(pts, dts, pos, size, table[:, 4] != 0, table[:, 5] != 0, is_cut, break_off)


def iterate_packets(opened: OpenedStream) -> Iterator[AnyPacket]:
    """The packets of the picture's stream, in the order of the file, to its end or to where it makes no sense any more.

    Raises:
        OSError: It cannot be read.
        ResourceError: There is not enough memory.
    """
    try:
        for packet in opened.container.demux(opened.stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        raise_shortage(error, "the packets of a video")
        if isinstance(error, OSError):
            raise


def decode_numbered(codec: VideoCodecContext, packet: AnyPacket | None = None, number: int = 0) -> list[NumberedFrame]:
    """Decodes a packet, and gives frames with the number of the packet that made each.

    Args:
        codec: The decoder.
        packet: The packet, or None for what is still inside the decoder.
        number: Number of the packet in the file.

    Raises:
        DamageError: The stream is damaged at it, or at one before it; others can be decoded after it.
        ResourceError: There is not enough memory.
    """
    if packet is not None:
        packet.pts, packet.dts = number, None
    try:
        return [(frame.pts, frame) for frame in codec.decode(packet) if frame.pts is not None]
    except av.error.FFmpegError as error:
        raise_shortage(error, "a frame of a video")
        raise DamageError from error
