"""Where the files of an episode lie under a data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cleanup.episode import check_ep_id


@dataclass(frozen=True)
class EpisodePaths:
    """Where the files of an episode lie under a data root."""

    root: Path
    ep_id: str

    def __post_init__(self) -> None:
        check_ep_id(self.ep_id)

    @property
    def manifests(self) -> Path:
        return self.root / "manifests" / self.ep_id

    @property
    def video(self) -> Path:
        return self.root / "videos" / self.ep_id / "episode.mp4"

    @property
    def tracks(self) -> Path:
        return self.manifests / "tracks.jsonl"

    @property
    def faces(self) -> Path:
        return self.manifests / "faces.jsonl"

    @property
    def detections(self) -> Path:
        return self.manifests / "detections.jsonl"

    @property
    def identities(self) -> Path:
        return self.manifests / "identities.json"

    @property
    def track_metrics(self) -> Path:
        return self.manifests / "track_metrics.json"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeds" / self.ep_id / "faces.npy"

    @property
    def report(self) -> Path:
        return self.manifests / "cleanup_report.json"

    @property
    def progress(self) -> Path:
        return self.manifests / "cleanup_progress.json"

    @property
    def frames(self) -> Path:
        return self.root / "frames" / self.ep_id

    @property
    def runs(self) -> Path:
        return self.root / "runs" / self.ep_id

    @property
    def checkpoints(self) -> Path:
        return self.runs / "shards"

    @property
    def finished(self) -> Path:
        return self.runs / "finished.json"
