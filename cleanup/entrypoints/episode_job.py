"""One cleanup of one episode, from options to written files: the wiring that the command line and the jobs share."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode, same_json
from cleanup.edges.face_images import ImageFolder, save_images
from cleanup.edges.finished_run import compute_fingerprint, read_finished, write_finished
from cleanup.edges.local_workers import LocalEngine
from cleanup.edges.observation_worker import WorkerSpec
from cleanup.edges.onnx_models import (
    ModelFiles,
    ModelSpec,
    find_model_files,
    resolve_model_directory,
    sha256_of_file,
)
from cleanup.edges.postgres_facebank import PostgresFacebank, open_facebank
from cleanup.edges.progress_file import ProgressFile
from cleanup.edges.shard_checkpoints import CheckpointedEngine, compute_pass_key
from cleanup.edges.track_metrics import update_track_metrics
from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.write_back import commit, hold_episode, stage, write_synced
from cleanup.episode import Episode, check_ep_id, show_of
from cleanup.errors import CleanupError, SettingsError, VideoError
from cleanup.interfaces import Engine
from cleanup.progress import PhaseProgress, ReportProgress
from cleanup.report import CleanupReport
from cleanup.resolve_settings import ResolvedSettings
from cleanup.run import PHASES, PIXEL_PHASES, RunContext, run
from cleanup.settings import SPECS

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
        is_resume: Whether checkpointed shards are used.
        skips_unchanged: Whether nothing is done where the last finished run depended on the very same inputs.
    """

    ep_id: str
    out_root: Path
    actions: tuple[str, ...]
    settings: ResolvedSettings
    video: Path | None = None
    write_back: bool = False
    progress_file: Path | None = None
    is_resume: bool = True
    skips_unchanged: bool = False

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


class Tools:
    """What several episodes may share: the engine with its loaded models, and the Facebank. Made on first use.

    Use it as a context manager; threads may share it.

    Args:
        settings: Settings of the run.
        out_root: Data root.
    """

    def __init__(self, settings: ResolvedSettings, out_root: Path) -> None:
        self._settings, self._out_root = settings, out_root
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None
        self._facebank: PostgresFacebank | None = None

    def __enter__(self) -> Tools:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def engine(self) -> Engine:
        """The engine that the settings ask for."""
        with self._lock:
            if self._engine is None:
                self._engine = build_engine(self._settings)
                self._stack.callback(self._engine.close)
            return self._engine

    @property
    def facebank(self) -> PostgresFacebank | None:
        """The Facebank, or None where the embedded one was never made."""
        with self._lock:
            dsn, folder = self._settings.settings.group_clusters.facebank_dsn, facebank_folder(self._out_root)
            if self._facebank is None and (dsn or folder.exists()):
                facebank = self._stack.enter_context(open_facebank(dsn, folder))
                facebank.check()
                self._facebank = facebank
            return self._facebank


def run_episode_job(
    job: EpisodeJob,
    on_progress: ReportProgress | None = None,
    is_stop_requested: Callable[[], bool] = _nobody_stops,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """Runs a job: lock, read, refine, check, and with write-back replace the episode's files in one commit.

    Args:
        job: What is asked for.
        on_progress: Told where the run stands, beside the progress file.
        is_stop_requested: Asked at every step of progress; a run that is stopped, or fails because of an interrupt,
            says "canceled".
        tools: Engine and Facebank shared with other runs; None makes them for this run.

    Returns:
        The report, as it was written; with ``unchanged`` true, the last run's, if nothing was to be done.

    Raises:
        KeyboardInterrupt: A stop was asked for.
        CleanupError: Of any kind; the episode's files are as they were.
    """
    check_ep_id(job.ep_id)
    paths = job.paths
    if not paths.manifests.is_dir():
        read_episode(paths)  # raises: it knows best what to say
    with contextlib.ExitStack() as stack:
        if tools is None:
            tools = stack.enter_context(Tools(job.settings, job.out_root))
        stack.enter_context(hold_episode(paths))
        inputs = _Inputs(job, tools)
        if job.skips_unchanged:
            finished = read_finished(paths, inputs.compute_fingerprint())
            if finished is not None:
                return {**finished, "unchanged": True}
        run_id = _new_run_id()
        run_folder = paths.runs / run_id
        run_folder.mkdir(parents=True)
        progress_path = job.progress_file or (paths.progress if job.write_back else run_folder / paths.progress.name)
        progress = ProgressFile(progress_path, job.ep_id)

        def tell(event: PhaseProgress) -> None:
            progress(event)
            if on_progress is not None:
                on_progress(event)
            if is_stop_requested():
                raise KeyboardInterrupt

        try:
            report = _run_locked(job, run_id, inputs, tools, tell)
        except BaseException as error:
            if is_stop_requested() or isinstance(error, KeyboardInterrupt):
                progress.fail("interrupted; no file is half written", is_canceled=True)
            else:
                progress.fail(str(error) if isinstance(error, CleanupError) else f"{type(error).__name__}: {error}")
            raise
        write_finished(paths, inputs.compute_fingerprint(), report)
        progress.finish(report)
        return report


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{os.getpid()}"


class _Inputs:
    """What a run depends on beside the episode's artifacts, each looked up once."""

    def __init__(self, job: EpisodeJob, tools: Tools) -> None:
        self._job, self._tools = job, tools

    @cached_property
    def video(self) -> Path | None:
        """The video if a phase needs pixels; without one the gate works on what faces.jsonl holds."""
        job = self._job
        if not PIXEL_PHASES & set(job.actions):
            return None
        path = job.video or job.paths.video
        if job.video is None and not path.exists():
            if "reembed" in job.actions:
                raise VideoError(f"{path}: no video, and reembed needs it; give one with --video")
            return None
        return path.absolute()

    @cached_property
    def video_sha256(self) -> str:
        """Digest of the video."""
        assert self.video is not None
        if not self.video.is_file():
            raise VideoError(f"{self.video}: no such video; give it with --video")
        return sha256_of_file(self.video)

    @cached_property
    def models(self) -> ModelFiles:
        """The model files."""
        return find_model_files(resolve_model_directory(self._job.settings.settings.observe.models))

    @cached_property
    def model_sha256(self) -> list[str]:
        """Digests of the model files."""
        files = (self.models.recogniser, self.models.detector)
        return [sha256_of_file(path) for path in files if path is not None]

    @cached_property
    def facebank(self) -> PostgresFacebank | None:
        """The Facebank, if people are to be named and it is there."""
        return self._tools.facebank if "group_clusters" in self._job.actions else None

    @property
    def show(self) -> str:
        """Show whose people are looked up."""
        return self._job.settings.settings.group_clusters.show or show_of(self._job.ep_id)

    def compute_fingerprint(self) -> str:
        """Digest of all a run depends on, as it is now."""
        settings = self._job.settings.describe()
        values = {name: [entry["value"], entry.get("auto")] for name, entry in settings.items()}
        inputs = {
            "actions": self._job.actions,
            "write_back": self._job.write_back,
            "settings": {k: v for k, v in values.items() if SPECS[k].section != "cluster"},
            "video": self.video_sha256 if self.video is not None else None,
            "models": self.model_sha256 if self.video is not None else None,
            "facebank": self.facebank.compute_digest(self.show) if self.facebank is not None else None,
        }
        return compute_fingerprint(self._job.paths, inputs)


def _run_locked(job: EpisodeJob, run_id: str, inputs: _Inputs, tools: Tools, tell: ReportProgress) -> dict[str, Any]:
    started = time.monotonic()
    settings = job.settings.settings
    episode = read_episode(job.paths)
    report = CleanupReport(job.ep_id, run_id, profile=job.settings.profile, write_back=job.write_back)
    report.settings = job.settings.describe()
    video, engine, model = None, None, None
    if inputs.video is not None:
        with VideoFrames(inputs.video) as frames:
            video = frames.info
        engine = _checkpointed(job, inputs, tools)
    elif PIXEL_PHASES & set(job.actions):
        report.warnings.append(
            f"no video at {job.paths.video}: split_tracks worked on the embeddings of faces.jsonl, to which blur and "
            "turned heads look more like changes"
        )
    if video is not None or (inputs.facebank is not None and episode.embedding_model is None):
        model = inputs.models.recogniser.stem
    note = ""
    if inputs.facebank is None and "group_clusters" in job.actions:
        note = (
            f"there is no Facebank under {job.out_root} yet, so nobody was named; enrol people with: "
            "cleanup facebank enroll --show SHOW DIR"
        )
    context = RunContext(settings, engine, video, inputs.facebank, note, inputs.show, model)
    refined = run(episode, job.actions, context, tell, report)
    output = settings.output
    if output.save_crops or output.save_frames:
        refined = _save_images(job, run_id, refined, inputs.video)
    report.engine = report.engine or "none"
    record = _finish(job, run_id, refined, report, started)
    if engine is not None:
        engine.remove_unused()
    return record


def _checkpointed(job: EpisodeJob, inputs: _Inputs, tools: Tools) -> CheckpointedEngine:
    """The engine behind the episode's checkpoints; without resume none are there."""
    folder = job.paths.checkpoints
    if not job.is_resume and folder.exists():
        shutil.rmtree(folder)
    key = compute_pass_key(inputs.video_sha256, inputs.model_sha256, worker_spec(job.settings))
    return CheckpointedEngine(tools.engine, folder, key)


def _save_images(job: EpisodeJob, run_id: str, episode: Episode, video: Path | None) -> Episode:
    """Pictures go beside the artifacts, or without write-back into the run folder."""
    source = video or job.video or job.paths.video
    folder = job.paths.frames if job.write_back else job.paths.runs / run_id / "frames"
    target = ImageFolder(folder, folder.relative_to(job.out_root).as_posix())
    return save_images(episode, str(source), target, job.settings.settings.output)


def worker_spec(settings: ResolvedSettings) -> WorkerSpec:
    """What a worker is built from."""
    observe = settings.settings.observe
    directory = resolve_model_directory(observe.models)
    return WorkerSpec(
        models=ModelSpec(str(directory), observe.device, observe.embed_device),
        n_threads=0,
        min_confidence=observe.det_thresh,
        min_iou=observe.det_iou,
        refine_below=settings.settings.split_tracks.gate_soft.value,
    )


def choose_engine(settings: ResolvedSettings) -> str:
    """``local`` or ``ray``; ``auto`` is Ray inside a Ray job or with RAY_ADDRESS set, else local."""
    name = settings.settings.output.engine
    if name == "auto":
        name = "ray" if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") else "local"
    return name


def build_engine(settings: ResolvedSettings) -> Engine:
    """The engine that the settings ask for."""
    spec = worker_spec(settings)
    if choose_engine(settings) == "local":
        return LocalEngine(spec)
    from cleanup.edges.ray_workers import RayEngine

    return RayEngine(spec, settings.settings.cluster)


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
        shutil.rmtree(staged.root)
        write_synced(report_path, content)
    return record


def _is_same(path: Path, content: bytes) -> bool:
    if not path.exists():
        return False
    old = path.read_bytes()
    return old == content or (path.suffix == ".json" and same_json(old, content))


def facebank_folder(out_root: Path) -> Path:
    """Where the embedded Facebank of a data root lies."""
    return out_root / "facebank" / "postgres"


@contextlib.contextmanager
def facebank_of(settings: ResolvedSettings, out_root: Path) -> Iterator[PostgresFacebank]:
    """The Facebank of a data root, or of the server the settings name."""
    with open_facebank(settings.settings.group_clusters.facebank_dsn, facebank_folder(out_root)) as facebank:
        yield facebank
