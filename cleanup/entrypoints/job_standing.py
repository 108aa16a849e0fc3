"""Where a job stands: one shape for episodes and seasons, also before its process has said anything."""

from __future__ import annotations

from typing import Any

from cleanup.edges.job_records import CANCELED, EPISODE, FAILED, QUEUED, SUCCEEDED, Job, ProgressRecord

_ENDS = {SUCCEEDED: "done", FAILED: "failed", CANCELED: "canceled"}


def describe_standing(job: Job, seen: ProgressRecord | None) -> dict[str, Any]:
    """Phase, its place and progress, elapsed seconds, message and details.

    Args:
        job: The job.
        seen: What its process has said, or None if it has said nothing yet.
    """
    before = QUEUED if job.state == QUEUED else "starting"
    has_begun, seen = seen is not None, seen or ProgressRecord()
    common = {
        "total_elapsed_seconds": seen.total_elapsed_seconds,
        "message": job.error or seen.message,
        "items_done": seen.items_done,
        "items_total": seen.items_total,
        "eta_seconds": seen.eta_seconds,
        "updated_at": seen.updated_at,
    }
    if job.kind == EPISODE:
        return {
            "phase": _ENDS.get(job.state) or seen.phase or before,
            "phase_index": seen.phase_index,
            "phase_total": seen.phase_total,
            "phase_progress": seen.phase_progress,
            "episodes": None,
            **common,
        }
    return {
        "phase": _ENDS.get(job.state) or ("episodes" if has_begun else before),
        "phase_index": seen.episodes_done,
        "phase_total": len(job.ep_ids),
        "phase_progress": seen.progress,
        "episodes": seen.episodes,
        **common,
    }
