"""Figures for Prometheus, under the names of the documents. No label holds an id or a tenant."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from agentmesh.infrastructure.database import Database, Row
from agentmesh.observation import health
from agentmesh.state import exports
from agentmesh.state.events import ENDS

MEDIA = "text/plain; version=0.0.4"
MOST = 20_000
VOCABULARY = frozenset({
    "BIR_DISPATCH", "ACP_RECEIVE", "RUN_ONCE_START", "EXEC_START", "REASONER_PROMPT", "REASONER_ACTION", "TOOL_DISPATCH",
    "TOOL_EXEC", "TOOL_FAIL", "TOOL_TIMEOUT", "REASONER_FEEDBACK", "MEMORY_WRITE", "CALLBACK_RESULT", "CALLBACK_NEXT_ACTION",
    "EXEC_LOOP", "EXEC_JUMP", "EXEC_WAIT", "EXEC_SIGNAL", "EXEC_PAUSE", "EXEC_RESUME", "EXEC_CANCEL", "EXEC_ROLLBACK",
    "EXEC_COMPENSATE", "EXEC_DELEGATE", "EXEC_RESCUE", "EXEC_DONE", "EXEC_FAIL",
})  # fmt: skip
"""Our own events; whoever may write others shall make no labels of them."""
LENGTHS_S = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600, 86_400)


class Metrics:
    """What this process has seen, and at each look what the database says."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._accepted = Counter("agentmesh_intents_accepted", "Intents accepted here", registry=self._registry)
        self._refused = Counter("agentmesh_refused", "Requests refused here", ["reason"], registry=self._registry)
        self._requests = Counter(
            "agentmesh_http_requests", "Requests answered here", ["route", "status"], registry=self._registry
        )
        self._meter = _Meter(self._registry)

    def accepted(self) -> None:
        self._accepted.inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def seen(self, scope: Mapping[str, Any], status: int) -> None:
        """An answer begins. The route is its template, never the path that was asked for."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(route, str(status)).inc()

    def page(self, db: Database) -> bytes:
        self._meter.look(db)
        here = generate_latest(self._registry)
        there = CollectorRegistry()
        there.register(_Rows(db))
        return here + generate_latest(there)


class _Meter:
    """What was committed since this process first looked, by everybody: each gateway counts all of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._place: Row | None = None
        self._events = Counter("agentmesh_events", "Events committed", ["event"], registry=registry)
        self._finished = Counter("agentmesh_traces_finished", "Traces ended", ["agent", "status"], registry=registry)
        self._lengths = Histogram("agentmesh_trace_duration_seconds", "From dispatch to end", ["agent"],
                                  buckets=LENGTHS_S, registry=registry)  # fmt: skip

    def look(self, db: Database) -> None:
        """At most MOST events at once; the rest with the next look."""
        with self._lock:
            if self._place is None:
                self._place = exports.now(db)
            rows = exports.behind(db, self._place, limit=MOST)
            if rows:
                self._place = rows[-1]
        for row in rows:
            self._events.labels(row["name"] if row["name"] in VOCABULARY else "other").inc()
        for trace in health.ended(db, [row for row in rows if row["name"] in ENDS]):
            self._finished.labels(trace["agent"], trace["status"]).inc()
            self._lengths.labels(trace["agent"]).observe(trace["seconds"])


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
        seen = health.open_rows(self._db)
        letters = GaugeMetricFamily(
            "agentmesh_dead_letters", "Dead letters that wait for a person", seen["dead_letters"]
        )
        hooks = GaugeMetricFamily(
            "agentmesh_webhook_deliveries_waiting", "Deliveries not yet taken", seen["deliveries"]
        )
        unsealed = GaugeMetricFamily("agentmesh_audit_unsealed", "Audit rows nobody has sealed yet", seen["unsealed"])
        yield from (workers, ready, oldest, letters, hooks, unsealed)
