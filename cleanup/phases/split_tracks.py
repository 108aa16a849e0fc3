"""Phase 1: splits a track where the appearance gate finds that it changes person."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.appearance_gate import Candidate, compute_consecutive_iou
from cleanup.algorithms.similarity_scale import SimilarityScale
from cleanup.episode import Episode
from cleanup.phases.gate import find_track_changes, place_gate
from cleanup.phases.human_verdicts import inherit_verdicts
from cleanup.phases.track_samples import TrackSamples, group_rows, iterate_samples
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import SplitTracksSettings


@dataclass(frozen=True)
class _Boundary:
    """Where a piece starts: its first frame, and why."""

    frame_idx: int
    reason: str


def split_tracks(
    episode: Episode,
    settings: SplitTracksSettings,
    report: ReportItems = ignore_items,
    known: SimilarityScale | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """Splits tracks; every face and box of a parent ends up in exactly one piece.

    The first piece keeps the track's id, the others get fresh ids after the highest in use, in time order, and join
    the identity of their parent.

    Args:
        episode: With observations; without them the gate works on what faces.jsonl holds.
        settings: The gate's settings.
        report: Told how many tracks are done.
        known: What is known of the model's scale from elsewhere.

    Returns:
        The episode and the phase's part of the report.
    """
    changes: dict[int, list[_Boundary]] = {}
    decisions: list[dict[str, Any]] = []
    boxes = _BoxesOfTracks(episode)
    samples = list(iterate_samples(episode)) if settings.gate_enabled else []
    gate = place_gate(episode, settings, known)
    for i, track in enumerate(samples):
        candidates = find_track_changes(track, gate.thresholds)
        boundaries = _place_boundaries(track, candidates, boxes, decisions)
        if boundaries:
            changes[track.track_id] = boundaries
        report(i + 1, len(samples))
    splits = Counter(b.reason for bs in changes.values() for b in bs)
    counts = {"hard": splits["hard"], "streak": splits["streak"], "iou": splits["iou"], "total": splits.total()}
    outcome = {
        "tracks_split": len(changes),
        "new_tracks_created": counts["total"],
        "splits": counts,
        "decisions": decisions,
        "thresholds": gate.description,
    }
    return (_apply(episode, changes) if changes else episode), outcome


class _BoxesOfTracks:
    """Frames and boxes of each track, in time order."""

    def __init__(self, episode: Episode) -> None:
        table = episode.boxes
        self._frames = schemas.ints_of(table, "frame_idx")
        self._boxes = schemas.matrix_of(table["bbox"], 4)
        self._rows = dict(group_rows(schemas.ints_of(table, "track_id")))

    def of(self, track_id: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows = self._rows.get(track_id, np.zeros(0, np.intp))
        return self._frames[rows], self._boxes[rows]


def _place_boundaries(
    track: TrackSamples,
    candidates: list[Candidate],
    all_boxes: _BoxesOfTracks,
    decisions: list[dict[str, Any]],
) -> list[_Boundary]:
    """Turns confirmed candidates into first frames of pieces, and keeps a line for the report on every candidate."""
    frames, boxes = all_boxes.of(track.track_id)
    boundaries: list[_Boundary] = []
    for candidate in candidates:
        frame_idx = int(track.frames[candidate.index])
        if candidate.is_split:
            frame_idx = _first_frame_of_piece(int(track.frames[candidate.index - 1]), frame_idx, frames, boxes)
            boundaries.append(_Boundary(frame_idx, candidate.reason))
        decisions.append(
            {
                "track_id": track.track_id,
                "frame_idx": frame_idx,
                "reason": candidate.reason,
                "similarity": round(candidate.similarity, 4),
                "split": candidate.is_split,
            }
        )
    return boundaries


def _first_frame_of_piece(
    last_before: int, first_after: int, frames: NDArray[np.int64], boxes: NDArray[np.float64]
) -> int:
    """First frame of the piece: of the boxes between the two samples, the one that jumps most starts it."""
    between = np.flatnonzero((frames > last_before) & (frames <= first_after))
    if len(between) <= 1:
        return first_after
    ious = compute_consecutive_iou(boxes)[between]
    return int(frames[between[int(np.argmin(ious))]])


def _apply(episode: Episode, changes: dict[int, list[_Boundary]]) -> Episode:
    pieces = _name_pieces(episode, changes)
    tracks = _split_track_rows(episode, changes, pieces)
    identities = episode.identities.to_pylist()
    for row in identities:
        row["track_ids"] = sorted(p for t in row["track_ids"] for p in pieces.get(t, [t]))
    observations = episode.observations
    changed = episode.replace(
        tracks=schemas.build_table(tracks, schemas.TRACK_SCHEMA),
        boxes=_reassign(episode.boxes, changes, pieces).sort_by(
            [("track_id", "ascending"), ("frame_idx", "ascending")]
        ),
        faces=_reassign(episode.faces, changes, pieces),
        identities=schemas.build_table(identities, schemas.IDENTITY_SCHEMA),
        observations=None if observations is None else _reassign(observations, changes, pieces),
    )
    return inherit_verdicts(changed, pieces)


def _name_pieces(episode: Episode, changes: dict[int, list[_Boundary]]) -> dict[int, list[int]]:
    """Ids of the pieces of each split track; fresh ones go up in time order over the whole episode."""
    pieces = {track_id: [track_id] for track_id in changes}
    next_id = int(schemas.ints_of(episode.tracks, "track_id").max()) + 1
    starts = sorted((b.frame_idx, track_id) for track_id, bs in changes.items() for b in bs)
    for _, track_id in starts:
        pieces[track_id].append(next_id)
        next_id += 1
    return pieces


def _reassign(table: pa.Table, changes: dict[int, list[_Boundary]], pieces: dict[int, list[int]]) -> pa.Table:
    """The table with the rows of split tracks given to the piece their frame lies in."""
    track_ids = schemas.ints_of(table, "track_id").copy()
    frames = schemas.ints_of(table, "frame_idx")
    for track_id, rows in list(group_rows(track_ids)):
        if track_id in changes:
            starts = np.array([b.frame_idx for b in changes[track_id]])
            track_ids[rows] = np.array(pieces[track_id])[np.searchsorted(starts, frames[rows], side="right")]
    return schemas.set_column(table, "track_id", track_ids)


def _split_track_rows(
    episode: Episode, changes: dict[int, list[_Boundary]], pieces: dict[int, list[int]]
) -> list[dict[str, Any]]:
    table = episode.boxes
    frames, times = schemas.ints_of(table, "frame_idx"), schemas.floats_of(table, "ts")
    confidence = schemas.floats_of(table, "confidence")
    rows_of = dict(group_rows(schemas.ints_of(table, "track_id")))
    kept: list[dict[str, Any]] = []
    fresh: list[dict[str, Any]] = []
    for row in episode.tracks.to_pylist():
        if row["track_id"] not in changes:
            kept.append(row)
            continue
        box_rows = rows_of[row["track_id"]]
        starts = np.array([b.frame_idx for b in changes[row["track_id"]]])
        parts = [box_rows[np.searchsorted(starts, frames[box_rows], side="right") == k] for k in range(len(starts) + 1)]
        n_boxes = _share_out(row["n_boxes"], [len(p) for p in parts])
        for k, (piece_id, part) in enumerate(zip(pieces[row["track_id"]], parts, strict=True)):
            known = confidence[part][np.isfinite(confidence[part])]
            piece = {
                **row,
                "track_id": piece_id,
                "first_frame": row["first_frame"] if k == 0 else int(frames[part].min()),
                "last_frame": row["last_frame"] if k == len(parts) - 1 else int(frames[part].max()),
                "start_s": row["start_s"] if k == 0 else round(float(times[part].min()), 4),
                "end_s": row["end_s"] if k == len(parts) - 1 else round(float(times[part].max()), 4),
                "n_boxes": n_boxes[k],
                "mean_confidence": round(float(known.mean()), 4) if len(known) else row["mean_confidence"],
                "pooled_embedding": None,
            }
            if k > 0:
                reason = changes[row["track_id"]][k - 1].reason
                piece.update(parent_track_id=row["track_id"], split_reason=reason, raw=None)
            (kept if k == 0 else fresh).append(piece)
    return kept + sorted(fresh, key=lambda r: r["track_id"])


def _share_out(total: int | None, parts: list[int]) -> list[int | None]:
    """Divides a count in proportion to the parts, so that the sum stays."""
    if total is None:
        return [None] * len(parts)
    ends = [round(total * sum(parts[: k + 1]) / max(sum(parts), 1)) for k in range(len(parts))]
    return [b - a for a, b in zip([0, *ends], ends, strict=False)]
