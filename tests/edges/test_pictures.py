"""Pictures of every kind that people have come out as RGB, upright, and as they always did."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cleanup.edges.pictures import decode_picture, find_fault


def scene(width: int = 120, height: int = 80) -> Image.Image:
    """A picture that is different in each corner, without fine detail."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (columns * 255 // width, rows * 255 // height, (rows + columns) * 200 // (width + height) + 20)
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(content: bytes) -> NDArray[np.uint8]:
    assert find_fault(content) == ""
    image = decode_picture(content)
    assert image is not None and image.dtype == np.uint8 and image.flags.c_contiguous
    return image


def opaque(mode: str) -> Image.Image:
    image = scene().convert("RGBA")
    image.putalpha(128)
    return image.convert(mode)


CASES = {
    "webp": lambda: encode(scene(), "WEBP", quality=95),
    "avif": lambda: encode(scene(), "AVIF", quality=95),
    "bmp": lambda: encode(scene(), "BMP"),
    "tiff": lambda: encode(scene(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": lambda: encode(scene().convert("CMYK"), "TIFF"),
    "gif": lambda: encode(scene().quantize(255), "GIF"),
    "animated gif": lambda: encode(scene().quantize(255), "GIF", save_all=True, append_images=[scene().transpose(1)]),
    "animated webp": lambda: encode(
        scene(), "WEBP", save_all=True, append_images=[scene().transpose(1)], lossless=True
    ),
    "cmyk jpeg": lambda: encode(scene().convert("CMYK"), "JPEG", quality=95),
    "two pictures in a jpeg": lambda: encode(scene(), "MPO", save_all=True, append_images=[scene().transpose(1)]),
    "palette": lambda: encode(scene().quantize(255), "PNG"),
    "alpha": lambda: encode(opaque("RGBA"), "PNG"),
    "alpha webp": lambda: encode(opaque("RGBA"), "WEBP", lossless=True),
    "multiplied alpha": lambda: encode(opaque("RGBA"), "TIFF"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_picture_comes_out_in_rgb(name: str) -> None:
    image = decoded(CASES[name]())

    difference = np.abs(image.astype(int) - np.asarray(scene()))
    assert image.shape == (80, 120, 3) and difference.mean() < 8, difference.mean()


GREY = np.asarray(scene().convert("L"))
GREYS = {
    "grey": lambda: encode(Image.fromarray(GREY), "PNG"),
    "16 bits": lambda: encode(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "16 bits tiff": lambda: encode(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "32 bits": lambda: encode(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
    "floats": lambda: encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
}


@pytest.mark.parametrize("name", GREYS)
def test_a_grey_picture_of_any_depth_is_as_bright_as_it_was(name: str) -> None:
    image = decoded(GREYS[name]())

    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_by_its_exif(kind: str, orientation: int) -> None:
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # from upright to how it is stored
    stored = scene() if turn is None else scene().transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation

    image = decoded(encode(stored, kind, exif=exif, **({"quality": 95} if kind != "TIFF" else {})))

    assert image.shape == (80, 120, 3) and np.abs(image.astype(int) - np.asarray(scene())).mean() < 6


@pytest.mark.shared
def test_photos_of_old_are_the_same_to_the_bit(shared: Path) -> None:
    """Seeds that were enrolled when OpenCV decoded them are the seeds that would be enrolled now."""
    paths = [p for p in (shared / "facebank").rglob("*") if p.suffix in (".jpg", ".png")]
    assert paths
    for path in paths:
        content = path.read_bytes()
        before = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.array_equal(decoded(content), before), path


def test_what_pillow_cannot_read_without_a_plugin_says_what_to_install() -> None:
    assert find_fault(b"\0\0\0\x18ftypheic" + bytes(100)) == (
        "HEIC, which needs a plugin: pip install pillow-heif, or save it as JPEG"
    )


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%PDF-1.4 ...", b"\0\0\0\x18ftypisom" + bytes(50), b"%!PS-Adobe\n"]
)
def test_what_is_no_picture_is_told(content: bytes) -> None:
    assert find_fault(content) == "not a readable picture"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_half_a_picture_is_none(kind: str) -> None:
    content = encode(scene(), kind)

    assert find_fault(content[: len(content) // 2]) or decode_picture(content[: len(content) // 2]) is None
