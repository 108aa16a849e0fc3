"""Frames are the right ones, whatever the order they are asked for."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import VideoError


def make_video(path: Path, n_frames: int = 90, *, is_variable: bool = False) -> Path:
    """An H.264 file with B-frames whose grey level tells the frame number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"bf": "3", "g": "12", "crf": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 240)
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 + 2 * i, np.uint8), format="rgb24")
            frame.pts = 10 * i + (7 * (i % 3 == 1) if is_variable else 0)
            frame.time_base = Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("is_variable", [False, True])
@pytest.mark.parametrize(
    "wanted", [[0], [89], [5, 6, 7], [80, 3, 40, 41], list(range(90)), [11, 12, 13, 24, 25], [1, 88]]
)
def test_frames_are_exact(tmp_path: Path, wanted: list[int], is_variable: bool) -> None:
    path = make_video(tmp_path / "v.mp4", is_variable=is_variable)
    with av.open(str(path)) as container:
        in_order = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]

    with VideoFrames(path) as video:
        found = {i: frame.rgb for i, frame in video.read(wanted)}

        assert list(found) == sorted(wanted)
        assert all(np.array_equal(image, in_order[i]) for i, image in found.items())
        assert video.n_decoded == len(wanted)
    assert all(a.mean() < b.mean() for a, b in pairwise(in_order)), "every frame differs from the next"


def test_info_and_times(tmp_path: Path) -> None:
    with VideoFrames(make_video(tmp_path / "v.mp4")) as video:
        assert (video.info.width, video.info.height, video.info.n_frames) == (64, 64, 90)
        assert video.info.fps == pytest.approx(24)
        assert video.timestamp_s(24) == pytest.approx(1.0)


def test_reading_may_stop_early_and_start_again(tmp_path: Path) -> None:
    with VideoFrames(make_video(tmp_path / "v.mp4")) as video:
        next(video.read(range(50)))

        assert [i for i, _ in video.read([70, 2])] == [2, 70]


def test_a_frame_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    with VideoFrames(make_video(tmp_path / "v.mp4")) as video, pytest.raises(VideoError, match="has 90 frames"):
        list(video.read([90]))


def test_a_missing_file_and_a_text_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such video"):
        VideoFrames(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="not a readable video"):
        VideoFrames(tmp_path / "text.mp4")


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(VideoError), VideoFrames(path) as video:
        list(video.read(range(90)))
