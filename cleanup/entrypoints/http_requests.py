"""What the HTTP API refuses before a job is made: what is not there, not ready, or outside the data root."""

from __future__ import annotations

import os
from typing import Any

from starlette.exceptions import HTTPException

from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.episode_job import parse_actions
from cleanup.entrypoints.job_requests import place_video
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
    """Makes sure that episodes are there.

    Raises:
        HTTPException: 404 if one is not there.
        UnsafePathError: A link is in its place.
    """
    known = set(root.list_episodes()) if root.remote is not None or len(ep_ids) > 1 else None
    for ep_id in ep_ids:
        if not (root.paths(ep_id).manifests.is_dir() if known is None else ep_id in known):
            raise HTTPException(404, f"{ep_id}: no such episode under manifests/ of the data root")


def check_options(root: DataRoot, ep_ids: list[EpId], asked: dict[str, Any]) -> None:
    """Refuses now what the job would fail with at its start; makes the video's path absolute."""
    check_episodes(root, ep_ids)
    resolve_options(asked)
    needs_video = "reembed" in parse_actions(asked.get("actions"))
    video = asked.get("video")
    if video is not None and root.remote is not None:
        raise SettingsError("video: behind a URL it is videos/EP_ID/episode.mp4 and nothing else")
    if video is not None and len(ep_ids) > 1 and EP_ID_PLACE not in video:
        raise SettingsError(f"video: a season has a video per episode; put {EP_ID_PLACE} into the path")
    for ep_id in ep_ids if root.remote is None else []:
        paths = root.paths(ep_id)
        missing = [path.name for path in (paths.tracks, paths.faces, paths.identities) if not path.exists()]
        if missing:
            raise HTTPException(400, f"{ep_id}: not ready: no {', '.join(missing)}; run detection and clustering first")
        place = place_video(root, ep_id, video)
        if needs_video and not os.path.isfile(place):  # noqa: PTH113 -- false for a name that no file can have, too
            raise HTTPException(400, f"{ep_id}: not ready: no video at {video or root.show(paths.video)}")
    if video is not None:
        asked["video"] = str(root.path.system_path / video)
