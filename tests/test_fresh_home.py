"""Nothing is left in a home folder, and nobody outside this machine is called: no library reports to its maker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entrypoints.test_cli import EP
from tests.serving import serve

COMMANDS = """
import sys
from cleanup.entrypoints.cli import app
root = sys.argv[1]
of_root = ["--out-root", root, "--models", f"{root}/models", "--device", "cpu"]
for arguments in (
    ["doctor", *of_root],
    ["facebank", "enroll", "--show", "demo", "--aligned", *of_root, f"{root}/seed_photos"],
    ["run", "--ep-id", "demo-s01e01", "--write-back", *of_root],
):
    app(arguments, standalone_mode=False)
"""

SECRET = ".local/state/episode-cleanup/facebank.key"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder for processes that are started, whose calls to other machines go into ``calls`` beside it."""
    library = tmp_path / "calls_out.so"
    source = Path(__file__).with_name("calls_out.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    for name in [n for n in os.environ if n.startswith(("XDG_", "ORT_", "RAY_USAGE", "CI"))]:
        monkeypatch.delenv(name)
    folder, calls = tmp_path / "home", tmp_path / "calls"
    folder.mkdir()
    calls.touch()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CALLS_OUT", str(calls))
    return folder


def left_by(home: Path) -> tuple[list[str], str]:
    """The files in the home folder, but for the secret that marks an embedded Facebank as made here; and who was called."""
    found = [str(p.relative_to(home)) for p in home.rglob("*") if not p.is_dir()]
    return [name for name in found if name != SECRET], (home.parent / "calls").read_text()


def test_commands_leave_nothing_in_a_home_folder_and_call_nobody(drawn: Path, home: Path) -> None:
    subprocess.run([sys.executable, "-c", COMMANDS, drawn], check=True, capture_output=True)

    assert left_by(home) == ([], "")


def test_the_api_and_its_jobs_leave_nothing_in_a_home_folder_and_call_nobody(drawn: Path, home: Path) -> None:
    with serve(drawn) as api:
        job = api.wait(api.start(EP, write_back=True)["job_id"])

    assert job["state"] == "succeeded"
    assert left_by(home) == ([], "")


def test_the_switches_are_off_before_a_library_can_look(home: Path) -> None:
    """Also where the environment says otherwise, and a part of this package is all that is imported."""
    code = "import cleanup.errors, onnxruntime, ray; from ray._common.usage import usage_lib as u; print(u.usage_stats_enabled())"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "", "RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)

    assert done.stdout == "False\n"
    assert left_by(home) == ([], "")
