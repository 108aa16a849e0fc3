"""One decoded frame: faces are cut straight from its YUV planes, so that no whole frame is converted for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE

_UNTAGGED, _SMPTE170M = 2, 6
# Red and blue weights of luma by colour space (ITU-R BT.601 and BT.709). Untagged means BT.601, as to FFmpeg.
_BT601, _BT709 = (0.299, 0.114), (0.2126, 0.0722)
_WEIGHTS = {
    _UNTAGGED: _BT601,
    int(Colorspace.ITU601): _BT601,
    _SMPTE170M: _BT601,
    int(Colorspace.ITU709): _BT709,
}
_PLANAR_420 = ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class DecodedFrame:
    """A frame as the decoder gave it.

    Attributes:
        source: PyAV's frame.
    """

    source: av.VideoFrame

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """The whole picture, shape (height, width, 3); converted on first use."""
        return np.asarray(self.source.to_ndarray(format="rgb24"), np.uint8)

    def align_face(self, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Warps a face into the ArcFace crop, with bilinear interpolation and black beyond the picture's edge.

        Of 8-bit 4:2:0 pictures only the region around the face is turned into RGB, pixel by pixel as FFmpeg turns the
        whole; other formats, and pictures of odd height, for which FFmpeg blends chroma, are converted as a whole.

        Args:
            matrix: Affine map from the picture to the crop, shape (2, 3).

        Returns:
            RGB image, shape (112, 112, 3).
        """
        is_known = self.source.format.name in _PLANAR_420 and int(self.source.colorspace) in _WEIGHTS
        if not is_known or self.source.height % 2:
            return _warp(self.rgb, matrix)
        inverse = cv2.invertAffineTransform(matrix)
        last = CROP_SIZE - 1
        corners = inverse[:, :2] @ [[0, last, 0, last], [0, 0, last, last]] + inverse[:, 2:]
        size = np.array([self.source.width, self.source.height])
        # Even, because two by two pixels share their chroma, and a pixel wider, because the warp interpolates.
        first = np.clip(np.floor(corners.min(axis=1)) - 1, 0, size).astype(int) // 2 * 2
        end = np.clip(np.ceil(corners.max(axis=1)) + 2, 0, size).astype(int)
        if (end - first < 1).any():
            return np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ first
        return _warp(self._convert(first, end), shifted)

    def _convert(self, first: NDArray[np.int_], end: NDArray[np.int_]) -> NDArray[np.uint8]:
        """RGB of a region that starts at an even pixel."""
        is_full = self.source.format.name == "yuvj420p" or int(self.source.color_range) == int(ColorRange.JPEG)
        tables = _colour_tables(*_WEIGHTS[int(self.source.colorspace)], is_full_range=is_full)
        (x1, y1), (x2, y2) = first, end
        planes = [_plane_view(plane) for plane in self.source.planes]
        luma = cv2.LUT(planes[0][y1:y2, x1:x2], tables.luma)
        u, v = (plane[y1 // 2 : (y2 + 1) // 2, x1 // 2 : (x2 + 1) // 2] for plane in planes[1:])
        shares = (
            cv2.LUT(v, tables.red_of_v),
            cv2.LUT(u, tables.green_of_u) + cv2.LUT(v, tables.green_of_v),
            cv2.LUT(u, tables.blue_of_u),
        )
        height, width = luma.shape
        whole = (cv2.resize(share, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for share in shares)
        return cv2.merge([cv2.add(luma, share[:height, :width], dtype=cv2.CV_8U) for share in whole])


@dataclass(frozen=True)
class _ColourTables:
    """What each value of a plane adds to red, green and blue; shape (256,), 16 bits."""

    luma: NDArray[np.int16]
    red_of_v: NDArray[np.int16]
    green_of_u: NDArray[np.int16]
    green_of_v: NDArray[np.int16]
    blue_of_u: NDArray[np.int16]


@cache
def _colour_tables(red: float, blue: float, *, is_full_range: bool) -> _ColourTables:
    """Tables of a colour space. Every part is rounded down by itself: that is FFmpeg's conversion to the bit."""
    green = 1 - red - blue
    black, luma, chroma = (0, 1.0, 1.0) if is_full_range else (16, 255 / 219, 255 / 224)
    values = np.arange(256)

    def table(factor: float, zero: int) -> NDArray[np.int16]:
        return np.floor(factor * (values - zero) + 1e-9).astype(np.int16)

    return _ColourTables(
        luma=table(luma, black),
        red_of_v=table(2 * (1 - red) * chroma, 128),
        green_of_u=table(-2 * blue * (1 - blue) / green * chroma, 128),
        green_of_v=table(-2 * red * (1 - red) / green * chroma, 128),
        blue_of_u=table(2 * (1 - blue) * chroma, 128),
    )


def _plane_view(plane: Any) -> NDArray[np.uint8]:
    """A plane without a copy, shape (height, width)."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _warp(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    return cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE), borderValue=0)
