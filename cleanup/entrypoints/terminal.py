"""All that is printed passes through here or ``screen.py``, and what is printed may hold anything.

Names, paths, labels and other programs' messages come from files that somebody else may have made. So every line is
written out first (``one_line``): nothing in it steers a terminal, ends the line, or begins another field of a listing.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import typer

from cleanup.errors import one_line

# Whatever a JSON encoder leaves as it is and a terminal might not: all but plain letters; the line breaks are its own.
_NOT_PLAIN = re.compile(r"[^\x20-\x7e\n]+")


def say(text: str, *, is_error: bool = False) -> None:
    """Prints one line."""
    typer.echo(one_line(text), err=is_error)


def say_fields(*fields: object) -> None:
    """Prints one line of a listing, its fields apart by tabs."""
    typer.echo("\t".join(one_line(str(field)) for field in fields))


def print_json(value: Any) -> None:
    """Prints a value for programs; as JSON writes it, what is not to be printed is written out."""
    from cleanup.edges.file_writing import render_json

    text = _NOT_PLAIN.sub(lambda found: "".join(map(_json_letter, found[0])), render_json(value).decode())
    typer.echo(text.encode())  # JSON is UTF-8 whatever the terminal has


def _json_letter(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def set_up_logging(level: int, *, is_timed: bool = False) -> None:
    """Lets the log go to standard error, a line for each record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter(f"{'%(asctime)s ' if is_timed else ''}%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _OneLineFormatter(logging.Formatter):
    """Writes a record on one line; a traceback follows, indented, so that no line of it looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the base class's
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 -- the base class's
        return "\n".join(f"  {one_line(line)}" for line in super().formatException(ei).splitlines())
