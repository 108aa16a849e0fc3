"""Small valid videos of all containers, and what is done to their bytes.

All is drawn from a generator, and the videos are the same each time, so that a number gives an input again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tests.videos import copy, encode, h264, hevc, silence, with_edits, with_matrix

_SAME = "fflags=bitexact"
_N_FRAMES = 24
_MAX_BYTES = 4 << 20
_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
# Boxes of MP4 that hold others, with the bytes before the first of these.
_HOLDERS = {kind: 0 for kind in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"dinf", b"stbl", b"udta", b"moof", b"traf", b"mvex")}  # fmt: skip
_HOLDERS |= {b"meta": 4, b"stsd": 8, b"dref": 8}
# What stands before sizes, counts and times: boxes, elements of Matroska, chunks of AVI, packs of MPEG, pages, tags.
_TAGS = (
    *_HOLDERS, b"ftyp", b"mvhd", b"tkhd", b"elst", b"mdhd", b"hdlr", b"avc1", b"avcC", b"hvcC", b"stts", b"ctts", b"stss",
    b"stsc", b"stsz", b"stco", b"sdtp", b"sbgp", b"mfhd", b"tfhd", b"tfdt", b"trun", b"trex", b"mdat", b"tfra", b"mfro",
    b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75",
    b"\x1c\x53\xbb\x6b", b"\x11\x4d\x9b\x74", b"\xae", b"\xa3", b"\xe0", b"\xb0", b"\xba", b"\x63\xa2", b"\x2a\xd7\xb1",
    b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"indx", b"ix00", b"movi", b"00dc", b"idx1", b"FLV", b"\x09\x00",
    b"\x00\x00\x01\xba", b"\x00\x00\x01\xbb", b"\x00\x00\x01\xe0", b"\x00\x00\x01\xb3", b"\x00\x00\x01\xb5", b"\x00\x00\x01\x00",
    b"\x00\x00\x01\x67", b"\x00\x00\x01\x68", b"\x00\x00\x01\x65", b"\x47\x40", b"\x47\x41", b"OggS", b"DKIF",
    b"\x06\x0e\x2b\x34", b"\x30\x26\xb2\x75", b"\xa1\xdc\xab\x8c", b"\x91\x07\xdc\xb7", b"\xff\xd8", b"\xff\xc0",
)  # fmt: skip

Rng = np.random.Generator
Change = Callable[[bytes, Sequence[bytes], Rng], bytes]


def make_seeds() -> list[bytes]:
    """Valid videos of 24 frames that show their numbers."""
    more = {"numbers": range(_N_FRAMES), "mux_options": _SAME}
    mpeg = partial(encode, options="sc_threshold=1000000000", b_frames=2, **more)
    vpx = "deadline=realtime cpu-used=8"
    plain = h264("nut", b_frames=2, **more)
    fragments = f"{_SAME} movflags=frag_keyframe+empty_moov+default_base_moof"
    return [
        h264("mp4", b_frames=2, **more),
        h264("mp4", b_frames=2, numbers=range(_N_FRAMES), mux_options=fragments),
        with_edits(h264("mov", b_frames=2, **more), [(400, 1024 + 512 * 3), (200, 1024 + 512 * 15)]),
        with_matrix(h264("mp4", gop=4, **more), 0, 1, -1, 0),
        hevc("mp4", b_frames=2, **more),
        copy(plain, "mp4", beside=(silence(seconds=0.9),), mux_options=_SAME),
        h264("matroska", b_frames=3, x264="open-gop=1:ref=3", **more),
        copy(plain, "matroska", beside=(encode("mjpeg", "nut", numbers=(9,), pix_fmt="yuvj420p"),), mux_options=_SAME),
        encode("libvpx-vp9", "webm", f"{vpx} auto-alt-ref=1 lag-in-frames=8", **more),
        encode("ffv1", "matroska", **more),
        h264("mpegts", b_frames=2, **more),
        mpeg("mpeg2video", "mpegts"),
        mpeg("mpeg2video", "mpeg"),
        mpeg("mpeg1video", "mpeg"),
        mpeg("mpeg2video", "mxf"),
        mpeg("mpeg2video", "mpeg2video"),
        encode("mpeg4", "avi", b_frames=2, **more),
        encode("mjpeg", "avi", pix_fmt="yuvj420p", **more),
        encode("rawvideo", "avi", numbers=range(6), mux_options=_SAME),
        h264("flv", b_frames=2, **more),
        encode("flv", "flv", **more),
        h264("h264", b_frames=2, **more),
        hevc("hevc", b_frames=2, **more),
        encode("libvpx", "ogg", vpx, **more),
        encode("wmv2", "asf", **more),
        encode("libvpx-vp9", "ivf", vpx, **more),
        encode("libsvtav1", "ivf", "preset=12 crf=40", is_constant_quality=True, **more),
        encode("png", "mov", pix_fmt="rgba", numbers=range(6), mux_options=_SAME),
        encode("qtrle", "mov", pix_fmt="argb", numbers=range(6), mux_options=_SAME),
        encode("prores_ks", "mov", pix_fmt="yuv422p10le", numbers=range(6), mux_options=_SAME),
        encode("mjpeg", "mjpeg", pix_fmt="yuvj420p", **more),
    ]


def mutate(seeds: Sequence[bytes], rng: Rng) -> bytes:
    """One of the seeds after one change or a few."""
    data = _pick(seeds, rng)
    for _ in range(min(int(rng.geometric(0.4)), 8)):
        data = _pick(_CHANGES, rng)(data, seeds, rng)[:_MAX_BYTES] or b"\0"
    return data


def _pick(things: Sequence[Any], rng: Rng) -> Any:
    return things[int(rng.integers(len(things)))]


def _draw_size(most: int, rng: Rng) -> int:
    """A number from 1 on, small ones as often as large ones."""
    return int(np.exp(rng.uniform(0, np.log(max(most, 1)))))


def _draw_place(data: bytes, rng: Rng) -> int:
    """Anywhere, near the beginning or the end, or right after a tag."""
    n_bytes, way = len(data), rng.integers(4)
    if way == 0:
        return int(rng.integers(n_bytes))
    if way == 1:
        near = int(rng.integers(min(1024, n_bytes)))
        return near if rng.integers(2) else n_bytes - 1 - near
    tags = [tag for tag in _TAGS if tag in data]
    if not tags:
        return 0
    tag = _pick(tags, rng)
    found = data.find(tag, int(rng.integers(n_bytes)))
    place = (data.find(tag) if found < 0 else found) + len(tag) + int(rng.integers(-len(tag) - 4, 32))
    return min(max(place, 0), n_bytes - 1)


def _draw_stretch(data: bytes, rng: Rng) -> tuple[int, int]:
    start = _draw_place(data, rng)
    return start, start + _draw_size(max(len(data) // 3, 2), rng)


def _cut(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    place = _draw_place(data, rng)
    return data[place:] if rng.integers(4) == 0 else data[:place]


def _flip(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    changed = bytearray(data)
    for _ in range(_draw_size(64, rng)):
        changed[_draw_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    start, end = _draw_stretch(data, rng)
    end = min(end, len(data))
    filling = bytes([_pick((0, 0, 0xFF), rng)]) * (end - start) if rng.integers(2) else rng.bytes(end - start)
    return data[:start] + filling + data[end:]


def _remove(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    start, end = _draw_stretch(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    start, end = _draw_stretch(data, rng)
    return data[:start] + data[start:end] * _draw_size(2000, rng) + data[end:]


def _splice(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    """A piece of another video in this one, instead of what is there or before it; or the rest of it at the end."""
    other = _pick(seeds, rng)
    start, end = _draw_stretch(other, rng)
    place = _draw_place(data, rng)
    if rng.integers(2):
        return data[:place] + other[start:]
    return data[:place] + other[start:end] + data[place + (end - start if rng.integers(2) else 0) :]


def _set_number(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    """Numbers in headers at their extremes."""
    changed = bytearray(data)
    for _ in range(_draw_size(8, rng)):
        place, n_bytes = _draw_place(data, rng), int(_pick((1, 2, 3, 4, 4, 8), rng))
        value = _pick(_EXTREMES, rng) % (1 << 8 * n_bytes)
        changed[place : place + n_bytes] = value.to_bytes(n_bytes, _pick(("big", "little"), rng))
    return bytes(changed)


@dataclass(frozen=True)
class _Box:
    """A box of an MP4: where it lies, and where those around it do."""

    start: int
    end: int
    kind: bytes
    around: tuple[int, ...]


def _find_boxes(data: bytes, start: int, end: int, around: tuple[int, ...] = ()) -> Iterator[_Box]:
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= end - start:
            return
        yield _Box(start, start + size, kind, around)
        if kind in _HOLDERS and len(around) < 16:
            yield from _find_boxes(data, start + 8 + _HOLDERS[kind], start + size, (*around, start))
        start += size


def _change_box(data: bytes, seeds: Sequence[bytes], rng: Rng) -> bytes:
    """Boxes of wrong sizes, with odd numbers in them, inside of each other, many times or not at all."""
    found = [box for box in _find_boxes(data, 0, len(data)) if box.kind != b"mdat"]
    if not found:
        return _set_number(data, seeds, rng)
    box = _pick(found, rng)
    content, way = data[box.start : box.end], int(rng.integers(6))
    if way == 0:  # its size
        return _put(data, box.start, _pick((*_EXTREMES, len(content) - 1, len(content) + 8), rng))
    if way <= 2:  # a number in it: most are words; of tables those in front are the counts
        n_words = min((len(content) - 8) // 4, _pick((3, 32, 1000), rng))
        return _put(data, box.start + 8 + 4 * int(rng.integers(max(n_words, 1))), _pick(_EXTREMES, rng))
    if way == 3:
        kind = _pick((box.kind, b"moov", b"trak", b"udta", b"meta", b"stbl"), rng)
        depth = _draw_size(3000, rng)
        sizes = range(len(content) + 8 * depth, len(content), -8)
        changed = b"".join(struct.pack(">I4s", size, kind) for size in sizes) + content
    else:
        changed = content * _draw_size(200, rng) if way == 4 else b""
    result = bytearray(data[: box.start] + changed + data[box.end :])
    for place in box.around:
        size = int.from_bytes(result[place : place + 4], "big") + len(changed) - len(content)
        result[place : place + 4] = (size % 2**32).to_bytes(4, "big")
    return bytes(result)


def _put(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + (value % 2**32).to_bytes(4, "big") + data[place + 4 :]


_CHANGES: tuple[Change, ...] = (
    _cut, _flip, _flip, _overwrite, _overwrite, _remove, _repeat, _splice, _splice, _set_number, _set_number,
    _change_box, _change_box, _change_box,
)  # fmt: skip
