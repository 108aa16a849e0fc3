"""Keeps callers from filling the log of a server: messages of one kind are written so often a minute, then counted."""

from __future__ import annotations

import logging
import threading
import time

_WINDOW_S = 60.0
_MAX_RECORDS = 20
_MAX_KINDS = 1024


class RepeatFilter(logging.Filter):
    """Lets so many warnings and errors of one kind through in a minute; the next one after it says how many it left."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING:
            return True  # who asks to hear everything does
        kind, now = (record.name, str(record.msg)), time.monotonic()
        with self._lock:
            since, n_seen = self._kinds.get(kind, (now, 0))
            n_dropped = 0
            if now - since > _WINDOW_S:
                n_dropped, since, n_seen = max(0, n_seen - _MAX_RECORDS), now, 0
            if len(self._kinds) >= _MAX_KINDS and kind not in self._kinds:
                self._kinds.clear()
            self._kinds[kind] = (since, n_seen + 1)
        if n_dropped:
            record.msg, record.args = f"{record.getMessage()} (and {n_dropped} more like it before)", ()
        return n_seen < _MAX_RECORDS
