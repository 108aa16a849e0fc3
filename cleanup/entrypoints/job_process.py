"""The process of one job of the HTTP API: ``python -m cleanup.entrypoints.job_process ROOT JOB_ID``.

It does what ``cleanup run`` and ``cleanup season`` do, and notes its progress and its end in the job's folder. It lives
in a session of its own or is a Ray job, so it outlives the API; SIGTERM stops it as Ctrl-C stops a run, and so does an
API that cannot reach it with a signal and asks it through its folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.file_writing import render_json, replace_file
from cleanup.edges.job_records import CANCELED, EPISODE, FAILED, SUCCEEDED, Job
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.process import run_main
from cleanup.entrypoints.shell import open_root
from cleanup.entrypoints.stop_signals import Stop, stop_held, stop_let, stop_on_signals
from cleanup.entrypoints.terminal import set_up_logging
from cleanup.errors import CleanupError, CommittedError, describe_error, first_line

_log = logging.getLogger(__name__)
_WATCH_S = 0.25


def run_job(store: JobStore, job_id: str, stop: Stop) -> str:
    """Does a job and notes how it ended; gives the state."""
    # A stop that comes while the beginning or the end is being noted waits until that is done.
    with stop_held(), store.hold(job_id) as folder:
        job = store.read(job_id)
        try:
            with stop_let(), _watching(store, job_id, stop):
                if stop.is_requested or store.is_asked_to_stop(job_id):
                    raise KeyboardInterrupt
                summary = _do(job, _Record(folder), lambda: stop.is_requested)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- whatever it was, the job's end is noted
            is_committed = isinstance(error, CommittedError)
            if isinstance(error, KeyboardInterrupt) or (stop.is_requested and not is_committed):
                state, line = CANCELED, "canceled; no file is half written"
            else:
                state, told = FAILED, describe_error(error)
                if told is None:
                    _log.exception("job %s", job_id)
                line = told or f"internal error: {type(error).__name__}: {first_line(error)}"
            _log.error("%s", line)
            store.end(job_id, state, line)
            return state
        state = SUCCEEDED if summary.get("state", SUCCEEDED) == SUCCEEDED else FAILED
        store.end(job_id, state, None if state == SUCCEEDED else _first_failure(summary), summary)
        return state


@contextlib.contextmanager
def _watching(store: JobStore, job_id: str, stop: Stop) -> Iterator[None]:
    """Looks whether the job is asked to stop where no signal reaches it, and stops it then as a signal does."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_WATCH_S) and not stop.is_requested:
            with contextlib.suppress(OSError, CleanupError):  # storage that is away may be back at the next look
                if store.is_asked_to_stop(job_id):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    threading.Thread(target=watch, name="cancel", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _first_failure(season: Mapping[str, Any]) -> str:
    failed = {ep_id: e["error"] for ep_id, e in season["episodes"].items() if e["state"] == FAILED}
    ep_id, error = next(iter(failed.items()))
    return f"{len(failed)} of {len(season['episodes'])} episodes failed, the first: {ep_id}: {error}"


class _Record:
    """Where a job stands: the latest in progress.json, everything in events.jsonl.

    Args:
        folder: The job's folder.
    """

    def __init__(self, folder: RootPath) -> None:
        self._folder = folder
        self._episodes: dict[str, Any] = {}
        self._state = ""

    def note(self, record: Mapping[str, Any]) -> None:
        """Of an episode; its report comes with the job's end, not with its progress."""
        self._write(record, {k: v for k, v in record.items() if k != "summary"})

    def note_season(self, record: Mapping[str, Any]) -> None:
        """Of a season; an event holds those of its episodes that moved since the last one."""
        moved = {k: e for k, e in record["episodes"].items() if _seen(e) != _seen(self._episodes.get(k, {}))}
        self._episodes = dict(record["episodes"])
        is_event = bool(moved) or record["state"] != self._state
        self._state = record["state"]
        self._write(record, {**record, "episodes": moved} if is_event else None)

    def _write(self, record: Mapping[str, Any], event: Mapping[str, Any] | None) -> None:
        replace_file(self._folder / "progress.json", render_json(record, 0))
        if event is not None:
            with (self._folder / "events.jsonl").open("ab") as stream:
                stream.write(render_json(event, orjson.OPT_APPEND_NEWLINE))


def _seen(episode: Mapping[str, Any]) -> tuple[Any, ...]:
    return (episode.get("state"), episode.get("phase"), episode.get("progress"))


def _do(job: Job, record: _Record, is_stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
    from cleanup.entrypoints.job_requests import RUN_FIELDS, SEASON_FIELDS, check_names, place_video
    from cleanup.entrypoints.season_job import SeasonJob, run_season_job
    from cleanup.resolve_settings import resolve_for_run

    asked: Mapping[str, Any] = job.requested
    check_names(asked)
    settings = {name: value for name, value in asked.items() if name not in RUN_FIELDS | SEASON_FIELDS}
    resolved = resolve_for_run(settings, asked.get("profile"), None)
    root, video = open_root(None, resolved), asked.get("video")
    for ep_id in job.ep_ids if root.remote is None else ():
        place_video(root, ep_id, video)
    common: dict[str, Any] = {
        "root": root,
        "actions": parse_actions(asked.get("actions")),
        "settings": resolved,
        "video": None if video is None else str(root.path.system_path / video),
        "write_back": asked.get("write_back", False),
        "is_resume": asked.get("resume", True),
    }
    if job.kind == EPISODE:
        return run_episode_job(
            EpisodeJob(ep_id=job.ep_ids[0], **common), is_stop_requested=is_stop_requested, on_record=record.note
        )
    season = SeasonJob(
        ep_ids=job.ep_ids,
        max_parallel_episodes=asked.get("max_parallel_episodes", 0),
        is_fail_fast=asked.get("fail_fast", False),
        **common,
    )
    return run_season_job(season, record.note_season, is_stop_requested)


def main() -> None:
    """Entry point of the process. Data root, models and Facebank are in its environment."""
    set_up_logging(logging.INFO, is_timed=True)
    with stop_on_signals() as stop:
        run_job(JobStore(RootPath(Path(sys.argv[1]))), sys.argv[2], stop)


if __name__ == "__main__":
    run_main(main)  # a job that is not ours to do, for another process has it, or it is gone, is told in one line
