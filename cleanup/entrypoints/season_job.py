"""A season: many episodes, one engine. Episodes run side by side; one that fails does not stop the others."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import make_run_id
from cleanup.edges.file_writing import render_json, write_synced
from cleanup.edges.progress_file import RemoteCopy
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints import season_progress as states
from cleanup.entrypoints.episode_job import EpisodeJob, run_episode_job
from cleanup.entrypoints.run_tools import Tools, choose_engine
from cleanup.entrypoints.season_progress import SeasonProgress, write_season_progress
from cleanup.errors import ArtifactError, SettingsError, describe_error
from cleanup.input_limits import MAX_LIST_BYTES
from cleanup.names import EpId, Show, check_ep_id, check_show
from cleanup.resolve_settings import ResolvedSettings
from cleanup.run import PIXEL_PHASES
from cleanup.text_files import TextError, read_text

_log = logging.getLogger(__name__)
SCHEMA_VERSION = "season_report_v1"
EP_ID_PLACE = "{ep_id}"
# On Ray: while one episode is clustered, the others keep the workers busy.
_PARALLEL_ON_RAY = 4
_POLL_S = 0.25

OnSeason = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class SeasonJob:
    """What is asked for.

    Attributes:
        ep_ids: Episodes, in the order they are begun.
        root: Data root.
        actions: Phases in canonical order.
        settings: Resolved settings.
        video: Video with ``{ep_id}`` in its path, or None for those under the data root.
        write_back: Whether artifacts are replaced.
        max_parallel_episodes: Episodes under way at once; 0 leaves it to the engine.
        is_resume: Whether finished episodes and checkpointed shards are not done again.
        is_fail_fast: Whether the first episode that fails stops the season.
        progress_file: Where progress goes, or None for the usual place.
    """

    ep_ids: tuple[EpId, ...]
    root: DataRoot
    actions: tuple[str, ...]
    settings: ResolvedSettings
    video: str | None = None
    write_back: bool = False
    max_parallel_episodes: int = 0
    is_resume: bool = True
    is_fail_fast: bool = False
    progress_file: Path | None = None

    def episode(self, ep_id: EpId) -> EpisodeJob:
        """The job of one episode."""
        return EpisodeJob(
            ep_id=ep_id,
            root=self.root,
            actions=self.actions,
            settings=self.settings,
            video=self.video.replace(EP_ID_PLACE, ep_id) if self.video else None,
            write_back=self.write_back,
            is_resume=self.is_resume,
            skips_unchanged=self.is_resume,
        )


def choose_episodes(
    root: DataRoot, ep_ids: Sequence[str], ep_list: Path | None, show: str | None, season: int | None
) -> tuple[EpId, ...]:
    """The episodes of a season, each once: those named, those in a list file, those of a show that have artifacts.

    Args:
        root: Data root, searched for the episodes of ``show``.
        ep_ids: Named one by one.
        ep_list: File with one id per line; empty lines and what follows ``#`` do not count.
        show: Show whose episodes are taken.
        season: Its season, or None for all.

    Raises:
        SettingsError: Nothing is named, or no episode is found.
        ArtifactError: An id is malformed, or the list cannot be read.
    """
    if season is not None and show is None:
        raise SettingsError("--season needs --show")
    chosen = [check_ep_id(ep_id) for ep_id in ep_ids]
    if ep_list is not None:
        chosen += _read_list(ep_list)
    if show is not None:
        chosen += _find_episodes(root, check_show(show), season)
    if not chosen:
        raise SettingsError("no episodes: give --show (and --season), --ep-id or --ep-list")
    return tuple(dict.fromkeys(chosen))


def _read_list(path: Path) -> list[EpId]:
    try:
        lines = read_text(path, MAX_LIST_BYTES).splitlines()
    except TextError as error:
        raise ArtifactError(f"--ep-list {path}: {error}") from error
    except OSError as error:
        raise ArtifactError(f"--ep-list {path}: cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        name = line.split("#", 1)[0].strip()
        if name:
            try:
                found.append(check_ep_id(name))
            except ArtifactError as error:
                raise ArtifactError(f"{path}:{number}: {error}") from None
    return found


def _find_episodes(root: DataRoot, show: Show, season: int | None) -> list[EpId]:
    number = r"\d{2,3}" if season is None else f"0*{season}"
    pattern = re.compile(rf"{re.escape(show)}-s(?=\d{{2,3}}e){number}e\d{{2,4}}")
    found = [ep_id for ep_id in root.list_episodes() if pattern.fullmatch(ep_id)]
    if not found:
        of_season = "" if season is None else f" of season {season}"
        raise SettingsError(f"{root.name}/manifests: no episode{of_season} of show {show!r} has artifacts there")
    return found


def run_season_job(
    job: SeasonJob, on_progress: OnSeason = lambda _: None, is_stop_requested: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Runs a season.

    Args:
        job: What is asked for.
        on_progress: Given ``SeasonProgress.describe`` several times a second, in this thread.
        is_stop_requested: Whether somebody asked this process to stop.

    Returns:
        The season's report, as it was written; ``state`` is ``succeeded`` or ``failed``.

    Raises:
        KeyboardInterrupt: A stop was asked for; all episodes under way have ended, none half written.
        CleanupError: Something that concerns every episode is wrong; none was begun.
    """
    started = time.monotonic()
    n_parallel = _count_parallel(job)
    if job.video is not None and EP_ID_PLACE not in job.video and len(job.ep_ids) > 1:
        raise SettingsError(f"--video {job.video}: a season has a video per episode; put {EP_ID_PLACE} into the path")
    run_id = make_run_id()
    folder = job.root.path / "runs" / "seasons" / run_id
    report_path = folder / "season_report.json"
    own = RootPath.of_file(job.progress_file) if job.progress_file else None
    progress_path = own or folder / "season_progress.json"
    remote_copy = RemoteCopy(progress_path, job.root.remote)
    season = _Season(job, SeasonProgress(run_id, job.ep_ids))
    with Tools(job.settings, job.root) as tools:
        if _needs_models(job):
            _ = tools.models
        # Here and not in the episodes' threads: what is wrong with them concerns the season, and Ray wants this thread.
        _ = tools.engine
        _ = tools.facebank

        def show() -> None:
            description = season.progress.describe()
            write_season_progress(progress_path, description)
            remote_copy.store(is_last=description["state"] != states.RUNNING)
            on_progress(description)

        with ThreadPoolExecutor(n_parallel, thread_name_prefix="episode") as threads:
            pending: set[Future[None]] = {threads.submit(season.run_episode, ep_id, tools) for ep_id in job.ep_ids}
            try:
                while pending:
                    show()
                    _, pending = wait(pending, timeout=_POLL_S)
                    if is_stop_requested():
                        raise KeyboardInterrupt
            except BaseException:
                # Whatever struck this thread: the episodes' threads end at their next step, and are waited for.
                season.stop.set()
                wait(pending)
                season.progress.finish(states.CANCELED)
                show()
                raise
        n_failed = sum(e["state"] == states.FAILED for e in season.episodes.values())
        season.progress.finish(states.FAILED if n_failed else states.SUCCEEDED)
        show()
        n_loads = tools.n_model_loads
    report = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "state": states.FAILED if n_failed else states.SUCCEEDED,
        "runtime_sec": round(time.monotonic() - started, 3),
        "engine": choose_engine(job.settings),
        "profile": job.settings.profile,
        "actions": list(job.actions),
        "write_back": job.write_back,
        "model_loads": n_loads,
        "totals": _sum_up(season.episodes),
        "episodes": {ep_id: season.episodes[ep_id] for ep_id in job.ep_ids},
        "settings": job.settings.describe(),
        "files": {
            "report": job.root.show(report_path),
            "progress": str(own) if own is not None else job.root.show(progress_path),
        },
    }
    folder.mkdir()
    write_synced(report_path, render_json(report))
    if job.root.remote is not None:
        job.root.remote.put(report_path)
    return report


def _needs_models(job: SeasonJob) -> bool:
    """Whether any episode of the season looks at pixels: a phase asks for them, and there is a video."""
    has_video = job.video is not None or any(job.root.find_video(ep_id) is not None for ep_id in job.ep_ids)
    return bool(PIXEL_PHASES & set(job.actions)) and has_video


def _count_parallel(job: SeasonJob) -> int:
    is_local = choose_engine(job.settings) == "local"
    if is_local and job.max_parallel_episodes > 1:
        raise SettingsError(
            "--max-parallel-episodes: the local engine does one episode after the other; use --engine ray"
        )
    return job.max_parallel_episodes or (1 if is_local else _PARALLEL_ON_RAY)


class _Season:
    """A season under way: its episodes' outcomes, and whether it is to stop."""

    def __init__(self, job: SeasonJob, progress: SeasonProgress) -> None:
        self.job, self.progress = job, progress
        self.stop = threading.Event()
        self.episodes: dict[str, dict[str, Any]] = {}

    def run_episode(self, ep_id: EpId, tools: Tools) -> None:
        """Runs one episode to its end, whatever that is; raises nothing."""
        started = time.monotonic()
        if self.stop.is_set():
            self._end(ep_id, states.CANCELED, started, "the season was stopped before its turn")
            return
        self.progress.begin(ep_id)
        try:
            report = run_episode_job(
                self.job.episode(ep_id), lambda event: self.progress.advance(ep_id, event), self.stop.is_set, tools
            )
        except KeyboardInterrupt:
            self._end(ep_id, states.CANCELED, started, "stopped; no file is half written")
        except Exception as error:  # noqa: BLE001 -- one episode's bug is not the season's end
            line = describe_error(error)
            if line is None:
                _log.exception("%s", ep_id)
                line = f"internal error: {type(error).__name__}: {error}"
            self._end(ep_id, states.FAILED, started, line)
        else:
            state = states.UNCHANGED if report.get("unchanged") else states.SUCCEEDED
            self._end(ep_id, state, started, None, report)

    def _end(
        self, ep_id: str, state: str, started: float, error: str | None, report: Mapping[str, Any] | None = None
    ) -> None:
        outcome: dict[str, Any] = {"state": state, "runtime_sec": round(time.monotonic() - started, 3), "error": error}
        if report is not None:
            keys = (
                "tracks_before",
                "tracks_after",
                "clusters_before",
                "clusters_after",
                "warnings",
                "failed_shards",
                "unreadable",
            )
            outcome.update({key: report[key] for key in keys}, report=report["files"]["report"])
            outcome["observed"] = report["observed"] if state == states.SUCCEEDED else {}
        self.episodes[ep_id] = outcome
        self.progress.end(ep_id, state, error)
        if state == states.FAILED and self.job.is_fail_fast:
            self.stop.set()


def _sum_up(episodes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Episodes by state, and what the workers did for all of them."""
    counts = Counter(e["state"] for e in episodes.values())
    done: Counter[str] = Counter()
    for episode in episodes.values():
        done.update(episode.get("observed", {}))
    by_state = {s: counts[s] for s in (states.SUCCEEDED, states.UNCHANGED, states.FAILED, states.CANCELED)}
    return {"episodes": len(episodes), **by_state, **done}
