"""Which packet of a video makes which frame: frames are numbered as a decoder puts them out, from 0.

Packets are known by their number in the file. Where the times of the packets tell the order of the frames, reading the
packets is enough. Where they do not, the video is decoded once and its frames are counted. Either way frame n is the
one that OpenCV, FFmpeg and PyAV come to when they read the file from its beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleanup.edges.frame_counts import FrameCount, FrameCounts
from cleanup.edges.h264_headers import may_hold_fields
from cleanup.edges.video_packets import (
    NO_TIME,
    DamageError,
    NumberedFrame,
    Packets,
    decode_numbered,
    iterate_packets,
    read_packets,
)
from cleanup.edges.video_streams import OpenedStream, open_stream
from cleanup.errors import VideoError

# Containers that hold the time of every picture, and codecs of which every packet is one picture.
_TIMED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_PICTURE_CODECS = ("h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "prores", "dnxhd", "mjpeg", "ffv1")
# Those of them of whose pictures a decoder makes up what it lacks.
_INTER_CODECS = ("h264", "hevc", "mpeg4")
_RAW_FORMATS = ("h264", "hevc", "mpegvideo", "mjpeg")
# So many packets are decoded to see whether the frames come as their times say.
_N_PROBED = 32
# A step of the clock longer than this is a jump, not a frame that is shown for long (seconds).
_MAX_STEP_S = 10.0
# How far a step may be from the usual one, as a share of it; and from which share of further ones the rate varies.
_MAX_DEVIATION, _MAX_ACCIDENTS = 0.25, 0.02
# Share of the steps from which the others are accidents of a clock that can be believed.
_MIN_SANE = 0.9


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a video and the frames they make.

    Attributes:
        packets: The packets.
        packet_of_frame: The packet that makes each frame, shape (n_frames,).
        key_packets: Packets that decoding can begin at, rising; the first is 0.
        key_frames: The first frame that is whole when decoding begins there, rising, shape of ``key_packets``.
        times: When each frame is shown, in seconds from the first one, shape (n_frames,).
        fps: Mean frame rate; 0 where nothing in the file tells.
        reason: Why the frames were counted; empty where the packets' times were enough.
    """

    packets: Packets
    packet_of_frame: NDArray[np.int64]
    key_packets: NDArray[np.int64]
    key_frames: NDArray[np.int64]
    times: NDArray[np.float64]
    fps: float
    reason: str

    @property
    def n_frames(self) -> int:
        """How many frames the video has."""
        return len(self.packet_of_frame)


def build_index(path: Path, n_threads: int = 0, counts: FrameCounts | None = None) -> VideoIndex:
    """Finds out which packet of a video makes which frame.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.
        counts: Where the result is kept, and looked up, if the frames have to be counted.

    Raises:
        VideoError: The file is no video, no frame of it can be decoded, or it has too many.
    """
    opened = open_stream(path, n_threads)
    with opened.container:
        packets = read_packets(opened, path)
        reason = _find_doubt(opened, packets)
        clock = _Clock.of(opened)
    n_packets = len(packets.size)
    if not reason:
        order = _order_by_time(packets)
        reason = _probe(path, packets, order)
    if not reason:
        return _index_of(packets, clock, order, packets.is_key, "")
    count = counts.find(path, n_packets) if counts is not None else None
    if count is None:
        count = count_frames(path, n_threads, n_packets)
        if counts is not None:
            counts.keep(path, count)
    if len(count.packet_of_frame) == 0:
        raise VideoError(f"{path}: no frame of the video can be decoded")
    return _index_of(packets, clock, count.packet_of_frame, count.is_key, reason)


def count_frames(path: Path, n_threads: int, n_packets: int, *, is_steady: bool = False) -> FrameCount:
    """Decodes a video once from beginning to end and notes which packet made each frame.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.
        n_packets: How many packets its picture has.
        is_steady: Whether to decode in one thread; a damaged video is counted so in any case.

    Raises:
        VideoError: The file is no video.
    """
    found: list[int] = []
    faults: list[int] = []
    is_key = np.zeros(n_packets, bool)
    opened = open_stream(path, n_threads, is_steady=is_steady)
    with opened.container:
        for number, frame in _decode_all(opened, n_packets, faults):
            found.append(number)
            is_key[number] |= frame.key_frame
            if frame.is_corrupt:
                faults.append(number)
    has_gap = bool(found) and len(set(found)) < n_packets - min(found)
    if not is_steady and (faults or has_gap):
        # What comes of a damaged stream depends on how many threads decode it.
        return count_frames(path, n_threads, n_packets, is_steady=True)
    return FrameCount(np.array(found, np.int64), is_key)


def _decode_all(opened: OpenedStream, n_packets: int, faults: list[int]) -> Iterator[NumberedFrame]:
    """The frames that the first packets make; numbers of those near which the stream is damaged go to ``faults``."""
    codec = opened.stream.codec_context
    for number, packet in enumerate(itertools.chain(itertools.islice(iterate_packets(opened), n_packets), [None])):
        try:
            yield from decode_numbered(codec, packet, number)
        except DamageError:
            faults.append(number)


def _find_doubt(opened: OpenedStream, packets: Packets) -> str:
    """Why the packets' times do not tell the order of the frames, or an empty text."""
    name, codec = opened.container.format.name, opened.stream.codec_context.name
    if name not in _TIMED_FORMATS:
        return f"{opened.container.format.long_name} does not tell the time of every picture"
    if codec not in _PICTURE_CODECS:
        return f"a packet of {codec} may be no picture"
    shown, dts = packets.pts[~packets.is_discard], packets.dts[packets.dts != NO_TIME]
    if (packets.pts == NO_TIME).any():
        return "there are pictures without a time"
    if len(np.unique(shown)) < len(shown):
        return "there are pictures of the same time"
    if (np.diff(dts) <= 0).any():
        return "the times of the pictures step back"
    if codec == "h264" and may_hold_fields(opened.stream.codec_context.extradata or b""):
        return "a packet may be one field of a picture"
    if codec in _INTER_CODECS and _is_uneven(shown):
        return "some pictures follow sooner or later than the others, so that pictures may be missing"
    if not packets.is_key[0] or packets.pts[0] > packets.pts.min():
        return "the video begins between key frames"
    return ""


def _is_uneven(pts: NDArray[np.int64]) -> bool:
    """Whether a few steps of the clock are others than the rest; a rate that varies all the time is no accident."""
    steps: NDArray[np.float64] = np.diff(np.sort(pts)).astype(np.float64)
    if len(steps) == 0:
        return False
    usual = float(np.median(steps))
    n_odd = int((np.abs(steps - usual) > max(_MAX_DEVIATION * usual, 1.0)).sum())
    return 0 < n_odd <= _MAX_ACCIDENTS * len(steps)


def _order_by_time(packets: Packets) -> NDArray[np.int64]:
    shown = np.flatnonzero(~packets.is_discard)
    return shown[np.argsort(packets.pts[shown], kind="stable")]


def _probe(path: Path, packets: Packets, order: NDArray[np.int64]) -> str:
    """Why the first frames do not come as their times say, or an empty text."""
    opened = open_stream(path, is_steady=True)
    with opened.container:
        faults: list[int] = []
        frames = [(number, frame.key_frame) for number, frame in _decode_all(opened, _N_PROBED, faults)]
    numbers = [number for number, _ in frames]
    # Frames at the end may lack one that they refer to, because its packet was not given to the decoder.
    n_whole = len(numbers) if len(packets.size) <= _N_PROBED else max(len(numbers) - _N_PROBED // 2, 0)
    expected = order[order < _N_PROBED].tolist()
    if faults:  # what is damaged does not come, and leaves a gap
        expected = [number for number in expected if number in numbers]
    if numbers[:n_whole] != expected[:n_whole] or not (n_whole or faults):
        return "its frames do not come as their times say"
    if not faults and any(is_key != packets.is_key[number] for number, is_key in frames[:n_whole]):
        return "its key frames are not those that it marks"
    return ""


def _index_of(
    packets: Packets,
    clock: _Clock,
    packet_of_frame: NDArray[np.int64],
    is_key: NDArray[np.bool_],
    reason: str,
) -> VideoIndex:
    # The first frame of each packet; where a packet makes two, the second comes after it.
    frame_of_packet = np.full(len(packets.size), -1, np.int64)
    frame_of_packet[packet_of_frame[::-1]] = np.arange(len(packet_of_frame))[::-1]
    key_packets = np.flatnonzero(is_key & (frame_of_packet >= 0))
    key_frames = frame_of_packet[key_packets]
    # Of two key frames the one that comes earlier in the file is shown earlier, or it is none.
    is_sound = key_frames == np.maximum.accumulate(key_frames) if len(key_frames) else np.zeros(0, bool)
    key_packets, key_frames = key_packets[is_sound], key_frames[is_sound]
    if len(key_packets) == 0 or key_packets[0] > 0:
        key_packets, key_frames = np.insert(key_packets, 0, 0), np.insert(key_frames, 0, 0)
    times, fps = clock.measure(packets, packet_of_frame, is_trusted=not reason)
    return VideoIndex(packets, packet_of_frame, key_packets, key_frames, times, fps, reason)


@dataclass(frozen=True)
class _Clock:
    """What the container says of time: seconds per unit, and frames per second or 0."""

    unit: float
    stated_fps: float

    @classmethod
    def of(cls, opened: OpenedStream) -> _Clock:
        stream = opened.stream
        fps = float(stream.codec_context.framerate or 0)
        # The formats that are nothing but a stream of pictures make a rate up where the stream does not tell it.
        if opened.container.format.name not in _RAW_FORMATS:
            fps = float(stream.average_rate or fps)
        return cls(float(stream.time_base or 0), fps)

    def measure(
        self, packets: Packets, packet_of_frame: NDArray[np.int64], *, is_trusted: bool
    ) -> tuple[NDArray[np.float64], float]:
        """When each frame is shown, and the mean rate; a clock that stands, steps back or jumps is not believed.

        Where presentation times make no sense the rate is that of the decoding times, and at last the stated one.
        """
        pts, n_frames = packets.pts[packet_of_frame], len(packet_of_frame)
        max_step_s = np.inf if is_trusted else _MAX_STEP_S
        steps, is_sane = self._find_steps(pts, max_step_s)
        if n_frames > 1 and is_sane.all():
            return (pts - pts[0]).astype(np.float64) * self.unit, float(1 / steps.mean())
        fps = self.stated_fps
        for found, sane in ((steps, is_sane), self._find_steps(packets.dts[~packets.is_discard], max_step_s)):
            if np.count_nonzero(sane) > _MIN_SANE * len(sane):
                fps = float(1 / found[sane].mean())
                break
        return np.arange(n_frames) / fps if fps else np.zeros(n_frames), fps

    def _find_steps(self, ticks: NDArray[np.int64], max_step_s: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Seconds from one time to the next, and which of them can be those of a clock that runs."""
        is_known = ticks != NO_TIME
        steps = np.diff(ticks.astype(np.float64)) * self.unit
        return steps, is_known[1:] & is_known[:-1] & (steps > 0) & (steps <= max_step_s)
