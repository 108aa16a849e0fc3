"""What an episode's files hold when written back; lines that did not change are the bytes they were read as."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_dialects import DIALECTS, SAME_VECTOR, Record
from cleanup.edges.embedding_text import PRESENT, close_record, format_numbers, open_record
from cleanup.episode import DOCUMENTED, Episode

# Embeddings that are compared at a time.
_ROWS_AT_A_TIME = 4096


def render_episode(episode: Episode, now: str) -> dict[str, bytes]:
    """What an episode's files hold when written back, by file name (``tracks.jsonl``, ``faces.npy``, ...).

    Lines whose row did not change are the very bytes they were read as.

    Args:
        episode: The episode after the phases.
        now: ISO time for identities that changed.
    """
    faces, embeddings = _render_faces(episode)
    return {
        "tracks.jsonl": _render_tracks(episode),
        "faces.jsonl": faces,
        "faces.npy": embeddings,
        "identities.json": _render_identities(episode, now),
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


def _render_faces(episode: Episode) -> tuple[bytes, bytes]:
    """The contents of faces.jsonl and of faces.npy."""
    dialect = DIALECTS[episode.dialect]
    embedded = episode.faces.select(["stored_row", "embedding"])
    embedded = embedded.filter(embedded["embedding"].is_valid()) if embedded["embedding"].null_count else embedded
    embeddings = schemas.embeddings_of(embedded)
    is_stored = iter(_find_stored(episode, schemas.floats_of(embedded, "stored_row"), embeddings))
    vectors = iter(embeddings)
    template: Record = {}
    lines = []
    for row in schemas.face_rows(episode.faces):
        raw = row["raw"]
        record, text = open_record(raw) if raw is not None else (dict(template), None)
        if raw is not None and not template:
            template = {k: record[k] for k in ("ep_id", "detector", "pipeline_ver") if k in record}
            if "crop_path" in record:
                template["crop_path"] = ""
        has_text, before = text is not None, None
        if not row["has_embedding"]:
            is_same = not has_text
            record.pop("embedding", None)
            text = None
        else:
            vector, is_same = next(vectors), bool(next(is_stored)) and has_text
            if not is_same:
                record["embedding"] = PRESENT
                text = format_numbers(vector)
        if raw is not None and is_same:
            before = orjson.dumps(record)
        dialect.write_face(record, row)
        line = orjson.dumps(record)
        lines.append(raw if line == before else close_record(line, text))
    return b"\n".join([*lines, b""]), _render_matrix(embeddings)


def _find_stored(
    episode: Episode, stored_rows: NDArray[np.float64], embeddings: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which embeddings are those that were read, but for rounding; shape (n,)."""
    stored = episode.stored_embeddings
    is_stored = np.zeros(len(embeddings), bool)
    if stored is None or embeddings.shape[1:] != stored.shape[1:]:
        return is_stored
    known = np.flatnonzero(np.isfinite(stored_rows))
    for rows in np.array_split(known, len(known) // _ROWS_AT_A_TIME + 1):
        difference = np.abs(embeddings[rows] - stored[stored_rows[rows].astype(np.int64)])
        is_stored[rows] = difference.max(axis=1, initial=0) <= SAME_VECTOR
    return is_stored


def _render_matrix(embeddings: NDArray[np.float32]) -> bytes:
    matrix = np.ascontiguousarray(embeddings, np.float32)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(matrix))
    return header.getvalue() + matrix.tobytes()


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
