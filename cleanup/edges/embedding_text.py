"""Embeddings in lines of JSON, without a Python object per number: cut out as text, parsed and checked in bulk.

A line of faces.jsonl is nearly all embedding. So the text of the numbers is cut out before the rest is parsed, Arrow
turns the numbers of many lines into one array, and writing puts text back in where it was. Arrow's cast takes more
than JSON allows ("1.", "01", "inf"); so the form of the numbers is checked first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup.edges.artifact_checks import NORM_TOLERANCE

_KEY = b'"embedding"'
# Stands in a record for an embedding whose numbers were cut out. Compared with ``is``: a line may hold the same text.
PRESENT = "\ue000embedding"
_PRESENT_JSON = orjson.dumps(PRESENT)
_PAIR = _KEY + b":" + _PRESENT_JSON
_NUMBER = r"[ \t\r\n]*-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?[ \t\r\n]*"
_NOT_FINITE = (b"NaN", b"Infinity")  # what Python's json module writes
_NUMBERS = f"^{_NUMBER}(?:,{_NUMBER})*$"


def open_record(line: bytes) -> tuple[Any, bytes | None]:
    """Parses a line of JSON except for the numbers of its embedding.

    Returns:
        The record, with PRESENT as its embedding, and the text between the embedding's brackets; that is None where
        the record has no list there, and the record then is as it stands in the line.

    Raises:
        orjson.JSONDecodeError: The line is not valid JSON.
    """
    place = line.find(_KEY)
    if place >= 0:
        start = line.find(b"[", place)
        end = line.find(b"]", start)
        if 0 <= start < end and line[place + len(_KEY) : start].strip() == b":":
            try:
                record = orjson.loads(line[:start] + _PRESENT_JSON + line[end + 1 :])
            except orjson.JSONDecodeError:
                record = None
            if isinstance(record, dict) and record.get("embedding") == PRESENT:
                record["embedding"] = PRESENT
                return record, line[start + 1 : end]
    # Not there, not a flat list, or not at the top of the record: parsed as a whole.
    record = orjson.loads(line)
    embedding = record.get("embedding") if isinstance(record, dict) else None
    if not isinstance(embedding, list):
        return record, None
    record["embedding"] = PRESENT
    return record, orjson.dumps(embedding)[1:-1]


def close_record(line: bytes, text: bytes | None) -> bytes:
    """A line dumped from a record, with the text of the numbers where PRESENT stands; None changes nothing."""
    return line if text is None else line.replace(_PAIR, _KEY + b":[" + text + b"]", 1)


def format_numbers(vector: NDArray[np.float32]) -> bytes:
    """The shortest text that gives the same single-precision numbers, without brackets."""
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


@dataclass(frozen=True)
class ParsedVectors:
    """The vectors of some lines.

    Attributes:
        values: All numbers one after the other.
        ends: Where each vector ends in them, shape (n,).
        faults: What is wrong with which of them: (place, message).
    """

    values: NDArray[np.float32]
    ends: NDArray[np.int64]
    faults: list[tuple[int, str]]


def parse_vectors(texts: pa.Array) -> ParsedVectors:
    """Parses the numbers of embeddings and checks that each is a finite vector of unit norm.

    Args:
        texts: large_binary; the numbers of each, as in JSON, without brackets.
    """
    is_list = pc.match_substring_regex(texts, _NUMBERS).to_numpy(zero_copy_only=False)
    numbers = pc.split_pattern(texts if is_list.all() else texts.filter(is_list), ",")
    # JSON numbers and white space are all that is left, so the bytes are text.
    words = pc.ascii_trim_whitespace(numbers.flatten().view(pa.large_string()))
    values = pc.cast(words, pa.float32()).to_numpy()
    lengths = np.zeros(len(texts), np.int64)
    lengths[is_list] = pc.list_value_length(numbers).to_numpy()
    ends = np.cumsum(lengths)
    norms = np.zeros(len(texts))
    if len(values):
        norms[is_list] = np.sqrt(np.add.reduceat(np.square(values, dtype=np.float64), (ends - lengths)[is_list]))
    faults = []
    for place in np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE)).tolist():
        if any(word in texts[place].as_py() for word in _NOT_FINITE) or not np.isfinite(norms[place]):
            faults.append((place, "an embedding that is not finite"))
        elif not is_list[place]:
            faults.append((place, "an embedding that is no list of numbers"))
        else:
            faults.append((place, f"an embedding of norm {norms[place]:.4f} instead of 1"))
    return ParsedVectors(values, ends, faults)
