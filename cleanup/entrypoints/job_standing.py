"""Where a job stands: one shape for episodes and seasons, also before its process has said anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.job_store import CANCELED, EPISODE, FAILED, QUEUED, SUCCEEDED, Job
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError

_ENDS = {SUCCEEDED: "done", FAILED: "failed", CANCELED: "canceled"}
_DETAILS = ("items_done", "items_total", "eta_seconds", "updated_at")


def describe_standing(job: Job, folder: Path) -> dict[str, Any]:
    """Phase, its place and progress, elapsed seconds, message and details.

    Args:
        job: The job.
        folder: Its folder, with progress.json once its process has something to say.
    """
    seen = read_json(folder / "progress.json") or {}
    common = {
        "total_elapsed_seconds": seen.get("total_elapsed_seconds", 0.0),
        "message": job.error or seen.get("message", ""),
        **{name: seen.get(name) for name in _DETAILS},
    }
    before = QUEUED if job.state == QUEUED else "starting"
    if job.kind == EPISODE:
        return {
            "phase": _ENDS.get(job.state) or seen.get("phase", before),
            "phase_index": seen.get("phase_index", 0),
            "phase_total": seen.get("phase_total", 0),
            "phase_progress": seen.get("phase_progress", 0.0),
            **common,
        }
    return {
        "phase": _ENDS.get(job.state) or ("episodes" if seen else before),
        "phase_index": seen.get("episodes_done", 0),
        "phase_total": len(job.ep_ids),
        "phase_progress": seen.get("progress", 0.0),
        "episodes": seen.get("episodes"),
        **common,
    }


def read_json(path: Path | RootPath) -> dict[str, Any] | None:
    """A JSON object, or None where the file is not there.

    Raises:
        ArtifactError: It is something else.
    """
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: holds no JSON object")
    return found
