"""Kills whole runs at random times and looks at what is left: ``uv run python -m tests.bench.kills [--kills 200]``.

Each run works on a fresh copy of the drawn episode with an enrolled Facebank, in all four phases, and is killed with
SIGKILL at a moment drawn evenly from its whole length: every other time alone, else with its process group. Then: does a
process live on, is the lock free, is the episode all old or all new, is it valid, and is the next run fine?
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations
from cleanup.edges.episode_lock import hold_episode
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.demo import draw_episode
from cleanup.names import check_ep_id
from tests.builders import artifacts_of
from tests.conftest import copy_data

EP = check_ep_id("demo-s01e01")
_PATIENCE_S = 20.0
_N_AT_ONCE = 2


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cleanup.entrypoints.cli", *arguments, "--out-root", str(root), "--models",
            str(root / "models"), "--device", "cpu"]  # fmt: skip


def run(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(root, "run", "--ep-id", EP, "--write-back", "-q"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def list_left(root: Path) -> list[str]:
    """Processes that have the data root in their command line."""
    lines = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(root) in line]


def strike(original: Path, scratch: Path, number: int, delay_s: float, *, old: Any, new: Any) -> dict[str, Any]:
    """One kill, and everything that is to hold after it."""
    root = copy_data(original, scratch / str(number))
    paths = EpisodePaths(RootPath(root), EP)
    process = run(root)
    time.sleep(delay_s)
    is_killed = process.poll() is None
    if is_killed:
        (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    found: dict[str, Any] = {"number": number, "delay_s": delay_s, "is_killed": is_killed, "faults": []}
    deadline = time.monotonic() + _PATIENCE_S
    while list_left(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    found["faults"] += [f"orphan: {line}" for line in list_left(root)]
    paths.runs.mkdir()
    with (paths.runs / "lock").open_lock() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            found["faults"].append("the lock is held")
    found["was_cut_off_after_the_commit"] = paths.journal.exists()
    with hold_episode(paths):
        state = artifacts_of(root, EP)
    found["state"] = "old" if state == old else "new" if state == new else "torn"
    found["faults"] += [*(["torn"] if found["state"] == "torn" else []), *find_violations(paths)]
    if paths.progress.exists() and json.loads(paths.progress.read_bytes())["phase"] not in ("failed", "done"):
        found["faults"].append("progress still says that it runs")
    again = run(root)
    _, stderr = again.communicate()
    if again.returncode != 0 or artifacts_of(root, EP) != new:
        found["faults"].append(f"the next run: {again.returncode} {stderr.decode()[-300:]}")
    rubbish = [
        p
        for p in (
            *paths.manifests.system_path.rglob(".*"),
            *paths.runs.system_path.rglob(".*"),
            *paths.backups.system_path.rglob(".*"),
        )
    ]
    found["faults"] += [f"left behind: {path.name}" for path in rubbish]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        scratch = Path(name)
        original = scratch / "original"
        original.mkdir()
        draw_episode(original, seed=1)
        enroll = command(original, "facebank", "enroll", "--show", "demo", "--aligned", str(original / "seed_photos"))
        subprocess.run(enroll, check=True, stdout=subprocess.DEVNULL)
        old = artifacts_of(original, EP)
        references = [copy_data(original, scratch / f"reference-{i}") for i in range(_N_AT_ONCE)]
        started = time.monotonic()
        for process in [run(reference) for reference in references]:
            assert process.wait() == 0
        length = time.monotonic() - started  # beside each other, as those that are killed
        new = artifacts_of(references[0], EP)
        with ThreadPoolExecutor(_N_AT_ONCE) as threads:
            results: list[dict[str, Any]] = []
            while (n_left := arguments.kills - sum(r["is_killed"] for r in results)) > 0:  # some end before their kill
                numbers = range(len(results), len(results) + n_left)
                delays = [rng.uniform(0, length) for _ in numbers]
                results += threads.map(partial(strike, original, scratch, old=old, new=new), numbers, delays)
    faults = [f"kill {r['number']} after {r['delay_s']:.2f} s: {fault}" for r in results for fault in r["faults"]]
    summary = {
        "kills": sum(r["is_killed"] for r in results), "ended_before": sum(not r["is_killed"] for r in results),
        "states": dict(Counter(r["state"] for r in results)), "run_s": round(length, 2), "faults": faults,
        "cut_off_after_the_commit": sum(r["was_cut_off_after_the_commit"] for r in results),
    }  # fmt: skip
    print(json.dumps(summary, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=2))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
