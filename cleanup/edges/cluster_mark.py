"""The mark of a PostgreSQL data folder that this installation made or adopted; no other one is ever started.

A data folder holds more than data: whoever made it can have put functions and triggers into it that run as the user of
the server. The mark is an HMAC of the cluster's own number under a secret of the user that lies outside every data
root. So a copy of the folder keeps it, and nobody who does not know the secret can make one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pwd
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cleanup.edges.root_path import RootPath
from cleanup.errors import FacebankError, describe_os_error

_MARK_NAME = "episode-cleanup.mark"
_PURPOSE = b"episode-cleanup: a Facebank of ours\0"
_KEY_BYTES, _NUMBER_BYTES = 32, 8
# A line for each installation that made or adopted the folder, the newest last.
_MAX_MARKS = 64


def is_marked(folder: RootPath, keys: Sequence[bytes]) -> bool:
    """Whether a data folder was made or adopted by whoever has one of the secrets."""
    try:
        expected = [_mark_of(folder, key) for key in keys]
        return any(hmac.compare_digest(ours, mark) for ours in expected for mark in _read_marks(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def add_mark(folder: RootPath, key: bytes) -> None:
    """Marks a data folder, beside the marks of other installations.

    Raises:
        FacebankError: It holds no cluster.
    """
    try:
        mark = _mark_of(folder, key)
    except (FileNotFoundError, NotADirectoryError):
        raise FacebankError(f"{folder}: holds no whole PostgreSQL cluster; remove it, and a new one is made") from None
    marks = [*(m for m in _read_marks(folder) if m != mark), mark][-_MAX_MARKS:]
    draft = folder / f".{_MARK_NAME}.{os.getpid()}"
    draft.write_bytes(b"".join(m + b"\n" for m in marks))
    draft.replace(folder / _MARK_NAME)
    folder.sync()


def find_key(uid: int) -> bytes | None:
    """The secret of a user, or None where the user has none yet.

    Raises:
        FacebankError: It is there, but could be somebody else's.
    """
    path = _key_path(uid)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FacebankError(f"{describe_os_error(error)}; it is the secret that marks Facebanks as yours") from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        key = stream.read(_KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    if len(key) != _KEY_BYTES or status.st_uid != uid or status.st_mode & 0o077:
        raise FacebankError(
            f"{path}: is not a secret that only uid {uid} can read (owner, mode 0600, {_KEY_BYTES} bytes); remove it, "
            "and adopt your Facebanks again: cleanup facebank adopt"
        )
    return key


def make_key() -> bytes:
    """The secret of the user of this process, made at first use.

    Raises:
        FacebankError: There is no place for it.
    """
    uid = os.geteuid()
    key = find_key(uid)
    if key is None:
        path = _key_path(uid)
        target = RootPath.of_file(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with draft.open("xb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(secrets.token_bytes(_KEY_BYTES))
            try:
                with contextlib.suppress(FileExistsError):  # another command was first
                    draft.rename_new(target)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise FacebankError(
                f"no place for the secret that marks Facebanks as made here ({describe_os_error(error)}); set "
                "XDG_STATE_HOME to a folder of your own that is kept, or give a server with --facebank-dsn"
            ) from error
        key = find_key(uid)
        assert key is not None
    return key


def _key_path(uid: int) -> Path:
    """Where a user's secret lies.

    The environment speaks of the user of this process alone. Under ``sudo`` root may have somebody else's home, and is
    not to leave anything there.
    """
    homes = []
    if uid == os.geteuid():
        state = os.environ.get("XDG_STATE_HOME", "")
        if os.path.isabs(state):  # noqa: PTH117 -- of what may be empty
            return Path(state) / "episode-cleanup" / "facebank.key"
        homes.append(os.environ.get("HOME", ""))
    with contextlib.suppress(KeyError):
        homes.append(pwd.getpwuid(uid).pw_dir)
    for home in homes:
        with contextlib.suppress(OSError):
            if Path(home).is_absolute() and Path(home).stat().st_uid == uid:
                return Path(home) / ".local" / "state" / "episode-cleanup" / "facebank.key"
    raise FacebankError(
        f"uid {uid} has no home folder of its own for the secret that marks Facebanks as made here; set XDG_STATE_HOME "
        "to a folder of your own that is kept, or give a server with --facebank-dsn"
    )


def _mark_of(folder: RootPath, key: bytes) -> bytes:
    with (folder / "global" / "pg_control").open("rb") as stream:
        number = stream.read(_NUMBER_BYTES)
    if len(number) != _NUMBER_BYTES:
        raise FacebankError(f"{folder}/global/pg_control: is cut off, so this is no whole PostgreSQL cluster")
    return hmac.digest(key, _PURPOSE + number, hashlib.sha256).hex().encode()


def _read_marks(folder: RootPath) -> list[bytes]:
    try:
        return (folder / _MARK_NAME).read_bytes().split()[:_MAX_MARKS]
    except FileNotFoundError:
        return []
