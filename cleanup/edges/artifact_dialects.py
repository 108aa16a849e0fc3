"""The two dialects of the artifacts: JSON records to rows, and rows back into the records they came from.

Reading takes the fields that phases need. Writing patches only what changed into the original record, so that fields
nobody here owns keep their values and their types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson

from cleanup.edges.artifact_checks import (
    BadValueError,
    check_box,
    check_embedding,
    check_fraction,
    check_landmarks,
    optional,
    require,
    require_frame,
)
from cleanup.edges.embedding_text import PRESENT
from cleanup.episode import DOCUMENTED, EMITTED, format_track_id
from cleanup.input_limits import MAX_INTEGER

Record = dict[str, Any]
Row = Mapping[str, Any]
_NUMBER = (int, float)
_DOCUMENTED_TRACK = re.compile(r"track-([0-9]{1,15})")
# Numbers that differ by no more are the same but for rounding.
SAME_VECTOR = 1e-5


def set_changed(record: Record, key: str, value: Any) -> None:
    """Writes a value if it differs from what stands there; None removes the key if it held something."""
    if value is None:
        if record.get(key) is not None:
            del record[key]
    elif key not in record or record[key] != value or isinstance(record[key], bool) != isinstance(value, bool):
        record[key] = value


def set_pooled_embedding(record: Record, embedding: Sequence[float]) -> None:
    """Writes a track's vector, unless the one there is the same but for rounding."""
    old, new = record.get("face_embedding"), np.asarray(embedding, np.float32)
    is_comparable = isinstance(old, list) and len(old) == len(new)
    if is_comparable and float(np.abs(np.asarray(old, np.float32) - new).max(initial=0)) <= SAME_VECTOR:
        return
    record["face_embedding"] = orjson.loads(orjson.dumps(new, option=orjson.OPT_SERIALIZE_NUMPY))


def check_embedding_text(value: Any, what: str) -> bool:
    """Whether a face has an embedding, in a record that ``open_record`` opened."""
    if value is not None and value is not PRESENT:
        raise BadValueError(f"{what} has an embedding that is no list of numbers")
    return value is not None


class Dialect(Protocol):
    """How one dialect spells tracks, faces and identities."""

    name: str

    def track_row(self, record: Record) -> dict[str, Any]:
        """A TRACK_SCHEMA row, plus ``boxes``: BOX_SCHEMA rows. Raises BadValueError."""

    def face_row(self, record: Record) -> dict[str, Any]:
        """A FACE_SCHEMA row, with ``has_embedding`` instead of the embedding. Raises BadValueError."""

    def identity_row(self, record: Record) -> dict[str, Any]:
        """An IDENTITY_SCHEMA row. Raises BadValueError."""

    def track_key(self, track_id: int) -> int | str:
        """The track id as JSON writes it."""

    def write_track(self, record: Record, row: Row, boxes: Sequence[Row]) -> None:
        """Patches a track's record. ``boxes`` are those of the track, in time order."""

    def write_face(self, record: Record, row: Row) -> None:
        """Patches a face's record; its embedding is not looked at, ``has_embedding`` says whether it has one."""

    def write_identity(self, record: Record, row: Row) -> None:
        """Patches an identity's record, without its timestamps."""


class DocumentedDialect:
    """Schema versions det_v1 and track_v1: string ids, normalised boxes."""

    name = DOCUMENTED

    def parse_track_key(self, value: Any, what: str) -> int:
        match = _DOCUMENTED_TRACK.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise BadValueError(f"{what} has track_id {value!r}, not of the form track-00001")
        return int(match[1])

    def track_row(self, record: Record) -> dict[str, Any]:
        track_id = self.parse_track_key(record.get("track_id"), "a track")
        what = f"track {record['track_id']}"
        span = require(record, "frame_span", list, what)
        is_frame = [isinstance(f, int) and not isinstance(f, bool) and 0 <= f <= MAX_INTEGER for f in span]
        if is_frame != [True, True]:
            raise BadValueError(f"{what} has frame_span {span}, not two frame numbers")
        stats = optional(record, "stats", dict, what) or {}
        return {
            "track_id": track_id,
            "first_frame": span[0],
            "last_frame": span[1],
            "start_s": float(require(record, "start_s", _NUMBER, what)),
            "end_s": float(require(record, "end_s", _NUMBER, what)),
            "parent_track_id": self._parent(record, what),
            "split_reason": optional(record, "split_reason", str, what),
            "n_boxes": optional(stats, "detections", int, what),
            "mean_confidence": optional(stats, "avg_conf", _NUMBER, what),
            "boxes": [],
        }

    def _parent(self, record: Record, what: str) -> int | None:
        value = record.get("parent_track_id")
        return None if value is None else self.parse_track_key(value, what)

    def face_row(self, record: Record) -> dict[str, Any]:
        face_id = require(record, "face_id", str, "a face")
        what = f"face {face_id}"
        return {
            "face_id": face_id,
            "track_id": self.parse_track_key(record.get("track_id"), what),
            "frame_idx": require_frame(record, "frame_idx", what),
            "bbox": check_box(record.get("bbox"), what, is_normalised=True),
            "landmarks": check_landmarks(record.get("landmarks"), what),
            "quality": check_fraction(optional(record, "quality_score", _NUMBER, what), "quality_score", what),
            "has_embedding": check_embedding_text(record.get("embedding"), what),
            "embedding_model": optional(record, "embedding_model", str, what),
            "reject_reason": optional(record, "rejection_reason", str, what),
            "kept_despite": optional(record, "kept_despite", str, what),
            "crop_path": optional(record, "crop_path", str, what),
        }

    def identity_row(self, record: Record) -> dict[str, Any]:
        identity_id = require(record, "identity_id", str, "an identity")
        what = f"identity {identity_id}"
        labels = optional(record, "labels", dict, what) or {}
        stats = optional(record, "embedding_stats", dict, what) or {}
        return {
            "identity_id": identity_id,
            "track_ids": [self.parse_track_key(t, what) for t in require(record, "track_ids", list, what)],
            "person_id": optional(labels, "person_id", str, what),
            "name": optional(labels, "name", str, what),
            "person_source": optional(labels, "source", str, what),
            "is_locked": bool(optional(record, "locked", bool, what)),
            "outlier_reason": optional(record, "outlier_reason", str, what),
            "centroid_norm": optional(stats, "centroid_norm", _NUMBER, what),
            "n_faces": optional(stats, "num_faces_total", int, what),
        }

    def track_key(self, track_id: int) -> int | str:
        return format_track_id(DOCUMENTED, track_id)

    def write_track(self, record: Record, row: Row, boxes: Sequence[Row]) -> None:  # noqa: ARG002 -- Dialect
        set_changed(record, "track_id", self.track_key(row["track_id"]))
        set_changed(record, "start_s", row["start_s"])
        set_changed(record, "end_s", row["end_s"])
        set_changed(record, "frame_span", [row["first_frame"], row["last_frame"]])
        stats = dict(record.get("stats") or {})
        set_changed(stats, "detections", row["n_boxes"])
        set_changed(stats, "avg_conf", row["mean_confidence"])
        set_changed(record, "stats", stats or None)
        if row["parent_track_id"] is not None:
            set_changed(record, "parent_track_id", self.track_key(row["parent_track_id"]))
            set_changed(record, "split_reason", row["split_reason"])

    def write_face(self, record: Record, row: Row) -> None:
        set_changed(record, "face_id", row["face_id"])
        set_changed(record, "track_id", self.track_key(row["track_id"]))
        set_changed(record, "frame_idx", row["frame_idx"])
        set_changed(record, "bbox", row["bbox"])
        if row["landmarks"] is not None:
            set_changed(record, "landmarks", row["landmarks"])
        if row["quality"] is not None:
            set_changed(record, "quality_score", row["quality"])
        set_changed(record, "embedding_model", row["embedding_model"] if row["has_embedding"] else None)
        set_changed(record, "rejection_reason", row["reject_reason"])
        set_changed(record, "kept_despite", row["kept_despite"])
        if row["crop_path"] is not None:
            set_changed(record, "crop_path", row["crop_path"])

    def write_identity(self, record: Record, row: Row) -> None:
        is_outlier = len(row["track_ids"]) == 1
        set_changed(record, "identity_id", row["identity_id"])
        if is_outlier or "cluster_id" not in record or record["cluster_id"] is None:
            record["cluster_id"] = None if is_outlier else _trailing_number(row["identity_id"])
        set_changed(record, "track_ids", [self.track_key(t) for t in row["track_ids"]])
        record.setdefault("canonical_face_path", "")
        stats = dict(record.get("embedding_stats") or {})
        if row["centroid_norm"] is not None and row["centroid_norm"] != stats.get("centroid_norm"):
            stats["centroid_norm"] = row["centroid_norm"]
            stats["variance"] = round(1 - row["centroid_norm"] ** 2, 4)
        set_changed(stats, "num_tracks", len(row["track_ids"]))
        set_changed(stats, "num_faces_total", row["n_faces"])
        set_changed(record, "embedding_stats", stats)
        labels = dict(record.get("labels") or {})
        set_changed(labels, "person_id", row["person_id"])
        set_changed(labels, "name", row["name"])
        set_changed(labels, "source", row["person_source"])
        if record.get("labels") != labels:
            record["labels"] = labels
        if "locked" not in record or bool(record["locked"]) != row["is_locked"]:
            record["locked"] = row["is_locked"]
        set_changed(record, "outlier_reason", row["outlier_reason"])


class EmittedDialect:
    """What the detect, track, embed and cluster tools write: integer ids, pixel boxes."""

    name = EMITTED

    def parse_track_key(self, value: Any, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
            raise BadValueError(f"{what} has track_id {value!r}, not a whole number from 0")
        return value

    def track_row(self, record: Record) -> dict[str, Any]:
        track_id = self.parse_track_key(record.get("track_id"), "a track")
        what = f"track {track_id}"
        boxes = [self._box(b, track_id, what) for b in optional(record, "bboxes_sampled", list, what) or []]
        parent = record.get("parent_track_id")
        confidences = [b["confidence"] for b in boxes if b["confidence"] is not None]
        return {
            "track_id": track_id,
            "first_frame": require_frame(record, "first_frame_idx", what),
            "last_frame": require_frame(record, "last_frame_idx", what),
            "start_s": float(require(record, "first_ts", _NUMBER, what)),
            "end_s": float(require(record, "last_ts", _NUMBER, what)),
            "parent_track_id": None if parent is None else self.parse_track_key(parent, what),
            "split_reason": optional(record, "split_reason", str, what),
            "n_boxes": optional(record, "frame_count", int, what),
            "mean_confidence": float(np.mean(confidences)) if confidences else None,
            "pooled_embedding": check_embedding(record.get("face_embedding"), what),
            "pooled_model": optional(record, "face_embedding_model", str, what),
            "pooled_spread": optional(record, "face_embedding_spread", _NUMBER, what),
            "n_faces": optional(record, "faces_count", int, what),
            "boxes": boxes,
        }

    def _box(self, record: Any, track_id: int, what: str) -> dict[str, Any]:
        if not isinstance(record, dict):
            raise BadValueError(f"{what} has a sampled box that is no object")
        return {
            "track_id": track_id,
            "frame_idx": require_frame(record, "frame_idx", what),
            "ts": float(require(record, "ts", _NUMBER, what)),
            "bbox": check_box(record.get("bbox_xyxy"), what, is_normalised=False),
            "landmarks": check_landmarks(record.get("landmarks"), what),
            "confidence": optional(record, "conf", _NUMBER, what),
        }

    def face_row(self, record: Record) -> dict[str, Any]:
        face_id = require(record, "face_id", str, "a face")
        what = f"face {face_id}"
        has_embedding = check_embedding_text(record.get("embedding"), what)
        skip = optional(record, "skip", str, what)
        if skip is not None and has_embedding:
            raise BadValueError(f"{what} is skipped ({skip}) and has an embedding")
        return {
            "face_id": face_id,
            "track_id": self.parse_track_key(record.get("track_id"), what),
            "frame_idx": require_frame(record, "frame_idx", what),
            "ts": float(require(record, "ts", _NUMBER, what)),
            "bbox": check_box(record.get("bbox_xyxy"), what, is_normalised=False),
            "landmarks": check_landmarks(record.get("landmarks"), what),
            "confidence": optional(record, "conf", _NUMBER, what),
            "quality": check_fraction(optional(record, "quality", _NUMBER, what), "quality", what),
            "has_embedding": has_embedding,
            "embedding_model": optional(record, "embedding_model", str, what),
            "reject_reason": skip,
            "kept_despite": optional(record, "kept_despite", str, what),
            "yaw": optional(record, "pose_yaw", _NUMBER, what),
            "pitch": optional(record, "pose_pitch", _NUMBER, what),
            "crop_path": optional(record, "crop_rel_path", str, what),
        }

    def identity_row(self, record: Record) -> dict[str, Any]:
        identity_id = require(record, "identity_id", str, "an identity")
        what = f"identity {identity_id}"
        name = optional(record, "name", str, what) or optional(record, "label", str, what)
        return {
            "identity_id": identity_id,
            "track_ids": [self.parse_track_key(t, what) for t in require(record, "track_ids", list, what)],
            "person_id": optional(record, "person_id", str, what),
            "name": name,
            "person_source": optional(record, "person_source", str, what),
            "is_locked": bool(optional(record, "locked", bool, what)),
            "outlier_reason": optional(record, "outlier_reason", str, what),
            "cohesion": optional(record, "cohesion", _NUMBER, what),
            "n_faces": optional(record, "size", int, what),
        }

    def track_key(self, track_id: int) -> int | str:
        return format_track_id(EMITTED, track_id)

    def write_track(self, record: Record, row: Row, boxes: Sequence[Row]) -> None:
        set_changed(record, "track_id", row["track_id"])
        set_changed(record, "first_ts", row["start_s"])
        set_changed(record, "last_ts", row["end_s"])
        set_changed(record, "frame_count", row["n_boxes"])
        set_changed(record, "first_frame_idx", row["first_frame"])
        set_changed(record, "last_frame_idx", row["last_frame"])
        sampled = record.get("bboxes_sampled")
        if isinstance(sampled, list):
            frames = {b["frame_idx"] for b in boxes}
            set_changed(record, "bboxes_sampled", [b for b in sampled if b["frame_idx"] in frames])
        if row["parent_track_id"] is not None:
            set_changed(record, "parent_track_id", row["parent_track_id"])
            set_changed(record, "split_reason", row["split_reason"])
        if row["pooled_embedding"] is not None:
            set_pooled_embedding(record, row["pooled_embedding"])
            set_changed(record, "face_embedding_model", row["pooled_model"])
            set_changed(record, "face_embedding_spread", row["pooled_spread"])
            set_changed(record, "faces_count", row["n_faces"])
        else:
            for key in ("face_embedding", "face_embedding_model", "face_embedding_spread", "faces_count"):
                record.pop(key, None)

    def write_face(self, record: Record, row: Row) -> None:
        set_changed(record, "face_id", row["face_id"])
        set_changed(record, "track_id", row["track_id"])
        set_changed(record, "frame_idx", row["frame_idx"])
        set_changed(record, "ts", row["ts"])
        set_changed(record, "bbox_xyxy", row["bbox"])
        set_changed(record, "conf", row["confidence"])
        set_changed(record, "quality", row["quality"])
        set_changed(record, "embedding_model", row["embedding_model"] if row["has_embedding"] else None)
        set_changed(record, "landmarks", row["landmarks"])
        set_changed(record, "pose_yaw", row["yaw"])
        set_changed(record, "pose_pitch", row["pitch"])
        set_changed(record, "kept_despite", row["kept_despite"])
        set_changed(record, "crop_rel_path", row["crop_path"])
        if row["reject_reason"] is None:
            record.pop("skip", None)
            record.pop("skip_data", None)
        elif record.get("skip") != row["reject_reason"]:
            record["skip"] = row["reject_reason"]
            record["skip_data"] = {
                "reason": row["reject_reason"].split(":")[0],
                "blur_score": row["sharpness"],
                "confidence": row["confidence"],
                "contrast": row["contrast"],
            }

    def write_identity(self, record: Record, row: Row) -> None:
        set_changed(record, "identity_id", row["identity_id"])
        record.setdefault("label", None)
        set_changed(record, "track_ids", list(row["track_ids"]))
        set_changed(record, "size", row["n_faces"])
        if row["name"] != (record.get("name") or record.get("label")):
            set_changed(record, "name", row["name"])
        set_changed(record, "person_id", row["person_id"])
        set_changed(record, "person_source", row["person_source"])
        set_changed(record, "cohesion", row["cohesion"])
        set_changed(record, "outlier_reason", row["outlier_reason"])
        if bool(record.get("locked")) != row["is_locked"]:
            record["locked"] = row["is_locked"]


def _trailing_number(text: str) -> int | None:
    match = re.search(r"(\d+)$", text)
    return int(match[1]) if match else None


DIALECTS: Mapping[str, Dialect] = {
    DOCUMENTED: DocumentedDialect(),
    EMITTED: EmittedDialect(),
}


def dialect_of_track(record: Mapping[str, Any]) -> str | None:
    """The dialect a line of tracks.jsonl is written in, or None if it is neither or both."""
    is_documented = "frame_span" in record or "start_s" in record
    is_emitted = "first_frame_idx" in record or "bboxes_sampled" in record or "first_ts" in record
    return None if is_documented == is_emitted else DOCUMENTED if is_documented else EMITTED


def dialect_of_face(record: Mapping[str, Any]) -> str | None:
    """The dialect a line of faces.jsonl is written in, or None if it is neither or both."""
    is_documented = "bbox" in record or "quality_score" in record
    is_emitted = "bbox_xyxy" in record
    return None if is_documented == is_emitted else DOCUMENTED if is_documented else EMITTED
