"""What may be asked of a job, looked at when it is asked for and once more by the job, whose record is but a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.season_job import EP_ID_PLACE
from cleanup.errors import SettingsError
from cleanup.names import EpId
from cleanup.settings import REQUEST_SETTINGS

# What a request holds beside settings.
RUN_FIELDS = frozenset({"profile", "actions", "write_back", "video", "resume"})
SEASON_FIELDS = frozenset({"fail_fast", "max_parallel_episodes"})


def check_names(asked: Mapping[str, Any]) -> None:
    """Makes sure that a request sets nothing that is the server's: data root, models, Facebank.

    Raises:
        SettingsError: It does.
    """
    foreign = sorted(asked.keys() - RUN_FIELDS - SEASON_FIELDS - set(REQUEST_SETTINGS))
    if foreign:
        raise SettingsError(f"{foreign[0]}: no option of a job")


def place_video(root: DataRoot, ep_id: EpId, video: str | None) -> Path:
    """Where the video of an episode lies, all links followed.

    Args:
        root: Data root, a folder.
        ep_id: The episode.
        video: As asked for, relative to the data root, or None for that of the episode.

    Raises:
        SettingsError: It does not lie inside the data root.
    """
    inside = root.path.system_path
    asked = root.paths(ep_id).video.system_path if video is None else inside / video.replace(EP_ID_PLACE, ep_id)
    try:
        path, inside = asked.resolve(), inside.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"video: {asked}: is no place of a file ({error})") from None
    if not path.is_relative_to(inside):
        raise SettingsError(f"video: {video or asked} is outside the data root")
    return path
