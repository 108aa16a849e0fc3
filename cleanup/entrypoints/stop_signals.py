"""Stops a process when it is asked to: at once, but never between two files of a commit, and not without a last word.

Ctrl-C, SIGTERM and SIGHUP (the terminal, or who started the process, is gone) raise KeyboardInterrupt in the main
thread. A second one ends the process even where the main thread hangs in native code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_INTERRUPTED = 130
# One key press may arrive twice, from the terminal and from a wrapper that hands it on.
_ECHO_S = 0.3


class _State:
    """Signals belong to the process, and so does this.

    Attributes:
        n_held: How many ``stop_held`` the main thread is in.
        last_words: What is said before the process is ended by a second signal.
    """

    n_held = 0
    last_words: list[Callable[[], None]] = []  # noqa: RUF012 -- one list for the process


class Stop:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self.is_requested = False

    def __call__(self, _signum: int, _frame: object) -> None:
        """The signal handler. It raises once: what comes of it must not be interrupted in its turn."""
        is_first, self.is_requested = not self.is_requested, True
        if is_first and not _State.n_held:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handles the signals that stop a process, in the main thread; a second one ends it with 130.

    A process that was asked to stop is on its way out, and handled they stay: the echo of a signal, arriving when all
    is said already, must not kill it in the middle of its exit.
    """
    stop = Stop()
    # A run under nohup ignores SIGHUP, and goes on doing so.
    numbers = [n for n in STOP_SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_end_at_second, args=(reading, set(numbers), stop), name="signals", daemon=True)
    watcher.start()
    previous = {number: signal.signal(number, stop) for number in numbers}
    previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        if not stop.is_requested:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(writing)
            watcher.join()


def _end_at_second(reading: int, numbers: set[int], stop: Stop) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    first: float | None = None
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while received := stream.read(64):
            # What somebody else handles, like a web server that ends its requests first, is not ours to judge.
            asked = {n for n in numbers & set(received) if signal.getsignal(n) is stop}
            if not asked:
                continue
            if first is None:
                first = time.monotonic()
                # The system may have given it to any thread, and a main thread that sleeps would sleep on.
                if not stop.is_requested:
                    signal.pthread_kill(main_thread, asked.pop())
            if time.monotonic() - first > _ECHO_S:
                for say in list(_State.last_words):
                    with contextlib.suppress(Exception):  # the process ends in any case
                        say()
                os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """In the main thread a stop waits until this is through; a second signal does not."""
    is_main = threading.current_thread() is threading.main_thread()
    _State.n_held += is_main
    try:
        yield
    finally:
        _State.n_held -= is_main


@contextlib.contextmanager
def stop_let() -> Iterator[None]:
    """Inside ``stop_held``: what may be stopped after all."""
    n_held, _State.n_held = _State.n_held, 0
    try:
        yield
    finally:
        _State.n_held = n_held


@contextlib.contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """What is to be said if the process is ended at once while this lasts; said by another thread."""
    _State.last_words.append(say)
    try:
        yield
    finally:
        _State.last_words.remove(say)
