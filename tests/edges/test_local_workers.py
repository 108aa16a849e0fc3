"""The local engine's processes do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import ROOT

WORKING = """
import sys, time
from pathlib import Path
from cleanup.edges.local_workers import LocalEngine
from tests.edges.test_local_workers import work
if __name__ == "__main__":
    LocalEngine(None).run_many(work, [(sys.argv[1], 0), (sys.argv[1], 1)])
"""


def work(folder: str, number: int) -> None:
    Path(folder, str(number)).touch()
    time.sleep(120)


def test_processes_of_a_large_clustering_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script, tmp_path], cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)

    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=20)[1]
