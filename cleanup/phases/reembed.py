"""Phase 2: re-embedded faces pass strict quality gates; the best of each track are kept, the rest say why not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms import face_quality
from cleanup.algorithms.similarity_scale import SimilarityScale, ThresholdChoice, place_threshold
from cleanup.episode import Episode, format_face_id
from cleanup.errors import ArtifactError
from cleanup.phases.model_scale import measure_face_scale
from cleanup.phases.track_samples import group_rows, pool_tracks
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import PoolingSettings, ReembedSettings

_REFERENCE_LINES = 1080
# What stands behind the colon of a reject reason: the measured value that failed.
_VALUE_OF_REASON = {
    "too_small": "size_px",
    "low_confidence": "confidence",
    "blurry": "sharpness",
    "low_contrast": "contrast",
    "extreme_pose": "turn",
    "occluded": "occlusion",
    "mixed": "agreement",
    "low_quality": "quality",
}


# Where agreement with the track's consensus begins to count on the scale of the model, and from where it is full.
_NO_AGREEMENT_POSITION, _FULL_AGREEMENT_POSITION = 0.20, 0.70


@dataclass(frozen=True)
class _PlacedAgreement:
    """What agreement means with this model, and from where on a face counts as one of its track."""

    scale: face_quality.AgreementScale
    min_agreement: ThresholdChoice


@dataclass(frozen=True)
class _Judged:
    """All observations of an episode with their judgement.

    Embeddings have the shape (n, d), zero where there is none; the other arrays (n,); reasons are None where accepted.
    A face is fair if it fails no gate but that of size.
    """

    table: pa.Table
    embeddings: NDArray[np.float32]
    parts: dict[str, NDArray[np.float64]]
    reasons: list[str | None]
    is_fair: NDArray[np.bool_]
    placed: _PlacedAgreement

    def reason_text(self, row: int) -> str | None:
        reason = self.reasons[row]
        part = _VALUE_OF_REASON.get(reason or "")
        return f"{reason}:{self.parts[part][row]:.3g}" if part else reason


def reembed(
    episode: Episode,
    settings: ReembedSettings,
    pooling: PoolingSettings,
    model: str,
    frame_height: int,
    report: ReportItems = ignore_items,
    known: SimilarityScale | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """Replaces every face's embedding and quality by what the pass over the pixels saw.

    No line of faces.jsonl is lost: a face that fails a gate or exceeds a limit stays as a row with a reject_reason and
    without an embedding. A track whose faces all fail keeps its best one (``kept_despite``). A track with fewer good
    faces than ``min_samples_per_track`` gets new ones from its other boxes.

    Args:
        episode: With observations.
        settings: Gates and limits.
        pooling: How a track's vector is pooled.
        model: Name of the recogniser the observations were made with.
        frame_height: Lines of the video, for the size gate.
        report: Told how many tracks are done.
        known: What is known of the model's scale from elsewhere.

    Returns:
        The episode and the phase's part of the report.
    """
    if episode.observations is None:
        raise ArtifactError(f"{episode.ep_id}: reembed needs the video, and there was no pass over it")
    judged = _judge(episode, settings, frame_height, known)
    face_rows = schemas.face_rows(episode.faces)
    face_at = {(r["track_id"], r["frame_idx"]): i for i, r in enumerate(face_rows)}
    kept: dict[int, str | None] = {}
    track_ids = schemas.ints_of(judged.table, "track_id")
    frames = schemas.ints_of(judged.table, "frame_idx")
    groups = list(group_rows(track_ids))
    for i, (track_id, rows) in enumerate(groups):
        rows = rows[np.argsort(frames[rows], kind="stable")]
        has_line = np.array([(track_id, int(frames[r])) in face_at for r in rows])
        kept.update(_select(rows, has_line, frames, judged, settings))
        report(i + 1, len(groups))
    _apply_episode_limit(kept, judged, track_ids, settings.max_faces_per_episode)
    quality_before = [r["quality"] for r in face_rows if r["quality"] is not None]
    updated = _write_faces(face_rows, face_at, judged, kept, model, episode)
    embeddings = _gather_embeddings(updated, episode, judged)
    episode = episode.replace(faces=schemas.build_faces(updated, embeddings))
    episode = _write_pooled(episode, pooling, model)
    rejected = Counter(str(r["reject_reason"]).split(":")[0] for r in updated if r["reject_reason"] is not None)
    quality_after = [r["quality"] for r in updated if r["has_embedding"] and r["quality"] is not None]
    return episode, {
        "faces_rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "faces_added": len(updated) - len(face_rows),
        "tracks_kept_by_their_best_rejected_face": len(
            {r["track_id"] for r in updated if r["kept_despite"] is not None}
        ),
        "mean_quality_before": round(float(np.mean(quality_before)), 4) if quality_before else None,
        "min_agreement": judged.placed.min_agreement.describe(),
        "mean_quality_after": round(float(np.mean(quality_after)), 4) if quality_after else None,
    }


def _judge(episode: Episode, settings: ReembedSettings, frame_height: int, known: SimilarityScale | None) -> _Judged:
    assert episode.observations is not None
    table = episode.observations.filter(episode.observations["is_sampled"])
    n_faces = len(table)
    names = ("size_px", "confidence", "sharpness", "contrast", "yaw", "pitch", "norm")
    parts = {name: schemas.floats_of(table, name) for name in names}
    is_embedded = table["embedding"].is_valid().to_numpy(zero_copy_only=False)
    embeddings = np.zeros((n_faces, episode.observations.schema.field("embedding").type.list_size), np.float32)
    embeddings[is_embedded] = schemas.embeddings_of(table.filter(table["embedding"].is_valid()))
    trust, agreement = np.zeros(n_faces), np.zeros(n_faces)
    placed = _place_agreement(episode, settings, known)
    parts["occlusion"] = np.zeros(n_faces)
    for _, rows in group_rows(schemas.ints_of(table, "track_id")):
        rows = rows[is_embedded[rows]]
        if len(rows):
            norms = parts["norm"][rows]
            trust[rows] = face_quality.estimate_trust(norms, parts["sharpness"][rows])
            agreement[rows] = face_quality.measure_agreement(embeddings[rows], trust[rows], placed.scale)
            parts["occlusion"][rows] = face_quality.estimate_occlusion(norms, parts["confidence"][rows])
    parts["agreement"] = agreement
    parts["turn"] = np.maximum(np.abs(parts["yaw"]), np.abs(parts["pitch"]))
    score = face_quality.score_face(
        parts["confidence"], parts["size_px"], parts["sharpness"], parts["yaw"], parts["pitch"]
    )
    quality = face_quality.combine_quality(score, trust, agreement, placed.scale).astype(np.float64)
    parts["quality"] = np.where(is_embedded, np.nan_to_num(quality), 0.0).round(4)
    gates = face_quality.QualityGates(
        min_size_px=settings.min_size * frame_height / _REFERENCE_LINES,
        min_confidence=settings.min_confidence,
        min_sharpness=settings.min_blur_score,
        min_contrast=settings.min_std,
        max_yaw_deg=settings.max_yaw,
        max_pitch_deg=settings.max_pitch,
        max_occlusion=settings.max_occlusion,
        min_agreement=placed.min_agreement.value,
        min_quality=settings.min_quality,
    )
    reasons = face_quality.find_reject_reasons(gates, parts)
    unless_small = face_quality.find_reject_reasons(replace(gates, min_size_px=0.0), parts)
    for i, reason in enumerate(table["reject_reason"].to_pylist()):
        reasons[i] = reason or reasons[i]
        unless_small[i] = reason or unless_small[i]
    is_fair = np.array([reason is None for reason in unless_small], bool) & is_embedded
    return _Judged(table, embeddings, parts, reasons, is_fair, placed)


def _place_agreement(episode: Episode, settings: ReembedSettings, known: SimilarityScale | None) -> _PlacedAgreement:
    scale = measure_face_scale(episode, known)
    limit = place_threshold(scale, settings.min_agreement.value, is_auto=settings.min_agreement.is_auto)
    agreement = face_quality.AgreementScale(scale.at(_NO_AGREEMENT_POSITION), scale.at(_FULL_AGREEMENT_POSITION))
    return _PlacedAgreement(agreement, limit)


def _select(
    rows: NDArray[np.intp],
    has_line: NDArray[np.bool_],
    frames: NDArray[np.int64],
    judged: _Judged,
    settings: ReembedSettings,
) -> dict[int, str | None]:
    """Rows of one track whose embedding is kept -> the reason they are kept despite, or None."""
    quality = judged.parts["quality"]
    is_good = np.array([judged.reasons[r] is None for r in rows])
    good = rows[is_good & has_line]
    if len(good) < settings.min_samples_per_track:
        spare = rows[is_good & ~has_line]
        n_missing = settings.min_samples_per_track - len(good)
        good = np.concatenate([good, spare[np.argsort(-quality[spare], kind="stable")][:n_missing]])
    if len(good) == 0:
        # Faces that are only small say little each, and more together.
        good = rows[judged.is_fair[rows]]
    if len(good) == 0:
        embedded = [int(r) for r in rows if judged.table["embedding"][int(r)].is_valid]
        if not embedded:
            return {}
        best = max(embedded, key=lambda r: (quality[r], -frames[r]))
        return {best: judged.reason_text(best)}
    good = good[np.argsort(frames[good], kind="stable")]
    chosen = spread_over_time(
        frames[good],
        quality[good],
        settings.max_samples_per_track,
        settings.min_frames_between_crops,
        is_spread=settings.sampling_mode == "spread",
    )
    return {row: judged.reason_text(row) for row in good[chosen].tolist()}


def spread_over_time(
    frames: NDArray[np.int64],
    quality: NDArray[np.float64],
    max_faces: int,
    min_gap_frames: int,
    *,
    is_spread: bool,
) -> NDArray[np.intp]:
    """Chooses the faces of one track that are kept.

    Args:
        frames: Frame numbers, ascending, shape (n,).
        quality: Quality 0..1, shape (n,).
        max_faces: How many at the most.
        min_gap_frames: Chosen faces lie at least so far apart.
        is_spread: Divide the track into ``max_faces`` stretches and take the best of each before any second one;
            otherwise simply the best ones.

    Returns:
        Indices in time order; never empty for n >= 1.
    """
    order = np.lexsort((frames, -quality.round(4)))
    if is_spread and len(frames) > max_faces:
        span = frames[-1] - frames[0] + 1
        stretch = (frames - frames[0]) * max_faces // span
        is_first = np.zeros(len(frames), bool)
        is_first[order[np.unique(stretch[order], return_index=True)[1]]] = True
        order = np.concatenate([order[is_first[order]], order[~is_first[order]]])
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == max_faces:
            break
        if all(abs(int(frames[i] - frames[j])) >= min_gap_frames for j in chosen):
            chosen.append(i)
    return np.array(sorted(chosen), np.intp)


def _apply_episode_limit(
    kept: dict[int, str | None], judged: _Judged, track_ids: NDArray[np.int64], max_faces: int
) -> None:
    """Drops the worst faces beyond the episode's limit; every track keeps its best."""
    if len(kept) <= max_faces:
        return
    quality = judged.parts["quality"]
    best: dict[int, int] = {}
    for row in sorted(kept):
        track_id = int(track_ids[row])
        if track_id not in best or quality[row] > quality[best[track_id]]:
            best[track_id] = row
    spare = sorted(set(kept) - set(best.values()), key=lambda r: (quality[r], r))
    for row in spare[: len(kept) - max_faces]:
        del kept[row]


def _write_faces(
    face_rows: list[dict[str, Any]],
    face_at: dict[tuple[int, int], int],
    judged: _Judged,
    kept: dict[int, str | None],
    model: str,
    episode: Episode,
) -> list[dict[str, Any]]:
    """The face rows after judgement: every old line, then new ones by track and frame.

    ``observed`` is the observation that a row's embedding comes from; rows without it keep the one they have.
    """
    scale = _unscale(episode, judged.table)
    fresh: list[dict[str, Any]] = []
    for i in set(range(len(face_rows))) - set(face_at.values()):
        if face_rows[i]["track_id"] in episode.unseen_tracks:
            continue
        face_rows[i].update(has_embedding=False, embedding_model=None, kept_despite=None, reject_reason="duplicate")
    for i, seen in enumerate(judged.table.drop_columns(["embedding"]).to_pylist()):
        place = face_at.get((seen["track_id"], seen["frame_idx"]))
        if place is None and i not in kept:
            continue
        row = face_rows[place] if place is not None else _new_face(seen, scale[i])
        if row["landmarks"] is None and seen["landmarks"] is not None:
            row["landmarks"] = scale[i][4:].tolist()
        row["quality"] = float(judged.parts["quality"][i])
        row["sharpness"], row["contrast"] = _rounded(seen["sharpness"]), _rounded(seen["contrast"])
        row["yaw"], row["pitch"] = _rounded(seen["yaw"]), _rounded(seen["pitch"])
        row["has_embedding"], row["observed"] = i in kept, i
        row["embedding_model"] = model if i in kept else None
        row["kept_despite"] = kept.get(i)
        row["reject_reason"] = None if i in kept else (judged.reason_text(i) or "sample_limit")
        if place is None:
            fresh.append(row)
    return face_rows + _name_new_faces(fresh, face_rows, episode)


def _gather_embeddings(rows: list[dict[str, Any]], episode: Episode, judged: _Judged) -> pa.ChunkedArray:
    """The embeddings of rows, in their order, from the observations or from the lines as they were."""
    old = episode.faces["embedding"]
    pool = pa.chunked_array([*old.chunks, schemas.embedding_lists(judged.embeddings)], old.type)
    places = [
        (len(old) + row["observed"] if "observed" in row else i) if row["has_embedding"] else None
        for i, row in enumerate(rows)
    ]
    return pool.take(pa.array(places, pa.int64()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _unscale(episode: Episode, table: pa.Table) -> NDArray[np.float64]:
    """Boxes and landmarks of observations in the episode's own unit, shape (n, 14); the boxes exactly as they were."""
    boxes = episode.boxes
    own = {
        (t, f): b
        for t, f, b in zip(
            boxes["track_id"].to_pylist(), boxes["frame_idx"].to_pylist(), boxes["bbox"].to_pylist(), strict=True
        )
    }
    pixels = schemas.matrix_of(table["bbox"], 4)
    keys = zip(table["track_id"].to_pylist(), table["frame_idx"].to_pylist(), strict=True)
    units = np.array([own[key] for key in keys]).reshape(-1, 4)
    landmarks = schemas.matrix_of(table["landmarks"], 10).reshape(-1, 5, 2)
    size_px, size_own = pixels[:, 2:] - pixels[:, :2], units[:, 2:] - units[:, :2]
    moved = (landmarks - pixels[:, None, :2]) * (size_own / size_px)[:, None] + units[:, None, :2]
    return np.concatenate([units, moved.reshape(-1, 10).round(6 if episode.is_normalised else 2)], axis=1)


def _new_face(seen: dict[str, Any], own_unit: NDArray[np.float64]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(schemas.FACE_SCHEMA.names)
    row.update(
        track_id=seen["track_id"],
        frame_idx=seen["frame_idx"],
        ts=round(seen["ts"], 4),
        bbox=own_unit[:4].tolist(),
        landmarks=None if np.isnan(own_unit[4:]).any() else own_unit[4:].tolist(),
        confidence=None if seen["confidence"] is None else round(seen["confidence"], 4),
    )
    return row


def _name_new_faces(
    fresh: list[dict[str, Any]], face_rows: list[dict[str, Any]], episode: Episode
) -> list[dict[str, Any]]:
    """Gives new faces their ids: numbered on after the highest in the documented dialect, by place in the other."""
    numbers = [int(r["face_id"].rsplit("-", 1)[-1]) for r in face_rows if r["face_id"].rsplit("-", 1)[-1].isdigit()]
    taken = {r["face_id"] for r in face_rows}
    number = max(numbers, default=0)
    for row in sorted(fresh, key=lambda r: (r["track_id"], r["frame_idx"])):
        number += 1
        face_id = format_face_id(episode.dialect, number, row["track_id"], row["frame_idx"])
        while face_id in taken:
            face_id += "_b"
        taken.add(face_id)
        row["face_id"] = face_id
    return sorted(fresh, key=lambda r: (r["track_id"], r["frame_idx"]))


def _write_pooled(episode: Episode, pooling: PoolingSettings, model: str) -> Episode:
    pooled = pool_tracks(episode, pooling)
    n_faces = Counter(episode.embedded_faces["track_id"].to_pylist())
    rows = episode.tracks.to_pylist()
    for row in rows:
        if row["track_id"] in episode.unseen_tracks:
            continue
        track = pooled.get(row["track_id"])
        row["pooled_embedding"] = None if track is None else track.vector
        row["pooled_model"] = None if track is None else model
        row["pooled_spread"] = None if track is None else round(track.spread, 4)
        row["n_faces"] = n_faces.get(row["track_id"], 0)
    return episode.replace(tracks=schemas.build_table(rows, schemas.TRACK_SCHEMA))
