"""The one run(): the pass over the pixels if a phase needs it, the phases in order, figures before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cleanup.algorithms.similarity_scale import SimilarityScale
from cleanup.conservation import check_conservation
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, InvariantError
from cleanup.interfaces import Engine, Facebank, RunMany, run_in_turn
from cleanup.observing import observe
from cleanup.phases.group_clusters import group_clusters
from cleanup.phases.identity_rows import refresh_identity_figures
from cleanup.phases.observe import attach_detections
from cleanup.phases.photo_matching import PhotoMatcher
from cleanup.phases.recluster import recluster
from cleanup.phases.reembed import reembed
from cleanup.phases.split_tracks import split_tracks
from cleanup.progress import PhaseProgress, ReportItems, ReportProgress
from cleanup.report import CleanupReport, find_scale_warnings, find_warnings, measure_episode
from cleanup.settings import Settings
from cleanup.video_check import VideoChoice


@dataclass(frozen=True)
class RunContext:
    """What the phases are run with.

    Attributes:
        settings: All settings.
        engine: Runs the pass over the pixels and the final task; None where no phase needs pixels.
        video: The video and how artifacts may count in it; None as above.
        facebank: Known people, or None where there are none; ``facebank_note`` then says why.
        facebank_note: See above.
        show: Show whose people are looked up.
        model: Name of the recogniser, or None where the run loads none.
        run_many: Runs independent parts of a large computation side by side.
        hold_people: Called before the Facebank is read for changes that will be written.
        calibration: The model's scale as it was measured on photos, or None.
        height: Of the picture that the artifacts count in, in pixels; None until it was looked at.
    """

    settings: Settings
    engine: Engine | None
    video: VideoChoice | None
    facebank: Facebank | None
    facebank_note: str
    show: str
    model: str | None
    run_many: RunMany = run_in_turn
    hold_people: Callable[[], None] = lambda: None
    calibration: SimilarityScale | None = None
    height: int | None = None


Phase = Callable[[Episode, RunContext, ReportItems], tuple[Episode, dict[str, Any]]]


def _split_tracks(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    return split_tracks(episode, context.settings.split_tracks, report, context.calibration)


def _reembed(episode: Episode, context: RunContext, report: ReportItems) -> tuple[Episode, dict[str, Any]]:
    assert context.height is not None and context.model is not None
    settings = context.settings
    height, known = context.height, context.calibration
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
    if context.engine is not None and context.video is not None:
        first = next(name for name in actions if name in PIXEL_PHASES)
        counter = _PhaseCounter(progress, actions, first)
        counter(0, 0, "loading models")
        observing = context.settings.observe
        with report.timings.measure("observe"):
            episode, video = observe(episode, actions, observing, context.engine, context.video, counter, report)
        episode, context = episode.replace(duration_s=video.duration_s), replace(context, height=video.height)
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
