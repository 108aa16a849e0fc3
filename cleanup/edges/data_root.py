"""The data root of a command: a folder, or a URL with the folder it is mirrored in."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cleanup.edges.artifact_files import EpisodePaths, Stamp
from cleanup.edges.backups import Backup, BackupStore
from cleanup.edges.early_backups import find_early
from cleanup.edges.episode_lock import hold_episode
from cleanup.edges.lease import Lease
from cleanup.edges.progress_file import end_abandoned
from cleanup.edges.remote_files import is_url
from cleanup.edges.remote_root import RemoteRoot
from cleanup.edges.root_path import RootPath
from cleanup.edges.write_back import WriteBack, read_settled
from cleanup.errors import ArtifactError, BusyError, CleanupError, FacebankError
from cleanup.names import EpId, RunId, check_ep_id, is_ep_id
from cleanup.settings import StorageSettings

DATA_ROOT_VARIABLE = "SCREENALYTICS_DATA_ROOT"
DEFAULT_DATA_ROOT = "data"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataRoot:
    """Where episodes lie.

    Attributes:
        path: The folder they are worked on in; for a URL its mirror on this machine.
        remote: What is behind the URL, or None for a folder.
    """

    path: RootPath
    remote: RemoteRoot | None = None

    @property
    def name(self) -> str:
        """The root as the user wrote it."""
        return self.remote.url if self.remote is not None else str(self.path)

    def paths(self, ep_id: EpId) -> EpisodePaths:
        """The episode's files."""
        return EpisodePaths(self.path, ep_id)

    def show(self, path: RootPath) -> str:
        """A file of the root as the user would name it."""
        return f"{self.remote.url}/{path.relative_to(self.path).as_posix()}" if self.remote is not None else str(path)

    def list_episodes(self) -> list[EpId]:
        """Ids of the episodes that have artifacts, sorted."""
        if self.remote is not None:
            return self.remote.list_episodes()
        manifests = self.path / "manifests"
        # A link is listed, too: whoever wants that episode is told, and the others are not held up.
        return [check_ep_id(p.name) for p in manifests.glob("*") if is_ep_id(p.name)]

    def check_episode(self, ep_id: EpId) -> None:
        """Makes sure that an episode has artifacts.

        Raises:
            ArtifactError: It has none.
        """
        paths = self.paths(ep_id)
        if not (self.remote.has_episode(ep_id) if self.remote is not None else paths.manifests.is_dir()):
            raise ArtifactError(f"{self.name}/manifests/{ep_id}: no such episode; check --ep-id and --out-root")

    @contextlib.contextmanager
    def hold(self, ep_id: EpId, patience_s: float = 0.0) -> Iterator[HeldEpisode]:
        """Holds an episode for this process alone, with its artifacts as they are stored.

        Args:
            ep_id: The episode; it must have artifacts.
            patience_s: How long to wait for another run on this machine.

        Raises:
            BusyError: Another run holds it; the message says which process and since when.
        """
        paths = self.paths(ep_id)
        with contextlib.ExitStack() as stack:
            leases = [stack.enter_context(hold_episode(paths, patience_s))]
            if self.remote is not None:
                leases.append(stack.enter_context(self.remote.hold(ep_id)))
                self.remote.check_out(ep_id)
                self._end_abandoned_progress(paths, self.remote)
            yield HeldEpisode(self, paths, tuple(leases))

    @staticmethod
    def _end_abandoned_progress(paths: EpisodePaths, remote: RemoteRoot) -> None:
        store = BackupStore(paths)
        if end_abandoned(paths.progress, lambda run_id: remote.is_stored(store.record_path(run_id)), paths.report):
            remote.put(paths.progress)

    def read_settled(self, ep_id: EpId, read: Callable[[EpisodePaths], _T]) -> _T:
        """Reads several files of an episode as they are in one moment, whatever runs meanwhile.

        Args:
            ep_id: The episode.
            read: Reads them; may be called more than once.
        """
        paths = self.paths(ep_id)
        if self.remote is not None:
            with self.hold(ep_id):  # a run on this machine works in the same mirror
                return read(paths)

        def finish() -> None:
            with self.hold(ep_id):
                pass

        return read_settled(paths, lambda: read(paths), finish)

    def backups(self, ep_id: EpId) -> BackupStore:
        """The episode's backups; those of an early version are brought up to date first."""
        paths = self.paths(ep_id)
        if self.remote is None and find_early(paths):
            with contextlib.suppress(BusyError), self.hold(ep_id):
                pass
        return BackupStore(paths, self.remote)

    def find_video(self, ep_id: EpId) -> str | None:
        """Path or URL of an episode's video, or None where there is none."""
        if self.remote is not None:
            return self.remote.video_url(ep_id)
        path = self.paths(ep_id).video.system_path  # may be a link: it is only read
        return str(path) if path.exists() else None

    def has_facebank(self) -> bool:
        """Whether an embedded Facebank was ever made here."""
        return self.remote is None and self.facebank_folder().exists()

    def facebank_folder(self) -> RootPath:
        """Where the embedded Facebank lies.

        Raises:
            FacebankError: Behind a URL no server can run.
        """
        if self.remote is not None:
            raise FacebankError(
                f"{self.name}: a data root behind a URL has no embedded Facebank; name a PostgreSQL that all machines "
                "reach with --facebank-dsn or FACEBANK_DSN"
            )
        return self.path / "facebank" / "postgres"


@dataclass(frozen=True)
class HeldEpisode:
    """An episode that this process holds, and the only way to change its files.

    Attributes:
        root: Its data root.
        paths: Its files on this machine.
        leases: What holds it, on this storage and behind the URL.
    """

    root: DataRoot
    paths: EpisodePaths
    leases: tuple[Lease, ...]

    def write_back(self, run_id: RunId, made_by: str, expected: Stamp | None) -> WriteBack:
        """A transaction over the episode's files; see ``WriteBack``."""
        return WriteBack(self.paths, run_id, made_by, expected, self.root.backups(self.paths.ep_id))

    def check(self) -> None:
        """Makes sure that the episode is still held.

        Raises:
            StorageError: It was lost to another run.
        """
        for lease in self.leases:
            lease.check()

    def commit(self, write_back: WriteBack, n_kept: int, *, is_backwards: bool = False) -> Backup:
        """Commits a transaction, stores it behind the URL if there is one, and prunes the backups.

        Args:
            write_back: What was staged.
            n_kept: Backups to keep beside the first one.
            is_backwards: See ``WriteBack.commit``.

        Raises:
            StorageError: The episode was lost to another run, or storage failed; nothing was written.
            CommittedError: The files are committed but not all in place.
            OSError: Nothing was written.
        """
        self.check()
        backup = write_back.commit(is_backwards=is_backwards)
        store, remote = self.root.backups(self.paths.ep_id), self.root.remote
        if remote is not None:
            files = [self.paths.root / name for name in backup.changed]
            if is_backwards:
                files.reverse()
            kept = [store.object_path(v) for v in (backup.before[name] for name in backup.changed) if v is not None]
            remote.publish(self.paths.ep_id, backup.run_id, [store.record_path(backup.run_id), *files], kept)
            self.paths.backups.rmtree()  # the mirror's own; the root has them
        try:
            store.prune(n_kept, is_first_kept=True)
        except (CleanupError, OSError) as error:
            _log.warning("%s is written, but its old backups could not be removed: %s", self.paths.ep_id, error)
        return backup


def resolve_out_root(explicit: str | None, environment: Mapping[str, str], storage: StorageSettings) -> DataRoot:
    """The data root: --out-root, SCREENALYTICS_DATA_ROOT, else ./data; a folder or a URL."""
    given = explicit or environment.get(DATA_ROOT_VARIABLE) or DEFAULT_DATA_ROOT
    if not is_url(given):
        return DataRoot(RootPath(Path(given)))
    url = given.rstrip("/")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror = RootPath(Path(storage.cache_dir).expanduser() / "roots" / digest)
    return DataRoot(mirror, RemoteRoot(url, mirror))
