"""Connections to the Facebank's PostgreSQL: migrated at first use, and with errors that say which server."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterator
from typing import Any

import psycopg
from pgvector.psycopg import register_vector

from cleanup.errors import FacebankError, first_line
from cleanup.resolve_settings import hide_password

_CONNECT_TIMEOUT_S = 10
# Any constants of our own; PostgreSQL's advisory locks are numbers.
_MIGRATION_LOCK = 0x0FACEBA2
_SHOW_LOCK = 0x0FACEBA3
INDEX_LOCK = 0x0FACEBA4


class PostgresServer:
    """One server; connects anew for every transaction, so it can be sent to another process.

    Args:
        dsn: Connection string or URL of the server.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @contextlib.contextmanager
    def transaction(self, *, is_snapshot: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """A connection whose statements take effect together at the end, or not at all.

        Args:
            is_snapshot: Whether all statements see the database as it is at the first one; for reading.

        Raises:
            FacebankError: The server does not answer, or refuses.
        """
        with self._errors_told(), psycopg.connect(self.dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
            _migrate(connection)
            register_vector(connection)
            if is_snapshot:
                connection.commit()
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield connection

    @contextlib.contextmanager
    def hold_show(self, show: str) -> Iterator[None]:
        """Holds a show's people for one who groups or changes them; the others wait. Dies with the connection."""
        with contextlib.ExitStack() as stack:
            with self._errors_told():
                connection = stack.enter_context(
                    psycopg.connect(self.dsn, connect_timeout=_CONNECT_TIMEOUT_S, autocommit=True)
                )
                connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (_SHOW_LOCK, show))
            yield

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.OperationalError as error:
            raise FacebankError(
                f"Facebank ({hide_password(self.dsn)}) does not answer: {first_line(error)}; "
                "check --facebank-dsn or FACEBANK_DSN"
            ) from error
        except psycopg.Error as error:
            raise FacebankError(f"Facebank ({hide_password(self.dsn)}): {first_line(error)}") from error


def _migrate(connection: psycopg.Connection[Any]) -> None:
    """Brings the schema up to date; two that start at once take turns."""
    applied = _applied_migrations(connection)
    folder = importlib.resources.files("cleanup.edges") / "facebank_schema"
    missing = [
        f for f in sorted(folder.iterdir(), key=lambda f: f.name) if f.name.endswith(".sql") and f.name not in applied
    ]
    if not missing:
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    connection.execute(
        "CREATE TABLE IF NOT EXISTS facebank_migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now())"
    )
    applied = _applied_migrations(connection)
    for file in missing:
        if file.name not in applied:
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO facebank_migrations (name) VALUES (%s)", (file.name,))
    connection.commit()


def _applied_migrations(connection: psycopg.Connection[Any]) -> set[str]:
    exists = connection.execute("SELECT to_regclass('facebank_migrations')").fetchone()
    if exists is None or exists[0] is None:
        return set()
    return {row[0] for row in connection.execute("SELECT name FROM facebank_migrations").fetchall()}
