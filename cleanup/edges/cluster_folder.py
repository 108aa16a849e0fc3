"""A data folder of PostgreSQL: made, looked over, entered. Nothing outside of it is touched, whatever lies in it."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cleanup.edges.cluster_mark import add_mark, find_key, is_marked, make_key
from cleanup.edges.postgres_programs import data_folder_name, ends_with_us, environment
from cleanup.edges.root_path import RootPath
from cleanup.errors import FacebankError

# Nothing of ours ever makes these, and each can lead a server out of its folder.
_FOREIGN = ("recovery.signal", "standby.signal", "tablespace_map")


def make_cluster(folder: RootPath, user: pwd.struct_passwd, programs: Path, lock: int) -> None:
    """Makes a new cluster; it has its name only once it is whole and marked."""
    key = make_key()
    draft = folder.with_name(f"{folder.name}.unfinished")
    if draft.is_dir():
        draft.rmtree()
    else:
        draft.unlink(missing_ok=True)
    draft.mkdir()
    with draft.handle() as handle:
        os.fchmod(handle, 0o700)
        if os.geteuid() == 0:
            os.fchown(handle, user.pw_uid, user.pw_gid)
        os.fchdir(handle)
    made = subprocess.run(
        [str(programs / "initdb"), "-D", data_folder_name(), "--username=postgres", "--encoding=UTF8", "--auth=peer",
         "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"],
        check=False, env=environment(), capture_output=True, text=True, errors="replace", **ends_with_us(lock),
        **_as_user(user),
    )  # fmt: skip
    os.chdir("/")
    if made.returncode != 0:
        complaint = [*made.stdout.strip().splitlines(), *made.stderr.strip().splitlines()]
        causes = (line for line in complaint if "error:" in line or "FATAL:" in line or "PANIC:" in line)
        told = next(causes, (complaint or ["it said nothing"])[-1]).split("FATAL:  ")[-1]
        draft.rmtree()
        raise FacebankError(
            f"{folder}: the embedded PostgreSQL cannot be made ({told}); give a server of your own with --facebank-dsn"
        )
    add_mark(draft, key)
    draft.replace(folder)
    folder.parent.sync()


def _as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    if user.pw_uid == os.geteuid():
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def check_mark(folder: RootPath, user: pwd.struct_passwd) -> None:
    """Refuses a folder that neither who asks nor who will run the server has made or adopted."""
    keys = []
    with contextlib.suppress(FacebankError) if user.pw_uid != os.geteuid() else contextlib.nullcontext():
        keys.append(find_key(user.pw_uid))
    if user.pw_uid != os.geteuid():
        keys.append(find_key(os.geteuid()))
    if not is_marked(folder, [key for key in keys if key is not None]):
        root = folder.root
        raise FacebankError(
            f"{folder}: was not made by this installation, and a PostgreSQL folder can run code of whoever made it; "
            "take an export of it into another data root (cleanup facebank import), or if you trust where it comes "
            f"from: cleanup facebank adopt --out-root {root}"
        )


def share_mark(here: RootPath) -> None:
    """Lets the user of the server, whom root is working for, use the folder without root."""
    with contextlib.suppress(FacebankError, OSError):  # a system user has no home
        key = make_key()
        if not is_marked(here, [key]):
            add_mark(here, key)


def enter(folder: RootPath, user: pwd.struct_passwd) -> None:
    """Works in the data folder from now on, and for root as the user of the server, for good."""
    with folder.handle() as handle:
        owner = os.fstat(handle).st_uid
        if os.geteuid() not in (0, owner):
            raise FacebankError(
                f"{folder}: belongs to uid {owner}, and PostgreSQL runs as the owner alone; run the command as that "
                "user, or give a server with --facebank-dsn"
            )
        strangers = list(_find_strangers(handle, user.pw_uid, folder))
        if os.geteuid() == 0:
            for name in strangers:
                _give(handle, name, user, folder)
            os.fchown(handle, user.pw_uid, user.pw_gid)
        os.fchmod(handle, 0o700)
        os.fchdir(handle)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.environ["HOME"] = user.pw_dir
        os.environ.pop("XDG_STATE_HOME", None)
    os.umask(0o077)


def _find_strangers(handle: int, uid: int, folder: RootPath) -> Iterator[str]:
    """What belongs to somebody else than the user of the server: what root copied, for example.

    Raises:
        FacebankError: There is something that PostgreSQL never makes without being told to.
    """
    for top, folders, files, walked in os.fwalk(".", dir_fd=handle):
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=walked, follow_symlinks=False)
            path = Path(top) / name
            is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISSOCK(status.st_mode)
            if not is_plain or str(path) in _FOREIGN:
                raise FacebankError(
                    f"{folder}/{path}: nothing like it is made by an embedded Facebank, and it could lead the server "
                    "out of its folder; remove it if you know what it is for"
                )
            if status.st_uid != uid and not stat.S_ISSOCK(status.st_mode):
                yield str(path)


def _give(folder: int, name: str, user: pwd.struct_passwd, shown: RootPath) -> None:
    """Gives one file or folder to the user of the server, without following a link or touching a file elsewhere."""
    place = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        for part in Path(name).parts:
            deeper = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = deeper
        status = os.fstat(place)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            raise FacebankError(
                f"{shown}/{name}: has another name elsewhere (a hard link), and root would give that file away, too; "
                "put a copy in its place"
            )
        os.fchown(place, user.pw_uid, user.pw_gid)
    finally:
        os.close(place)
