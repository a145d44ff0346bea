"""Every table of agentmesh, declared once; Alembic's scripts must arrive at exactly this.

All of it stands in schema `mesh`. Ids of ours are UUIDv7 made by us; tenant, context, agent and tool ids are the
user's text. Hot tables have no foreign keys (lock order, see DESIGN in docs/architecture.md); indexes are partial:
they hold open rows only, so that finished work costs nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, TIMESTAMP, TSVECTOR, UUID

SCHEMA = "mesh"
metadata = sa.MetaData(schema=SCHEMA)

OPEN_TRACE = "status IN ('held','queued','running','waiting')"
OPEN_STEP = "status IN ('ready','running','waiting','joined')"
OPEN_CALL = "status IN ('held','ready','running')"
HOT: dict[str, Any] = {"postgresql_with": {"fillfactor": "70"}}
# Also vacuumed by what changed, not by how much lies there: the indexes of open rows keep short, however many have ended.
BUSY: dict[str, Any] = {"postgresql_with": {
    "fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_threshold": "1000",
}}  # fmt: skip


def _text(name: str, *, null: bool = False, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=null, server_default=default)


def _uuid(name: str, *, null: bool = True, key: bool = False) -> sa.Column[object]:
    return sa.Column(name, UUID(as_uuid=True), nullable=null and not key, primary_key=key)


def _int(name: str, default: int | None = 0, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=null, server_default=None if default is None else str(default))


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text("false"))


def _time(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("mesh.mesh_now()") if now else None
    return sa.Column(name, TIMESTAMP(timezone=True), nullable=not now, server_default=default)


def _json(name: str, *, default: str | None = None) -> sa.Column[object]:
    return sa.Column(name, JSONB, nullable=default is None, server_default=default)


def _texts(name: str) -> sa.Column[object]:
    return sa.Column(name, ARRAY(sa.Text), nullable=False, server_default="{}")


def _one_of(column: str, *values: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


contexts = sa.Table(
    "contexts",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("mem_seq", sa.BigInteger, nullable=False, server_default="0"),
    _time("created_at", now=True),
    **HOT,
)

envelopes = sa.Table(
    "envelopes",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    sa.Column("trace_id", UUID(as_uuid=True), nullable=False, unique=True),
    _text("kid"),
    _text("jws"),
    _text("idem_key", null=True),
    _time("created_at", now=True),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("operation", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    _uuid("trace_id", null=False),
    _text("digest"),
    _time("created_at", now=True),
)

traces = sa.Table(
    "traces",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _text("context_id"),
    _uuid("parent_id"),
    _uuid("root_id", null=False),
    _uuid("parent_call_id"),
    _int("depth"),
    _text("agent"),
    _text("intent"),
    _text("from_id"),
    _text("locale", null=True),
    _text("status"),
    _text("queue"),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    _texts("permissions"),
    _text("plan_hash", null=True),
    _text("agent_version", null=True),
    _json("policy", default="{}"),
    _json("state", default="{}"),
    _json("payload"),
    _json("result"),
    _json("error"),
    _int("seq"),
    _int("steps"),
    _int("inbox"),
    _int("epoch", 1),
    _uuid("worker_id"),
    _int("child", None, null=True),
    _uuid("claim_id"),
    _uuid("commit_id"),
    _time("created_at", now=True),
    _time("started_at"),
    _time("ended_at"),
    _time("rung_at"),
    _int("rings"),
    _time("wake_at"),
    _time("deadline"),
    _text("waits_for", null=True),
    _time("paused_at"),
    _time("cancelled_at"),
    _flag("parent_owed"),
    _flag("cancel_owed"),
    _text("lane", null=True),
    _time("admitted_at"),
    sa.Column("budget_limit", sa.Numeric),
    sa.Column("budget_spent", sa.Numeric, nullable=False, server_default="0"),
    sa.Column("budget_held", sa.Numeric, nullable=False, server_default="0"),
    _one_of("status", "held", "queued", "running", "waiting", "done", "failed", "cancelled"),
    sa.Index("traces_ready", "queue", "rung_at", postgresql_where=sa.text("status = 'queued'")),
    sa.Index("traces_wake", "wake_at", postgresql_where=sa.text(f"wake_at IS NOT NULL AND {OPEN_TRACE}")),
    sa.Index("traces_held_by", "worker_id", postgresql_where=sa.text("worker_id IS NOT NULL")),
    sa.Index("traces_owed", "id", postgresql_where=sa.text("parent_owed OR cancel_owed")),
    sa.Index("traces_parent", "parent_id", postgresql_where=sa.text("parent_id IS NOT NULL")),
    sa.Index("traces_held", "id", postgresql_where=sa.text("status = 'held' AND waits_for = 'parent'")),
    sa.Index(
        "traces_next",
        "tenant_id",
        "agent",
        "lane",
        sa.text("priority DESC"),
        "id",
        postgresql_where=sa.text("status = 'held' AND waits_for = 'limit'"),
    ),
    sa.Index(
        "traces_lane",
        "tenant_id",
        "agent",
        "lane",
        postgresql_where=sa.text("lane IS NOT NULL AND status IN ('queued','running','waiting')"),
    ),
    sa.Index(
        "traces_admitted",
        "tenant_id",
        "agent",
        "lane",
        sa.text("admitted_at DESC"),
        postgresql_where=sa.text("admitted_at IS NOT NULL"),
    ),
    sa.Index("traces_newest", "tenant_id", "id"),
    sa.Index("traces_context", "tenant_id", "context_id"),
    **BUSY,
)

lanes = sa.Table(
    "lanes",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    _time("looked_at", now=True),
    **HOT,
)

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    _text("agent"),
    _text("intent"),
    _text("context_id"),
    _json("payload", default="{}"),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    _text("cron"),
    _text("timezone"),
    _text("missed"),
    _flag("declared"),
    sa.Column("permissions", ARRAY(sa.Text)),
    _time("next_at"),
    _time("fired_at"),
    _int("fired"),
    _json("error"),
    _time("created_at", now=True),
    _one_of("missed", "skip", "once", "all"),
    sa.Index("schedules_due", "next_at"),
)

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, primary_key=True),
    _text("chain"),
    _json("body", default="{}"),
    _time("created_at", now=True),
)

steps = sa.Table(
    "steps",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _uuid("after_step_id"),
    _uuid("group_of"),
    _int("ordinal"),
    _text("node"),
    _int("iteration", 1),
    _text("kind"),
    _text("phase", default="run"),
    _text("status"),
    _text("require", null=True),
    _int("need"),
    _int("slots"),
    _int("pending"),
    _int("wins"),
    _text("queue"),
    _text("agent"),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    _int("epoch", 1),
    _int("failures"),
    _int("losses"),
    _texts("callbacks"),
    _json("action"),
    _json("output"),
    _json("error"),
    _json("state"),
    sa.Column("mem_seq", sa.BigInteger),
    _time("created_at", now=True),
    _time("started_at"),
    _time("ended_at"),
    _time("deadline"),
    _time("rung_at"),
    _int("rings"),
    _time("wake_at"),
    _text("waits_for", null=True),
    _one_of("status", "ready", "running", "waiting", "joined", "done", "failed", "cancelled", "superseded"),
    _one_of("phase", "run", "callback"),
    sa.CheckConstraint("pending >= 0 AND pending <= slots AND wins <= slots", name="countdown"),
    sa.Index(
        "steps_successor",
        "trace_id",
        "node",
        "iteration",
        "after_step_id",
        unique=True,
        postgresql_where=sa.text("after_step_id IS NOT NULL AND status <> 'superseded'"),
    ),
    sa.Index("steps_trace", "trace_id", "ordinal"),
    sa.Index("steps_ready", "queue", "rung_at", postgresql_where=sa.text("status IN ('ready','joined')")),
    sa.Index("steps_wake", "wake_at", postgresql_where=sa.text("status = 'waiting' AND wake_at IS NOT NULL")),
    sa.Index("steps_deadline", "deadline", postgresql_where=sa.text("status = 'running'")),
    **BUSY,
)

calls = sa.Table(
    "calls",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _uuid("step_id", null=False),
    _uuid("group_id"),
    _text("kind", default="tool"),
    _int("slot"),
    _int("idx"),
    _int("slot_size", 1),
    _text("slot_mode", default="all"),
    _flag("limited"),
    _uuid("child_trace_id"),
    _text("compensate", null=True),
    _text("tool"),
    _text("label"),
    _json("args", default="{}"),
    _texts("needs"),
    _text("effect", default="repeatable"),
    _flag("inline"),
    _text("status"),
    _text("queue"),
    _text("task"),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    _text("idem_key"),
    sa.Column("timeout_s", sa.Float, nullable=False),
    _int("max_attempts", 1),
    sa.Column("backoff_s", sa.Float, nullable=False, server_default="1"),
    sa.Column("backoff_cap_s", sa.Float, nullable=False, server_default="300"),
    _int("epoch", 1),
    _int("n"),
    _int("failures"),
    _int("losses"),
    _int("timeouts"),
    _int("max_losses", 3),
    _uuid("worker_id"),
    _int("child", None, null=True),
    _uuid("claim_id"),
    _json("result"),
    _json("error"),
    _flag("cancel_owed"),
    _time("created_at", now=True),
    _time("ended_at"),
    _time("deadline"),
    _time("rung_at"),
    _int("rings"),
    _time("wake_at"),
    _one_of("status", "held", "ready", "running", "done", "failed", "cancelled"),
    _one_of("slot_mode", "all", "first", "each"),
    _one_of("effect", "repeatable", "keyed", "once"),
    sa.UniqueConstraint("step_id", "slot", "idx", name="calls_place"),
    sa.Index("calls_ready", "queue", "rung_at", postgresql_where=sa.text("status = 'ready'")),
    sa.Index("calls_deadline", "deadline", postgresql_where=sa.text("status = 'running'")),
    sa.Index("calls_owed", "id", postgresql_where=sa.text("cancel_owed")),
    sa.Index("calls_next", "step_id", "slot", postgresql_where=sa.text("status = 'held' AND idx = 0 AND limited")),
    sa.Index("calls_held_by", "worker_id", postgresql_where=sa.text("worker_id IS NOT NULL")),
    sa.Index("calls_open", "trace_id", postgresql_where=sa.text(OPEN_CALL)),
    **BUSY,
)

signals = sa.Table(
    "signals",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _text("name"),
    _text("key", null=True),
    _json("payload"),
    _text("sent_by"),
    _uuid("step_id"),
    _time("at", now=True),
    sa.Index("signals_key", "trace_id", "key", unique=True, postgresql_where=sa.text("key IS NOT NULL")),
    sa.Index("signals_unread", "trace_id", "name", "id", postgresql_where=sa.text("step_id IS NULL")),
    sa.Index("signals_trace", "trace_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _uuid("step_id", null=False),
    _uuid("call_id"),
    _text("kind"),
    _int("n", None),
    _int("epoch", None),
    _uuid("worker_id"),
    _int("child", None, null=True),
    _text("idem_key", null=True),
    _time("started_at", now=True),
    _time("ended_at"),
    _text("outcome", null=True),
    _json("error"),
    _json("progress"),
    _json("log"),
    _one_of("kind", "tool", "reason", "callback", "person"),
    _one_of("outcome", "won", "failed", "timeout", "lost", "released", "stale"),
    sa.Index("attempts_call", "call_id", "n", unique=True, postgresql_where=sa.text("call_id IS NOT NULL")),
    sa.Index("attempts_step", "step_id"),
    **BUSY,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("trace_id", UUID(as_uuid=True), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    _text("tenant_id"),
    _text("name"),
    _uuid("step_id"),
    _uuid("call_id"),
    _json("body", default="{}"),
    _time("at", now=True),
    # the transaction that wrote it: readers stop before the oldest that still runs
    sa.Column("xid", sa.BigInteger, server_default=sa.text("(pg_current_xact_id())::text::bigint")),
    sa.Index("events_written", "xid", postgresql_using="brin"),
    postgresql_partition_by="RANGE (trace_id)",
)

exports = sa.Table(
    "exports",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("xid", sa.BigInteger, nullable=False),
    _uuid("trace_id", null=False),
    _int("seq", None),
    _time("at", now=True),
)

effects = sa.Table(
    "effects",
    metadata,
    sa.Column("step_id", UUID(as_uuid=True), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _time("at", now=True),
)

memory = sa.Table(
    "memory",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _text("context_id"),
    _text("type"),
    _text("scope", default=""),
    _text("key"),
    _int("version", None),
    _json("value"),
    _flag("deleted"),
    _uuid("trace_id"),
    _uuid("step_id"),
    _text("origin"),
    _flag("trusted"),
    _text("reason", null=True),
    _time("forget_at"),
    sa.Column("mem_seq", sa.BigInteger),
    _time("at", now=True),
    sa.Column(
        "words",
        TSVECTOR,
        sa.Computed(
            "CASE WHEN type = 'long_term' THEN"
            " jsonb_to_tsvector('simple'::regconfig, value, '[\"string\", \"numeric\"]'::jsonb) END",
            persisted=True,
        ),
    ),
    _one_of("type", "short_term", "long_term"),
    sa.UniqueConstraint("tenant_id", "context_id", "type", "scope", "key", "version", name="memory_version"),
    sa.Index("memory_forget", "forget_at", postgresql_where=sa.text("forget_at IS NOT NULL")),
    sa.Index("memory_words", "words", postgresql_using="gin", postgresql_where=sa.text("type = 'long_term'")),
)

vectors = sa.Table(
    "vectors",
    metadata,
    sa.Column("memory_id", UUID(as_uuid=True), sa.ForeignKey(memory.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    _text("tenant_id"),
    _text("context_id"),
    sa.Column("vector", ARRAY(sa.REAL)),
    _int("dims", None, null=True),
    _int("tries"),
    _json("error"),
    _time("wake_at", now=True),
    sa.Index("vectors_owed", "model", "wake_at", postgresql_where=sa.text("vector IS NULL")),
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("body", BYTEA, nullable=False),
    _time("touched_at", now=True),
)

workers = sa.Table(
    "workers",
    metadata,
    _uuid("id", key=True),
    _text("name"),
    _text("host"),
    _text("boot_id"),
    _text("pid_ns"),
    _int("pid", None),
    sa.Column("pid_started", sa.BigInteger, nullable=False),
    _text("state"),
    _texts("queues"),
    _texts("agents"),
    _texts("tools"),
    _text("version"),
    sa.Column("lease_s", sa.Float, nullable=False),
    _int("stuck"),
    _time("registered_at", now=True),
    _time("beat_at", now=True),
    _json("counts", default="{}"),
    _one_of("state", "alive", "dead", "gone"),
    sa.Index("workers_alive", "beat_at", postgresql_where=sa.text("state = 'alive'")),
    **HOT,
)

leaders = sa.Table(
    "leaders",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _uuid("worker_id", null=False),
    _int("term", 1),
    _time("until", now=True),
    **HOT,
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    _text("version"),
    _text("queue"),
    _text("plan_hash"),
    sa.Column("intents", ARRAY(sa.Text)),
    _texts("accepts"),
    _json("spec", default="{}"),
    _text("state", default="idle"),
    _time("announced_at", now=True),
    _time("paused_at"),
    _text("paused_by", null=True),
)

tools = sa.Table(
    "tools",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    _text("version"),
    _text("queue"),
    _texts("needs"),
    _text("effect"),
    _json("spec", default="{}"),
    _time("announced_at", now=True),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("kid", sa.Text, primary_key=True),
    _text("tenant_id"),
    _text("owner"),
    sa.Column("public", BYTEA, nullable=False),
    _texts("grants"),
    _time("registered_at", now=True),
    _time("revoked_at"),
)

audit = sa.Table(
    "audit",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _text("body"),
    _time("at", now=True),
    sa.Column("seq", sa.BigInteger),
    sa.Column("prev", BYTEA),
    sa.Column("hash", BYTEA),
    sa.Index("audit_chain", "tenant_id", "seq", unique=True, postgresql_where=sa.text("seq IS NOT NULL")),
    sa.Index("audit_unsealed", "id", postgresql_where=sa.text("seq IS NULL")),
)

audit_heads = sa.Table(
    "audit_heads",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", BYTEA, nullable=False),
    sa.Column("signature", BYTEA),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _uuid("step_id"),
    _text("target"),
    _json("body", default="{}"),
    _text("status", default="ready"),
    _int("tries"),
    _time("created_at", now=True),
    _time("wake_at"),
    _json("error"),
    _one_of("status", "ready", "running", "done", "failed"),
    sa.Index("deliveries_due", "wake_at", postgresql_where=sa.text("status = 'ready'")),
    sa.Index("deliveries_trace", "trace_id"),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id"),
    _uuid("step_id"),
    _uuid("call_id"),
    _text("code"),
    _text("fingerprint"),
    _json("evidence", default="{}"),
    _time("at", now=True),
    _time("settled_at"),
    _text("settled_as", null=True),
    _text("settled_by", null=True),
    _one_of("settled_as", "retried", "replaced", "discarded"),
    sa.Index("dead_letters_open", "tenant_id", "id", postgresql_where=sa.text("settled_at IS NULL")),
    sa.Index("dead_letters_trace", "trace_id"),
)

rewards = sa.Table(
    "rewards",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _uuid("step_id", null=False),
    sa.Column("reward", sa.Float, nullable=False),
    _json("body", default="{}"),
    _time("at", now=True),
    sa.Index("rewards_trace", "trace_id"),
)

# What was taken out: one row a batch, with the ids that it held and the archive they went to.
prunings = sa.Table(
    "prunings",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _text("kind"),
    _uuid("first_id", null=False),
    _uuid("last_id", null=False),
    sa.Column("ids", ARRAY(UUID(as_uuid=True)), nullable=False),
    _json("counts", default="{}"),
    _text("archive", null=True),
    sa.Column("digest", BYTEA),
    _text("by"),
    _time("at", now=True),
    _one_of("kind", "traces", "memory", "letters", "blobs", "workers"),
    sa.Index("prunings_ids", "tenant_id", "first_id", "last_id", postgresql_where=sa.text("kind = 'traces'")),
)

ledger = sa.Table(
    "ledger",
    metadata,
    _uuid("id", key=True),
    _text("tenant_id"),
    _uuid("trace_id", null=False),
    _text("kind"),
    sa.Column("amount", sa.Numeric, nullable=False),
    _time("at", now=True),
    _one_of("kind", "hold", "release", "spend"),
    sa.Index("ledger_trace", "trace_id"),
)
