"""Which process is meant: a number alone is given to another process sooner or later, or means another one elsewhere.

On Linux a signal goes through a handle of the process (a pidfd) that was compared first, so that it reaches that
process or nobody. Elsewhere, and under a Python that was built without pidfds, comparing and signalling are two steps.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cleanup.edges.lease import machine_id
from cleanup.errors import StorageError

_PROC = Path("/proc")
_GLANCE_S = 0.05
_MAX_TEXT, _MAX_NUMBER = 200, 1 << 63


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from every other one of any machine, container and time.

    Attributes:
        boot_id: Its machine, from one start of it to the next.
        pid_namespace: Where its number is valid; 0 on systems that know only one such place.
        pid: Its number.
        start_ticks: When it started, in the system's own unit.
    """

    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The process that has a number now, here.

        Raises:
            ProcessLookupError: There is none.
            StorageError: /proc is that of another container.
        """
        return cls(machine_id(), _pid_namespace(), pid, _read_start(pid).ticks)

    @classmethod
    def from_json(cls, value: Any) -> ProcessIdentity:
        """What ``to_json`` gave.

        Raises:
            ValueError: It is something else.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"a process is an object with {', '.join(names)}")
        boot_id, numbers = value["boot_id"], [value[name] for name in names[1:]]
        if not isinstance(boot_id, str) or not 0 < len(boot_id) <= _MAX_TEXT:
            raise ValueError("boot_id of a process is a short text")
        if any(type(number) is not int or not 0 <= number < _MAX_NUMBER for number in numbers) or numbers[1] == 0:
            raise ValueError("pid_namespace, pid and start_ticks of a process are whole numbers, the pid from 1 on")
        return cls(boot_id, *numbers)

    def to_json(self) -> dict[str, Any]:
        """A plain object, to be kept in a record."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process that this one could see: of this boot of this machine, of this container."""
        return self.boot_id == machine_id() and self.pid_namespace == _pid_namespace()

    def is_alive(self) -> bool:
        """Whether it works; not one that ended and waits for its parent. One that is not ``is_here`` is not seen."""
        if not self.is_here:
            return False
        try:
            start = _read_start(self.pid)
        except ProcessLookupError:
            return False
        return start.ticks == self.start_ticks and not start.has_ended

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal to this process and to no other one; false if it is gone or not to be seen from here."""
        with self._opened() as handle:
            if not self.is_alive():
                return False
            with contextlib.suppress(ProcessLookupError):
                if handle is None:
                    os.kill(self.pid, number)
                else:
                    signal.pidfd_send_signal(handle, number)
                return True
        return False

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end, whoever its parent is; false if it works after that time still."""
        deadline = time.monotonic() + timeout_s
        with self._opened() as handle:
            while self.is_alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if handle is None:
                    time.sleep(min(left, _GLANCE_S))
                else:
                    ended = select.poll()
                    ended.register(handle, select.POLLIN)
                    ended.poll(left * 1000)
        return True

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """A handle of whoever has the number now; compare only then. None where there are no such handles."""
        handle = None
        if self.is_here and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            with contextlib.suppress(OSError):  # gone, or a system that has none
                handle = os.pidfd_open(self.pid)
        try:
            yield handle
        finally:
            if handle is not None:
                os.close(handle)


@dataclass(frozen=True)
class _Start:
    ticks: int
    has_ended: bool


def _read_start(pid: int) -> _Start:
    if not sys.platform.startswith("linux"):
        return _ask_psutil(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The name stands in brackets and may hold anything; state is the first field behind it, the start the twentieth.
    behind = text.rpartition(")")[2].split()
    return _Start(int(behind[19]), behind[0] in "ZX")


def _ask_psutil(pid: int) -> _Start:
    import psutil

    try:
        process = psutil.Process(pid)
        return _Start(round(process.create_time() * 1e6), process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None


def _pid_namespace() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    if str((_PROC / "self").readlink()) != str(os.getpid()):
        raise StorageError(
            "/proc shows the processes of another container; mount this one's own: mount -t proc proc /proc"
        )
    return (_PROC / "self" / "ns" / "pid").stat().st_ino
