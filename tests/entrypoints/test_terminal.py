"""Whatever is printed: nothing in it steers a terminal, looks like another line or field, or is taken for markup."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from rich.console import Console

import cleanup as package
from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints import screen as screen_module
from cleanup.entrypoints.display import show_progress, show_season
from cleanup.entrypoints.screen import Screen
from cleanup.entrypoints.terminal import print_json, say, say_fields, set_up_logging
from cleanup.progress import PhaseProgress
from tests.builders import write_episode
from tests.entrypoints.test_cli import cleanup

# Title, clear, C1 control, carriage return, new line, tab, turned writing, line separator, markup, an emoji's name.
EVIL = "Eve\x1b]0;owned\x07\x1b[2J\x9b31m\r\nfake\tfield\u202e\u2066\u2028[bold red]x[/] :bomb:"
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
PRINTERS = ("terminal.py", "screen.py")
# What prints, and what makes things that Rich would look for markup in.
PRINTING = {"print", "echo", "secho", "prompt", "confirm", "pprint", "print_exc", "from_markup", "Table", "TextColumn"}


def test_only_two_modules_print() -> None:
    found = []
    root = Path(package.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "jobs").glob("*.py")]:
        if path.name in PRINTERS and path.parent.name == "entrypoints":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                function = node.func
                name = getattr(function, "id", getattr(function, "attr", ""))
                is_stream = name in ("write", "writelines") and "sys.std" in ast.unparse(function)
                if name in PRINTING or is_stream:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(function)}")
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                found.append(f"{path.name}:{node.lineno}: {node.module}")

    assert not found, "print with say, say_fields or Screen, which write out what steers a terminal"


def test_a_line_stays_one_line_and_a_field_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say_fields("a", EVIL, 3)
    Screen().say(EVIL, (EVIL, "bold"))
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == 3 and not STEERS.search("".join(lines))
    assert lines[1].count("\t") == 2
    assert all("[bold red]x[/] :bomb:" in line and r"\x1b]0;owned" in line for line in lines)


def test_tables_and_bars_show_texts_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        screen_module, "Console", lambda **_: Console(file=shown, force_terminal=True, width=400, color_system=None)
    )
    screen = Screen()
    screen.print_table([("name", "fold")], [[EVIL], [(EVIL, "red")]], EVIL)
    with show_progress(screen, is_quiet=False) as tell:
        assert tell is not None
        tell(PhaseProgress(EVIL, 1, 1, 0, 0, EVIL))
    with show_season(screen, is_quiet=False) as tell_season:
        episode = {"state": "running", "progress": 0.5, "phase": EVIL, "message": EVIL, "elapsed_seconds": 1.0}
        season = {"episodes_done": 0, "episodes_total": 1, "episodes_failed": 0, "progress": 0.1, "state": "running"}
        tell_season({**season, "episodes": {EVIL: episode}})
        tell_season({**season, "episodes": {EVIL: {**episode, "state": "failed", "error": EVIL}}})
    with screen.status() as show:
        show(EVIL)

    # Rich's own: it moves the cursor, hides it, and clears lines.
    plain = re.sub(r"\x1b\[(\?25[lh]|\d*[ABCDGJKm])|\r", "", shown.getvalue())
    assert not STEERS.search(plain.replace(" ", "")), plain
    assert plain.count("[bold red]x[/] :bomb:") >= 6
    assert not [line for line in plain.splitlines() if line.strip().startswith("fake")]


def test_json_is_the_same_value_without_what_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"José 山田": [EVIL, "\U000e0001"]}

    print_json(value)

    text = capsys.readouterr().out
    assert orjson.loads(text) == json.loads(text) == value
    assert "José 山田" in text and not STEERS.search(text)


@contextlib.contextmanager
def logged(**options: bool) -> Iterator[io.StringIO]:
    """What the log says, set up as for a command."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        set_up_logging(logging.INFO, **options)
        try:
            yield shown
        finally:
            root.handlers = before


def test_the_log_has_a_line_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    with logged() as shown:
        log = logging.getLogger("cleanup.test")
        log.warning("%s is odd", EVIL)
        try:
            raise ValueError(f"first\nWARNING forged: {EVIL}")
        except ValueError:
            log.exception("it failed")
    lines = shown.getvalue().splitlines()

    assert not STEERS.search("".join(lines))
    assert [line[:7] for line in lines if not line.startswith("  ")] == ["WARNING", "ERROR c"]


def test_names_in_an_episode_reach_no_terminal_as_they_are(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "documented", (("a",), ("b",), ("a",)))
    path = tmp_path / "manifests" / ep_id / "identities.json"
    document = json.loads(path.read_text())
    for entry, name in zip(document["identities"], (EVIL, "[red]markup[/]"), strict=False):
        entry["labels"] = {"name": name}
    path.write_text(json.dumps(document))
    of_root = ("--out-root", tmp_path)

    run = cleanup("run", "--ep-id", ep_id, *of_root, "--actions", "recluster", "--write-back")
    (record,) = (tmp_path / "backups" / ep_id).glob("*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "made_by": EVIL}))
    told = [run, cleanup("diff", ep_id, *of_root), cleanup("backups", "list", ep_id, *of_root, code=None)]
    told += [
        cleanup("backups", "show", ep_id, record.stem, *of_root, code=None),
        cleanup("run", "--ep-id", EVIL, code=2),
    ]

    assert DataRoot(tmp_path).list_episodes() == [ep_id]
    for result in told:
        assert not STEERS.search(result.output + result.stderr), result.output
    assert len(told[2].output.splitlines()) == 1


def test_every_command_sets_the_log_up(tmp_path: Path) -> None:
    """Python's own way to show a warning that nobody waits for would write it as it is."""
    code = (
        "import logging, cleanup.entrypoints.backups_cli as b; from cleanup.entrypoints.cli import app; "
        "b._open = lambda *_: logging.getLogger('x').warning('odd \\x1b[31m') or exit(3); app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "backups", "list", "show-s01e01", "--out-root", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (3, "WARNING x: odd \\x1b[31m\n")
