"""Routes of the HTTP API for episodes: the last report, the settings a run would have, what it would change."""

# No postponed annotations here: FastAPI reads those of the routes, which name things of the function around them.

import asyncio
import logging
import subprocess
import sys
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter
from starlette.exceptions import HTTPException

from cleanup import errors
from cleanup.edges.data_root import DataRoot
from cleanup.edges.records import take_fragment
from cleanup.entrypoints import http_models as models
from cleanup.entrypoints.http_guards import answer
from cleanup.entrypoints.http_models import problems
from cleanup.entrypoints.http_requests import check_episodes, resolve_options
from cleanup.resolve_settings import resolve_for_run
from cleanup.settings import REQUEST_SETTINGS, SPECS

_log = logging.getLogger(__name__)
_PREVIEW_TIMEOUT_S = 300.0
_MAX_PREVIEWS = 2


def episode_routes(root: DataRoot) -> APIRouter:
    """Routes under /episodes.

    Args:
        root: Data root.
    """
    router = APIRouter(prefix="/episodes/{ep_id}", tags=["episodes"])
    previews = asyncio.Semaphore(_MAX_PREVIEWS)
    ep_id_in_path = Annotated[models.EpId, PathParameter()]

    @router.get("/report", response_model=dict[str, Any], responses=problems(400, 404))
    def report(ep_id: ep_id_in_path) -> Response:
        """The last report of a run with write_back."""
        check_episodes(root, [ep_id])
        if root.remote is not None:
            root.remote.fetch(root.paths(ep_id).report)
        found = take_fragment(root.paths(ep_id).report)
        if found is None:
            raise HTTPException(404, f"{ep_id}: no run with write_back has ended yet")
        return answer(found)

    @router.get("/settings", response_model=models.ResolvedOptions, responses=problems(404))
    def settings(ep_id: ep_id_in_path, profile: Annotated[str | None, Query(max_length=100)] = None) -> dict[str, Any]:
        """The settings a run would have, each with its source."""
        check_episodes(root, [ep_id])
        resolved = resolve_for_run({}, profile, None)
        described = {k: {**v, "meaning": SPECS[k].metadata["meaning"]} for k, v in resolved.describe().items()}
        return {"profile": resolved.profile, "settings": described}

    @router.post("/preview", response_model=models.Preview, responses=problems(400, 404, 409, 503))
    async def preview(ep_id: ep_id_in_path, body: models.Options) -> Any:  # type: ignore[valid-type]
        """Counts of what a run would change, from the embeddings on disk; writes nothing."""
        asked = body.model_dump(exclude_none=True)  # type: ignore[attr-defined]
        check_episodes(root, [ep_id])
        resolve_options(asked)
        settings = {k: v for k, v in asked.items() if k in REQUEST_SETTINGS}
        request = {
            "ep_id": ep_id,
            "profile": asked.get("profile"),
            "actions": asked.get("actions"),
            "settings": settings,
        }
        if previews.locked():
            raise HTTPException(503, f"{_MAX_PREVIEWS} previews are being made already; try again later")
        async with previews:
            return await asyncio.to_thread(_preview, request)

    return router


def _preview(request: dict[str, Any]) -> Any:
    try:
        process = subprocess.run(
            [sys.executable, "-m", "cleanup.entrypoints.preview"], input=orjson.dumps(request), capture_output=True,
            timeout=_PREVIEW_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HTTPException(
            503, f"no preview within {_PREVIEW_TIMEOUT_S:g} s; start a job without write_back"
        ) from None
    if process.returncode != 0:
        _log.error("%s", process.stderr.decode(errors="replace"))
        raise HTTPException(500, "the preview failed; the server's log has it")
    answer = orjson.loads(process.stdout)
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer["preview"]
