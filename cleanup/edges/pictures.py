"""Decodes pictures that people bring, after a look at what they claim to be."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.input_limits import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, MIB


def read_picture(path: Path) -> tuple[bytes, str]:
    """The bytes of a picture's file, and what is wrong with it, or an empty text."""
    if not path.is_file():
        return b"", "no plain file"
    if path.stat().st_size > MAX_PICTURE_BYTES:
        return b"", f"larger than {MAX_PICTURE_BYTES // MIB} MiB"
    content = path.read_bytes()
    return content, find_fault(content)


def find_fault(content: bytes) -> str:
    """What the header of a PNG or JPEG says against decoding it, or an empty text; no pixel is looked at."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is large is said below, with our own limit
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        return f"more than {MAX_PICTURE_PIXELS:,} pixels"
    except Exception:  # noqa: BLE001 -- Pillow's readers let out whatever a damaged header makes them stumble over
        return "not a readable picture"
    if width * height > MAX_PICTURE_PIXELS:
        return f"{width}x{height}, more than {MAX_PICTURE_PIXELS:,} pixels"
    return ""


def decode_picture(content: bytes) -> NDArray[np.uint8] | None:
    """A picture in RGB, shape (height, width, 3), upright by its EXIF orientation; None where it is damaged.

    Args:
        content: A PNG or JPEG of which ``find_fault`` said nothing.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
