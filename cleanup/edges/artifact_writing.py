"""What an episode's files hold when written back; lines that did not change are the bytes they were read as."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson

from cleanup import schemas
from cleanup.edges.artifact_dialects import DIALECTS, Record
from cleanup.episode import DOCUMENTED, Episode


def render_episode(episode: Episode, now: str) -> dict[str, bytes]:
    """What an episode's files hold when written back, by file name (``tracks.jsonl``, ``faces.npy``, ...).

    Lines whose row did not change are the very bytes they were read as.

    Args:
        episode: The episode after the phases.
        now: ISO time for identities that changed.
    """
    return {
        "tracks.jsonl": _render_tracks(episode),
        "faces.jsonl": _render_faces(episode),
        "faces.npy": _render_embeddings(episode),
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


def _render_faces(episode: Episode) -> bytes:
    dialect = DIALECTS[episode.dialect]
    template: Record = {}
    lines = []
    for row in episode.faces.to_pylist():
        if row["raw"] is not None and not template:
            first = orjson.loads(row["raw"])
            template = {k: first[k] for k in ("ep_id", "detector", "pipeline_ver") if k in first}
            if "crop_path" in first:
                template["crop_path"] = ""
        lines.append(_patched(row["raw"], partial(dialect.write_face, row=row), template))
    return b"\n".join(lines) + b"\n"


def _render_embeddings(episode: Episode) -> bytes:
    stream = io.BytesIO()
    matrix = schemas.embeddings_of(episode.embedded_faces)
    np.lib.format.write_array(stream, np.ascontiguousarray(matrix, np.float32), allow_pickle=False)
    return stream.getvalue()


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
