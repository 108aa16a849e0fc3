"""Where the files of an episode lie under a data root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cleanup.edges.root_path import RootPath
from cleanup.names import EpId, RunId

# Of each file that a run may replace: which one it is, its length and when it was written; None where it is not there.
Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class EpisodePaths:
    """Where the files of an episode lie under a data root.

    Attributes:
        root: The data root.
        ep_id: The episode.
        staged_by: A run whose staged files take the place of the artifacts, or None for the artifacts themselves.
        kept: Where the artifacts of an earlier state are kept, by their names relative to the root, or None.
    """

    root: RootPath
    ep_id: EpId
    staged_by: RunId | None = None
    kept: Mapping[str, RootPath] | None = None

    def staged(self, run_id: RunId) -> EpisodePaths:
        """The episode as a run has staged it, to be read before it is committed."""
        return EpisodePaths(self.root, self.ep_id, run_id)

    @staticmethod
    def staged_file(target: RootPath, run_id: RunId) -> RootPath:
        """Where a run stages what is to replace a file: beside it."""
        return target.with_name(f".{target.name}.{run_id}.staged")

    def _artifact(self, folder: RootPath, name: str) -> RootPath:
        path = folder / name
        if self.kept is not None:
            return self.kept[self.name_of(path)]
        return path if self.staged_by is None else self.staged_file(path, self.staged_by)

    def name_of(self, path: RootPath) -> str:
        """A path as journals and backups name it: relative to the data root, with slashes."""
        return path.relative_to(self.root).as_posix()

    @property
    def manifests(self) -> RootPath:
        return self.root / "manifests" / self.ep_id

    @property
    def video(self) -> RootPath:
        return self.root / "videos" / self.ep_id / "episode.mp4"

    @property
    def tracks(self) -> RootPath:
        return self._artifact(self.manifests, "tracks.jsonl")

    @property
    def faces(self) -> RootPath:
        return self._artifact(self.manifests, "faces.jsonl")

    @property
    def detections(self) -> RootPath:
        return self.manifests / "detections.jsonl"

    @property
    def identities(self) -> RootPath:
        return self._artifact(self.manifests, "identities.json")

    @property
    def track_metrics(self) -> RootPath:
        return self._artifact(self.manifests, "track_metrics.json")

    @property
    def embeddings(self) -> RootPath:
        return self._artifact(self.root / "embeds" / self.ep_id, "faces.npy")

    @property
    def report(self) -> RootPath:
        return self._artifact(self.manifests, "cleanup_report.json")

    @property
    def written(self) -> tuple[RootPath, ...]:
        """All files that a write-back may replace, in the order it does: nothing refers to what is not there yet."""
        return (self.tracks, self.faces, self.embeddings, self.identities, self.track_metrics, self.report)

    def stamp(self) -> Stamp:
        """Changes whenever one of the files in ``written`` is replaced or written to."""
        return tuple(_stamp_of(path) for path in self.written)

    @property
    def progress(self) -> RootPath:
        return self.manifests / "cleanup_progress.json"

    @property
    def frames(self) -> RootPath:
        return self.root / "frames" / self.ep_id

    @property
    def runs(self) -> RootPath:
        return self.root / "runs" / self.ep_id

    @property
    def journal(self) -> RootPath:
        return self.runs / "journal.json"

    @property
    def checkpoints(self) -> RootPath:
        return self.runs / "shards"

    @property
    def finished(self) -> RootPath:
        return self.runs / "finished.json"

    @property
    def backups(self) -> RootPath:
        return self.root / "backups" / self.ep_id


def _stamp_of(path: RootPath) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
