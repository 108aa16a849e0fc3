"""The connection string of a Facebank: taken apart once, and printed without what is secret in it."""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cleanup.errors import FacebankError

_SHOWN = ("host", "hostaddr", "port", "dbname", "user")
# Where a password that holds @, : or / is taken apart wrongly, a piece of it lands in one of these.
_PLAIN = {
    "host": re.compile(r"/.*|@?[\w.-]*|(?=.*:.*:)[0-9A-Fa-f:.]+(%[\w.-]+)?"),
    "hostaddr": re.compile(r"[\w.:%]*"),
    "port": re.compile(r"\d*"),
    "dbname": re.compile(r"(?!.*://)[^=@]*"),
    "user": re.compile(r"[^:]*"),
}
_ENCODED = "in postgresql://... the characters @ : / ? # % of a password are written %40 %3A %2F %3F %23 %25"


class Dsn:
    """A connection string. Printed it shows host, port, database and user, and only what is surely nothing else.

    Args:
        text: The string, in URL or keyword form.
        source: How the user gave it; all that is said of a string that is not understood.

    Raises:
        FacebankError: It is not understood, or a part of it looks like a piece of a password.
    """

    def __init__(self, text: str, source: str = "the connection string") -> None:
        self._text = text
        user, at, rest = text.partition("://")[2].partition("@")
        if at and ("/" in user or "@" in rest):
            raise FacebankError(f"{source}: holds an @ or / too many (not shown, it may be a password's); {_ENCODED}")
        try:
            self.params = conninfo_to_dict(text)
        except (psycopg.Error, ValueError):  # libpq's own words would quote it
            raise FacebankError(
                f"{source}: not a connection string (not shown, it may hold a password); it is of the form "
                f"host=HOST port=PORT dbname=NAME user=NAME or a URL, and {_ENCODED}"
            ) from None
        for key, plain in _PLAIN.items():
            value = str(self.params.get(key) or "")
            parts = value.split(",") if key in ("host", "hostaddr", "port") else [value]
            if not all(plain.fullmatch(part) for part in parts):
                raise FacebankError(f"{source}: its {key} is none (not shown, it may be a password's); {_ENCODED}")

    def __str__(self) -> str:
        shown = [f"{key}={self.params[key]}" for key in _SHOWN if self.params.get(key)]
        return " ".join(shown) or "the server that PG variables or a service name"

    def __repr__(self) -> str:
        return f"Dsn({self})"

    @property
    def is_open(self) -> bool:
        """Whether it holds nothing but what is shown."""
        return set(self.params) <= set(_SHOWN)

    @property
    def n_hosts(self) -> int:
        """How many servers are tried, one after the other."""
        return str(self.params.get("host") or self.params.get("hostaddr") or "").count(",") + 1

    def reveal(self) -> str:
        """The string itself."""
        return self._text
