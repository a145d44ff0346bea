"""Figures for Prometheus, under the names of the documents. No label holds an id or a tenant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from agentmesh.infrastructure.database import Database
from agentmesh.observation import health

MEDIA = "text/plain; version=0.0.4"


class Metrics:
    """What this process has seen, and at each look what the database says."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._accepted = Counter("agentmesh_intents_accepted", "Intents accepted here", registry=self._registry)
        self._refused = Counter("agentmesh_refused", "Requests refused here", ["reason"], registry=self._registry)
        self._requests = Counter(
            "agentmesh_http_requests", "Requests answered here", ["route", "status"], registry=self._registry
        )

    def accepted(self) -> None:
        self._accepted.inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def seen(self, scope: Mapping[str, Any], status: int) -> None:
        """An answer begins. The route is its template, never the path that was asked for."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(route, str(status)).inc()

    def page(self, db: Database) -> bytes:
        here = generate_latest(self._registry)
        there = CollectorRegistry()
        there.register(_Rows(db))
        return here + generate_latest(there)


class _Rows:
    """What the database says now, of all tenants together."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        workers = GaugeMetricFamily("agentmesh_workers", "Workers", labels=["state"])
        for state, n in health.workers(self._db).items():
            workers.add_metric([state], n)
        ready = GaugeMetricFamily("agentmesh_ready", "Rows that are ready and untaken", labels=["queue"])
        oldest = GaugeMetricFamily("agentmesh_oldest_ready_seconds", "How long the oldest is", labels=["queue"])
        for row in health.ready(self._db):
            ready.add_metric([row["queue"]], row["n"])
            oldest.add_metric([row["queue"]], row["seconds"])
        yield from (workers, ready, oldest)
