"""The Facebank's tables: made and brought up to date at first use, and not touched where a newer program made them."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable

import psycopg
from pgvector.psycopg import register_vector

from cleanup.edges.postgres_connection import ImpatientConnection
from cleanup.errors import FacebankError, first_line

# Any constant of our own; PostgreSQL's advisory locks are numbers.
_MIGRATION_LOCK = 0x0FACEBA2


def migrate(connection: ImpatientConnection, where: str) -> bool:
    """Brings the tables up to date; of two that start at once the second finds it done.

    Args:
        connection: In a transaction that has just begun.
        where: The server, for messages.

    Returns:
        Whether there was something to do; the transaction is committed then.

    Raises:
        FacebankError: They are of a newer version, or cannot be made or changed.
    """
    if not _find_missing(connection, where):
        return False
    if _is_read_only(connection):
        raise FacebankError(
            f"{where}: can only be read (a replica?), and its tables are not those of this version; run cleanup "
            "facebank list against the server that it is a copy of first"
        )
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    _create_extension(connection, where)
    _search_extension(connection, where)
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS facebank_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz DEFAULT now())"
        )
        for file in _find_missing(connection, where):
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO facebank_migrations (name) VALUES (%s)", (file.name,))
    except psycopg.errors.InsufficientPrivilege as error:
        raise FacebankError(
            f"{where}: its user may not make or change the Facebank's tables ({first_line(error)}); name the user that "
            "owns them, or have the database's owner run GRANT USAGE, CREATE ON SCHEMA public TO that user"
        ) from error
    connection.commit()
    return True


def use_vectors(connection: ImpatientConnection, where: str) -> None:
    """Makes pgvector's type known, to the connection and for the rest of its transaction.

    Raises:
        FacebankError: The user does not see it.
    """
    _search_extension(connection, where)
    register_vector(connection)


def refuse_read_only(connection: ImpatientConnection, where: str) -> None:
    """Makes sure that the server lets itself be written to.

    Raises:
        FacebankError: It does not.
    """
    if _is_read_only(connection):
        raise FacebankError(f"{where}: can only be read (a replica?); name the server that it is a copy of")


def _is_read_only(connection: ImpatientConnection) -> bool:
    row = connection.execute("SELECT current_setting('transaction_read_only')::boolean").fetchone()
    return row is not None and bool(row[0])


def _search_extension(connection: ImpatientConnection, where: str) -> None:
    """The extension may be in a schema that is searched for nothing else."""
    connection.execute(
        "SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), "
        "quote_ident(nspname)), true) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'"
    )
    row = connection.execute("SELECT to_regtype('vector') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        raise FacebankError(
            f"{where}: its user does not see the type vector; have an administrator run CREATE EXTENSION vector in "
            "that database, or GRANT USAGE on the schema that the extension is in"
        )


def _known_migrations() -> list[Traversable]:
    folder = importlib.resources.files("cleanup.edges") / "facebank_schema"
    return sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)


def _find_missing(connection: ImpatientConnection, where: str) -> list[Traversable]:
    known = _known_migrations()
    row = connection.execute("SELECT to_regclass('facebank_migrations') IS NOT NULL").fetchone()
    applied: set[str] = set()
    if row is not None and row[0]:
        applied = {row[0] for row in connection.execute("SELECT name FROM facebank_migrations").fetchall()}
    newer = applied - {f.name for f in known}
    if newer:
        raise FacebankError(
            f"{where}: was made by a newer version of this program (its tables know {max(newer)}); upgrade "
            "episode-cleanup here"
        )
    return [f for f in known if f.name not in applied]


def _create_extension(connection: ImpatientConnection, where: str) -> None:
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.errors.InsufficientPrivilege as error:
        raise FacebankError(
            f"{where}: lacks the extension vector, and its user may not create it ({first_line(error)}); have an "
            "administrator run CREATE EXTENSION vector in that database once"
        ) from error
    except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
        raise FacebankError(
            f"{where}: pgvector is not installed on that server ({first_line(error)}); install it there, or name "
            "another server"
        ) from error
