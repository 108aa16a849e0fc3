"""A job's progress and log as server-sent events. Ids are places in its files, so any restart can be resumed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from fastapi.sse import ServerSentEvent

from cleanup.edges.job_store import ENDED, SUCCEEDED, Job, JobStore

_POLL_S = 0.25
_RETRY_MS = 1000
_MAX_BYTES = 1 << 20
_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})(-end)?")


def parse_event_id(event_id: str) -> tuple[int, int, bool] | None:
    """Places in events.jsonl and log.txt, and whether the stream had ended; None if it is no id of ours."""
    match = _ID.fullmatch(event_id)
    return None if match is None else (int(match[1]), int(match[2]), match[3] is not None)


async def stream_events(store: JobStore, job_id: str, places: tuple[int, int]) -> AsyncIterator[ServerSentEvent]:
    """All events of a job after some places in its files, until it has ended.

    Args:
        store: The jobs.
        job_id: The job.
        places: Bytes of events.jsonl and log.txt that the caller has.

    Yields:
        ``progress`` with a record of its progress file, ``log`` with a line, and at last ``done`` or ``error``
        (failed or canceled) with the job.
    """
    folder = store.folder_of(job_id)
    at_event, at_log = places
    yield ServerSentEvent(comment="hello", retry=_RETRY_MS)
    while True:
        # The end is looked for first: whatever was written before it is read after that.
        job = await asyncio.to_thread(store.read, job_id)
        is_last = False
        while not is_last:
            events = await asyncio.to_thread(_read_lines, folder / "events.jsonl", at_event, False)
            lines = await asyncio.to_thread(_read_lines, folder / "log.txt", at_log, job.state in ENDED)
            is_last = not events and not lines
            for line in events:
                at_event += len(line)
                yield ServerSentEvent(event="progress", id=f"{at_event}-{at_log}", data=orjson.loads(line))
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


def _describe(job: Job) -> dict[str, Any]:
    return {"job_id": job.job_id, "state": job.state, "ended_at": job.ended_at, "error": job.error}


def _read_lines(path: Path, place: int, is_whole: bool) -> list[bytes]:
    """Whole lines from a place on, about a mebibyte of them; the last without its end if nothing will follow."""
    try:
        with path.open("rb") as stream:
            stream.seek(place)
            block = stream.read(_MAX_BYTES)
            if len(block) == _MAX_BYTES:
                block += stream.readline()
    except FileNotFoundError:
        return []
    lines = [line + b"\n" for line in block.split(b"\n")]
    lines[-1] = lines[-1][:-1]  # what follows the last end of a line: nothing, or a line that is being written
    if not lines[-1]:
        lines.pop()
    if lines and not lines[-1].endswith(b"\n") and not is_whole:
        lines.pop()
    return lines


def read_tail(path: Path, n_lines: int) -> str:
    """The last lines of a file, of at most its last mebibyte; empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _MAX_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "".join(f"{line}\n" for line in lines[-n_lines:])
