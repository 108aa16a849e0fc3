"""Makes small videos in memory; every frame shows its own number, so that a wrong frame gives itself away.

`encode` paints and encodes, `copy` puts the packets of such a file into another container and may change them on the
way, the rest works on the bytes of files.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

N_FRAMES, SIZE, RATE = 40, (160, 96), 25
_N_BITS = 10
_DARK, _BRIGHT = 24, 232
# How far a bit and its inverse have to lie apart; what is smeared or half drawn lies nearer.
_MIN_CONTRAST = 100

Edit = Callable[[list[av.Packet]], Iterable[av.Packet]]


@cache
def paint(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A picture of a number from 0 to 1023: its bits above, lowest first, their inverses below, a texture between.

    Args:
        number: What the picture shows.
        size: Width and height; the width is cut into ten columns.

    Returns:
        RGB, shape (height, width, 3).
    """
    width, height = size
    bits = np.arange(width) * _N_BITS // width
    is_bright = (number >> bits & 1).astype(bool)
    picture = np.empty((height, width), np.uint8)
    picture[: height // 3] = np.where(is_bright, _BRIGHT, _DARK)
    picture[2 * height // 3 :] = np.where(is_bright, _DARK, _BRIGHT)
    y, x = np.mgrid[height // 3 : 2 * height // 3, :width]
    picture[height // 3 : 2 * height // 3] = 128 + 50 * np.sin((x + 3 * number) / 5) * np.cos((y - number) / 3)
    rgb = np.repeat(picture[:, :, None], 3, axis=2)
    rgb.setflags(write=False)
    return rgb


def read_number(rgb: NDArray[np.uint8]) -> int:
    """The number a picture shows, in any size; -1 if it shows none clearly, as a damaged one does."""
    points = rgb[_points(*rgb.shape[:2])].astype(np.int32).reshape(2, 6, _N_BITS, 6)
    contrasts = (points[0] - points[1]).sum(axis=2)
    is_bright = contrasts > 0
    if np.abs(contrasts).min() < 6 * _MIN_CONTRAST or (is_bright != is_bright[0]).any():
        return -1
    return int(is_bright[0] @ (1 << np.arange(_N_BITS)))


@cache
def _points(height: int, width: int) -> tuple[NDArray[np.int_], NDArray[np.int_], int]:
    """Places in the green of a picture: six by six points in the middle of each block, first above, then below."""
    rows = np.arange(10, 28, 3) * height // 120
    columns = (np.arange(_N_BITS)[:, None] * 12 + np.arange(3, 9)) * width // (12 * _N_BITS)
    return np.concatenate([rows, height - 1 - rows])[:, None], columns.ravel()[None], 1


def _parse(options: str) -> dict[str, str]:
    return dict(option.split("=", 1) for option in options.split())


@cache
def encode(
    codec: str,
    container: str,
    options: str = "",
    *,
    numbers: Sequence[int] = range(N_FRAMES),
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    aspect: Fraction | None = None,
    turns: int = 0,
    is_mirrored: bool = False,
    mux_options: str = "",
    is_constant_quality: bool = False,
) -> bytes:
    """A whole file with one video stream.

    Args:
        codec: FFmpeg's name of an encoder.
        container: FFmpeg's name of a muxer.
        options: Those of the encoder, "name=value name=value".
        numbers: What the frames show, in presentation order.
        size: Of the coded picture, width and height.
        pix_fmt: FFmpeg's name.
        gop: Frames from one key frame to the next.
        b_frames: The most B-frames in a row.
        times: Presentation times in units of ``time_base``; one after the other if not given.
        time_base: Seconds.
        aspect: Of a pixel, width to height.
        turns: By how many quarter turns counterclockwise the picture is painted turned.
        is_mirrored: Whether left and right are then exchanged.
        mux_options: Those of the muxer.
        is_constant_quality: Whether ``options`` say how good the picture is, and not a rate of bits.
    """
    target, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(target, "w", format=container, container_options=_parse(mux_options)) as output:
        stream = output.add_stream(codec, rate=1 / time_base if times is None else RATE, options=_parse(options))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 0 if is_constant_quality else 1_000_000
        context = stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = time_base, gop, b_frames
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        for number, time in zip(numbers, times or range(len(numbers)), strict=True):
            picture = np.rot90(paint(number, size[:: -1 if turns % 2 else 1]), turns)
            picture = picture[:, ::-1] if is_mirrored else picture
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = reformatter.reformat(frame, format=pix_fmt)
            frame.pts, frame.time_base = time, time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


def h264(container: str, options: str = "", *, x264: str = "", preset: str = "ultrafast", **more: object) -> bytes:
    """An H.264 file with a key frame every ``gop`` frames and no others; ``x264`` are options of x264 itself."""
    params = ":".join(filter(None, ["scenecut=0:threads=1", x264]))
    return encode("libx264", container, f"preset={preset} x264-params={params} {options}", **more)


def hevc(container: str, x265: str = "", **more: object) -> bytes:
    """An HEVC file; ``x265`` are options of x265 itself."""
    params = ":".join(filter(None, ["scenecut=0:log-level=none:pools=none:frame-threads=1:b-adapt=0", x265]))
    return encode("libx265", container, f"preset=ultrafast x265-params={params}", **more)


def read_packets(data: bytes) -> Iterator[av.Packet]:
    """The packets of a file's first video stream in the order of the file."""
    with av.open(io.BytesIO(data)) as source:
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                yield packet


def copy(
    data: bytes,
    container: str,
    edit: Edit = iter,
    *,
    beside: Sequence[bytes] = (),
    bsf: str = "",
    mux_options: str = "",
    is_cover: Sequence[bool] = (),
) -> bytes:
    """The packets of one file or of several, as streams beside each other, in another container.

    Args:
        data: The file whose first stream is copied.
        container: FFmpeg's name of a muxer.
        edit: Given the packets, says which are written; it may change them.
        beside: More such files, each of which becomes a stream of its own.
        bsf: A bitstream filter for the packets of ``data``.
        mux_options: Those of the muxer.
        is_cover: For each stream whether it is an attached picture; none are if not given.
    """
    target = io.BytesIO()
    sources = [av.open(io.BytesIO(file)) for file in (data, *beside)]
    with av.open(target, "w", format=container, container_options=_parse(mux_options)) as output:
        inputs = [source.streams[0] for source in sources]
        outputs = [output.add_stream_from_template(stream) for stream in inputs]
        for stream, cover in zip(outputs, is_cover, strict=False):
            stream.disposition = av.stream.Disposition.attached_pic if cover else av.stream.Disposition(0)
        for place, (source, stream) in enumerate(zip(sources, inputs, strict=True)):
            packets: Iterable[av.Packet] = [packet for packet in source.demux(stream) if packet.size]
            if place == 0:
                packets = edit(list(_filtered(bsf, stream, packets) if bsf else packets))
            for packet in packets:
                packet.stream = outputs[place]
                output.mux(packet)
    for source in sources:
        source.close()
    return target.getvalue()


def _filtered(bsf: str, stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    context = BitStreamFilterContext(bsf, stream)
    for packet in packets:
        yield from context.filter(packet)
    yield from context.filter(None)


def silence(container: str = "nut", codec: str = "aac", seconds: float = 2.4) -> bytes:
    """A file with one stream of sound."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48000)
        n_samples = stream.codec_context.frame_size or 1152
        for start in range(0, int(48000 * seconds), n_samples):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, n_samples), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


# Boxes of MP4 and MOV.


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of the boxes that lie one after the other; all with sizes of 32 bits."""
    found, place = [], 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        found.append((kind, data[place + 8 : place + size]))
        place += size
    return found


def join_boxes(parts: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The inverse of `boxes`."""
    return b"".join(struct.pack(">I4s", len(content) + 8, kind) + content for kind, content in parts)


def change_box(data: bytes, path: str, change: Callable[[bytes], bytes]) -> bytes:
    """Changes the content of the boxes at a path as "moov/trak". Media data has to lie before what changes its size."""
    kind, _, rest = path.partition("/")
    return join_boxes(
        (name, (change_box(content, rest, change) if rest else change(content)) if name == kind.encode() else content)
        for name, content in boxes(data)
    )


def with_edits(data: bytes, edits: Sequence[tuple[int, int]]) -> bytes:
    """An MP4 with another edit list: pairs of duration in ms and start in the media's time scale, -1 for empty."""
    entries = b"".join(struct.pack(">Iii", duration, start, 0x10000) for duration, start in edits)
    edts = (b"edts", join_boxes([(b"elst", struct.pack(">II", 0, len(edits)) + entries)]))

    def change(trak: bytes) -> bytes:
        parts = [part for part in boxes(trak) if part[0] != b"edts"]
        return join_boxes([parts[0], *([edts] if edits else []), *parts[1:]])

    return change_box(data, "moov/trak", change)


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose display matrix turns or mirrors the picture; each of the four is -1, 0 or 1."""
    numbers = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return change_box(data, "moov/trak/tkhd", lambda tkhd: tkhd[:40] + numbers + tkhd[76:])


# Damage.


def cut_short(data: bytes, share: float = 0.5) -> bytes:
    """The first part of a file."""
    return data[: int(len(data) * share)]


def overwrite(data: bytes, start: float = 0.5, share: float = 0.06, *, is_zero: bool = False) -> bytes:
    """A file with a stretch of zeros or of random bytes; ``start`` and ``share`` are shares of its length."""
    first, n_bytes = int(len(data) * start), int(len(data) * share)
    noise = bytes(n_bytes) if is_zero else np.random.default_rng(5).bytes(n_bytes)
    return data[:first] + noise + data[first + n_bytes :]


def shift_flv_clock(data: bytes, first_frame: int, shift_ms: int) -> bytes:
    """An FLV whose clock jumps at a frame of its video."""
    changed, place, n_seen = bytearray(data), 13, 0
    while place < len(data):
        size = int.from_bytes(data[place + 1 : place + 4], "big")
        if data[place] == 9:
            n_seen += 1
            if n_seen > first_frame + 1:  # the first holds the decoder's configuration
                time = int.from_bytes(data[place + 4 : place + 7], "big") + (data[place + 7] << 24) + shift_ms
                changed[place + 4 : place + 7] = (time & 0xFFFFFF).to_bytes(3, "big")
                changed[place + 7] = time >> 24
        place += 15 + size
    return bytes(changed)


# Streams no encoder at hand writes.


class _Bits:
    """Writes the bits of an H.264 NAL unit."""

    def __init__(self) -> None:
        self.text = ""

    def fixed(self, value: int, n_bits: int) -> _Bits:
        """An unsigned number of so many bits."""
        self.text += f"{value:0{n_bits}b}"
        return self

    def golomb(self, *values: int) -> _Bits:
        """Unsigned exponential Golomb codes; a signed 0 is the same bit."""
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code
        return self

    def pack(self, *, is_last: bool = True) -> bytes:
        """Whole bytes; filled up with the stop bit, or with zeros before samples follow."""
        text = self.text + ("1" if is_last else "")
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def h264_pictures(numbers: Sequence[int] = range(24), n_whole: int = 0, gop: int = 6) -> list[list[bytes]]:
    """H.264 of uncompressed macroblocks: for each picture its packets.

    Args:
        numbers: What the pictures show.
        n_whole: So many are coded whole, those after them as two fields each, with a packet for either.
        gop: Pictures from one key frame to the next.
    """
    width, height = SIZE
    start = b"\0\0\0\1"
    sps = _Bits().fixed(77, 8).fixed(0, 8).fixed(30, 8).golomb(0, 0, 2, 1).fixed(0, 1)
    sps.golomb(width // 16 - 1, height // 32 - 1).fixed(0, 2).fixed(1, 1).fixed(0, 2)
    pps = _Bits().golomb(0, 0).fixed(0, 2).golomb(0, 0, 0).fixed(0, 3).golomb(0, 0, 0).fixed(0b100, 3)
    head = start + b"\x67" + sps.pack() + start + b"\x68" + pps.pack()
    pictures = []
    for place, number in enumerate(numbers):
        frame_num = place % gop
        luma = paint(number)[:, :, 0]
        parts = [(luma, None)] if place < n_whole else [(luma[0::2], 0), (luma[1::2], 1)]
        slices = [_slice(part, frame_num, parity, is_idr=frame_num == 0 and not parity) for part, parity in parts]
        slices[0] = (head if frame_num == 0 else b"") + start + slices[0]
        pictures.append([slices[0], *(start + later for later in slices[1:])])
    return pictures


def _slice(luma: NDArray[np.uint8], frame_num: int, parity: int | None, *, is_idr: bool) -> bytes:
    """A frame or a field as a NAL unit of one slice of I_PCM macroblocks. No sample is 0: nothing has to be escaped."""
    header = _Bits().golomb(0, 7, 0).fixed(frame_num, 4)
    header.fixed(0, 1) if parity is None else header.fixed(1, 1).fixed(parity, 1)
    header.golomb(0).fixed(0, 2) if is_idr else header.fixed(0, 1)
    header.golomb(0, 1, 25)
    height, width = luma.shape
    blocks = luma.reshape(height // 16, 16, width // 16, 16).swapaxes(1, 2).reshape(-1, 256)
    samples = [block.tobytes() + b"\x80" * 128 for block in blocks]
    return (b"\x65" if is_idr else b"\x41") + header.pack(is_last=False) + b"\x0d\x00".join(samples) + b"\x80"


def pack_b_frames(packets: list[av.Packet]) -> Iterator[av.Packet]:
    """MPEG-4 as early DivX wrote it, for `copy`: a P-frame and the B-frame after it in one packet, then an empty one."""
    empty = b"\0\0\1\xb6" + _Bits().fixed(0b0101, 4).fixed(0, 5).fixed(0b10, 2).pack()
    packed: list[tuple[bytes, bool]] = []
    for packet in packets:
        data = re.sub(rb"Lavc[\d.]+", b"DivX503b1393p", bytes(packet))
        is_b_frame = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 0b10
        if is_b_frame:
            packed[-1] = (packed[-1][0] + data, packed[-1][1])
            data = empty
        packed.append((data, packet.is_keyframe))
    for place, (data, is_key) in enumerate(packed):
        yield make_packet(data, None, place, packets[0].time_base, is_key=is_key)


def make_packet(
    data: bytes, pts: int | None, dts: int | None, time_base: Fraction, *, is_key: bool = False, duration: int = 0
) -> av.Packet:
    """A packet, for `copy`."""
    packet = av.Packet(data)
    packet.pts, packet.dts, packet.time_base, packet.is_keyframe = pts, dts, time_base, is_key
    packet.duration = duration
    return packet
