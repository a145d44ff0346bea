"""Every change of a call that is not its holder's inline work: claim, settle, give back, and what that does to its step.

These are leaves: they lock the call, the rest of its slot, then its step, and never touch the trace. `settle` records
an outcome and counts the slot down in one statement; whoever makes the step joined gets the ring for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import psycopg

from agentmesh.infrastructure.counts import COUNTS, transition
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Failure, Json, Ring, new_id
from agentmesh.state.traces import Holder

Outcome = Literal["won", "failed", "timeout", "lost", "released"]

CLAIM = """
WITH c AS (
  UPDATE mesh.calls SET status = 'running', worker_id = %(worker)s, child = %(child)s, claim_id = %(attempt)s, n = n + 1,
    deadline = mesh.mesh_now() + make_interval(secs => timeout_s), wake_at = NULL
   WHERE id = %(call)s AND epoch = %(epoch)s AND status = 'ready' AND task = %(task)s
     AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof()) AND (losses = 0 OR %(alone)s)
     AND (%(tools)s::text[] IS NULL OR tool = ANY(%(tools)s))
  RETURNING *),
 a AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, call_id, kind, n, epoch, worker_id, child, idem_key)
   SELECT %(attempt)s, tenant_id, trace_id, step_id, id, 'tool', n, epoch, worker_id, child, idem_key FROM c)
SELECT c.*, t.context_id, t.agent, t.intent, t.from_id, t.payload, t.permissions, t.depth,
  CASE WHEN c.idx > 0 THEN (SELECT jsonb_object_agg(p.label, p.result) FROM mesh.calls p
    WHERE p.step_id = c.step_id AND p.tenant_id = c.tenant_id AND p.slot = c.slot AND p.idx < c.idx AND p.status = 'done')
  END AS earlier
 FROM c JOIN mesh.traces t ON t.id = c.trace_id AND t.tenant_id = c.tenant_id
"""

# Where a step lets only so many slots run at once, the end of one starts the next that is held; one that another end
# is just starting is locked, and passed over. Joined: enough wins, or no longer reachable. `fired` compares with the
# values before these slots were counted. What a group passes on: for `all` everything at its end or first loss, else
# each win at once and its losses at its end.
SETTLE = """
WITH c AS (
  UPDATE mesh.calls SET
    status = CASE WHEN %(outcome)s = 'won' THEN 'done'
      WHEN %(outcome)s = 'released' OR %(outcome)s = 'lost' AND effect <> 'once' AND losses < max_losses THEN 'ready'
      WHEN %(outcome)s IN ('failed', 'timeout') AND %(again)s AND effect <> 'once' AND failures + 1 < max_attempts
        THEN 'ready' ELSE 'failed' END,
    result = %(result)s::jsonb,
    error = CASE WHEN effect = 'once' AND %(outcome)s IN ('lost', 'timeout')
      THEN jsonb_build_object('code', 'E_OUTCOME_UNKNOWN', 'message', 'this call may or may not have taken effect')
      WHEN %(outcome)s = 'lost' AND losses >= max_losses THEN jsonb_build_object('code', 'E_POISON', 'message',
        'every worker that ran this call was lost, the last ' || max_losses || ' running nothing else')
      ELSE coalesce(%(error)s::jsonb, error) END,
    failures = failures + (%(outcome)s IN ('failed', 'timeout'))::int, losses = losses + (%(outcome)s = 'lost')::int,
    timeouts = timeouts + (%(outcome)s = 'timeout')::int, cancel_owed = cancel_owed OR %(overdue)s AND child_trace_id IS NOT NULL,
    epoch = epoch + CASE WHEN %(outcome)s = 'released' OR %(outcome)s = 'lost' AND effect <> 'once' AND losses < max_losses
      OR %(outcome)s IN ('failed', 'timeout') AND %(again)s AND effect <> 'once' AND failures + 1 < max_attempts
      THEN 1 ELSE 0 END,
    worker_id = NULL, child = NULL, claim_id = NULL, deadline = NULL, rings = 0,
    wake_at = CASE WHEN %(outcome)s IN ('failed', 'timeout') AND %(again)s AND effect <> 'once'
      AND failures + 1 < max_attempts THEN mesh.mesh_now() + make_interval(secs =>
        coalesce(%(after)s::float8, least(backoff_cap_s, backoff_s * 2 ^ failures) * %(jitter)s)) END,
    rung_at = CASE WHEN %(outcome)s IN ('lost', 'released') THEN mesh.mesh_now() END,
    ended_at = CASE WHEN %(outcome)s = 'won' THEN mesh.mesh_now() END
   WHERE id = %(call)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s AND status = 'running'
     AND worker_id IS NOT DISTINCT FROM %(worker)s::uuid AND (NOT %(overdue)s OR deadline < mesh.mesh_asof())
  RETURNING *, status <> 'ready' AND (slot_mode = 'first' AND status = 'done' OR slot_mode = 'all' AND status = 'failed'
    OR idx = slot_size - 1 OR effect = 'once' AND %(outcome)s IN ('lost', 'timeout')) AS closes),
 h AS (SELECT f.id FROM c, LATERAL (SELECT f.id FROM mesh.calls f WHERE f.step_id = c.step_id AND f.tenant_id = c.tenant_id
     AND f.status = 'held' AND f.idx = 0 AND f.limited ORDER BY f.slot LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) f
   WHERE c.limited AND c.closes AND c.status <> 'ready'),
 f AS (SELECT n.id FROM c JOIN mesh.calls n ON n.step_id = c.step_id AND n.tenant_id = c.tenant_id AND n.slot = c.slot
     AND n.idx = c.idx + 1 WHERE c.status <> 'ready' AND NOT c.closes UNION ALL SELECT id FROM h),
 nx AS (UPDATE mesh.calls n SET status = 'ready', rung_at = mesh.mesh_now() FROM c
   WHERE n.id = (SELECT id FROM f) AND n.tenant_id = c.tenant_id AND n.status = 'held'
   RETURNING n.id, n.epoch, n.queue, n.task, n.priority),
 dr AS (UPDATE mesh.calls d SET status = 'cancelled', ended_at = mesh.mesh_now() FROM c
   WHERE d.step_id = c.step_id AND d.tenant_id = c.tenant_id AND d.slot = c.slot AND d.idx > c.idx
     AND d.status = 'held' AND c.closes RETURNING d.id),
 a AS (UPDATE mesh.attempts a SET ended_at = mesh.mesh_now(), outcome = %(outcome)s, error = %(error)s::jsonb FROM c
   WHERE a.call_id = c.id AND a.tenant_id = c.tenant_id AND a.n = c.n AND a.outcome IS NULL),
 w AS (SELECT c.step_id, c.group_id, c.tenant_id, (c.status = 'done' OR c.slot_mode = 'each')::int AS won
   FROM c, (SELECT count(*) FROM nx) after_next, (SELECT count(*) FROM dr) after_dropped WHERE c.closes),
 g AS (UPDATE mesh.steps g SET pending = g.pending - 1, wins = g.wins + w.won,
    status = CASE WHEN g.pending = 1 OR g.require = 'all' AND w.won = 0 THEN 'done' ELSE g.status END,
    ended_at = CASE WHEN g.pending = 1 OR g.require = 'all' AND w.won = 0 THEN mesh.mesh_now() END
   FROM w WHERE g.id = w.group_id AND g.tenant_id = w.tenant_id AND g.status = 'waiting' AND g.pending > 0
   RETURNING w.step_id, w.tenant_id,
     CASE WHEN g.require <> 'all' THEN w.won + CASE WHEN g.pending = 0 THEN g.slots - g.wins ELSE 0 END
       WHEN g.status = 'done' THEN g.slots - g.pending ELSE 0 END AS closed,
     CASE WHEN g.require <> 'all' THEN w.won WHEN g.status = 'done' THEN g.wins ELSE 0 END AS won),
 p AS (SELECT step_id, tenant_id, 1 AS closed, won FROM w WHERE group_id IS NULL UNION ALL SELECT * FROM g WHERE closed > 0),
 s AS (UPDATE mesh.steps s SET pending = s.pending - p.closed, wins = s.wins + p.won,
    status = CASE WHEN s.wins + p.won >= s.need OR s.wins + p.won + s.pending - p.closed < s.need THEN 'joined'
      ELSE s.status END,
    rung_at = CASE WHEN s.status = 'waiting' THEN mesh.mesh_now() ELSE s.rung_at END
   FROM p WHERE s.id = (SELECT step_id FROM p) AND s.tenant_id = p.tenant_id AND s.status IN ('waiting', 'joined')
     AND s.pending >= p.closed
   RETURNING s.id, s.epoch, s.queue, s.agent, s.priority,
     s.status = 'joined' AND NOT (s.wins - p.won >= s.need OR s.wins - p.won + s.pending + p.closed < s.need) AS fired)
SELECT c.status, c.trace_id, c.id, c.epoch, c.queue, c.task, c.priority, c.wake_at IS NOT NULL AS later,
  nx.id AS next_id, nx.epoch AS next_epoch, nx.queue AS next_queue, nx.task AS next_task, nx.priority AS next_priority,
  s.id AS step_id, s.epoch AS step_epoch, s.queue AS step_queue, s.agent AS step_agent, s.priority AS step_priority,
  coalesce(s.fired, false) AS fired
 FROM c LEFT JOIN nx ON true LEFT JOIN s ON true
"""

# A call that only a lost worker's row speaks for, and that is parked when no process survives it.
SETTLE_LOST = SETTLE.replace(
    "\nSELECT c.status",
    """,
 dl AS (INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, step_id, call_id, code, fingerprint, evidence)
   SELECT %(letter)s, c.tenant_id, c.trace_id, c.step_id, c.id, 'E_POISON', 'E_POISON:' || c.tool, jsonb_build_object(
     'tool', c.tool, 'losses', c.losses, 'attempts', (SELECT jsonb_agg(jsonb_build_object('n', l.n, 'worker', l.worker_id,
       'child', l.child, 'started_at', l.started_at) ORDER BY l.n)
      FROM mesh.attempts l WHERE l.call_id = c.id AND l.tenant_id = c.tenant_id))
   FROM c WHERE c.status = 'failed' AND c.effect <> 'once')
SELECT c.status""",
)

# Why a claim lost: the call is free, but has taken a worker with it before.
SUSPECT = """
SELECT 1 FROM mesh.calls WHERE id = %(row)s AND epoch = %(epoch)s AND status = 'ready' AND losses > 0
  AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
"""

STALE = """
UPDATE mesh.attempts SET outcome = 'stale', ended_at = coalesce(ended_at, mesh.mesh_now())
 WHERE id = %(attempt)s AND tenant_id = %(tenant)s AND (outcome IS NULL OR outcome IN ('lost', 'timeout'))
"""

# Writes, so that its own commit waits for whatever ours waited for.
KNOWN = """
WITH a AS (UPDATE mesh.attempts SET outcome = outcome WHERE id = %(attempt)s AND tenant_id = %(tenant)s
    AND outcome = %(outcome)s RETURNING call_id, tenant_id)
SELECT c.status, c.trace_id, s.id AS step_id, s.epoch AS step_epoch, s.queue AS step_queue, s.agent AS step_agent,
  s.priority AS step_priority, s.status = 'joined' AS fired
 FROM a JOIN mesh.calls c ON c.id = a.call_id AND c.tenant_id = a.tenant_id
  JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
"""

CONTINUATION = 2
"""How much higher than new work a continuation rings."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A running call that is ours under (worker_id, epoch); `row` has its columns and its trace's context."""

    row: Row
    attempt_id: UUID
    holder: Holder


@dataclass(frozen=True, slots=True)
class Settled:
    """What a recorded outcome led to: the call's new status, and the doorbells to ring now that it is committed."""

    status: str
    joined: bool
    rings: tuple[Ring, ...]


@transition("call_claim")
def claim(  # noqa: PLR0913 - all that guards it
    db: Database, call_id: UUID, epoch: int, *, task: str, holder: Holder, attempt_id: UUID, alone: bool = True,
    tools: Sequence[str] | None = None,
) -> Claimed | None:  # fmt: skip
    """The call, running under `holder` with its attempt recorded; None when there is nothing to claim.

    One that was lost with its worker is a suspect: it is claimed by a process that runs nothing else (`alone`). Where
    `tools` is given, a call of another tool is left to others.
    """
    more = {"alone": alone, "tools": None if tools is None else list(tools)}
    rows = db.once(CLAIM, claiming(call_id, epoch, task, holder, attempt_id) | more)
    return Claimed(rows[0], attempt_id, holder) if rows else None


def claiming(call_id: UUID, epoch: int, task: str, holder: Holder, attempt_id: UUID) -> dict[str, Any]:
    """The parameters of a claim that asks for nothing else."""
    return {
        "call": call_id, "epoch": epoch, "task": task, "worker": holder.worker_id, "child": holder.child,
        "attempt": attempt_id, "alone": True, "tools": None,
    }  # fmt: skip


def settle(
    tx: Tx, call: Row, *, worker_id: UUID | None, outcome: Outcome, result: Json = None, failure: Failure | None = None,
    overdue: bool = False,
) -> Settled | None:  # fmt: skip
    """Record how the running call ended and count its slot down; None when (worker_id, epoch) is no longer its holder.

    `released` and `lost` make it ready again, but for a `once` call (E_OUTCOME_UNKNOWN) and one that was lost too often
    while it ran alone, which is parked (E_POISON); `failed` and `timeout` retry while attempts are left and the failure
    is not permanent. A child trace's call is nobody's (None). `overdue` also asks that its deadline has passed.
    """
    row = tx.one(
        SETTLE_LOST if outcome == "lost" else SETTLE,
        {
            "call": call["id"], "tenant": call["tenant_id"], "epoch": call["epoch"], "worker": worker_id,
            "outcome": outcome, "result": jsonb(result), "error": jsonb(failure.as_json()) if failure else None,
            "again": failure is None or not failure.permanent, "after": failure.after_s if failure else None,
            "letter": new_id(), "jitter": random.random(), "overdue": overdue,  # noqa: S311 - spreads retries, guards nothing
        },
    )  # fmt: skip
    return None if row is None else Settled(row["status"], row["fired"], tuple(_rings(row)))


def call_ring(row: Row) -> Ring:
    return Ring("call", row["id"], row["epoch"], row["queue"], row["task"], row["trace_id"], _up(row["priority"]))


def _rings(row: Row) -> list[Ring]:
    trace = row["trace_id"]
    rings = []
    if row["status"] == "ready" and not row["later"]:
        rings.append(call_ring(row))
    if row["next_id"] is not None:
        following = {name: row[f"next_{name}"] for name in ("id", "epoch", "queue", "task", "priority")}
        rings.append(call_ring(following | {"trace_id": trace}))
    if row["fired"]:
        rings.append(step_ring(row, trace))
    return rings


def step_ring(row: Row, trace_id: UUID) -> Ring:
    return Ring(
        "step", row["step_id"], row["step_epoch"], row["step_queue"], f"agent.{row['step_agent']}", trace_id,
        _up(row["step_priority"]),
    )  # fmt: skip


def _up(priority: int) -> int:
    return min(9, priority + CONTINUATION)


def mark_stale(db: Database, claimed: Claimed) -> None:
    """Note that this attempt's answer came too late; what ended it before keeps its time."""
    COUNTS.add("fenced")
    db.once(STALE, {"attempt": claimed.attempt_id, "tenant": claimed.row["tenant_id"]})


class TaskManager:
    """The life of tool calls in one process: claim, record, give back; every answer lost in COMMIT is settled here."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def claim(
        self, ring: Ring, *, holder: Holder, attempt_id: UUID, alone: bool, tools: Sequence[str]
    ) -> Claimed | None:
        """See `claim`. On its tool's own queue only workers that have the tool know the task."""
        own = ring.task.startswith("tool.")
        return claim(
            self._db, ring.id, ring.epoch, task=ring.task, holder=holder, attempt_id=attempt_id, alone=alone,
            tools=None if own else tools,
        )  # fmt: skip

    def is_suspect(self, ring: Ring) -> bool:
        """Whether the call is free but was lost with a worker before."""
        return bool(self._db.once(SUSPECT, {"row": ring.id, "epoch": ring.epoch}))

    @transition("call_end")
    def record(
        self, claimed: Claimed, outcome: Outcome, *, result: Json = None, failure: Failure | None = None
    ) -> Settled | None:
        """Record the outcome in a transaction of its own; None when it came too late, which is then noted."""
        holder = claimed.holder.worker_id

        def once() -> Settled | None:
            with self._db.checkout() as tx:
                return settle(tx, claimed.row, worker_id=holder, outcome=outcome, result=result, failure=failure)

        try:
            settled = once()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            settled = once()
        settled = settled or self.known(claimed, outcome)
        if settled is None:
            mark_stale(self._db, claimed)
        return settled

    def known(self, claimed: Claimed, outcome: Outcome) -> Settled | None:
        """What an earlier write of `outcome` left, when repeating it changed nothing; None when it never landed."""
        rows = self._db.once(
            KNOWN, {"attempt": claimed.attempt_id, "tenant": claimed.row["tenant_id"], "outcome": outcome}
        )
        if not rows:
            return None
        rings = (step_ring(rows[0], rows[0]["trace_id"]),) if rows[0]["fired"] else ()
        return Settled(rows[0]["status"], rows[0]["fired"], rings)

    def report(self, claimed: Claimed, progress: dict[str, Json]) -> None:
        """Show how far a running attempt is."""
        self._db.once(
            "UPDATE mesh.attempts SET progress = %(said)s::jsonb WHERE id = %(attempt)s AND tenant_id = %(tenant)s"
            " AND outcome IS NULL",
            {"said": jsonb(progress), "attempt": claimed.attempt_id, "tenant": claimed.row["tenant_id"]},
        )

    def keep_log(self, claimed: Claimed, said: Json) -> None:
        """What was logged while this attempt ran stands with it."""
        self._db.once(
            "UPDATE mesh.attempts SET log = %(said)s::jsonb WHERE id = %(attempt)s AND tenant_id = %(tenant)s",
            {"said": jsonb(said), "attempt": claimed.attempt_id, "tenant": claimed.row["tenant_id"]},
        )

    def still_mine(self, claimed: Claimed) -> bool:
        """Whether this attempt still holds its call."""
        rows: list[Any] = self._db.once(
            "SELECT 1 FROM mesh.calls WHERE id = %(call)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s"
            " AND worker_id = %(worker)s AND status = 'running'",
            {
                "call": claimed.row["id"], "tenant": claimed.row["tenant_id"], "epoch": claimed.row["epoch"],
                "worker": claimed.holder.worker_id,
            },
        )  # fmt: skip
        return bool(rows)
