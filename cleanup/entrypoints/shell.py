"""What all commands share: one line per error, exit codes, signals, settings and data root."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from cleanup.entrypoints.process import check_room, tell
from cleanup.entrypoints.stop_signals import EXIT_INTERRUPTED, Stop, stop_on_signals
from cleanup.entrypoints.terminal import say, set_up_logging
from cleanup.errors import CommittedError

if TYPE_CHECKING:
    from cleanup.edges.data_root import DataRoot
    from cleanup.resolve_settings import ResolvedSettings


@contextlib.contextmanager
def one_line_errors(verbosity: int = 0) -> Iterator[Stop]:
    """Ends the process with one line and the right exit code; SIGTERM and SIGHUP stop a run as Ctrl-C does.

    The log goes to standard error: warnings, with a verbosity of 1 and 2 more.

    An interrupt that strikes inside an import comes out as whatever the import makes of it, so what counts is whether a
    stop was asked for, not what was raised.
    """
    set_up_logging(logging.WARNING if verbosity == 0 else logging.INFO if verbosity == 1 else logging.DEBUG)
    with stop_on_signals() as stop:
        try:
            check_room()
            yield stop
        except (Exception, KeyboardInterrupt) as error:
            is_committed = isinstance(error, CommittedError)
            if isinstance(error, KeyboardInterrupt) or (stop.is_requested and not is_committed):
                say("cleanup: interrupted; no file is half written", is_error=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            if isinstance(error, BrokenPipeError):  # whoever read our output has enough of it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            code = tell(error)
            if code is None:
                raise
            raise typer.Exit(code) from None


def resolve(settings: Mapping[str, Any], profile: str | None, config_dir: str | None) -> ResolvedSettings:
    """The settings of a command."""
    from cleanup.resolve_settings import resolve_for_run

    return resolve_for_run(settings, profile, config_dir)


def open_root(out_root: str | None, resolved: ResolvedSettings) -> DataRoot:
    """The data root of a command."""
    from cleanup.edges.data_root import resolve_out_root

    return resolve_out_root(out_root, os.environ, resolved.settings.storage)


def acting_user() -> str:
    """Who gives a command, for the log of a show's people; in a container a user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
