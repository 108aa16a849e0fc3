"""What runs work with: models, the engine that holds them, the Facebank, this machine's copies of remote files."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.data_root import DataRoot
from cleanup.edges.model_files import (
    MODEL_SUFFIX,
    ModelFiles,
    find_model_files,
    resolve_model_directory,
    sha256_of_file,
)
from cleanup.edges.pool_sizing import GIB
from cleanup.edges.records import RecordError, take
from cleanup.edges.remote_files import NodeCache, is_url
from cleanup.interfaces import AS_STORED, Engine, VideoView
from cleanup.resolve_settings import ResolvedSettings

# Libraries for pixels, models and PostgreSQL are imported where a run turns out to need them.
if TYPE_CHECKING:
    from cleanup.edges.observation_worker import WorkerSpec
    from cleanup.edges.postgres_facebank import PostgresFacebank


class Tools:
    """What several episodes may share: models, the engine that loaded them, the Facebank. Made on first use.

    Use it as a context manager; threads may share it.

    Args:
        settings: Settings of the run.
        root: Data root.
    """

    def __init__(self, settings: ResolvedSettings, root: DataRoot) -> None:
        self._settings, self._root = settings, root
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None
        self._facebank: PostgresFacebank | None = None
        self._models: ModelFiles | None = None
        self._model_sha256: list[str] | None = None

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

    def run_many(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Runs tasks on the engine, which is made if there is none yet."""
        return self.engine.run_many(function, tasks)

    @property
    def models(self) -> ModelFiles:
        """The model files on this machine."""
        with self._lock:
            if self._models is None:
                self._models = find_model_files(find_models(self._settings))
            return self._models

    @property
    def model_sha256(self) -> list[str]:
        """Digests of the model files."""
        files = self.models
        with self._lock:
            if self._model_sha256 is None:
                self._model_sha256 = [sha256_of_file(path) for path in files.paths]
            return self._model_sha256

    @property
    def n_model_loads(self) -> int:
        """How often models were loaded; 0 where nothing needed them."""
        return self._engine.n_model_loads if self._engine is not None else 0

    @property
    def facebank(self) -> PostgresFacebank | None:
        """The Facebank, or None where the embedded one was never made."""
        with self._lock:
            dsn = self._settings.settings.group_clusters.facebank_dsn
            if self._facebank is None and (dsn or self._root.has_facebank()):
                facebank = self._stack.enter_context(facebank_of(self._settings, self._root))
                facebank.check()
                self._facebank = facebank
            return self._facebank


def node_cache(settings: ResolvedSettings) -> NodeCache:
    """This machine's copies of remote files."""
    storage = settings.settings.storage
    return NodeCache(storage.cache_dir, int(storage.cache_size * GIB))


def find_models(settings: ResolvedSettings) -> Path:
    """The folder on this machine of the models that the settings name."""
    models = settings.settings.observe.models
    if is_url(models):
        return node_cache(settings).fetch_folder(models, MODEL_SUFFIX)
    return resolve_model_directory(models)


def find_view(paths: EpisodePaths, video: Mapping[str, Any] | None = None) -> VideoView:
    """How the artifacts of an episode count in its video, as the last run that looked at its pixels found it.

    Args:
        paths: The episode.
        video: The part on the video of a report that was not written yet; empty or None where there is none.
    """
    if not video and paths.report.is_taken():
        with contextlib.suppress(RecordError):  # whoever spoilt it has said nothing on the video
            video = take(paths.report, dict).get("video")
    if not isinstance(video, Mapping):
        return AS_STORED
    shift = video.get("frame_shift")
    is_turned, is_stretched = video.get("is_turned") is True, video.get("is_stretched") is True
    return VideoView(shift if type(shift) is int else 0, is_turned, is_stretched)


def worker_spec(settings: ResolvedSettings) -> WorkerSpec:
    """What a worker is built from."""
    from cleanup.edges.observation_worker import WorkerSpec
    from cleanup.edges.onnx_models import ModelSpec

    observe = settings.settings.observe
    directory = observe.models if is_url(observe.models) else str(find_models(settings))
    return WorkerSpec(
        models=ModelSpec(directory, observe.device, observe.embed_device),
        cache=node_cache(settings),
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
    """The engine that the settings ask for; it looks for models once it has pixels to work on."""
    make_spec = functools.partial(worker_spec, settings)
    if choose_engine(settings) == "local":
        from cleanup.edges.local_workers import LocalEngine

        return LocalEngine(make_spec)
    from cleanup.edges.ray_workers import RayEngine

    return RayEngine(make_spec, settings.settings.cluster)


def named_facebank(settings: ResolvedSettings) -> PostgresFacebank:
    """The Facebank on the server that the settings name."""
    from cleanup.edges.postgres_dsn import Dsn
    from cleanup.edges.postgres_facebank import PostgresFacebank

    dsn = settings.settings.group_clusters.facebank_dsn
    return PostgresFacebank(Dsn(dsn.reveal(), settings.source_of("facebank_dsn")))


@contextlib.contextmanager
def facebank_of(settings: ResolvedSettings, root: DataRoot) -> Iterator[PostgresFacebank]:
    """The Facebank on the server the settings name, else the embedded one of a data root."""
    from cleanup.edges.embedded_postgres import open_embedded_facebank

    if settings.settings.group_clusters.facebank_dsn:
        yield named_facebank(settings)
        return
    with open_embedded_facebank(root.facebank_folder()) as facebank:
        yield facebank
