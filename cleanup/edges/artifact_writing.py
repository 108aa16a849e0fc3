"""What an episode's files hold when written back; lines that did not change are the bytes they were read as."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_dialects import DIALECTS, SAME_VECTOR, Record
from cleanup.edges.embedding_text import PRESENT, close_record, format_numbers, open_record
from cleanup.episode import DOCUMENTED, Episode
from cleanup.errors import ArtifactError

# Embeddings that are compared at a time.
_ROWS_AT_A_TIME = 4096


def render_episode(episode: Episode, now: str) -> dict[str, Iterable[bytes | memoryview]]:
    """What an episode's files hold when written back, by file name (``tracks.jsonl``, ``faces.npy``, ...), in pieces.

    Lines whose row did not change are the very bytes they were read as.

    Args:
        episode: The episode after the phases, as it was read but for them.
        now: ISO time for identities that changed.

    Raises:
        ArtifactError: While the pieces are taken: a line that changed cannot be rewritten.
    """
    embeddings = schemas.embeddings_of(_only(episode.faces, episode.faces["embedding"].is_valid().to_numpy()))
    return {
        "tracks.jsonl": [_render_tracks(episode)],
        "faces.jsonl": _render_faces(episode, embeddings),
        "faces.npy": _render_matrix(embeddings),
        "identities.json": [_render_identities(episode, now)],
    }


def _patched(raw: bytes | None, patch: Callable[[Record], None], template: Record | None = None) -> bytes:
    record = orjson.loads(raw) if raw is not None else dict(template or {})
    before = orjson.dumps(record)
    patch(record)
    after = orjson.dumps(record)
    return raw if raw is not None and after == before else after


def _render_tracks(episode: Episode) -> bytes:
    dialect = DIALECTS[episode.dialect]
    boxes: dict[int, list[dict[str, Any]]] = {}
    for box in episode.boxes.select(["track_id", "frame_idx"]).to_pylist():
        boxes.setdefault(box["track_id"], []).append(box)
    rows = episode.tracks.to_pylist()
    raws = {row["track_id"]: row["raw"] for row in rows}
    lines = []
    for row in rows:
        template = None
        if row["raw"] is None:
            template = orjson.loads(raws[row["parent_track_id"]])
            for key in ("sample_thumbs", "thumb_rel_path", "thumb_s3_key"):
                if key in template:
                    template[key] = [] if isinstance(template[key], list) else None
        patch = partial(dialect.write_track, row=row, boxes=boxes.get(row["track_id"], []))
        lines.append(_patched(row["raw"], patch, template))
    return b"\n".join(lines) + b"\n"


def _render_faces(episode: Episode, embeddings: NDArray[np.float32]) -> Iterator[bytes | memoryview]:
    """The lines of faces.jsonl, in pieces."""
    faces, stored = episode.faces, episode.stored_faces
    assert stored is not None, "only an episode that was read from files can be written back"
    is_valid = faces["embedding"].is_valid().to_numpy()
    is_kept, has_vector = _find_kept(faces, stored, embeddings)
    offsets, content = _open_lines(stored["line"])
    sources = faces["stored_row"].fill_null(-1).to_numpy()
    changed = faces.filter(~is_kept)
    vector_of = np.cumsum(is_valid) - 1
    texts = (
        None if not valid else b"" if kept else format_numbers(embeddings[vector])
        for valid, kept, vector in zip(is_valid[~is_kept], has_vector[~is_kept], vector_of[~is_kept], strict=True)
    )
    rewritten = _rewrite_faces(episode, changed, texts, offsets, content)
    # Lines that stay and follow each other in the old file are one piece of it.
    is_next = np.zeros(len(faces), bool)
    is_next[1:] = is_kept[1:] & is_kept[:-1] & (np.diff(sources) == 1)
    starts = np.flatnonzero(~is_next)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(faces)], strict=True):
        if is_kept[start]:
            yield content[offsets[sources[start]] : offsets[sources[stop - 1] + 1]]
        else:
            yield next(rewritten)


def _rewrite_faces(
    episode: Episode,
    faces: pa.Table,
    texts: Iterator[bytes | None],
    offsets: NDArray[np.int64],
    content: memoryview,
) -> Iterator[bytes]:
    """Lines of faces that are new or changed.

    Args:
        episode: Whose faces they are.
        faces: Those that are new or changed; FACE_SCHEMA.
        texts: For each the numbers of its embedding; empty for those its line has, None where it has no embedding.
        offsets: Where the old lines begin, and where the last ends.
        content: The old lines.
    """
    dialect = DIALECTS[episode.dialect]
    first = _open_line(content[offsets[0] : offsets[1]], episode, 0)[0]
    template: Record = {k: first[k] for k in ("ep_id", "detector", "pipeline_ver") if k in first}
    if "crop_path" in first:
        template["crop_path"] = ""
    for row, text in zip(schemas.face_rows(faces), texts, strict=True):
        place = row["stored_row"]
        record, old_text = dict(template), None
        if place is not None:
            record, old_text = _open_line(content[offsets[place] : offsets[place + 1]], episode, place)
        if text is None:
            record.pop("embedding", None)
        else:
            record["embedding"] = PRESENT
        dialect.write_face(record, row)
        yield close_record(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE), text or old_text)


def _open_line(line: memoryview, episode: Episode, place: int) -> tuple[Record, bytes | None]:
    try:
        return open_record(bytes(line))
    except orjson.JSONDecodeError as error:
        raise ArtifactError(
            f"{episode.ep_id}: faces.jsonl, face {place + 1} of the file: the line changed while it was in use "
            f"({error.msg}); run cleanup validate --ep-id {episode.ep_id}, then start again"
        ) from error


def _open_lines(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], memoryview]:
    """Where lines begin in their bytes, and where the last one ends; and the bytes."""
    lines = schemas.one_array(column)
    _, offsets, content = lines.buffers()
    return np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1], memoryview(content)


def _find_kept(
    faces: pa.Table, stored: pa.Table, embeddings: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which faces are as they were read, and which have the embedding that was read but for rounding; shape (n,)."""
    sources = faces["stored_row"].fill_null(-1).to_numpy()
    is_kept = sources >= 0
    places = pa.array(np.maximum(sources, 0))
    for field in schemas.FACE_SCHEMA:
        if field.name not in ("stored_row", "embedding"):
            is_kept &= _equal(faces[field.name], stored[field.name].take(places))
    is_valid, was_valid = faces["embedding"].is_valid().to_numpy(), stored["embedding"].is_valid().to_numpy()
    has_vector = np.zeros(len(faces), bool)
    rows_before = np.cumsum(was_valid) - 1
    old = schemas.embeddings_of(_only(stored, was_valid))
    is_in_place = np.array_equal(sources, np.arange(len(stored)))
    if is_in_place and old.shape == embeddings.shape and old.ctypes.data == embeddings.ctypes.data:
        has_vector = is_valid & was_valid  # the very numbers that were read, not a copy
    elif old.shape[1:] == embeddings.shape[1:]:
        comparable = np.flatnonzero(is_valid & (sources >= 0) & was_valid[np.maximum(sources, 0)])
        rows_now = np.cumsum(is_valid) - 1
        for rows in np.array_split(comparable, len(comparable) // _ROWS_AT_A_TIME + 1):
            difference = np.abs(embeddings[rows_now[rows]] - old[rows_before[sources[rows]]])
            has_vector[rows] = difference.max(axis=1, initial=0) <= SAME_VECTOR
    is_gone = ~is_valid & (sources >= 0) & ~was_valid[np.maximum(sources, 0)]
    return is_kept & (has_vector | is_gone), has_vector


def _only(faces: pa.Table, is_wanted: NDArray[np.bool_]) -> pa.Table:
    """Embeddings of some faces; without a copy where that is all of them."""
    embeddings = faces.select(["embedding"])
    return embeddings if is_wanted.all() else embeddings.filter(is_wanted)


def _equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where two columns hold the same; two nulls are the same."""
    if pa.types.is_fixed_size_list(a.type):
        left, right = (schemas.matrix_of(column, a.type.list_size) for column in (a, b))
        return np.asarray(((left == right) | (np.isnan(left) & np.isnan(right))).all(axis=1))
    same = pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))
    return np.asarray(same.to_numpy())


def _render_matrix(embeddings: NDArray[np.float32]) -> list[bytes | memoryview]:
    matrix = np.ascontiguousarray(embeddings, np.float32)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(matrix))
    return [header.getvalue(), matrix.data.cast("B") if matrix.size else b""]


def _render_identities(episode: Episode, now: str) -> bytes:
    dialect = DIALECTS[episode.dialect]
    entries = []
    for row in episode.identities.to_pylist():
        raw = row["raw"]
        line = _patched(raw, partial(dialect.write_identity, row=row))
        record = orjson.loads(line)
        if episode.dialect == DOCUMENTED and line != raw:
            record.setdefault("created_at", now)
            record["updated_at"] = now
        entries.append(record)
    document = orjson.loads(episode.identity_document)
    # identities comes first in the documented dialect and last in the emitted one.
    ordered = (
        {"identities": entries, **document} if episode.dialect == DOCUMENTED else {**document, "identities": entries}
    )
    return orjson.dumps(ordered, option=orjson.OPT_INDENT_2)


def same_json(old: bytes, new: bytes) -> bool:
    """Whether two JSON documents hold the same values, whatever their spacing."""
    try:
        return bool(orjson.loads(old) == orjson.loads(new))
    except orjson.JSONDecodeError:
        return False
