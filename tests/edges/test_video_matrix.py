"""Every frame is the right one in videos of every kind, in whatever order frames are asked for.

No encoder is at hand for Theora, VC-1, WMV3, RealVideo 3 and 4, VP6, Sorenson Video 3, Indeo, VVC and AVS: these are not
here. H.264 in fields is put together by hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from cleanup.algorithms.frame_sampling import LineageLoad, plan_shards, select_samples
from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import VideoError
from cleanup.interfaces import VideoView
from tests.videos import (
    N_FRAMES,
    RATE,
    Edit,
    boxes,
    change_box,
    copy,
    cut_short,
    encode,
    h264,
    h264_pictures,
    hevc,
    join_boxes,
    make_packet,
    overwrite,
    pack_b_frames,
    paint,
    read_number,
    read_packets,
    shift_flv_clock,
    silence,
    with_edits,
    with_matrix,
)

ALL = range(N_FRAMES)
# Long enough that a fault at the 60th frame lies beyond what a reader may try at the beginning.
LONG = range(84)
HEADERS = "dump_extra=freq=keyframe"
FREE_CLOCK = "avoid_negative_ts=disabled"
NO_INTERLACED = "OpenCV 5.0.0 does not convert interlaced pictures"
# Such times are found out when the frames come and not before.
WRONG_LATE = "times in the wrong order late in MP4"
NO_AV1 = "OpenCV's wheel has no AV1 decoder"
TAKES_COVER = "OpenCV takes the cover"
NOT_MIRRORED = "OpenCV turns pictures and does not mirror them"


@dataclass(frozen=True)
class Kind:
    """One kind of video.

    Attributes:
        name: What it is.
        make: Gives the file.
        expected: The number that each frame shows, as the decoder gives them; None for damaged files, of which a plain
            decoding tells what can be had.
        refusal: Of a file that is refused, what the reason has to say.
        opencv: Why OpenCV does not read the same; empty where it does.
        fps: Mean rate, or None where the file does not tell.
        size: Width and height of the picture as shown.
        n_of_size: How many frames have this size; those after them are not given. All have it if None.
        is_turned: Whether the file says that the decoded picture is to be turned or mirrored.
    """

    name: str
    make: Callable[[], bytes]
    expected: Sequence[int] | None = ALL
    refusal: str = ""
    opencv: str = ""
    fps: float | None = RATE
    size: tuple[int, int] = (160, 96)
    n_of_size: int | None = None
    is_turned: bool = False


def from_packet(first: int) -> Edit:
    return lambda packets: packets[first:]


def without_packet(number: int) -> Edit:
    return lambda packets: packets[:number] + packets[number + 1 :]


def retimed(
    pts: Callable[[int], int | None], dts: Callable[[int], int] | None = None, unit: Fraction = Fraction(1, RATE)
) -> Edit:
    """Other times for the packets, in units of a frame; dts are the pts if not given."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, packet in enumerate(packets):
            time = pts(number)
            yield make_packet(bytes(packet), time, dts(number) if dts else time, unit, is_key=packet.is_keyframe)

    return edit


def clock_jumps(first: int, seconds: Fraction | int, *, by_pts_alone: bool = False) -> Edit:
    """A clock that jumps at a packet. Where containers hold only the pts, dts may be anything that rises."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, packet in enumerate(packets):
            ticks = int(seconds / packet.time_base) if number >= first else 0
            packet.pts += ticks
            if by_pts_alone:
                packet.dts = number - 10**7
            elif packet.dts is not None:
                packet.dts += ticks
            yield packet

    return edit


def flagged(is_key: Callable[[int, bool], bool]) -> Edit:
    """Other key flags: told the packet's number and its true flag."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, packet in enumerate(packets):
            packet.is_keyframe = is_key(number, packet.is_keyframe)
            yield packet

    return edit


def twice(number: int) -> Edit:
    """One packet is there twice."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for place, packet in enumerate(packets):
            yield packet
            if place == number:
                yield make_packet(bytes(packet), packet.pts + 1, packet.dts + 1, packet.time_base)

    return edit


def and_then(second: bytes) -> Edit:
    """The packets, and after them those of another recording of the same rate, with a clock that goes on."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        unit = packets[0].time_base
        frame, later = int(Fraction(1, RATE) / unit), list(read_packets(second))
        shift = max(p.pts for p in packets) + frame - min(p.pts for p in later)
        everything = [(p, p.pts) for p in packets] + [(p, p.pts + shift) for p in later]
        in_order = sorted(pts for _, pts in everything)
        for (packet, pts), dts in zip(everything, in_order, strict=True):
            yield make_packet(bytes(packet), pts, dts - 4 * frame, unit, is_key=packet.is_keyframe, duration=frame)

    return edit


mpeg2 = partial(encode, "mpeg2video", options="sc_threshold=1000000000", b_frames=2)
av1 = partial(encode, "libsvtav1", options="preset=8 crf=20", is_constant_quality=True)
VPX = "deadline=good cpu-used=5 auto-alt-ref=1 lag-in-frames=12 arnr-maxframes=5"


def source(**more: object) -> bytes:
    """H.264 with B-frames, to be copied elsewhere."""
    return h264("nut", b_frames=2, **more)


def plain(**more: object) -> bytes:
    """H.264 without B-frames, to be copied elsewhere."""
    return h264("nut", **more)


def open_gop(container: str = "nut", **more: object) -> bytes:
    return h264(container, b_frames=3, x264="open-gop=1:ref=3", **more)


def hevc_open_gop(container: str = "nut", **more: object) -> bytes:
    return hevc(container, "open-gop=1:keyint=12:min-keyint=12", b_frames=3, **more)


def refreshed(container: str = "nut", numbers: Sequence[int] = LONG) -> bytes:
    """H.264 that is refreshed column by column; what is flagged as a key frame is the start of a sweep."""
    return h264(container, x264="intra-refresh=1", gop=20, numbers=numbers)


def edited(*parts: tuple[int, int | None], b_frames: int = 2, numbers: Sequence[int] = ALL) -> bytes:
    """MP4 with an edit list: so many frames from which one on; from None shows nothing for so long."""
    # A frame takes 40 ms, and 512 units of the media's clock; it starts late by as many frames as B-frames may overtake.
    lead = 1024 if b_frames else 0
    edits = [(40 * n_frames, -1 if first is None else lead + 512 * first) for n_frames, first in parts]
    return with_edits(h264("mp4", b_frames=b_frames, numbers=numbers), edits)


def fields(
    container: str, *, is_apart: bool = True, numbers: Sequence[int] = range(24), n_whole: int = 0, gop: int = 6
) -> bytes:
    """Pictures of two fields, after so many that are coded whole; each field in a packet of its own or both in one."""
    pictures = h264_pictures(numbers, n_whole, gop)

    def edit(_: list[av.Packet]) -> Iterator[av.Packet]:
        for place, parts in enumerate(pictures):
            packets = parts if is_apart else [b"".join(parts)]
            for i, data in enumerate(packets):
                time, is_key = 2 * place + i, place % gop == 0 and i == 0
                unit, duration = Fraction(1, 2 * RATE), 2 // len(packets)
                yield make_packet(data, time, time, unit, is_key=is_key, duration=duration)

    return copy(b"".join(b"".join(parts) for parts in pictures), container, edit)


def with_cover(container: str, *, is_before: bool = False) -> bytes:
    cover = encode("mjpeg", "nut", numbers=(999,), pix_fmt="yuvj420p")
    data = copy(source(), container, beside=(cover,), is_cover=(False, True))
    if not is_before:
        return data
    return change_box(data, "moov", lambda moov: join_boxes(sorted(boxes(moov), key=lambda box: box[0] != b"udta")))


def two(make: Callable[..., bytes], **of_second: object) -> bytes:
    """Two recordings, one after the other in a file."""
    return make(numbers=range(30)) + make(numbers=range(500, 530), **of_second)


TWO = [*range(30), *range(500, 530)]


def _containers() -> Iterator[Kind]:
    for container in ("mp4", "mov", "matroska", "avi", "mpegts", "flv", "asf", "mxf"):
        yield Kind(f"H.264 with B-frames in {container}", partial(h264, container, b_frames=2))
    yield Kind("H.264 without B-frames in AVI", partial(h264, "avi"))
    for container in ("mp4", "mpegts", "flv"):
        yield Kind(f"HEVC in {container}", partial(hevc, container, b_frames=2))
    yield Kind("H.264 as it is", partial(h264, "h264", b_frames=2))
    yield Kind("HEVC as it is", partial(hevc, "hevc", b_frames=2))
    yield Kind("MPEG-2 as it is", partial(mpeg2, "mpeg2video"))
    for container in ("mpegts", "mpeg", "vob", "mxf", "avi"):
        yield Kind(f"MPEG-2 in {container}", partial(mpeg2, container))
    yield Kind("MPEG-1 in mpeg", partial(encode, "mpeg1video", "mpeg", "sc_threshold=1000000000", b_frames=2))
    yield Kind("M2TS", partial(h264, "mpegts", b_frames=2, mux_options="mpegts_m2ts_mode=1"))
    for container, options in (
        ("fragments", "frag_keyframe+empty_moov+default_base_moof"),
        ("a fragment per frame", "frag_every_frame+empty_moov"),
    ):
        yield Kind(f"MP4 of {container}", partial(h264, "mp4", b_frames=2, mux_options=f"movflags={options}"))
    yield Kind("MP4 with its index in front", partial(h264, "mp4", b_frames=2, mux_options="moov_size=8000"))
    yield Kind("live Matroska without an index", partial(h264, "matroska", b_frames=2, mux_options="live=1"))
    yield Kind("FLV with an index", partial(h264, "flv", b_frames=2, mux_options="flvflags=add_keyframe_index"))
    yield Kind("AVI without its index", lambda: h264("avi", b_frames=2).partition(b"idx1")[0])


def _codecs() -> Iterator[Kind]:
    for container in ("webm", "ogg"):
        yield Kind(f"VP8 with hidden frames in {container}", partial(encode, "libvpx", container, VPX))
    for container in ("webm", "ivf", "mp4"):
        yield Kind(f"VP9 with hidden frames in {container}", partial(encode, "libvpx-vp9", container, VPX))
    for container in ("webm", "ivf"):
        yield Kind(f"AV1 in {container}", partial(av1, container, numbers=LONG), LONG, opencv=NO_AV1)
    yield Kind(
        "VP9 with alpha", partial(encode, "libvpx-vp9", "webm", "deadline=realtime cpu-used=8", pix_fmt="yuva420p")
    )
    for codec, container, pix_fmt in (
        ("prores_ks", "mov", "yuva444p10le"),
        ("mjpeg", "avi", "yuvj420p"),
        ("mjpeg", "mjpeg", "yuvj420p"),
        ("mpeg4", "mp4", "yuv420p"),
        ("ffv1", "matroska", "yuv420p"),
        ("rawvideo", "avi", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("wmv2", "asf", "yuv420p"),
        ("msmpeg4", "avi", "yuv420p"),
        ("png", "mov", "rgba"),
        ("qtrle", "mov", "argb"),
        ("msvideo1", "avi", "rgb555le"),
    ):
        yield Kind(f"{codec} of {pix_fmt} in {container}", partial(encode, codec, container, pix_fmt=pix_fmt))
    yield Kind("MPEG-4 with B-frames in AVI", partial(encode, "mpeg4", "avi", b_frames=2))
    yield Kind("MPEG-4 with packed B-frames", lambda: copy(encode("mpeg4", "avi", b_frames=1), "avi", pack_b_frames))
    yield Kind(
        "DV",
        partial(encode, "dvvideo", "dv", size=(720, 576)),
        size=(720, 576),
        opencv=NO_INTERLACED,
    )
    yield Kind("H.263 in 3GP", partial(encode, "h263", "3gp", size=(176, 144)), size=(176, 144), fps=None)
    yield Kind(
        "DNxHR in MXF",
        partial(encode, "dnxhd", "mxf", "profile=dnxhr_lb", size=(256, 128), pix_fmt="yuv422p"),
        size=(256, 128),
    )
    yield Kind(
        "DV in AVI",
        partial(encode, "dvvideo", "avi", size=(720, 576), numbers=range(6)),
        expected=range(6),
        opencv=NO_INTERLACED,
        size=(720, 576),
    )


def _structures() -> Iterator[Kind]:
    yield Kind(
        "B-frames that others refer to", partial(h264, "mp4", b_frames=5, x264="b-pyramid=2:ref=4", numbers=LONG), LONG
    )
    yield Kind("HEVC with B-frames that others refer to", partial(hevc, "mp4", "b-pyramid=1", b_frames=4))
    for container in ("mp4", "matroska", "mpegts", "h264"):
        yield Kind(f"H.264 of open groups in {container}", partial(open_gop, container, numbers=LONG), LONG)
    for container in ("mp4", "mpegts", "hevc"):
        yield Kind(f"HEVC of open groups in {container}", partial(hevc_open_gop, container, numbers=LONG), LONG)
    for container in ("mp4", "matroska", "mpegts"):
        yield Kind(f"H.264 refreshed by columns in {container}", partial(refreshed, container), expected=LONG)
    first, second = range(60), range(60, 84)
    for container in ("mp4", "matroska"):
        for name, make_first, make_second in (
            ("H.264 of closed groups, then of open ones", source, open_gop),
            ("HEVC of closed groups, then of open ones", partial(hevc, "nut", b_frames=2), hevc_open_gop),
            ("H.264 of key frames, then refreshed by columns", plain, refreshed),
            ("H.264 without B-frames, then with them", plain, source),
        ):
            make = partial(_join, container, partial(make_first, numbers=first), partial(make_second, numbers=second))
            yield Kind(f"{name}, in {container}", make, LONG)
    yield Kind("nothing but key frames", partial(h264, "mp4", gop=1))
    yield Kind("a single key frame", partial(h264, "mp4", gop=600, b_frames=2))
    yield Kind("a single frame", partial(h264, "mp4", numbers=(7,)), expected=[7])
    yield Kind("a single frame in Matroska", partial(h264, "matroska", numbers=(7,)), expected=[7], fps=None)
    yield Kind("two frames", partial(h264, "matroska", numbers=(7, 8), b_frames=1), expected=[7, 8])
    for container in ("mp4", "mpegts"):
        options = {"options": "flags=+ildct+ilme", "x264": "tff=1:interlaced=1"}
        yield Kind(
            f"interlaced H.264 in {container}", partial(h264, container, b_frames=2, **options), opencv=NO_INTERLACED
        )
    yield Kind(
        "interlaced MPEG-2", partial(mpeg2, "mpegts", options="sc_threshold=1000000000 flags=+ildct+ilme"),
        opencv=NO_INTERLACED,
    )  # fmt: skip
    in_fields = partial(Kind, expected=range(24), opencv=NO_INTERLACED, fps=None)
    for container in ("mp4", "matroska", "mpegts", "avi"):
        yield in_fields(f"H.264 in fields, a packet each, in {container}", partial(fields, container))
    yield in_fields("H.264 in fields, two a packet, in mp4", partial(fields, "mp4", is_apart=False))
    for container in ("mp4", "matroska"):
        make = partial(fields, container, numbers=LONG, n_whole=60, gop=1)
        # A decoder in threads calls the first picture in fields corrupt, in some runs.
        yield replace(in_fields(f"H.264 late in fields, in {container}", make), expected=None)
    yield in_fields("H.264 in fields as it is", lambda: b"".join(map(b"".join, h264_pictures())))
    for pix_fmt in ("yuv420p10le", "yuv422p10le", "yuv444p", "gray", "yuvj420p"):
        yield Kind(f"H.264 of {pix_fmt}", partial(h264, "mp4", pix_fmt=pix_fmt, b_frames=2))
    yield Kind("HEVC of 10 bits", partial(hevc, "mp4", pix_fmt="yuv420p10le", b_frames=2))
    yield Kind("H.264 of RGB", partial(encode, "libx264rgb", "mp4", "preset=ultrafast", pix_fmt="rgb24"))


def _join(container: str, first: Callable[[], bytes], second: Callable[[], bytes]) -> bytes:
    with_headers = copy(second(), "nut", bsf=HEADERS)
    return copy(first(), container, and_then(with_headers))


def _starts() -> Iterator[Kind]:
    later, rest = range(12, N_FRAMES), range(24, N_FRAMES)
    for container in ("mp4", "matroska", "mpegts"):
        make = partial(_copy_from, hevc_open_gop, container, 9)
        yield Kind(f"HEVC from a later key frame of an open group in {container}", make, later)
    for container in ("mp4", "matroska", "mpegts", "flv"):
        make = partial(_copy_from, open_gop, container, 9)
        yield Kind(f"H.264 from a later key frame of an open group in {container}", make, later)
    for container in ("mp4", "matroska", "mpegts", "flv", "h264", "avi"):
        # The rate that is written into the AVI is no rate of this video.
        fps = None if container == "avi" else RATE
        make = partial(_copy_from, source, container, 17)
        yield Kind(f"H.264 from between key frames in {container}", make, rest, fps=fps)
    for container in ("matroska", "mpegts"):
        make = partial(_copy_from, plain, container, 17)
        yield Kind(f"H.264 without B-frames from between key frames in {container}", make, rest)
        make = partial(_copy_from, refreshed, container, 25)
        yield Kind(f"H.264 refreshed by columns from between in {container}", make, None)
    for container in ("mpegts", "mpeg", "mpeg2video"):
        make = partial(_copy_from, partial(mpeg2, "nut"), container, 17)
        yield Kind(f"MPEG-2 from between key frames in {container}", make, rest)
    yield Kind("TS from the middle of a packet", lambda: h264("mpegts", b_frames=2)[9_000:], later)
    yield Kind("a late start", partial(h264, "mp4", b_frames=2, times=range(100, 100 + N_FRAMES)))
    yield Kind("an early start", lambda: copy(source(), "mp4", clock_jumps(0, -1)), range(23, N_FRAMES))


def _copy_from(make: Callable[[], bytes], container: str, first: int) -> bytes:
    """A recording that begins at a later packet."""
    bsf = HEADERS if container in ("mpegts", "h264") else ""
    return copy(make(), container, from_packet(first), bsf=bsf)


def _edit_lists() -> Iterator[Kind]:
    parts = partial(partial, edited)
    yield Kind("an edit list from between key frames", parts((20, 17)), range(17, 37))
    make = partial(edited, (20, 17), b_frames=0)
    yield Kind("an edit list from between key frames without B-frames", make, range(17, 37))
    yield Kind("an edit list with a delay", parts((10, None), (N_FRAMES, 0)))
    yield Kind("an edit list to before the end", parts((25, 0)), range(25))
    yield Kind("an edit list of two parts", parts((20, 5), (8, 28)), [*range(5, 25), *range(28, 36)])
    yield Kind("an edit list of two parts turned round", parts((12, 26), (15, 5)), [*range(26, 38), *range(5, 20)])
    yield Kind("an edit list of one part twice", parts((20, 5), (20, 5)), [*range(5, 25)] * 2)
    # FFmpeg's own slip: it shows the beginning in the hole.
    holed = [*range(5, 25), *range(8), *range(28, 36)]
    yield Kind("an edit list with a hole", parts((20, 5), (10, None), (8, 28)), holed, fps=None)
    make = partial(edited, (60, 0), (16, 66), numbers=LONG)
    yield Kind("an edit list of two parts, the second late", make, [*range(60), *range(66, 82)], fps=None)


def _joined() -> Iterator[Kind]:
    for container in ("mpegts", "h264", "matroska", "avi"):
        yield Kind(f"two recordings in one {container}", partial(two, partial(h264, container, b_frames=2)), TWO)
    yield Kind("two recordings in one mpeg", partial(two, partial(mpeg2, "mpeg")), TWO)
    yield Kind("two recordings in one vob", partial(two, partial(mpeg2, "vob")), TWO)
    yield Kind("two recordings in one hevc", partial(two, partial(hevc, "hevc", b_frames=2)), TWO)
    # The second is no part of the film.
    yield Kind("two recordings in one MP4", partial(two, partial(h264, "mp4", b_frames=2)), range(30))
    sizes = {"size": (160, 96), "n_of_size": 30}
    make = partial(two, partial(h264, "mpegts", b_frames=2), size=(320, 192))
    yield Kind("two sizes in one TS", make, TWO, **sizes)
    make = partial(two, partial(h264, "h264", b_frames=2), size=(320, 192))
    yield Kind("two sizes in one H.264", make, TWO, **sizes)
    joined = partial(two, partial(h264, "h264"), size=(320, 192))
    make = partial(_copy_made, joined, "matroska", retimed(lambda i: i))
    yield Kind("two sizes in one Matroska", make, TWO, **sizes)
    make = partial(two, partial(mpeg2, "mpegts"), size=(320, 192))
    # FFmpeg's decoder loses the last frame of the first.
    yield Kind("two sizes of MPEG-2 in one TS", make, [*range(29), *range(500, 530)], size=(160, 96), n_of_size=29)


def _copy_made(make: Callable[[], bytes], container: str, edit: Edit = iter, **more: str) -> bytes:
    """The same as `copy`, of a file that is made when it is needed."""
    return copy(make(), container, edit, **more)


def _clocks() -> Iterator[Kind]:
    irregular = partial(Kind, fps=None)
    for container in ("mp4", "matroska", "mpegts", "flv"):
        bsf = HEADERS if container == "mpegts" else ""
        make = partial(_copy_made, source, container, clock_jumps(24, 100), bsf=bsf)
        yield irregular(f"a clock that jumps ahead in {container}", make)
    long, plain_long = partial(source, numbers=LONG), partial(plain, numbers=LONG)
    for first, when in ((24, "early"), (72, "late")):
        edit = clock_jumps(first, Fraction(-1, 2), by_pts_alone=True)
        make = partial(_copy_made, long, "matroska", edit, mux_options=FREE_CLOCK)
        yield irregular(f"a clock that jumps back {when} in Matroska", make, LONG)
    yield irregular("a clock that jumps back in FLV", lambda: shift_flv_clock(h264("flv", b_frames=2), 24, -600))
    yield irregular("a clock that begins anew in FLV", lambda: shift_flv_clock(h264("flv", b_frames=2), 24, -960))
    edit = clock_jumps(0, Fraction(2**33, 90000) - 1)
    make = partial(_copy_made, source, "mpegts", edit, bsf=HEADERS, mux_options=FREE_CLOCK)
    yield Kind("a TS whose clock runs over", make)
    for name, pts in (
        ("all times equal", lambda i: 0),
        ("every time twice", lambda i: i // 2 * 2),
        ("a doubled time late", lambda i: i - (i == 70)),
    ):
        yield irregular(f"{name} in Matroska", partial(_copy_made, plain_long, "matroska", retimed(pts)), LONG)
    yield irregular("all times equal in FLV", partial(_copy_made, plain, "flv", retimed(lambda i: 0)))
    yield irregular("all times of B-frames equal", partial(_copy_made, source, "matroska", retimed(lambda i: 0)))
    for first, when in ((0, "early"), (60, "late")):
        edit = retimed(lambda i, first=first: (i ^ (i >= first)) + 2, lambda i: i - 10**6)
        make = partial(_copy_made, plain_long, "matroska", edit, mux_options=FREE_CLOCK)
        yield irregular(f"times in the wrong order {when} in Matroska", make, LONG)
        edit = retimed(lambda i, first=first: (i ^ (i >= first)) + 2, lambda i: i)
        make = partial(_copy_made, plain_long, "mp4", edit, mux_options="use_editlist=0")
        if when == "early":
            yield irregular(f"times in the wrong order {when} in MP4", make, LONG)
        else:
            yield Kind(WRONG_LATE, make, None)
    edit = retimed(lambda i: 100 - i, lambda i: i - 100)
    make = partial(_copy_made, plain, "mp4", edit, mux_options="use_editlist=0")
    yield irregular("times that run backward in MP4", make)
    yield irregular("no times in AVI", partial(_copy_made, source, "avi", retimed(lambda i: None, lambda i: i)))
    gaps = tuple(10 * i + (0, 3, 7)[i % 3] + (9_000 if i >= 24 else 0) for i in ALL)
    for container in ("mp4", "matroska", "mpegts", "avi"):
        make = partial(h264, container, b_frames=2, times=gaps, time_base=Fraction(1, 1000))
        yield irregular(f"a variable rate with a gap in {container}", make)
    for container in ("matroska", "flv"):
        make = partial(h264, container, b_frames=2, time_base=Fraction(1, 60))
        yield Kind(f"60 frames a second in {container}", make, fps=60)
        make = partial(h264, container, b_frames=2, time_base=Fraction(1, 2000))
        yield irregular(f"2000 frames a second with B-frames in {container}", make)
    yield irregular("2000 frames a second in Matroska", partial(h264, "matroska", time_base=Fraction(1, 2000)))
    make = partial(h264, "matroska", b_frames=2, time_base=Fraction(1001, 30000))
    yield Kind("29.97 frames a second", make, fps=29.97)


def _streams() -> Iterator[Kind]:
    other = range(200, 200 + N_FRAMES)
    small = partial(source, size=(80, 48), numbers=other)
    for container in ("mp4", "mpegts"):
        make = partial(_put_beside, container, small, source)
        yield Kind(f"a small picture before a large one in {container}", make, other, size=(80, 48))
    for container in ("matroska", "mpegts"):
        make = partial(_put_beside, container, source, partial(source, numbers=other))
        yield Kind(f"two equal pictures in {container}", make)
        yield Kind(f"sound in {container}", partial(_put_beside, container, source, silence))
    yield Kind("sound in MPEG", partial(_put_beside, "mpeg", partial(mpeg2, "nut"), partial(silence, codec="mp2")))
    yield Kind("sound before the picture", partial(_put_beside, "mp4", silence, source))
    yield Kind("a cover after the picture", partial(with_cover, "mp4"))
    yield Kind("a cover before the picture", partial(with_cover, "mp4", is_before=True), opencv=TAKES_COVER)


def _put_beside(container: str, first: Callable[[], bytes], second: Callable[[], bytes]) -> bytes:
    return copy(first(), container, beside=(second(),))


def _geometry() -> Iterator[Kind]:
    yield Kind("pixels that are not square", partial(h264, "mp4", aspect=Fraction(16, 11)))
    for name, matrix, turns, is_mirrored, containers in (
        ("turned by 90 degrees", (0, 1, -1, 0), 1, False, ("mp4", "matroska")),
        ("turned by 180 degrees", (-1, 0, 0, -1), 2, False, ("mp4",)),
        ("turned by 270 degrees", (0, -1, 1, 0), 3, False, ("mp4",)),
        ("left and right exchanged", (-1, 0, 0, 1), 0, True, ("mp4", "matroska")),
        ("turned and mirrored", (0, 1, 1, 0), 3, True, ("mp4",)),
    ):
        for container in containers:
            yield Kind(
                f"{name} in {container}",
                partial(_turned, matrix, turns, is_mirrored, container),
                opencv=NOT_MIRRORED if is_mirrored else "",
                size=(96, 160) if turns % 2 else (160, 96),
                is_turned=True,
            )

    bsf = "h264_metadata=rotate=90:display_orientation=insert"
    make = partial(_copy_made, partial(source, turns=3), "mp4", bsf=bsf)
    why = "OpenCV looks into the container alone"
    yield Kind("turned by what H.264 says", make, opencv=why, size=(96, 160), is_turned=True)


def _turned(matrix: tuple[int, int, int, int], turns: int, is_mirrored: bool, container: str) -> bytes:
    """The picture is painted turned, and the display matrix puts it upright."""
    data = with_matrix(h264("mp4", b_frames=2, turns=turns, is_mirrored=is_mirrored), *matrix)
    return data if container == "mp4" else copy(data, container)


def _lying() -> Iterator[Kind]:
    lies: Iterable[tuple[str, Callable[[int, bool], bool]]] = (
        ("every packet", lambda i, k: True),
        ("no packet but the first", lambda i, k: i == 0),
        ("the packets after key frames", lambda i, k: i == 0 or i % 12 == 1),
        ("one wrong packet late", lambda i, k: k or i == 66),
        ("every late packet", lambda i, k: k or i >= 60),
    )
    for name, is_key in lies:
        for container in ("mp4", "matroska"):
            make = partial(_copy_made, partial(source, numbers=LONG), container, flagged(is_key))
            yield Kind(f"{name} flagged as a key frame in {container}", make, LONG)
    everything = flagged(lambda i, k: True)
    for codec, container, of_codec in (
        ("MPEG-4", "mp4", partial(encode, "mpeg4", "nut", b_frames=2)),
        ("MPEG-4", "avi", partial(encode, "mpeg4", "nut")),
        ("HEVC", "matroska", partial(hevc, "nut", b_frames=2)),
        ("VP9", "matroska", partial(encode, "libvpx-vp9", "webm", VPX)),
    ):
        make = partial(_copy_made, of_codec, container, everything)
        yield Kind(f"{codec} with every packet flagged as a key frame in {container}", make)
    junk = bytes(np.random.default_rng(3).integers(1, 255, 3000, np.uint8))
    yield Kind("TS after junk", lambda: junk + h264("mpegts", b_frames=2))
    yield Kind("MPEG after junk", lambda: junk + mpeg2("mpeg"))
    yield Kind("MP4 before junk", lambda: h264("mp4", b_frames=2) + junk)
    yield Kind("Matroska before junk", lambda: h264("matroska", b_frames=2) + junk)
    yield Kind("TS before junk", lambda: h264("mpegts", b_frames=2) + junk)


def _damaged() -> Iterator[Kind]:
    makers: dict[str, Callable[[], bytes]] = {
        "MP4": partial(h264, "mp4", b_frames=2, numbers=LONG, mux_options="moov_size=8000"),
        "Matroska": partial(h264, "matroska", b_frames=2, numbers=LONG),
        "TS": partial(h264, "mpegts", b_frames=2, numbers=LONG),
        "AVI": partial(h264, "avi", b_frames=2, numbers=LONG),
        "FLV": partial(h264, "flv", b_frames=2, numbers=LONG),
        "MPEG": partial(mpeg2, "mpeg", numbers=LONG),
        "HEVC in MP4": partial(hevc, "mp4", b_frames=2, numbers=LONG, mux_options="moov_size=8000"),
        "MJPEG in AVI": partial(encode, "mjpeg", "avi", pix_fmt="yuvj420p", numbers=LONG),
        "VP9 in WebM": partial(encode, "libvpx-vp9", "webm", "deadline=realtime cpu-used=8", numbers=LONG),
        "ProRes in MOV": partial(encode, "prores_ks", "mov", pix_fmt="yuv422p10le", mux_options="moov_size=8000"),
    }
    damaged = partial(Kind, expected=None)
    for name, make in makers.items():
        yield damaged(f"half of {name}", partial(_spoilt, make, cut_short))
        yield damaged(f"zeros early in {name}", partial(_spoilt, make, partial(overwrite, start=0.3, is_zero=True)))
        yield damaged(f"random bytes late in {name}", partial(_spoilt, make, partial(overwrite, start=0.7)))
    for container in ("mp4", "matroska", "mpegts"):
        copied = partial(
            _copy_made, partial(source, numbers=LONG), container, bsf=HEADERS if container == "mpegts" else ""
        )
        for number, what in ((63, "a B-frame"), (64, "a P-frame"), (72, "a key frame")):
            yield damaged(f"{what} is missing in {container}", partial(copied, edit=without_packet(number)))
        yield damaged(f"a packet is there twice in {container}", partial(copied, edit=twice(66)))


def _spoilt(make: Callable[[], bytes], spoil: Callable[[bytes], bytes]) -> bytes:
    return spoil(make())


def _refused() -> Iterator[Kind]:
    refused = partial(Kind, expected=None)
    unreadable = partial(refused, refusal="not a readable video")
    yield unreadable("an empty file", bytes)
    yield unreadable("text", lambda: b"This is no video.\n" * 200)
    yield unreadable("a PNG", partial(encode, "png", "image2pipe", numbers=(1,), pix_fmt="rgb24"))
    yield unreadable("a GIF", partial(encode, "gif", "gif", pix_fmt="rgb8", numbers=(1, 2)))
    yield unreadable("NUT", source)
    yield unreadable("a list of files", lambda: b"ffconcat version 1.0\nfile /etc/hostname\n")
    yield unreadable("an HLS playlist", lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n")
    yield unreadable("half of an MP4 with its index at the end", lambda: cut_short(h264("mp4")))
    yield refused("nothing but sound", partial(silence, "mp4"), refusal="no video stream")
    cluster = b"\x1f\x43\xb6\x75"
    yield refused(
        "a Matroska without frames",
        lambda: h264("matroska").partition(cluster)[0],
        refusal="no frame|not a readable video",
    )
    make = partial(_copy_made, source, "mp4", without_all)
    yield refused("an MP4 without frames", make, refusal="no frame|no video stream|not a readable video")
    zeros = partial(change_box, path="mdat", change=lambda content: bytes(len(content)))
    yield refused(
        "an MP4 whose frames are all zeros", partial(_spoilt, partial(h264, "mp4"), zeros), refusal="no frame"
    )
    make = partial(_copy_made, partial(plain, gop=600), "matroska", from_packet(5))
    yield refused("H.264 without any key frame", make, refusal="no frame")


def without_all(packets: list[av.Packet]) -> list[av.Packet]:
    return packets[:0]


GROUPS = (
    _containers, _codecs, _structures, _starts, _edit_lists, _joined, _clocks, _streams, _geometry, _lying, _damaged,
    _refused,
)  # fmt: skip
KINDS = [kind for group in GROUPS for kind in group()]
RIGHT = [kind for kind in KINDS if kind.expected is not None and not kind.refusal]
DAMAGED = [kind for kind in KINDS if kind.expected is None and not kind.refusal and kind.name != WRONG_LATE]
REFUSED = [kind for kind in KINDS if kind.refusal]
by_name = {"ids": lambda kind: kind.name}
Write = Callable[[Kind], Path]


@dataclass(frozen=True)
class Decoded:
    """What a plain decoding shows.

    Attributes:
        numbers: Of each frame, None where it is marked as corrupt or shows none.
        times: Presentation time of each frame.
        packet_times: Those of all packets that are to be shown.
    """

    numbers: list[int | None]
    times: list[int | None]
    packet_times: list[int | None]

    def by_time(self) -> list[int | None]:
        """The numbers at the places that the times of the packets give them; None where a packet made no frame."""
        if None in self.packet_times or len(set(self.packet_times)) < len(self.packet_times):
            return self.numbers
        known = dict(zip(self.times, self.numbers, strict=True))
        return [known.get(time) for time in sorted(self.packet_times)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the file of a kind, once for all tests of it."""
    folder = tmp_path_factory.mktemp("kinds")
    paths: dict[str, Path] = {}

    def write(kind: Kind) -> Path:
        if kind.name not in paths:
            paths[kind.name] = folder / f"{len(paths)}.mp4"
            paths[kind.name].write_bytes(kind.make())
        return paths[kind.name]

    return write


def decode_plainly(path: Path, thread_type: str = "SLICE") -> Decoded:
    """Decodes the first picture that is no cover from beginning to end; what cannot be decoded is left out."""
    decoded = Decoded([], [], [])
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        stream.thread_type, stream.codec_context.thread_count = thread_type, 3
        for packet in _until_it_breaks_off(container, stream):
            if packet is not None and not packet.is_discard:
                decoded.packet_times.append(packet.pts)
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                number = read_number(reformatter.reformat(frame, format="rgb24").to_ndarray())
                decoded.numbers.append(None if frame.is_corrupt or number < 0 else number)
                decoded.times.append(frame.pts)
    return decoded


def _until_it_breaks_off(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    with contextlib.suppress(av.error.InvalidDataError):
        yield from (packet for packet in container.demux(stream) if packet.size)
    yield None


def decode_with_opencv(path: Path) -> list[int]:
    """The numbers as OpenCV reads them from beginning to end."""
    capture, numbers = cv2.VideoCapture(str(path)), []
    while True:
        is_read, picture = capture.read()
        if not is_read:
            return numbers
        numbers.append(read_number(picture))


def readings(n_frames: int) -> Iterator[tuple[str, list[int]]]:
    """What is asked of a `VideoFrames`, one after the other, and a name for it."""
    for frame_idx in np.random.default_rng(1).permutation(n_frames)[:12]:
        yield "one by one in any order", [int(frame_idx)]
    for step in (3, 24):
        for frames in shard_looks(n_frames, step):
            yield f"in shards with every {step}. frame", frames


def shard_looks(n_frames: int, step: int) -> Iterator[list[int]]:
    """Frames as shards of four lineages ask for them, and then once more between the samples of a burst of each."""
    ends = [0, n_frames // 3, n_frames // 2 - 2, n_frames - 3, n_frames]
    lineages = [np.arange(first, end) for first, end in pairwise(ends) if end > first >= 0]
    bursts = [frames[len(frames) // 2 :][:5] for frames in lineages]
    samples = [frames[select_samples(frames, step, burst[::2])] for frames, burst in zip(lineages, bursts, strict=True)]
    loads = [
        LineageLoad(i, int(f[0]), int(f[-1]), len(s)) for i, (f, s) in enumerate(zip(lineages, samples, strict=True))
    ]
    for shard in plan_shards(loads, faces_per_shard=8):
        for frames in (samples, [burst[1::2] for burst in bursts]):
            yield sorted({int(frame) for lineage in shard for frame in frames[lineage]})


def read_numbers(
    video: VideoFrames, frames: list[int], reformatter: VideoReformatter | None = None
) -> list[int | None]:
    """What frames show; None for one that is unreadable, and for one that shows no number clearly.

    Args:
        video: The video.
        frames: Frame numbers, rising.
        reformatter: Converts the decoded picture in less time; without one, it is the picture as it is given out.
    """
    numbers: list[int | None] = []
    for frame_idx, frame in video.read(frames):
        assert frame_idx == frames[len(numbers)]
        if frame is None:
            number = -1
        elif reformatter is not None:
            number = read_number(reformatter.reformat(frame.source, format="rgb24").to_ndarray())
        else:
            assert frame.rgb.shape == (video.info.height, video.info.width, 3)
            number = read_number(frame.rgb)
        numbers.append(None if number < 0 else number)
    assert len(numbers) == len(frames)
    return numbers


@pytest.mark.parametrize("number", [0, 1, 341, 682, 1023])
@pytest.mark.parametrize("size", [(160, 96), (80, 48), (720, 576)])
def test_a_painted_number_is_read_and_a_grey_or_mixed_picture_is_none(number: int, size: tuple[int, int]) -> None:
    picture, other = paint(number, size), paint(number ^ 4, size)

    assert read_number(picture) == number
    assert read_number(np.full_like(picture, 128)) == -1
    assert read_number(np.concatenate([picture[: size[1] // 2], other[size[1] // 2 :]])) == -1


@pytest.mark.parametrize("kind", RIGHT, **by_name)
def test_plain_decoding_shows_the_known_numbers(written: Write, kind: Kind) -> None:
    path = written(kind)

    if not kind.is_turned:
        assert decode_plainly(path).numbers == list(kind.expected or ())
    if not kind.opencv:
        assert decode_with_opencv(path) == list(kind.expected or ())


@pytest.mark.parametrize("kind", RIGHT, **by_name)
def test_every_frame_is_the_right_one_in_any_order(written: Write, kind: Kind) -> None:
    n_given = len(kind.expected or ()) if kind.n_of_size is None else kind.n_of_size
    expected = [number if i < n_given else None for i, number in enumerate(kind.expected or ())]
    view = VideoView(is_turned=kind.is_turned)

    with VideoFrames(written(kind), view=view) as video:
        assert video.info.n_frames == len(expected)
        assert (video.info.width, video.info.height) == kind.size
        assert kind.fps is None or video.info.fps == pytest.approx(kind.fps, rel=0.02)
        assert read_numbers(video, list(range(len(expected)))) == expected
        reformatter = None if kind.is_turned else VideoReformatter()
        for name, frames in readings(len(expected)):
            assert read_numbers(video, frames, reformatter) == [expected[i] for i in frames], name
    frame_idx = 2 * len(expected) // 3
    with VideoFrames(written(kind), view=view) as video:
        assert read_numbers(video, [frame_idx]) == [expected[frame_idx]], "freshly opened"


@pytest.mark.parametrize("kind", DAMAGED, **by_name)
def test_no_frame_of_a_damaged_video_is_a_wrong_one(written: Write, kind: Kind) -> None:
    with VideoFrames(written(kind)) as video:
        n_frames, reformatter = video.info.n_frames, VideoReformatter()
        found = [
            (name, frame_idx, number)
            for name, frames in [("from beginning to end", list(range(n_frames))), *readings(n_frames)]
            for frame_idx, number in zip(frames, read_numbers(video, frames, reformatter), strict=True)
            if number is not None
        ]
    decodings = [decode_plainly(written(kind), thread_type) for thread_type in ("SLICE", "AUTO")]
    # Frames may be counted as they come out of the decoder, or by their times with holes for what does not come.
    numberings = [n for decoded in decodings for n in (decoded.numbers, decoded.by_time()) if len(n) == n_frames]
    assert numberings, f"{n_frames} frames, decoded are {[len(d.numbers) for d in decodings]}"
    wrong = [[(*one, numbers[one[1]]) for one in found if one[2] != numbers[one[1]]] for numbers in numberings]
    assert min(wrong, key=len) == [], "reading, frame, number shown, right number"
    assert len({frame_idx for _, frame_idx, _ in found}) > n_frames // 3, "what is whole can be read"


@pytest.mark.parametrize("kind", REFUSED, **by_name)
def test_what_is_no_video_is_refused_with_the_reason(written: Write, kind: Kind) -> None:
    with pytest.raises(VideoError, match=kind.refusal) as caught:
        VideoFrames(written(kind))
    assert "\n" not in str(caught.value)


def test_times_that_are_against_the_order_of_the_pictures_are_refused_as_soon_as_those_come(written: Write) -> None:
    kind = next(kind for kind in KINDS if kind.name == WRONG_LATE)
    with (
        VideoFrames(written(kind)) as video,
        pytest.raises(VideoError, match="against what the file says of their times"),
    ):
        list(video.read(range(video.info.n_frames)))
