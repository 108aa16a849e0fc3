"""The Arrow schemas everything is handed over in, and the way between their columns and NumPy arrays.

Track ids are integers in here, whatever the dialect on disk writes. Boxes and landmarks keep the unit of their dialect
(``Episode.is_normalised``) except in samples and observations, which are always in pixels. ``raw`` of tracks
and identities and ``line`` of stored faces hold the JSON a row was read from, so that fields nobody here knows survive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BBOX = pa.list_(pa.float64(), 4)
LANDMARKS = pa.list_(pa.float64(), 10)
_PROVENANCE = b"cleanup.provenance"

TRACK_SCHEMA = pa.schema(
    [
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),
        pa.field("last_frame", pa.int64(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
        ("parent_track_id", pa.int64()),
        ("split_reason", pa.string()),
        ("n_boxes", pa.int64()),
        ("mean_confidence", pa.float64()),
        ("pooled_embedding", pa.list_(pa.float32())),
        ("pooled_model", pa.string()),
        ("pooled_spread", pa.float64()),
        ("n_faces", pa.int64()),
        ("raw", pa.large_binary()),
    ]
)

BOX_SCHEMA = pa.schema(
    [
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("frame_idx", pa.int64(), nullable=False),
        pa.field("ts", pa.float64(), nullable=False),
        pa.field("bbox", BBOX, nullable=False),
        ("landmarks", LANDMARKS),
        ("confidence", pa.float64()),
    ]
)

DETECTION_SCHEMA = pa.schema(
    [
        pa.field("frame_idx", pa.int64(), nullable=False),
        pa.field("ts", pa.float64(), nullable=False),
        pa.field("bbox", BBOX, nullable=False),
        ("landmarks", LANDMARKS),
        ("confidence", pa.float64()),
    ]
)

FACE_SCHEMA = pa.schema(
    [
        ("stored_row", pa.int64()),  # line of faces.jsonl as it was read, from 0; null for a face that is new
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("frame_idx", pa.int64(), nullable=False),
        pa.field("ts", pa.float64(), nullable=False),
        pa.field("bbox", BBOX, nullable=False),
        ("landmarks", LANDMARKS),
        ("confidence", pa.float64()),
        ("quality", pa.float64()),
        ("embedding", pa.list_(pa.float32())),
        ("embedding_model", pa.string()),
        ("reject_reason", pa.string()),
        ("kept_despite", pa.string()),
        ("sharpness", pa.float64()),
        ("contrast", pa.float64()),
        ("yaw", pa.float64()),
        ("pitch", pa.float64()),
        ("crop_path", pa.string()),
    ]
)

# Faces as they were read, with the bytes of their lines.
STORED_FACE_SCHEMA = FACE_SCHEMA.append(pa.field("line", pa.large_binary(), nullable=False))

IDENTITY_SCHEMA = pa.schema(
    [
        pa.field("identity_id", pa.string(), nullable=False),
        pa.field("track_ids", pa.list_(pa.int64()), nullable=False),
        ("person_id", pa.string()),
        ("name", pa.string()),
        ("person_source", pa.string()),
        pa.field("is_locked", pa.bool_(), nullable=False),
        ("outlier_reason", pa.string()),
        ("centroid_norm", pa.float64()),
        ("cohesion", pa.float64()),
        ("n_faces", pa.int64()),
        ("raw", pa.large_binary()),
    ]
)

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("lineage_id", pa.int64(), nullable=False),
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("frame_idx", pa.int64(), nullable=False),
        pa.field("bbox", BBOX, nullable=False),
        ("landmarks", LANDMARKS),
        ("confidence", pa.float64()),
        pa.field("is_sampled", pa.bool_(), nullable=False),
    ]
)


def observation_schema(dimension: int) -> pa.Schema:
    """Schema of what a worker returns: one row per face it looked at."""
    return pa.schema(
        [
            pa.field("track_id", pa.int64(), nullable=False),
            pa.field("frame_idx", pa.int64(), nullable=False),
            pa.field("ts", pa.float64(), nullable=False),
            pa.field("bbox", BBOX, nullable=False),
            ("landmarks", LANDMARKS),
            ("confidence", pa.float64()),
            pa.field("size_px", pa.float64(), nullable=False),
            ("sharpness", pa.float64()),
            ("contrast", pa.float64()),
            ("yaw", pa.float64()),
            ("pitch", pa.float64()),
            ("norm", pa.float64()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            pa.field("is_sampled", pa.bool_(), nullable=False),
            ("reject_reason", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Provenance:
    """Where observations come from.

    Attributes:
        worker: Made up anew each time a worker loads its models, so counting them counts the loads.
        models: What the worker says about its models.
        n_frames: Frames it decoded for these rows.
        timings: Seconds by step (decode, crop, detect, quality, embed), summed over threads; the steps overlap.
        unreadable: Frames with a sample that the video does not give, and why; their tracks have no rows.
    """

    worker: str
    models: dict[str, dict[str, object]]
    n_frames: int
    timings: dict[str, float]
    unreadable: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def write_provenance(observations: pa.Table, provenance: Provenance) -> pa.Table:
    """The table with its provenance as schema metadata."""
    content = orjson.dumps(dataclasses.asdict(provenance), option=orjson.OPT_SORT_KEYS)
    return observations.replace_schema_metadata({_PROVENANCE: content})


def read_provenance(observations: pa.Table) -> Provenance:
    """The provenance that ``write_provenance`` wrote."""
    return Provenance(**orjson.loads(observations.schema.metadata[_PROVENANCE]))


def merge_observations(tables: Sequence[pa.Table]) -> pa.Table:
    """Observation tables as one, sorted by track and frame, without provenance."""
    merged = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    return merged.sort_by([("track_id", "ascending"), ("frame_idx", "ascending")])


def count_sampled(samples: pa.Table) -> int:
    """How many rows of a shard are embedded in any case."""
    return int(pc.sum(samples["is_sampled"]).as_py() or 0)


def build_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table from row dictionaries; a missing key is null."""
    return pa.table([_build_column(rows, field) for field in schema], schema=schema)


def _build_column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    if not pa.types.is_fixed_size_list(field.type) or not rows:
        return pa.array(values, field.type)
    blank = [math.nan] * field.type.list_size
    return list_column(np.array([blank if value is None else value for value in values]), field.type)


def matrix_of(column: pa.ChunkedArray, width: int) -> NDArray[np.float64]:
    """A list column as an array of shape (n, width); rows that are null become NaN."""
    array = one_array(column)
    result = np.full((len(array), width), np.nan)
    is_valid = array.is_valid().to_numpy(zero_copy_only=False)
    values = array.drop_null().flatten().to_numpy(zero_copy_only=False)
    result[is_valid] = values.reshape(-1, width) if width else values.reshape(int(is_valid.sum()), 0)
    return result


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; without a copy where it is one already."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def embeddings_of(table: pa.Table) -> NDArray[np.float32]:
    """The embedding column of rows that all have one, shape (n, d)."""
    n_rows = len(table)
    flat = one_array(table["embedding"]).flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(n_rows, -1) if n_rows else flat.reshape(0, 0)


def list_column(matrix: NDArray[np.floating], kind: pa.DataType) -> pa.Array:
    """An array of shape (n, k) as a column of lists of fixed size; rows with NaN become null."""
    is_null = np.isnan(matrix).any(axis=1) if matrix.size else np.zeros(len(matrix), bool)
    values = np.where(is_null[:, None], 0, matrix) if is_null.any() else matrix
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(is_null))


def embedding_lists(matrix: NDArray[np.floating]) -> pa.Array:
    """Rows of shape (n, d) as a column of lists, as FACE_SCHEMA has them; without a copy where that can be."""
    n_rows, dimension = matrix.shape
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).ravel())
    return pa.ListArray.from_arrays(pa.array(np.arange(n_rows + 1) * dimension, pa.int32()), flat)


def spread_embeddings(matrix: NDArray[np.floating], has_embedding: NDArray[np.bool_]) -> pa.Array:
    """Rows of shape (n, d) as the embeddings of those faces that have one; without a copy where that can be."""
    if len(matrix) == 0:
        return pa.nulls(len(has_embedding), FACE_SCHEMA.field("embedding").type)
    ends = np.cumsum(has_embedding) * matrix.shape[1]
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32(), mask=np.append(~has_embedding, False))
    kind = FACE_SCHEMA.field("embedding").type
    return pa.ListArray.from_arrays(offsets, embedding_lists(matrix).values, type=kind)


def build_faces(rows: Sequence[Mapping[str, Any]], embeddings: pa.Array | pa.ChunkedArray) -> pa.Table:
    """A FACE_SCHEMA table from row dictionaries and, apart from them, their embeddings."""
    index = FACE_SCHEMA.get_field_index("embedding")
    table = build_table(rows, FACE_SCHEMA.remove(index))
    return table.add_column(index, FACE_SCHEMA.field(index), embeddings)


def face_rows(faces: pa.Table) -> list[dict[str, Any]]:
    """Row dictionaries of faces with ``has_embedding`` instead of the embedding, which is large."""
    rows: list[dict[str, Any]] = faces.drop_columns(["embedding"]).to_pylist()
    for row, has_embedding in zip(rows, faces["embedding"].is_valid().to_pylist(), strict=True):
        row["has_embedding"] = has_embedding
    return rows


def embedding_column(matrix: NDArray[np.float32], is_valid: NDArray[np.bool_]) -> pa.Array:
    """Embeddings of shape (n, d) as a column of lists of d; rows that are not valid are null."""
    flat = pa.array(np.ascontiguousarray(matrix).ravel(), pa.float32())
    kind = pa.list_(pa.float32(), matrix.shape[1])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~is_valid))


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with one column replaced; its type and place stay."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, type=field.type))


def floats_of(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A numeric column as float64; nulls become NaN."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def ints_of(table: pa.Table, name: str) -> NDArray[np.int64]:
    """An integer column without nulls as int64."""
    return table[name].to_numpy(zero_copy_only=False).astype(np.int64)
