"""Frame-exact reading of a video, in any order.

OpenCV's frame seek is not exact with B-frames, variable frame rates or edit lists, so PyAV is used. Packets are known
by their number in the file: decoding begins at the key frame that a wanted frame needs, and each frame carries the
number of the packet that made it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from cleanup.edges.frame_counts import FrameCounts
from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.edges.packet_reader import PacketReader
from cleanup.edges.picture_geometry import PictureGeometry, read_display
from cleanup.edges.video_index import build_index
from cleanup.errors import VideoError
from cleanup.interfaces import AS_STORED, VideoInfo, VideoSource, VideoView


class VideoFrames:
    """Random access to the frames of one video. Use it as a context manager; not thread-safe.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.
        counts: Where the counts of frames are kept, or None.
        view: How the frames that are asked for are numbered, and which picture of them is given.

    Attributes:
        index: Which packet makes which frame.
        display: How a player shows the picture.
        n_decoded: Frames given out so far.
        faults: Why a frame that was asked for could not be given, by its number.

    Raises:
        VideoError: The file is missing, is no video, or holds no frames.
    """

    def __init__(
        self, path: str | Path, n_threads: int = 0, counts: FrameCounts | None = None, view: VideoView = AS_STORED
    ) -> None:
        self.path = Path(path)
        self.view = view
        self.index = build_index(self.path, n_threads, counts)
        # The frame that each packet makes, -1 where it makes none; of the few that make several, all of them.
        self._frame_of_packet = [-1] * len(self.index.packets.size)
        self._frames_of_packet: dict[int, list[int]] = {}
        for frame_idx, packet in enumerate(self.index.packet_of_frame.tolist()):
            if self._frame_of_packet[packet] >= 0:
                self._frames_of_packet.setdefault(packet, [self._frame_of_packet[packet]]).append(frame_idx)
            self._frame_of_packet[packet] = frame_idx
        self.n_decoded = 0
        self.faults: dict[int, str] = {}
        self._reader = PacketReader(self.path, n_threads, self.index)
        try:
            self.display = self._read_display(self.find_first())
        except VideoError:
            self.close()
            raise
        geometry = self._geometry_of(view)
        self._geometry = None if geometry.is_identity else geometry

    def find_first(self) -> av.VideoFrame:
        """The first frame that can be decoded.

        Raises:
            VideoError: There is none.
        """
        for key, frame_idx in enumerate(self.index.key_frames.tolist()):
            with contextlib.closing(self._decode(key, [frame_idx])) as frames:
                for _, frame in frames:
                    if frame is not None:
                        return frame
        raise VideoError(f"{self.path}: no frame of the video can be decoded")

    def _read_display(self, frame: av.VideoFrame) -> PictureGeometry:
        """How the first frame is shown; the others are like it, or are not given."""
        try:
            DecodedFrame(frame).align_face(np.eye(2, 3))  # are its colours ones that are read?
            return read_display(frame, self._reader.pixel_aspect)
        except VideoError as error:
            raise VideoError(f"{self.path}: {error}") from error

    def _geometry_of(self, view: VideoView) -> PictureGeometry:
        shown = self.display
        if not view.is_turned:
            shown = replace(shown, quarter_turns=0, is_mirrored=False)
        return shown if view.is_stretched else replace(shown, stretch_x=1.0)

    @property
    def info(self) -> VideoInfo:
        """What the video is in its view; the frame rate is the mean one."""
        return self._describe(self.view)

    def list_views(self) -> list[VideoInfo]:
        """The video in all views that are different pictures, the one that is as it is stored first."""
        found: dict[PictureGeometry, VideoInfo] = {}
        for is_turned, is_stretched in itertools.product((False, True), repeat=2):
            view = VideoView(self.view.frame_shift, is_turned, is_stretched)
            found.setdefault(self._geometry_of(view), self._describe(view))
        return list(found.values())

    def _describe(self, view: VideoView) -> VideoInfo:
        index, geometry = self.index, self._geometry_of(view)
        duration_s = index.n_frames / index.fps if index.fps else 0.0
        source = VideoSource(str(self.path), view)
        return VideoInfo(source, geometry.width, geometry.height, index.n_frames, index.fps, duration_s, self._notes())

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.index.reason:
            notes.append(f"frames were counted by decoding the whole video: {self.index.reason}")
        if self.index.packets.break_off:
            notes.append(f"the file breaks off after {self.index.n_frames} frames ({self.index.packets.break_off})")
        return tuple(notes)

    def timestamp_s(self, frame_idx: int) -> float:
        """Presentation time of a frame in seconds, counted from the artifacts' first frame."""
        shift = self.view.frame_shift
        lead = shift / self.index.fps if shift else 0.0
        return float(self.index.times[frame_idx + shift]) - lead

    def read(self, frame_indices: Iterable[int]) -> Iterator[tuple[int, DecodedFrame | None]]:
        """Decodes the wanted frames in order.

        Args:
            frame_indices: Frame numbers, any order; each is decoded once.

        Yields:
            Pairs (frame_idx, frame); None where the frame cannot be decoded, ``faults`` then says why.

        Raises:
            VideoError: A frame lies beyond the end, or the frames come out in another order than the index has them.
        """
        shift, n_frames = self.view.frame_shift, self.index.n_frames
        asked = sorted({i + shift for i in frame_indices})
        # As many frames as the shift may be missing at one end.
        margin = abs(shift)
        if asked and not (-margin <= asked[0] and asked[-1] < n_frames + margin):
            outside = asked[0] if asked[0] < 0 else asked[-1]
            raise VideoError(
                f"{self.path}: frame {outside} was asked for but the video has {n_frames} frames; "
                "it is shorter than the artifacts say, give the video they were made from"
            )
        wanted = [number for number in asked if 0 <= number < n_frames]
        for number in asked:
            if number < 0:
                yield number - shift, self._miss(number, "does not reach there")[1]
        position = 0
        while position < len(wanted):
            last = self._last_without_seek(wanted, position)
            for number, frame in self._read_run(wanted[position : last + 1]):
                yield number - shift, frame
            position = last + 1
        for number in asked:
            if number >= n_frames:
                yield number - shift, self._miss(number, "does not reach there")[1]

    def _key_for(self, frame_idx: int) -> int:
        """Which of the key packets decoding has to begin at for a frame."""
        shown = bisect.bisect_right(self.index.key_frames, frame_idx)
        read = bisect.bisect_right(self.index.key_packets, self.index.packet_of_frame[frame_idx])
        return max(min(shown, read) - 1, 0)

    def _last_without_seek(self, wanted: list[int], first: int) -> int:
        """Index of the last wanted frame before one that a seek reaches sooner than decoding on does."""
        last = first
        while last + 1 < len(wanted):
            key = self._key_for(wanted[last + 1])
            if self.index.key_frames[key] > wanted[last] + 1:
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
                    while expected and frame_idx > expected[0]:
                        yield self._miss(expected.popleft(), "cannot be decoded")
                    if expected and frame_idx == expected[0]:
                        yield self._give(expected.popleft(), frame)
                    if not expected:
                        return
            if tries or key == 0:
                while expected:
                    yield self._miss(expected.popleft(), "cannot be decoded")
            key, tries = max(self._key_for(expected[0]) - 1, 0) if expected else 0, tries + 1

    def _give(self, frame_idx: int, frame: av.VideoFrame | None) -> tuple[int, DecodedFrame | None]:
        width, height = self.display.coded_width, self.display.coded_height
        is_cut = self.index.packets.is_cut and self.index.packet_of_frame[frame_idx] == len(self.index.packets.size) - 1
        if frame is None or is_cut:
            return self._miss(frame_idx, "cannot be decoded")
        if (frame.width, frame.height) != (width, height):
            return self._miss(frame_idx, f"is {frame.width}x{frame.height} and not {width}x{height}")
        self.n_decoded += 1
        return frame_idx, DecodedFrame(frame, self._geometry)

    def _miss(self, frame_idx: int, reason: str) -> tuple[int, None]:
        self.faults[frame_idx - self.view.frame_shift] = reason
        return frame_idx, None

    def _decode(self, key: int, wanted: list[int]) -> Generator[tuple[int, av.VideoFrame | None], None, None]:
        """Frames from a key packet on, with their numbers, until all packets of the wanted ones are decoded.

        After damage there is no frame up to the next key frame: what a decoder makes up is no evidence.

        Raises:
            VideoError: One comes too late, and no damage explains it.
        """
        previous, n_faults = -1, self._reader.n_faults
        is_damaged = was_damaged = False
        needed = {int(self.index.packet_of_frame[i]) for i in wanted}
        with contextlib.closing(self._reader.decode(key, needed)) as frames:
            for packet, frame in frames:
                if frame.key_frame and not frame.is_corrupt:
                    is_damaged, n_faults = False, self._reader.n_faults
                is_damaged |= frame.is_corrupt or self._reader.n_faults > n_faults
                was_damaged |= is_damaged
                frame_idx = self._frame_of_packet[packet]
                if packet in self._frames_of_packet:  # of which one comes after the other
                    frame_idx = next((i for i in self._frames_of_packet[packet] if i > previous), frame_idx)
                if frame_idx > previous:
                    previous = frame_idx
                    yield frame_idx, None if is_damaged else frame
                elif frame_idx >= 0 and not was_damaged:
                    raise VideoError(
                        f"{self.path}: frame {frame_idx} comes out of the decoder after frame {previous}, against "
                        "what the file says of their times; encode it anew"
                    )

    def close(self) -> None:
        """Releases the decoder and the file."""
        self._reader.close()

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
