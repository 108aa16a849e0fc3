"""cleanup_progress.json: written whole or not at all, at most twice a second, and no number in it goes backwards."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cleanup.progress import PhaseProgress

_MIN_INTERVAL_S = 0.5


class ProgressFile:
    """Writes progress events to a file; itself a ``ReportProgress``.

    Args:
        path: The file; its folder is made.
        ep_id: Episode the run works on.
    """

    def __init__(self, path: Path, ep_id: str) -> None:
        self.path, self._ep_id = path, ep_id
        self._started = time.monotonic()
        self._last_write = -_MIN_INTERVAL_S
        self._phase = ""
        self._phase_started = self._started
        self._record: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, event: PhaseProgress) -> None:
        now = time.monotonic()
        is_new = event.phase != self._phase
        if is_new:
            self._phase, self._phase_started = event.phase, now
        fraction = event.fraction if is_new else max(event.fraction, float(self._record["phase_progress"]))
        spent = now - self._phase_started
        self._record = {
            "stage": "episode_cleanup",
            "ep_id": self._ep_id,
            "phase": event.phase,
            "phase_index": event.phase_index,
            "phase_total": event.phase_total,
            "phase_progress": round(fraction, 4),
            "items_done": event.items_done,
            "items_total": event.items_total,
            "message": event.message,
            "eta_seconds": round(spent * (1 - fraction) / fraction, 1) if 0 < fraction < 1 else None,
        }
        if is_new or event.fraction >= 1 or now - self._last_write >= _MIN_INTERVAL_S:
            self._write(now)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the end of a run that succeeded."""
        self._end("done", "done", {"summary": summary})

    def fail(self, error: str, *, is_canceled: bool = False) -> None:
        """Writes the end of a run that failed or was interrupted."""
        self._end("canceled" if is_canceled else "failed", error, {"error": error})

    def _end(self, phase: str, message: str, extra: dict[str, Any]) -> None:
        total = self._record.get("phase_total", 0)
        progress = 1.0 if phase == "done" else self._record.get("phase_progress", 0.0)
        self._record.update(
            stage="episode_cleanup",
            ep_id=self._ep_id,
            phase=phase,
            phase_index=total if phase == "done" else self._record.get("phase_index", 0),
            phase_total=total,
            phase_progress=progress,
            message=message,
            eta_seconds=0.0 if phase == "done" else None,
            **extra,
        )
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        self._last_write = now
        self._record["total_elapsed_seconds"] = round(now - self._started, 2)
        self._record["updated_at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        staged = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        staged.write_bytes(orjson.dumps(self._record, option=orjson.OPT_INDENT_2))
        staged.replace(self.path)
