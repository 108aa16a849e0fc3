"""High dynamic range becomes what the same picture is in standard range."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cleanup.algorithms.tone_mapping import Transfer, map_to_sdr

BT2020_OF_BT709 = np.array(
    [[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]]
)


def encode(nits: NDArray[np.float64], transfer: Transfer) -> NDArray[np.uint16]:
    """Light of a display, shape (..., 3), as ITU-R BT.2100 codes it; written down from the standard."""
    if transfer == "pq":
        power = (nits / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        luminance = (nits / 1000) @ [0.2627, 0.6780, 0.0593]
        scene = nits / 1000 * np.maximum(luminance, 1e-12)[..., None] ** (1 / 1.2 - 1)
        signal = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
        )
    return np.rint(signal * 65535).astype(np.uint16)


def encode_sdr(rgb: NDArray[np.uint8], transfer: Transfer, *, is_bt2020: bool) -> NDArray[np.uint16]:
    """A picture of standard range at 203 nits of white (ITU-R BT.2408)."""
    light = 203 * (rgb / 255) ** 2.4
    return encode(light @ BT2020_OF_BT709.T if is_bt2020 else light, transfer)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
@pytest.mark.parametrize("is_bt2020", [True, False])
def test_a_picture_of_standard_range_comes_back(transfer: Transfer, is_bt2020: bool) -> None:
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    # Not quite down to 0, where 16 bits of a bright channel are too few for a dark one of other primaries.
    colours = np.random.default_rng(0).integers(8, 256, (4000, 3))
    rgb = np.concatenate([greys, colours]).astype(np.uint8)

    mapped = map_to_sdr(encode_sdr(rgb, transfer, is_bt2020=is_bt2020), transfer, is_bt2020=is_bt2020)

    assert np.abs(mapped.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("transfer", "white"), [("pq", 0.5807), ("hlg", 0.75)])
def test_diffuse_white_is_where_the_standard_puts_it(transfer: Transfer, white: float) -> None:
    def grey_of(share: float) -> int:
        signal = np.full((1, 3), share * 65535, np.uint16)
        return int(map_to_sdr(signal, transfer, is_bt2020=True)[0, 0])

    assert grey_of(0) == 0
    assert 252 <= grey_of(white) <= 254
    assert grey_of(white) - grey_of(white * 0.95) > 10
    assert grey_of(1) == 255


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_highlights_are_rolled_off_without_a_bend_and_keep_their_hue(transfer: Transfer) -> None:
    nits = np.linspace(20, 900, 2000)
    colour = np.array([1.0, 0.6, 0.4])
    mapped = map_to_sdr(encode(nits[:, None] * colour, transfer), transfer, is_bt2020=False).astype(int)

    steps = np.diff(mapped[:, 0])
    assert (steps >= 0).all()
    assert steps.max() <= 1
    bright = mapped[nits > 400]
    assert np.abs(bright - 255 * colour ** (1 / 2.4)).max() <= 1.5


def test_colours_that_bt709_has_not_are_clipped() -> None:
    green = encode(np.array([[0.0, 100.0, 0.0]]), "pq")

    mapped = map_to_sdr(green, "pq", is_bt2020=True)[0]

    assert mapped[0] == mapped[2] == 0
    assert mapped[1] > 180
