"""The data root of a command: a folder, or a URL with the folder it is mirrored in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.remote_files import is_url
from cleanup.edges.remote_root import RemoteRoot
from cleanup.errors import ArtifactError, FacebankError
from cleanup.settings import StorageSettings

DATA_ROOT_VARIABLE = "SCREENALYTICS_DATA_ROOT"
DEFAULT_DATA_ROOT = "data"


@dataclass(frozen=True)
class DataRoot:
    """Where episodes lie.

    Attributes:
        path: The folder they are worked on in; for a URL its mirror on this machine.
        remote: What is behind the URL, or None for a folder.
    """

    path: Path
    remote: RemoteRoot | None = None

    @property
    def name(self) -> str:
        """The root as the user wrote it."""
        return self.remote.url if self.remote is not None else str(self.path)

    def paths(self, ep_id: str) -> EpisodePaths:
        """The episode's files."""
        return EpisodePaths(self.path, ep_id)

    def show(self, path: Path) -> str:
        """A file of the root as the user would name it."""
        return f"{self.remote.url}/{path.relative_to(self.path).as_posix()}" if self.remote is not None else str(path)

    def list_episodes(self) -> list[str]:
        """Ids of the episodes that have artifacts, sorted."""
        if self.remote is not None:
            return self.remote.list_episodes()
        manifests = self.path / "manifests"
        return sorted(p.name for p in manifests.iterdir() if p.is_dir()) if manifests.is_dir() else []

    def check_episode(self, ep_id: str) -> None:
        """Makes sure that an episode has artifacts.

        Raises:
            ArtifactError: It has none.
        """
        paths = self.paths(ep_id)
        if not (self.remote.has_episode(ep_id) if self.remote is not None else paths.manifests.is_dir()):
            raise ArtifactError(f"{self.name}/manifests/{ep_id}: no such episode; check --ep-id and --out-root")

    def find_video(self, ep_id: str) -> str | None:
        """Path or URL of an episode's video, or None where there is none."""
        if self.remote is not None:
            return self.remote.video_url(ep_id)
        path = self.paths(ep_id).video
        return str(path) if path.exists() else None

    def has_facebank(self) -> bool:
        """Whether an embedded Facebank was ever made here."""
        return self.remote is None and self.facebank_folder().exists()

    def facebank_folder(self) -> Path:
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


def resolve_out_root(explicit: str | None, environment: Mapping[str, str], storage: StorageSettings) -> DataRoot:
    """The data root: --out-root, SCREENALYTICS_DATA_ROOT, else ./data; a folder or a URL."""
    given = explicit or environment.get(DATA_ROOT_VARIABLE) or DEFAULT_DATA_ROOT
    if not is_url(given):
        return DataRoot(Path(given).absolute())
    url = given.rstrip("/")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror = Path(storage.cache_dir).expanduser().absolute() / "roots" / digest
    return DataRoot(mirror, RemoteRoot(url, mirror))
