"""One cleanup of one episode, from options to written files: the wiring that the command line and the jobs share."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import make_run_id
from cleanup.edges.finished_run import compute_fingerprint, read_finished, write_finished
from cleanup.edges.model_files import sha256_of_file
from cleanup.edges.progress_file import ProgressFile
from cleanup.edges.remote_files import is_url
from cleanup.edges.root_path import RootPath
from cleanup.edges.shard_checkpoints import CheckpointedEngine, compute_pass_key
from cleanup.edges.stoppable import stoppable
from cleanup.entrypoints.episode_output import Output, open_output
from cleanup.entrypoints.people_labels import relabel_episodes
from cleanup.entrypoints.run_tools import Tools, find_view, node_cache, worker_spec
from cleanup.entrypoints.stop_signals import last_words, stop_held
from cleanup.episode import Episode
from cleanup.errors import SettingsError, VideoError, describe_error
from cleanup.interfaces import VideoView
from cleanup.names import EpId, RunId, show_of
from cleanup.progress import PhaseProgress, ReportProgress
from cleanup.report import CleanupReport
from cleanup.resolve_settings import ResolvedSettings
from cleanup.run import FACEBANK_PHASES, PHASES, PIXEL_PHASES, RunContext, run
from cleanup.settings import SPECS
from cleanup.video_check import VideoChoice

# Libraries for pixels, models and PostgreSQL are imported where a run turns out to need them.
if TYPE_CHECKING:
    from cleanup.edges.frame_counts import FrameCounts
    from cleanup.edges.postgres_calibrations import KnownScales
    from cleanup.edges.postgres_facebank import PostgresFacebank
    from cleanup.edges.postgres_server import ShowHold

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeJob:
    """What is asked for.

    Attributes:
        ep_id: Episode id.
        root: Data root.
        actions: Phases in canonical order.
        settings: Resolved settings.
        video: Path or URL of a video given explicitly, or None for the one under the data root.
        write_back: Whether artifacts are replaced.
        progress_file: Where progress goes, or None for the usual place.
        is_resume: Whether checkpointed shards are used.
        skips_unchanged: Whether nothing is done where the last finished run depended on the very same inputs.
    """

    ep_id: EpId
    root: DataRoot
    actions: tuple[str, ...]
    settings: ResolvedSettings
    video: str | None = None
    write_back: bool = False
    progress_file: Path | None = None
    is_resume: bool = True
    skips_unchanged: bool = False

    def progress_path(self, run_id: RunId) -> RootPath:
        """Where a run of the job says how far it is."""
        if self.progress_file is not None:
            return RootPath.of_file(self.progress_file)
        return self.paths.progress if self.write_back else self.paths.runs / run_id / self.paths.progress.name

    @property
    def paths(self) -> EpisodePaths:
        """Where the episode's files are."""
        return self.root.paths(self.ep_id)


def parse_actions(values: Sequence[str] | None) -> tuple[str, ...]:
    """Phase names, given one by one or joined by commas or spaces, in canonical order; all of them if none is given.

    Raises:
        SettingsError: An unknown name.
    """
    names = [n for value in values or () for n in value.replace(",", " ").split()]
    unknown = [n for n in names if n not in PHASES]
    if unknown:
        raise SettingsError(f"--actions: unknown {', '.join(unknown)}; known: {', '.join(PHASES)}")
    return tuple(n for n in PHASES if n in names or not names)


def _nobody_stops() -> bool:
    return False


class _Stop:
    """Until when a run can be stopped: up to where it begins to replace the files, and no longer.

    Args:
        is_requested: Whether somebody asked for it.
    """

    def __init__(self, is_requested: Callable[[], bool]) -> None:
        self._is_requested = is_requested
        self.is_too_late = False

    def is_wanted(self) -> bool:
        """Whether the run is to stop, and still can."""
        return self._is_requested() and not self.is_too_late

    def check(self) -> None:
        """Called at every step.

        Raises:
            KeyboardInterrupt: The run is to stop.
        """
        if self.is_wanted():
            raise KeyboardInterrupt

    def end(self, stack: contextlib.ExitStack) -> None:
        """The last look: what follows replaces the files, and then the run is done. Signals wait for the stack."""
        stack.enter_context(stop_held())
        self.check()
        self.is_too_late = True


def run_episode_job(
    job: EpisodeJob,
    on_progress: ReportProgress | None = None,
    is_stop_requested: Callable[[], bool] = _nobody_stops,
    tools: Tools | None = None,
    on_record: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs a job: lock, read, refine, check, and with write-back replace the episode's files in one commit.

    Args:
        job: What is asked for.
        on_progress: Told where the run stands, beside the progress file.
        is_stop_requested: Asked at every step of progress; a run that is stopped, or fails because of an interrupt,
            says "canceled".
        tools: Engine and Facebank shared with other runs; None makes them for this run.
        on_record: Given whatever the progress file gets.

    Returns:
        The report, as it was written; with ``unchanged`` true, the last run's, if nothing was to be done.

    Raises:
        KeyboardInterrupt: A stop was asked for.
        CleanupError: Of any kind; the episode's files are as they were, or the message says that they are committed.
    """
    job.root.check_episode(job.ep_id)
    stop = _Stop(is_stop_requested)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stoppable(stop.is_wanted))
        if tools is None:
            tools = stack.enter_context(Tools(job.settings, job.root))
        held = stack.enter_context(job.root.hold(job.ep_id))
        paths, remote = held.paths, job.root.remote
        inputs = _Inputs(job, tools)
        if job.skips_unchanged:
            finished = read_finished(paths, inputs.compute_fingerprint())
            if finished is not None:
                return {**finished, "unchanged": True}
        if remote is not None and job.is_resume:
            remote.fetch_checkpoints(job.ep_id)
        run_id = make_run_id()
        run_folder = paths.runs / run_id
        run_folder.mkdir()
        stack.callback(_remove_if_empty, run_folder)
        progress = ProgressFile(job.progress_path(run_id), job.ep_id, run_id, remote, on_record)

        def fail(error: str) -> None:
            # Once the files are being replaced a stop is no cancellation any more.
            progress.fail(error, is_canceled=not stop.is_too_late)

        stack.enter_context(last_words(lambda: fail("ended at once by a second stop; no file is half written")))

        def tell(event: PhaseProgress) -> None:
            progress(event)
            if on_progress is not None:
                on_progress(event)
            inputs.touch()
            stop.check()

        n_backups = job.settings.settings.output.keep_backups
        started = time.monotonic()
        try:
            output = stack.enter_context(open_output(held, run_id, n_backups, is_written_back=job.write_back))
            with output.violations_bundled({"actions": job.actions, "settings": job.settings.describe()}):
                refined = _refine(job, run_id, inputs, tools, tell, stack)
                output.stage(refined.episode, refined.report)
            with contextlib.ExitStack() as unstoppable:

                def begin_writing() -> None:
                    inputs.check()
                    stop.end(unstoppable)

                relabelled = _record_people(job, refined.report, inputs, output, begin_writing)
                record = output.commit(refined.report, started)
                _end(job, refined, inputs, progress, record, relabelled)
        except BaseException as error:
            with _failure_logged(job.ep_id, "failed"):
                if stop.is_wanted() or (isinstance(error, KeyboardInterrupt) and not stop.is_too_late):
                    fail("interrupted; no file is half written")
                else:
                    progress.fail(describe_error(error) or f"{type(error).__name__}: {error}")
            raise
        return record


def _remove_if_empty(run_folder: RootPath) -> None:
    with contextlib.suppress(OSError):  # a run that wrote its report elsewhere has put nothing there
        run_folder.rmdir()


@contextlib.contextmanager
def _failure_logged(ep_id: str, outcome: str) -> Iterator[None]:
    """For what only notes an outcome or tidies up: if a disk, storage or memory fails it, the outcome is what it is."""
    try:
        yield
    except Exception as error:
        line = describe_error(error)
        if line is None:
            raise
        _log.warning("%s has %s, but: %s", ep_id, outcome, line)


def _record_people(
    job: EpisodeJob, report: CleanupReport, inputs: _Inputs, output: Output, begin_writing: Callable[[], None]
) -> list[str]:
    """Who is who goes into the Facebank, unless something speaks against writing; gives the episodes it relabels.

    Before the files: a server that is gone by now leaves them as they were, and the next run records the same. What
    begins to write is called when all that is left of it is to make it last.
    """
    output.check()
    if not job.write_back or inputs.facebank is None or report.plan is None:
        begin_writing()
        return []
    return inputs.facebank.people.record(report.plan, f"run {report.run_id}", begin_writing)


def _end(
    job: EpisodeJob,
    refined: _Refined,
    inputs: _Inputs,
    progress: ProgressFile,
    record: dict[str, Any],
    relabelled: Sequence[str],
) -> None:
    """What is left to do once the files are written; the run has succeeded whatever becomes of it."""
    if relabelled and inputs.facebank is not None and inputs.hold is not None:
        n_backups = job.settings.settings.output.keep_backups
        for failure in relabel_episodes(job.root, inputs.facebank, inputs.hold, relabelled, n_backups):
            _log.warning("%s is finished, but %s", job.ep_id, failure)
    with _failure_logged(job.ep_id, "finished"):
        if refined.engine is not None:
            refined.engine.remove_unused()
    with _failure_logged(job.ep_id, "finished"):
        # A shard that failed may succeed another time, so a run that has one is not done.
        if not record["failed_shards"]:
            finished_path = write_finished(job.paths, inputs.compute_fingerprint(), record)
            if job.root.remote is not None:
                job.root.remote.put(finished_path)
    with _failure_logged(job.ep_id, "finished"):
        progress.finish(record)


# Sections and settings that say where a run works and not what comes out of it.
_PLACES = frozenset({"cluster", "storage", "engine", "models", "facebank_dsn", "keep_backups"})


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None where there is none any more."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


class _Inputs:
    """What a run depends on beside the episode's artifacts, each looked up once."""

    def __init__(self, job: EpisodeJob, tools: Tools) -> None:
        self._job, self._tools = job, tools
        self.hold: ShowHold | None = None
        self._stamp: tuple[int, int, int] | None = None

    def hold_people(self, stack: contextlib.ExitStack) -> None:
        """From the matching to the commit nobody else may change the show's people; the stack lets go of them."""
        assert self.facebank is not None
        self.hold = stack.enter_context(self.facebank.hold_show(self.show))

    def check(self) -> None:
        """Makes sure that the people are still held, and that the video is the one the run began with.

        Raises:
            VideoError: It was changed.
            FacebankError: They are not held any more.
        """
        if self.hold is not None:
            self.hold.check()
        self._check_video()

    def touch(self) -> None:
        """Shows whoever waits for the people that this run goes on, and looks at the video.

        Raises:
            VideoError: It was changed.
        """
        if self.hold is not None:
            self.hold.touch()
        self._check_video()

    @cached_property
    def video(self) -> str | None:
        """Path or URL of the video if a phase needs pixels; without one the gate works on what faces.jsonl holds."""
        job = self._job
        if not PIXEL_PHASES & set(job.actions):
            return None
        found = job.video or job.root.find_video(job.ep_id)
        if found is None and "reembed" in job.actions:
            raise VideoError(f"{job.root.show(job.paths.video)}: no video, and reembed needs it; give one with --video")
        return found

    @property
    def local_video(self) -> Path:
        """The video on this machine."""
        assert self.video is not None
        if is_url(self.video):
            return node_cache(self._job.settings).fetch(self.video)
        path = Path(self.video)
        if not path.is_file():
            raise VideoError(f"{path}: no such video; give it with --video")
        return path

    @cached_property
    def video_sha256(self) -> str:
        """Digest of the video as it is when it is asked for first."""
        path = self.local_video
        self._stamp = _stamp_of(path)
        return sha256_of_file(path)

    def _check_video(self) -> None:
        if self._stamp is None or self.video is None or is_url(self.video):
            return  # nothing is read of it, or a copy that nobody changes
        if _stamp_of(Path(self.video)) != self._stamp:
            raise VideoError(
                f"{self.video}: changed while the run read it; if it is being written or copied, wait until it is whole"
            )

    @property
    def frame_counts(self) -> FrameCounts:
        """What was counted of the frames of videos on this machine."""
        from cleanup.edges.frame_counts import FrameCounts

        return FrameCounts(node_cache(self._job.settings).folder)

    @cached_property
    def facebank(self) -> PostgresFacebank | None:
        """The Facebank, if it is there: every phase stands on what it knows of the model's scale."""
        return self._tools.facebank

    @cached_property
    def scales(self) -> KnownScales:
        """What the Facebank knows of the scales of models."""
        from cleanup.edges.postgres_calibrations import KnownScales

        return self.facebank.calibrations.find_scales(self.show) if self.facebank is not None else KnownScales()

    @property
    def show(self) -> str:
        """Show whose people are looked up."""
        return self._job.settings.settings.group_clusters.show or show_of(self._job.ep_id)

    @cached_property
    def values(self) -> dict[str, Any]:
        """All of it as plain values, as it was when they were asked for first; of files and people their digests."""
        settings = self._job.settings.describe()
        relevant = {k: v for k, v in settings.items() if SPECS[k].section not in _PLACES and k not in _PLACES}
        return {
            "actions": self._job.actions,
            "write_back": self._job.write_back,
            "settings": {name: [entry["value"], entry.get("auto")] for name, entry in relevant.items()},
            "video": self.video_sha256 if self.video is not None else None,
            "models": self._tools.model_sha256 if self.video is not None else None,
            "facebank": self.facebank.compute_digest(self.show) if self.facebank is not None else None,
            "scales": self.scales.describe(),
        }

    def compute_fingerprint(self) -> str:
        """Digest of the inputs and of the artifacts as they are on disk now."""
        return compute_fingerprint(self._job.paths, self.values)


@dataclass(frozen=True)
class _Refined:
    """What a run has come to before anything is written."""

    episode: Episode
    report: CleanupReport
    engine: CheckpointedEngine | None


def _refine(
    job: EpisodeJob,
    run_id: RunId,
    inputs: _Inputs,
    tools: Tools,
    tell: ReportProgress,
    stack: contextlib.ExitStack,
) -> _Refined:
    """Reads the episode and runs the phases; what has to be held until all is written goes onto the stack."""
    settings = job.settings.settings
    report = CleanupReport(job.ep_id, run_id, profile=job.settings.profile, write_back=job.write_back)
    with report.timings.measure("read"):
        episode = read_episode(job.paths)
    report.settings = job.settings.describe()
    report.warnings += job.settings.notes
    _ = inputs.values  # before anything is read from them: what changes under the run counts as not yet seen
    video, engine, model = None, None, None
    if inputs.video is not None:
        from cleanup.edges.video_frames import VideoFrames

        observe = settings.observe
        view = VideoView(observe.frame_shift)
        with VideoFrames(inputs.local_video, 0, inputs.frame_counts, view) as frames:
            views = [replace(info, source=replace(info.source, location=inputs.video)) for info in frames.list_views()]
        is_trusted = job.settings.sources["frame_shift"] != "fallback"
        video = VideoChoice(views, observe.rotation, is_trusted)
        engine = _checkpointed(job, inputs, tools)
    elif PIXEL_PHASES & set(job.actions):
        report.warnings.append(
            f"no video at {job.root.show(job.paths.video)}: split_tracks worked on the embeddings of faces.jsonl, to "
            "which blur and turned heads look more like changes"
        )
    asks_photos = inputs.facebank is not None and FACEBANK_PHASES & set(job.actions)
    if video is not None or (asks_photos and episode.embedding_model is None):
        model = tools.models.recogniser.stem
    note = ""
    if inputs.facebank is None and "group_clusters" in job.actions:
        note = (
            f"there is no Facebank under {job.root.name} yet, so nobody was named; enrol people with: "
            "cleanup facebank enroll --show SHOW DIR" + (" --facebank-dsn DSN" if job.root.remote is not None else "")
        )
    hold: Callable[[], None] = _nothing_to_hold
    if job.write_back and inputs.facebank is not None and "group_clusters" in job.actions:
        inputs.facebank.check_writable()  # not only after hours of work
        hold = functools.partial(inputs.hold_people, stack)
    known = inputs.scales.find(model or episode.embedding_model, None if model is None else tools.model_sha256)
    context = RunContext(
        settings, engine, video, inputs.facebank, note, inputs.show, model, tools.run_many, hold, known
    )
    refined = run(episode, job.actions, context, tell, report)
    if settings.output.save_crops or settings.output.save_frames:
        refined = _save_images(job, run_id, refined, inputs, find_view(job.paths, report.video))
    report.engine = report.engine or "none"
    return _Refined(refined, report, engine)


def _nothing_to_hold() -> None:
    return None


def _checkpointed(job: EpisodeJob, inputs: _Inputs, tools: Tools) -> CheckpointedEngine:
    """The engine behind the episode's checkpoints; without resume none are there."""
    folder = job.paths.checkpoints
    if not job.is_resume:
        folder.rmtree()
        if job.root.remote is not None:
            job.root.remote.remove(folder)
    key = compute_pass_key(inputs.video_sha256, tools.model_sha256, worker_spec(job.settings))
    return CheckpointedEngine(tools.engine, folder, key, job.root.remote)


def _save_images(job: EpisodeJob, run_id: RunId, episode: Episode, inputs: _Inputs, view: VideoView) -> Episode:
    """Pictures go beside the artifacts, or without write-back into the run folder."""
    from cleanup.edges.face_images import ImageFolder, save_images
    from cleanup.edges.video_frames import VideoFrames

    source = inputs.local_video if inputs.video is not None else job.paths.video.system_path
    folder = job.paths.frames if job.write_back else job.paths.runs / run_id / "frames"
    folder.parent.mkdir()
    folder.mkdir(like=job.paths.manifests if job.write_back else None)
    target = ImageFolder(folder, folder.relative_to(job.root.path).as_posix())
    with VideoFrames(source, 0, inputs.frame_counts, view) as video:
        episode = save_images(episode, video, target, job.settings.settings.output, inputs.touch)
    if job.root.remote is not None:
        for path in folder.walk_files():
            job.root.remote.put(path)
    return episode
