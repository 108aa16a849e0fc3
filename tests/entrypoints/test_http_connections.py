"""Callers that hold connections open, send slowly or do not read: they are closed, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from cleanup.entrypoints import http_connections, log_limits
from cleanup.entrypoints.http_connections import Connections, LimitedProtocol
from cleanup.entrypoints.log_limits import RepeatFilter

LONG = 64 << 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with so many bytes as the path says, when the body is there; /slow takes a second."""
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    size = LONG if scope["path"] == "/long" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"x" * size})


@contextmanager
def listening(most: int = 8) -> Iterator[tuple[int, Connections]]:
    """The port of a server with limits."""
    connections = Connections(most)
    protocol: Any = functools.partial(LimitedProtocol, connections=connections)
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, loop="asyncio", timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(data)
    return connection


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(65536) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


HALF_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
HALF_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"


@pytest.mark.parametrize("sent", [b"", HALF_HEAD, HALF_BODY])
def test_who_opens_many_connections_takes_them_from_himself(sent: bytes) -> None:
    with listening() as (port, connections), ExitStack() as stack:
        held = [stack.enter_context(connect(port, sent)) for _ in range(20)]
        answer = httpx.get(f"http://127.0.0.1:{port}/")
        time.sleep(0.1)

        assert answer.status_code == 200
        assert sum(map(is_open, held)) <= 4 and connections._count.total() <= 4


def test_a_request_that_is_answered_is_not_given_up_for_another_one() -> None:
    with listening() as (port, _), ExitStack() as stack:
        request = b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        at_work = [stack.enter_context(connect(port, request)) for _ in range(4)]
        time.sleep(0.2)
        refused = httpx.get(f"http://127.0.0.1:{port}/")

        assert refused.status_code == 503 and "too many connections" in refused.json()["detail"]
        assert all(read_all(c).startswith(b"HTTP/1.1 200") for c in at_work)
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_one_address_leaves_room_for_others() -> None:
    connections = Connections(4)

    assert [connections.admit(group) for group in ("a", "a", "a", "b", "b", "c")] == [
        True, True, False, True, True, False
    ]  # fmt: skip


@pytest.mark.parametrize("sent", [b"", HALF_HEAD, HALF_BODY])
def test_a_request_that_does_not_come_is_given_up(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.5)
    monkeypatch.setattr(http_connections, "_BODY_S", 0.5)
    with listening() as (port, connections), connect(port, sent) as connection:
        started = time.monotonic()
        for _ in range(3):  # however it trickles
            time.sleep(0.1)
            connection.sendall(b"1" if sent else b"")
        answer = read_all(connection)

        assert answer.startswith(b"HTTP/1.1 408 Request Timeout") and time.monotonic() - started < 2
        assert not connections._count and not connections._waiting


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "_READING_S", 0.2)
    with listening() as (port, connections), connect(port, b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"):
        deadline = time.monotonic() + 5
        time.sleep(0.1)
        while connections._count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not connections._count
        assert len(httpx.get(f"http://127.0.0.1:{port}/long").content) == LONG


def test_a_request_that_is_under_way_when_the_server_stops_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    with listening() as (port, _):
        connection = connect(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1")
        time.sleep(0.1)

    assert b"the API stops" in read_all(connection)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_what_is_no_http_is_told_why() -> None:
    with listening() as (port, _):
        for sent, status in ((b"GET /\xff HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431)):
            with connect(port, sent) as connection:
                answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 %d " % status) and b"application/problem+json" in answer
            assert b"no valid HTTP: " in answer


def test_a_message_that_repeats_is_counted_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(RepeatFilter())
    now = [0.0]
    monkeypatch.setattr(log_limits.time, "monotonic", lambda: now[0])
    for name, n_times in (("one", 1000), ("other", 3)):
        for i in range(n_times):
            handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, "message %d", (i,), None))
    now[0] = 61.0
    handler.handle(logging.LogRecord("one", logging.WARNING, "", 0, "message %d", (1000,), None))

    assert len(records) == 20 + 3 + 1 and records[-1] == "message 1000 (and 980 more like it before)"
