"""Embeddings in lines of JSON, without a Python object per number: cut out as text, parsed and checked in bulk.

A line of faces.jsonl is nearly all embedding. So the text of the numbers is cut out before the rest is parsed, Arrow
turns the numbers of many lines into one array, and writing puts text back in where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from cleanup.edges.artifact_checks import NORM_TOLERANCE, BadValueError

_KEY = b'"embedding"'
# Stands in a record for an embedding whose numbers were cut out.
PRESENT = "\ue000embedding"
_PRESENT_JSON = orjson.dumps(PRESENT)
_PAIR = _KEY + b":" + _PRESENT_JSON


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


def parse_vectors(texts: Sequence[bytes]) -> ParsedVectors:
    """Parses the numbers of embeddings and checks that each is a finite vector of unit norm.

    Args:
        texts: The numbers of each, as in JSON, without brackets.
    """
    try:
        values, lengths = _parse(texts)
    except BadValueError:
        return _parse_one_by_one(texts)
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(texts)), lengths)
    wide = values.astype(np.float64)
    norms = np.sqrt(np.bincount(owner, wide * wide, len(texts)))
    faults = []
    for place in np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE)).tolist():
        if lengths[place] == 0:
            faults.append((place, "an embedding that is no list of numbers"))
        elif not np.isfinite(norms[place]):
            faults.append((place, "an embedding that is not finite"))
        else:
            faults.append((place, f"an embedding of norm {norms[place]:.4f} instead of 1"))
    return ParsedVectors(values, ends, faults)


def _parse(texts: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    data = b'{"e":[' + b']}\n{"e":['.join(texts) + b"]}\n"
    kind = pa.schema([("e", pa.list_(pa.float32()))])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data),
            # One block, one thread: callers parse several batches side by side.
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=kind, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid as error:
        raise BadValueError("no list of numbers") from error
    column = table["e"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if len(column) != len(texts) or column.null_count or column.values.null_count:
        raise BadValueError("no list of numbers")
    return column.flatten().to_numpy(), np.diff(column.offsets.to_numpy()).astype(np.int64)


def _parse_one_by_one(texts: Sequence[bytes]) -> ParsedVectors:
    """Finds the ones that are no lists of numbers and reads the others."""
    values: list[NDArray[np.float32]] = []
    lengths, faults = [], []
    for place, text in enumerate(texts):
        try:
            numbers, length = _parse([text])
        except BadValueError:
            faults.append((place, "an embedding that is no list of numbers"))
            lengths.append(0)
            continue
        parsed = parse_vectors([text])
        values.append(numbers)
        lengths.append(int(length[0]))
        faults += [(place, message) for _, message in parsed.faults]
    joined = np.concatenate(values) if values else np.zeros(0, np.float32)
    return ParsedVectors(joined, np.cumsum(lengths), faults)
