"""Videos of damaged and of made-up bytes: what can be read is read alike by all readers, the rest costs one line."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import pytest

from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.video_index import build_index
from cleanup.errors import VideoError
from tests.bench.fuzz.videos import run_videos
from tests.videos import boxes, change_box, copy, encode, h264, join_boxes, make_packet, read_number, with_edits

N_FRAMES, DAMAGED, KEY = 24, 5, 12
FEW = {"numbers": range(N_FRAMES)}
VPX = "deadline=realtime cpu-used=8"
# Two readers of different machines: threads of the decoder hold back packets, and what is wrong with them.
N_THREADS = (1, 2, 15)


def spoiled(data: bytes, container: str, change: Callable[[bytes], bytes], number: int = DAMAGED) -> bytes:
    """The video in a container, one of its packets changed."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for place, packet in enumerate(packets):
            content = change(bytes(packet)) if place == number else bytes(packet)
            yield make_packet(content, packet.pts, packet.dts, packet.time_base, is_key=packet.is_keyframe)

    return copy(data, container, edit)


def zeroed_behind(n_bytes: int) -> Callable[[bytes], bytes]:
    return lambda packet: packet[:n_bytes] + bytes(len(packet) - n_bytes)


def vp9_without_a_key_frame() -> bytes:
    return spoiled(encode("libvpx-vp9", "webm", VPX, **FEW), "webm", lambda packet: packet[:1], KEY)


def shown(video: VideoFrames, wanted: Iterable[int]) -> list[int | None]:
    """What the frames show, -1 if that is not clear; None for those that are not given."""
    return [None if frame is None else read_number(frame.rgb) for _, frame in video.read(wanted)]


@pytest.mark.slow
def test_whatever_is_done_to_its_bytes_a_video_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    result = run_videos(150, 5, tmp_path / "found")

    assert result["found"] == []
    assert result["executions"] == 150
    assert result["outcomes"]["refused"] > 20 and result["outcomes"]["read in part"] > 20


@pytest.mark.parametrize(
    ("make", "change"),
    [
        pytest.param(
            lambda: encode("png", "nut", pix_fmt="rgba", **FEW),
            lambda packet: re.sub(rb"IDAT..", b"IDAT\0\0", packet, count=1),
            id="an error of zlib",
        ),
        pytest.param(
            lambda: encode("mjpeg", "nut", pix_fmt="yuvj420p", **FEW),
            lambda packet: packet.replace(b"\xff\xc0", b"\xff\xc5"),
            id="what FFmpeg does not do",
        ),
    ],
)
def test_an_error_of_any_kind_in_a_decoder_costs_one_frame(
    tmp_path: Path, make: Callable[[], bytes], change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "video"
    path.write_bytes(spoiled(make(), "avi", change))

    with VideoFrames(path) as video:
        given = [number for number in shown(video, range(video.info.n_frames)) if number is not None]

    assert given == [number for number in range(N_FRAMES) if number != DAMAGED]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(vp9_without_a_key_frame, id="VP9 in Matroska"),
        pytest.param(lambda: spoiled(h264("nut", **FEW), "mpegts", zeroed_behind(8), 20), id="H.264 in TS"),
        pytest.param(
            lambda: spoiled(encode("mpeg4", "nut", **FEW), "avi", zeroed_behind(0), 20), id="MPEG-4 in AVI"
        ),
    ],
)  # fmt: skip
def test_frames_have_the_same_numbers_whatever_the_threads_of_the_decoder(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    path = tmp_path / "video"
    path.write_bytes(make())

    found = [build_index(path, n_threads).packet_of_frame.tolist() for n_threads in N_THREADS]

    assert found[1:] == found[:1] * (len(N_THREADS) - 1)


@pytest.mark.parametrize("n_threads", N_THREADS)
def test_a_lost_key_frame_does_not_end_the_process(tmp_path: Path, n_threads: int) -> None:
    """FFmpeg's VP9 decoder ends it if it is flushed with one frame seen, and then given frames without a key frame."""
    path = tmp_path / "video"
    path.write_bytes(vp9_without_a_key_frame())
    program = (
        "import sys; from cleanup.edges.video_frames import VideoFrames\n"
        "with VideoFrames(sys.argv[1], int(sys.argv[2])) as video:\n"
        "    for wanted in ([0], [16], [video.info.n_frames - 1], [15]):\n"
        "        assert len(list(video.read(wanted))) == 1\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(n_threads)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_a_picture_without_samples_is_not_another_one(tmp_path: Path) -> None:
    """FFmpeg gives what its buffer held before."""
    path = tmp_path / "video"
    motion_jpeg = encode("mjpeg", "nut", pix_fmt="yuvj420p", **FEW)
    path.write_bytes(spoiled(motion_jpeg, "avi", lambda packet: packet[: packet.index(b"\xff\xda")] + b"\xff\xd9"))

    with VideoFrames(path, 2) as video:
        numbers = (
            [*range(N_FRAMES)] if video.info.n_frames == N_FRAMES else [n for n in range(N_FRAMES) if n != DAMAGED]
        )
        for number, found in zip(numbers, shown(video, range(len(numbers))), strict=True):
            assert found in ((None, -1) if number == DAMAGED else (number,))


def test_frames_after_a_damaged_key_frame_show_no_other_frame(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(spoiled(encode("flv", "nut", **FEW), "flv", zeroed_behind(200), KEY))

    with VideoFrames(path, 2) as video:
        together = shown(video, range(video.info.n_frames))
        alone = [shown(video, [n])[0] for n in range(video.info.n_frames)]

    assert together[:KEY] == alone[:KEY] == [*range(KEY)]
    for number in range(KEY, len(together)):
        assert {together[number], alone[number]} <= {None, -1, number}


def test_a_packet_of_an_impossible_size_is_the_end_and_no_lack_of_memory(tmp_path: Path) -> None:
    data, place = encode("libvpx-vp9", "ivf", VPX, **FEW), 32
    for _ in range(KEY):
        place += 12 + int.from_bytes(data[place : place + 4], "little")
    path = tmp_path / "video"
    path.write_bytes(data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :])

    with VideoFrames(path) as video:
        assert shown(video, range(video.info.n_frames)) == [*range(KEY)]
        assert any("breaks off" in note for note in video.info.notes)


def overlapping(n_chunks: int, n_samples: int) -> bytes:
    """An MP4 whose samples of one byte begin at the same place again and again."""

    def change(stbl: bytes) -> bytes:
        parts = dict(boxes(stbl))
        start, n = parts[b"stco"][8:12], n_chunks * n_samples
        parts[b"stsz"] = struct.pack(">III", 0, 1, n)
        parts[b"stsc"] = struct.pack(">IIIII", 0, 1, 1, n_samples, 1)
        parts[b"stco"] = struct.pack(">II", 0, n_chunks) + start * n_chunks
        parts[b"stts"] = struct.pack(">IIII", 0, 1, n, 512)
        return join_boxes((kind, content) for kind, content in parts.items() if kind not in (b"stss", b"ctts"))

    return change_box(with_edits(h264("mp4", **FEW), []), "moov/trak/mdia/minf/stbl", change)


def test_a_small_file_of_a_million_samples_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(overlapping(100, 10_000))
    started = time.process_time()

    with pytest.raises(VideoError, match=re.escape(str(path))):
        VideoFrames(path, 1)

    assert path.stat().st_size < 100_000
    assert time.process_time() - started < 5


def vp8_that_claims(side: int) -> bytes:
    """Frames of a few hundred bytes that are key frames of a large picture."""
    data = encode("libvpx", "ivf", VPX, numbers=range(8), gop=1)
    return re.sub(rb"(?<=\x9d\x01\x2a)....", struct.pack("<HH", side, side), data, flags=re.DOTALL)


def png_that_claims(side: int) -> bytes:
    def enlarge(header: re.Match[bytes]) -> bytes:
        content = b"IHDR" + struct.pack(">II", side, side) + header[1]
        return content + struct.pack(">I", zlib.crc32(content))

    data = encode("png", "mov", pix_fmt="rgba", numbers=range(8))
    return re.sub(rb"IHDR.{8}(.{5}).{4}", enlarge, data, flags=re.DOTALL)


@pytest.mark.parametrize("make", [vp8_that_claims, png_that_claims])
def test_a_small_file_of_large_pictures_takes_no_gigabytes(tmp_path: Path, make: Callable[[int], bytes]) -> None:
    path = tmp_path / "video"
    path.write_bytes(make(16_000))
    program = (
        "import resource, sys; from cleanup.edges.video_frames import VideoFrames; from cleanup.errors import VideoError\n"
        "try:\n"
        "    with VideoFrames(sys.argv[1], 2) as video: list(video.read(range(video.info.n_frames)))\n"
        "except VideoError as error: print(error, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )

    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 2048, done.stderr
