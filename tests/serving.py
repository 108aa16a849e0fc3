"""A real ``cleanup serve`` for tests, and how to wait for its jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath

ENDED = ("succeeded", "failed", "canceled")
TIMEOUT_S = 120.0


@dataclass
class Api:
    """A running API: its process, its data root, a client of it."""

    root: Path
    process: subprocess.Popen[str]
    url: str
    http: httpx.Client

    def start(self, ep_id: str, *, status: int = 200, **options: Any) -> dict[str, Any]:
        return self.call("POST", "/jobs/episode_cleanup_async", status=status, json={"ep_id": ep_id, **options})

    def call(self, method: str, path: str, *, status: int = 200, **arguments: Any) -> Any:
        response = self.http.request(method, path, **arguments)
        assert response.status_code == status, response.text
        return response.json()

    def get(self, path: str, **arguments: Any) -> Any:
        return self.call("GET", path, **arguments)

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended."""
        return wait_for(lambda: job if (job := self.get(f"/jobs/{job_id}"))["state"] in ENDED else None)

    def progress_file(self, job_id: str) -> dict[str, Any]:
        path = self.root / "runs" / "jobs" / job_id / "progress.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    def pid_of(self, job_id: str) -> int:
        """The job's process, once it has begun."""
        path = self.root / "runs" / "jobs" / job_id / "process.json"
        return int(json.loads(wait_for(lambda: path.exists() and path.read_bytes()))["pid"])


def wait_for(find: Callable[[], Any], pause_s: float = 0.05) -> Any:
    """What is found once it is something."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(pause_s)
    return found


@contextlib.contextmanager
def serve(
    root: Path,
    *arguments: str,
    token: str | None = None,
    models: Path | None = None,
    is_last: bool = True,
    log: Path | None = None,
) -> Iterator[Api]:
    """The API on a free port of this machine; jobs that still run at its end are killed if it was the last one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CLEANUP_API_TOKEN", "RAY_ADDRESS")}
    if token is not None:
        environment["CLEANUP_API_TOKEN"] = token
    stderr = log.open("wb") if log is not None else None
    process = subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "serve", "--port", "0", "--out-root", str(root), "--models",
         str(models or root / "models"), *arguments],
        stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "listens on" in line, line
        url = line.rsplit(" ", 1)[1].strip()
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            api = Api(root, process, url, http)
            yield api
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        for job in JobStore(RootPath(root)).read_all():
            if is_last and job.process is not None:
                job.process.send(signal.SIGKILL)
