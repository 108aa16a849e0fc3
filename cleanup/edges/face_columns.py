"""Reads faces.jsonl column by column where every line is plain and valid: no Python object per line or number.

The file is taken apart in blocks of lines, side by side: the numbers of the embeddings are cut out and parsed in bulk,
the rest is a small JSON table. Whatever is not plain (another order of brackets, a fault of any kind) is left to the
reader that goes line by line, knows every allowed form and can say what is wrong and where. So a condition here may be
narrower than the contract, but not wider.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_checks import UNIT_TOLERANCE
from cleanup.edges.bounded_map import map_ahead
from cleanup.edges.embedding_text import parse_vectors
from cleanup.edges.root_path import RootPath
from cleanup.episode import DOCUMENTED, EMITTED
from cleanup.input_limits import MAX_INTEGER, MAX_LINE_BYTES
from cleanup.text_files import BOM

# How far a row of faces.npy may lie from the embedding in its line, which is rounded on disk.
ROW_TOLERANCE = 1e-3
# Bytes of lines that are read at a time, and how many such blocks may wait to be checked.
_BLOCK_BYTES, _BLOCKS_AHEAD = 1 << 22, 4
_TRACK_KEY = r"^track-[0-9]{1,15}$"

# Keys of a line, and the columns of FACE_SCHEMA they hold.
_SHARED = {
    "face_id": "face_id",
    "track_id": "track_id",
    "frame_idx": "frame_idx",
    "landmarks": "landmarks",
    "embedding": "embedding",
    "embedding_model": "embedding_model",
    "kept_despite": "kept_despite",
}
_COLUMNS = {
    DOCUMENTED: {
        **_SHARED,
        "bbox": "bbox",
        "quality_score": "quality",
        "rejection_reason": "reject_reason",
        "crop_path": "crop_path",
    },
    EMITTED: {
        **_SHARED,
        "ts": "ts",
        "bbox_xyxy": "bbox",
        "conf": "confidence",
        "quality": "quality",
        "skip": "reject_reason",
        "pose_yaw": "yaw",
        "pose_pitch": "pitch",
        "crop_rel_path": "crop_path",
    },
}
# Keys that would make a line one of the other dialect as well.
_FOREIGN = {DOCUMENTED: (b'"bbox_xyxy"',), EMITTED: (b'"bbox"', b'"quality_score"')}


# What orjson refuses and Arrow would pass over in fields nobody here knows: words that are no numbers in JSON, numbers
# too large for a double, and brackets nested too deep. Far below both limits, so that counting is simple.
_ODD_NUMBER = r"[:,\[][ \t]*-?(?:NaN|Inf|[0-9]{100}|[0-9.]+[eE][-+]?[0-9]{3})"
_MAX_BRACKETS = 200
_KEY = np.frombuffer(b'"embedding":', np.uint8)


class _NotPlainError(Exception):
    """A line that has to be looked at by itself."""


@dataclass(frozen=True)
class _Block:
    """Some lines of the file.

    Attributes:
        ends: Where each line ends in the file, behind its newline.
        table: What the lines hold, named as in FACE_SCHEMA; lists with nothing in them for the embeddings.
        vectors: The embeddings, (n, d).
    """

    ends: NDArray[np.int64]
    table: pa.Table
    vectors: NDArray[np.float32]


def read_plain_faces(
    path: RootPath, dialect: str, track_ids: Collection[int], matrix: NDArray[np.floating] | None, fps: float
) -> pa.Table | None:
    """The lines of faces.jsonl as STORED_FACE_SCHEMA, all checked, or None if they have to be read one by one.

    Args:
        path: faces.jsonl; its lines stay where they are and are mapped into memory.
        dialect: The dialect of the episode.
        track_ids: The tracks of the episode.
        matrix: faces.npy, shape (n, d); the embeddings of the table are its rows, not a copy.
        fps: Frames per second, for lines without a time.
    """
    if matrix is None or not path.is_file() or path.stat().st_size == 0:
        return None
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    first = len(BOM) if content[: len(BOM)] == BOM else 0
    ends, tables, n_vectors = [], [], 0
    with ThreadPoolExecutor(thread_name_prefix="faces") as threads:
        work = partial(_read_block, content, dialect, matrix.shape[1])
        try:
            for block in map_ahead(work, _find_blocks(content, first), threads, _BLOCKS_AHEAD):
                _check_rows(block.vectors, matrix[n_vectors : n_vectors + len(block.vectors)])
                n_vectors += len(block.vectors)
                ends.append(block.ends)
                tables.append(block.table)
            _require(n_vectors == len(matrix))
            lines = _slice_bytes(np.concatenate([[first], *ends]), content)
            return _check(pa.concat_tables(tables), dialect, track_ids, matrix, fps, lines)
        except _NotPlainError:
            return None


def _find_blocks(content: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """Where blocks of whole lines begin and end, from the first line's place on."""
    while start < len(content):
        stop = content.rfind(b"\n", start, start + _BLOCK_BYTES) + 1
        stop = stop or content.find(b"\n", start) + 1
        _require(0 < stop <= start + MAX_LINE_BYTES)
        yield start, stop
        start = stop


def _read_block(content: mmap.mmap, dialect: str, dimension: int, span: tuple[int, int]) -> _Block:
    start, stop = span
    block = np.frombuffer(content, np.uint8)[start:stop]
    if (block >= 0x80).any():
        try:
            bytes(block).decode("utf-8")
        except UnicodeDecodeError:
            raise _NotPlainError from None
    ends = np.flatnonzero(block == ord("\n")) + 1
    starts = np.concatenate([[0], ends[:-1]])
    _require(bool((block[starts] == ord("{")).all() and (block[ends - 2] == ord("}")).all()))
    cuts, is_cut = _find_embeddings(block, ends)
    # Every other piece is the numbers of an embedding.
    pieces = _slice_bytes(np.concatenate([[0], cuts.ravel(), [len(block)]]), block)
    rest = pieces.take(pa.array(np.arange(0, len(pieces), 2))).buffers()[2].to_pybytes()
    _require(not any(key in rest for key in _FOREIGN[dialect]))
    n_null = rest.count(b'"embedding": null') + rest.count(b'"embedding":null')
    _require(rest.count(b'"embedding"') == len(cuts) + n_null)
    table = _parse(rest, dialect, len(ends))
    # What was cut out is at the top of its record, and nothing was left behind.
    lengths = pc.fill_null(pc.list_value_length(schemas.one_array(table["embedding"])), -1).to_numpy()
    _require(np.array_equal(lengths, np.where(is_cut, 0, -1)))
    parsed = parse_vectors(pieces.take(pa.array(np.arange(1, len(pieces), 2))))
    _require(not parsed.faults and bool((np.diff(parsed.ends, prepend=0) == dimension).all()))
    return _Block(start + ends, table, parsed.values.reshape(-1, dimension))


def _find_embeddings(block: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where the numbers of embeddings begin and end, shape (n, 2), and which lines have them."""
    opens, closes = np.flatnonzero(block == ord("[")), np.flatnonzero(block == ord("]"))
    braces = np.flatnonzero(block == ord("{"))
    n_brackets = np.bincount(np.searchsorted(ends, np.concatenate([opens, braces]), side="right"))
    _require(int(n_brackets.max()) <= _MAX_BRACKETS)
    opens = opens[opens > len(_KEY)]
    key_ends = opens - (block[opens - 1] == ord(" "))
    is_key = (block[key_ends[:, None] + np.arange(-len(_KEY), 0)] == _KEY).all(axis=1)
    opens = opens[is_key]
    places = np.searchsorted(closes, opens)
    _require(bool((places < len(closes)).all()))
    closes = closes[places]
    owners = np.searchsorted(ends, opens, side="right")
    _require(len(np.unique(owners)) == len(owners) and bool((closes < ends[owners]).all()))
    is_cut = np.zeros(len(ends), bool)
    is_cut[owners] = True
    return np.stack([opens + 1, closes], axis=1), is_cut


def _slice_bytes(bounds: NDArray[np.int64], content: mmap.mmap | NDArray[np.uint8]) -> pa.Array:
    """Pieces of bytes, each from one bound to the next, without a copy."""
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds.astype(np.int64)), pa.py_buffer(content)]
    )


def _parse(rest: bytes, dialect: str, n_lines: int) -> pa.Table:
    """The values of lines whose embeddings were cut out, named as in FACE_SCHEMA."""
    columns = _COLUMNS[dialect]
    fields = []
    for key, name in columns.items():
        kind = schemas.FACE_SCHEMA.field(name).type
        if pa.types.is_fixed_size_list(kind):
            kind = pa.list_(kind.value_type)
        fields.append(pa.field(key, pa.string() if key == "track_id" and dialect == DOCUMENTED else kind))
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(rest),
            # One block, one thread: several blocks of lines are read side by side.
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(rest)),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise _NotPlainError from None
    _require(len(table) == n_lines)
    lines = pa.array([rest], pa.large_binary())
    _require(not pc.any(pc.match_substring_regex(lines, _ODD_NUMBER)).as_py())
    return table.select(list(columns)).rename_columns(list(columns.values()))


def _check(
    table: pa.Table,
    dialect: str,
    track_ids: Collection[int],
    matrix: NDArray[np.floating],
    fps: float,
    lines: pa.Array,
) -> pa.Table:
    n_rows = len(table)
    found = {name: table[name] for name in table.column_names if name != "embedding"}
    if dialect == DOCUMENTED:
        keys = found["track_id"]
        _require(keys.null_count == 0 and pc.all(pc.match_substring_regex(keys, _TRACK_KEY)).as_py())
        found["track_id"] = pc.utf8_slice_codeunits(keys, len("track-")).cast(pa.int64())
        _require(found["frame_idx"].null_count == 0)
        found["ts"] = pa.chunked_array([pa.array(found["frame_idx"].to_numpy() / fps)])
    for name in ("face_id", "track_id", "frame_idx", "ts", "bbox"):
        _require(found[name].null_count == 0)
    for name in ("ts", "confidence", "quality", "yaw", "pitch"):
        if name in found:
            values = found[name].drop_null().to_numpy()
            _require(bool(np.isfinite(values).all()))
    quality = found["quality"].drop_null().to_numpy()
    _require(bool(((quality >= 0) & (quality <= 1)).all()))
    _require(pc.count_distinct(found["face_id"]).as_py() == n_rows)
    frames = found["frame_idx"].to_numpy()
    _require(int(frames.min()) >= 0 and int(frames.max()) <= MAX_INTEGER)
    _require(set(pc.unique(found["track_id"]).to_pylist()) <= set(track_ids))
    found["bbox"] = _check_boxes(found["bbox"], is_normalised=dialect == DOCUMENTED)
    found["landmarks"] = _check_lists(found["landmarks"], 10, schemas.LANDMARKS)
    has_embedding = table["embedding"].is_valid()
    if dialect == EMITTED:
        _require(not pc.any(pc.and_(has_embedding, found["reject_reason"].is_valid())).as_py())
    found["stored_row"] = pa.array(np.arange(n_rows))
    found["embedding"] = schemas.spread_embeddings(matrix, has_embedding.to_numpy())
    found["line"] = lines
    columns = [found.get(f.name, pa.nulls(n_rows, f.type)) for f in schemas.STORED_FACE_SCHEMA]
    return pa.table(columns, schema=schemas.STORED_FACE_SCHEMA)


def _check_lists(column: pa.ChunkedArray, width: int, kind: pa.DataType) -> pa.Array:
    """Lists of finite numbers of one width; null and empty ones become null."""
    array = schemas.one_array(column)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    _require(bool(np.isin(lengths, (0, width)).all()))
    values = array.flatten()
    _require(values.null_count == 0)
    matrix = np.full((len(array), width), np.nan)
    matrix[lengths == width] = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    _require(bool(np.isfinite(matrix[lengths == width]).all()))
    return schemas.list_column(matrix, kind)


def _check_boxes(column: pa.ChunkedArray, *, is_normalised: bool) -> pa.Array:
    boxes = _check_lists(column, 4, schemas.BBOX)
    _require(boxes.null_count == 0)
    corners = boxes.flatten().to_numpy().reshape(-1, 4)
    _require(bool((corners[:, :2] < corners[:, 2:]).all()))
    if is_normalised and len(corners):
        _require(bool(corners.min() >= -UNIT_TOLERANCE and corners.max() <= 1 + UNIT_TOLERANCE))
    return boxes


def _check_rows(vectors: NDArray[np.float32], stored: NDArray[np.floating]) -> None:
    """The vectors of some lines are what faces.npy has for them."""
    _require(len(stored) == len(vectors))
    with np.errstate(invalid="ignore", over="ignore"):
        _require(bool((np.abs(stored - vectors) <= ROW_TOLERANCE).all()))


def _require(holds: bool) -> None:
    if not holds:
        raise _NotPlainError
