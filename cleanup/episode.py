"""Episode: the frozen bundle of Arrow tables handed from phase to phase."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cleanup.names import EpId

DOCUMENTED, EMITTED = "documented", "emitted"


def format_identity_id(dialect: str, number: int) -> str:
    """A fresh identity id as the dialect writes it."""
    return f"identity-{number:05d}" if dialect == DOCUMENTED else f"id_{number:04d}"


def format_track_id(dialect: str, number: int) -> str | int:
    """A track id as the dialect writes it."""
    return f"track-{number:05d}" if dialect == DOCUMENTED else number


def format_face_id(dialect: str, number: int, track_id: int, frame_idx: int) -> str:
    """A fresh face id: numbered in the documented dialect, by track and frame in the emitted one."""
    return f"face-{number:05d}" if dialect == DOCUMENTED else f"face_{track_id:04d}_{frame_idx:06d}"


@dataclass(frozen=True)
class Episode:
    """Everything known about one episode. Tables follow the schemas of ``cleanup.schemas``.

    Attributes:
        ep_id: Checked episode id.
        dialect: ``documented`` or ``emitted``; what is written back.
        fps: Frames per second, measured from the tracks' times.
        tracks: TRACK_SCHEMA, one row per track.
        boxes: BOX_SCHEMA, every known box of every track, at most one per track and frame.
        faces: FACE_SCHEMA, the lines of faces.jsonl.
        identities: IDENTITY_SCHEMA.
        detections: DETECTION_SCHEMA, boxes without a track (documented dialect), or None.
        observations: ``observation_schema``, what a pass over the pixels saw, or None before it.
        stored_faces: STORED_FACE_SCHEMA, the faces as they were read; None where they are not needed any more.
        unseen_tracks: Tracks the pass over the pixels could not look at; their rows stay as they are.
        identity_document: identities.json without its identities, as JSON.
        track_metrics: track_metrics.json as it was, or None.
        duration_s: Length of the episode in seconds, as well as it is known.
    """

    ep_id: EpId
    dialect: str
    fps: float
    tracks: pa.Table
    boxes: pa.Table
    faces: pa.Table
    identities: pa.Table
    detections: pa.Table | None
    observations: pa.Table | None
    identity_document: bytes
    track_metrics: bytes | None
    duration_s: float
    stored_faces: pa.Table | None = None
    unseen_tracks: frozenset[int] = frozenset()

    @property
    def is_normalised(self) -> bool:
        """Whether boxes and landmarks are fractions of the picture instead of pixels."""
        return self.dialect == DOCUMENTED

    @property
    def embedded_faces(self) -> pa.Table:
        """The faces that carry an embedding, in line order."""
        return self.faces.filter(pc.is_valid(self.faces["embedding"]))

    @property
    def dimension(self) -> int | None:
        """Dimension of the embeddings, or None where no face has one."""
        faces = self.embedded_faces
        return len(faces["embedding"][0]) if len(faces) else None

    @property
    def embedding_model(self) -> str | None:
        """Name of the model the embeddings were made with, where the artifacts say so."""
        names = pc.unique(self.embedded_faces["embedding_model"]).to_pylist()
        return names[0] if len(names) == 1 else None

    def replace(self, **changes: Any) -> Episode:
        """A copy with some attributes exchanged."""
        return dataclasses.replace(self, **changes)
