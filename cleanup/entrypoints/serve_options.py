"""How the HTTP API is served: the only home of its defaults, light enough for the command line's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cleanup.errors import SettingsError

TOKEN_VARIABLE = "CLEANUP_API_TOKEN"  # noqa: S105 -- the variable's name
_MIN_TOKEN_LENGTH = 16


def check_token(token: str) -> str:
    """The token that the environment holds, of the API and of who calls it; a library that refused it would print it.

    Raises:
        SettingsError: It is too short to be one, or cannot be sent in a header.
    """
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(
            f"{TOKEN_VARIABLE}: at least {_MIN_TOKEN_LENGTH} ASCII characters, no spaces, no line breaks"
        )
    return token


@dataclass(frozen=True)
class Limits:
    """What a caller may use up.

    Attributes:
        max_body_bytes: Longest body.
        per_second: Requests a second from one address, twice as many at once; 0 for any.
        max_connections: Connections at a time, half of them from one address.
    """

    max_body_bytes: int = 65536
    per_second: float = 200.0
    max_connections: int = 512


@dataclass(frozen=True)
class ServeOptions:
    """How jobs are done and kept, and what callers may use up.

    Attributes:
        ray_address: URL of a Ray dashboard; jobs are then jobs of that cluster. None for processes of this host.
        max_jobs: Jobs at a time.
        max_waiting: Jobs that may wait.
        keep_jobs: Jobs kept after they have ended.
        cors_origins: Origins of web pages that may call the API beside its own.
        limits: Of bodies and requests.
    """

    ray_address: str | None = None
    max_jobs: int = 1
    max_waiting: int = 100
    keep_jobs: int = 1000
    cors_origins: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
