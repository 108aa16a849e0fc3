"""Stops the embedded PostgreSQL when the process that uses it is gone without a word: killed, for example.

A process of its own (``python -I postgres_guard.py FOLDER``), for nothing else outlives a SIGKILL. Its standard
input is a pipe that only the user of the server holds: a byte says that all is well, an end without one that the user
is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# A server that is just starting, or a cluster that is just being made, is waited for and then stopped.
_PATIENCE_S, _GLANCE_S = 60.0, 0.1


def main(folder: str) -> None:
    """Waits for the end of the user; if it was killed, stops the server unless somebody else uses it."""
    if sys.stdin.buffer.read():
        return
    import psutil

    me = os.getpid()
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        # Of a data root that was removed meanwhile only the server is left.
        with locked(Path(folder)) if Path(folder).parent.is_dir() else contextlib.nullcontext():
            if any(is_alive(user) for user in _read_users(folder)):
                return
            left = [p for p in psutil.process_iter(["cmdline"]) if p.pid != me and folder in (p.info["cmdline"] or ())]
            if not left:
                return
            for process in left:
                try:
                    # PostgreSQL's fast shutdown; what makes or starts a cluster comes to its end by itself.
                    if process.name() == "postgres":
                        process.send_signal(signal.SIGINT)
                except psutil.NoSuchProcess:
                    continue
        time.sleep(_GLANCE_S)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of a folder."""
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_alive(pid: int) -> bool:
    """Whether a process works; one that was killed is there until its parent has asked for it."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _read_users(folder: str) -> list[int]:
    try:
        return [int(pid) for pid in json.loads((Path(folder) / ".handle_pids.json").read_text())]
    except (OSError, ValueError, TypeError):
        return []


if __name__ == "__main__":
    main(*sys.argv[1:])
