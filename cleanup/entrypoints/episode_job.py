"""One cleanup of one episode, from options to written files: the wiring that the command line and the jobs share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode, same_json
from cleanup.edges.face_images import ImageFolder, save_images
from cleanup.edges.local_workers import LocalEngine
from cleanup.edges.observation_worker import WorkerSpec
from cleanup.edges.onnx_models import ModelSpec, find_model_files, resolve_model_directory
from cleanup.edges.postgres_facebank import PostgresFacebank, open_facebank
from cleanup.edges.progress_file import ProgressFile
from cleanup.edges.track_metrics import update_track_metrics
from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.write_back import commit, hold_episode, stage, write_synced
from cleanup.episode import Episode, check_ep_id, show_of
from cleanup.errors import CleanupError, SettingsError, VideoError
from cleanup.interfaces import Engine, VideoInfo
from cleanup.progress import PhaseProgress, ReportProgress
from cleanup.report import CleanupReport
from cleanup.resolve_settings import ResolvedSettings
from cleanup.run import PHASES, PIXEL_PHASES, RunContext, run

DATA_ROOT_VARIABLE = "SCREENALYTICS_DATA_ROOT"
DEFAULT_DATA_ROOT = "data"


@dataclass(frozen=True)
class EpisodeJob:
    """What is asked for.

    Attributes:
        ep_id: Episode id.
        out_root: Data root.
        actions: Phases in canonical order.
        settings: Resolved settings.
        video: Video given explicitly, or None for the one under the data root.
        write_back: Whether artifacts are replaced.
        progress_file: Where progress goes, or None for the usual place.
    """

    ep_id: str
    out_root: Path
    actions: tuple[str, ...]
    settings: ResolvedSettings
    video: Path | None = None
    write_back: bool = False
    progress_file: Path | None = None

    @property
    def paths(self) -> EpisodePaths:
        """Where the episode's files are."""
        return EpisodePaths(self.out_root, self.ep_id)


def resolve_out_root(explicit: str | None, environment: Mapping[str, str]) -> Path:
    """The data root: --out-root, SCREENALYTICS_DATA_ROOT, else ./data."""
    return Path(explicit or environment.get(DATA_ROOT_VARIABLE) or DEFAULT_DATA_ROOT).absolute()


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


def run_episode_job(
    job: EpisodeJob,
    on_progress: ReportProgress | None = None,
    is_stop_requested: Callable[[], bool] = _nobody_stops,
) -> dict[str, Any]:
    """Runs a job: lock, read, refine, check, and with write-back replace the episode's files in one commit.

    Args:
        job: What is asked for.
        on_progress: Told where the run stands, beside the progress file.
        is_stop_requested: Whether what just failed failed because of an interrupt; decides what progress says.

    Returns:
        The report, as it was written.

    Raises:
        CleanupError: Of any kind; the episode's files are as they were.
    """
    check_ep_id(job.ep_id)
    paths = job.paths
    if not paths.manifests.is_dir():
        read_episode(paths)  # raises: it knows best what to say
    with hold_episode(paths):
        run_id = _new_run_id()
        run_folder = paths.runs / run_id
        run_folder.mkdir(parents=True)
        progress_path = job.progress_file or (paths.progress if job.write_back else run_folder / paths.progress.name)
        progress = ProgressFile(progress_path, job.ep_id)

        def tell(event: PhaseProgress) -> None:
            progress(event)
            if on_progress is not None:
                on_progress(event)

        try:
            report = _run_locked(job, run_id, tell)
        except BaseException as error:
            if is_stop_requested() or isinstance(error, KeyboardInterrupt):
                progress.fail("interrupted; no file is half written", is_canceled=True)
            else:
                progress.fail(str(error) if isinstance(error, CleanupError) else f"{type(error).__name__}: {error}")
            raise
        progress.finish(report)
        return report


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{os.getpid()}"


def _run_locked(job: EpisodeJob, run_id: str, tell: ReportProgress) -> dict[str, Any]:
    started = time.monotonic()
    paths, settings = job.paths, job.settings.settings
    episode = read_episode(paths)
    report = CleanupReport(job.ep_id, run_id, profile=job.settings.profile, write_back=job.write_back)
    report.settings = job.settings.describe()
    video = _open_video(job, report)
    with contextlib.ExitStack() as stack:
        facebank, note = _open_facebank(job, stack)
        engine: Engine | None = None
        model = None
        if video is not None:
            engine = build_engine(job.settings, video.path)
            stack.callback(engine.close)
        if video is not None or (facebank is not None and episode.embedding_model is None):
            model = find_model_files(resolve_model_directory(settings.observe.models)).recogniser.stem
        context = RunContext(
            settings, engine, video, facebank, note, settings.group_clusters.show or show_of(job.ep_id), model
        )
        refined = run(episode, job.actions, context, tell, report)
    output = settings.output
    if output.save_crops or output.save_frames:
        refined = _save_images(job, run_id, refined, video)
    report.engine = report.engine or "none"
    return _finish(job, run_id, refined, report, started)


def _open_video(job: EpisodeJob, report: CleanupReport) -> VideoInfo | None:
    """Facts of the video if a phase needs pixels; without a video the gate works on what faces.jsonl holds."""
    if not PIXEL_PHASES & set(job.actions):
        return None
    path = job.video or job.paths.video
    if job.video is None and not path.exists():
        if "reembed" in job.actions:
            raise VideoError(f"{path}: no video, and reembed needs it; give one with --video")
        report.warnings.append(
            f"no video at {path}: split_tracks worked on the embeddings of faces.jsonl, to which blur and turned "
            "heads look more like changes"
        )
        return None
    with VideoFrames(path) as frames:
        return frames.info


def _open_facebank(job: EpisodeJob, stack: contextlib.ExitStack) -> tuple[PostgresFacebank | None, str]:
    if "group_clusters" not in job.actions:
        return None, ""
    dsn = job.settings.settings.group_clusters.facebank_dsn
    if not dsn and not job.paths.facebank.exists():
        return None, (
            f"there is no Facebank under {job.out_root} yet, so nobody was named; enrol people with: "
            "cleanup facebank enroll --show SHOW DIR"
        )
    facebank = stack.enter_context(open_facebank(dsn, job.paths.facebank))
    facebank.check()
    return facebank, ""


def _save_images(job: EpisodeJob, run_id: str, episode: Episode, video: VideoInfo | None) -> Episode:
    """Pictures go beside the artifacts, or without write-back into the run folder."""
    source = job.video or job.paths.video if video is None else Path(video.path)
    folder = job.paths.frames if job.write_back else job.paths.runs / run_id / "frames"
    target = ImageFolder(folder, folder.relative_to(job.out_root).as_posix())
    return save_images(episode, str(source), target, job.settings.settings.output)


def build_engine(settings: ResolvedSettings, video: str) -> Engine:
    """The engine that the settings ask for; ``auto`` is Ray inside a Ray job or with RAY_ADDRESS set, else local."""
    observe = settings.settings.observe
    directory = resolve_model_directory(observe.models)
    spec = WorkerSpec(
        video=str(Path(video).absolute()),
        models=ModelSpec(str(directory), observe.device, observe.embed_device),
        n_threads=0,
        min_confidence=observe.det_thresh,
        min_iou=observe.det_iou,
        refine_below=settings.settings.split_tracks.gate_soft.value,
    )
    name = settings.settings.output.engine
    if name == "auto":
        name = "ray" if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") else "local"
    if name == "local":
        return LocalEngine(spec)
    from cleanup.edges.ray_workers import RayEngine

    return RayEngine(spec)


def _finish(job: EpisodeJob, run_id: str, after: Episode, report: CleanupReport, started: float) -> dict[str, Any]:
    """Checks and writes what came out."""
    paths = job.paths
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    targets = {
        "tracks.jsonl": paths.tracks,
        "faces.jsonl": paths.faces,
        "faces.npy": paths.embeddings,
        "identities.json": paths.identities,
    }
    contents = {targets[name]: content for name, content in render_episode(after, now).items()}
    contents[paths.track_metrics] = update_track_metrics(after, report)
    changed = [path for path, content in contents.items() if not _is_same(path, content)]
    staged = stage(paths, run_id, contents)
    problems = find_violations(staged)
    if problems:
        raise CleanupError(
            f"{job.ep_id}: internal error, nothing was written: the result breaks an invariant ({problems[0]}); "
            f"it is kept in {staged.root} for a report"
        )
    run_folder = paths.runs / run_id
    report_path = paths.report if job.write_back else run_folder / paths.report.name
    report.files = {"report": str(report_path), "changed": [], "backup": None}
    if job.write_back:
        report.files["changed"] = [str(path) for path in changed]
        if changed:
            report.files["backup"] = str(job.out_root / "backups" / job.ep_id / run_id)
    report.runtime_sec = time.monotonic() - started
    record = report.to_json()
    content = orjson.dumps(record, option=orjson.OPT_INDENT_2)
    if job.write_back and changed:
        stage(paths, run_id, {report_path: content})
        commit(paths, run_id, [*changed, report_path])
    else:
        _remove_staged(staged.root)
        write_synced(report_path, content)
    return record


def _is_same(path: Path, content: bytes) -> bool:
    if not path.exists():
        return False
    old = path.read_bytes()
    return old == content or (path.suffix == ".json" and same_json(old, content))


def _remove_staged(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


@contextlib.contextmanager
def facebank_of(settings: ResolvedSettings, out_root: Path) -> Iterator[PostgresFacebank]:
    """The Facebank of a data root, or of the server the settings name."""
    folder = out_root / "facebank" / "postgres"
    with open_facebank(settings.settings.group_clusters.facebank_dsn, folder) as facebank:
        yield facebank
