"""Whether a job that is started now can work: storage, PostgreSQL, engine, and the provider that models really use."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.doctor import Finding, check_data_root
from cleanup.entrypoints.job_pool import RayRunner, Runner
from cleanup.entrypoints.run_tools import named_facebank
from cleanup.errors import CleanupError
from cleanup.resolve_settings import ResolvedSettings

_log = logging.getLogger(__name__)
# What needs models and servers to be started is looked at again after this, or sooner if it failed.
_FRESH_S, _FRESH_AFTER_FAILURE_S = 600.0, 30.0


class ReadinessProbe:
    """Checks cheaply at every call, and thoroughly in a process of its own now and then.

    Args:
        settings: Settings a job without options would have.
        root: Data root.
        runner: How jobs are done.
    """

    def __init__(self, settings: ResolvedSettings, root: DataRoot, runner: Runner) -> None:
        self._settings, self._root, self._runner = settings, root, runner
        self._thorough: list[dict[str, Any]] = []
        self._checked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def check(self) -> list[dict[str, Any]]:
        """All checks, each ``{check, ok, found}``."""
        findings = await asyncio.to_thread(self._check_now)
        now = [{"check": f.check, "ok": f.is_ok, "found": f.text} for f in findings]
        if self._runner.is_ray:
            return now  # models are the cluster's
        is_fine = all(entry["ok"] for entry in self._thorough)
        age = time.monotonic() - self._checked_at
        if self._task is None and age > (_FRESH_S if is_fine else _FRESH_AFTER_FAILURE_S):
            self._task = asyncio.create_task(self._check_thoroughly())
        if self._checked_at == float("-inf"):
            return [*now, {"check": "models", "ok": False, "found": "being checked; ask again in some seconds"}]
        seen = {entry["check"] for entry in now}
        return now + [entry for entry in self._thorough if entry["check"] not in seen]

    def _check_now(self) -> list[Finding]:
        checks: dict[str, Callable[[], str]] = {"data root": lambda: check_data_root(self._root)}
        if self._settings.settings.group_clusters.facebank_dsn:
            checks["PostgreSQL"] = lambda: f"{named_facebank(self._settings).check()} (your server)"
        if isinstance(self._runner, RayRunner):
            checks["Ray"] = self._runner.jobs.check
        findings = []
        for name, check in checks.items():
            try:
                findings.append(Finding(name, True, check()))
            except (CleanupError, OSError) as error:
                findings.append(Finding(name, False, str(error)))
        return findings

    async def _check_thoroughly(self) -> None:
        """``cleanup doctor`` with this process's environment; the API itself loads no models."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cleanup.entrypoints.cli", "doctor", "--json",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaint = await process.communicate()
        try:
            self._thorough = orjson.loads(output)
        except orjson.JSONDecodeError:
            lines = complaint.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            self._thorough = [{"check": "doctor", "ok": False, "found": lines[-1]}]
        self._checked_at = time.monotonic()
        self._task = None
