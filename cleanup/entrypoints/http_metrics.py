"""Figures of the HTTP API for Prometheus: jobs by state, requests by route, and their times."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cleanup.entrypoints.http_guards import App, Receive, Scope, Send
from cleanup.entrypoints.job_pool import JobPool


class ApiMetrics:
    """The figures of one API.

    Args:
        pool: Its jobs.
    """

    def __init__(self, pool: JobPool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(pool))
        self._requests = Counter(
            "cleanup_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "cleanup_http_request_seconds", "Time to the beginning of the answer.", ("route",), registry=self._registry
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts one answer; what no route took is one route and one method, so that nobody can make up new ones."""
        route = getattr(scope.get("route"), "path", "none")
        is_taken = route != "none" and status != HTTPStatus.METHOD_NOT_ALLOWED
        self._requests.labels(scope["method"] if is_taken else "any", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    def __init__(self, pool: JobPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("cleanup_jobs", "Jobs that are kept, by state.", labels=["state"])
        for state, n_jobs in self._pool.count_by_state().items():
            family.add_metric([state], n_jobs)
        yield family


class MetricsGuard:
    """ASGI middleware that counts answers."""

    def __init__(self, app: App, metrics: ApiMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def counting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, counting)
