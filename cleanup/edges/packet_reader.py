"""Reads and decodes the packets of a video from any key packet on; knows of each which one it is.

Where a seek has ended is read off the packets that follow: their places in the file and their sizes are those of the
index. One that ends too late, or where it cannot be told, is tried again further back; at last packets are read from
the beginning of the file, which costs reading and no decoding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av.error
import numpy as np

from cleanup.edges.video_index import VideoIndex
from cleanup.edges.video_packets import NO_TIME, DamageError, NumberedFrame, decode_numbered, iterate_packets
from cleanup.edges.video_streams import AnyPacket, open_stream, reason_of
from cleanup.errors import VideoError

# Packets that are looked at to find out where a seek has ended.
_N_LANDING = 32
# Decoders that may be told of every packet anew whether to decode it.
_SKIPPING_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")
# What the samples of a JPEG picture begin with.
_START_OF_SCAN = b"\xff\xda"
# Key packets back from which a seek is tried last; where none of many has ended well, none ever will.
_MAX_STEP = 15


class _LostError(Exception):
    """The packets are not those of the index: a seek ended where it cannot be told."""


class PacketReader:
    """The packets of one video. Close it; not thread-safe.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.
        index: Its index.

    Attributes:
        n_faults: How often the decoder has complained of damage.
    """

    def __init__(self, path: Path, n_threads: int, index: VideoIndex) -> None:
        self._path, self._n_threads, self._index = path, n_threads, index
        self._packets = index.packets
        self._by_place = np.argsort(self._packets.pos, kind="stable")
        self._places = self._packets.pos[self._by_place]
        self._opened = open_stream(path, n_threads)
        # Number of the packet that the container gives next; None where that is not known.
        self._next: int | None = 0
        self._can_seek = True
        self._can_skip = self._opened.stream.codec_context.name in _SKIPPING_CODECS
        # Number of the last packet that was decoded since the container was opened.
        self._furthest = -1
        self.n_faults = 0

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel by its height, or None where neither the container nor the stream tells."""
        return self._opened.stream.sample_aspect_ratio

    def decode(self, key: int, needed: Collection[int]) -> Generator[NumberedFrame, None, None]:
        """Frames as they come out of the decoder, until all that are needed have been given to it.

        Args:
            key: Which of the key packets decoding begins at.
            needed: Numbers of the packets whose frames are wanted. Where the frames were not counted, others are left
                out if nothing refers to them.

        Yields:
            Number of the packet, and the frame it made. Nothing, where what is marked as a key frame is none.

        Raises:
            VideoError: The file is not any more what was indexed, or cannot be read.
        """
        first = int(self._index.key_packets[key])
        for landing in self._landings(key):
            has_begun = False
            try:
                with contextlib.closing(self._decode_after(landing, first, needed)) as frames:
                    for number, frame in frames:
                        if not has_begun and number == first and key > 0 and not frame.key_frame:
                            return
                        has_begun = True
                        yield number, frame
                return
            except OSError as error:
                raise VideoError(f"{self._path}: cannot be read ({reason_of(error)})") from error
            except _LostError:
                self._next = None
                if landing is None or has_begun:
                    raise VideoError(f"{self._path}: the video changed while it was read") from None

    def _landings(self, key: int) -> Iterator[int | None]:
        """Key packets to seek to, nearest first; None for no seek, which is always right."""
        step = 0
        while self._can_seek and key - step > 0:
            yield key - step
            step = 2 * step + 1
        self._can_seek &= step <= _MAX_STEP
        yield None

    def _decode_after(
        self, landing: int | None, first: int, needed: Collection[int]
    ) -> Generator[NumberedFrame, None, None]:
        unsent = set(needed)
        # Where frames were counted all are decoded, as they were then, and a frame may take more than its packet.
        is_counted = bool(self._index.reason)
        idle: Literal["DEFAULT", "NONREF"] = "NONREF" if self._can_skip and not is_counted else "DEFAULT"
        for number, packet in self._packets_after(landing, first):
            if number < first:
                continue
            codec = self._opened.stream.codec_context
            codec.skip_frame = "DEFAULT" if number in unsent else idle
            unsent.discard(number)
            self._furthest = number
            if codec.name == "mjpeg" and _START_OF_SCAN not in bytes(packet):
                self.n_faults += 1  # the decoder would show what its buffer held before
                continue
            try:
                yield from decode_numbered(codec, packet, number)
            except DamageError:
                self.n_faults += 1  # what does not come is missed by who waits for it
            if not unsent and not is_counted:
                break
        with contextlib.suppress(DamageError):
            yield from decode_numbered(self._opened.stream.codec_context)

    def _packets_after(self, landing: int | None, first: int) -> Iterator[tuple[int, AnyPacket]]:
        """Packets with their numbers: after a seek, or else from the beginning or from where reading has come to.

        Raises:
            _LostError: Where the seek ended cannot be told, or it is behind ``first``.
        """
        packets = self._packets
        if landing is not None:
            self._seek(landing)
        elif self._next is not None and self._next <= first:
            self._opened.stream.codec_context.flush_buffers()
        else:
            self._reopen()
        for i, packet in enumerate(iterate_packets(self._opened)):
            place = (-1 if packet.pos is None else packet.pos, packet.size)
            if self._next is None:
                self._next = self._find_packet(*place)
                if i >= _N_LANDING or (self._next is not None and self._next > first):
                    raise _LostError
                if self._next is None:
                    continue
            number = self._next
            if number >= len(packets.size) or place != (packets.pos[number], packets.size[number]):
                raise _LostError
            self._next = number + 1
            yield number, packet
        if self._next is None or self._next < len(packets.size):
            raise _LostError

    def _reopen(self) -> None:
        self._opened.container.close()
        self._opened, self._next, self._furthest = open_stream(self._path, self._n_threads), 0, -1

    def _seek(self, landing: int) -> None:
        """Seeks to a key packet; where that has ended is for the packets that follow to say.

        Raises:
            _LostError: The container does not seek there.
        """
        packet = self._index.key_packets[landing]
        if packet <= self._furthest:
            # A decoder keeps what a later part of the stream has told of it, and that may not fit an earlier one.
            self._reopen()
        self._next = None
        times = [self._packets.dts[packet], self._packets.pts[packet]]
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
        return number if self._packets.size[number] == size else None

    def close(self) -> None:
        """Releases the decoder and the file."""
        self._opened.container.close()
