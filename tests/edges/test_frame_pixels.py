"""Colours are those that were coded, and a face cut from a frame's planes is what comes of the whole shown picture."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.edges.picture_geometry import PictureGeometry
from cleanup.errors import VideoError

PATCH = 12
LIMITED, FULL = int(ColorRange.MPEG), int(ColorRange.JPEG)
WEIGHTS = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
SUBSAMPLING = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "440": (1, 2), "411": (4, 1)}
PLACES = [(1.0, -80, -30), (0.4, 0, 0), (1.3, -330, -160), (2.0, 40, 50)]


def paint_patches(height: int, width: int, darkest: int = 0) -> NDArray[np.uint8]:
    """Black, white, the pure colours and many others, in squares."""
    colours = np.random.default_rng(0).integers(darkest, 256, (-(-height // PATCH), -(-width // PATCH), 3))
    colours.reshape(-1, 3)[:8] = [[r, g, b] for r in (darkest, 255) for g in (darkest, 255) for b in (darkest, 255)]
    return np.repeat(np.repeat(colours, PATCH, 0), PATCH, 1)[:height, :width].astype(np.uint8)


def inside_patches(height: int, width: int) -> tuple[NDArray[np.bool_], ...]:
    """Where neither shared chroma nor a warp mixes two patches."""
    is_inside = np.zeros(PATCH, bool)
    is_inside[3:-3] = True
    return np.ix_(np.resize(is_inside, height), np.resize(is_inside, width))


def encode_yuv(rgb: NDArray[Any], colorspace: int, bits: int, *, is_full: bool) -> list[NDArray[np.float64]]:
    """Planes of R'G'B' in 0..1 as ITU-T H.273 has it."""
    red, blue = WEIGHTS[colorspace]
    y = rgb @ [red, 1 - red - blue, blue]
    u, v = (rgb[..., 2] - y) / (2 * (1 - blue)), (rgb[..., 0] - y) / (2 * (1 - red))
    luma, chroma, black = (
        (2**bits - 1,) * 2 + (0,) if is_full else (219 * 2**bits / 256, 224 * 2**bits / 256, 2**bits / 16)
    )
    middle = 2 ** (bits - 1)
    return [np.clip(np.rint(p), 0, 2**bits - 1) for p in (luma * y + black, chroma * u + middle, chroma * v + middle)]


def fill(plane: Any, samples: NDArray[Any], bits: int, byteorder: str = "<") -> None:
    """Writes samples of shape (height, width) or, interleaved, (height, width, 2)."""
    rows = samples.reshape(len(samples), -1).astype("u1" if bits == 8 else f"{byteorder}u2").view(np.uint8)
    padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    plane.update(padded.tobytes())


def paint_frame(
    pixel_format: str,
    rgb: NDArray[Any],
    colorspace: int = 1,
    color_range: int = LIMITED,
    trc: int = 2,
    primaries: int = 2,
) -> av.VideoFrame:
    """A frame of R'G'B' in 0..1, made with the exact matrix and in no way by FFmpeg."""
    height, width = rgb.shape[:2]
    frame = av.VideoFrame(width, height, pixel_format)
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = (
        colorspace,
        color_range,
        trc,
        primaries,
    )
    is_full = color_range == FULL
    if parts := re.fullmatch(r"(?:yuvj?(a?)(4\d\d)p|gray)(?:(\d+)([lb])e)?", pixel_format):
        bits, byteorder = int(parts[3] or 8), ">" if parts[4] == "b" else "<"
        planes = encode_yuv(rgb, colorspace, bits, is_full=is_full)
        if parts[2]:
            step_x, step_y = SUBSAMPLING[parts[2]]
            planes[1:] = [plane[::step_y, ::step_x] for plane in planes[1:]]
            planes += [np.full((height, width), 2**bits // 3)] * bool(parts[1])
        for plane, samples in zip(frame.planes, planes, strict=False):
            fill(plane, samples, bits, byteorder)
        return frame
    step_x, step_y, bits = {"nv12": (2, 2, 8), "nv24": (1, 1, 8), "p010le": (2, 2, 10), "p016le": (2, 2, 16), "p210le": (2, 1, 10)}[pixel_format]  # fmt: skip
    shift = 1 if bits == 8 else 2 ** (16 - bits)
    y, u, v = (shift * plane for plane in encode_yuv(rgb, colorspace, bits, is_full=is_full))
    fill(frame.planes[0], y, bits)
    fill(frame.planes[1], np.stack([u, v], axis=2)[::step_y, ::step_x], bits)
    return frame


def draw_frame(pixel_format: str, colorspace: int, color_range: int, height: int = 180) -> av.VideoFrame:
    # An odd width: the last column has chroma of its own.
    pixels = np.random.default_rng(1).integers(0, 256, (height, 321, 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(cv2.GaussianBlur(pixels, (5, 5), 0), format="rgb24")
    frame = frame.reformat(format=pixel_format)
    frame.colorspace, frame.color_range = colorspace, color_range
    return frame


def place(scale: float, x: float, y: float) -> NDArray[np.float64]:
    """Maps a region of the picture, slightly turned, to the crop."""
    matrix = cv2.getRotationMatrix2D((0, 0), 7.0, scale)
    matrix[:, 2] = [x, y]
    return matrix


def warp(picture: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.int_]:
    return cv2.warpAffine(picture, matrix, (112, 112), borderValue=0).astype(int)


@pytest.mark.parametrize("size", [(96, 144), (97, 145)])
@pytest.mark.parametrize("colorspace", sorted(WEIGHTS))
@pytest.mark.parametrize(
    "pixel_format",
    [
        "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv440p", "yuv411p", "yuva420p", "yuva444p",
        "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuva422p10le", "yuv420p10be", "yuv420p12le", "yuv422p12le",
        "yuv444p12le", "yuv420p16le", "yuv444p16le", "nv12", "nv24", "p010le", "p016le", "p210le",
    ],
)  # fmt: skip
def test_known_colours_are_read(pixel_format: str, colorspace: int, size: tuple[int, int]) -> None:
    rgb, inside = paint_patches(*size), inside_patches(*size)
    for color_range in (FULL,) if pixel_format.startswith("yuvj") else (LIMITED, FULL):
        frame = DecodedFrame(paint_frame(pixel_format, rgb / 255, colorspace, color_range))

        assert np.abs(frame.rgb.astype(int) - rgb)[inside].max() <= (3 if "420" in pixel_format else 2)
        crop = frame.align_face(np.array([[1.0, 0, -16], [0, 1, 0]])).astype(int)[: size[0]]
        assert np.abs(crop - warp(frame.rgb, np.array([[1.0, 0, -16], [0, 1, 0]]))[: size[0]])[:, :110].max() <= 1


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le", "gray12le", "gray16be"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_known_greys_are_read(pixel_format: str, color_range: int) -> None:
    rgb = np.repeat(paint_patches(97, 145)[..., :1], 3, axis=2)

    frame = DecodedFrame(paint_frame(pixel_format, rgb / 255, color_range=color_range))

    assert np.abs(frame.rgb.astype(int) - rgb).max() <= 1


def test_grey_without_a_range_is_of_full_range() -> None:
    frame = paint_frame("gray", np.full((32, 32, 3), 0.2), color_range=FULL)
    frame.color_range = int(ColorRange.UNSPECIFIED)

    assert (DecodedFrame(frame).rgb == 51).all()


@pytest.mark.parametrize("colorspace", [0, 1, 2, 10])
@pytest.mark.parametrize(
    "pixel_format",
    ["rgb24", "bgr24", "rgba", "bgra", "argb", "rgb0", "gbrp", "gbrap", "gbrp10le", "gbrap12le", "gbrp16le", "rgb48be"],
)
def test_known_colours_in_rgb_are_read(pixel_format: str, colorspace: int) -> None:
    rgb = paint_patches(97, 145)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)
    frame.colorspace, frame.color_range = colorspace, LIMITED

    assert np.abs(DecodedFrame(frame).rgb.astype(int) - rgb).max() <= 1


def test_known_colours_of_a_palette_are_read() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (256, 4)).astype(np.uint8)
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)

    frame = DecodedFrame(av.VideoFrame.from_ndarray((numbers, palette), format="pal8"))

    assert np.array_equal(frame.rgb, palette[numbers][..., 1:])


def test_bt2020_with_constant_luminance_is_read_as_that_without() -> None:
    frames = [paint_frame("yuv420p", paint_patches(96, 144) / 255, 9) for _ in range(2)]
    frames[1].colorspace = 10

    assert np.abs(DecodedFrame(frames[0]).rgb.astype(int) - DecodedFrame(frames[1]).rgb).max() <= 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p10le"])
def test_an_unknown_matrix_is_refused(pixel_format: str) -> None:
    frame = paint_frame(pixel_format, np.zeros((32, 32, 3)))
    frame.colorspace = 14

    with pytest.raises(VideoError, match="matrix 14"):
        DecodedFrame(frame).align_face(place(1, 0, 0))


def test_pixels_that_ffmpeg_cannot_convert_are_refused() -> None:
    for pixel_format in ("yaf32le", "gray32le"):
        with pytest.raises(VideoError, match=pixel_format):
            _ = DecodedFrame(av.VideoFrame(16, 16, pixel_format)).rgb


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "nv12", "rgb24"])
def test_a_picture_stored_from_the_bottom_up_is_upright(pixel_format: str) -> None:
    frame = draw_frame(pixel_format, int(Colorspace.ITU601), LIMITED)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = Graph()
    steps = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        graph.add("vflip"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*steps).configure()
    graph.push(frame)
    flipped = graph.pull()
    assert isinstance(flipped, av.VideoFrame)
    assert flipped.planes[0].line_size < 0

    picture = DecodedFrame(flipped)

    expected = DecodedFrame(frame).rgb[::-1]
    assert np.array_equal(picture.rgb, expected)
    assert np.abs(picture.align_face(place(1.0, -80, -30)) - warp(expected, place(1.0, -80, -30))).max() <= 2


@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range"),
    [
        ("yuv420p", Colorspace.ITU601, ColorRange.MPEG),
        ("yuv420p", Colorspace.ITU709, ColorRange.MPEG),
        ("yuv420p", Colorspace.ITU709, ColorRange.JPEG),
        ("yuvj420p", Colorspace.ITU601, ColorRange.JPEG),
        ("yuv420p", 2, ColorRange.UNSPECIFIED),
    ],
)
@pytest.mark.parametrize(("scale", "x", "y"), PLACES)
def test_a_crop_is_that_of_ffmpegs_picture(
    pixel_format: str, colorspace: int, color_range: int, scale: float, x: float, y: float
) -> None:
    frame, matrix = draw_frame(pixel_format, int(colorspace), int(color_range)), place(scale, x, y)

    crop = DecodedFrame(frame).align_face(matrix)

    difference = np.abs(crop - warp(frame.to_ndarray(format="rgb24"), matrix))
    assert crop.any()
    # The warp rounds its fixed-point coordinates; the colours themselves are the same to the bit.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("height", [180, 181])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv411p", "yuv420p10le", "nv12", "gray", "gbrp"])
@pytest.mark.parametrize(("scale", "x", "y"), PLACES)
def test_a_crop_is_that_of_the_whole_picture(pixel_format: str, height: int, scale: float, x: float, y: float) -> None:
    frame = DecodedFrame(draw_frame(pixel_format, int(Colorspace.ITU709), LIMITED, height))
    matrix = place(scale, x, y)

    difference = np.abs(frame.align_face(matrix) - warp(frame.rgb, matrix))

    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02


def test_a_face_outside_the_picture_is_black() -> None:
    for pixel_format in ("yuv420p", "yuv420p10le", "gray", "rgb24"):
        frame = draw_frame(pixel_format, int(Colorspace.ITU709), LIMITED)

        assert not DecodedFrame(frame).align_face(place(1.0, 5000, 5000)).any()
        # Half of the crop is outside, whatever the picture's black is coded as.
        assert not DecodedFrame(frame).align_face(np.array([[1.0, 0, 56], [0, 1, 0]]))[:, :55].any()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("stretch", [1.0, 16 / 11, 64 / 45])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le"])
def test_a_crop_is_that_of_the_shown_picture(pixel_format: str, turns: int, is_mirrored: bool, stretch: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (180, 240, 3)).astype(np.uint8)
    rgb = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 20, 235, cv2.NORM_MINMAX)
    geometry = PictureGeometry(240, 180, turns, is_mirrored, stretch_x=stretch)
    frame = DecodedFrame(paint_frame(pixel_format, rgb / 255), geometry)
    matrix = place(0.8, -12, -20)

    assert frame.rgb.shape == (geometry.height, geometry.width, 3)
    expected = warp(frame.rgb, matrix)
    crop = frame.align_face(matrix)

    # Not at the very edge, which fades to black over one coded pixel here and one shown pixel there.
    is_inside = cv2.erode(warp(np.full_like(frame.rgb, 255), matrix).astype(np.uint8), np.ones((5, 5))) == 255
    difference = np.abs(crop - expected)[is_inside]
    assert is_inside.mean() > 0.5
    assert expected.std() > 20
    assert difference.max() <= 8
    assert difference.mean() < 0.7


def to_high_range(rgb: NDArray[np.uint8], trc: int, *, is_bt2020: bool) -> NDArray[np.float64]:
    """R'G'B' in 0..1 of a picture of standard range whose white is put at 203 nits."""
    nits = 203 * (rgb / 255) ** 2.4
    if is_bt2020:
        nits = nits @ np.array([[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]]).T  # fmt: skip
    if trc == ColorTrc.SMPTE2084:
        power = (nits / 10000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    scene = nits / 1000 * (nits / 1000 @ [0.2627, 0.6780, 0.0593])[..., None] ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )


@pytest.mark.parametrize("trc", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
@pytest.mark.parametrize("primaries", [ColorPrimaries.BT709, ColorPrimaries.BT2020])
@pytest.mark.parametrize("pixel_format", ["yuv444p12le", "yuv420p12le", "yuv420p10le", "p010le"])
def test_a_picture_of_standard_range_comes_back_from_high_range(trc: int, primaries: int, pixel_format: str) -> None:
    # Its colours are not pure: of a channel near black the coarse steps of the bright ones leave little.
    rgb = paint_patches(96, 144, darkest=80)
    signal = to_high_range(rgb, trc, is_bt2020=primaries == ColorPrimaries.BT2020)
    frame = DecodedFrame(paint_frame(pixel_format, signal, 9, LIMITED, int(trc), int(primaries)))
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])

    limit = 3 if "12" in pixel_format else 5  # a step of 10 bits is up to 2 levels
    assert np.abs(frame.rgb.astype(int) - rgb)[inside_patches(96, 144)].max() <= limit
    crop = frame.align_face(whole).astype(int)[:96]
    assert np.abs(crop - rgb[:, :112])[inside_patches(96, 112)].max() <= limit


def test_high_range_in_rgb_is_mapped_too() -> None:
    signal = np.rint(65535 * to_high_range(paint_patches(96, 144, darkest=40), ColorTrc.SMPTE2084, is_bt2020=False))
    frame = av.VideoFrame.from_ndarray(signal.astype(np.uint16), format="rgb48le").reformat(format="gbrp12le")
    frame.color_trc, frame.color_primaries = int(ColorTrc.SMPTE2084), int(ColorPrimaries.BT709)

    assert np.abs(DecodedFrame(frame).rgb.astype(int) - paint_patches(96, 144, darkest=40)).max() <= 3


def test_a_turned_crop_of_high_range_is_that_of_the_shown_picture() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (180, 240, 3)).astype(np.uint8)
    rgb = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 60, 235, cv2.NORM_MINMAX)
    signal = to_high_range(rgb, ColorTrc.SMPTE2084, is_bt2020=True)
    source = paint_frame("yuv420p10le", signal, 9, LIMITED, int(ColorTrc.SMPTE2084), int(ColorPrimaries.BT2020))
    frame = DecodedFrame(source, PictureGeometry(240, 180, 3, is_mirrored=True))

    difference = np.abs(frame.align_face(place(0.8, -12, 20)) - warp(frame.rgb, place(0.8, -12, 20)))[2:-2, 2:-2]

    assert difference.mean() < 1
