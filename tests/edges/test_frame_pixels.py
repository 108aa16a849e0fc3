"""A face cut from YUV planes is what comes of converting the whole frame."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from cleanup.edges.frame_pixels import DecodedFrame


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


@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range"),
    [
        ("yuv420p", Colorspace.ITU601, ColorRange.MPEG),
        ("yuv420p", Colorspace.ITU709, ColorRange.MPEG),
        ("yuv420p", Colorspace.ITU709, ColorRange.JPEG),
        ("yuvj420p", Colorspace.ITU601, ColorRange.JPEG),
        ("yuv420p", 2, ColorRange.UNSPECIFIED),
        ("yuv444p", Colorspace.ITU709, ColorRange.MPEG),
        ("yuv420p10le", Colorspace.ITU709, ColorRange.MPEG),
    ],
)
@pytest.mark.parametrize(("scale", "x", "y"), [(1.0, -80, -30), (0.4, 0, 0), (1.3, -330, -160), (2.0, 40, 50)])
def test_a_crop_is_that_of_the_whole_frame(
    pixel_format: str, colorspace: int, color_range: int, scale: float, x: float, y: float
) -> None:
    frame, matrix = draw_frame(pixel_format, int(colorspace), int(color_range)), place(scale, x, y)

    crop = DecodedFrame(frame).align_face(matrix)

    whole = cv2.warpAffine(frame.to_ndarray(format="rgb24"), matrix, (112, 112), borderValue=0)
    difference = np.abs(crop.astype(int) - whole.astype(int))
    assert crop.any()
    # The warp rounds its fixed-point coordinates; the colours themselves are the same to the bit.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02


def test_a_crop_of_odd_height_is_that_of_the_whole_frame() -> None:
    frame, matrix = (
        draw_frame("yuv420p", int(Colorspace.ITU709), int(ColorRange.MPEG), height=181),
        place(1.0, -80, -30),
    )

    crop = DecodedFrame(frame).align_face(matrix)

    assert np.array_equal(crop, cv2.warpAffine(frame.to_ndarray(format="rgb24"), matrix, (112, 112), borderValue=0))


def test_a_face_outside_the_picture_is_black() -> None:
    frame = draw_frame("yuv420p", int(Colorspace.ITU709), int(ColorRange.MPEG))

    assert not DecodedFrame(frame).align_face(place(1.0, 5000, 5000)).any()
