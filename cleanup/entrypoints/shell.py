"""What all commands share: one line per error, exit codes, signals, settings and data root."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from cleanup.errors import CleanupError

if TYPE_CHECKING:
    from cleanup.edges.data_root import DataRoot
    from cleanup.resolve_settings import ResolvedSettings

EXIT_INTERRUPTED = 130


class Stop:
    """Whether somebody asked this process to stop. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.is_requested = False

    def __call__(self, signum: int, _frame: object) -> None:
        """The signal handler."""
        self.is_requested = True
        signal.signal(signum, signal.SIG_DFL)
        raise KeyboardInterrupt


@contextlib.contextmanager
def one_line_errors() -> Iterator[Stop]:
    """Ends the process with one line and the right exit code; SIGTERM stops a run as Ctrl-C does.

    An interrupt that strikes inside an import comes out as whatever the import makes of it, so what counts is whether a
    stop was asked for, not what was raised.
    """
    stop = Stop()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except (Exception, KeyboardInterrupt) as error:
        if stop.is_requested or isinstance(error, KeyboardInterrupt):
            typer.echo("cleanup: interrupted; no file is half written", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if isinstance(error, CleanupError):
            typer.echo(f"cleanup: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        if isinstance(error, OSError):
            # A full disk, a missing right, a file that vanished: the system's words say it best.
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(f"cleanup: {where}{error.strerror or error}; no file is half written", err=True)
            raise typer.Exit(1) from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def resolve(settings: Mapping[str, Any], profile: str | None, config_dir: str | None) -> ResolvedSettings:
    """The settings of a command."""
    from cleanup.resolve_settings import resolve_for_run

    return resolve_for_run(settings, profile, config_dir)


def open_root(out_root: str | None, resolved: ResolvedSettings) -> DataRoot:
    """The data root of a command."""
    from cleanup.edges.data_root import resolve_out_root

    return resolve_out_root(out_root, os.environ, resolved.settings.storage)


def print_json(value: Any) -> None:
    """Prints a value for programs."""
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
