"""Keeps the embedded PostgreSQL of one data folder running for as long as somebody uses it.

A process of its own (``python -m cleanup.edges.postgres_keeper``), for nothing else outlives a SIGKILL of its users. It
holds the folder for this machine (a lock) and for all others (a lease), is the server's parent, and every user keeps a
connection to it: when the last one is closed, by whatever end of the user, it stops the server. Should it be killed
itself, the system stops the server for it.

Under root everything in the data folder is done as the user of the server, after what only root can do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cleanup.edges.cluster_folder import check_mark, enter, make_cluster, share_mark
from cleanup.edges.file_writing import replace_file
from cleanup.edges.lease import FileLease, Lease
from cleanup.edges.postgres_programs import (
    HERE,
    choose_user,
    data_folder_name,
    ends_with_us,
    environment,
    find_programs,
)
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, CleanupError, FacebankError, describe_os_error, first_line

LEASE_NAME, RECORD_NAME = "episode-cleanup.lease", "episode-cleanup.server"
KEEPER_SOCKET = "keeper"
# Where sockets and configuration lie: short, for the path of a socket has little room.
_MAX_RUNTIME = 60
_BEAT_S, _GLANCE_S = 2.0, 0.02
_START_S, _STOP_S, _END_S = 300.0, 60.0, 10.0
_PIECE = 4096


class _HeldHereError(CleanupError):
    """Another keeper of this machine has the folder."""


def lock_of(folder: RootPath) -> RootPath:
    """What the keeper of a data folder has locked, for as long as it lives."""
    return folder.with_name(f"{folder.name}.lock")


def main(handle: str, root: str, folder: str) -> None:
    """Runs the server for the user at the other end of a connection, and for those that come later."""
    first = socket.socket(fileno=int(handle))
    if os.fork() != 0:  # nobody's child, so that nobody has to wait for it
        os._exit(0)
    notes: list[str] = []
    answer: dict[str, Any] = {}
    try:
        _keep(RootPath(Path(root), Path(folder).relative_to(root).parts), first, notes)
    except _HeldHereError:
        answer = {"held": True}
    except CleanupError as error:
        answer = {"error": str(error), "is_busy": isinstance(error, BusyError)}
    except OSError as error:
        answer = {"error": cannot_be_used(error), "is_busy": False}
    except Exception as error:  # noqa: BLE001 -- there is nobody else to tell it to
        answer = {"error": f"{type(error).__name__}: {first_line(error)}", "is_busy": False}
    if "error" in answer:  # the user knows the folder by its name
        answer["error"] = answer["error"].replace(HERE, folder)
    if answer:
        with contextlib.suppress(OSError):
            _tell(first, answer | {"notes": notes})


def cannot_be_used(error: OSError) -> str:
    """What is said where the system refuses something in the data folder."""
    return (
        f"{describe_os_error(error)}; an embedded Facebank can be used by the owner of its folder alone, where that "
        "user can write: run the command as that user, or give a server of your own with --facebank-dsn"
    )


def _tell(user: socket.socket, answer: dict[str, Any]) -> None:
    user.sendall(json.dumps(answer).encode() + b"\n")


def _keep(folder: RootPath, first: socket.socket, notes: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(lock_of(folder).open_lock())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _HeldHereError(str(folder)) from None
        user = choose_user(folder, notes.append)
        programs = find_programs(user, notes.append)
        if not folder.exists():
            make_cluster(folder, user, programs, lock.fileno())
        check_mark(folder, user)
        enter(folder, user)
        here = RootPath(Path(data_folder_name()))
        (here / RECORD_NAME).unlink(missing_ok=True)
        share_mark(here)
        runtime = stack.enter_context(_runtime_folder(here))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(runtime / KEEPER_SOCKET))
        lease = Lease(FileLease(here / LEASE_NAME), str(folder), "its PostgreSQL is in use")
        lease.take()
        stack.callback(lease.release)
        stack.enter_context(_announced(here, lease.holder, runtime))
        with _running(here, programs, runtime, lease, str(folder), lock.fileno()) as server:
            ready = {"sockets": str(runtime), "user": user.pw_name, "notes": notes}
            _serve(first, listener, server, lease, ready)


@contextlib.contextmanager
def _announced(here: RootPath, holder: str, runtime: Path) -> Iterator[None]:
    """Lets others find the keeper, or say who it is."""
    record = {"holder": holder, "keeper": ProcessIdentity.of(os.getpid()).to_json(), "sockets": str(runtime)}
    replace_file(here / RECORD_NAME, json.dumps(record).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the data root may have been removed
            (here / RECORD_NAME).unlink(missing_ok=True)


def _serve(
    first: socket.socket, listener: socket.socket, server: subprocess.Popen[bytes], lease: Lease, ready: dict[str, Any]
) -> None:
    """Waits for the last user's end, the server's, or the loss of the lease."""
    # The end of the server interrupts the waiting.
    woken, waking = socket.socketpair()
    woken.setblocking(False)
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    users: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:

        def greet(user: socket.socket) -> None:
            with contextlib.suppress(OSError):
                _tell(user, ready)
            users.add(user)
            selector.register(user, selectors.EVENT_READ)

        selector.register(woken, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        listener.listen()
        greet(first)
        beat_at = time.monotonic() + _BEAT_S
        while users and server.poll() is None:
            for key, _ in selector.select(max(0.0, beat_at - time.monotonic())):
                ready_one = key.fileobj
                assert isinstance(ready_one, socket.socket)
                if server.poll() is not None:
                    return
                if ready_one is listener:
                    greet(listener.accept()[0])
                elif ready_one is woken:
                    woken.recv(_PIECE)
                elif _has_gone(ready_one):
                    selector.unregister(ready_one)
                    users.remove(ready_one)
                    if users:
                        ready_one.close()  # the last one is left waiting until the server has stopped
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + _BEAT_S
                if not lease.beat():
                    server.kill()  # it is somebody else's folder now, and nothing may be written into it any more
                    return
        listener.close()


def _has_gone(user: socket.socket) -> bool:
    try:
        return not user.recv(_PIECE)
    except OSError:
        return True


@contextlib.contextmanager
def _running(
    here: RootPath, programs: Path, runtime: Path, lease: Lease, folder: str, lock: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ready for connections; stopped at the end."""
    (here / "postgresql.auto.conf").write_bytes(b"")
    log = here / "log"
    n_logged = log.stat().st_size if log.exists() else 0
    command = [str(programs / "postgres"), "-D", data_folder_name(), "-c", f"config_file={_configure(runtime)}"]
    variables = environment() | _disown_stale_note(here, folder)
    with log.open("ab") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=variables, **ends_with_us(lock))
    try:
        deadline = time.monotonic() + _START_S
        while not _is_ready(here, server.pid):
            if server.poll() is not None or time.monotonic() > deadline or not lease.beat():
                raise FacebankError(
                    f"{folder}: the embedded PostgreSQL does not start ({_last_complaint(log, n_logged)}); see "
                    f"{folder}/log, or give a server of your own with --facebank-dsn"
                )
            time.sleep(_GLANCE_S)
        yield server
    finally:
        # PostgreSQL's fast shutdown, then its immediate one. It is our child: its number is nobody else's yet.
        for number, patience in ((signal.SIGINT, _STOP_S), (signal.SIGQUIT, _END_S), (signal.SIGKILL, _END_S)):
            server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(patience)
                break


def _is_ready(here: RootPath, pid: int) -> bool:
    lines = _read_note(here) or []
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _read_note(here: RootPath) -> list[str] | None:
    """The lines of PostgreSQL's own note about the server that runs, or ran, in a folder; None where there is none."""
    try:
        return (here / "postmaster.pid").read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None


def _disown_stale_note(here: RootPath, folder: str) -> dict[str, str]:
    """Lets PostgreSQL start where the note of a server that is gone names a process that has nothing to do with it.

    The note itself stays: by the shared memory in it PostgreSQL finds out whether anything of that server is left.
    """
    note = _read_note(here)
    if note is None or not sys.platform.startswith("linux"):
        return {}
    try:
        pid = int(note[0])
    except (IndexError, ValueError):
        pid = 0
    if pid <= 0:
        (here / "postmaster.pid").unlink()  # cut off, and PostgreSQL would not start for it
        return {}
    if _works_here(pid):
        raise BusyError(
            f"{folder}: process {pid} is a PostgreSQL that works there, and no command of this version started it; end "
            f"what uses it, or itself (kill -INT {pid})"
        )
    # What PostgreSQL takes for the process that started it, it does not take for another server.
    return {"PG_GRANDPARENT_PID": str(pid)}


def _works_here(pid: int) -> bool:
    """Whether a process is a PostgreSQL in the current folder."""
    process = Path("/proc") / str(pid)
    try:
        is_alive = ProcessIdentity.of(pid).is_alive()
        return is_alive and (process / "comm").read_text() == "postgres\n" and (process / "cwd").samefile(".")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return False


def _last_complaint(log: RootPath, n_before: int) -> str:
    """The server's own last word."""
    with log.open("rb") as stream:
        stream.seek(n_before)
        lines = stream.read().decode(errors="replace").splitlines()
    fatal = [line.split("FATAL:", 1)[1].strip() for line in lines if "FATAL:" in line]
    return [*(lines or ["it said nothing"]), *fatal][-1]


def _configure(runtime: Path) -> Path:
    """Everything the server is told, in a folder of ours; what the data folder says is not read."""
    # The owner of the cluster is let in, and root, and nobody else.
    names = {pwd.getpwuid(uid).pw_name for uid in (os.geteuid(), 0)}
    (runtime / "pg_hba.conf").write_text("local all all peer map=owner\n")
    (runtime / "pg_ident.conf").write_text("".join(f'owner "{name}" postgres\n' for name in sorted(names)))
    settings = {
        "hba_file": str(runtime / "pg_hba.conf"),
        "ident_file": str(runtime / "pg_ident.conf"),
        "listen_addresses": "",
        "unix_socket_directories": '"{}"'.format(str(runtime).replace('"', '""')),
        "port": "5432",
        "allow_alter_system": "off",
    }
    lines = []
    for name, value in settings.items():
        doubled = value.replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{doubled}'\n")
    path = runtime / "postgresql.conf"
    path.write_text("".join(lines))
    return path


@contextlib.contextmanager
def _runtime_folder(here: RootPath) -> Iterator[Path]:
    """A folder that is this user's alone, for sockets and configuration; removed at the end."""
    uid, status = os.geteuid(), here.stat()
    for place in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):  # noqa: S108 -- what is made there is looked at
        base = Path(place) / f"episode-cleanup-{uid}"
        folder = base / f"{status.st_dev:x}-{status.st_ino:x}"
        if not base.is_absolute() or not str(base).isascii() or "\n" in place or len(str(folder)) > _MAX_RUNTIME:
            continue
        try:
            base.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        found = base.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
            raise FacebankError(
                f"{base}: is not a folder of yours alone; remove it, or set TMPDIR to a folder of yours"
            )
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)  # of a keeper that was killed
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    raise FacebankError(
        "no temporary folder for the embedded PostgreSQL's sockets; set TMPDIR to one with a short path"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
