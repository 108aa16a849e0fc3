"""How many connections callers may hold, and for how long: what uvicorn leaves open.

A connection that waits for its caller (for a request, the rest of one, or that an answer is taken) has a time limit.
One that waits for a request is closed before that if there are too many and another one is opened: whoever opens many
takes them from himself.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, defaultdict
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cleanup.entrypoints.http_guards import group_of, problem
from cleanup.errors import first_line

# Until the head of a request is there, and then its body; uvicorn ends an idle connection earlier.
_HEAD_S, _BODY_S = 10.0, 30.0
# An answer of which less than so much is taken in that time is given up.
_READING_S, _READ_BYTES = 30.0, 32768
# When the server stops: what is under way then still, like a stream of events, is ended before uvicorn has it fail.
_PARTING_S = 2.0


class Connections:
    """All connections of one server.

    Args:
        most: How many there may be, half of them from one address.
    """

    def __init__(self, most: int) -> None:
        self._most, self._most_of_one = most, max(1, most // 2)
        self._count: Counter[str] = Counter()
        # Those that wait for their caller, the longest waiting first.
        self._waiting: defaultdict[str, dict[LimitedProtocol, None]] = defaultdict(dict)

    def admit(self, group: str) -> bool:
        """Counts a new connection of somebody; false if there is no room, and none that waits can be closed for it."""
        if self._count[group] >= self._most_of_one:
            crowd = self._waiting[group]
        elif self._count.total() >= self._most:
            crowd = max(self._waiting.values(), key=len, default={})
        else:
            crowd = None
        if crowd is not None:
            if not crowd:
                return False
            next(iter(crowd)).give_way()
        self._count[group] += 1
        return True

    def note_wait(self, protocol: LimitedProtocol, group: str, *, is_waiting: bool) -> None:
        """A connection begins to wait for its caller, or does not any more."""
        self._waiting[group].pop(protocol, None)
        if is_waiting:
            self._waiting[group][protocol] = None
        elif not self._waiting[group]:
            del self._waiting[group]

    def forget(self, protocol: LimitedProtocol, group: str) -> None:
        """A connection has ended."""
        self.note_wait(protocol, group, is_waiting=False)
        self._count[group] -= 1
        if not self._count[group]:
            del self._count[group]


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with limits.

    Args:
        connections: All connections of the server.
    """

    def __init__(self, *arguments: Any, connections: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._connections = connections
        self._group = ""
        self._is_counted = False
        self._waits_in: Any = None
        self._patience: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        # Whatever the system does not take is noticed at once: somebody does not read.
        transport.set_write_buffer_limits(high=0)
        self._group = group_of(self.client[0] if self.client else "")
        self._is_counted = self._connections.admit(self._group)
        if self._is_counted:
            self._note_state()
        else:
            self._refuse(503, "too many connections from here; close some, or try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._leave()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """See H11Protocol."""
        super().handle_events()
        self._note_state()

    def on_response_complete(self) -> None:
        """See H11Protocol."""
        super().on_response_complete()
        self._note_state()

    def send_400_response(self, msg: str) -> None:
        """See H11Protocol; called where h11 has said what is wrong."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(status, f"no valid HTTP: {first_line(error)}" if error is not None else msg)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._watch_reader(None)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def shutdown(self) -> None:
        """See H11Protocol."""
        super().shutdown()
        self.loop.call_later(_PARTING_S, self._refuse, 503, "the API stops")

    def give_way(self) -> None:
        """Ends a connection that waits for its caller, because another one wants in."""
        self._leave()
        self.transport.close()

    def _note_state(self) -> None:
        """Limits the time of what is waited for now, if that is something else than before."""
        state = self.conn.their_state if self._is_counted and not self.transport.is_closing() else None
        if state is self._waits_in:
            return
        self._waits_in = state
        if self._patience is not None:
            self._patience.cancel()
        seconds = _HEAD_S if state is h11.IDLE else _BODY_S if state is h11.SEND_BODY else None
        if self._is_counted:
            self._connections.note_wait(self, self._group, is_waiting=seconds is not None)
        if seconds is not None:
            self._patience = self.loop.call_later(seconds, self._lose_patience, seconds)

    def _lose_patience(self, seconds: float) -> None:
        self._refuse(408, f"the request was not there within {seconds:g} seconds")

    def _watch_reader(self, left: int | None) -> None:
        """Gives up an answer that its caller does not take, of which so many bytes were left at the last look."""
        now_left = self.transport.get_write_buffer_size()
        if left is not None and now_left > max(0, left - _READ_BYTES):
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(_READING_S, self._watch_reader, now_left)

    def _refuse(self, status: int, detail: str) -> None:
        """Says why and closes, unless an answer is on its way already."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            response = problem(status, detail, {"Connection": "close"})
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
            lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
            self.transport.write(b"".join([head, *lines, b"\r\n", bytes(response.body)]))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._leave()
        self.transport.close()

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._connections.forget(self, self._group)
        if self._patience is not None:
            self._patience.cancel()
