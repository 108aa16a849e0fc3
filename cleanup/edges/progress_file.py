"""cleanup_progress.json: written whole or not at all, at most twice a second, and no number in it goes backwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cleanup.edges.file_writing import render_json, replace_file
from cleanup.edges.records import RecordError, field, take
from cleanup.edges.remote_root import RemoteRoot
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, StorageError
from cleanup.names import RunId, check_run_id
from cleanup.progress import PhaseProgress

_log = logging.getLogger(__name__)
_MIN_INTERVAL_S = 0.5
_REMOTE_INTERVAL_S = 5.0
_ENDS = ("done", "failed", "canceled")


class ProgressFile:
    """Writes progress events to a file; itself a ``ReportProgress``.

    Args:
        path: The file; its folder is made.
        ep_id: Episode the run works on.
        run_id: The run.
        remote: Data root behind a URL that the file is stored in as well, less often; or None.
        on_record: Given every record that is written, or None.
    """

    def __init__(
        self,
        path: RootPath,
        ep_id: str,
        run_id: RunId,
        remote: RemoteRoot | None = None,
        on_record: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.path, self._on_record = path, on_record
        self._head = {"stage": "episode_cleanup", "ep_id": ep_id, "run_id": run_id}
        self._mirror = RemoteCopy(path, remote)
        self._started = time.monotonic()
        self._last_write = -_MIN_INTERVAL_S
        self._phase = ""
        self._phase_started = self._started
        self._record: dict[str, Any] = {}
        path.parent.mkdir()

    def __call__(self, event: PhaseProgress) -> None:
        now = time.monotonic()
        is_new = event.phase != self._phase
        if is_new:
            self._phase, self._phase_started = event.phase, now
        fraction = event.fraction if is_new else max(event.fraction, float(self._record["phase_progress"]))
        spent = now - self._phase_started
        self._record = {
            **self._head,
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
            **self._head,
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
        replace_file(self.path, render_json(self._record))
        if self._on_record is not None:
            self._on_record(self._record)
        self._mirror.store(is_last=self._record["phase"] in _ENDS)


class RemoteCopy:
    """Stores a progress file of a mirror in its data root, every few seconds and at the end.

    Args:
        path: The file, under the mirror; elsewhere it is nobody's but the user's.
        remote: The data root, or None for nothing to do.
    """

    def __init__(self, path: RootPath, remote: RemoteRoot | None) -> None:
        self._path = path
        self._remote = remote if remote is not None and path.is_relative_to(remote.mirror) else None
        self._last = -_REMOTE_INTERVAL_S

    def store(self, *, is_last: bool) -> None:
        """Stores the file if it is time to."""
        now = time.monotonic()
        if self._remote is not None and (is_last or now - self._last >= _REMOTE_INTERVAL_S):
            self._last = now
            try:
                self._remote.put(self._path)
            except StorageError as error:
                # Progress is for looking at: the run does not fail for it, its files are what has to arrive.
                _log.warning("%s", error)


def _read_summary(report: RootPath) -> dict[str, Any] | None:
    try:
        return take(report, dict)
    except (OSError, RecordError):  # the run's own is gone; another program's is nobody's summary
        return None


def end_abandoned(path: RootPath, has_committed: Callable[[RunId], bool], report: RootPath) -> bool:
    """Ends a progress file whose run is gone without a word.

    Args:
        path: The file; if it is not there, or not one, it is left alone.
        has_committed: Whether a run has replaced the episode's files.
        report: The report that such a run has left.

    Returns:
        Whether the file was changed.
    """
    try:
        record = take(path, dict)
        run_id = check_run_id(field(record, "run_id", str))
    except (OSError, ValueError, ArtifactError):
        return False
    is_done = has_committed(run_id)
    if record.get("phase") == "done" or (record.get("phase") in _ENDS and not is_done):
        return False
    if is_done:
        message = "the run was cut off after its commit; its files are in place"
        record.update(phase="done", phase_index=record.get("phase_total", 0), phase_progress=1.0, eta_seconds=0.0)
        record.update(message=message, summary=_read_summary(report))
        record.pop("error", None)
    else:
        error = "the run ended without a word (killed, or its machine went down); the files are as they were"
        record.update(phase="failed", message=error, eta_seconds=None, error=error)
    replace_file(path, render_json(record))
    return True
