"""Reads and decodes pictures that people bring, after a look at what they claim to be."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cleanup.errors import describe_os_error, raise_shortage
from cleanup.input_limits import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, MIB

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads many more, some of them through other programs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
# How a file of the HEIF family begins behind its length, and which of its kinds Pillow may not be able to read.
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")
_HEIC_BRANDS = tuple(
    b"ftyp" + kind for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
_ORIENTATION = 0x0112


def read_picture(path: Path) -> tuple[bytes, str]:
    """The bytes of a picture's file, and what is wrong with it, or an empty text. Links are followed."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b"", "no plain file"
        # It may have become a FIFO, on whose other end nothing here waits.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return b"", "no plain file"
            content = stream.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        return b"", f"cannot be read ({error.strerror or describe_os_error(error)})"
    if len(content) > MAX_PICTURE_BYTES:
        return b"", f"larger than {MAX_PICTURE_BYTES // MIB} MiB"
    return content, find_fault(content)


def find_fault(content: bytes) -> str:
    """What the header of a picture says against decoding it, or an empty text; no pixel is looked at."""
    from PIL import Image

    try:
        with _opened(content) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        return f"more than {MAX_PICTURE_PIXELS:,} pixels"
    except Exception as error:  # noqa: BLE001 -- Pillow lets out whatever a damaged header makes it stumble over
        raise_shortage(error, "a picture")
        return _explain_unread(content)
    if width * height > MAX_PICTURE_PIXELS:
        return f"{width}x{height}, more than {MAX_PICTURE_PIXELS:,} pixels"
    return ""


def _explain_unread(content: bytes) -> str:
    if content[4:12] in _AVIF_BRANDS and "AVIF" not in _known_formats():
        return "AVIF, which this Pillow cannot read: pip install --upgrade pillow, or save it as JPEG"
    if content[4:12] in _HEIC_BRANDS and "HEIF" not in _known_formats():
        return "HEIC, which needs a plugin: pip install pillow-heif, or save it as JPEG"
    return "not a readable picture"


def decode_picture(content: bytes) -> NDArray[np.uint8] | None:
    """A picture in RGB, shape (height, width, 3), upright by its EXIF orientation; None where it is damaged.

    Of an animation the first frame; what is transparent is as if it were not.

    Args:
        content: A picture of which ``find_fault`` said nothing.
    """
    try:
        with _opened(content) as image:
            image.load()  # turns some kinds by itself, and says so
            orientation = _orientation_of(image)
            pixels = _rgb_of(image)
    except Exception as error:  # noqa: BLE001 -- as above
        raise_shortage(error, "a picture")
        return None
    return np.ascontiguousarray(_turned_upright(pixels, orientation))


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image, features

    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN and (name != "AVIF" or features.check("avif")))


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a picture is large is said with our own limit
        with Image.open(io.BytesIO(content), formats=_known_formats()) as image:
            yield image


def _orientation_of(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 -- a picture is taken as it lies where only what is written about it is damaged
        return 1


def _turned_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture as EXIF means it: 2, 4, 5 and 7 are mirrored, 5 to 8 lie on their side."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _rgb_of(image: Image) -> NDArray[np.uint8]:
    if image.mode in ("RGBa", "La"):  # colours that were multiplied with what they let through
        image = image.convert(f"{image.mode[:-1]}A")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_grey_of(np.asarray(image))[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _grey_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values of more than eight bits in eight: white is the largest value of the narrowest kind they fit."""
    if values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float32)).clip(0)
    peak = float(numbers.max(initial=0))
    kinds = [255.0, 65535.0, peak] if np.issubdtype(values.dtype, np.integer) else [1.0, 255.0, 65535.0, peak]
    white = next(kind for kind in kinds if peak <= kind)
    return (numbers * (255 / white)).astype(np.uint8)
