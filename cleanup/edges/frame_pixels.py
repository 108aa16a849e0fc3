"""One decoded frame: faces are cut straight from its YUV planes, so that no whole frame is converted for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE
from cleanup.algorithms.tone_mapping import Transfer, map_to_sdr
from cleanup.edges.picture_geometry import PictureGeometry
from cleanup.errors import VideoError

# Red and blue weights of luma (ITU-R BT.601, BT.709, BT.2020, FCC, SMPTE 240M) by colour space (ITU-T H.273, table 4).
# Untagged, reserved and RGB, which YUV cannot be, mean BT.601, as to FFmpeg. BT.2020 with constant luminance is nearly
# always a wrong tag and read as that without.
_BT601, _BT2020 = (0.299, 0.114), (0.2627, 0.0593)
_WEIGHTS = {
    0: _BT601, 1: (0.2126, 0.0722), 2: _BT601, 3: _BT601, 4: (0.30, 0.11), 5: _BT601, 6: _BT601, 7: (0.212, 0.087),
    9: _BT2020, 10: _BT2020,
}  # fmt: skip
_TRANSFERS: dict[int, Transfer] = {int(ColorTrc.SMPTE2084): "pq", int(ColorTrc.ARIB_STD_B67): "hlg"}
_PLANAR_420 = ("yuv420p", "yuvj420p")
# Formats whose planes are read as they lie; others are brought into one of these first.
_READABLE = re.compile(r"(yuvj?a?4\d\dp|gray)((9|1\d)le)?")
# How many pixels share chroma, across and down.
_SUBSAMPLING = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (4, 4): "410"}
_MAX_SUBSAMPLING = 4
_GREY = ("gray", "ya")
# Neither RGB nor YUV by name, and RGB as FFmpeg reads them: XYZ, and black and white.
_RGB_IN_FFMPEG = ("xyz", "mono")
# FFmpeg's converter ends the process where it is given one of these.
_FATAL_IN_FFMPEG = ("yaf32",)
# Where FFmpeg's conversion of 8-bit 4:2:0, the quicker one of a whole picture, is that of our tables to the bit (of
# BT.709 in full range within one level).
_SAME_IN_FFMPEG = (1, 2, 5, 6)
_STRIP_ROWS = 64


@dataclass(frozen=True)
class DecodedFrame:
    """A frame as the decoder gave it.

    Pictures of any bit depth, matrix and range become 8-bit RGB; those of high dynamic range (PQ, HLG) are brought to
    standard range.

    Attributes:
        source: PyAV's frame.
        geometry: How the picture that is shown comes out of the coded one; None where they are the same.

    Raises:
        VideoError: On first use of the pixels: their colours are coded in a way that is not read.
    """

    source: av.VideoFrame
    geometry: PictureGeometry | None = None

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """The whole picture as it is shown, shape (height, width, 3); converted on first use."""
        size = np.array([self.source.width, self.source.height])
        if self._is_plain and int(self.source.colorspace) in _SAME_IN_FFMPEG and not self.source.height % 2:
            picture = np.asarray(self.source.to_ndarray(format="rgb24"), np.uint8)
        else:
            picture = self._finish(self._cut(np.zeros(2, int), size))
        return picture if self.geometry is None else self.geometry.apply(picture)

    def align_face(self, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Warps a face into the ArcFace crop, with bilinear interpolation and black beyond the picture's edge.

        Only the region around the face is turned into RGB; 8-bit 4:2:0 pixels become what FFmpeg makes of them.

        Args:
            matrix: Affine map from the shown picture to the crop, shape (2, 3); whole numbers are centres of pixels.

        Returns:
            RGB image, shape (112, 112, 3).
        """
        if self.geometry is not None and not self.geometry.is_identity:
            matrix = _compose(matrix, self.geometry.centre_matrix)
        inverse = cv2.invertAffineTransform(matrix)
        last = CROP_SIZE - 1
        corners = inverse[:, :2] @ [[0, last, 0, last], [0, 0, last, last]] + inverse[:, 2:]
        size = np.array([self.source.width, self.source.height])
        # Where pixels share chroma, none is cut off from the others; a pixel wider, because the warp interpolates.
        step = 2 if self._is_plain else _MAX_SUBSAMPLING
        first = np.clip(np.floor(corners.min(axis=1)) - 1, 0, size).astype(int) // step * step
        end = np.clip(np.ceil(corners.max(axis=1)) + 2, 0, size).astype(int)
        if (end - first < 1).any():
            return np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ first
        return self._finish(cv2.warpAffine(self._cut(first, end), shifted, (CROP_SIZE, CROP_SIZE), borderValue=0))

    @property
    def is_high_dynamic_range(self) -> bool:
        """Whether the frame is brought to standard range."""
        return self._transfer is not None

    @property
    def _transfer(self) -> Transfer | None:
        return _TRANSFERS.get(int(self.source.color_trc))

    @property
    def _is_plain(self) -> bool:
        return self.source.format.name in _PLANAR_420 and self._transfer is None

    @cached_property
    def _samples(self) -> _Samples:
        return _read_samples(self.source)

    def _cut(self, first: NDArray[np.int_], end: NDArray[np.int_]) -> NDArray[Any]:
        """R'G'B' of a region that starts where no pixels share chroma: 8 bits, or 16 as coded of high dynamic range."""
        (x1, y1), (x2, y2) = first, end
        if self._is_plain:
            return _convert_by_tables(self.source, slice(x1, x2), slice(y1, y2))
        return self._samples.convert(slice(x1, x2), slice(y1, y2), np.uint8 if self._transfer is None else np.uint16)

    def _finish(self, picture: NDArray[Any]) -> NDArray[np.uint8]:
        """Standard range, of what ``_cut`` gave."""
        if self._transfer is None:
            return picture
        is_bt2020 = int(self.source.color_primaries) == int(ColorPrimaries.BT2020)
        mapped = np.empty(picture.shape, np.uint8)
        for y in range(0, len(picture), _STRIP_ROWS):  # light takes four times the memory
            rows = slice(y, y + _STRIP_ROWS)
            mapped[rows] = map_to_sdr(picture[rows], self._transfer, is_bt2020=is_bt2020)
        return mapped


def _compose(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """One affine map after another, shape (2, 3)."""
    composed = second[:, :2] @ first
    composed[:, 2] += second[:, 2]
    return composed


def _weights_of(frame: av.VideoFrame) -> tuple[float, float]:
    """Red and blue weight of luma."""
    colorspace = int(frame.colorspace)
    if colorspace not in _WEIGHTS:
        raise VideoError(
            f"its colours are coded in a way that is not read (matrix {colorspace} of ITU-T H.273); "
            "convert the video to BT.709"
        )
    return _WEIGHTS[colorspace]


def _is_full_range(frame: av.VideoFrame) -> bool:
    """Whether black is 0; untagged grey is of full range, untagged YUV is not, as to FFmpeg."""
    if frame.format.name.startswith("yuvj"):
        return True
    if frame.format.name.startswith(_GREY):
        return int(frame.color_range) != int(ColorRange.MPEG)
    return int(frame.color_range) == int(ColorRange.JPEG)


@dataclass(frozen=True)
class _Samples:
    """What a picture consists of.

    Attributes:
        planes: Luma; luma and two of chroma, which may be smaller; or one of shape (height, width, 3), which is RGB.
        matrix: From samples (and 1) to R'G'B' of 0..1, shape (3, number of samples + 1).
    """

    planes: tuple[NDArray[Any], ...]
    matrix: NDArray[np.float64]

    def convert(self, columns: slice, rows: slice, kind: type[np.uint8 | np.uint16]) -> NDArray[Any]:
        """R'G'B' of a region that starts where no pixels share chroma, full range."""
        parts = [self._cut(plane, columns, rows) for plane in self.planes]
        samples = (parts[0] if len(parts) == 1 else cv2.merge(parts)).astype(np.uint16, copy=False)
        colours = cv2.transform(samples, self.matrix * np.iinfo(kind).max)
        return colours if kind is np.uint16 else cv2.convertScaleAbs(colours)  # both round and clip

    def _cut(self, plane: NDArray[Any], columns: slice, rows: slice) -> NDArray[Any]:
        """A region of a plane, each sample repeated for all pixels that share it."""
        (height, width), (own_height, own_width) = self.planes[0].shape[:2], plane.shape[:2]
        fx, fy = -(-width // own_width), -(-height // own_height)
        part = plane[rows.start // fy : -(-rows.stop // fy), columns.start // fx : -(-columns.stop // fx)]
        if (fx, fy) == (1, 1):
            return part
        part = cv2.resize(part, None, fx=fx, fy=fy, interpolation=cv2.INTER_NEAREST)
        return part[: rows.stop - rows.start, : columns.stop - columns.start]


def _read_samples(frame: av.VideoFrame) -> _Samples:
    """The samples of a frame of any format; those of a common one without a copy."""
    components = frame.format.components
    bits = max(component.bits for component in components)
    name = frame.format.name
    if frame.format.is_rgb or frame.format.has_palette or name.startswith(_RGB_IN_FFMPEG):
        picture = _reformat(frame, "rgb24" if bits <= 8 else "rgb48le").to_ndarray()
        return _Samples((np.asarray(picture),), np.eye(3, 4) / (255 if bits <= 8 else 65535))
    coloured = [component for component in components if not component.is_alpha]
    is_grey = len(coloured) == 1
    shared = coloured[-1]
    factors = (-(-frame.width // shared.width), -(-frame.height // shared.height))
    is_full_range = _is_full_range(frame)
    if is_grey:
        kind, matrix = "gray", np.tile(_scale_luma(min(bits, 16), is_full_range=is_full_range), (3, 1))
    else:
        kind = f"yuv{_SUBSAMPLING[factors]}p"
        matrix = _colour_matrix(bits, *_weights_of(frame), is_full_range=is_full_range)
    if not _READABLE.fullmatch(name):
        frame = _reformat(frame, kind if bits == 8 else f"{kind}{min(bits, 16)}le")
    planes = [_plane_view(plane, np.uint8 if bits == 8 else np.uint16) for plane in frame.planes]
    return _Samples(tuple(planes[: len(coloured)]), matrix)


def _reformat(frame: av.VideoFrame, name: str) -> av.VideoFrame:
    """A frame in another format, its samples the same: source and target are given the same matrix and range."""
    matrix, full = Colorspace.ITU709, ColorRange.JPEG
    if not frame.format.name.startswith(_FATAL_IN_FFMPEG):
        try:
            # In one thread: with more, slices of 16-bit semi-planar formats overwrite each other's edges (FFmpeg 8).
            return frame.reformat(None, None, name, matrix, matrix, None, full, full, threads=1)
        except (OSError, ValueError):
            pass
    raise VideoError(
        f"its pixels are coded in a way that is not read ({frame.format.name}); convert the video to yuv420p"
    )


def _scale_luma(bits: int, *, is_full_range: bool) -> tuple[float, float]:
    """Factor and offset that bring luma to 0..1."""
    if is_full_range:
        return 1 / (2**bits - 1), 0.0
    return 1 / (219 << (bits - 8)), -16 / 219


def _colour_matrix(bits: int, red: float, blue: float, *, is_full_range: bool) -> NDArray[np.float64]:
    """From Y, U, V and 1 to R'G'B' of 0..1, shape (3, 4)."""
    green = 1 - red - blue
    luma, black = _scale_luma(bits, is_full_range=is_full_range)
    chroma = 1 / ((2**bits - 1) if is_full_range else (224 << (bits - 8)))
    of_u = chroma * np.array([0, -2 * blue * (1 - blue) / green, 2 * (1 - blue)])
    of_v = chroma * np.array([2 * (1 - red), -2 * red * (1 - red) / green, 0])
    return np.stack([np.full(3, luma), of_u, of_v, black - (of_u + of_v) * 2 ** (bits - 1)], axis=1)


def _plane_view(plane: Any, kind: type[np.uint8 | np.uint16]) -> NDArray[Any]:
    """A plane without a copy, shape (height, width)."""
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]
    # Of pictures that are stored from the bottom up the lowest address comes first.
    return rows if plane.line_size > 0 else np.ascontiguousarray(rows[::-1])


def _convert_by_tables(frame: av.VideoFrame, columns: slice, rows: slice) -> NDArray[np.uint8]:
    """RGB of a region of an 8-bit 4:2:0 picture that starts at an even pixel."""
    tables = _colour_tables(*_weights_of(frame), is_full_range=_is_full_range(frame))
    planes = [_plane_view(plane, np.uint8) for plane in frame.planes]
    luma = cv2.LUT(planes[0][rows, columns], tables.luma)
    half = (slice(rows.start // 2, (rows.stop + 1) // 2), slice(columns.start // 2, (columns.stop + 1) // 2))
    u, v = (plane[half] for plane in planes[1:])
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
