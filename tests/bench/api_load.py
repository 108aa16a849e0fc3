"""The HTTP API under many clients while a job runs: ``uv run python -m tests.bench.api_load``.

50 clients poll a running job, each asking for its progress and for /healthz in turn, 20 more read its event stream from
the start. Shown: the 95th percentile of both, their ratio, and whether every stream had every event that the job wrote.
Then every call is made while 1,000 jobs with a report of a megabyte each are kept. Shown: the 95th percentile of each.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from tests.conftest import SHARED, copy_data
from tests.serving import ENDED, serve

N_POLLERS, N_STREAMS = 50, 20
PAUSE_S = 0.5
MAX_RATIO = 5.0
N_KEPT, REPORT_BYTES, N_CALLS = 1000, 1 << 20, 20
MAX_KEPT_MS = 100.0
EP = "bbt-s01e01"


async def _poll(client: httpx.AsyncClient, job_id: str, seconds: dict[str, list[float]]) -> None:
    await asyncio.sleep(random.random() * PAUSE_S)
    state = ""
    while state not in ENDED:
        for name, path in (("healthz", "/healthz"), ("progress", f"/jobs/{job_id}/progress")):
            started = time.perf_counter()
            response = await client.get(path)
            seconds[name].append(time.perf_counter() - started)
            response.raise_for_status()
        state = response.json()["state"]
        await asyncio.sleep(PAUSE_S)


async def _stream(client: httpx.AsyncClient, job_id: str) -> list[dict[str, Any]]:
    events, kind = [], ""
    async with client.stream("GET", f"/jobs/{job_id}/events", timeout=60) as response:
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "progress":
                events.append(json.loads(value))
    return events


async def _load(url: str, job_id: str) -> tuple[dict[str, list[float]], list[list[dict[str, Any]]]]:
    seconds: dict[str, list[float]] = {"healthz": [], "progress": []}
    limits = httpx.Limits(max_connections=N_POLLERS + N_STREAMS)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        streams = [asyncio.create_task(_stream(client, job_id)) for _ in range(N_STREAMS)]
        await asyncio.gather(*(_poll(client, job_id, seconds) for _ in range(N_POLLERS)))
        return seconds, list(await asyncio.gather(*streams))


def _keep_jobs(root: Path) -> list[str]:
    """Many jobs that have succeeded, each with a large report."""
    report = json.dumps({"splits": ["x" * 1000] * (REPORT_BYTES // 1000)})
    request = {"kind": "episode", "ep_ids": [EP], "requested": {}, "created_at": "2026-01-01T00:00:00Z"}
    process = {"pid": 1, "host": "bench", "started_at": "2026-01-01T00:00:00Z"}
    end = {"state": "succeeded", "error": None, "ended_at": "2026-01-01T00:00:00Z"}
    job_ids = [f"20260101T000000.{i:06}Z-0f1e2d3c" for i in range(N_KEPT)]
    for i, job_id in enumerate(job_ids):
        folder = root / "runs" / "jobs" / job_id
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(report)
        for name, record in (("request", request | {"number": i}), ("process", process), ("end", end)):
            (folder / f"{name}.json").write_text(json.dumps(record))
    return job_ids


def _call_with_many_kept() -> dict[str, float]:
    """95th percentile of each call, in milliseconds."""
    with tempfile.TemporaryDirectory() as scratch:
        root = copy_data(SHARED / "data", Path(scratch) / "data")
        job_id = _keep_jobs(root)[N_KEPT // 2]
        start = ("POST", "/jobs/episode_cleanup_async")
        calls = [("GET", path) for path in ("/jobs?limit=200", "/jobs?state=failed", "/metrics", f"/jobs/{job_id}",
                                            f"/jobs/{job_id}/progress", f"/jobs/{job_id}/logs")]  # fmt: skip
        seconds: dict[str, list[float]] = {}
        with serve(root, "--keep-jobs", str(N_KEPT), models=SHARED / "models") as api:
            api.wait(api.start(EP, actions=["recluster"])["job_id"])
            for method, path in (*calls, start):
                for i in range(N_CALLS):
                    asked = {"json": {"ep_id": EP}, "headers": {"Idempotency-Key": str(i)}} if method == "POST" else {}
                    started = time.perf_counter()
                    api.http.request(method, path, **asked)  # type: ignore[arg-type]
                    seconds.setdefault(f"{method} {path}", []).append(time.perf_counter() - started)
        return {call: float(np.percentile(values, 95)) * 1000 for call, values in seconds.items()}


def main() -> None:
    """Runs the load and prints what came of it; ends with 1 if a target is missed."""
    with tempfile.TemporaryDirectory() as scratch:
        root = copy_data(SHARED / "data", Path(scratch) / "data")
        with serve(root, "--rate-limit", "0", models=SHARED / "models") as api:
            job_id = api.start(EP, profile="high_accuracy")["job_id"]
            seconds, streams = asyncio.run(_load(api.url, job_id))
            ended = api.wait(job_id)
        written = [json.loads(x) for x in (root / "runs" / "jobs" / job_id / "events.jsonl").read_text().splitlines()]
    p95 = {name: float(np.percentile(values, 95)) * 1000 for name, values in seconds.items()}
    ratio = p95["progress"] / p95["healthz"]
    n_whole = sum(events == written for events in streams)
    table = Table(title=f"{N_POLLERS} pollers, {N_STREAMS} event streams; job {ended['state']}", title_justify="left")
    for heading in ("", "requests", "median (ms)", "p95 (ms)"):
        table.add_column(heading, justify="right")
    for name, values in seconds.items():
        table.add_row(name, str(len(values)), f"{np.median(values) * 1000:.1f}", f"{p95[name]:.1f}")
    Console().print(table)
    print(f"p95 of progress / p95 of healthz: {ratio:.2f} (at most {MAX_RATIO:g})")
    print(f"streams that had all {len(written)} events in order: {n_whole} of {N_STREAMS}")
    kept = _call_with_many_kept()
    for call, p95_ms in kept.items():
        print(f"{call}: p95 {p95_ms:.0f} ms with {N_KEPT} kept jobs (at most {MAX_KEPT_MS:g})")
    is_fine = ratio <= MAX_RATIO and n_whole == N_STREAMS and ended["state"] == "succeeded"
    raise SystemExit(0 if is_fine and max(kept.values()) <= MAX_KEPT_MS else 1)


if __name__ == "__main__":
    main()
