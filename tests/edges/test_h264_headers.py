"""Whether a packet of H.264 may be one field is read from its headers."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from cleanup.edges.h264_headers import may_hold_fields


def headers_of(container: str, pix_fmt: str = "yuv420p", **options: str) -> bytes:
    """The extradata of a stream of one picture that x264 made."""
    content = io.BytesIO()
    with av.open(content, "w", format=container) as target:
        stream = target.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24").reformat(format=pix_fmt)
        target.mux([*stream.encode(frame), *stream.encode()])
    content.seek(0)
    with av.open(content) as source:
        return source.streams.video[0].codec_context.extradata or b""


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p"])
def test_interlaced_streams_may_and_progressive_ones_may_not(container: str, pix_fmt: str) -> None:
    assert not may_hold_fields(headers_of(container, pix_fmt))
    assert may_hold_fields(headers_of(container, pix_fmt, flags="+ildct+ilme"))


def test_scaling_lists_are_passed_over() -> None:
    assert not may_hold_fields(headers_of("mp4", **{"x264-params": "cqm=jvt"}))
    assert may_hold_fields(headers_of("mp4", flags="+ildct+ilme", **{"x264-params": "cqm=jvt"}))


@pytest.mark.parametrize(
    "headers", [b"", b"\x01", b"\x01" * 200, b"\x00\x00\x01\x67", b"\x00\x00\x01\x67" + bytes(5000)]
)
def test_what_cannot_be_read_may(headers: bytes) -> None:
    assert may_hold_fields(headers)
