"""What every command's process has around it: standard streams, and one line for an error wherever it strikes.

A process may be started with its streams closed, and then the next file it opens takes their place: what a library
prints would go into an episode's file. And a full disk behind standard output must neither cut a run off nor pass in
silence. Nothing heavy is imported here: what fails in an import is told in one line as well.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import resource
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cleanup.entrypoints.terminal import say
from cleanup.errors import ResourceError, describe_error, describe_os_error, translate

if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

# Address space that NumPy, SciPy and Arrow take when they are loaded, and what each core adds in stacks of threads.
_LIBRARIES_BYTES, _BYTES_PER_CORE = 560 << 20, 16 << 20
# NumPy and SciPy bring one each, with a thread per core.
_OPENBLAS = 2


class Output(io.FileIO):
    """A standard stream; the first failure to write is kept in ``failure``, and the others are passed over.

    Of a pipe whose reader is gone the writer hears at once: it wants no more.
    """

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes, or notes that it could not be done."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


def main() -> None:
    """Entry point of the ``cleanup`` script."""

    def command() -> None:
        from cleanup.entrypoints.cli import app

        app()

    run_main(command)


def run_main(command: Callable[[], object]) -> None:
    """Runs a command as a process of its own: one line and the right exit code, whatever happens before or around it.

    What the command prints and nobody could take is said at the end: the work is done by then.

    Args:
        command: Ends with SystemExit, or returns for success.
    """
    output = open_streams()
    code: str | int | None = 0
    try:
        command()
    except SystemExit as error:
        code = error.code
    except Exception as error:
        code = tell(error)
        if code is None:
            raise
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if output.failure is not None and not code:
        what = describe_os_error(output.failure)
        say(f"cleanup: standard output: {what}; what was printed is lost, what was asked for is done", is_error=True)
        code = 1
    sys.exit(code)


def check_room() -> None:
    """Makes sure that there are memory and threads enough to load the libraries.

    OpenBLAS, loaded into too little of the one, ends the process by itself or tries again for ever; without the other
    it interrupts the process as Ctrl-C does.

    Raises:
        ResourceError: Memory is not enough.
        RuntimeError: Threads are not.
    """
    _check_address_space()
    is_enough = threading.Event()
    threads = [threading.Thread(target=is_enough.wait, daemon=True) for _ in range(_OPENBLAS * (os.cpu_count() or 1))]
    try:
        for thread in threads:
            thread.start()
    finally:
        is_enough.set()
    for thread in threads:
        thread.join()


def _check_address_space() -> None:
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if all(limit == resource.RLIM_INFINITY for limit in limits):
        return
    needed = _LIBRARIES_BYTES + _BYTES_PER_CORE * (os.cpu_count() or 1)
    try:
        mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise ResourceError(
            f"not enough memory: {needed >> 20} MiB to load the libraries are not there under the limit; raise it "
            "(ulimit -v, ulimit -d), or set it with what the container may use"
        ) from None


def tell(error: BaseException) -> int | None:
    """Says what went wrong in one line and gives the exit code; None for a fault of the program."""
    line = describe_error(error)
    if line is None:
        return None
    told = translate(error)
    if told is not None and not isinstance(told, ResourceError):
        say(f"cleanup: {line}", is_error=True)
        return told.exit_code
    # A full disk, a missing right, a file that vanished: the system's words say it best.
    say(f"cleanup: {line}; no file is half written", is_error=True)
    return 1


def open_streams() -> Output:
    """Makes sure of the three standard streams; gives the one of standard output."""
    # Nothing can be read from a stream that was closed, and writing to one fails as it did.
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # it takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 -- it stays open
    output = Output(1, "w", closefd=False)
    sys.stdout = _text_stream(output, sys.stdout)
    sys.stderr = _text_stream(Output(2, "w", closefd=False), sys.stderr)
    return output


def _text_stream(raw: Output, before: TextIO | None) -> io.TextIOWrapper:
    """What takes a standard stream's place: what its encoding lacks is written out instead of failing."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )
