"""What the HTTP API refuses before a job is made: what is not there, not ready, or outside the data root."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.episode_job import parse_actions
from cleanup.entrypoints.season_job import EP_ID_PLACE, choose_episodes
from cleanup.errors import SettingsError
from cleanup.names import EpId, Show
from cleanup.resolve_settings import ResolvedSettings, resolve_for_run
from cleanup.settings import REQUEST_SETTINGS


def choose_season(root: DataRoot, ep_ids: list[EpId], show: Show | None, season: int | None) -> list[EpId]:
    """The episodes of a season.

    Args:
        root: Data root.
        ep_ids: Named one by one; checked ids.
        show: Show whose episodes are taken, or None.
        season: Its season, or None for all.

    Raises:
        SettingsError: Nothing is named.
        HTTPException: 404 if no episode is found.
    """
    if not ep_ids and show is None:
        raise SettingsError("no episodes: give ep_ids, or show and perhaps season")
    if season is not None and show is None:
        raise SettingsError("season: needs show")
    try:
        return list(choose_episodes(root, ep_ids, None, show, season))
    except SettingsError as error:
        raise HTTPException(404, str(error)) from None


def resolve_options(asked: dict[str, Any]) -> ResolvedSettings:
    """The settings of a request; a SettingsError names what is wrong."""
    settings = {name: value for name, value in asked.items() if name in REQUEST_SETTINGS}
    return resolve_for_run(settings, asked.get("profile"), None)


def check_episodes(root: DataRoot, ep_ids: list[EpId]) -> None:
    """Makes sure that episodes are there and inside the data root.

    Raises:
        HTTPException: 404 if one is not there, 403 if a link leads outside.
    """
    inside = root.path.system_path.resolve()
    known = set(root.list_episodes()) if root.remote is not None or len(ep_ids) > 1 else None
    for ep_id in ep_ids:
        paths = root.paths(ep_id)
        if not (paths.manifests.is_dir() if known is None else ep_id in known):
            raise HTTPException(404, f"{ep_id}: no such episode under manifests/ of the data root")
        if root.remote is None and not all(
            p.system_path.resolve().is_relative_to(inside)
            for p in (paths.manifests, paths.embeddings.parent, paths.video)
        ):
            raise HTTPException(403, f"{ep_id}: a link leads out of the data root; the API works inside it only")


def check_options(root: DataRoot, ep_ids: list[EpId], asked: dict[str, Any]) -> None:
    """Refuses now what the job would fail with at its start; makes the video's path absolute."""
    check_episodes(root, ep_ids)
    resolve_options(asked)
    needs_video = "reembed" in parse_actions(asked.get("actions"))
    if "video" in asked:
        asked["video"] = _confine_video(root, ep_ids, asked["video"], is_needed=needs_video)
    for ep_id in ep_ids if root.remote is None else []:
        paths = root.paths(ep_id)
        missing = [path.name for path in (paths.tracks, paths.faces, paths.identities) if not path.exists()]
        if missing:
            raise HTTPException(400, f"{ep_id}: not ready: no {', '.join(missing)}; run detection and clustering first")
        if needs_video and "video" not in asked and not paths.video.exists():
            raise HTTPException(400, f"{ep_id}: not ready: no video at {root.show(paths.video)}")


def _confine_video(root: DataRoot, ep_ids: list[EpId], video: str, *, is_needed: bool) -> str:
    if root.remote is not None:
        raise SettingsError("video: behind a URL it is videos/EP_ID/episode.mp4 and nothing else")
    if "\0" in video or (len(ep_ids) > 1 and EP_ID_PLACE not in video):
        raise SettingsError(f"video: a season has a video per episode; put {EP_ID_PLACE} into the path")
    for ep_id in ep_ids:
        path = (root.path.system_path / video.replace(EP_ID_PLACE, ep_id)).resolve()
        if not path.is_relative_to(root.path.system_path.resolve()):
            raise SettingsError(f"video: {video} is outside the data root")
        if is_needed and not path.is_file():
            raise HTTPException(400, f"{ep_id}: not ready: no video at {video}")
    return str(root.path.system_path / video)
