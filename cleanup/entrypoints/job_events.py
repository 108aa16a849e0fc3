"""A job's progress and log as server-sent events. Ids are places in its files, so any restart can be resumed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
from fastapi.sse import ServerSentEvent
from pydantic import ValidationError

from cleanup.edges.job_records import ENDED, SUCCEEDED, Job, ProgressRecord
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
from cleanup.errors import SettingsError

_POLL_S = 0.25
_RETRY_MS = 1000
_MAX_BYTES = 1 << 20
EVENT_ID_PATTERN = r"([0-9]{1,18})-([0-9]{1,18})(-end)?"
_ID = re.compile(EVENT_ID_PATTERN)
FIRST_EVENT_ID = "0-0"
_EVENTS, _LOG = "events.jsonl", "log.txt"
# What an event of an episode or of a season has in any case; one without is none of this version.
_OF_EPISODE = frozenset({"phase", "phase_index", "phase_total", "phase_progress"})
_OF_SEASON = frozenset({"episodes_done", "episodes_total", "progress"})


class EventPlace(NamedTuple):
    """How far a caller has read: bytes of events.jsonl and of log.txt, and whether it has had the last event."""

    at_event: int
    at_log: int
    is_end: bool = False


def find_place(store: JobStore, job: Job, event_id: str) -> EventPlace:
    """The place that an id of an event of a job stands for.

    Raises:
        SettingsError: It is no id of an event of this job.
        UnsafePathError: The job's files are none.
    """
    match = _ID.fullmatch(event_id)
    folder = store.folder_of(job.job_id)
    if match is not None:
        place = EventPlace(int(match[1]), int(match[2]), match[3] is not None)
        n_event_bytes, n_log_bytes = _size_of(folder / _EVENTS), _size_of(folder / _LOG)
        is_there = place.at_event <= n_event_bytes and place.at_log <= n_log_bytes
        if is_there and _begins_line(folder / _EVENTS, place.at_event) and (job.state in ENDED or not place.is_end):
            return place
    raise SettingsError(f"Last-Event-ID {event_id[:100]!r}: job {job.job_id} has had no such event; leave it out")


def _begins_line(path: RootPath, place: int) -> bool:
    if place == 0:
        return True
    with path.open("rb") as stream:
        stream.seek(place - 1)
        return stream.read(1) == b"\n"


def _size_of(path: RootPath) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def stream_events(store: JobStore, job_id: str, place: EventPlace) -> AsyncIterator[ServerSentEvent]:
    """All events of a job after a place, until it has ended.

    Args:
        store: The jobs.
        job_id: The job.
        place: What the caller has.

    Yields:
        ``progress`` with a record of its progress file, ``log`` with a line, and at last ``done`` or ``error``
        (failed or canceled) with the job.
    """
    folder = store.folder_of(job_id)
    at_event, at_log, _ = place
    yield ServerSentEvent(comment="hello", retry=_RETRY_MS)
    while True:
        # The end is looked for first: whatever was written before it is read after that.
        job = await asyncio.to_thread(store.read, job_id)
        is_last = False
        while not is_last:
            events = await asyncio.to_thread(_read_lines, folder / _EVENTS, at_event, False)
            lines = await asyncio.to_thread(_read_lines, folder / _LOG, at_log, job.state in ENDED)
            is_last = not events and not lines
            for line in events:
                at_event += len(line)
                event = _parse(line)
                if event is not None:
                    yield ServerSentEvent(event="progress", id=f"{at_event}-{at_log}", raw_data=event)
            for line in lines:
                at_log += len(line)
                text = line.decode(errors="replace").rstrip("\r\n")
                yield ServerSentEvent(event="log", id=f"{at_event}-{at_log}", data={"line": text})
        if job.state in ENDED:
            yield ServerSentEvent(
                event="done" if job.state == SUCCEEDED else "error", id=f"{at_event}-{at_log}-end", data=_describe(job)
            )
            return
        await asyncio.sleep(_POLL_S)


def _parse(line: bytes) -> str | None:
    """An event as it is sent on, on one line; None if the line is none."""
    try:
        event = orjson.loads(line)
        ProgressRecord.model_validate(event)
    except (orjson.JSONDecodeError, ValidationError):
        return None
    is_whole = event.keys() >= _OF_EPISODE or event.keys() >= _OF_SEASON
    return orjson.dumps(event).decode() if is_whole else None


def _describe(job: Job) -> dict[str, Any]:
    return {"job_id": job.job_id, "state": job.state, "ended_at": job.ended_at, "error": job.error}


def _read_lines(path: RootPath, place: int, is_whole: bool) -> list[bytes]:
    """Whole lines from a place on, about a mebibyte of them; the last without its end if nothing will follow.

    A line that is longer comes in pieces: nothing that a job writes is.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(place)
            block = stream.read(_MAX_BYTES)
    except FileNotFoundError:
        return []
    lines = [line + b"\n" for line in block.split(b"\n")]
    lines[-1] = lines[-1][:-1]  # what follows the last end of a line: nothing, or a line that is being written
    if not lines[-1]:
        lines.pop()
    is_piece = len(lines) == 1 and len(block) == _MAX_BYTES
    if lines and not lines[-1].endswith(b"\n") and not is_piece and (not is_whole or len(block) == _MAX_BYTES):
        lines.pop()
    return lines


def read_tail(path: RootPath, n_lines: int) -> str:
    """The last lines of a file, of at most its last mebibyte; empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _MAX_BYTES))
            lines = stream.read(_MAX_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "".join(f"{line}\n" for line in lines[-n_lines:])
