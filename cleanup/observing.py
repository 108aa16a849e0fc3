"""The pass over the pixels: is this the right video, how do the artifacts count in it, and what is to be seen there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, VideoError
from cleanup.interfaces import Engine, ShardResult, VideoInfo
from cleanup.phases.observe import ObservationPlan, plan_observations
from cleanup.phases.video_fit import (
    ALL_SHIFTS,
    MAX_COST,
    NEAR_SHIFTS,
    ShiftFinding,
    build_table,
    choose_probes,
    find_shifts,
    is_better,
    measure_costs,
)
from cleanup.progress import ReportItems, ignore_items
from cleanup.report import CleanupReport
from cleanup.settings import ObserveSettings

# Same model, same face: a re-embedded face is near the one on disk. A median below this means another video.
_MIN_MEDIAN_SIMILARITY = 0.5
# Mean cost of the probes from which most of them show somebody or something else.
_MAX_FIT = 0.5


@dataclass(frozen=True)
class VideoChoice:
    """What a run is given to look at.

    Attributes:
        views: The video in every view that artifacts may count in, as it is stored first.
        rotation: ``auto``, ``ignore`` or ``apply``: whether boxes lie in the picture as its display matrix turns it.
        is_shift_trusted: Whether the frame shift of the views was given by hand, and is taken as it is.
    """

    views: Sequence[VideoInfo]
    rotation: str = "auto"
    is_shift_trusted: bool = False


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


def format_time(seconds: float) -> str:
    """A place in a video as players show it: minutes, or hours and minutes, and seconds with tenths."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def fit_video(episode: Episode, choice: VideoChoice, engine: Engine, report: CleanupReport) -> VideoInfo:
    """The video in the view that the artifacts count in.

    Raises:
        VideoError: It is not the one they were made from, its frames are shifted, or the view cannot be told.
    """
    first = choice.views[0]
    _check_rate(episode, first)
    report.warnings += [f"{first.source.location}: {note}" for note in first.notes]
    views = _views_by_hand(choice)
    views = [view for view in views if _holds_boxes(episode, view)]
    if not views:
        _refuse_size(episode, first)
    check = _FitCheck(episode, engine, report)
    if len(views) > 1:
        views = [check.choose_view(views)]
    video = views[0]
    if not choice.is_shift_trusted:
        check.check_shift(video)
    _check_length(episode, video)
    report.video = {
        "frame_shift": video.source.view.frame_shift,
        "is_turned": video.source.view.is_turned,
        "is_stretched": video.source.view.is_stretched,
        "width": video.width,
        "height": video.height,
        "frames": video.n_frames,
        "fps": round(video.fps, 3),
    }
    if len(choice.views) > 1:
        report.warnings.append(_tell_view(video, choice))
    return video


def _views_by_hand(choice: VideoChoice) -> list[VideoInfo]:
    """The views that ``--rotation`` leaves; a video without a display matrix has no other."""
    if choice.rotation == "auto":
        return list(choice.views)
    is_turned = choice.rotation == "apply"
    kept = [view for view in choice.views if view.source.view.is_turned == is_turned]
    return kept or list(choice.views)


def _tell_view(video: VideoInfo, choice: VideoChoice) -> str:
    view = video.source.view
    parts = ["turned as its display matrix says" if view.is_turned else "not turned"] if _can_turn(choice) else []
    if any(v.source.view.is_stretched for v in choice.views):
        parts.append("with its pixels made square" if view.is_stretched else "with its pixels as they are stored")
    return f"the artifacts count in the picture {' and '.join(parts)} ({video.width}x{video.height})"


def _can_turn(choice: VideoChoice) -> bool:
    return any(view.source.view.is_turned for view in choice.views)


class _FitCheck:
    """Looks at some faces of an episode to tell how its artifacts count in a video."""

    def __init__(self, episode: Episode, engine: Engine, report: CleanupReport) -> None:
        self._episode, self._engine, self._report = episode, engine, report
        self._probes = choose_probes(episode)
        has_landmarks = (
            bool(np.isfinite(self._probes.landmarks).all(axis=1).mean() > 0.5) if len(self._probes) else False
        )
        self._has_landmarks = has_landmarks
        is_same_model = episode.dimension == report.models["recogniser"]["dimension"]
        # Whether the detector finds the faces, or they are taken where the artifacts have them; the best way first.
        self._ways = [False] if is_same_model and has_landmarks else []
        self._ways += [True] if "detector" in report.models and len(self._probes) else []

    def _measure(self, video: VideoInfo, shifts: Sequence[int], *, is_detected: bool) -> NDArray[np.float64]:
        is_normalised = self._episode.is_normalised
        table = build_table(self._probes, video, shifts, is_detected=is_detected, is_normalised=is_normalised)
        (result,) = self._engine.observe(self._episode.ep_id, video.source, [table], ignore_items)
        if result.observations is None:
            return np.full((len(self._probes), len(shifts)), np.nan)
        return measure_costs(
            self._probes, video, len(shifts), result.observations, is_detected=is_detected,
            is_normalised=is_normalised,
        )  # fmt: skip

    def choose_view(self, views: Sequence[VideoInfo]) -> VideoInfo:
        """The view in which the faces are where the artifacts say.

        Raises:
            VideoError: They are as well where the picture is turned as where it is not.
        """
        for is_detected in self._ways:
            costs = [self._measure(view, [0], is_detected=is_detected)[:, 0] for view in views]
            order = sorted(range(len(views)), key=lambda k: float(np.nanmean(costs[k])))
            best = order[0]
            is_turned = views[best].source.view.is_turned
            others = [k for k in order if views[k].source.view.is_turned != is_turned]
            if np.nanmean(costs[best]) < _MAX_FIT and all(is_better(costs[best], costs[k]) for k in others):
                return views[best]
        if len({view.source.view.is_turned for view in views}) > 1:
            raise VideoError(
                f"{views[0].source.location}: its picture is to be shown turned or mirrored, and its faces do not tell "
                f"whether the artifacts of {self._episode.ep_id} count in it as it is shown; say --rotation apply, or "
                "--rotation ignore if they count in it as it is stored"
            )
        return views[0]

    def check_shift(self, video: VideoInfo) -> None:
        """Checks that frame n of the artifacts is frame n of the video.

        Raises:
            VideoError: It is another one.
        """
        for is_detected in self._ways:
            shifts: Sequence[int] = NEAR_SHIFTS
            costs = self._measure(video, shifts, is_detected=is_detected)
            findings = find_shifts(self._probes, costs, shifts)
            if any(finding.shift or finding.cost > MAX_COST for finding in findings):
                shifts = ALL_SHIFTS
                costs = self._measure(video, shifts, is_detected=is_detected)
                findings = find_shifts(self._probes, costs, shifts)
            if max(finding.cost for finding in findings) < _MAX_FIT:
                self._judge(video, findings, is_sure=self._has_landmarks)
                return

    def _judge(self, video: VideoInfo, findings: Sequence[ShiftFinding], *, is_sure: bool) -> None:
        if all(finding.shift == 0 for finding in findings):
            return
        location, fps = video.source.location, self._episode.fps
        if len(findings) == 1:
            shift = findings[0].shift
            message = (
                f"{location}: its frames are shifted by {shift} against {self._episode.ep_id}: what the artifacts say "
                f"of frame 100 is seen in frame {100 + shift}; give the video they were made from, or --frame-shift "
                f"{shift}"
            )
        else:
            parts = ", ".join(
                f"by {f.shift} from {format_time(f.first_frame / fps)} to {format_time(f.last_frame / fps)}"
                for f in findings
            )
            message = (
                f"{location}: its frames are shifted against {self._episode.ep_id}, not alike everywhere ({parts}): "
                "frames are missing in it or in the video that the artifacts were made from; give that one"
            )
        if is_sure:
            raise VideoError(message)
        self._report.warnings.append(message)


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


def _check_rate(episode: Episode, video: VideoInfo) -> None:
    if video.fps and abs(video.fps - episode.fps) > 0.05 * episode.fps:
        raise VideoError(
            f"{video.source.location}: {video.fps:.3f} frames per second, but the artifacts count {episode.fps:.3f}; "
            "give the video they were made from"
        )


def _check_length(episode: Episode, video: VideoInfo) -> None:
    """A video that is shifted by hand may miss as many frames at one end; of another nothing may be missing."""
    last_frame = int(schemas.ints_of(episode.boxes, "frame_idx").max())
    shift = video.source.view.frame_shift
    if last_frame >= video.n_frames + max(-shift, 0):
        raise VideoError(
            f"{video.source.location}: {video.n_frames} frames, but {episode.ep_id} has a face in frame {last_frame}; "
            f"it is shorter than the one the artifacts were made from{''.join(f'; {note}' for note in video.notes)}"
        )


def _box_centres(episode: Episode) -> NDArray[np.float64]:
    boxes = schemas.matrix_of(episode.boxes["bbox"], 4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _holds_boxes(episode: Episode, video: VideoInfo) -> bool:
    """Whether the centres of all boxes lie in the picture."""
    if episode.is_normalised:
        return True
    centres = _box_centres(episode)
    return not ((centres < 0) | (centres > [video.width, video.height])).any()


def _refuse_size(episode: Episode, video: VideoInfo) -> None:
    raise VideoError(
        f"{video.source.location}: {video.width}x{video.height}, but {episode.ep_id} has faces as far as "
        f"{_box_centres(episode).max(axis=0).round().astype(int).tolist()}; it has another resolution than the video "
        "the artifacts were made from"
    )


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
