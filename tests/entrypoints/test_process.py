"""What a process is started with: limits, streams, folders. One line, the right exit code, files whole, no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import artifacts_of, write_episode
from tests.conftest import ROOT

RUN = "run --actions split_tracks,recluster --write-back"


def shell(line: str, root: Path | bytes, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A shell's line in which ``cleanup`` is the command, and ``$ROOT`` the data root."""
    # The shell does not do in the command's place what the line is about: it becomes the command.
    line = line.replace("cleanup", f"exec {sys.executable} -m cleanup.entrypoints.cli", 1)
    environment = {**os.environb, b"ROOT": os.fsencode(root), b"PYTHONPATH": os.fsencode(ROOT)}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False, cwd=folder)
    return subprocess.CompletedProcess(line, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ulimit -v 400000", "not enough memory: .* the limit"),
        ("ulimit -v 60000", "(not enough memory|no more threads)"),
        ("ulimit -f 2", "faces.jsonl.*: File too large; no file is half written"),
        ("ulimit -n 8", "Too many open files; .*ulimit -n"),
    ],
)
def test_what_a_limit_takes_is_said_in_one_line_and_the_episode_is_as_it_was(
    tmp_path: Path, limit: str, message: str
) -> None:
    ep_id = write_episode(tmp_path, "documented", (("a", "b"), ("a",)))
    before = artifacts_of(tmp_path, ep_id)

    done = shell(f'{limit}; cleanup {RUN} --ep-id {ep_id} --out-root "$ROOT" -q', tmp_path)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("cleanup: ") and re.search(message, line), line
    assert artifacts_of(tmp_path, ep_id) == before


@pytest.mark.parametrize(
    ("streams", "message"),
    [(">/dev/full", "No space left on device"), (">&- <&-", "Bad file descriptor")],
)
def test_output_that_nobody_takes_is_told_and_the_run_is_done(tmp_path: Path, streams: str, message: str) -> None:
    ep_id = write_episode(tmp_path, "documented", (("a", "b"), ("a",)))
    before = artifacts_of(tmp_path, ep_id)

    done = shell(f'cleanup {RUN} --ep-id {ep_id} --out-root "$ROOT" {streams}', tmp_path)

    assert done.returncode == 1
    assert done.stderr == (
        f"cleanup: standard output: {message}; what was printed is lost, what was asked for is done\n"
    )
    assert artifacts_of(tmp_path, ep_id) != before
    assert (tmp_path / "manifests" / ep_id / "cleanup_report.json").exists()


def test_a_file_that_is_opened_takes_no_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints would go into it."""
    script = (
        "import os, sys; from cleanup.entrypoints.process import run_main\n"
        "def command(): os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(1, b'noise')\n"
        "run_main(command)"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" "$1" >&-', script, tmp_path / "precious"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (tmp_path / "precious").read_bytes() == b""
    assert (done.returncode, done.stderr) == (1, "cleanup: Bad file descriptor; no file is half written\n")


@pytest.mark.parametrize("name", [b"not utf-8 \xff", b"two\nlines"])
def test_a_data_root_of_any_name(tmp_path: Path, name: bytes) -> None:
    root = os.fsencode(tmp_path) + b"/" + name
    ep_id = write_episode(Path(os.fsdecode(root)), "documented", (("a", "b"), ("a",)))

    done = shell(f'cleanup {RUN} --ep-id {ep_id} --out-root "$ROOT"', root)

    assert (done.returncode, done.stderr) == (0, "")
    [report] = [line for line in done.stdout.splitlines() if line.startswith("report: ")]
    assert report.endswith(f"/manifests/{ep_id}/cleanup_report.json")
    [back] = [line for line in done.stdout.splitlines() if line.startswith("to go back: ")]
    assert shell(back.removeprefix("to go back: "), root).returncode == 0


def test_a_current_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()

    done = shell('rmdir "$PWD"; cleanup validate --ep-id show-s01e01', tmp_path, tmp_path / "gone")

    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "the current folder was removed" in done.stderr
