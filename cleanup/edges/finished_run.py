"""The record of an episode's last finished run: a digest of all it depended on, so that nothing is done twice."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.file_writing import render_json, write_synced
from cleanup.edges.records import RecordError, field, set_aside, take
from cleanup.edges.root_path import RootPath


@functools.cache
def _digest_of_code() -> str:
    """Digest of this package's source: another version may give another result."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _digest_of(path: RootPath) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def compute_fingerprint(paths: EpisodePaths, inputs: Mapping[str, Any]) -> str:
    """Digest of an episode's artifacts as they are on disk, and of everything else a run depends on.

    Args:
        paths: The episode.
        inputs: The rest: actions, settings, digests of video, models and Facebank; plain JSON values.
    """
    files = (paths.tracks, paths.faces, paths.embeddings, paths.identities, paths.detections, paths.track_metrics)
    record = {"code": _digest_of_code(), "files": [_digest_of(path) for path in files], **inputs}
    return hashlib.sha256(render_json(record, orjson.OPT_SORT_KEYS)).hexdigest()


def write_finished(paths: EpisodePaths, fingerprint: str, report: Mapping[str, Any]) -> RootPath:
    """Notes that a run has finished and what it left."""
    content = render_json({"fingerprint": fingerprint, "report": report})
    write_synced(paths.finished, content)
    return paths.finished


def read_finished(paths: EpisodePaths, fingerprint: str) -> dict[str, Any] | None:
    """The report of the last finished run if it depended on just this, else None."""
    if not paths.finished.is_taken():
        return None
    try:
        record = take(paths.finished, dict)
        known, report = field(record, "fingerprint", str), field(record, "report", dict)
    except (RecordError, ValueError) as error:
        set_aside(paths.finished, error, "the episode is run again")
        return None
    return report if known == fingerprint else None
