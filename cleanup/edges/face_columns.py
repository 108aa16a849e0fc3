"""Reads faces.jsonl column by column where every line is plain and valid: no Python object per line or number.

Whatever is not plain (another order of brackets, a fault of any kind) is left to the reader that goes line by line,
knows every allowed form and can say what is wrong and where. So a condition here may be narrower than the contract, but
never wider.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_checks import NORM_TOLERANCE, UNIT_TOLERANCE
from cleanup.episode import DOCUMENTED, EMITTED

# How far a row of faces.npy may lie from the embedding in its line, which is rounded on disk.
ROW_TOLERANCE = 1e-3
_BLOCK_BYTES = 1 << 22
_TRACK_KEY = r"^track-[0-9]+$"

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


class _NotPlainError(Exception):
    """A line that has to be looked at by itself."""


def read_plain_faces(
    path: Path, dialect: str, track_ids: Collection[int], matrix: NDArray[np.floating] | None, fps: float
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
    try:
        ends = _find_lines(content)
        if any(content.find(key) >= 0 for key in _FOREIGN[dialect]):
            return None
        table = _parse(content, dialect, len(ends))
        return _check(table, dialect, track_ids, matrix, fps, _slice_lines(content, ends))
    except _NotPlainError:
        return None


def _find_lines(content: mmap.mmap) -> NDArray[np.int64]:
    """Where each line ends, behind its newline; every line is an object in valid UTF-8."""
    size, start, found = len(content), 0, []
    data = np.frombuffer(content, np.uint8)
    while start < size:
        stop = content.rfind(b"\n", start, start + _BLOCK_BYTES) + 1
        stop = stop or content.find(b"\n", start) + 1
        _require(stop > 0)
        block = data[start:stop]
        if (block >= 0x80).any():
            try:
                bytes(block).decode("utf-8")
            except UnicodeDecodeError:
                raise _NotPlainError from None
        found.append(np.flatnonzero(block == ord("\n")) + start + 1)
        start = stop
    ends = np.concatenate(found)
    starts = np.concatenate([[0], ends[:-1]])
    _require(bool((data[starts] == ord("{")).all() and (data[ends - 2] == ord("}")).all()))
    return ends


def _slice_lines(content: mmap.mmap, ends: NDArray[np.int64]) -> pa.Array:
    """The lines with their newlines, as they lie in the file."""
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), [None, offsets, pa.py_buffer(content)])


def _parse(content: mmap.mmap, dialect: str, n_lines: int) -> pa.Table:
    """The values of the lines, named as in FACE_SCHEMA."""
    columns = _COLUMNS[dialect]
    fields = []
    for key, name in columns.items():
        kind = schemas.FACE_SCHEMA.field(name).type
        if pa.types.is_fixed_size_list(kind):
            kind = pa.list_(kind.value_type)
        fields.append(pa.field(key, pa.string() if key == "track_id" and dialect == DOCUMENTED else kind))
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(pa.py_buffer(content)),
            read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise _NotPlainError from None
    _require(len(table) == n_lines)
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
    _require(set(pc.unique(found["track_id"]).to_pylist()) <= set(track_ids))
    found["bbox"] = _check_boxes(found["bbox"], is_normalised=dialect == DOCUMENTED)
    found["landmarks"] = _check_lists(found["landmarks"], 10, schemas.LANDMARKS)
    has_embedding = table["embedding"].is_valid()
    if dialect == EMITTED:
        _require(not pc.any(pc.and_(has_embedding, found["reject_reason"].is_valid())).as_py())
    _check_embeddings(table["embedding"], matrix)
    found["stored_row"] = pa.array(np.arange(n_rows))
    found["embedding"] = schemas.spread_embeddings(matrix, has_embedding.to_numpy())
    found["line"] = lines
    columns = [found.get(f.name, pa.nulls(n_rows, f.type)) for f in schemas.STORED_FACE_SCHEMA]
    return pa.table(columns, schema=schemas.STORED_FACE_SCHEMA)


def _check_lists(column: pa.ChunkedArray, width: int, kind: pa.DataType) -> pa.Array:
    """Lists of finite numbers of one width; null and empty ones become null."""
    array = _one_array(column)
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


def _check_embeddings(column: pa.ChunkedArray, matrix: NDArray[np.floating]) -> None:
    """Unit vectors, each the next row of the matrix."""
    start = 0
    for chunk in column.chunks:
        vectors = chunk.drop_null()
        if not len(vectors):
            continue
        values = vectors.flatten()
        _require(values.null_count == 0)
        lengths = np.diff(vectors.offsets.to_numpy())
        _require(bool((lengths == matrix.shape[1]).all()) and start + len(vectors) <= len(matrix))
        rows = values.to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
        stored = matrix[start : start + len(rows)]
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        _require(bool((np.abs(norms - 1) <= NORM_TOLERANCE).all()))
        _require(bool((np.abs(stored - rows) <= ROW_TOLERANCE).all()))
        start += len(rows)
    _require(start == len(matrix))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _require(holds: bool) -> None:
    if not holds:
        raise _NotPlainError
