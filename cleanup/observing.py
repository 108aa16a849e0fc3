"""The pass over the pixels: what is to be seen where the artifacts have faces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanup import schemas
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, VideoError
from cleanup.interfaces import Engine, ShardResult, VideoInfo
from cleanup.phases.observe import ObservationPlan, plan_observations
from cleanup.progress import ReportItems
from cleanup.report import CleanupReport
from cleanup.settings import ObserveSettings
from cleanup.video_check import VideoChoice, fit_video, format_time

# Same model, same face: a re-embedded face is near the one on disk. A median below this means another video.
_MIN_MEDIAN_SIMILARITY = 0.5


def observe(
    episode: Episode,
    actions: Sequence[str],
    settings: ObserveSettings,
    engine: Engine,
    choice: VideoChoice,
    counter: ReportItems,
    report: CleanupReport,
) -> tuple[Episode, VideoInfo]:
    """Looks at the episode's faces.

    Args:
        episode: With detections attached.
        actions: Phases of the run.
        settings: How faces are sampled and found.
        engine: Does the pass.
        choice: The video.
        counter: Told of faces done.
        report: Gets models, figures, what could not be looked at, and warnings.

    Returns:
        The episode with observations, and the video in the view that its artifacts count in.

    Raises:
        VideoError: It is not the artifacts' video, nothing of it can be looked at, or how they count cannot be told.
        ArtifactError: The embeddings on disk are not the model's, and are to be kept.
    """
    report.models = engine.describe_models(counter)
    report.engine = engine.name
    recogniser = report.models["recogniser"]
    report.warnings += [str(model["note"]) for model in report.models.values() if "note" in model]
    if "reembed" not in actions and episode.dimension not in (None, recogniser["dimension"]):
        raise ArtifactError(
            f"{episode.ep_id}: faces.jsonl holds {episode.dimension}-dimensional embeddings "
            f"(model {episode.embedding_model or 'not named'}), {recogniser['name']} gives {recogniser['dimension']}; "
            "add reembed to the actions or use the same model"
        )
    video = fit_video(episode, choice, engine, report)
    plan = plan_observations(episode, settings, video.width, video.height, video.fps or episode.fps)
    tables = plan.tables()
    results = engine.observe(episode.ep_id, video.source, tables, counter)
    seen = [r.observations for r in results if r.observations is not None and len(r.observations)]
    report.failed_shards = [
        _describe_failure(table, str(result.failure))
        for table, result in zip(tables, results, strict=True)
        if result.failure is not None
    ]
    report.unreadable = _find_unreadable(episode, tables, results)
    left = [*report.failed_shards, *report.unreadable]
    if not seen:
        raise VideoError(f"{video.source.location}: no part of it could be looked at; {left[0]['reason']}")
    observations = schemas.merge_observations(seen)
    report.observed = _describe_pass(plan, results)
    report.timings.workers = _time_workers(results)
    median = _measure_same_faces(episode, observations, recogniser, video, report)
    if left and (episode.dimension not in (None, recogniser["dimension"]) or median < _MIN_MEDIAN_SIMILARITY):
        raise VideoError(
            f"{video.source.location}: {left[0]['reason']}; its tracks cannot be left as they are, because their "
            f"embeddings are of another model than {recogniser['name']}"
        )
    report.warnings += [
        f"tracks {f['tracks']} (frames {f['first_frame']} to {f['last_frame']}) are left as they were: {f['reason']}"
        for f in left
    ]
    unseen = frozenset(t for f in left for t in f["tracks"])
    return episode.replace(observations=observations, unseen_tracks=unseen), video


def _find_unreadable(
    episode: Episode, tables: Sequence[pa.Table], results: Sequence[ShardResult]
) -> list[dict[str, Any]]:
    """Stretches with frames that the video does not give, in order of time, each with the tracks it leaves unseen."""
    reasons: dict[int, str] = {}
    tracks: dict[int, set[int]] = {}
    readable: set[int] = set()
    for table, result in zip(tables, results, strict=True):
        if result.observations is None:
            continue
        found = dict(schemas.read_provenance(result.observations).unreadable)
        sampled = table.filter(table["is_sampled"])
        readable |= set(sampled["frame_idx"].to_pylist()) - set(found)
        reasons.update(found)
        lost = sampled.filter(pc.is_in(sampled["frame_idx"], pa.array(found, pa.int64())))
        of_lineage: dict[int, set[int]] = {}
        for lineage, track in zip(table["lineage_id"].to_pylist(), table["track_id"].to_pylist(), strict=True):
            of_lineage.setdefault(lineage, set()).add(track)
        for frame, lineage in zip(lost["frame_idx"].to_pylist(), lost["lineage_id"].to_pylist(), strict=True):
            tracks.setdefault(frame, set()).update(of_lineage[lineage])
    stretches: list[dict[str, Any]] = []
    for key, group in groupby(sorted(readable | set(reasons)), key=reasons.get):
        if key is not None:
            frames = list(group)
            first_s, last_s = frames[0] / episode.fps, frames[-1] / episode.fps
            stretches.append(
                {"tracks": sorted(set().union(*(tracks[f] for f in frames))), "first_frame": frames[0],
                 "last_frame": frames[-1], "first_s": round(first_s, 3), "last_s": round(last_s, 3),
                 "reason": f"the video {key} from {format_time(first_s)} to {format_time(last_s)}"}
            )  # fmt: skip
    return stretches


def _describe_pass(plan: ObservationPlan, results: Sequence[ShardResult]) -> dict[str, int]:
    """The report's figures on the pass over the pixels: what was planned, and what was done in this run for it."""
    tables = [(r.observations, r.n_attempts > 0) for r in results if r.observations is not None]
    fresh = [table for table, is_fresh in tables if is_fresh]
    provenances = [schemas.read_provenance(table) for table in fresh]
    return {
        "frames": sum(len(pc.unique(table["frame_idx"])) for table, _ in tables),
        "faces": plan.n_faces,
        "faces_refined": sum(len(table) - schemas.count_sampled(table) for table, _ in tables),
        "shards": len(results),
        "shards_from_checkpoints": sum(r.n_attempts == 0 for r in results),
        "shards_retried": sum(r.n_attempts > 1 for r in results),
        "shards_failed": sum(r.failure is not None for r in results),
        "frames_decoded": sum(p.n_frames for p in provenances),
        "faces_embedded": sum(len(table) - table["embedding"].null_count for table in fresh),
        "workers": len({p.worker for p in provenances}),
    }


def _time_workers(results: Sequence[ShardResult]) -> list[dict[str, float]]:
    """Busy seconds by step of each worker that did something in this run."""
    workers: dict[str, Counter[str]] = {}
    for result in results:
        if result.observations is not None and result.n_attempts > 0:
            provenance = schemas.read_provenance(result.observations)
            workers.setdefault(provenance.worker, Counter()).update(provenance.timings)
    return [dict(steps) for steps in workers.values()]


def _describe_failure(shard: pa.Table, reason: str) -> dict[str, Any]:
    """A shard that failed for good, as the report keeps it."""
    frames = pc.min_max(shard["frame_idx"])
    tracks = sorted(pc.unique(shard["track_id"]).to_pylist())
    return {
        "tracks": tracks,
        "first_frame": frames["min"].as_py(),
        "last_frame": frames["max"].as_py(),
        "reason": reason,
    }


def _measure_same_faces(
    episode: Episode, observations: pa.Table, recogniser: Mapping[str, Any], video: VideoInfo, report: CleanupReport
) -> float:
    """Median similarity of re-embedded faces to those on disk: a video that only looks right is found out here."""
    if episode.dimension != recogniser["dimension"]:
        return 1.0
    seen = observations.filter(pc.is_valid(observations["embedding"]))
    place = {
        key: i for i, key in enumerate(zip(seen["track_id"].to_pylist(), seen["frame_idx"].to_pylist(), strict=True))
    }
    faces = episode.embedded_faces
    keys = zip(faces["track_id"].to_pylist(), faces["frame_idx"].to_pylist(), strict=True)
    pairs = [(i, place[key]) for i, key in enumerate(keys) if key in place]
    if not pairs:
        return 1.0
    old, new = (np.array(side) for side in zip(*pairs, strict=True))
    similarity = (schemas.embeddings_of(faces)[old] * schemas.embeddings_of(seen)[new]).sum(axis=1)
    median = float(np.median(similarity))
    if median >= _MIN_MEDIAN_SIMILARITY:
        return median
    if episode.embedding_model == recogniser["name"]:
        raise VideoError(
            f"{video.source.location}: the faces at the boxes of {episode.ep_id} are not those in faces.jsonl (median "
            f"similarity {median:.2f} with the same model); give the video the artifacts were made from, in the same "
            "resolution"
        )
    report.warnings.append(
        f"re-embedded faces have a median similarity of {median:.2f} to those on disk: another model, or another video"
    )
    return median
