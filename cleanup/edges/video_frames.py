"""Frame-exact reading of a video, in any order.

OpenCV's frame seek is not exact with B-frames, variable frame rates or edit lists, so PyAV is used. Packets are known
by their number in the file: a seek goes to the key frame that a wanted frame needs, where it ended is read off the
packets that follow, and each frame carries the number of the packet that made it. Where a container cannot seek, its
packets are read from the beginning and decoded from the key frame on.
"""

from __future__ import annotations

import bisect
import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import av.error
import numpy as np

from cleanup.edges.frame_counts import FrameCounts
from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.edges.video_index import NO_TIME, NumberedFrame, build_index, decode_numbered, iterate_packets
from cleanup.edges.video_streams import AnyPacket, open_stream
from cleanup.errors import VideoError
from cleanup.interfaces import VideoInfo

# Packets that are looked at to find out where a seek has ended.
_N_LANDING = 32
# Seeks in vain, each further back, after which no other is tried: step is then 2 ** 4 - 1.
_MIN_TRIES = 15


class _LostError(Exception):
    """The packets are not those of the index: a seek ended where it cannot be told."""


class VideoFrames:
    """Random access to the frames of one video. Use it as a context manager; not thread-safe.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.
        counts: Where the counts of frames are kept, or None.

    Attributes:
        n_decoded: Frames given out so far.
        faults: Why a frame that was asked for could not be given, by its number.

    Raises:
        VideoError: The file is missing, is no video, or holds no frames.
    """

    def __init__(self, path: str | Path, n_threads: int = 0, counts: FrameCounts | None = None) -> None:
        self.path = Path(path)
        self._n_threads = n_threads
        self._index = build_index(self.path, n_threads, counts)
        # Packets in rising order with the frame each makes, so that a frame is found by its packet's number.
        self._by_packet = np.argsort(self._index.packet_of_frame, kind="stable")
        self._packets = self._index.packet_of_frame[self._by_packet]
        self._by_place = np.argsort(self._index.pos, kind="stable")
        self._places = self._index.pos[self._by_place]
        self._opened = open_stream(self.path, n_threads)
        # Number of the packet that the container gives next; None where that is not known.
        self._next: int | None = 0
        self._size = (self._opened.stream.codec_context.width, self._opened.stream.codec_context.height)
        self._can_seek = True
        self.n_decoded = 0
        self.faults: dict[int, str] = {}

    @property
    def info(self) -> VideoInfo:
        """Size, frame count and frame rate; the rate is the mean one."""
        index = self._index
        duration_s = index.n_frames / index.fps if index.fps else 0.0
        return VideoInfo(str(self.path), *self._size, index.n_frames, index.fps, duration_s, self._notes())

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._index.reason:
            notes.append(f"frames were counted by decoding the whole video: {self._index.reason}")
        if self._index.break_off:
            notes.append(f"the file breaks off after {self._index.n_frames} frames ({self._index.break_off})")
        return tuple(notes)

    def timestamp_s(self, frame_idx: int) -> float:
        """Presentation time of a frame in seconds, counted from the first frame."""
        return float(self._index.times[frame_idx])

    def read(self, frame_indices: Iterable[int]) -> Iterator[tuple[int, DecodedFrame | None]]:
        """Decodes the wanted frames in order.

        Args:
            frame_indices: Frame numbers, any order; each is decoded once.

        Yields:
            Pairs (frame_idx, frame); None where the frame cannot be decoded, ``faults`` then says why.

        Raises:
            VideoError: A frame lies beyond the end, or the frames come out in another order than the index has them.
        """
        wanted = sorted(set(frame_indices))
        if not wanted:
            return
        if wanted[0] < 0 or wanted[-1] >= self._index.n_frames:
            raise VideoError(
                f"{self.path}: frame {wanted[-1]} was asked for but the video has {self._index.n_frames} frames; "
                "it is shorter than the artifacts say, give the video they were made from"
            )
        position = 0
        while position < len(wanted):
            last = self._last_without_seek(wanted, position)
            yield from self._read_run(wanted[position : last + 1])
            position = last + 1

    def _key_for(self, frame_idx: int) -> int:
        """Which of the key packets decoding has to begin at for a frame."""
        shown = bisect.bisect_right(self._index.key_frames, frame_idx)
        read = bisect.bisect_right(self._index.key_packets, self._index.packet_of_frame[frame_idx])
        return max(min(shown, read) - 1, 0)

    def _last_without_seek(self, wanted: list[int], first: int) -> int:
        """Index of the last wanted frame before one that a seek reaches sooner than decoding on does."""
        last = first
        while last + 1 < len(wanted):
            key = self._key_for(wanted[last + 1])
            if self._index.key_frames[key] > wanted[last] + 1:
                break
            last += 1
        return last

    def _read_run(self, wanted: list[int]) -> Iterator[tuple[int, DecodedFrame | None]]:
        """Frames that are reached without a seek; what does not come is tried once more from the key frame before."""
        expected = deque(wanted)
        key, tries = self._key_for(wanted[0]), 0
        while expected:
            # Closed by force: frames still inside the decoder are let go before anything else is asked of it.
            with contextlib.closing(self._decode(key, list(expected))) as frames:
                for frame_idx, frame in frames:
                    if frame_idx < expected[0]:
                        continue
                    if frame_idx > expected[0] and tries == 0 and key > 0:
                        break
                    while frame_idx > expected[0]:
                        yield self._miss(expected.popleft(), "cannot be decoded")
                    yield self._give(expected.popleft(), frame)
                    if not expected:
                        return
            if tries or key == 0:
                while expected:
                    yield self._miss(expected.popleft(), "cannot be decoded")
            key, tries = max(self._key_for(expected[0]) - 1, 0) if expected else 0, tries + 1

    def _give(self, frame_idx: int, frame: av.VideoFrame) -> tuple[int, DecodedFrame | None]:
        if (frame.width, frame.height) != self._size:
            width, height = self._size
            return self._miss(frame_idx, f"is {frame.width}x{frame.height} and not {width}x{height}")
        self.n_decoded += 1
        return frame_idx, DecodedFrame(frame)

    def _miss(self, frame_idx: int, reason: str) -> tuple[int, None]:
        self.faults[frame_idx] = reason
        return frame_idx, None

    def _decode(self, key: int, wanted: list[int]) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Frames from a key packet on, with their numbers, until all packets of the wanted ones are decoded."""
        index = self._index
        first = int(index.key_packets[key])
        unsent = {int(index.packet_of_frame[i]) for i in wanted}
        is_first, previous = True, -1
        for candidate in self._landings(key):
            try:
                for number, frame in self._decode_from(candidate, first, unsent):
                    if is_first and number == first and not frame.key_frame and key > 0:
                        # Marked as a key frame, and none: what follows refers to what was not decoded.
                        return
                    is_first = False
                    frame_idx = self._frame_of(number, previous)
                    if frame_idx is None:
                        continue
                    previous = frame_idx
                    yield frame_idx, frame
                return
            except _LostError:
                if candidate is None or not is_first:
                    raise VideoError(
                        f"{self.path}: the video changed while it was read, or its packets cannot be told apart"
                    ) from None

    def _frame_of(self, packet: int, previous: int) -> int | None:
        """The frame that a packet makes, of two the one after ``previous``; None where it makes none.

        Raises:
            VideoError: It comes too late.
        """
        low, high = np.searchsorted(self._packets, [packet, packet + 1])
        frames = self._by_packet[low:high]
        later = frames[frames > previous]
        if len(frames) and not len(later):
            raise VideoError(
                f"{self.path}: frame {frames[-1]} comes out of the decoder after frame {previous}, against what the "
                "file says of their times; encode it anew"
            )
        return int(later[0]) if len(later) else None

    def _landings(self, key: int) -> Iterator[int | None]:
        """Key packets to seek to, nearest first; None for no seek, which is always right."""
        step = 0
        while self._can_seek and key - step > 0:
            yield key - step
            step = 2 * step + 1
        # Where no seek to any of many has ended where it could be told, none ever will.
        self._can_seek &= step < _MIN_TRIES
        yield None

    def _decode_from(self, landing: int | None, first: int, unsent: set[int]) -> Iterator[NumberedFrame]:
        """Seeks, reads packets up to the first one to decode, and decodes from there on."""
        unsent = set(unsent)
        # Where frames were counted all are decoded, as they were then.
        idle: Literal["DEFAULT", "NONREF"] = "DEFAULT" if self._index.reason else "NONREF"
        for number, packet in self._packets_after(landing, first):
            if number < first:
                continue
            codec = self._opened.stream.codec_context
            codec.skip_frame = "DEFAULT" if number in unsent else idle
            unsent.discard(number)
            yield from decode_numbered(codec, packet, number)
            if not unsent:
                break
        yield from decode_numbered(self._opened.stream.codec_context)

    def _packets_after(self, landing: int | None, first: int) -> Iterator[tuple[int, AnyPacket]]:
        """Packets with their numbers: after a seek, or else from the beginning or from where reading has come to.

        Raises:
            _LostError: Where the seek ended cannot be told, or it is behind ``first``.
        """
        index = self._index
        if landing is not None:
            self._seek(landing)
        elif self._next is not None and self._next <= first:
            self._opened.stream.codec_context.flush_buffers()
        else:
            self._opened.container.close()
            self._opened, self._next = open_stream(self.path, self._n_threads), 0
        for i, packet in enumerate(iterate_packets(self._opened)):
            place = (-1 if packet.pos is None else packet.pos, packet.size)
            if self._next is None:
                self._next = self._find_packet(*place)
                if i >= _N_LANDING or (self._next is not None and self._next > first):
                    raise _LostError
                if self._next is None:
                    continue
            number = self._next
            if number >= len(index.size) or place != (index.pos[number], index.size[number]):
                raise _LostError
            self._next = number + 1
            yield number, packet
        if self._next is None or self._next < len(index.size):
            raise _LostError

    def _seek(self, landing: int) -> None:
        """Seeks to a key packet; where that has ended is for the packets that follow to say.

        Raises:
            _LostError: The container does not seek there.
        """
        index, packet = self._index, self._index.key_packets[landing]
        self._next = None
        times = [index.dts[packet], index.pts[packet]]
        # MP4 searches by decoding times, Matroska by presentation times.
        is_by_dts = self._opened.container.format.name != "matroska,webm"
        known = [time for time in (times if is_by_dts else times[::-1]) if time != NO_TIME]
        if not known:
            raise _LostError
        try:
            self._opened.container.seek(int(known[0]), stream=self._opened.stream, backward=True, any_frame=False)
        except av.error.FFmpegError as error:
            raise _LostError from error

    def _find_packet(self, pos: int, size: int) -> int | None:
        """The one packet at a place of the file, or None where there is none or are several."""
        low, high = np.searchsorted(self._places, [pos, pos + 1])
        if pos < 0 or high - low != 1:
            return None
        number = int(self._by_place[low])
        return number if self._index.size[number] == size else None

    def close(self) -> None:
        """Releases the decoder and the file."""
        self._opened.container.close()

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
