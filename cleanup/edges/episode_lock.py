"""One run per episode: a lock of the operating system that dies with its process, and across hosts a lease.

Whoever gets hold of an episode first finishes or removes what a process that died has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.backups import BackupStore
from cleanup.edges.early_backups import migrate_early
from cleanup.edges.lease import FileLease, Lease
from cleanup.edges.progress_file import end_abandoned
from cleanup.edges.write_back import recover
from cleanup.errors import BusyError
from cleanup.names import RunId


def make_run_id() -> RunId:
    """A fresh id: when, and by which process."""
    return RunId(f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{os.getpid()}")


@contextlib.contextmanager
def hold_episode(paths: EpisodePaths, patience_s: float = 0.0) -> Iterator[Lease]:
    """Holds the episode for one run on this storage; a write-back that was cut off is finished first.

    Args:
        paths: The episode.
        patience_s: How long to wait for whoever holds it.

    Yields:
        The lease, to be checked before anything is written.

    Raises:
        BusyError: Another run holds the episode; the message says which process and since when.
    """
    paths.runs.mkdir(like=paths.manifests)
    deadline = time.monotonic() + patience_s
    store = FileLease(paths.runs / "lease.json")
    with (paths.runs / "lock").open_lock() as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    held = store.read()
                    holder = held["holder"] if held is not None else "another process"
                    raise BusyError(
                        f"{paths.ep_id}: a cleanup is running already ({holder}); wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        lease = Lease(store, paths.ep_id)
        lease.acquire()
        try:
            _tidy_up(paths)
            yield lease
        finally:
            lease.release()


def _tidy_up(paths: EpisodePaths) -> None:
    recover(paths)
    migrate_early(paths)
    for path in (*paths.runs.glob(f"[0-9]*/{paths.progress.name}"), paths.progress):
        end_abandoned(path, lambda run_id: BackupStore(paths).record_path(run_id).is_real_file(), paths.report)
