"""The process of one job of the HTTP API: ``python -m cleanup.entrypoints.job_process FOLDER JOB_ID``.

It does what ``cleanup run`` and ``cleanup season`` do, and notes its end in the job's folder. It lives in a session of
its own, so it outlives the API; SIGTERM stops it as Ctrl-C stops a run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cleanup.edges.job_store import CANCELED, FAILED, SUCCEEDED, Job, JobStore
from cleanup.entrypoints.shell import Stop, one_line_errors, open_root
from cleanup.errors import CleanupError, first_line

_log = logging.getLogger(__name__)
_OWN_FIELDS = ("profile", "actions", "write_back", "video", "resume", "out_root", "config_dir")


def run_job(store: JobStore, job_id: str, stop: Stop) -> str:
    """Does a job and notes how it ended; gives the state."""
    with store.hold(job_id) as folder:
        job = store.read(job_id)
        try:
            summary = _do(job, folder, lambda: stop.is_requested)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- whatever it was, the job's end is noted
            if stop.is_requested or isinstance(error, KeyboardInterrupt):
                state, line = CANCELED, "canceled; no file is half written"
            elif isinstance(error, CleanupError | OSError):
                state, line = FAILED, first_line(error)
            else:
                _log.exception("job %s", job_id)
                state, line = FAILED, f"internal error: {type(error).__name__}: {first_line(error)}"
            store.end(job_id, state, line)
            return state
        state = SUCCEEDED if summary.get("state", SUCCEEDED) == SUCCEEDED else FAILED
        store.end(job_id, state, None if state == SUCCEEDED else "an episode failed; see the summary", summary)
        return state


def _do(job: Job, folder: Path, is_stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
    from cleanup.entrypoints.season_job import SeasonJob, run_season_job
    from cleanup.resolve_settings import resolve_for_run

    asked: Mapping[str, Any] = job.requested
    settings = {name: value for name, value in asked.items() if name not in _OWN_FIELDS}
    resolved = resolve_for_run(settings, asked.get("profile"), asked.get("config_dir"))
    root = open_root(asked.get("out_root"), resolved)
    common: dict[str, Any] = {
        "root": root,
        "actions": parse_actions(asked.get("actions")),
        "settings": resolved,
        "video": asked.get("video"),
        "write_back": asked.get("write_back", False),
        "is_resume": asked.get("resume", True),
        "progress_file": folder / "progress.json",
    }
    if job.kind == "season":
        return run_season_job(SeasonJob(ep_ids=job.ep_ids, **common), is_stop_requested=is_stop_requested)
    return run_episode_job(EpisodeJob(ep_id=job.ep_ids[0], **common), is_stop_requested=is_stop_requested)


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    store, job_id = JobStore(Path(sys.argv[1])), sys.argv[2]
    with one_line_errors() as stop:
        run_job(store, job_id, stop)


if __name__ == "__main__":
    main()
