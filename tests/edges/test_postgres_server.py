"""Servers of other people: behind a pooler, frozen, locked, read-only, made by another version, and what is said then."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cleanup.edges import postgres_connection, postgres_server
from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.postgres_people import PostgresPeople
from cleanup.edges.root_path import RootPath
from cleanup.edges.stoppable import stoppable
from cleanup.entrypoints.shell import acting_user
from cleanup.errors import FacebankError
from cleanup.people import GroupingPlan
from tests.builders import EMITTED_EP, copy_episode, write_episode
from tests.conftest import find_free_port
from tests.edges.test_postgres_facebank import make_seed
from tests.entrypoints.test_cli import cleanup, report_of

PLAN = GroupingPlan("show", "show-s01e01", "m", (), {}, {"lisa": "Lisa"}, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresFacebank]:
    """A PostgreSQL for all tests here; each has a database of its own."""
    with open_embedded_facebank(RootPath(tmp_path_factory.mktemp("server")) / "postgres") as opened:
        yield opened


@pytest.fixture
def database(server: PostgresFacebank, request: pytest.FixtureRequest) -> str:
    """The connection string of an empty database."""
    name = re.sub(r"\W", "_", request.node.name)[-60:]
    admin(server.dsn, sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return make_conninfo(server.dsn, dbname=name)


def admin(dsn: str, *statements: str | sql.Composable) -> None:
    """What somebody does at the server without this program."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


@contextlib.contextmanager
def pooled(dsn: str) -> Iterator[str]:
    """PgBouncer before a database, with two connections that it gives out for a transaction each."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "pgbouncer is missing"
        pytest.skip("pgbouncer is not installed")
    params = psycopg.conninfo.conninfo_to_dict(dsn)
    port = find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{params['dbname']} = host={params['host']} dbname={params['dbname']} user={params['user']}\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nauth_type=any\npool_mode=transaction\n"
            "default_pool_size=2\nunix_socket_dir=\n"
        )
        settings.chmod(0o644)
        # It refuses to be root, and the server asks who it is.
        owner = Path(str(params["host"]), f".s.PGSQL.{params.get('port', 5432)}").owner()
        who = ["-u", owner] if os.geteuid() == 0 else []
        with subprocess.Popen([program, *who, str(settings)], stderr=subprocess.PIPE, text=True) as pooler:
            assert pooler.stderr is not None
            seen = ""
            while "process up" not in seen:
                seen = pooler.stderr.readline()
                assert seen, "pgbouncer has ended"
            drain = threading.Thread(target=pooler.stderr.read, daemon=True)
            drain.start()
            try:
                yield f"host=127.0.0.1 port={port} dbname={params['dbname']} user={params['user']}"
            finally:
                pooler.terminate()
                pooler.wait(10)
                drain.join()


class FrozenLine:
    """A line to a server that can be frozen: it is open, and nothing comes through any more."""

    def __init__(self, dsn: str) -> None:
        params = psycopg.conninfo.conninfo_to_dict(dsn)
        self._target = f"{params['host']}/.s.PGSQL.{params.get('port', 5432)}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self.is_frozen = threading.Event()
        self.dsn = (
            f"host=127.0.0.1 port={self._listener.getsockname()[1]} dbname={params['dbname']} user={params['user']}"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(self._target)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if self.is_frozen.is_set():
                    return
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for line in self._open:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()


@pytest.fixture
def line(database: str) -> Iterator[FrozenLine]:
    opened = FrozenLine(database)
    yield opened
    opened.close()


def test_a_whole_show_works_behind_a_pooler_that_keeps_no_session(database: str, tmp_path: Path) -> None:
    write_episode(tmp_path, "emitted", (("a",), ("b",)))
    (tmp_path / "videos" / EMITTED_EP).mkdir(parents=True)
    copy_episode(tmp_path, EMITTED_EP, "show-s01e03")
    with pooled(database) as dsn:
        given = ("--out-root", tmp_path, "--facebank-dsn", dsn)
        PostgresFacebank(dsn).enroll("show", "tiny", "sha", [make_seed(0, n, 64) for n in range(8)])
        group = ("run", "--actions", "group_clusters", "--write-back", "--json")
        for ep_id in (EMITTED_EP, "show-s01e03"):
            report_of(cleanup(*group, "--ep-id", ep_id, *given))
        cleanup("people", "name", "unknown-0001", "Lisa", "--show", "show", *given)
        assert "Lisa" in cleanup("people", "list", *given).stdout

        bank = PostgresFacebank(dsn)
        with bank.hold_show("show") as hold:
            waiting = threading.Thread(target=enter_and_leave, args=(bank, "show"))
            waiting.start()
            for _ in range(5):
                assert bank.people.list_episodes("show"), "who waits takes no connection away"
            hold.check()
            assert waiting.is_alive()
        waiting.join(20)
        assert not waiting.is_alive()

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchall() == []
        assert connection.execute("SELECT 1 FROM pg_prepared_statements").fetchall() == []


def enter_and_leave(bank: PostgresFacebank, show: str) -> None:
    with bank.hold_show(show):
        pass


def test_a_server_that_freezes_in_the_middle_costs_a_limited_time(
    line: FrozenLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "ANSWER_S", 0.5)
    with pytest.raises(FacebankError, match="no answer for"), PostgresFacebank(line.dsn).transaction() as connection:
        line.is_frozen.set()
        connection.execute("SELECT 1")


@pytest.mark.parametrize("ask", ["signal", "thread"])
def test_one_stop_ends_the_wait_for_a_frozen_server(line: FrozenLine, ask: str, request: pytest.FixtureRequest) -> None:
    # A shell that starts the tests in the background has them ignore it.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = threading.Event()
    stop = threading.Timer(0.3, (lambda: os.kill(os.getpid(), signal.SIGINT)) if ask == "signal" else asked.set)

    with (
        pytest.raises(KeyboardInterrupt),
        stoppable(asked.is_set),
        PostgresFacebank(line.dsn).transaction() as connection,
    ):
        line.is_frozen.set()
        stop.start()
        started = time.monotonic()
        while True:
            connection.execute("SELECT 1")

    assert time.monotonic() - started < 5


def test_a_server_that_accepts_and_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "_CONNECT_ALL_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        started = time.monotonic()
        with pytest.raises(FacebankError, match="does not answer: connection timeout expired"):
            PostgresFacebank(f"host={host} port={port} user=u").check()

    assert time.monotonic() - started < 10


def test_who_waits_for_a_show_is_told_for_whom_and_not_for_ever(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres_server, "_HOLDER_PATIENCE_S", 0.6)
    monkeypatch.setattr(postgres_server, "_QUIET_S", 0.2)
    with psycopg.connect(database, application_name="cleanup elsewhere") as frozen:
        frozen.execute("SELECT pg_advisory_xact_lock(%s, hashtext('show'))", (postgres_server._SHOW_LOCK,))
        with pytest.raises(FacebankError, match=r"held by cleanup elsewhere as user .* \(pid \d+ .* since 20"):
            enter_and_leave(PostgresFacebank(database), "show")
        assert "waiting for show 'show', which is held by cleanup elsewhere" in caplog.text

        started = time.monotonic()

        def work_for_a_while() -> None:
            while time.monotonic() - started < 1.5:
                frozen.execute("SELECT 1")
                time.sleep(0.2)
            frozen.rollback()

        at_work = threading.Thread(target=work_for_a_while)
        at_work.start()
        enter_and_leave(PostgresFacebank(database), "show")
        at_work.join()
        assert time.monotonic() - started > 1.5, "who works is waited for as long as it takes"

    bank, entered = PostgresFacebank(database), threading.Event()

    def enter() -> None:
        with bank.hold_show("show"):
            entered.set()

    with bank.hold_show("show"):
        other_thread = threading.Thread(target=enter)
        other_thread.start()
        time.sleep(1.2)
    other_thread.join()
    assert entered.is_set(), "episodes of one season take their turns, however long one is busy"


def test_a_show_that_was_lost_is_noticed_before_anything_is_recorded(database: str) -> None:
    bank = PostgresFacebank(database)
    with bank.hold_show("show") as hold:
        hold.check()
        admin(database, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        with pytest.raises(FacebankError, match="no longer holds show 'show'"):
            bank.people.record(PLAN, "me", hold.check)

    assert bank.people.list_people() == []


def test_a_statement_that_waits_for_somebody_says_for_whom(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_S", 1)
    bank = PostgresFacebank(database)
    bank.enroll("show", "m", "sha", [make_seed(0)])
    with psycopg.connect(database, application_name="somebody's psql") as other:
        other.execute("SELECT 1 FROM shows FOR UPDATE")
        with pytest.raises(FacebankError, match="has waited .* for somebody's psql"):
            bank.enroll("show", "m", "sha", [make_seed(1)])


def test_tables_of_an_earlier_version_get_what_is_missing_and_keep_what_they_hold(database: str) -> None:
    bank = PostgresFacebank(database)
    bank.enroll("show", "m", "sha", [make_seed(p) for p in range(3)])
    admin(database, "DROP TABLE calibrations", "DELETE FROM facebank_migrations WHERE name = '0003_calibrations.sql'")

    assert bank.calibrations.list_all() == []
    assert len(bank.list_people()) == 3


def test_tables_of_a_newer_version_are_left_alone(database: str) -> None:
    bank = PostgresFacebank(database)
    bank.check()
    admin(database, "INSERT INTO facebank_migrations (name) VALUES ('0099_later.sql')")

    for use in (bank.list_people, bank.check_writable):
        with pytest.raises(FacebankError, match=r"newer version .*0099_later\.sql.*upgrade"):
            use()


def test_a_replica_is_read_and_not_written_to(database: str, tmp_path: Path) -> None:
    read_only = "ALTER DATABASE {} SET default_transaction_read_only = {}"
    name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"]))
    bank = PostgresFacebank(database)
    admin(database, sql.SQL(read_only).format(name, sql.SQL("on")))
    with pytest.raises(FacebankError, match=r"replica.*run cleanup facebank list against"):
        bank.list_people()
    admin(database, "SET default_transaction_read_only = off", sql.SQL(read_only).format(name, sql.SQL("off")))
    bank.enroll("show", "m", "sha", [make_seed(0)])
    admin(database, sql.SQL(read_only).format(name, sql.SQL("on")))

    assert [p.person_id for p in bank.list_people()] == ["p0"] == [p.person_id for p in bank.people.list_people()]
    assert bank.compute_digest("show")
    changes: list[Callable[[], Any]] = [
        lambda: bank.enroll("show", "m", "sha", [make_seed(1)]), lambda: enter_and_leave(bank, "show"),
        bank.check_writable,
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(FacebankError, match=r"can only be read \(a replica\?\); name the server"):
            change()


def test_a_user_without_rights_is_told_what_an_administrator_has_to_do(database: str) -> None:
    admin(database, "DROP ROLE IF EXISTS weak", "CREATE ROLE weak")
    bank = PostgresFacebank(make_conninfo(database, options="-c role=weak"))
    for todo, done in (
        ("administrator run CREATE EXTENSION vector", "CREATE SCHEMA extra; CREATE EXTENSION vector SCHEMA extra"),
        ("GRANT USAGE on the schema that the extension is in", "GRANT USAGE ON SCHEMA extra TO weak"),
        ("GRANT USAGE, CREATE ON SCHEMA public", "GRANT CREATE ON SCHEMA public TO weak"),
    ):
        with pytest.raises(FacebankError, match=todo):
            bank.list_people()
        admin(database, *done.split("; "))

    assert bank.enroll("show", "m", "sha", [make_seed(p) for p in range(3)]) == 3
    assert len(bank.match("show", "m", make_seed(0).embedding[None])) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_is_told_to_give_one() -> None:
    def try_it(said: Connection) -> None:
        os.environ.clear()
        os.setuid(54321)
        try:
            PostgresFacebank("host=127.0.0.1 port=9").check()
        except FacebankError as error:
            said.send((str(error), acting_user()))

    hearing, saying = multiprocessing.Pipe(duplex=False)
    nameless = multiprocessing.get_context("fork").Process(target=try_it, args=(saying,))
    nameless.start()
    nameless.join(30)
    assert hearing.poll()
    message, name = hearing.recv()
    assert "user=NAME" in message and name == "user 54321"


def test_names_are_one_in_whatever_form_they_are_written(database: str) -> None:
    composed, decomposed = "Jos\u00e9 \u00c9mile", "Jose\u0301 E\u0301mile"
    people = PostgresPeople(database)
    people.record(PLAN, "me", lambda: None)
    people.name("show", "lisa", composed, None, "me")

    assert people.find_id("show", decomposed.lower()) == "lisa"
    people.record(GroupingPlan("show", "show-s01e01", "m", (), {}, {"j": "J"}, 0), "me", lambda: None)
    with pytest.raises(FacebankError, match="is lisa of show"):
        people.add_alias("show", "j", decomposed, "me")
    people.merge("show", "j", decomposed, "me")
    assert [p.person_id for p in people.list_people()] == ["lisa"]
    assert people.read_show("show", "m").aliases["jos\u00e9 \u00e9mile"] == "lisa"
