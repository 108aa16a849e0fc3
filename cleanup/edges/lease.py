"""A lease: one file or object that only one run can create, renewed while the run lasts, taken over once it is stale.

It holds an episode across hosts, where the lock of an operating system does not reach or cannot be relied on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import orjson

from cleanup.edges.records import RecordError, set_aside, take
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, StorageError

# A lease that was not renewed for so long belongs to a process that is gone.
LEASE_S = 90.0
_HEARTBEAT_S = 20.0
_MAX_TEXT = 300


class LeaseStore(Protocol):
    """Where one lease is kept."""

    def create(self, record: dict[str, Any]) -> bool:
        """Creates the lease, whole; false if there is one."""

    def read(self) -> dict[str, Any] | None:
        """The record of the lease there is, or None."""

    def is_stale(self, record: dict[str, Any]) -> bool:
        """Whether the holder of a record that was read is gone."""

    def renew(self, record: dict[str, Any]) -> None:
        """Says that the holder lives."""

    def remove(self, record: dict[str, Any]) -> None:
        """Removes the lease if it is still that of the record."""


class Lease:
    """The lease of an episode, or of something else that only one may work on, held from ``acquire`` to ``release``.

    Args:
        store: Where it is kept.
        ep_id: Its episode, for messages.
        busy: What whoever holds it does, for messages.
    """

    def __init__(self, store: LeaseStore, ep_id: str, busy: str = "a cleanup is running already") -> None:
        self._store, self._ep_id, self._busy = store, ep_id, busy
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._record = {
            "token": uuid.uuid4().hex,
            "holder": f"process {os.getpid()} on {socket.gethostname()} since {since}",
            "machine": machine_id(),
        }
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease-{ep_id}", daemon=True)

    @property
    def holder(self) -> str:
        """Who holds it, since when."""
        return self._record["holder"]

    def acquire(self) -> None:
        """Takes the lease and keeps it.

        Raises:
            BusyError: Another run holds it; the message says which process and since when.
        """
        self.take()
        self._thread.start()

    def take(self) -> None:
        """Takes the lease, which the caller keeps with ``beat``.

        Raises:
            BusyError: As for ``acquire``.
        """
        if not self._store.create(self._record):
            held = self._store.read()
            if held is not None and not self._store.is_stale(held):
                raise BusyError(
                    f"{self._ep_id}: {self._busy} ({held['holder']}); wait for it or stop it (the lease of a host that "
                    f"went down is free after {LEASE_S:.0f} seconds)"
                )
            if held is not None:
                self._store.remove(held)
            if not self._store.create(self._record):
                raise BusyError(f"{self._ep_id}: another cleanup has just begun; wait for it or stop it")
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Makes sure that the lease is still this run's.

        Raises:
            StorageError: It is not: this host was out of touch for too long, and another run may have begun.
        """
        held = self._store.read()
        if self._is_lost or held is None or held["token"] != self._record["token"]:
            raise StorageError(
                f"{self._ep_id}: the lease was lost to another run; nothing was written or published, run it again"
            )

    def release(self) -> None:
        """Gives the lease back."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(StorageError, OSError):  # one that is not removed goes stale
            self._store.remove(self._record)

    def beat(self) -> bool:
        """Says that the holder lives; false once the lease is not its own any more."""
        try:
            held = self._store.read()
            if held is None or held["token"] != self._record["token"]:
                self._is_lost = True
            else:
                self._store.renew(self._record)
                self._renewed = time.monotonic()
        except (StorageError, OSError):
            # Out of touch: another try at the next beat, until the lease may be somebody else's.
            if time.monotonic() - self._renewed > LEASE_S:
                self._is_lost = True
        return not self._is_lost

    def _renew(self) -> None:
        while not self._ended.wait(_HEARTBEAT_S) and self.beat():
            pass


def checked(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record of a lease, whatever it is that was found there: what is no lease is somebody's whom nobody knows.

    Args:
        record: What was found.
        where: The lease, for the name of that somebody.
    """
    names = ("token", "holder", "machine")
    if all(isinstance(record.get(name), str) for name in names):
        return {name: record[name][:_MAX_TEXT] for name in names}
    return {"token": "", "holder": f"whoever wrote {where}", "machine": ""}


class FileLease:
    """A lease as a file, for whoever holds the operating system's lock of the episode on this machine.

    So one of this machine is left over from a process that died. One of another machine is judged by its time of
    change, beside that of a file that is written now: both are the clock of the storage, not of two hosts.

    Args:
        path: The file.
    """

    def __init__(self, path: RootPath) -> None:
        self._path = path

    def create(self, record: dict[str, Any]) -> bool:
        """See LeaseStore."""
        draft = self._draft()
        try:
            draft.write_bytes(orjson.dumps(record))
            draft.rename_new(self._path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _draft(self) -> RootPath:
        # Only the process that holds the lock of this machine is here.
        return self._path.with_name(f".{self._path.name}.{machine_id()}")

    def read(self) -> dict[str, Any] | None:
        """See LeaseStore."""
        try:
            return checked(take(self._path, dict), str(self._path))
        except FileNotFoundError:
            return None
        except RecordError as error:
            if self._path.is_real_file():
                return checked({}, str(self._path))
            set_aside(self._path, error, "nobody holds the episode with it")
            return None

    def is_stale(self, record: dict[str, Any]) -> bool:
        """See LeaseStore."""
        if record["machine"] == machine_id():
            return True
        probe = self._draft()
        probe.write_bytes(b"")
        try:
            # Nor is one of the future renewed: the storage's clock was wrong when it was.
            return abs(probe.stat().st_mtime - self._path.stat().st_mtime) > LEASE_S
        except FileNotFoundError:
            return True
        finally:
            probe.unlink()

    def renew(self, record: dict[str, Any]) -> None:  # noqa: ARG002 -- the file's time is all there is to renew
        """See LeaseStore."""
        self._path.touch()

    def remove(self, record: dict[str, Any]) -> None:
        """See LeaseStore."""
        held = self.read()
        if held is not None and held["token"] == record["token"]:
            self._path.unlink(missing_ok=True)


@cache
def machine_id() -> str:
    """Tells machines apart, and one before and after a restart: processes with the same id share the kernel's locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"
