"""The HTTP API: starts cleanups, tells where they stand, stops them. ``cleanup serve`` runs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from cleanup.edges.data_root import DataRoot
from cleanup.edges.root_path import UnsafePathError
from cleanup.entrypoints import http_models as models
from cleanup.entrypoints.http_episode_routes import episode_routes
from cleanup.entrypoints.http_guards import (
    BodyGuard,
    HeadGuard,
    OriginGuard,
    RateGuard,
    StreamGuard,
    TokenGuard,
    problem,
)
from cleanup.entrypoints.http_job_routes import StreamOver, job_routes
from cleanup.entrypoints.http_metrics import ApiMetrics, MetricsGuard
from cleanup.entrypoints.http_models import problems
from cleanup.entrypoints.job_pool import JobPool
from cleanup.entrypoints.readiness import ReadinessProbe
from cleanup.entrypoints.serve_options import Limits
from cleanup.errors import (
    BusyError,
    CleanupError,
    EngineError,
    FacebankError,
    JobError,
    SettingsError,
    StorageError,
    describe_os_error,
    first_line,
    one_line,
)

_log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[CleanupError], int], ...] = (
    (UnsafePathError, 403), (JobError, 404), (BusyError, 409), (SettingsError, 422), (StorageError, 503),
    (FacebankError, 503), (EngineError, 503), (CleanupError, 400),
)  # fmt: skip
_PAGE = Path(__file__).with_name("job_page.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_TEND_S = 0.25
_TEND_RAY_S = 2.0


@dataclass(frozen=True)
class Access:
    """Who may call.

    Attributes:
        token: Bearer token, or None where none is asked for.
        hosts: Names the API is called by; None for any.
        origins: Origins of web pages that may call it beside its own.
    """

    token: str | None
    hosts: Collection[str] | None
    origins: tuple[str, ...]


def create_app(root: DataRoot, pool: JobPool, probe: ReadinessProbe, access: Access, limits: Limits) -> FastAPI:
    """The API of one data root.

    Args:
        root: Data root.
        pool: Its jobs.
        probe: Tells whether jobs can work.
        access: Who may call.
        limits: What a caller may use up.
    """
    tend_s = _TEND_RAY_S if pool.is_on_ray else _TEND_S

    async def keep_tending() -> None:
        while True:
            try:
                await asyncio.to_thread(pool.tend)
            except (CleanupError, OSError) as error:
                _log.warning("jobs could not be looked after, trying again: %s", first_line(error))
            except Exception:  # noqa: BLE001 -- a fault of ours in one look does not end looking
                _log.exception("jobs could not be looked after; trying again")
            await asyncio.sleep(tend_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tending = asyncio.create_task(keep_tending())
        yield
        tending.cancel()

    app = FastAPI(
        title="Episode Cleanup", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Starts cleanups of episodes, tells where they stand, stops them. Errors are "
        "application/problem+json with one clear line in `detail`.",
    )  # fmt: skip
    metrics = ApiMetrics(pool)
    secured = [Depends(HTTPBearer(auto_error=False))] if access.token is not None else []
    app.include_router(_open_routes())
    app.include_router(_service_routes(probe, metrics), dependencies=secured)
    app.include_router(job_routes(root, pool), dependencies=secured)
    app.include_router(episode_routes(root), dependencies=secured)
    _add_errors(app)
    _add_problem_schema(app)
    # The one added last is asked first.
    app.add_middleware(StreamGuard)
    app.add_middleware(HeadGuard)
    app.add_middleware(BodyGuard, max_bytes=limits.max_body_bytes)
    if access.token is not None:
        app.add_middleware(TokenGuard, token=access.token)
    if limits.per_second:
        app.add_middleware(RateGuard, per_second=limits.per_second)
    app.add_middleware(OriginGuard, hosts=access.hosts, origins=access.origins)
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
        )  # fmt: skip
    app.add_middleware(MetricsGuard, metrics=metrics)
    return app


def _open_routes() -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    @router.get("/healthz", responses=problems())
    def healthz() -> dict[str, str]:
        """Whether the API lives."""
        return {"status": "ok"}

    return router


def _service_routes(probe: ReadinessProbe, metrics: ApiMetrics) -> APIRouter:
    router = APIRouter(tags=["service"])
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": models.Readiness, "description": "not ready"}}

    @router.get("/readyz", response_model=models.Readiness, responses=problems() | not_ready)
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether a job that is started now can work: storage, PostgreSQL, engine, the provider really in use."""
        checks = await probe.check()
        is_ready = all(entry["ok"] for entry in checks)
        response.status_code = 200 if is_ready else 503
        return {"ready": is_ready, "checks": checks}

    @router.get("/metrics", response_class=PlainTextResponse, responses=problems())
    def prometheus() -> Response:
        """Jobs by state, requests and their times, for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _add_problem_schema(app: FastAPI) -> None:
    draw = app.openapi

    def openapi() -> dict[str, Any]:
        schema = draw()
        schema["components"]["schemas"].setdefault("Problem", models.Problem.model_json_schema())
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CleanupError)
    async def tell(_: Request, error: CleanupError) -> Response:
        return problem(next(status for kind, status in _STATUS if isinstance(error, kind)), str(error))

    @app.exception_handler(StreamOver)
    async def tell_over(_: Request, __: StreamOver) -> Response:
        return Response(status_code=204)

    @app.exception_handler(OSError)
    async def tell_system(_: Request, error: OSError) -> Response:
        return problem(503, one_line(describe_os_error(error)))

    @app.exception_handler(HTTPException)
    async def tell_http(request: Request, error: HTTPException) -> Response:
        asked, headers = one_line(f"{request.method} {request.url.path}"[:200]), dict(error.headers or {})
        if error.__cause__ is not None:  # the body, and what Python says of it
            return problem(422, f"the body is no JSON: {first_line(error.__cause__).partition(';')[0]}")
        if error.status_code == 404 and error.detail == HTTPStatus.NOT_FOUND.phrase:
            return problem(404, f"there is no {asked}; see /openapi.json")
        if error.status_code == 405:
            return problem(405, f"{asked}: allowed is {headers.get('Allow', 'something else')}", headers)
        return problem(error.status_code, str(error.detail), headers)

    @app.exception_handler(RequestValidationError)
    async def tell_invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return problem(422, f"the body is no JSON: {first['ctx']['error']}")
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "header", "path"))
        return problem(422, f"{where or 'body'}: {first['msg'][0].lower()}{first['msg'][1:]}")

    @app.exception_handler(Exception)
    async def tell_fault(_: Request, __: Exception) -> Response:
        return problem(500, "internal error; the server's log has it")
