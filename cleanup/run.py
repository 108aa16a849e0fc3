"""The one run(): the pass over the pixels if a phase needs it, the phases in order, figures before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanup import schemas
from cleanup.algorithms.similarity_scale import SimilarityScale
from cleanup.conservation import check_conservation
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, InvariantError, VideoError
from cleanup.interfaces import Engine, Facebank, RunMany, ShardResult, VideoInfo, run_in_turn
from cleanup.phases.group_clusters import group_clusters
from cleanup.phases.identity_rows import refresh_identity_figures
from cleanup.phases.observe import ObservationPlan, attach_detections, plan_observations
from cleanup.phases.photo_matching import PhotoMatcher
from cleanup.phases.recluster import recluster
from cleanup.phases.reembed import reembed
from cleanup.phases.split_tracks import split_tracks
from cleanup.progress import PhaseProgress, ReportItems, ReportProgress
from cleanup.report import CleanupReport, find_scale_warnings, find_warnings, measure_episode
from cleanup.settings import Settings

# Same model, same face: a re-embedded face is near the one on disk. A median below this means another video.
_MIN_MEDIAN_SIMILARITY = 0.5


@dataclass(frozen=True)
class RunContext:
    """What the phases are run with.

    Attributes:
        settings: All settings.
        engine: Runs the pass over the pixels and the final task; None where no phase needs pixels.
        video: The video; None as above.
        facebank: Known people, or None where there are none; ``facebank_note`` then says why.
        facebank_note: See above.
        show: Show whose people are looked up.
        model: Name of the recogniser, or None where the run loads none.
        run_many: Runs independent parts of a large computation side by side.
        hold_people: Called before the Facebank is read for changes that will be written.
        calibration: The model's scale as it was measured on photos, or None.
    """

    settings: Settings
    engine: Engine | None
    video: VideoInfo | None
    facebank: Facebank | None
    facebank_note: str
    show: str
    model: str | None
    run_many: RunMany = run_in_turn
    hold_people: Callable[[], None] = lambda: None
    calibration: SimilarityScale | None = None


Phase = Callable[[Episode, RunContext, ReportItems], tuple[Episode, dict[str, Any]]]


def _split_tracks(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    return split_tracks(episode, context.settings.split_tracks, report, context.calibration)


def _reembed(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    assert context.video is not None and context.model is not None
    settings = context.settings
    height, known = context.video.height, context.calibration
    return reembed(episode, settings.reembed, settings.pooling, context.model, height, report, known)


def _recluster(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    settings, photos = context.settings, None
    model = context.model or episode.embedding_model
    if context.facebank is not None and model is not None:
        photos = PhotoMatcher(context.facebank, context.show, model, settings.group_clusters, context.calibration)
    known, run_many = context.calibration, context.run_many
    return recluster(episode, settings.recluster, settings.pooling, report, run_many, known, photos)


def _group_clusters(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    if context.facebank is None:
        return episode, {"clusters_grouped": 0, "auto_assigned_identities": 0, "ambiguous": [],
                         "grouping": empty_grouping(), "warnings": [context.facebank_note]}  # fmt: skip
    model = context.model or episode.embedding_model
    if model is None:
        raise ArtifactError(
            f"{episode.ep_id}: faces.jsonl does not say which model its embeddings were made with, so they cannot be "
            "compared with the Facebank; run reembed as well, or name the model's folder with --models"
        )
    report(0, 1, "matching against the Facebank")
    context.hold_people()
    settings = context.settings
    # What crosses to another process is the episode without its observations: grouping needs only the faces.
    slim = episode.replace(observations=None, detections=None, stored_faces=None)
    arguments = (slim, settings.group_clusters, settings.pooling, context.show, model, context.facebank,
                 context.calibration)  # fmt: skip
    if context.engine is None:
        grouped, outcome = group_clusters(*arguments)
    else:
        grouped, outcome = context.engine.run_final(group_clusters, *arguments)
    report(1, 1)
    return episode.replace(identities=grouped.identities), outcome


def empty_grouping() -> dict[str, Any]:
    """The report's grouping where nothing was compared."""
    return {
        "counts": {},
        "centroids": {},
        "within_episode": {"groups": [], "merged_count": 0, "protected_pairs": []},
        "across_episodes": {
            "assigned": [], "suggestions": [], "ambiguous": [], "conflicts": [], "disagreements": [],
            "new_people_count": 0, "new_people": [], "warnings": [],
        },
    }  # fmt: skip


PHASES: Mapping[str, Phase] = {
    "split_tracks": _split_tracks,
    "reembed": _reembed,
    "recluster": _recluster,
    "group_clusters": _group_clusters,
}
PIXEL_PHASES = frozenset({"split_tracks", "reembed"})
FACEBANK_PHASES = frozenset({"recluster", "group_clusters"})


def run(
    episode: Episode, actions: Sequence[str], context: RunContext, progress: ReportProgress, report: CleanupReport
) -> Episode:
    """Runs phases over an episode and fills in the report. Writes nothing.

    Args:
        episode: As read.
        actions: Phase names, in the order of PHASES.
        context: Settings and the outside world.
        progress: Told where the run stands.
        report: Gets figures, phase results, models and warnings.

    Returns:
        The refined episode.

    Raises:
        InvariantError: The result loses something or breaks a lock.
        CleanupError: Any of its kinds; the episode given is untouched.
    """
    original = episode = attach_detections(episode, context.settings.observe)
    if context.video is not None:
        episode = episode.replace(duration_s=context.video.duration_s)
    if context.engine is not None and context.video is not None:
        first = next(name for name in actions if name in PIXEL_PHASES)
        counter = _PhaseCounter(progress, actions, first)
        counter(0, 0, "loading models")
        with report.timings.measure("observe"):
            episode = _observe(episode, actions, context, counter, report)
    with report.timings.measure("measure"):
        report.before = measure_episode(episode, context.settings.split_tracks, context.calibration)
    for name in actions:
        counter = _PhaseCounter(progress, actions, name)
        counter(0, 1)
        with report.timings.measure(name):
            episode, outcome = PHASES[name](episode, context, counter)
        report.plan = outcome.pop("plan", report.plan)
        report.phases[name] = outcome
        report.actions.append(name)
        report.warnings += outcome.get("warnings", [])
        counter(1, 1)
    problems = check_conservation(original, episode, is_reclustered="recluster" in actions)
    if problems:
        raise InvariantError(f"{episode.ep_id}: internal error, nothing was written ({problems[0]})", problems)
    with report.timings.measure("measure"):
        episode = refresh_identity_figures(episode, context.settings.pooling, context.settings.recluster)
        report.after = measure_episode(episode, context.settings.split_tracks, context.calibration)
    report.warnings += find_scale_warnings(report.phases.values())
    report.warnings += find_warnings(report.after, context.settings.recluster)
    return episode


class _PhaseCounter:
    """Turns counts inside a phase into progress events."""

    def __init__(self, progress: ReportProgress, actions: Sequence[str], name: str) -> None:
        self._progress, self._name = progress, name
        self._index, self._total = list(actions).index(name) + 1, len(actions)

    def __call__(self, done: int, total: int, message: str = "") -> None:
        self._progress(PhaseProgress(self._name, self._index, self._total, done, total, message))


def _observe(
    episode: Episode, actions: Sequence[str], context: RunContext, counter: ReportItems, report: CleanupReport
) -> Episode:
    engine, video = context.engine, context.video
    assert engine is not None and video is not None
    check_video(episode, video)
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
    plan = plan_observations(episode, context.settings.observe, video.width, video.height, video.fps)
    tables = plan.tables()
    results = engine.observe(episode.ep_id, video.path, tables, counter)
    seen = [r.observations for r in results if r.observations is not None]
    if not seen:
        raise VideoError(f"{episode.ep_id}: no part of the video could be looked at; {results[0].failure}")
    observations = schemas.merge_observations(seen)
    report.observed = _describe_pass(plan, results)
    report.timings.workers = _time_workers(results)
    median = _measure_same_faces(episode, observations, recogniser, video, report)
    failed = [(table, result) for table, result in zip(tables, results, strict=True) if result.failure is not None]
    if failed and (episode.dimension not in (None, recogniser["dimension"]) or median < _MIN_MEDIAN_SIMILARITY):
        raise VideoError(
            f"{failed[0][1].failure}; its tracks cannot be left as they are, because their embeddings are of another "
            f"model than {recogniser['name']}"
        )
    report.failed_shards = [_describe_failure(table, str(result.failure)) for table, result in failed]
    report.warnings += [
        f"tracks {f['tracks']} (frames {f['first_frame']} to {f['last_frame']}) are left as they were: {f['reason']}"
        for f in report.failed_shards
    ]
    unseen = frozenset(t for f in report.failed_shards for t in f["tracks"])
    return episode.replace(observations=observations, unseen_tracks=unseen)


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


def check_video(episode: Episode, video: VideoInfo) -> None:
    """Checks that a video can be the one the artifacts came from.

    Raises:
        VideoError: It is shorter, runs at another rate, or is smaller than the boxes say.
    """
    last_frame = int(schemas.ints_of(episode.boxes, "frame_idx").max())
    if last_frame >= video.n_frames:
        raise VideoError(
            f"{video.path}: {video.n_frames} frames, but {episode.ep_id} has a face in frame {last_frame}; it "
            "is shorter than the one the artifacts were made from"
        )
    if abs(video.fps - episode.fps) > 0.05 * episode.fps:
        raise VideoError(
            f"{video.path}: {video.fps:.3f} frames per second, but the artifacts count {episode.fps:.3f}; give the "
            "video they were made from"
        )
    if not episode.is_normalised:
        boxes = schemas.matrix_of(episode.boxes["bbox"], 4)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        outside = (centres < 0) | (centres > [video.width, video.height])
        if outside.any():
            raise VideoError(
                f"{video.path}: {video.width}x{video.height}, but {episode.ep_id} has faces as far as "
                f"{centres.max(axis=0).round().astype(int).tolist()}; it has another resolution than the video the "
                "artifacts were made from"
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
            f"{video.path}: the faces at the boxes of {episode.ep_id} are not those in faces.jsonl (median similarity "
            f"{median:.2f} with the same model); give the video the artifacts were made from, in the same resolution"
        )
    report.warnings.append(
        f"re-embedded faces have a median similarity of {median:.2f} to those on disk: another model, or another video"
    )
    return median
