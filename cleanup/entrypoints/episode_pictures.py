"""What a job made of its episode, in pictures: the pieces of split tracks, the tracks of each identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.job_records import EPISODE, SUCCEEDED, Job
from cleanup.edges.root_path import RootPath

_MAX_TRACKS = 24
_MAX_CLUSTERS = 200


def find_thumbnail(paths: EpisodePaths, job: Job, track_id: int) -> RootPath | None:
    """The thumbnail that a job saved of a track, or None; never a file outside the data root."""
    if job.kind != EPISODE or job.state != SUCCEEDED or job.run_id is None:
        return None
    folder = paths.frames if job.is_write_back else paths.runs / job.run_id / "frames"
    path = folder / "thumbs" / f"track_{track_id:05d}.jpg"
    return path if path.is_file() else None


def describe_pictures(root: DataRoot, job: Job, url_of: Callable[[int], str]) -> dict[str, Any]:
    """Splits and clusters of the episode as it lies on disk, with the thumbnails there are.

    Args:
        root: Data root.
        job: A job with ``write_back`` that succeeded; of others there is nothing on disk to show.
        url_of: Where a track's thumbnail is served.

    Returns:
        ``splits`` and ``clusters``, largest clusters first.

    Raises:
        ArtifactError: The artifacts cannot be read.
        BusyError: They are being written all the time.
    """
    if job.kind != EPISODE or job.state != SUCCEEDED or not job.is_write_back:
        return {"splits": [], "clusters": []}
    paths = root.paths(job.ep_ids[0])
    episode = root.read_settled(paths.ep_id, read_episode)

    def picture(track_id: int) -> dict[str, Any]:
        found = find_thumbnail(paths, job, track_id)
        return {"track_id": track_id, "url": url_of(track_id) if found is not None else None}

    pieces: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in episode.tracks.select(["track_id", "parent_track_id", "split_reason"]).to_pylist():
        if row["parent_track_id"] is not None:
            pieces[row["parent_track_id"]].append({**picture(row["track_id"]), "reason": row["split_reason"]})
    splits = [{"track_id": t, "pieces": [picture(t), *others]} for t, others in sorted(pieces.items())]
    rows = sorted(episode.identities.to_pylist(), key=lambda r: (-len(r["track_ids"]), r["identity_id"]))
    clusters = [
        {"identity_id": r["identity_id"], "name": r["name"], "person_id": r["person_id"],
         "n_tracks": len(r["track_ids"]), "tracks": [picture(t) for t in r["track_ids"][:_MAX_TRACKS]]}
        for r in rows[:_MAX_CLUSTERS]
    ]  # fmt: skip
    return {"splits": splits, "clusters": clusters}
