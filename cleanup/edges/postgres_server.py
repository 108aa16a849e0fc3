"""Transactions on the Facebank's PostgreSQL, shows held while they are changed, and errors that say which server."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg

from cleanup.edges.postgres_connection import (
    LOCK_S,
    STATEMENT_S,
    ImpatientConnection,
    connected,
    limit_transaction,
)
from cleanup.edges.postgres_dsn import Dsn
from cleanup.edges.postgres_schema import migrate, refuse_read_only, use_vectors
from cleanup.edges.stoppable import check_stop
from cleanup.errors import FacebankError, first_line, one_line

_log = logging.getLogger(__name__)
# Any constants of our own; PostgreSQL's advisory locks are numbers.
_SHOW_LOCK = 0x0FACEBA3
INDEX_LOCK = 0x0FACEBA4
# After so long without a sign of life from who holds a show, others do not wait any longer; before, they look so often.
_HOLDER_PATIENCE_S, _GLANCE_S, _QUIET_S, _TOUCH_S = 30.0, 0.25, 5.0, 5.0
# Who holds a show reads, computes and writes files between two statements.
_HOLD_IDLE_S = 900
# Sessions in which other threads of this process hold a show: that they go on need not be seen at the server.
_HELD_HERE: set[tuple[str, int]] = set()
_BLOCKERS = (
    "SELECT pid, application_name, usename, host(client_addr), to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS TZ'), "
    "state_change::text FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
    "WHERE granted AND pid <> pg_backend_pid() "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND "
)
_HOLDS_SHOW = "locktype = 'advisory' AND classid = %s AND objid = (hashtext(%s)::bigint & 4294967295)::oid "
_HOLDS_ANYTHING = "(locktype = 'advisory' OR locktype = 'relation' AND mode <> 'AccessShareLock') "


class _Session(NamedTuple):
    """Somebody at the server, as far as it says who; two of them are equal as long as they do nothing."""

    pid: int
    program: str | None
    user: str | None
    address: str | None
    since: str | None
    changed: str | None

    def __str__(self) -> str:
        user = f" as user {self.user}" if self.user else ""
        address = f" from {self.address}" if self.address else ""
        since = f", since {self.since}" if self.since else ""
        return f"{self.program or 'a session'}{user}{address} (pid {self.pid} of the server{since})"


class ShowHold:
    """A show that is held. The lock dies with its transaction, so who holds it looks after it before it writes.

    Args:
        server: For messages.
        show: The show.
        connection: In the transaction that has the lock.
    """

    def __init__(self, server: PostgresServer, show: str, connection: ImpatientConnection) -> None:
        self.show, self._server, self._connection = show, server, connection
        self._checked_at = time.monotonic()

    def touch(self) -> None:
        """``check``, but only now and then: for what lasts long and consists of many short steps."""
        if time.monotonic() - self._checked_at > _TOUCH_S:
            self.check()

    def check(self) -> None:
        """Makes sure that it is still held, which is a sign of life for those who wait, too.

        Raises:
            FacebankError: The server, a pooler or the network has ended the transaction.
        """
        try:
            self._connection.execute("SELECT 1")
            self._checked_at = time.monotonic()
        except psycopg.Error as error:
            raise FacebankError(
                f"{self._server.where}: no longer holds show {self.show!r} for this command ({first_line(error)}), so "
                "somebody else may have changed its people; nothing more was written, try again"
            ) from error


class PostgresServer:
    """One server; connects anew for every transaction, so it can be sent to another process.

    Args:
        dsn: Connection string or URL of the server, taken apart or not.
    """

    def __init__(self, dsn: str | Dsn) -> None:
        self.server = dsn if isinstance(dsn, Dsn) else Dsn(dsn)

    @property
    def dsn(self) -> str:
        """The connection string itself, secrets included."""
        return self.server.reveal()

    @property
    def where(self) -> str:
        """The server, for messages."""
        return f"Facebank ({self.server})"

    @contextlib.contextmanager
    def transaction(self, *, is_snapshot: bool = False, is_patient: bool = False) -> Iterator[ImpatientConnection]:
        """A connection whose statements take effect together at the end, or not at all.

        Args:
            is_snapshot: Whether all statements see the database as it is at the first one; for reading.
            is_patient: Whether a statement may take as long as it takes, and wait for others as long.

        Raises:
            FacebankError: The server does not answer, or refuses.
        """
        with self._errors_told(), connected(self.server) as connection:
            begin = functools.partial(limit_transaction, connection, is_patient=is_patient)
            begin()
            if migrate(connection, self.where):
                begin()
            if is_snapshot:
                connection.commit()
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                begin()
            use_vectors(connection, self.where)
            yield connection
            connection.commit()

    def check_writable(self) -> None:
        """Makes sure that the server answers and lets itself be written to.

        Raises:
            FacebankError: It does not.
        """
        with self.transaction() as connection:
            refuse_read_only(connection, self.where)

    @contextlib.contextmanager
    def hold_show(self, show: str) -> Iterator[ShowHold]:
        """Holds a show's people for one who groups or changes them; the others wait.

        The lock belongs to a transaction that does nothing else, so that a pooler keeps the connection for it. Who
        waits is in no transaction meanwhile, and takes no connection of a pooler away from who is waited for.

        Raises:
            FacebankError: Who holds it has not moved for a while; the message says who it is.
        """
        with contextlib.ExitStack() as stack:
            with self._errors_told():
                connection = stack.enter_context(connected(self.server))
                session = self.dsn, self._wait_for_show(connection, show)
            _HELD_HERE.add(session)
            stack.callback(_HELD_HERE.discard, session)
            yield ShowHold(self, show, connection)

    def _wait_for_show(self, connection: ImpatientConnection, show: str) -> int:
        holder: _Session | None = None
        moved = started = time.monotonic()
        is_told = False
        while True:
            limit_transaction(connection, idle_s=_HOLD_IDLE_S)
            refuse_read_only(connection, self.where)
            key = (_SHOW_LOCK, show)
            query = "SELECT pg_try_advisory_xact_lock(%s, hashtext(%s)), pg_backend_pid()"
            is_held, pid = _first(connection, query, key)
            if is_held:
                return int(pid)
            found = _find_session(connection, _HOLDS_SHOW, key)
            connection.rollback()
            now = time.monotonic()
            if found is None or found != holder or (self.dsn, found.pid) in _HELD_HERE:
                holder, moved = found, now
            if now - moved > _HOLDER_PATIENCE_S:
                raise FacebankError(
                    f"{self.where}: show {show!r} is held by {holder}, which has not moved for "
                    f"{_HOLDER_PATIENCE_S:.0f} seconds; nothing was written, run the command again when that has ended"
                )
            if now - started > _QUIET_S and not is_told:
                _log.warning("waiting for show %r, which is held by %s", show, one_line(str(holder or "somebody")))
                is_told = True
            check_stop()
            time.sleep(_GLANCE_S)

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.LockNotAvailable as error:
            raise FacebankError(
                f"{self.where}: has waited {LOCK_S} seconds for {self._find_blocker()}; nothing was changed, run the "
                "command again when that has ended"
            ) from error
        except psycopg.errors.QueryCanceled as error:
            raise FacebankError(
                f"{self.where}: was not done with a statement after {STATEMENT_S} seconds; nothing was changed, see "
                "what keeps the server busy"
            ) from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise FacebankError(
                f"{self.where}: can only be read (a replica?); name the server that it is a copy of"
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise FacebankError(
                f"{self.where}: {first_line(error)}; name the user that owns the Facebank's tables, or have it GRANT "
                "that"
            ) from error
        except psycopg.OperationalError as error:
            raise FacebankError(
                f"{self.where} does not answer: {first_line(error)}{_advise(error)}; check --facebank-dsn or "
                "FACEBANK_DSN"
            ) from error
        except psycopg.Error as error:
            raise FacebankError(f"{self.where}: {first_line(error)}") from error

    def _find_blocker(self) -> str:
        """Who has held something of the Facebank for longest, asked after waiting for it was in vain."""
        with contextlib.suppress(psycopg.Error), connected(self.server) as connection:
            limit_transaction(connection)
            return str(_find_session(connection, _HOLDS_ANYTHING, ()) or "somebody who has ended just now")
        return "somebody"


def _first(connection: ImpatientConnection, query: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return tuple(row)


def _find_session(connection: ImpatientConnection, which: str, values: tuple[Any, ...]) -> _Session | None:
    row = connection.execute(f"{_BLOCKERS}{which} ORDER BY xact_start LIMIT 1", values).fetchone()
    return None if row is None else _Session(*row)


def _advise(error: psycopg.OperationalError) -> str:
    # libpq takes the name of the system's user where none is given, and a container's user may have none.
    is_nameless = "local user with ID" in str(error)
    return ": this process's user has no name; name one (user=NAME in the connection string, or PGUSER)" * is_nameless
