"""Where a season stands: the state of every episode, told from several threads, and the file others read it from."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cleanup.edges.file_writing import render_json, replace_file
from cleanup.edges.root_path import RootPath
from cleanup.progress import PhaseProgress

QUEUED, RUNNING = "queued", "running"
SUCCEEDED, UNCHANGED, FAILED, CANCELED = "succeeded", "unchanged", "failed", "canceled"
# Too early for an estimate below this share.
_MIN_SHARE_FOR_ETA = 0.02


class SeasonProgress:
    """Progress of all episodes of one season run; threads may report at once.

    Args:
        run_id: The season's run.
        ep_ids: Its episodes.
    """

    def __init__(self, run_id: str, ep_ids: Sequence[str]) -> None:
        self._run_id = run_id
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._begun: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._episodes: dict[str, dict[str, Any]] = {e: {"state": QUEUED, "progress": 0.0} for e in ep_ids}
        self._state = RUNNING

    def begin(self, ep_id: str) -> None:
        """An episode's turn has come."""
        with self._lock:
            self._begun[ep_id] = time.monotonic()
            self._episodes[ep_id]["state"] = RUNNING

    def advance(self, ep_id: str, event: PhaseProgress) -> None:
        """An episode reports from inside a phase; its share of the whole never goes back."""
        with self._lock:
            episode = self._episodes[ep_id]
            share = (event.phase_index - 1 + event.fraction) / max(event.phase_total, 1)
            episode.update(
                phase=event.phase,
                phase_index=event.phase_index,
                phase_total=event.phase_total,
                phase_progress=round(event.fraction, 4),
                items_done=event.items_done,
                items_total=event.items_total,
                message=event.message,
                progress=max(episode["progress"], round(share, 4)),
            )

    def end(self, ep_id: str, state: str, error: str | None = None) -> None:
        """An episode has ended."""
        with self._lock:
            self._ended[ep_id] = time.monotonic()
            episode = self._episodes[ep_id]
            episode["state"] = state
            episode["error"] = error
            if state in (SUCCEEDED, UNCHANGED):
                episode["progress"] = 1.0

    def finish(self, state: str) -> None:
        """The season has ended."""
        with self._lock:
            self._state = state

    def describe(self) -> dict[str, Any]:
        """The season as season_progress.json shows it."""
        with self._lock:
            now = time.monotonic()
            elapsed = now - self._started
            episodes = {}
            for ep_id, episode in self._episodes.items():
                spent = self._ended.get(ep_id, now) - self._begun[ep_id] if ep_id in self._begun else 0.0
                is_running = episode["state"] == RUNNING
                eta = _estimate(spent, episode["progress"]) if is_running else None
                episodes[ep_id] = {**episode, "elapsed_seconds": round(spent, 2), "eta_seconds": eta}
            states = [e["state"] for e in self._episodes.values()]
            shares = [1.0 if e["state"] in (FAILED, CANCELED) else e["progress"] for e in self._episodes.values()]
            progress = sum(shares) / len(shares)
            return {
                "stage": "season_cleanup",
                "run_id": self._run_id,
                "state": self._state,
                "episodes_total": len(states),
                "episodes_done": sum(s not in (QUEUED, RUNNING) for s in states),
                "episodes_failed": states.count(FAILED),
                "progress": round(progress, 4),
                "eta_seconds": _estimate(elapsed, progress) if self._state == RUNNING else None,
                "total_elapsed_seconds": round(elapsed, 2),
                "updated_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "episodes": episodes,
            }


def _estimate(elapsed_s: float, share: float) -> float | None:
    """Seconds left if the rest goes as fast as what is done."""
    return round(elapsed_s * (1 - share) / share, 1) if share >= _MIN_SHARE_FOR_ETA else None


def write_season_progress(path: RootPath, description: dict[str, Any]) -> None:
    """Writes the file as a whole."""
    path.parent.mkdir()
    replace_file(path, render_json(description))
