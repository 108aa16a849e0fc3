"""What comes before the phases: which boxes belong to which track, which of them are looked at, and in which shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanup import schemas
from cleanup.algorithms.box_association import KnownTrack, associate_detections
from cleanup.algorithms.frame_sampling import LineageLoad, find_roots, plan_shards, sampling_step, select_samples
from cleanup.episode import Episode
from cleanup.phases.track_samples import group_rows
from cleanup.settings import ObserveSettings

_BUFFER_FPS = 30.0
# Faces a shard is meant to cost: a few seconds of work, so that progress moves and a lost shard costs little.
FACES_PER_SHARD = 256


def attach_detections(episode: Episode, settings: ObserveSettings) -> Episode:
    """Gives detections without a track id to the tracks they continue (documented dialect).

    Association runs over whole lineages, a track with all pieces split from it, so that a split changes nothing in it.
    """
    if episode.detections is None or len(episode.detections) == 0:
        return episode
    lineages, pieces = _lineages(episode)
    table = episode.detections
    frames, boxes = schemas.ints_of(table, "frame_idx"), schemas.matrix_of(table["bbox"], 4)
    confidence = np.nan_to_num(schemas.floats_of(table, "confidence"), nan=1.0)
    order = np.argsort(frames, kind="stable")
    rows_of_frame = {int(frames[rows[0]]): rows for rows in np.split(order, np.flatnonzero(np.diff(frames[order])) + 1)}
    buffer = min(settings.track_buffer * episode.fps / _BUFFER_FPS, settings.max_track_buffer)
    owners = associate_detections(
        {f: (boxes[rows], confidence[rows]) for f, rows in rows_of_frame.items()},
        lineages,
        min_iou=1 - settings.match_thresh,
        max_gap_frames=max(int(buffer), 1),
        sure_confidence=settings.track_thresh,
    )
    known = {
        (t, f): i
        for i, (t, f) in enumerate(
            zip(episode.boxes["track_id"].to_pylist(), episode.boxes["frame_idx"].to_pylist(), strict=True)
        )
    }
    box_rows, found = episode.boxes.to_pylist(), table.to_pylist()
    for frame_idx, owner in owners.items():
        for row, k in zip(rows_of_frame[frame_idx], owner, strict=True):
            track_id = _piece_at(pieces[lineages[k].track_id], frame_idx) if k >= 0 else None
            if track_id is None:
                continue
            place = known.get((track_id, frame_idx))
            if place is None:
                box_rows.append({**found[row], "track_id": track_id})
                continue
            for key in ("landmarks", "confidence"):
                if box_rows[place][key] is None:
                    box_rows[place][key] = found[row][key]
    boxes_table = schemas.build_table(box_rows, schemas.BOX_SCHEMA)
    return episode.replace(boxes=boxes_table.sort_by([("track_id", "ascending"), ("frame_idx", "ascending")]))


def _lineages(episode: Episode) -> tuple[list[KnownTrack], dict[int, list[tuple[int, int, int]]]]:
    """Lineages with their known boxes, and the pieces of each as (first frame, last frame, track id)."""
    rows = episode.tracks.select(["track_id", "first_frame", "last_frame", "parent_track_id"]).to_pylist()
    roots = find_roots({r["track_id"]: r["parent_track_id"] for r in rows})
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for row in rows:
        pieces.setdefault(roots[row["track_id"]], []).append((row["first_frame"], row["last_frame"], row["track_id"]))
    frames, boxes = schemas.ints_of(episode.boxes, "frame_idx"), schemas.matrix_of(episode.boxes["bbox"], 4)
    root_of_box = np.array([roots[t] for t in episode.boxes["track_id"].to_pylist()], np.int64)
    rows_of = dict(group_rows(root_of_box))
    lineages = []
    for root in sorted(pieces):
        own = rows_of.get(root, np.zeros(0, np.intp))
        own = own[np.argsort(frames[own], kind="stable")]
        first, last = min(p[0] for p in pieces[root]), max(p[1] for p in pieces[root])
        lineages.append(KnownTrack(root, first, last, frames[own], boxes[own]))
    return lineages, pieces


def _piece_at(pieces: list[tuple[int, int, int]], frame_idx: int) -> int | None:
    """The piece of a lineage whose span holds a frame."""
    return next((track_id for first, last, track_id in pieces if first <= frame_idx <= last), None)


@dataclass(frozen=True)
class ObservationPlan:
    """The samples of an episode and their shards.

    Attributes:
        samples: SAMPLE_SCHEMA in pixels.
        shards: Lineage ids per shard.
        n_faces: Boxes that are embedded in any case.
    """

    samples: pa.Table
    shards: list[list[int]]
    n_faces: int

    def tables(self) -> list[pa.Table]:
        """The samples of each shard."""
        lineage = self.samples["lineage_id"]
        return [self.samples.filter(pc.is_in(lineage, pa.array(ids, pa.int64()))) for ids in self.shards]


def plan_observations(
    episode: Episode, settings: ObserveSettings, width: int, height: int, video_fps: float
) -> ObservationPlan:
    """Chooses the boxes to look at.

    Args:
        episode: With its boxes attached.
        settings: Stride and rates.
        width: Width of the video in pixels.
        height: Height of the video in pixels.
        video_fps: Frame rate of the video.
    """
    step = sampling_step(settings.stride, settings.fps, settings.gate_emb_every, video_fps)
    parents = dict(
        zip(episode.tracks["track_id"].to_pylist(), episode.tracks["parent_track_id"].to_pylist(), strict=True)
    )
    roots = find_roots(parents)
    table = episode.boxes
    tracks, frames = schemas.ints_of(table, "track_id"), schemas.ints_of(table, "frame_idx")
    lineage = np.array([roots[t] for t in tracks.tolist()], np.int64)
    face_roots = np.array([roots[t] for t in episode.faces["track_id"].to_pylist()], np.int64)
    face_frames = schemas.ints_of(episode.faces, "frame_idx")
    faces_of = dict(group_rows(face_roots))
    is_sampled = np.zeros(len(table), bool)
    loads = []
    for root, rows in group_rows(lineage):
        rows = rows[np.argsort(frames[rows], kind="stable")]
        own_faces = face_frames[faces_of.get(root, np.zeros(0, np.intp))]
        is_sampled[rows] = select_samples(frames[rows], step, own_faces)
        loads.append(LineageLoad(root, int(frames[rows[0]]), int(frames[rows[-1]]), int(is_sampled[rows].sum())))
    scale = np.array([width, height], np.float64) if episode.is_normalised else np.ones(2)
    samples = pa.table(
        {
            "lineage_id": lineage,
            "track_id": tracks,
            "frame_idx": frames,
            "bbox": schemas.list_column(schemas.matrix_of(table["bbox"], 4) * np.tile(scale, 2), schemas.BBOX),
            "landmarks": schemas.list_column(
                (schemas.matrix_of(table["landmarks"], 10) * np.tile(scale, 5)).round(2), schemas.LANDMARKS
            ),
            "confidence": table["confidence"],
            "is_sampled": is_sampled,
        },
        schema=schemas.SAMPLE_SCHEMA,
    )
    # Boxes between two samples are looked at only if they have landmarks: they are not worth a detection.
    samples = samples.filter(pc.or_(samples["is_sampled"], pc.is_valid(samples["landmarks"])))
    shards = plan_shards(loads, FACES_PER_SHARD)
    return ObservationPlan(samples, shards, int(is_sampled.sum()))
