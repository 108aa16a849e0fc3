"""The HTTP API: starts cleanups, tells where they stand, stops them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

from cleanup.edges.data_root import DataRoot
from cleanup.edges.job_store import CANCELED, FAILED, QUEUED, SUCCEEDED, Job
from cleanup.entrypoints.episode_job import parse_actions
from cleanup.entrypoints.job_pool import JobPool
from cleanup.episode import check_ep_id
from cleanup.errors import ArtifactError, BusyError, CleanupError, JobError, SettingsError
from cleanup.resolve_settings import hide_password, resolve_for_run
from cleanup.run import PIXEL_PHASES
from cleanup.settings import SPECS, Threshold

_POLL_S = 0.25
_STATUS = ((JobError, 404), (BusyError, 409), (SettingsError, 422), (CleanupError, 400))
# A caller may not send the server's processes to other files or databases.
_SERVER_FIELDS = frozenset({"models", "facebank_dsn", "cache_dir"})


def _options_model() -> type[BaseModel]:
    fields: dict[str, Any] = {
        "ep_id": (str, Field(description="Episode id", examples=["rhobh-s05e02"])),
        "profile": (str | None, Field(None, description="Profile", examples=["balanced"])),
        "actions": (list[str] | None, Field(None, description="Phases; all if not given", examples=[["recluster"]])),
        "write_back": (bool | None, Field(None, description="Whether the artifacts are replaced")),
        "resume": (bool | None, Field(None, description="Whether an earlier run's embeddings are used")),
    }
    for spec in SPECS.values():
        if spec.metadata["option"] and spec.name not in _SERVER_FIELDS:
            kind: Any = float | str if spec.kind is Threshold else spec.kind
            fields[spec.name] = (kind | None, Field(None, description=spec.metadata["meaning"]))
    return create_model("EpisodeCleanup", __config__=ConfigDict(extra="forbid", strict=True), **fields)


EpisodeCleanup = _options_model()


class TokenCheck:
    """ASGI middleware: without the bearer token only ``/healthz`` answers."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"] != "/healthz":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._expected):
                await _problem(401, "a bearer token is needed: Authorization: Bearer CLEANUP_API_TOKEN")(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


def create_app(root: DataRoot, pool: JobPool, *, defaults: dict[str, Any], token: str | None) -> FastAPI:
    """The API of one data root.

    Args:
        root: Data root.
        pool: Its jobs.
        defaults: Options every job gets: where the data root, the models and the Facebank are.
        token: Bearer token, or None where everybody may.
    """

    async def keep_starting() -> None:
        while True:
            await asyncio.to_thread(pool.start_waiting)
            await asyncio.sleep(_POLL_S)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starter = asyncio.create_task(keep_starting())
        yield
        starter.cancel()

    app = FastAPI(title="Episode Cleanup", lifespan=lifespan)
    if token is not None:
        app.add_middleware(TokenCheck, token=token)
    _add_errors(app)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the API lives."""
        return {"status": "ok"}

    @app.post("/jobs/episode_cleanup_async")
    def start_episode(body: EpisodeCleanup) -> dict[str, Any]:  # type: ignore[valid-type]
        """Starts a cleanup of one episode."""
        requested = body.model_dump(exclude_none=True)  # type: ignore[attr-defined]
        ep_id = requested.pop("ep_id")
        _check_request(root, ep_id, requested)
        job = pool.submit("episode", (ep_id,), {**requested, **defaults})
        return {
            **_head(job),
            "progress_file": str(pool.store.folder_of(job.job_id) / "progress.json"),
            "requested": _public(job),
            "artifacts": {name: str(getattr(root.paths(ep_id), name)) for name in
                          ("video", "tracks", "faces", "identities", "report")},
        }  # fmt: skip

    @app.get("/jobs/{job_id}/progress")
    def progress(job_id: str) -> dict[str, Any]:
        """Where a job stands."""
        job = pool.store.read(job_id)
        seen = _read_progress(pool.store.folder_of(job_id))
        nested = {
            "phase": _phase_of(job, seen),
            "phase_index": seen.get("phase_index", 0),
            "phase_total": seen.get("phase_total", 0),
            "phase_progress": seen.get("phase_progress", 0.0),
            "total_elapsed_seconds": seen.get("total_elapsed_seconds", 0.0),
            "message": job.error or seen.get("message", ""),
        }
        return {
            **_head(job),
            "ended_at": job.ended_at,
            "track_metrics": _read_json(root.paths(job.ep_ids[0]).track_metrics),
            **nested,
            "progress": nested,
        }

    @app.get("/jobs/{job_id}")
    def show(job_id: str) -> dict[str, Any]:
        """A job with its report."""
        job = pool.store.read(job_id)
        return {**_head(job), "ended_at": job.ended_at, "requested": _public(job), "error": job.error,
                "summary": job.summary}  # fmt: skip

    @app.get("/jobs")
    def list_jobs(
        ep_id: str | None = None,
        state: str | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Jobs, newest first."""
        found: list[dict[str, Any]] = []
        for job_id in pool.store.list_ids():
            if cursor is not None and job_id >= cursor:
                continue
            job = pool.store.read(job_id)
            if (ep_id is None or ep_id in job.ep_ids) and (state is None or job.state == state):
                if len(found) == limit:
                    return {"jobs": found, "next_cursor": found[-1]["job_id"]}
                found.append({**_head(job), "ended_at": job.ended_at, "error": job.error})
        return {"jobs": found, "next_cursor": None}

    @app.post("/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> dict[str, Any]:
        """Stops a job and answers when it has stopped."""
        job = pool.cancel(job_id)
        return {**_head(job), "ended_at": job.ended_at, "error": job.error}

    return app


def _check_request(root: DataRoot, ep_id: str, requested: dict[str, Any]) -> None:
    """Refuses now what the job would fail with at its start."""
    try:
        check_ep_id(ep_id)
    except ArtifactError as error:
        raise SettingsError(str(error)) from None
    own = ("profile", "actions", "write_back", "resume")
    resolve_for_run({k: v for k, v in requested.items() if k not in own}, requested.get("profile"), None)
    actions = parse_actions(requested.get("actions"))
    paths = root.paths(ep_id)
    if ep_id not in root.list_episodes():
        raise JobError(f"{root.name}/manifests/{ep_id}: no such episode")
    missing = [path.name for path in (paths.tracks, paths.faces, paths.identities) if not path.exists()]
    if missing:
        raise ArtifactError(f"{ep_id}: not ready: {', '.join(missing)} missing; run detection and clustering first")
    if PIXEL_PHASES & set(actions) and root.find_video(ep_id) is None:
        raise ArtifactError(f"{ep_id}: not ready: no video at {root.show(paths.video)}")


def _head(job: Job) -> dict[str, Any]:
    return {"job_id": job.job_id, "ep_id": job.ep_ids[0], "state": job.state, "started_at": job.started_at}


def _public(job: Job) -> dict[str, Any]:
    return {k: hide_password(v) if k == "facebank_dsn" else v for k, v in job.requested.items()}


def _phase_of(job: Job, seen: dict[str, Any]) -> str:
    """The phase; a job that ended without a last word of progress still says how."""
    ends = {SUCCEEDED: "done", FAILED: "failed", CANCELED: "canceled"}
    return ends.get(job.state) or str(seen.get("phase", QUEUED if job.state == QUEUED else "starting"))


def _read_progress(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "progress.json") or {}


def _read_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def _problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": detail.partition(";")[0], "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CleanupError)
    async def tell(_: Request, error: CleanupError) -> Response:
        return _problem(next(status for kind, status in _STATUS if isinstance(error, kind)), str(error))

    @app.exception_handler(HTTPException)
    async def tell_http(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def tell_invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _problem(422, f"{where or 'body'}: {first['msg']}")
