"""The shown picture comes out of the coded one as players and OpenCV show it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cleanup.edges.picture_geometry import PictureGeometry, read_display
from cleanup.errors import VideoError

WIDTH, HEIGHT = 96, 64
ORIENTATIONS = [(turns, is_mirrored) for turns in range(4) for is_mirrored in (False, True)]


def paint_corners() -> NDArray[np.uint8]:
    """Each quarter of the picture has a colour of its own."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2, 0] = 220
    image[: HEIGHT // 2, WIDTH // 2 :, 1] = 220
    image[HEIGHT // 2 :, : WIDTH // 2, 2] = 220
    image[HEIGHT // 2 :, WIDTH // 2 :] = 220
    return image


def write_video(path: Path, degrees: float, *, hflip: bool = False, vflip: bool = False) -> None:
    """Turned counterclockwise, then flipped."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(paint_corners(), format="rgb24")))
        container.mux(stream.encode())


def read_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_picture_is_shown_as_opencv_shows_it(tmp_path: Path, kind: str, degrees: int) -> None:
    path = tmp_path / f"turned.{kind}"
    write_video(path, degrees)
    frame = read_frame(path)

    geometry = read_display(frame)

    is_read, picture = cv2.VideoCapture(str(path)).read()
    assert is_read
    assert picture.shape[:2] == (geometry.height, geometry.width)
    shown = geometry.apply(frame.to_ndarray(format="rgb24"))
    assert np.abs(shown.astype(int) - picture[:, :, ::-1]).max() <= 3
    assert geometry.is_identity == (degrees == 0)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize(("hflip", "vflip"), [(True, False), (False, True), (True, True)])
def test_a_mirrored_picture_is_shown_mirrored(
    tmp_path: Path, kind: str, degrees: int, hflip: bool, vflip: bool
) -> None:
    path = tmp_path / f"mirrored.{kind}"
    write_video(path, degrees, hflip=hflip, vflip=vflip)

    geometry = read_display(read_frame(path))

    expected = np.rot90(paint_corners(), degrees // 90)
    expected = expected[:, ::-1] if hflip else expected
    expected = expected[::-1] if vflip else expected
    assert np.array_equal(geometry.apply(paint_corners()), expected)
    assert geometry.is_mirrored == (hflip != vflip)


def test_a_picture_turned_by_other_angles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tilted.mp4"
    write_video(path, 30)

    with pytest.raises(VideoError, match=r"330\.0 degrees clockwise"):
        read_display(read_frame(path))


def test_the_turn_of_a_photo_is_read(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(paint_corners()).save(path, exif=exif, quality=95)

    geometry = read_display(read_frame(path))

    assert (geometry.quarter_turns, geometry.is_mirrored) == (1, False)


@pytest.mark.parametrize(
    ("size", "ratio", "shown"),
    [
        ((720, 576), Fraction(64, 45), (1024, 576)),
        ((720, 576), Fraction(16, 11), (1047, 576)),
        ((720, 480), Fraction(8, 9), (640, 480)),
        ((720, 480), Fraction(0), (720, 480)),
        ((720, 480), None, (720, 480)),
    ],
)
def test_pixels_that_are_not_square_are_stretched_in_width(
    size: tuple[int, int], ratio: Fraction | None, shown: tuple[int, int]
) -> None:
    geometry = read_display(av.VideoFrame(*size, "yuv420p"), ratio)

    assert (geometry.width, geometry.height) == shown
    assert geometry.is_identity == (shown == size)


@pytest.mark.parametrize(("turns", "is_mirrored"), ORIENTATIONS)
@pytest.mark.parametrize("stretch", [(1.0, 1.0), (16 / 11, 1.0), (1.0, 45 / 64)])
def test_boxes_go_to_the_shown_picture_and_back(turns: int, is_mirrored: bool, stretch: tuple[float, float]) -> None:
    geometry = PictureGeometry(720, 576, turns, is_mirrored, *stretch)
    corners = np.array([[0, 0], [720, 0], [0, 576], [720, 576]])

    shown = corners @ geometry.matrix[:, :2].T + geometry.matrix[:, 2]

    assert sorted(map(tuple, shown)) == [
        (0, 0),
        (0, geometry.height),
        (geometry.width, 0),
        (geometry.width, geometry.height),
    ]
    back = shown @ geometry.inverse[:, :2].T + geometry.inverse[:, 2]
    assert np.allclose(back, corners)


@pytest.mark.parametrize(("turns", "is_mirrored"), ORIENTATIONS)
def test_the_map_of_centres_moves_pixels_as_the_picture_is_moved(turns: int, is_mirrored: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    geometry = PictureGeometry(WIDTH, HEIGHT, turns, is_mirrored)

    warped = cv2.warpAffine(image, geometry.centre_matrix, (geometry.width, geometry.height))

    assert np.array_equal(geometry.apply(image), warped)


@pytest.mark.parametrize(("turns", "is_mirrored"), ORIENTATIONS)
def test_the_map_of_centres_stretches_as_the_picture_is_stretched(turns: int, is_mirrored: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    geometry = PictureGeometry(WIDTH, HEIGHT, turns, is_mirrored, stretch_x=16 / 11)

    warped = cv2.warpAffine(
        image, geometry.centre_matrix, (geometry.width, geometry.height), borderMode=cv2.BORDER_REPLICATE
    )

    assert np.abs(geometry.apply(image).astype(int) - warped).max() <= 2
