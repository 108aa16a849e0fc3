"""Frame-exact reading of a video: frames are numbered in presentation order from 0.

OpenCV's frame seek is not exact with B-frames, variable frame rates or edit lists, so PyAV is used: the packets are
indexed once without decoding, a seek goes to the keyframe at or before the wanted frame, and decoding runs forward.
Frames that are neither wanted nor referred to by others are left out by the decoder.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import av
import av.error

from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.errors import DamagedVideoError, VideoError, first_line
from cleanup.input_limits import MAX_STREAMS, MAX_VIDEO_FRAMES, MAX_VIDEO_SIDE
from cleanup.interfaces import VideoInfo

# Files and nothing else, in formats that hold their pictures themselves: a playlist could name other files and hosts.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,mxf,ogg,h264,hevc,ivf",
}
# FFmpeg advises against more threads for one stream.
_MAX_THREADS = 16


@dataclass(frozen=True)
class _Index:
    pts: list[int]
    keyframes: list[int]
    time_base: float


class VideoFrames:
    """Random access to the frames of one video. Use it as a context manager; not thread-safe.

    Args:
        path: The video file.
        n_threads: Decoder threads; 0 means all cores.

    Raises:
        VideoError: The file is missing, is no video, or holds no frames.
    """

    def __init__(self, path: str | Path, n_threads: int = 0) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{self.path}: no such video; give it with --video")
        try:
            self._container = av.open(f"file:{self.path}", options=_OPEN_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self.path}: not a readable video ({first_line(error)})") from error
        try:
            self._stream = self._choose_stream()
        except VideoError:
            self._container.close()
            raise
        # One more than cores, as FFmpeg itself chooses: a thread that waits for its reference frame leaves a core idle.
        self._stream.codec_context.thread_count = min((n_threads or os.cpu_count() or 1) + 1, _MAX_THREADS)
        self._stream.thread_type = "AUTO"
        self._index = self._read_index()
        self._frame_of_pts = {pts: i for i, pts in enumerate(self._index.pts)}
        self.n_decoded = 0

    def _choose_stream(self) -> av.VideoStream:
        """The video stream; refuses what no decoder should be started for."""
        streams = self._container.streams
        if not streams.video:
            raise VideoError(f"{self.path}: the file has no video stream")
        codec = streams.video[0].codec_context
        if len(streams) > MAX_STREAMS:
            raise VideoError(f"{self.path}: {len(streams)} streams, more than {MAX_STREAMS}; no episode has so many")
        if not (0 < codec.width <= MAX_VIDEO_SIDE and 0 < codec.height <= MAX_VIDEO_SIDE):
            raise VideoError(
                f"{self.path}: pictures of {codec.width}x{codec.height}, more than {MAX_VIDEO_SIDE} on a side or none"
            )
        return streams.video[0]

    def _read_index(self) -> _Index:
        pts: list[int] = []
        key_pts: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is None or packet.size == 0 or packet.is_discard:
                    continue
                pts.append(packet.pts)
                if len(pts) > MAX_VIDEO_FRAMES:
                    self._container.close()
                    raise VideoError(f"{self.path}: more than {MAX_VIDEO_FRAMES:,} frames; no episode is so long")
                if packet.is_keyframe:
                    key_pts.append(packet.pts)
        except av.error.FFmpegError as error:
            self._container.close()
            raise VideoError(
                f"{self.path}: the video breaks off after {len(pts)} frames ({first_line(error)})"
            ) from error
        if not pts or not key_pts:
            self._container.close()
            raise VideoError(f"{self.path}: the video holds no frames")
        pts.sort()
        position = {value: i for i, value in enumerate(pts)}
        time_base = float(self._stream.time_base) if self._stream.time_base else 0.0
        return _Index(pts, sorted(position[value] for value in key_pts), time_base)

    @property
    def info(self) -> VideoInfo:
        """Size, frame count and frame rate; the rate is the mean one, measured over the index."""
        pts = self._index.pts
        if len(pts) > 1:
            fps = (len(pts) - 1) / ((pts[-1] - pts[0]) * self._index.time_base)
        else:
            fps = float(self._stream.average_rate or 0)
        codec = self._stream.codec_context
        duration_s = len(pts) / fps if fps else 0.0
        return VideoInfo(str(self.path), codec.width, codec.height, len(pts), fps, duration_s)

    def timestamp_s(self, frame_idx: int) -> float:
        """Presentation time of a frame in seconds, counted from the first frame."""
        return (self._index.pts[frame_idx] - self._index.pts[0]) * self._index.time_base

    def read(self, frame_indices: Iterable[int]) -> Iterator[tuple[int, DecodedFrame]]:
        """Decodes the wanted frames in order.

        Args:
            frame_indices: Frame numbers, any order; each is decoded once.

        Yields:
            Pairs (frame_idx, frame).

        Raises:
            VideoError: A frame lies beyond the end.
            DamagedVideoError: A frame cannot be decoded.
        """
        wanted = sorted(set(frame_indices))
        if not wanted:
            return
        if wanted[0] < 0 or wanted[-1] >= len(self._index.pts):
            raise VideoError(
                f"{self.path}: frame {wanted[-1]} was asked for but the video has {len(self._index.pts)} frames; "
                "it is shorter than the artifacts say, give the video they were made from"
            )
        position = 0
        while position < len(wanted):
            first_key = self._keyframe_before(wanted[position])
            last = self._last_without_seek(wanted, position)
            yield from self._decode_run(first_key, wanted[position : last + 1])
            position = last + 1

    def _keyframe_before(self, frame_idx: int) -> int:
        keyframes = self._index.keyframes
        return keyframes[max(bisect.bisect_right(keyframes, frame_idx) - 1, 0)]

    def _last_without_seek(self, wanted: list[int], first: int) -> int:
        """Index of the last wanted frame before one that a seek reaches sooner than decoding on does."""
        last = first
        while last + 1 < len(wanted) and self._keyframe_before(wanted[last + 1]) <= wanted[last] + 1:
            last += 1
        return last

    def _decode_run(self, keyframe: int, wanted: list[int]) -> Iterator[tuple[int, DecodedFrame]]:
        expected = deque(wanted)
        try:
            # Closed by force: frames still inside the decoder are let go before anything else is asked of it.
            with contextlib.closing(self._decode_packets(keyframe, wanted)) as frames:
                for frame in frames:
                    frame_idx = self._frame_of_pts.get(frame.pts) if frame.pts is not None else None
                    if frame_idx is None or frame_idx < expected[0]:
                        continue
                    if frame_idx > expected[0]:
                        raise DamagedVideoError(
                            f"{self.path}: frame {expected[0]} cannot be decoded; the stream is damaged there"
                        )
                    self.n_decoded += 1
                    expected.popleft()
                    yield frame_idx, DecodedFrame(frame)
                    if not expected:
                        return
        except av.error.FFmpegError as error:
            raise DamagedVideoError(f"{self.path}: frame {expected[0]} cannot be decoded ({error})") from error
        raise DamagedVideoError(
            f"{self.path}: the video ends before frame {expected[0]}; the file is damaged or cut short"
        )

    def _decode_packets(self, keyframe: int, wanted: list[int]) -> Generator[av.VideoFrame, None, None]:
        """Frames from a keyframe on, wanted and referred to, until all packets of the wanted ones are decoded."""
        codec = self._stream.codec_context
        unsent = {self._index.pts[i] for i in wanted}
        self._container.seek(self._index.pts[keyframe], stream=self._stream, backward=True, any_frame=False)
        for packet in self._container.demux(self._stream):
            if packet.size == 0:
                break
            codec.skip_frame = "DEFAULT" if packet.pts in unsent or packet.pts is None else "NONREF"
            unsent.discard(packet.pts)
            yield from codec.decode(packet)
            if not unsent:
                break
        yield from codec.decode(None)

    def close(self) -> None:
        """Releases the decoder and the file."""
        self._container.close()

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
