"""What is drawn with Rich: lines with a style, tables, bars. Texts are taken as they are: none is read as markup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cleanup.errors import one_line

# A text, or a text and the style it is to have.
Styled = str | tuple[str, str]


def _text(*parts: Styled) -> Text:
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((one_line(text), style) for text, style in pairs))


class _EscapedColumn(TextColumn):
    def render(self, task: Task) -> Text:
        return Text(one_line(self.text_format.format(task=task)), style=self.style)


class Screen:
    """A terminal, or a file of plain lines.

    Args:
        is_error: Whether it is standard error, because results go to standard output.
    """

    def __init__(self, *, is_error: bool = False) -> None:
        self._console = Console(file=sys.stderr if is_error else sys.stdout, highlight=False)

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks."""
        return self._console.is_terminal

    def say(self, *parts: Styled) -> None:
        """Prints one line."""
        self._console.print(_text(*parts), soft_wrap=True)

    def print_table(
        self, headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[Styled]], title: str | None = None
    ) -> None:
        """Prints a table.

        Args:
            headings: Heading and ``left``, ``right`` or ``fold`` of each column.
            rows: Their cells.
            title: Stands above it.
        """
        table = Table(title=title and _text(title), title_justify="left")
        for heading, kind in headings:
            table.add_column(
                _text(heading),
                justify="right" if kind == "right" else "left",
                overflow="fold" if kind == "fold" else "ellipsis",
            )
        for row in rows:
            table.add_row(*map(_text, row))
        self._console.print(table)

    def progress(self, description: str, note: str) -> Progress:
        """Bars; each has the formats of a text before it and of one behind it, ``{task.fields[note]}``."""
        return Progress(
            SpinnerColumn(),
            _EscapedColumn(description, style="bold"),
            BarColumn(),
            _EscapedColumn(note),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )

    @contextmanager
    def status(self) -> Iterator[Callable[[str], None]]:
        """A line at the bottom that is written anew each time."""
        with self._console.status("") as status:
            yield lambda text: status.update(_text(text))
