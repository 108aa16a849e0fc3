"""How the picture that is shown comes out of the coded one: turned, mirrored, stretched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.errors import VideoError

# How far a display matrix may be from a quarter turn: what rounding an angle to whole degrees leaves.
_MAX_ERROR_DEG = 0.5


@dataclass(frozen=True)
class PictureGeometry:
    """The way from coded pixels to shown ones: stretched, then mirrored, then turned.

    Attributes:
        coded_width: Of the picture as it is decoded.
        coded_height: The same.
        quarter_turns: Clockwise, 0..3.
        is_mirrored: Whether left and right are swapped, before it is turned.
        stretch_x: Factor of the coded width; the stretched one is rounded to whole pixels.
        stretch_y: The same of the coded height.
    """

    coded_width: int
    coded_height: int
    quarter_turns: int = 0
    is_mirrored: bool = False
    stretch_x: float = 1.0
    stretch_y: float = 1.0

    @property
    def width(self) -> int:
        """Of the picture that is shown."""
        return self._stretched[self.quarter_turns % 2]

    @property
    def height(self) -> int:
        """Of the picture that is shown."""
        return self._stretched[1 - self.quarter_turns % 2]

    @property
    def is_identity(self) -> bool:
        """Whether what is shown is what is coded."""
        is_stretched = self._stretched != (self.coded_width, self.coded_height)
        return not (self.quarter_turns or self.is_mirrored or is_stretched)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Affine map from coded to shown coordinates, shape (2, 3).

        Coordinates are those of boxes: a pixel reaches from its number to the next, so that the box (0, 0, coded_width,
        coded_height) becomes (0, 0, width, height).
        """
        width, height = self._stretched
        matrix = np.array([[width / self.coded_width, 0, 0], [0, height / self.coded_height, 0]])
        if self.is_mirrored:
            matrix[0] = [-matrix[0, 0], 0, width]
        for _ in range(self.quarter_turns):
            matrix = np.array([-matrix[1], matrix[0]])
            matrix[0, 2] += height
            width, height = height, width
        return matrix

    @property
    def inverse(self) -> NDArray[np.float64]:
        """Affine map from shown to coded coordinates, shape (2, 3)."""
        return np.asarray(cv2.invertAffineTransform(self.matrix), np.float64)

    @property
    def centre_matrix(self) -> NDArray[np.float64]:
        """The same map as ``matrix`` for coordinates in which whole numbers are the centres of pixels, shape (2, 3).

        That is how ``cv2.warpAffine`` counts: a centre lies half a pixel from where boxes count from.
        """
        matrix = self.matrix
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        return matrix

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """The shown picture of a coded one.

        Args:
            image: Shape (coded_height, coded_width, ...), 8 or 16 bits.

        Returns:
            Shape (height, width, ...), contiguous; the image itself where nothing is to be done.
        """
        if self.is_identity:
            return image
        if self.is_mirrored:
            image = image[:, ::-1]
        image = np.ascontiguousarray(np.rot90(image, -self.quarter_turns))
        if image.shape[:2] == (self.height, self.width):
            return image
        return np.asarray(cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_LINEAR))

    @property
    def _stretched(self) -> tuple[int, int]:
        """Width and height before turning."""
        return max(1, round(self.coded_width * self.stretch_x)), max(1, round(self.coded_height * self.stretch_y))


def read_display(frame: av.VideoFrame, sample_aspect_ratio: Fraction | None = None) -> PictureGeometry:
    """How a player shows a frame.

    The display matrix comes with the frame, from the container or the stream. Pixels that are not square are stretched
    in width, as FFmpeg's ``scale=iw*sar:ih`` does.

    Args:
        frame: As the decoder gave it.
        sample_aspect_ratio: Width of a pixel by its height (``VideoStream.sample_aspect_ratio``, which looks at the
            container and the stream); None or 0 where it is not known.

    Raises:
        VideoError: The picture is turned by something else than quarter turns.
    """
    quarter_turns, is_mirrored = _read_turns(frame)
    return PictureGeometry(
        frame.width, frame.height, quarter_turns, is_mirrored, stretch_x=float(sample_aspect_ratio or 1)
    )


def _read_turns(frame: av.VideoFrame) -> tuple[int, bool]:
    """Clockwise quarter turns, and whether the picture is mirrored before them."""
    a, b, c, d = _read_matrix(frame)
    if a * d == b * c:  # one that would leave nothing of the picture; FFmpeg passes over it, too
        return 0, False
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    angles = [math.degrees(math.atan2(b, a)), math.degrees(math.atan2(-c, d))]  # where x and y turn to, clockwise
    quarter_turns = round(angles[0] / 90)
    if any(abs(_wrap(angle - 90 * quarter_turns)) > _MAX_ERROR_DEG for angle in angles):
        raise VideoError(
            f"its picture is to be shown turned by {angles[0] % 360:.1f} degrees clockwise, and only quarter turns are "
            "read; turn the picture itself (ffmpeg does it when it encodes again)"
        )
    return quarter_turns % 4, is_mirrored


def _read_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """Of the display matrix the part that turns: x' = a x + c y, y' = b x + d y, with y down; it may hold a scale."""
    try:
        side_data: Any = frame.side_data  # PyAV's stubs take it for a single one
        found = side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV gives none where it does not know all (EXIF, say), but the angle, counterclockwise
        angle = math.radians(-frame.rotation)
        return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    if found is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].tolist()
    return a, b, c, d


def _wrap(angle: float) -> float:
    """An angle in degrees between -180 and 180."""
    return (angle + 180) % 360 - 180
