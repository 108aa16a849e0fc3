"""Every error the product raises on purpose.

CleanupError
├── SettingsError    a setting, option, environment variable or configuration file is wrong
├── ArtifactError    an episode's files are missing, broken or contradict each other
├── VideoError       the video is missing, unreadable or not the one the artifacts came from
├── ModelError       a model is missing, broken, of the wrong kind, or not on the device asked for
├── FacebankError    PostgreSQL does not answer, or what it holds does not fit the model
├── StorageError     storage does not answer or refuses
│   └── CommittedError     and the new files are committed, but not all in place yet
├── EngineError      Ray or a worker failed
├── InvariantError   a result breaks an invariant: our bug, found before anything was written
├── JobError         there is no such job of the API, or it cannot do what is asked
│   └── DamagedJobError    its record is not whole, or of a newer version
├── BusyError        another run holds the episode
└── ResourceError    the machine gives this process no more memory, threads, processes or files

Each carries one message that says what is wrong, where, and what to do about it. All of them pickle, because they
cross process boundaries on Ray.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

# Who and with what, before the host of a URL (a password may hold slashes); and its query, where signed URLs carry what
# lets in whoever has it. Bounded, because a text may be as long and as odd as somebody made it.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s/@:]{0,500}(?::\S{0,500})?)@")
_QUERY = re.compile(r"(?<=://)(\S{0,1000}?)\?\S{0,2000}[^\s:;,.)'\"]")


class CleanupError(Exception):
    """Base class. ``exit_code`` is what the command line ends with.

    Args:
        message: The one line; what a hostile input brings into it (line breaks, a terminal's control characters) is
            written out, and URLs lose their credentials.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(hide_credentials(message)))


class SettingsError(CleanupError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class ArtifactError(CleanupError):
    """An artifact is missing, unreadable, or breaks an invariant."""


class VideoError(CleanupError):
    """The video is missing, unreadable, or does not belong to the artifacts."""


class ModelError(CleanupError):
    """A model is missing, broken, of the wrong dimension, or runs on another device than asked for."""


class FacebankError(CleanupError):
    """The Facebank does not answer or holds embeddings of another model."""


class StorageError(CleanupError):
    """Storage does not answer, refuses, or lacks its client library. Trying again may help."""

    exit_code = 1


class CommittedError(StorageError):
    """Storage failed after the commit point: the new files are committed, and the next command puts them into place."""


class BusyError(CleanupError):
    """Another run is working on the same episode."""


class ResourceError(CleanupError):
    """The machine gives this process no more memory, threads, processes or files. Nothing is half written."""

    exit_code = 1


class JobError(CleanupError):
    """There is no such job, or it cannot do what is asked of it."""


class DamagedJobError(JobError):
    """A job's record is not whole, or of a newer version; the job is left out, and others are not held up."""


class EngineError(CleanupError):
    """The engine failed: a worker died, Ray did not start. The input may be fine."""

    exit_code = 1


class InvariantError(CleanupError):
    """A result breaks an invariant of the artifacts. That is our bug; nothing was written.

    Args:
        message: The one line.
        problems: Every violation.
    """

    exit_code = 1

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[InvariantError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.problems)


def one_line(text: str) -> str:
    """A text with everything that is not to be printed as it is written out: line breaks, escapes, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hide_credentials(text: str) -> str:
    """A text whose URLs have lost user, password and query."""
    return _QUERY.sub(r"\1?...", _CREDENTIALS.sub("", text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def describe_os_error(error: OSError) -> str:
    """Which file, and what the system says of it, in one line."""
    if isinstance(error, FileNotFoundError) and error.filename is None and _is_nowhere():
        return "the current folder was removed; change into one that is there, or give absolute paths"
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return one_line(f"{where}{error.strerror or first_line(error)}")


def _is_nowhere() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


# How libraries say that an allocation failed, or that a library did not fit into the address space any more.
_MEMORY_SIGNS = ("allocate memory", "out of memory", "alloc_failed", "bad allocation", "bad_alloc",
                 "insufficient memory", "failed to map segment")  # fmt: skip
_THREAD_SIGNS = ("can't start new thread", "pthread_create")
_MORE_MEMORY = "stop what else uses it, raise the limit (ulimit -v, or the container's), or take a machine with more"
_MORE_THREADS = "stop what else runs, or raise the limit (ulimit -u, or the container's)"


def find_shortage(error: BaseException) -> ResourceError | None:
    """What a user is told if memory, threads, processes or files ran out, however a library says it; else None."""
    text = str(error).lower()
    is_library = isinstance(error, RuntimeError | ImportError | OSError)
    is_library |= type(error).__module__.split(".")[0] in ("cv2", "onnxruntime")
    if is_library and any(sign in text for sign in _THREAD_SIGNS):
        return ResourceError(f"no more threads ({first_line(error)}); {_MORE_THREADS}")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(f"{describe_os_error(error)}; close what else holds some, or raise the limit (ulimit -n)")
    if isinstance(error, BlockingIOError):  # fork
        return ResourceError(f"no more processes ({first_line(error)}); {_MORE_THREADS}")
    is_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if is_memory or (is_library and any(sign in text for sign in _MEMORY_SIGNS)):
        detail = f" ({first_line(error)})" if text.strip() else ""
        return ResourceError(f"not enough memory{detail}; {_MORE_MEMORY}")
    return None


def raise_shortage(error: BaseException, what: object) -> None:
    """Raises a ResourceError if memory, threads, processes or files ran out, so that nothing else is blamed for it.

    Args:
        error: What a library raised.
        what: What it was at work on.
    """
    shortage = find_shortage(error)
    if shortage is not None:
        raise ResourceError(f"{what}: {shortage}") from error


def translate(error: BaseException) -> CleanupError | None:
    """An error as one of ours, whatever raised it; None for one of the system, and for a fault of the program."""
    if isinstance(error, UnicodeEncodeError) and not error.object.isprintable():
        # Half a surrogate pair stands for a byte that is no UTF-8.
        return SettingsError(f"{error.object}: a name that is no UTF-8, which a library needs here; rename it")
    return find_shortage(error) or (error if isinstance(error, CleanupError) else None)


def describe_error(error: BaseException) -> str | None:
    """One line for an error that a user can do something about; None for a fault of the program."""
    told = translate(error)
    if told is not None:
        return str(told)
    return describe_os_error(error) if isinstance(error, OSError) else None
