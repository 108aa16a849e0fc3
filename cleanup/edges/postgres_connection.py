"""A connection to PostgreSQL that nothing can keep waiting for ever: no server, no pooler, no network, nobody's lock.

It works through a pooler that gives out a server connection for a transaction only (PgBouncer's transaction mode): it
prepares no statements, and nothing that it sets outlives a transaction.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from cleanup.edges.postgres_dsn import Dsn
from cleanup.edges.stoppable import check_stop

# The server gives up a lock first, then a statement; if nothing at all comes from it, this side does. All three, and
# connecting, end within a minute.
LOCK_S, STATEMENT_S, ANSWER_S = 30, 35, 40
# How long a transaction may go without a statement before the server ends it.
IDLE_S = 60
_CONNECT_S, _CONNECT_ALL_S, _MIN_CONNECT_S = 10, 40, 2
_GLANCE_S, _CANCEL_S = 0.1, 1.0
# Finds out about a peer that is gone without a word, between statements as well.
_LIVELINESS = {
    "keepalives": 1, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 5,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
_T = TypeVar("_T")


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when no byte has come for a while, or when its user is to stop."""

    answer_s: float = ANSWER_S

    def wait(self, gen: PQGen[_T], *_: object, **__: object) -> _T:
        """Every wait of psycopg for the server comes through here; how long it waits is not the caller's to say.

        Raises:
            OperationalError: The server did not answer in time.
            KeyboardInterrupt: A stop was asked for; the server is told, if it listens.
        """
        try:
            return waiting.wait(self._watched(gen), self.pgconn.socket, interval=_GLANCE_S)
        except (KeyboardInterrupt, SystemExit):
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=_CANCEL_S)
            self.close()
            raise

    def _watched(self, gen: PQGen[_T]) -> Generator[Any, Any, _T]:
        deadline = time.monotonic() + self.answer_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    deadline = time.monotonic() + self.answer_s
                else:
                    check_stop()
                    if time.monotonic() > deadline:
                        self.close()
                        raise psycopg.OperationalError(f"no answer for {self.answer_s:.0f} seconds")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: _T = end.value
            return result


@contextlib.contextmanager
def connected(dsn: Dsn) -> Iterator[ImpatientConnection]:
    """A new connection; what was not committed when it is left is undone."""
    connect_s = max(_MIN_CONNECT_S, min(_CONNECT_S, _CONNECT_ALL_S // dsn.n_hosts))
    params = {**_LIVELINESS, "connect_timeout": connect_s, **dsn.params, "application_name": _name_of_process()}
    connection = ImpatientConnection.connect(make_conninfo("", **params), prepare_threshold=None)
    try:
        yield connection
    finally:
        connection.close()


def _name_of_process() -> str:
    """How this process is seen by whoever looks at the server."""
    return f"cleanup on {socket.gethostname()}, process {os.getpid()}"[:63]


def limit_transaction(connection: ImpatientConnection, *, idle_s: int = IDLE_S, is_patient: bool = False) -> None:
    """Sets the time limits of the transaction that begins with this; the server's own come back at its end.

    Args:
        connection: Outside a transaction.
        idle_s: After so long without a statement the server ends it, so that a frozen process holds nothing for ever.
        is_patient: Whether a statement may take as long as it takes.
    """
    connection.answer_s = float("inf") if is_patient else ANSWER_S
    limits = {
        "lock_timeout": f"{0 if is_patient else LOCK_S}s",
        "statement_timeout": f"{0 if is_patient else STATEMENT_S}s",
        "idle_in_transaction_session_timeout": f"{idle_s}s",
        "transaction_timeout": "0",
        # So that the server, too, finds out about a client's host that is gone.
        "tcp_keepalives_idle": "15s",
        "tcp_keepalives_interval": "5s",
        "tcp_keepalives_count": "5",
    }
    connection.execute(
        "SELECT set_config(name, value, true) FROM pg_settings JOIN unnest(%s::text[], %s::text[]) "
        "AS wanted(name, value) USING (name)",
        (list(limits), list(limits.values())),
    )
