"""Texts that people and other programs bring: UTF-8, with a byte order mark before them or not."""

from __future__ import annotations

import codecs
from pathlib import Path

BOM = codecs.BOM_UTF8
# The longer mark first: that of UTF-32 begins as that of UTF-16 does.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_SHOWN_BEFORE = 20


class TextError(ValueError):
    """A text is too long or not UTF-8."""


def find_encoding_fault(content: bytes) -> str:
    """What the beginning of a text says against its being UTF-8, or an empty text."""
    name = next((name for mark, name in _OTHER_MARKS.items() if content.startswith(mark)), "")
    if not name and content[:2].count(0) == 1 and len(content) > 1:
        name = "UTF-16"  # without a mark: every second byte of a plain letter is 0
    return f"is {name} (PowerShell's > writes that); save it as UTF-8" if name else ""


def decode_text(content: bytes) -> str:
    """A text without its byte order mark.

    Raises:
        TextError: It is not UTF-8.
    """
    fault = find_encoding_fault(content)
    if fault:
        raise TextError(fault)
    content = content.removeprefix(BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[max(error.start - _SHOWN_BEFORE, 0) : error.start].decode("utf-8", "ignore")
        raise TextError(
            f"is not UTF-8 (byte 0x{content[error.start]:02x} after {before!r}); save it as UTF-8"
        ) from None


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file.

    Raises:
        OSError: It cannot be read.
        TextError: It is longer than that, or not UTF-8.
    """
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TextError(f"larger than {max_bytes} bytes, which no such file is")
    return decode_text(content)
