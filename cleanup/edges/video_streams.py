"""Opens a video safely: which files, formats and streams a decoder is started for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition, Stream

from cleanup.errors import VideoError, first_line
from cleanup.input_limits import MAX_STREAMS, MAX_VIDEO_PIXELS, MAX_VIDEO_SIDE

AnyPacket: TypeAlias = "av.Packet[av.VideoStream]"
# Files and nothing else, in formats that hold their pictures themselves: a playlist could name other files and hosts.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,mxf,ogg,h264,hevc,"
    "ivf,mjpeg,dv",
    "max_pixels": str(MAX_VIDEO_PIXELS),
}
# A picture that claims to be larger is not made room for.
_DECODER_OPTIONS = {"max_pixels": str(MAX_VIDEO_PIXELS)}
# FFmpeg's decoders of these crash where threads go on after damage, or wait for each other for ever.
_SINGLE_THREAD_CODECS = ("vp8", "vp9")
# FFmpeg advises against more threads for one stream.
_MAX_THREADS = 16


@dataclass(frozen=True)
class OpenedStream:
    """A container, and the stream of it that holds the picture."""

    container: InputContainer
    stream: av.VideoStream


def open_stream(path: Path, n_threads: int = 0, *, is_steady: bool = False) -> OpenedStream:
    """Opens a video.

    Of several video streams the one is taken that FFmpeg takes: the largest picture that is no cover.

    Args:
        path: The video file.
        n_threads: Cores to decode with; 0 means all.
        is_steady: Whether to decode in one thread: what comes of damage then is the same on every machine.

    Raises:
        VideoError: The file is missing, is no video, or is one that no decoder should be started for.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such video; give it with --video")
    try:
        container = av.open(f"file:{path}", options=_OPEN_OPTIONS)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: not a readable video ({reason_of(error)}); if it is still being written, wait until it is whole"
        ) from error
    try:
        stream = _choose_stream(container, path)
    except VideoError:
        container.close()
        raise
    codec = stream.codec_context
    # One more than cores, as FFmpeg itself chooses: a thread that waits for its reference frame leaves a core idle.
    codec.thread_count = min((n_threads or os.cpu_count() or 1) + 1, _MAX_THREADS)
    codec.thread_type = "AUTO"
    if is_steady or codec.name in _SINGLE_THREAD_CODECS:
        codec.thread_count = 1
    codec.options = _DECODER_OPTIONS
    return OpenedStream(container, stream)


def reason_of(error: BaseException) -> str:
    """What FFmpeg says of an error, without its number and the path."""
    return getattr(error, "strerror", None) or first_line(error)


def is_cover(stream: Stream) -> bool:
    """Whether a stream is a picture that comes with the video, and no part of it."""
    return bool(stream.disposition & Disposition.attached_pic)


def _choose_stream(container: InputContainer, path: Path) -> av.VideoStream:
    if len(container.streams) > MAX_STREAMS:
        raise VideoError(f"{path}: {len(container.streams)} streams, more than {MAX_STREAMS}; no episode has so many")
    pictures = [stream for stream in container.streams.video if not is_cover(stream)]
    if not pictures:
        raise VideoError(f"{path}: the file has no video stream")
    best = container.streams.best("video")
    stream = next((s for s in pictures if best is not None and s.index == best.index), pictures[0])
    codec = stream.codec_context
    if codec is None:
        raise VideoError(f"{path}: no decoder for the video's format; convert it, for example to H.264 in MP4")
    width, height = codec.width, codec.height
    is_small = max(width, height) <= MAX_VIDEO_SIDE and width * height <= MAX_VIDEO_PIXELS
    if not (is_small and width > 0 and height > 0):
        raise VideoError(
            f"{path}: pictures of {width}x{height}, more than {MAX_VIDEO_PIXELS:,} pixels, {MAX_VIDEO_SIDE} on a side, "
            "or none"
        )
    return stream
