"""The embedded PostgreSQL of a data root, for people without a server of their own.

It has no password. Who may use it is what the system says of the process at the other end of its socket (PostgreSQL's
``peer`` authentication, and libpq's ``requirepeer`` the other way round): the user it runs as, and root.

``postgres_keeper.py`` starts it for the first user and stops it after the last one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from cleanup.edges.cluster_mark import add_mark, make_key
from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.postgres_keeper import KEEPER_SOCKET, RECORD_NAME, cannot_be_used, lock_of
from cleanup.edges.postgres_programs import choose_user
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.records import RecordError, field, take
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, FacebankError, describe_os_error

_log = logging.getLogger(__name__)
# A server that is just starting or stopping is waited for.
_PATIENCE_S, _GLANCE_S = 60.0, 0.05
# The note of who has the folder may be that of somebody who is gone.
_LOOK_AGAIN_S = 1.0
_MAX_ANSWER = 1 << 16


@dataclass(frozen=True)
class _Server:
    """A server that runs for as long as the connection to its keeper is open."""

    sockets: str
    user: str
    keeper: socket.socket

    @property
    def dsn(self) -> str:
        # All that the environment could say otherwise is said.
        return make_conninfo(
            "", host=self.sockets, hostaddr="", port=5432, user="postgres", dbname="postgres", requirepeer=self.user
        )


@dataclass(frozen=True)
class _Record:
    """What a keeper leaves in the data folder for others."""

    holder: str
    keeper: ProcessIdentity
    sockets: Path


@contextlib.contextmanager
def open_embedded_facebank(folder: RootPath) -> Iterator[PostgresFacebank]:
    """The Facebank on an embedded server, started here and stopped with its last user.

    Args:
        folder: Data folder of the server, made on first use.

    Raises:
        FacebankError: The server does not start, or the folder was not made here.
        BusyError: The server runs elsewhere: on another host, in another container.
    """
    try:
        folder.parent.mkdir()
        server = _open_server(folder)
    except OSError as error:
        raise FacebankError(cannot_be_used(error)) from error
    with server.keeper:
        try:
            yield PostgresFacebank(server.dsn)
        finally:
            # The other end closes when the server has stopped, or at once if others use it.
            with contextlib.suppress(OSError):
                server.keeper.shutdown(socket.SHUT_WR)
                while server.keeper.recv(_MAX_ANSWER):
                    pass


@contextlib.contextmanager
def open_trial_facebank(root: RootPath) -> Iterator[PostgresFacebank]:
    """An empty Facebank where the data root's would be, of which nothing is left."""
    made = [folder for folder in (root.root, *root.root.parents) if not folder.exists()]
    trial = root / f".facebank-{secrets.token_hex(4)}"
    try:
        with open_embedded_facebank(trial / "postgres") as facebank:
            yield facebank
    finally:
        trial.rmtree()
        for folder in made:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def adopt_embedded_facebank(folder: RootPath) -> str:
    """Marks a data folder that somebody else made as one that may be started; returns the user it will run as.

    Raises:
        FacebankError: There is none, or it belongs to somebody else.
    """
    try:
        if not folder.is_dir():
            raise FacebankError(f"{folder}: there is no embedded Facebank to adopt")
        user = choose_user(folder, _log.warning)
        add_mark(folder, make_key())
    except OSError as error:
        raise FacebankError(f"{describe_os_error(error)}; only its owner, or root, can adopt a Facebank") from error
    return user.pw_name


def _open_server(folder: RootPath) -> _Server:
    begun = time.monotonic()
    while True:
        server = _join(folder) or (None if _is_kept(folder) else _start(folder))
        if server is not None:
            return server
        record, waited = _read_record(folder), time.monotonic() - begun
        if record is not None and not record.keeper.is_here and waited > _LOOK_AGAIN_S:
            raise BusyError(
                f"{folder}: its PostgreSQL is in use by {record.holder}, in another container or on another host; wait "
                "for it or stop it"
            )
        if waited > _PATIENCE_S:
            raise BusyError(f"{folder}: its PostgreSQL is being started or stopped by another command; try again")
        time.sleep(_GLANCE_S)


def _is_kept(folder: RootPath) -> bool:
    """Whether a keeper of this machine has the folder."""
    with lock_of(folder).open_lock() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read_record(folder: RootPath) -> _Record | None:
    """What the keeper of a server says of itself, or None where there is none."""
    try:
        record = take(folder / RECORD_NAME, dict)
        sockets = Path(field(record, "sockets", str))
        return _Record(field(record, "holder", str), ProcessIdentity.from_json(record.get("keeper")), sockets)
    except (FileNotFoundError, NotADirectoryError, RecordError, ValueError):
        return None


def _join(folder: RootPath) -> _Server | None:
    """Becomes one more user of a server that runs."""
    record = _read_record(folder)
    if record is None or not record.keeper.is_here or not record.sockets.is_absolute():
        return None
    keeper = socket.socket(socket.AF_UNIX)
    try:
        status = record.sockets.lstat()
        # Nobody else can have put anything into it.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == folder.stat().st_uid and not status.st_mode & 0o077:
            keeper.settimeout(_PATIENCE_S)
            keeper.connect(str(record.sockets / KEEPER_SOCKET))
            return _greeted(keeper)
    except (OSError, ValueError):  # just starting, or just stopping; or no name of a socket
        pass
    keeper.close()
    return None


def _start(folder: RootPath) -> _Server | None:
    """Starts a keeper; None where another one of this machine was first."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            # It finds what this process finds, and nothing in the folder that it is started in.
            variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, "-P", "-m", "cleanup.edges.postgres_keeper", str(theirs.fileno())]
            subprocess.run(
                [*command, str(folder.root), str(folder)], check=False, cwd="/", env=variables, start_new_session=True,
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        server = _greeted(ours)
    except OSError as error:
        ours.close()
        raise FacebankError(f"{folder}: the embedded PostgreSQL's keeper ended without a word; try again") from error
    except BaseException:
        ours.close()
        raise
    if server is None:
        ours.close()
    return server


def _greeted(keeper: socket.socket) -> _Server | None:
    """The server of a keeper, once it answers; None if it has none because another one has it.

    Raises:
        ConnectionResetError: It ended without an answer.
    """
    said = b""
    while not said.endswith(b"\n") and len(said) < _MAX_ANSWER:
        piece = keeper.recv(_MAX_ANSWER)
        if not piece:
            raise ConnectionResetError
        said += piece
    answer = json.loads(said)
    for note in answer["notes"]:
        _log.warning("%s", note)
    if "error" in answer:
        raise BusyError(answer["error"]) if answer["is_busy"] else FacebankError(answer["error"])
    if "held" in answer:
        return None
    keeper.settimeout(None)
    return _Server(answer["sockets"], answer["user"], keeper)
