"""Reads from H.264's sequence parameter set whether pictures may come in two fields (ITU-T H.264, 7.3.2.1.1)."""

from __future__ import annotations

import re

_SPS = 7
# A parameter set with all its scaling lists is shorter.
_MAX_BYTES = 4096
# Profiles that tell their chroma format and bit depths.
_HIGH_PROFILES = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)


def may_hold_fields(headers: bytes) -> bool:
    """Whether a stream may have pictures of one field each; so as well where its headers do not tell.

    Args:
        headers: The codec's extradata: an ``avcC`` record, or NAL units behind start codes.
    """
    units = _split(headers)
    sets = [_unescape(unit[1:_MAX_BYTES]) for unit in units if unit and unit[0] & 31 == _SPS]
    try:
        return not sets or not all(_is_frames_only(_Bits(content)) for content in sets)
    except EOFError:
        return True


def _split(headers: bytes) -> list[bytes]:
    """The parameter sets; of an ``avcC`` record the sequence parameter sets."""
    if headers[:1] != b"\x01":
        return re.split(rb"\x00\x00\x01", headers)
    units, place = [], 6
    for _ in range(headers[5] & 31 if len(headers) > place else 0):
        size = int.from_bytes(headers[place : place + 2], "big")
        units.append(headers[place + 2 : place + 2 + size])
        place += 2 + size
    return units


def _unescape(content: bytes) -> bytes:
    return content.replace(b"\x00\x00\x03", b"\x00\x00")


class _Bits:
    """Bits from the front, and numbers in exponential Golomb code."""

    def __init__(self, content: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in content)
        self._place = 0

    def take(self, n_bits: int) -> int:
        """An unsigned number of some bits.

        Raises:
            EOFError: There are no more.
        """
        self._place += n_bits
        if self._place > len(self._bits):
            raise EOFError
        return int(self._bits[self._place - n_bits : self._place] or "0", 2)

    def take_ue(self) -> int:
        """An unsigned Golomb number."""
        n_zeros = 0
        while not self.take(1):
            n_zeros += 1
        return (1 << n_zeros) - 1 + self.take(n_zeros)

    def take_se(self) -> int:
        """A signed Golomb number."""
        code = self.take_ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _is_frames_only(bits: _Bits) -> bool:
    """``frame_mbs_only_flag`` of a sequence parameter set."""
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    bits.take_ue()
    if profile in _HIGH_PROFILES:
        _skip_formats(bits)
    bits.take_ue()  # log2_max_frame_num_minus4
    order_type = bits.take_ue()
    if order_type == 0:
        bits.take_ue()
    elif order_type == 1:
        bits.take(1)
        bits.take_se()
        bits.take_se()
        for _ in range(bits.take_ue()):
            bits.take_se()
    bits.take_ue()  # max_num_ref_frames
    bits.take(1)
    bits.take_ue()  # width and height in macroblocks
    bits.take_ue()
    return bool(bits.take(1))


def _skip_formats(bits: _Bits) -> None:
    chroma = bits.take_ue()
    if chroma == 3:
        bits.take(1)
    bits.take_ue()
    bits.take_ue()
    bits.take(1)
    if bits.take(1):
        for i in range(12 if chroma == 3 else 8):
            if bits.take(1):
                _skip_scaling_list(bits, 16 if i < 6 else 64)


def _skip_scaling_list(bits: _Bits, n_values: int) -> None:
    last = following = 8
    for _ in range(n_values):
        if following:
            following = (last + bits.take_se()) % 256
        last = following or last
