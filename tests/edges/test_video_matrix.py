"""Every frame is the right one in videos of every kind, in whatever order frames are asked for.

No encoder is at hand for Theora, VC-1, WMV3, RealVideo 3 and 4, VP6, Sorenson Video 3, Indeo, VVC and AVS: these are not
here. H.264 in fields is put together by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from cleanup.algorithms.frame_sampling import LineageLoad, plan_shards, select_samples
from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import VideoError
from tests.videos import (
    N_FRAMES,
    RATE,
    boxes,
    change_box,
    copy,
    cut_short,
    encode,
    h264,
    h264_fields,
    hevc,
    join_boxes,
    make_packet,
    overwrite,
    pack_b_frames,
    paint,
    read_number,
    shift_flv_clock,
    silence,
    with_edits,
    with_matrix,
)

ALL = range(N_FRAMES)
# Long enough that a fault at the 60th frame lies beyond what a reader may try at the beginning.
LONG = range(100)
HEADERS = "dump_extra=freq=keyframe"
FREE_CLOCK = "avoid_negative_ts=disabled"
NO_INTERLACED = "OpenCV 5.0.0 does not convert interlaced pictures"
NO_AV1 = "OpenCV's wheel has no AV1 decoder"
TAKES_COVER = "OpenCV takes the cover"
NOT_TURNED = "OpenCV does not mirror, and PyAV does not turn"
UNREADABLE = "not a readable video"


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
        size: Width and height of the picture as shown, or None where it changes.
        is_turned: Whether the file says that the decoded picture is to be turned or mirrored.
    """

    name: str
    make: Callable[[], bytes]
    expected: Sequence[int] | None = ALL
    refusal: str = ""
    opencv: str = ""
    fps: float | None = RATE
    size: tuple[int, int] | None = (160, 96)
    is_turned: bool = False


def from_packet(first: int) -> Callable[[list[av.Packet]], list[av.Packet]]:
    return lambda packets: packets[first:]


def without_packet(number: int) -> Callable[[list[av.Packet]], list[av.Packet]]:
    return lambda packets: packets[:number] + packets[number + 1 :]


def retimed(
    pts: Callable[[int], int | None], dts: Callable[[int], int] | None = None, unit: Fraction = Fraction(1, RATE)
) -> Callable[[list[av.Packet]], Iterator[av.Packet]]:
    """Other times for the packets, in units of a frame; dts are the pts if not given."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, packet in enumerate(packets):
            time = pts(number)
            yield make_packet(
                bytes(packet), time, dts(number) if dts else time, unit, is_key=packet.is_keyframe
            )

    return edit


def clock_jumps(first: int, seconds: Fraction | int, *, by_pts_alone: bool = False) -> Callable[[list[av.Packet]], Iterator[av.Packet]]:
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


def flagged(is_key: Callable[[int, bool], bool]) -> Callable[[list[av.Packet]], Iterator[av.Packet]]:
    """Other key flags: told the packet's number and its true flag."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, packet in enumerate(packets):
            packet.is_keyframe = is_key(number, packet.is_keyframe)
            yield packet

    return edit


def twice(number: int) -> Callable[[list[av.Packet]], Iterator[av.Packet]]:
    """One packet is there twice."""

    def edit(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for place, packet in enumerate(packets):
            yield packet
            if place == number:
                yield make_packet(bytes(packet), packet.pts + 1, packet.dts + 1, packet.time_base)

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


def refreshed(container: str = "nut") -> bytes:
    """H.264 that is refreshed column by column; what is flagged as a key frame is the start of a sweep."""
    return h264(container, x264="intra-refresh=1", gop=20, numbers=LONG)


def edited(*edits: tuple[int, int], **more: object) -> bytes:
    """MP4 with an edit list; its media starts at 1024, a frame takes 512."""
    return with_edits(h264("mp4", **{"b_frames": 2, **more}), edits)


def fields(container: str, *, is_apart: bool) -> bytes:
    """Pictures in fields, each field in a packet of its own or both in one."""
    pictures = h264_fields()
    raw = b"".join(first + second for first, second in pictures)

    def edit(_: list[av.Packet]) -> Iterator[av.Packet]:
        for number, (first, second) in enumerate(pictures):
            is_key = number % 6 == 0
            if is_apart:
                yield make_packet(first, 2 * number, 2 * number, Fraction(1, 2 * RATE), is_key=is_key)
                yield make_packet(second, 2 * number + 1, 2 * number + 1, Fraction(1, 2 * RATE))
            else:
                yield make_packet(first + second, number, number, Fraction(1, RATE), is_key=is_key, duration=1)

    return copy(raw, container, edit)


def with_cover(container: str, *, is_before: bool = False) -> bytes:
    cover = encode("mjpeg", "nut", numbers=(999,), pix_fmt="yuvj420p")
    data = copy(source(), container, beside=(cover,), is_cover=(False, True))
    if not is_before:
        return data
    return change_box(data, "moov", lambda moov: join_boxes(sorted(boxes(moov), key=lambda box: box[0] != b"udta")))


def two(make: Callable[..., bytes], **of_second: object) -> bytes:
    """Two recordings, one after the other in a file."""
    return make(numbers=range(40)) + make(numbers=range(500, 540), **of_second)


TWO = [*range(40), *range(500, 540)]


def _containers() -> Iterator[Kind]:
    for container in ("mp4", "mov", "matroska", "avi", "mpegts", "flv", "asf", "mxf", "vob"):
        yield Kind(f"H.264 with B-frames in {container}", partial(h264, container, b_frames=2))
    for container in ("mp4", "avi"):
        yield Kind(f"H.264 without B-frames in {container}", partial(h264, container))
    for container in ("mp4", "matroska", "mpegts", "flv"):
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
        ("negative offsets", "negative_cts_offsets"),
    ):
        yield Kind(f"MP4 of {container}", partial(h264, "mp4", b_frames=2, mux_options=f"movflags={options}"))
    yield Kind("MP4 with its index in front", partial(h264, "mp4", b_frames=2, mux_options="moov_size=8000"))
    yield Kind("live Matroska without an index", partial(h264, "matroska", b_frames=2, mux_options="live=1"))
    yield Kind("FLV with an index", partial(h264, "flv", b_frames=2, mux_options="flvflags=add_keyframe_index"))
    yield Kind("AVI without its index", lambda: h264("avi", b_frames=2).partition(b"idx1")[0])


def _codecs() -> Iterator[Kind]:
    for container in ("webm", "ivf"):
        yield Kind(f"VP8 with hidden frames in {container}", partial(encode, "libvpx", container, VPX))
        yield Kind(f"VP9 with hidden frames in {container}", partial(encode, "libvpx-vp9", container, VPX))
        yield Kind(f"AV1 in {container}", partial(av1, container), opencv=NO_AV1)
    yield Kind("VP8 in Ogg", partial(encode, "libvpx", "ogg", VPX))
    yield Kind("VP9 in MP4", partial(encode, "libvpx-vp9", "mp4", VPX))
    yield Kind("AV1 in MP4", partial(av1, "mp4"), opencv=NO_AV1)
    yield Kind("VP9 with alpha", partial(encode, "libvpx-vp9", "webm", "deadline=realtime cpu-used=8", pix_fmt="yuva420p"))
    for codec, container, pix_fmt in (
        ("prores_ks", "mov", "yuv422p10le"),
        ("prores_ks", "mov", "yuva444p10le"),
        ("mjpeg", "avi", "yuvj420p"),
        ("mjpeg", "mov", "yuvj422p"),
        ("mjpeg", "mjpeg", "yuvj420p"),
        ("mpeg4", "mp4", "yuv420p"),
        ("ffv1", "matroska", "yuv420p"),
        ("huffyuv", "avi", "yuv422p"),
        ("rawvideo", "avi", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("wmv2", "asf", "yuv420p"),
        ("msmpeg4", "avi", "yuv420p"),
        ("png", "mov", "rgba"),
        ("qtrle", "mov", "argb"),
        ("svq1", "mov", "yuv410p"),
        ("msvideo1", "avi", "rgb555le"),
        ("h263p", "avi", "yuv420p"),
        ("jpeg2000", "mxf", "yuv420p"),
    ):
        yield Kind(f"{codec} of {pix_fmt} in {container}", partial(encode, codec, container, pix_fmt=pix_fmt))
    yield Kind("MPEG-4 with B-frames in AVI", partial(encode, "mpeg4", "avi", b_frames=2))
    yield Kind("MPEG-4 with packed B-frames", lambda: copy(encode("mpeg4", "avi", b_frames=1), "avi", pack_b_frames))
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
        size=None,
    )


def _structures() -> Iterator[Kind]:
    yield Kind("B-frames that others refer to", partial(h264, "mp4", b_frames=5, x264="b-pyramid=2:ref=4"))
    yield Kind("HEVC with B-frames that others refer to", partial(hevc, "mp4", "b-pyramid=1", b_frames=4))
    for container in ("mp4", "matroska", "mpegts", "flv", "h264", "avi"):
        yield Kind(f"H.264 of open groups in {container}", partial(open_gop, container))
    for container in ("mp4", "matroska", "mpegts", "hevc"):
        yield Kind(f"HEVC of open groups in {container}", partial(hevc_open_gop, container))
    for container in ("mp4", "matroska", "mpegts"):
        yield Kind(f"H.264 refreshed by columns in {container}", partial(refreshed, container), expected=LONG)
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
    for container in ("mp4", "matroska", "mpegts", "avi"):
        for is_apart in (False, True):
            yield Kind(
                f"H.264 in fields, {'a packet each' if is_apart else 'two a packet'}, in {container}",
                partial(fields, container, is_apart=is_apart),
                expected=range(24),
                opencv=NO_INTERLACED,
                fps=None,
            )
    yield Kind(
        "H.264 in fields as it is",
        lambda: b"".join(a + b for a, b in h264_fields()),
        expected=range(24),
        opencv=NO_INTERLACED,
        fps=None,
    )
    for pix_fmt in ("yuv420p10le", "yuv422p10le", "yuv444p", "gray", "yuvj420p"):
        yield Kind(f"H.264 of {pix_fmt}", partial(h264, "mp4", pix_fmt=pix_fmt, b_frames=2))
    yield Kind("HEVC of 10 bits", partial(hevc, "mp4", pix_fmt="yuv420p10le", b_frames=2))
    yield Kind("H.264 of RGB", partial(encode, "libx264rgb", "mp4", "preset=ultrafast", pix_fmt="rgb24"))


def _starts() -> Iterator[Kind]:
    for container in ("mp4", "matroska", "mpegts", "hevc", "flv"):
        bsf = HEADERS if container in ("mpegts", "hevc") else ""
        yield Kind(
            f"HEVC from a later key frame of an open group in {container}",
            lambda c=container, b=bsf: copy(hevc_open_gop(), c, from_packet(9), bsf=b),
            expected=range(12, 60),
        )
    for container in ("mp4", "matroska", "mpegts", "flv", "h264", "avi"):
        bsf = HEADERS if container in ("mpegts", "h264") else ""
        yield Kind(
            f"H.264 from a later key frame of an open group in {container}",
            lambda c=container, b=bsf: copy(open_gop(), c, from_packet(9), bsf=b),
            expected=range(12, 60),
        )
        yield Kind(
            f"H.264 from between key frames in {container}",
            lambda c=container, b=bsf: copy(source(), c, from_packet(17), bsf=b),
            expected=range(24, 60),
        )
        yield Kind(
            f"H.264 without B-frames from between key frames in {container}",
            lambda c=container, b=bsf: copy(plain(), c, from_packet(17), bsf=b),
            expected=range(24, 60),
        )
    for container in ("mpegts", "mpeg", "matroska", "mpeg2video"):
        yield Kind(
            f"MPEG-2 from between key frames in {container}",
            lambda c=container: copy(mpeg2("nut"), c, from_packet(17)),
            expected=range(24, 60),
        )
    for container in ("matroska", "mpegts"):
        bsf = HEADERS if container == "mpegts" else ""
        yield Kind(
            f"H.264 refreshed by columns from between in {container}",
            lambda c=container, b=bsf: copy(refreshed(), c, from_packet(25), bsf=b),
            expected=None,
        )
    yield Kind("TS from the middle of a packet", lambda: h264("mpegts", b_frames=2)[9_000:], expected=range(12, 60))
    yield Kind("a late start", partial(h264, "mp4", b_frames=2, times=range(100, 160)))
    yield Kind("an early start", lambda: copy(source(), "mp4", clock_jumps(0, -1)), expected=range(23, 60))


def _edit_lists() -> Iterator[Kind]:
    middle = 1024 + 17 * 512
    yield Kind("an edit list from between key frames", partial(edited, (1600, middle)), expected=range(17, 57))
    yield Kind(
        "an edit list from between key frames without B-frames",
        partial(edited, (1600, 17 * 512), b_frames=0),
        expected=range(17, 57),
    )
    yield Kind("an edit list with a delay", partial(edited, (400, -1), (2400, 1024)))
    yield Kind("an edit list to before the end", partial(edited, (1000, 1024)), expected=range(25))
    yield Kind(
        "an edit list of two parts",
        partial(edited, (800, 1024 + 5 * 512), (600, 1024 + 40 * 512)),
        expected=[*range(5, 25), *range(40, 55)],
    )
    yield Kind(
        "an edit list of two parts turned round",
        partial(edited, (800, 1024 + 30 * 512), (600, 1024 + 5 * 512)),
        expected=[*range(30, 50), *range(5, 20)],
    )
    yield Kind(
        "an edit list of one part twice",
        partial(edited, (800, 1024 + 5 * 512), (800, 1024 + 5 * 512)),
        expected=[*range(5, 25)] * 2,
    )
    yield Kind(
        "an edit list with a hole",
        partial(edited, (800, 1024 + 5 * 512), (400, -1), (600, 1024 + 40 * 512)),
        # FFmpeg's own slip: it shows the beginning in the hole.
        expected=[*range(5, 25), *range(8), *range(40, 55)],
    )
    yield Kind(
        "an edit list of two parts, the second late",
        partial(edited, (2400, 1024), (800, 1024 + 66 * 512), numbers=LONG),
        expected=[*range(60), *range(66, 86)],
    )


def _joined() -> Iterator[Kind]:
    for container in ("mpegts", "h264", "matroska", "avi"):
        yield Kind(f"two recordings in one {container}", partial(two, partial(h264, container, b_frames=2)), TWO)
    yield Kind("two recordings in one mpeg", partial(two, partial(mpeg2, "mpeg")), TWO)
    yield Kind("two recordings in one vob", partial(two, partial(mpeg2, "vob")), TWO)
    yield Kind("two recordings in one hevc", partial(two, partial(hevc, "hevc", b_frames=2)), TWO)
    yield Kind(
        "two recordings in one MP4", partial(two, partial(h264, "mp4", b_frames=2)), expected=range(40)
    )  # the second is no part of the film
    yield Kind(
        "two sizes in one TS", partial(two, partial(h264, "mpegts", b_frames=2), size=(320, 192)), TWO, size=None
    )
    yield Kind("two sizes in one H.264", partial(two, partial(h264, "h264", b_frames=2), size=(320, 192)), TWO, size=None)
    yield Kind(
        "two sizes in one Matroska",
        lambda: copy(two(partial(h264, "h264"), size=(320, 192)), "matroska", retimed(lambda i: i)),
        TWO,
        size=None,
    )
    yield Kind(
        "two sizes of MPEG-2 in one TS",
        partial(two, partial(mpeg2, "mpegts"), size=(320, 192)),
        expected=[*range(39), *range(500, 540)],  # FFmpeg's decoder loses the last frame of the first
        size=None,
    )


def _clocks() -> Iterator[Kind]:
    for container in ("mp4", "matroska", "mpegts", "flv"):
        bsf = HEADERS if container == "mpegts" else ""
        yield Kind(
            f"a clock that jumps ahead in {container}",
            lambda c=container, b=bsf: copy(source(), c, clock_jumps(24, 100), bsf=b),
            fps=None,
        )
    for first, name in ((24, "early"), (72, "late")):
        yield Kind(
            f"a clock that jumps back {name} in Matroska",
            lambda f=first: copy(
                source(numbers=LONG), "matroska", clock_jumps(f, Fraction(-1, 2), by_pts_alone=True),
                mux_options=FREE_CLOCK,
            ),
            expected=LONG,
            fps=None,
        )  # fmt: skip
        yield Kind(
            f"a clock that jumps back {name} in FLV",
            lambda f=first: shift_flv_clock(h264("flv", b_frames=2, numbers=LONG), f, -600),
            expected=LONG,
            fps=None,
        )
    yield Kind("a clock that begins anew in FLV", lambda: shift_flv_clock(h264("flv", b_frames=2), 24, -960), fps=None)
    yield Kind("two recordings in one FLV", lambda: h264("flv", b_frames=2, numbers=range(40)) + h264("flv", b_frames=2, numbers=range(500, 540))[13:], TWO, fps=None)  # fmt: skip
    yield Kind(
        "a TS whose clock runs over",
        lambda: copy(
            source(), "mpegts", clock_jumps(0, Fraction(2**33, 90000) - 3), bsf=HEADERS, mux_options=FREE_CLOCK
        ),
    )
    for name, pts in (
        ("all times equal", lambda i: 0),
        ("every time twice", lambda i: i // 2 * 2),
        ("a doubled time", lambda i: i - (i == 30)),
        ("a doubled time late", lambda i: i - (i == 70)),
    ):
        yield Kind(
            f"{name} in Matroska",
            lambda p=pts: copy(plain(numbers=LONG), "matroska", retimed(p)),
            expected=LONG,
            fps=None,
        )
    yield Kind("all times equal in FLV", lambda: copy(plain(), "flv", retimed(lambda i: 0)), fps=None)
    yield Kind("all times of B-frames equal", lambda: copy(source(), "matroska", retimed(lambda i: 0)), fps=None)
    for first, name in ((0, "early"), (60, "late")):
        yield Kind(
            f"times in the wrong order {name} in Matroska",
            lambda f=first: copy(
                plain(numbers=LONG), "matroska", retimed(lambda i: i ^ (i >= f), lambda i: i - 10**6), mux_options=FREE_CLOCK
            ),
            expected=LONG,
            fps=None,
        )  # fmt: skip
        yield Kind(
            f"times in the wrong order {name} in MP4",
            lambda f=first: copy(
                plain(numbers=LONG), "mp4", retimed(lambda i: (i ^ (i >= f)) + 2, lambda i: i),
                mux_options="use_editlist=0",
            ),
            expected=LONG,
            fps=None,
        )  # fmt: skip
    yield Kind("times that run backward in MP4", lambda: copy(plain(), "mp4", retimed(lambda i: 100 - i, lambda i: i - 100), mux_options="use_editlist=0"), fps=None)  # fmt: skip
    yield Kind("no times in AVI", lambda: copy(source(), "avi", retimed(lambda i: None, lambda i: i)))
    gaps = tuple(10 * i + (0, 3, 7)[i % 3] + (9_000 if i >= 30 else 0) for i in ALL)
    for container in ("mp4", "matroska", "mpegts", "avi", "flv"):
        yield Kind(
            f"a variable rate with a gap in {container}",
            partial(h264, container, b_frames=2, times=gaps, time_base=Fraction(1, 1000)),
            fps=None,
        )
    for container in ("mp4", "matroska", "flv"):
        yield Kind(
            f"60 frames a second in {container}",
            partial(h264, container, b_frames=2, time_base=Fraction(1, 60)),
            fps=60,
        )
    for container in ("matroska", "flv"):
        for b_frames in (0, 2):
            yield Kind(
                f"2000 frames a second with {b_frames} B-frames in {container}",
                partial(h264, container, b_frames=b_frames, time_base=Fraction(1, 2000)),
                fps=None,
            )
    yield Kind("29.97 frames a second", partial(h264, "matroska", b_frames=2, time_base=Fraction(1001, 30000)), fps=29.97)


def _streams() -> Iterator[Kind]:
    for container in ("mp4", "matroska", "mpegts"):
        small = partial(h264, "nut", size=(80, 48), b_frames=2, numbers=range(200, 260))
        yield Kind(
            f"a small picture before a large one in {container}",
            lambda c=container, s=small: copy(s(), c, beside=(source(),)),
            expected=range(200, 260),
            size=(80, 48),
        )
        yield Kind(
            f"two equal pictures in {container}",
            lambda c=container: copy(source(), c, beside=(source(numbers=range(200, 260)),)),
        )
        yield Kind(f"sound in {container}", lambda c=container: copy(source(), c, beside=(silence(),)))
    yield Kind("sound in AVI", lambda: copy(encode("mpeg4", "nut"), "avi", beside=(silence(codec="mp2"),)))
    yield Kind("sound in MPEG", lambda: copy(mpeg2("nut"), "mpeg", beside=(silence(codec="mp2"),)))
    yield Kind("sound before the picture", lambda: copy(silence(), "mp4", beside=(source(),)))
    yield Kind("a cover after the picture", partial(with_cover, "mp4"))
    yield Kind("a cover before the picture", partial(with_cover, "mp4", is_before=True), opencv=TAKES_COVER)


def _geometry() -> Iterator[Kind]:
    yield Kind("pixels that are not square", partial(h264, "mp4", aspect=Fraction(16, 11)), size=None)
    for name, matrix, turns, is_mirrored in (
        ("turned by 90 degrees", (0, 1, -1, 0), 1, False),
        ("turned by 180 degrees", (-1, 0, 0, -1), 2, False),
        ("turned by 270 degrees", (0, -1, 1, 0), 3, False),
        ("left and right exchanged", (-1, 0, 0, 1), 0, True),
        ("turned and mirrored", (0, 1, 1, 0), 1, True),
    ):
        for container in ("mp4", "matroska"):
            size = (96, 160) if turns % 2 else (160, 96)
            yield Kind(
                f"{name} in {container}",
                lambda m=matrix, t=turns, i=is_mirrored, c=container: copy(
                    with_matrix(h264("mp4", b_frames=2, turns=t, is_mirrored=i), *m), c
                ),
                opencv=NOT_TURNED if is_mirrored else "",
                size=size,
                is_turned=True,
            )


def _lying() -> Iterator[Kind]:
    lies: Iterable[tuple[str, Callable[[int, bool], bool]]] = (
        ("every packet", lambda i, k: True),
        ("no packet but the first", lambda i, k: i == 0),
        ("the packets after key frames", lambda i, k: i == 0 or i % 12 == 1),
        ("one wrong packet late", lambda i, k: k or i == 66),
        ("every late packet", lambda i, k: k or i >= 60),
    )
    for name, is_key in lies:
        for container in ("mp4", "matroska", "avi"):
            make = encode if container == "avi" else None
            yield Kind(
                f"{name} flagged as a key frame in {container}",
                lambda c=container, k=is_key: copy(
                    encode("mpeg4", "nut", numbers=LONG) if c == "avi" else source(numbers=LONG), c, flagged(k)
                ),
                expected=LONG,
            )
    yield Kind(
        "MPEG-4 with every packet flagged as a key frame",
        lambda: copy(encode("mpeg4", "nut", b_frames=2), "mp4", flagged(lambda i, k: True)),
    )
    yield Kind(
        "HEVC with every packet flagged as a key frame",
        lambda: copy(hevc("nut", b_frames=2), "matroska", flagged(lambda i, k: True)),
    )
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
        "H.264": partial(h264, "h264", b_frames=2, numbers=LONG),
        "HEVC in MP4": partial(hevc, "mp4", b_frames=2, numbers=LONG, mux_options="moov_size=8000"),
        "HEVC in TS": partial(hevc, "mpegts", b_frames=2, numbers=LONG),
        "MJPEG in AVI": partial(encode, "mjpeg", "avi", pix_fmt="yuvj420p", numbers=LONG),
        "VP9 in WebM": partial(encode, "libvpx-vp9", "webm", "deadline=realtime cpu-used=8", numbers=LONG),
        "ProRes in MOV": partial(encode, "prores_ks", "mov", pix_fmt="yuv422p10le"),
    }
    for name, make in makers.items():
        if name != "ProRes in MOV":
            yield Kind(f"half of {name}", lambda m=make: cut_short(m()), expected=None)
        for start, place in ((0.3, "early"), (0.7, "late")):
            yield Kind(f"zeros {place} in {name}", lambda m=make, s=start: overwrite(m(), s, is_zero=True), expected=None)
            yield Kind(f"random bytes {place} in {name}", lambda m=make, s=start: overwrite(m(), s), expected=None)
    for container in ("mp4", "matroska", "mpegts"):
        bsf = HEADERS if container == "mpegts" else ""
        for number, what in ((17, "a B-frame others refer to"), (66, "a B-frame"), (67, "a P-frame"), (72, "a key frame")):
            yield Kind(
                f"{what} is missing in {container}",
                lambda c=container, n=number, b=bsf: copy(source(numbers=LONG), c, without_packet(n), bsf=b),
                expected=None,
            )
        yield Kind(
            f"a packet is there twice in {container}",
            lambda c=container, b=bsf: copy(source(numbers=LONG), c, twice(66), bsf=b),
            expected=None,
        )


def _refused() -> Iterator[Kind]:
    yield Kind("an empty file", bytes, refusal=UNREADABLE)
    yield Kind("text", lambda: b"This is no video.\n" * 200, refusal=UNREADABLE)
    yield Kind("a PNG", partial(encode, "png", "image2pipe", numbers=(1,), pix_fmt="rgb24"), refusal=UNREADABLE)
    yield Kind("a GIF", partial(encode, "gif", "gif", pix_fmt="rgb8", numbers=(1, 2)), refusal=UNREADABLE)
    yield Kind("NUT", source, refusal=UNREADABLE)
    yield Kind("a list of files", lambda: b"ffconcat version 1.0\nfile /etc/hostname\n", refusal=UNREADABLE)
    yield Kind("an HLS playlist", lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n", refusal=UNREADABLE)
    yield Kind("nothing but sound", partial(silence, "mp4"), refusal="no video stream")
    yield Kind("half of an MP4 with its index at the end", lambda: cut_short(h264("mp4")), refusal=UNREADABLE)
    yield Kind("a Matroska without frames", lambda: h264("matroska").partition(b"\x1f\x43\xb6\x75")[0], refusal="no frame")
    yield Kind(
        "an MP4 without frames",
        lambda: copy(source(), "mp4", lambda packets: packets[:0]),
        refusal=f"no frame|{UNREADABLE}|no video stream",
    )
    yield Kind(
        "an MP4 whose frames are all zeros",
        lambda: change_box(h264("mp4"), "mdat", lambda content: bytes(len(content))),
        refusal="no frame",
    )
    yield Kind(
        "H.264 without any key frame in Matroska",
        lambda: copy(plain(gop=600), "matroska", from_packet(5)),
        refusal="no frame",
    )


KINDS = [
    kind
    for group in (
        _containers, _codecs, _structures, _starts, _edit_lists, _joined, _clocks, _streams, _geometry, _lying,
        _damaged, _refused,
    )
    for kind in group()
]  # fmt: skip
RIGHT = [kind for kind in KINDS if kind.expected is not None and not kind.refusal]
DAMAGED = [kind for kind in KINDS if kind.expected is None and not kind.refusal]
REFUSED = [kind for kind in KINDS if kind.refusal]
by_name = {"ids": lambda kind: kind.name}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """Writes the file of a kind; that of the last one is kept for the next test of it."""
    folder = tmp_path_factory.mktemp("kinds")
    paths: dict[str, Path] = {}

    def write(kind: Kind) -> Path:
        if kind.name not in paths:
            paths[kind.name] = folder / f"{len(paths)}.mp4"
            paths[kind.name].write_bytes(kind.make())
        return paths[kind.name]

    return write


def decode_plainly(path: Path, thread_type: str = "SLICE") -> list[int | None]:
    """The numbers as PyAV decodes them from beginning to end, None where a picture is marked as corrupt or shows none."""
    numbers: list[int | None] = []
    with av.open(str(path)) as container:
        covers = av.stream.Disposition.attached_pic
        stream = next(s for s in container.streams.video if not s.disposition & covers)
        stream.thread_type = thread_type
        for packet in _until_it_breaks_off(container, stream):
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                number = read_number(frame.to_ndarray(format="rgb24"))
                numbers.append(None if frame.is_corrupt or number < 0 else number)
    return numbers


def _until_it_breaks_off(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.error.InvalidDataError:
        pass
    yield None


def decode_with_opencv(path: Path) -> list[int]:
    capture, numbers = cv2.VideoCapture(str(path)), []
    while True:
        is_read, picture = capture.read()
        if not is_read:
            return numbers
        numbers.append(read_number(picture))


def looks_of_shards(n_frames: int, step: int) -> Iterator[list[int]]:
    """The frames of one reading after another, as shards of four lineages ask for them; of each a burst once more."""
    spans = [(0, n_frames // 3), (n_frames // 4, n_frames // 2), (n_frames // 2 + 2, n_frames - 4), (n_frames - 3, n_frames)]
    boxes_of = [np.arange(first, end) for first, end in spans if end > max(first, 0) and first >= 0]
    bursts = [frames[len(frames) // 2 :][:5] for frames in boxes_of]
    samples = [
        frames[select_samples(frames, step, burst[::2])] for frames, burst in zip(boxes_of, bursts, strict=True)
    ]
    loads = [LineageLoad(i, int(f[0]), int(f[-1]), len(s)) for i, (f, s) in enumerate(zip(boxes_of, samples, strict=True))]
    for shard in plan_shards(loads, faces_per_shard=8):
        yield sorted({int(frame) for lineage in shard for frame in samples[lineage]})
        yield sorted({int(frame) for lineage in shard for frame in bursts[lineage][1::2]})


def orders(n_frames: int) -> Iterator[tuple[str, list[list[int]]]]:
    """Ways of reading a video with one `VideoFrames`: lists of frames that are asked for, one list after the other."""
    yield "from beginning to end", [list(range(n_frames))]
    yield "one by one in any order", [[int(i)] for i in np.random.default_rng(1).permutation(n_frames)]
    for step in (3, 24):
        yield f"in shards with every {step}. frame", list(looks_of_shards(n_frames, step))


def read_numbers(video: VideoFrames, frames: list[int], size: tuple[int, int] | None) -> list[int | None]:
    """What frames show; None for one that is unreadable, and for one that shows no number clearly."""
    numbers: list[int | None] = []
    for frame_idx, frame in video.read(frames):
        assert frame_idx == frames[len(numbers)]
        number = -1 if frame is None else read_number(frame.rgb)
        assert frame is None or size in (None, frame.rgb.shape[1::-1])
        numbers.append(number if number >= 0 else None)
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
def test_plain_decoding_shows_the_known_numbers(written: Callable[[Kind], Path], kind: Kind) -> None:
    path = written(kind)

    if not kind.is_turned:
        assert decode_plainly(path) == list(kind.expected or ())
    if not kind.opencv:
        assert decode_with_opencv(path) == list(kind.expected or ())


@pytest.mark.parametrize("kind", RIGHT, **by_name)
def test_every_frame_is_the_right_one_in_any_order(written: Callable[[Kind], Path], kind: Kind) -> None:
    path, expected = written(kind), list(kind.expected or ())

    for order, readings in orders(len(expected)):
        with VideoFrames(path) as video:
            assert video.info.n_frames == len(expected)
            assert kind.fps is None or video.info.fps == pytest.approx(kind.fps, rel=0.02)
            for frames in readings:
                assert read_numbers(video, frames, kind.size) == [expected[i] for i in frames], order
    for frame_idx in {0, 1, len(expected) // 2, 2 * len(expected) // 3, len(expected) - 1} & set(range(len(expected))):
        with VideoFrames(path) as video:
            assert read_numbers(video, [frame_idx], kind.size) == [expected[frame_idx]], "freshly opened"


@pytest.mark.parametrize("kind", DAMAGED, **by_name)
def test_no_frame_of_a_damaged_video_is_a_wrong_one(written: Callable[[Kind], Path], kind: Kind) -> None:
    path = written(kind)
    known = [decode_plainly(path, thread_type) for thread_type in ("SLICE", "FRAME")]

    with VideoFrames(path) as video:
        n_frames = video.info.n_frames
        assert n_frames in {len(numbers) for numbers in known}
        expected = next(numbers for numbers in known if len(numbers) == n_frames)
    for order, readings in orders(n_frames):
        with VideoFrames(path) as video:
            for frames in readings:
                found = dict(zip(frames, read_numbers(video, frames, kind.size), strict=True))
                wrong = {i: (number, expected[i]) for i, number in found.items() if number not in (None, expected[i])}
                assert not wrong, f"frame: (shown, right), {order}"


@pytest.mark.parametrize("kind", REFUSED, **by_name)
def test_what_is_no_video_is_refused_with_the_reason(written: Callable[[Kind], Path], kind: Kind) -> None:
    with pytest.raises(VideoError, match=kind.refusal) as caught:
        VideoFrames(written(kind))
    assert "\n" not in str(caught.value)
