"""Runs cleanup jobs in forked processes with a fault at one of their system calls; with ``faults.c`` preloaded.

A request is a line of JSON on standard input, {root, ep_id, at, error, restore, meddle, swaps}; the answer is one as well.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cleanup.edges.data_root import DataRoot
from cleanup.edges.job_records import SUCCEEDED
from cleanup.edges.job_store import JobStore
from cleanup.edges.journal import Journal
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.episode_job import EpisodeJob, run_episode_job
from cleanup.entrypoints.episode_states import restore_backup
from cleanup.errors import CleanupError, describe_os_error
from cleanup.names import check_ep_id, check_run_id
from cleanup.resolve_settings import resolve_for_run
from tests.builders import write_episode

FAULTS = ctypes.CDLL(None)
FAULTS.faults_arm.argtypes = [ctypes.c_long, ctypes.c_int]
FAULTS.faults_trace.restype = ctypes.c_char_p
SETTINGS = resolve_for_run({"device": "cpu"}, None, None)


def run(root: str, ep_id: str) -> None:
    job = EpisodeJob(
        check_ep_id(ep_id), DataRoot(RootPath(Path(root))), ("split_tracks", "recluster"), SETTINGS, write_back=True
    )
    run_episode_job(job)


def meddle(request: dict[str, Any]) -> None:
    """Another program replaces a file right after the commit point; names may be swapped in one step, or not."""
    apply = Journal.apply

    def meddled(self: Journal) -> None:
        target = Path(request["root"]) / request["meddle"]
        FAULTS.faults_pause()
        target.with_name("theirs").write_bytes(b"{}")
        target.with_name("theirs").replace(target)
        FAULTS.faults_resume()
        apply(self)

    Journal.apply = meddled  # type: ignore[method-assign]
    if not request["swaps"]:
        RootPath.exchange = lambda *_: False  # type: ignore[method-assign]


def keep_jobs(root: str) -> None:
    """A job of the API from its making to its end, and the removal of the one before."""
    store = JobStore(RootPath(Path(root)))
    with store.hold_all(1):
        job_id = store.create("episode", (check_ep_id("show-s01e01"),), {}).job_id
    with store.hold(job_id):
        store.end(job_id, SUCCEEDED, summary={"tracks_after": 3})
    with store.hold_all(1):
        store.prune(1)


def act(request: dict[str, Any]) -> None:
    if request.get("meddle"):
        meddle(request)
    if request.get("keeps_jobs"):
        keep_jobs(request["root"])
    elif request.get("restore"):
        ep_id, run_id = check_ep_id(request["ep_id"]), check_run_id(request["restore"])
        restore_backup(DataRoot(RootPath(Path(request["root"]))), ep_id, run_id, 10)
    else:
        run(request["root"], request["ep_id"])


def serve(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        error = None
        os.environ["FAULTS_ROOT"] = request["root"]
        FAULTS.faults_arm(request.get("at", 0), request.get("error", 0))
        try:
            act(request)
        except CleanupError as failure:
            error = str(failure)
        except OSError as failure:
            error = describe_os_error(failure)
        except BaseException as failure:  # noqa: BLE001 -- what gets here is what the test is after
            error = f"TRACEBACK {type(failure).__name__}: {failure}"
        answer = {"error": error, "trace": FAULTS.faults_trace().decode().splitlines()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"killed": os.WTERMSIG(status)}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # everything that a run imports is imported before the forks
        run(scratch, write_episode(Path(scratch), "emitted"))
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
