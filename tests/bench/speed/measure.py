"""Runs the sides of a comparison in processes of their own and keeps what each took."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_POLL_S = 0.02
# The command of the environment that runs this.
CLEANUP = str(Path(sys.executable).parent / "cleanup")
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: Name of the case.
        ours: What we did, in words with a figure.
        peer: What the other side, or the limit, did.
        ratio: How many times better we are, or for a limit the share of it that we use.
        target: What the ratio has to be, in words.
        is_met: Whether it is.
        peak_mib: Peak resident memory of both sides in MiB, where it says something.
        note: What a reader has to know.
    """

    case: str
    ours: str
    peer: str
    ratio: float
    target: str
    is_met: bool
    peak_mib: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Side:
    """What one side took.

    Attributes:
        seconds: As the side measured itself, without its preparations.
        peak_mib: Largest resident memory of the process and those it started; each counted at its own largest, so no
            less than was used at once.
        values: Whatever else it returned.
    """

    seconds: float
    peak_mib: float
    values: dict[str, Any] = field(default_factory=dict)


class _PeakWatcher:
    """Follows the largest resident memory of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peaks, self._is_over = pid, dict[int, int](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_S):
            for pid in _family(self._pid):
                self._peaks[pid] = max(self._peaks.get(pid, 0), _read_peak(pid))

    def stop(self) -> float:
        self._is_over.set()
        self._thread.join()
        return sum(self._peaks.values()) / MIB


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [p for child in children.read_text().split() for p in _family(int(child))]
        except OSError:
            continue  # it has ended meanwhile
    return found


def _read_peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def run_side(function: Callable[..., dict[str, Any]], *args: Any) -> Side:
    """Calls a function in a fresh process; it returns at least ``seconds``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, args))
    process.start()
    theirs.close()
    assert process.pid is not None
    watcher = _PeakWatcher(process.pid)
    try:
        values = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    peak = watcher.stop()
    process.join()
    return Side(values.pop("seconds"), peak, values)


def _call(connection: Connection, function: Callable[..., dict[str, Any]], args: Sequence[Any]) -> None:
    connection.send(function(*args))
    time.sleep(2 * _POLL_S)  # the watcher's last look


def run_command(command: Sequence[str], environment: dict[str, str] | None = None) -> Side:
    """Runs a command to its successful end, output thrown away."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    watcher = _PeakWatcher(process.pid)
    _, errors = process.communicate()
    seconds = time.perf_counter() - started
    peak = watcher.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {errors.decode()[-2000:]}")
    return Side(seconds, peak)


def pick_middle(sides: Sequence[Side]) -> Side:
    """The run of middle length of several of one side, with the largest memory of any."""
    middle = sorted(sides, key=lambda side: side.seconds)[(len(sides) - 1) // 2]
    return Side(middle.seconds, max(side.peak_mib for side in sides), middle.values)


def take_turns(n_turns: int, *sides: Callable[[], Side]) -> list[Side]:
    """Runs the sides one after the other, again and again, so that a slow spell of the machine hits all of them."""
    results: list[list[Side]] = [[] for _ in sides]
    for _ in range(n_turns):
        for outcome, side in zip(results, sides, strict=True):
            outcome.append(side())
    return [pick_middle(outcome) for outcome in results]
