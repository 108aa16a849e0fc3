"""Every error the product raises on purpose.

CleanupError
├── SettingsError    a setting, option, environment variable or configuration file is wrong
├── ArtifactError    an episode's files are missing, broken or contradict each other
├── VideoError       the video is missing, unreadable or not the one the artifacts came from
│   └── DamagedVideoError  a stretch of it cannot be decoded
├── ModelError       a model is missing, broken, of the wrong kind, or not on the device asked for
├── FacebankError    PostgreSQL does not answer, or what it holds does not fit the model
├── StorageError     storage does not answer or refuses
│   └── CommittedError     and the new files are committed, but not all in place yet
├── EngineError      Ray or a worker failed
├── InvariantError   a result breaks an invariant: our bug, found before anything was written
├── JobError         there is no such job of the API, or it cannot do what is asked
│   └── DamagedJobError    its record is not whole, or of a newer version
└── BusyError        another run holds the episode

Each carries one message that says what is wrong, where, and what to do about it. All of them pickle, because they
cross process boundaries on Ray.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


class DamagedVideoError(VideoError):
    """A stretch of the video cannot be decoded; the rest may be fine. The only error that concerns a shard alone."""


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
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or first_line(error)}"
