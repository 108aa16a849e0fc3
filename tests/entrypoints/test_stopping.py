"""A stop at any time: at once, but never between the files of a commit, and with a last word."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.builders import EMITTED_EP, artifacts_of, write_episode

STOPPED_IN_THE_COMMIT = """
import os, signal, sys
from cleanup.edges.journal import Journal
from cleanup.entrypoints import cli
apply = Journal.apply
def interrupted(self):
    os.kill(os.getpid(), signal.SIGINT)
    apply(self)
Journal.apply = interrupted
sys.argv = ["cleanup", "run", "--ep-id", sys.argv[2], "--out-root", sys.argv[1], "--actions", "split_tracks,recluster",
            "--write-back", "-q"]
cli.main()
"""

HANGING = """
import sys, time
from pathlib import Path
import numpy as np
import typer
from cleanup.entrypoints.shell import one_line_errors
from cleanup.entrypoints.stop_signals import last_words
matrix = np.random.default_rng(0).normal(size=(6000, 6000))
try:
    with one_line_errors(), last_words(lambda: Path(sys.argv[1]).write_text("last words")):
        print("hanging", flush=True)
        np.linalg.svd(matrix)  # minutes in native code, where no handler of ours runs
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def test_a_stop_within_the_commit_comes_too_late_and_says_so(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "emitted", (("a", "b"), ("b",)))
    before = artifacts_of(tmp_path, ep_id)

    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_THE_COMMIT, tmp_path, EMITTED_EP], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == "cleanup: the stop came too late, when the run was being written; it is complete\n"
    assert artifacts_of(tmp_path, ep_id) != before
    progress = json.loads((tmp_path / "manifests" / ep_id / "cleanup_progress.json").read_text())
    assert progress["phase"] == "done" and progress["summary"]["tracks_after"] == 3
    assert (tmp_path / "manifests" / ep_id / "cleanup_report.json").exists()


def test_a_second_stop_ends_a_process_that_hangs_in_native_code(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with subprocess.Popen([sys.executable, "-c", HANGING, said], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "hanging\n"
        time.sleep(2.0)  # until it really hangs
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None, "one stop waits for the next safe point"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130

    assert time.monotonic() - started < 10
    assert said.read_text() == "last words"


def test_one_key_press_that_arrives_twice_is_one_stop(tmp_path: Path) -> None:
    code = HANGING.replace("np.linalg.svd(matrix)", "time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "said"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "hanging\n"
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):  # both are there when it goes on
            process.send_signal(number)
        _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert stderr == "cleanup: interrupted; no file is half written\n"
    assert not (tmp_path / "said").exists()


def test_an_echo_that_comes_when_all_is_said_kills_no_exit(tmp_path: Path) -> None:
    code = HANGING.replace("np.linalg.svd(matrix)", "os.kill(os.getpid(), signal.SIGTERM)").replace(
        "    sys.exit", "    os.kill(os.getpid(), signal.SIGINT)\n    print('at its end')\n    sys.exit"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import os, signal\n" + code, tmp_path / "said"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 130 and done.stdout == "hanging\nat its end\n"
    assert done.stderr == "cleanup: interrupted; no file is half written\n"


def test_a_stop_that_the_system_gives_to_another_thread_wakes_the_main_thread(tmp_path: Path) -> None:
    strike = "threading.Timer(1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()"
    code = HANGING.replace("np.linalg.svd(matrix)", f"{strike}; time.sleep(60)")

    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "import signal, threading\n" + code, tmp_path / "said"], capture_output=True, check=False
    )

    assert done.returncode == 130 and time.monotonic() - started < 50


def test_an_api_with_a_request_in_flight_stops_with_its_last_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cleanup.entrypoints.cli", "serve", "--port", "0", "--out-root", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(
                b"POST /jobs/episode_cleanup_async HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            time.sleep(1.0)  # until it waits for the rest
            process.send_signal(signal.SIGINT)
            stdout, _ = process.communicate(timeout=30)

    assert (process.returncode, stdout) == (0, "the API has stopped; jobs that run go on\n")
