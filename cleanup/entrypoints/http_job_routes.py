"""Routes of the HTTP API for jobs: start, list, watch, cancel."""

# No postponed annotations here: FastAPI reads those of the routes, which name things of the function around them.

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi import Path as PathParameter
from fastapi.responses import PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from cleanup.edges.data_root import DataRoot
from cleanup.edges.job_records import ENDED, EPISODE, JOB_ID_PATTERN, SEASON, Job
from cleanup.edges.records import take_fragment
from cleanup.entrypoints import http_models as models
from cleanup.entrypoints.episode_pictures import describe_pictures, find_thumbnail
from cleanup.entrypoints.http_guards import answer
from cleanup.entrypoints.http_models import problems
from cleanup.entrypoints.http_requests import check_options, choose_season
from cleanup.entrypoints.job_events import (
    EVENT_ID_PATTERN,
    FIRST_EVENT_ID,
    EventPlace,
    find_place,
    read_tail,
    stream_events,
)
from cleanup.entrypoints.job_pool import JobPool
from cleanup.entrypoints.job_standing import describe_standing
from cleanup.errors import CleanupError, first_line
from cleanup.input_limits import MAX_PICTURE_BYTES

_log = logging.getLogger(__name__)
_MAX_STREAMS = 200
_CURSOR_PATTERN = rf"([0-9]{{1,16}})-({JOB_ID_PATTERN})"
_CURSOR = re.compile(_CURSOR_PATTERN)


class StreamOver(Exception):  # noqa: N818 -- not an error: the caller has had the last event of a job
    """The caller has had the last event of a job."""


def job_routes(root: DataRoot, pool: JobPool) -> APIRouter:
    """Routes under /jobs.

    Args:
        root: Data root.
        pool: Its jobs.
    """
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    def find_job(job_id: Annotated[str, PathParameter(examples=[models.JOB_ID])]) -> Job:
        return pool.store.read(job_id)

    _add_starting(router, root, pool)
    _add_listing(router, root, pool, find_job)
    _add_watching(router, pool, find_job)
    _add_pictures(router, root, find_job)
    return router


def _add_starting(router: APIRouter, root: DataRoot, pool: JobPool) -> None:
    idempotency = Header(max_length=200, min_length=1, description="the same key and body: the same job")

    @router.post("/episode_cleanup_async", response_model=models.StartedJob, responses=problems(400, 404, 409, 503))
    def start_episode(
        body: models.EpisodeCleanup,  # type: ignore[valid-type]
        idempotency_key: Annotated[str | None, idempotency] = None,
    ) -> dict[str, Any]:
        """Starts a cleanup of one episode. Fields that are not set come from profiles and YAML."""
        asked = body.model_dump(exclude_none=True)  # type: ignore[attr-defined]
        ep_id = asked.pop("ep_id")
        check_options(root, [ep_id], asked)
        job = pool.submit(EPISODE, (ep_id,), asked, idempotency_key)
        paths = root.paths(ep_id)
        files = {name: root.show(getattr(paths, name)) for name in ("video", "tracks", "faces", "identities", "report")}
        return _start(job, files)

    @router.post("/season_cleanup_async", response_model=models.StartedJob, responses=problems(400, 404, 409, 503))
    def start_season(
        body: models.SeasonCleanup,  # type: ignore[valid-type]
        idempotency_key: Annotated[str | None, idempotency] = None,
    ) -> dict[str, Any]:
        """Starts a cleanup of many episodes, given by name or as all those of a show that have artifacts."""
        asked = body.model_dump(exclude_none=True)  # type: ignore[attr-defined]
        ep_ids = choose_season(root, asked.pop("ep_ids", []), asked.pop("show", None), asked.pop("season", None))
        check_options(root, ep_ids, asked)
        job = pool.submit(SEASON, tuple(ep_ids), asked, idempotency_key)
        return _start(job, {})

    def _start(job: Job, files: dict[str, str]) -> dict[str, Any]:
        progress_file = str(pool.store.folder_of(job.job_id) / "progress.json")
        return {**_head(job), "progress_file": progress_file, "requested": job.requested, "artifacts": files}


def _add_listing(router: APIRouter, root: DataRoot, pool: JobPool, find_job: Callable[..., Job]) -> None:
    store = pool.store
    found = Annotated[Job, Depends(find_job)]

    @router.get("", response_model=models.JobList, responses=problems())
    def list_jobs(
        ep_id: Annotated[models.EpId | None, Query(description="only jobs of this episode")] = None,
        state: Annotated[models.State | None, Query(description="only jobs in this state")] = None,
        limit: Annotated[int, Query(ge=1, le=200, description="so many at most")] = 50,
        cursor: Annotated[
            str | None, Query(pattern=f"^{_CURSOR_PATTERN}$", description="next_cursor of the page before")
        ] = None,
    ) -> dict[str, Any]:
        """Jobs, newest first."""
        match = _CURSOR.fullmatch(cursor or "")
        jobs = [
            job
            for job in store.read_all()
            if (match is None or job.place < (int(match[1]), match[2]))
            and (ep_id is None or ep_id in job.ep_ids)
            and (state is None or job.state == state)
        ]
        rows = [{**_head(job), "error": job.error} for job in jobs[:limit]]
        last = jobs[limit - 1].place if len(jobs) > limit else None
        return {"jobs": rows, "next_cursor": None if last is None else f"{last[0]}-{last[1]}"}

    @router.get("/{job_id}", response_model=models.JobDetails, responses=problems(404))
    def show_job(job: found) -> Response:
        """A job with what was asked for, its error or its report."""
        summary = store.read_report(job.job_id) if job.state in ENDED else None
        return answer({**_head(job), "requested": job.requested, "error": job.error, "summary": summary})

    @router.get("/{job_id}/progress", response_model=models.JobProgress, responses=problems(400, 404))
    def show_progress(job: found) -> Response:
        """Where a job stands."""
        standing = describe_standing(job, store.read_progress(job.job_id))
        metrics = take_fragment(root.paths(job.ep_ids[0]).track_metrics) if job.kind == EPISODE else None
        return answer({**_head(job), "track_metrics": metrics, **standing, "progress": standing})

    @router.post("/{job_id}/cancel", response_model=models.JobRow, responses=problems(404, 409, 503))
    def cancel(job: found) -> dict[str, Any]:
        """Stops a job, all of it, and answers when it has stopped; one that has ended stays as it is."""
        job = pool.cancel(job.job_id)
        return {**_head(job), "error": job.error}


def _add_watching(router: APIRouter, pool: JobPool, find_job: Callable[..., Job]) -> None:
    store = pool.store
    streams = asyncio.Semaphore(_MAX_STREAMS)
    found = Annotated[Job, Depends(find_job)]

    @router.get("/{job_id}/logs", response_class=PlainTextResponse, responses=problems(404))
    def show_log(
        job: found, tail: Annotated[int, Query(ge=1, le=10_000, description="so many last lines at most")] = 1000
    ) -> str:
        """The last lines of a job's log."""
        return read_tail(store.folder_of(job.job_id) / "log.txt", tail)

    async def find_event(
        job: found,
        last_event_id: Annotated[
            str, Header(pattern=f"^{EVENT_ID_PATTERN}$", description="id of the last event seen")
        ] = FIRST_EVENT_ID,
    ) -> AsyncIterator[tuple[str, EventPlace]]:
        place = await asyncio.to_thread(find_place, store, job, last_event_id)
        if place.is_end:
            raise StreamOver
        if streams.locked():
            raise HTTPException(503, f"{_MAX_STREAMS} event streams are open already; poll the progress instead")
        async with streams:
            yield job.job_id, place

    no_content: dict[int | str, dict[str, Any]] = {204: {"description": "the caller has had the last event"}}

    @router.get("/{job_id}/events", response_class=EventSourceResponse, responses=problems(404, 503) | no_content)
    async def events(
        place: Annotated[tuple[str, EventPlace], Depends(find_event)],
    ) -> AsyncIterator[ServerSentEvent]:
        """A job's events as they come: `progress`, `log`, at last `done` or `error`; resumes after Last-Event-ID."""
        try:
            async for event in stream_events(store, *place):
                yield event
        except (CleanupError, OSError) as error:  # it was removed, or storage is away: whoever asks again is told
            _log.warning("the events of job %s end before it does: %s", place[0], first_line(error))


def _add_pictures(router: APIRouter, root: DataRoot, find_job: Callable[..., Job]) -> None:
    found = Annotated[Job, Depends(find_job)]

    @router.get("/{job_id}/pictures", response_model=models.Pictures, responses=problems(400, 404))
    def list_pictures(job: found) -> dict[str, Any]:
        """Splits and clusters of a job with write_back that succeeded, with thumbnails if it saved crops."""
        return describe_pictures(root, job, lambda t: f"/jobs/{job.job_id}/pictures/{t}")

    is_picture: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
    }

    @router.get("/{job_id}/pictures/{track_id}", response_class=Response, responses=problems(404) | is_picture)
    def show_picture(job: found, track_id: Annotated[int, PathParameter(ge=0, le=10**12)]) -> Response:
        """The thumbnail of a track."""
        path = find_thumbnail(root.paths(job.ep_ids[0]), job, track_id)
        if path is None:
            raise HTTPException(404, f"job {job.job_id} has no picture of track {track_id}; see save_crops")
        content = path.read_bytes(MAX_PICTURE_BYTES)
        return Response(content, media_type="image/jpeg", headers={"X-Content-Type-Options": "nosniff"})


def _head(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id, "kind": job.kind, "ep_id": job.ep_ids[0] if job.kind == EPISODE else None,
        "ep_ids": job.ep_ids, "state": job.state, "created_at": job.created_at, "started_at": job.started_at,
        "ended_at": job.ended_at,
    }  # fmt: skip
