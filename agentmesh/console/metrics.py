"""Figures for Prometheus, under the names of the documents. No label holds an id or a tenant."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from agentmesh.infrastructure.counts import COUNTS, NAMES
from agentmesh.infrastructure.database import Database, Row
from agentmesh.observation import figures, health
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
LENGTHS_S = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600, 86_400)

SOON_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
MOST_MODELS = 50


class Metrics:
    """What this process has seen, and at each look what the database says."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._accepted = Counter(
            "agentmesh_intents_accepted", "Intents accepted here", ["agent"], registry=self._registry
        )
        self._refused = Counter("agentmesh_refused", "Requests refused here, and envelopes by workers", ["reason"],
                                registry=self._registry)  # fmt: skip
        self._requests = Counter(
            "agentmesh_http_requests", "Requests answered here", ["route", "status"], registry=self._registry
        )
        self._meter = _Meter(self._registry, self._refused)

    def accepted(self, agent: str) -> None:
        """An intent became a trace of this agent, which somebody has announced."""
        self._accepted.labels(agent).inc()

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

    def __init__(self, registry: CollectorRegistry, refused: Counter) -> None:
        self._lock = threading.Lock()
        self._place: Row | None = None
        self._work, self._models, self._told = _Work(registry), _Models(registry), _Told(registry, refused)
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
            self._told.look(db)
        self._work.look(db, rows)
        self._models.look(rows)
        for row in rows:
            self._events.labels(row["name"] if row["name"] in VOCABULARY else "other").inc()
        for trace in health.ended(db, [row for row in rows if row["name"] in ENDS]):
            self._finished.labels(trace["agent"], trace["status"]).inc()
            self._lengths.labels(trace["agent"]).observe(trace["seconds"])


class _Work:
    """Calls and steps, as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("agentmesh_calls", "Tool calls ended", ["tool", "outcome"], registry=registry)
        self._seconds = _lengths("agentmesh_call_duration_seconds", "A call's last attempt", "tool", registry)
        self._waited = _lengths("agentmesh_call_wait_seconds", "From made to started", "queue", registry, SOON_S)
        self._steps = _lengths("agentmesh_step_duration_seconds", "A step, from start to verdict", "kind", registry)
        self._joined = Histogram("agentmesh_join_latency_seconds", "From a step's last call to its being taken",
                                 buckets=SOON_S, registry=registry)  # fmt: skip
        self._rescued = Counter("agentmesh_rescued", "Given back from the dead", ["kind"], registry=registry)

    def look(self, db: Database, rows: Sequence[Row]) -> None:
        # a leaf's time-out is told beside how the call ended, an inline one's in its place
        ended = [one for one in rows if one["name"] in {"TOOL_EXEC", "TOOL_FAIL"}
                 or (one["name"] == "TOOL_TIMEOUT" and "error" in one["body"])]  # fmt: skip
        for call in figures.calls(db, ended):
            self._calls.labels(call["tool"], call["outcome"]).inc()
            self._seconds.labels(call["tool"]).observe(call["seconds"] or 0)
            if call["waited"] is not None:
                self._waited.labels(call["queue"]).observe(call["waited"])
        for step in figures.steps(db, [one for one in rows if one["name"] == "CALLBACK_RESULT"]):
            self._steps.labels(step["kind"]).observe(step["seconds"])
            if step["joined"] is not None:
                self._joined.observe(max(0.0, step["joined"]))
        for one in rows:
            if one["name"] == "EXEC_RESCUE":
                self._rescued.labels("call" if one["call_id"] else "trace").inc()


class _Models:
    """What models were asked, and what that came to. Under our names and those of the GenAI conventions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tokens = Counter("agentmesh_tokens", "Tokens", ["model", "kind"], registry=registry)
        self._cost = Counter("agentmesh_cost_usd", "US dollars, where a price is known", ["model"], registry=registry)
        asked = ["gen_ai_operation_name", "gen_ai_request_model"]
        self._took = Histogram("gen_ai_client_operation_duration", "Seconds of one question", asked,
                               buckets=LENGTHS_S, registry=registry)  # fmt: skip
        self._used = Histogram("gen_ai_client_token_usage", "Tokens of one question", [*asked, "gen_ai_token_type"],
                               buckets=[4**n for n in range(14)], registry=registry)  # fmt: skip
        self._known: set[str] = set()

    def look(self, rows: Sequence[Row]) -> None:
        asked = [one["body"] for one in rows if one["name"] == "REASONER_PROMPT"]
        failed = [one["body"].get("error") or {} for one in rows if one["name"] == "EXEC_ROLLBACK"]  # with what it cost
        for body in (one for one in (*asked, *failed) if "model" in one):
            model = self._label(str(body["model"]))
            for kind in ("input", "output"):
                tokens = body.get(f"{kind}_tokens")
                if isinstance(tokens, int) and tokens >= 0:
                    self._tokens.labels(model, kind).inc(tokens)
                    self._used.labels("chat", model, kind).observe(tokens)
            told = {"cost_usd": self._cost.labels(model).inc, "seconds": self._took.labels("chat", model).observe}
            for name, figure in told.items():
                if isinstance(body.get(name), int | float) and body[name] >= 0:
                    figure(body[name])

    def _label(self, model: str) -> str:
        """A model's name; `other` beyond so many as no configuration has."""
        if model not in self._known and len(self._known) >= MOST_MODELS:
            return "other"
        self._known.add(model)
        return model


class _Told:
    """What workers and this gateway count of themselves, as they tell it."""

    def __init__(self, registry: CollectorRegistry, refused: Counter) -> None:
        self._refused = refused
        self._rings = Counter("agentmesh_rings", "Doorbells rung, rung again, refused", ["reason"], registry=registry)
        self._fenced = Counter("agentmesh_fenced_writes", "Writes that came too late", registry=registry)
        self._deliveries = Counter(
            "agentmesh_webhook_deliveries", "Tries of deliveries", ["outcome"], registry=registry
        )
        self._trips = Counter("agentmesh_db_round_trips", "Round trips", ["transition"], registry=registry)
        self._lost = Counter("agentmesh_leases_lost", "Workers found dead", registry=registry)
        self._before: dict[object, Mapping[str, int]] | None = None
        self._dead = 0

    def look(self, db: Database) -> None:
        now: dict[object, Mapping[str, int]] = {"here": COUNTS.totals()}
        now.update(figures.counted(db).items())
        dead = figures.dead(db)
        if self._before is not None:
            for who, counts in now.items():
                before = self._before.get(who, {})
                for name, n in counts.items():
                    self._count(name, n - before.get(name, 0))
            self._lost.inc(max(0, dead - self._dead))
        self._before, self._dead = now, dead

    def _count(self, name: str, n: int) -> None:
        kind, _, what = name.partition(".")
        labelled = {
            "rings": self._rings,
            "deliveries": self._deliveries,
            "round_trips": self._trips,
            "refused": self._refused,
        }
        figure = labelled.get(kind)
        if n > 0 and name in NAMES:
            (figure.labels(what) if figure is not None else self._fenced).inc(n)


def _lengths(
    name: str, says: str, label: str, registry: CollectorRegistry, buckets: Sequence[float] = ()
) -> Histogram:  # fmt: skip
    return Histogram(name, says, [label], buckets=buckets or LENGTHS_S, registry=registry)


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
        pool = GaugeMetricFamily("agentmesh_db_pool_in_use", "This gateway's connections in use", self._db.in_use())
        yield from (workers, ready, oldest, letters, hooks, unsealed, pool)
