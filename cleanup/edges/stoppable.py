"""Waits that end when the run that they belong to is to stop, in whatever thread it works.

A signal interrupts the main thread alone; an episode of a season has a thread of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_is_stop_wanted: ContextVar[Callable[[], bool]] = ContextVar("is_stop_wanted", default=lambda: False)


@contextlib.contextmanager
def stoppable(is_stop_wanted: Callable[[], bool]) -> Iterator[None]:
    """What waits inside, in this thread, asks this now and then."""
    token = _is_stop_wanted.set(is_stop_wanted)
    try:
        yield
    finally:
        _is_stop_wanted.reset(token)


def check_stop() -> None:
    """Called by who waits.

    Raises:
        KeyboardInterrupt: The run is to stop.
    """
    if _is_stop_wanted.get()():
        raise KeyboardInterrupt
