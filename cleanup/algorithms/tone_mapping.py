"""High dynamic range to standard: pictures coded in PQ or HLG as the ones recognition models were trained on."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["pq", "hlg"]

# Nits of diffuse white in both systems (ITU-R BT.2408, section 2.1); the nominal peak of an HLG display and the
# exponent of its system gamma at that peak (ITU-R BT.2100-2, table 5).
_WHITE_NITS, _HLG_PEAK_NITS, _HLG_SYSTEM_GAMMA = 203.0, 1000.0, 1.2
# What a display of standard range makes of a signal (ITU-R BT.1886).
_SDR_GAMMA = 2.4
# Highlights are rolled off from here, as a share of white: darker ones are left alone, white loses 2 levels of 255.
_KNEE = 0.95
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear light, ITU-R BT.2020 to BT.709 primaries (ITU-R BT.2407).
_BT709_OF_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


def map_to_sdr(signal: NDArray[np.uint16], transfer: Transfer, *, is_bt2020: bool) -> NDArray[np.uint8]:
    """Brings a picture of high dynamic range to standard range and ITU-R BT.709.

    What is darker than diffuse white keeps its light, and with it the signal it would have in standard range. What is
    brighter is brought down to white with its hue; the shoulder in between is that of ``_roll_off``.

    Args:
        signal: R'G'B' as coded, full range, shape (..., 3); 65535 is the system's peak.
        transfer: How light was coded: SMPTE ST 2084 ("pq") or ARIB STD-B67 ("hlg"), both in ITU-R BT.2100.
        is_bt2020: Whether the primaries are those of BT.2020; else they are taken for BT.709's.

    Returns:
        R'G'B' of the same shape.
    """
    light = _light_table(transfer)[signal]
    if transfer == "hlg":
        # The display's part (OOTF): a gain by luminance, which leaves hues alone.
        light *= ((light @ _BT2020_LUMINANCE) ** (_HLG_SYSTEM_GAMMA - 1))[..., None] * (_HLG_PEAK_NITS / _WHITE_NITS)
    if is_bt2020:
        light = np.maximum(light @ _BT709_OF_BT2020.T, 0)
    brightest = light.max(axis=-1, keepdims=True)
    light *= _roll_off(brightest) / np.maximum(brightest, 1e-9)
    return np.rint(255 * light ** (1 / _SDR_GAMMA)).astype(np.uint8)


def _roll_off(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """As it is up to the knee; from there exponentially, without a bend, towards white (1)."""
    room = 1 - _KNEE
    shoulder = _KNEE + room * (1 - np.exp((_KNEE - np.maximum(light, _KNEE)) / room))
    return np.where(light <= _KNEE, light, shoulder)


@cache
def _light_table(transfer: Transfer) -> NDArray[np.float32]:
    """Linear light of every 16-bit signal: of PQ relative to white, of HLG that of the scene relative to its peak."""
    signal = np.arange(65536) / 65535
    if transfer == "pq":  # ITU-R BT.2100-2, table 4
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = 10000 / _WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:  # table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)
