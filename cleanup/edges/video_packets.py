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
from cleanup.input_limits import MAX_VIDEO_FRAMES, MAX_VIDEO_REUSE

NumberedFrame = tuple[int, av.VideoFrame]
# A time that a packet does not have.
NO_TIME = np.iinfo(np.int64).min


class DamageError(Exception):
    """A packet cannot be decoded."""


@dataclass(frozen=True)
class Packets:
    """What the packets of a stream say of themselves, in the order of the file; arrays have shape (n_packets,).

    Attributes:
        pts: Presentation times in the stream's time base, or ``NO_TIME``.
        dts: Decoding times, likewise.
        pos: Places in the file in bytes, -1 where the format does not tell.
        size: Bytes.
        is_key: Which are marked as key frames.
        is_discard: Which are not meant to be shown.
        is_cut: Whether the last packet is cut short.
        break_off: Why reading ended before the end of the file; empty where it did not.
    """

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
    is_cut, n_bytes, file_size = False, 0, path.stat().st_size
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
            n_bytes += packet.size
            if n_bytes > MAX_VIDEO_REUSE * file_size:
                raise VideoError(f"{path}: its packets lie on each other; it is damaged, or made to take long")
            if len(rows) > MAX_VIDEO_FRAMES:
                raise VideoError(f"{path}: more than {MAX_VIDEO_FRAMES:,} frames; no episode is so long")
    except av.error.FFmpegError as error:
        if not rows or _is_of_disk(error):
            raise VideoError(f"{path}: the video breaks off after {len(rows)} frames ({reason_of(error)})") from error
        break_off = reason_of(error)
    if not rows:
        raise VideoError(f"{path}: the video holds no frames")
    table = np.array(rows, np.int64)
    pts, dts, pos, size = np.ascontiguousarray(table[:, :4].T)
    return Packets(pts, dts, pos, size, table[:, 4] != 0, table[:, 5] != 0, is_cut, break_off)


def _is_of_disk(error: av.error.FFmpegError) -> bool:
    """Whether a file could not be read, other than that what it says of itself makes no sense."""
    return isinstance(error, OSError) and not isinstance(error, BlockingIOError)


def iterate_packets(opened: OpenedStream) -> Iterator[AnyPacket]:
    """The packets of the picture's stream, in the order of the file, to its end or to where it makes no sense any more.

    Raises:
        OSError: It cannot be read.
    """
    try:
        for packet in opened.container.demux(opened.stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        if _is_of_disk(error):
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
        if isinstance(error, MemoryError):
            raise_shortage(error, "a frame of a video")
        if isinstance(error, BlockingIOError):
            codec.flush_buffers()  # it would say so of every packet that follows
        raise DamageError from error
