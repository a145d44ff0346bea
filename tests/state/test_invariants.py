"""The shipped checks see what they are for: an honest database gives twelve empty answers, each corruption one.

S26 too: which statements of a full run do not name their tenant.
"""

# ruff: noqa: E501 - one corruption a line

import psycopg
import pytest

from agentmesh.records import new_id
from agentmesh.state import invariants
from agentmesh.state.invariants import broken, checks, copy


@pytest.fixture
def honest(lab):
    """Traces of every kind, ended: won, failed, fallback, inline, retried, lost, delegated memory."""
    actions = [
        {"tools": ["work", {"tool": "work", "as": "b"}], "strategy": "parallel"},
        {"tools": ["boom", "work"], "strategy": "fallback"},
        {"tools": ["quick", {"tool": "quick", "as": "b"}], "strategy": "serial"},
        {"tools": ["fallible", "work"], "strategy": "parallel", "require": "any"},
        {"tools": ["twice"]},
        {"answer": 1},
    ]
    made = [lab.start(one, idempotency_key=f"k{n}") for n, one in enumerate(actions)]
    lab.drain()
    lost = lab.open("work")
    lab.settle(lab.claim(lab.calls(lost)[0]), "lost")
    [call] = lab.calls(lost)
    lab.settle(lab.claim(call), result=1)
    lab.bells.waiting.clear()
    lab.mesh.controller.run_once(lab.ring(lost))
    assert {one.status() for one in [*made, lost]} == {"done"}
    assert broken(lab.url) == {}
    return lab


def test_an_honest_database_gives_twelve_empty_answers(honest):
    assert [one.number for one in checks()] == [f"I{n}" for n in range(1, 13)]
    assert broken(honest.url) == {}


DONE = "(SELECT id FROM mesh.calls WHERE status = 'done' ORDER BY id LIMIT 1)"
CALL = "(SELECT call_id FROM mesh.attempts WHERE call_id IS NOT NULL ORDER BY call_id LIMIT 1)"
TRACE = "(SELECT id FROM mesh.traces ORDER BY id LIMIT 1)"
TOOLS_STEP = "(SELECT id FROM mesh.steps WHERE kind = 'tools' AND status = 'done' ORDER BY id LIMIT 1)"
NEW = str(new_id())

CORRUPTIONS = [
    ("I1", "a trace vanished", f"DELETE FROM mesh.traces WHERE id = {TRACE}"),
    ("I1", "an envelope vanished", f"DELETE FROM mesh.envelopes WHERE trace_id = {TRACE}"),
    ("I1", "a key was used for two envelopes", "UPDATE mesh.envelopes SET idem_key = 'same'"),
    ("I2", "a call runs on a worker that is gone",
     f"UPDATE mesh.calls SET status = 'running', worker_id = '{NEW}' WHERE id = {DONE}"),
    ("I2", "a ready call was not rung for a minute",
     f"UPDATE mesh.calls SET status = 'ready', rung_at = now() - interval '1 min', created_at = now() - interval '1 h' WHERE id = {DONE}"),
    ("I2", "a trace waits for nothing", f"UPDATE mesh.traces SET status = 'waiting' WHERE id = {TRACE}"),
    ("I2", "a running trace has no open step", f"UPDATE mesh.traces SET status = 'running', worker_id = NULL WHERE id = {TRACE}"),
    ("I3", "a done call that nobody won", f"UPDATE mesh.attempts SET outcome = 'failed' WHERE call_id = {DONE}"),
    ("I3", "a call that was won is not done", f"UPDATE mesh.calls SET status = 'failed' WHERE id = {DONE}"),
    ("I4", "the winner's epoch is not the call's", f"UPDATE mesh.calls SET epoch = epoch + 1 WHERE id = {DONE}"),
    ("I4", "an epoch that did not grow", "UPDATE mesh.attempts SET epoch = 1 WHERE n > 1"),
    ("I4", "two holders overlap", "UPDATE mesh.attempts SET started_at = started_at - interval '1 h' WHERE n > 1"),
    ("I4", "a successor started before its predecessor had ended",
     "UPDATE mesh.attempts SET ended_at = NULL WHERE n = 1 AND EXISTS (SELECT 1 FROM mesh.attempts b WHERE b.call_id = mesh.attempts.call_id AND b.n = 2)"),
    ("I5", "a waiting step counts wrong",
     f"UPDATE mesh.steps SET status = 'waiting', pending = slots WHERE id = {TOOLS_STEP}"),
    ("I5", "a done step with parts pending", f"UPDATE mesh.steps SET pending = 1 WHERE id = {TOOLS_STEP}"),
    ("I5", "a join was handled twice",
     f"INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id) SELECT trace_id, 100, tenant_id, 'CALLBACK_RESULT', id FROM mesh.steps WHERE id = {TOOLS_STEP}"),
    ("I5", "a done tools step that no callback handled",
     f"UPDATE mesh.events SET name = 'OTHER' WHERE name = 'CALLBACK_RESULT' AND step_id = {TOOLS_STEP}"),
    ("I5", "two successors of one step",
     "DROP INDEX mesh.steps_successor; INSERT INTO mesh.steps SELECT (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid()))).* FROM mesh.steps s WHERE after_step_id IS NOT NULL"),
    ("I6", "a key per attempt", "UPDATE mesh.attempts SET idem_key = 'other' WHERE n > 1"),
    ("I6", "two calls of one tool under one key",
     "UPDATE mesh.attempts SET idem_key = 'same' WHERE kind = 'tool'"),
    ("I6", "an attempt without a number", "UPDATE mesh.attempts SET n = 9 WHERE n > 1"),
    ("I6", "a second start without an end of the first",
     "UPDATE mesh.attempts SET outcome = NULL WHERE n = 1 AND EXISTS (SELECT 1 FROM mesh.attempts b WHERE b.call_id = mesh.attempts.call_id AND b.n = 2)"),
    ("I6", "a once call that was started twice",
     "UPDATE mesh.calls SET effect = 'once' WHERE n > 1"),
    ("I6", "more failures than attempts allowed", "UPDATE mesh.calls SET max_attempts = 0 WHERE failures > 0"),
    ("I7", "a gap in the history", f"DELETE FROM mesh.events WHERE trace_id = {TRACE} AND seq = 2"),
    ("I7", "a history that does not begin at one", f"DELETE FROM mesh.events WHERE trace_id = {TRACE} AND seq = 1"),
    ("I7", "an end that the row does not know", f"UPDATE mesh.traces SET status = 'failed' WHERE id = {TRACE}"),
    ("I7", "no history", f"DELETE FROM mesh.events WHERE trace_id = {TRACE}"),
    ("I7", "an ended trace with an open step", f"UPDATE mesh.steps SET status = 'waiting' WHERE id = {TOOLS_STEP}"),
    ("I7", "an ended trace with an open call", f"UPDATE mesh.calls SET status = 'held' WHERE id = {DONE}"),
    ("I8", "a callback whose effect is missing",
     "DELETE FROM mesh.effects WHERE step_id IN (SELECT id FROM mesh.steps WHERE callbacks <> '{}')"),
    ("I8", "a hole in a memory's versions",
     """INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, origin)
       SELECT gen_random_uuid(), tenant_id, context_id, type, scope, key, version + 2, origin FROM mesh.memory"""),
    ("I9", "a step of another tenant", f"UPDATE mesh.steps SET tenant_id = 'x' WHERE id = {TOOLS_STEP}"),
    ("I9", "a call of another tenant", f"UPDATE mesh.calls SET tenant_id = 'x' WHERE id = {DONE}"),
    ("I9", "an event of another tenant", f"UPDATE mesh.events SET tenant_id = 'x' WHERE trace_id = {TRACE}"),
    ("I9", "a trace whose context is not its tenant's", "DELETE FROM mesh.contexts"),
    ("I9", "memory in nobody's context", "UPDATE mesh.memory SET context_id = 'nobody'"),
    ("I9", "an effect of another tenant", "UPDATE mesh.effects SET tenant_id = 'x'"),
    ("I9", "a child of another tenant's trace",
     f"UPDATE mesh.traces SET parent_id = {TRACE}; UPDATE mesh.traces SET tenant_id = 'x' WHERE id <> {TRACE}"),
    ("I10", "a call that ran with what its trace may not do", f"UPDATE mesh.calls SET needs = '{{a:b}}' WHERE id = {DONE}"),
    ("I10", "a child that may more than its parent",
     f"UPDATE mesh.traces SET parent_id = {TRACE}, permissions = '{{a:b}}' WHERE id <> {TRACE}"),
    ("I11", "an audit row that was changed after it was sealed",
     "INSERT INTO mesh.audit (id, tenant_id, body, seq, prev, hash) VALUES (gen_random_uuid(), 'default', 'x', 1, sha256('default'), sha256('y'))"),
    ("I12", "a budget overrun", f"UPDATE mesh.traces SET budget_limit = 1, budget_spent = 2 WHERE id = {TRACE}"),
]  # fmt: skip


@pytest.mark.parametrize("copied", [False, True], ids=["the views", "copies"])
def test_every_corruption_is_caught_by_the_check_it_is_for(honest, copied):
    """In one transaction each, rolled back: making an honest database takes longer than spoiling it."""
    missed = []
    queries = {one.number: one.query.replace(":slack", "interval '30 s'") for one in checks()}
    with psycopg.connect(honest.url) as connection:
        for number, what, sql in CORRUPTIONS:
            connection.execute("SET LOCAL session_replication_role = replica")
            for one in sql.split("; "):
                assert connection.execute(one).rowcount != 0, what
            connection.execute("SET LOCAL search_path = inv")
            if copied:
                copy(connection)
            if not connection.execute(queries[number]).fetchall():
                missed.append((number, what))
            connection.rollback()
    assert missed == []
    assert {number for number, _, _ in CORRUPTIONS} >= {f"I{n}" for n in range(1, 13)}


def test_a_large_database_is_checked_on_copies(honest, monkeypatch):
    monkeypatch.setattr(invariants, "SMALL", 3)
    assert broken(honest.url) == {}
    honest.rows(f"DELETE FROM mesh.envelopes WHERE trace_id = {TRACE}")
    assert list(broken(honest.url)) == ["I1"]
    honest.rows(f"DELETE FROM mesh.traces WHERE id = {TRACE}")  # the lab checks again when it ends
    honest.rows("DELETE FROM mesh.events; DELETE FROM mesh.steps; DELETE FROM mesh.calls; DELETE FROM mesh.attempts")
    honest.rows(
        "DELETE FROM mesh.traces; DELETE FROM mesh.envelopes; DELETE FROM mesh.effects; DELETE FROM mesh.memory"
    )


# --- tenants


def test_s22_memory_of_another_tenant_is_not_found_by_patterns(lab):
    from agentmesh.state.memory import MemoryEngine

    theirs = MemoryEngine(lab.mesh.db, tenant_id="acme", context_id="c-1")
    theirs.store("secret_key", "their secret")
    ours = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1")
    for pattern in ("%", "_", "secret", "secret%", "secret:*", "*", '"secret"', "-nothing"):
        assert ours.query(pattern) == []
    for key in ("secret_key", "secret%", "%", "_ecret_key"):
        assert ours.retrieve(key) is None
    assert theirs.retrieve("secret_key") == "their secret"
    assert [row["key"] for row in theirs.query("secret")] == ["secret_key"]


def test_s22_a_context_of_the_same_name_in_another_tenant_is_another_context(lab, database_url, tmp_path):
    from agentmesh.behavior.agents import define_agent
    from agentmesh.testing import hand_mesh

    def look(session):
        return {"answer": dict(session.memory)}

    spec = define_agent("puppet", reasoner=look, tenants=["acme"])
    (tmp_path / "acme").mkdir()  # with a key of their own
    mesh, bells = hand_mesh(
        database_url, root=tmp_path / "acme", flags={"mesh.tenant": "acme"}, agents={"puppet": spec}
    )
    try:
        lab.start({"answer": "ours"}, context_id="shared")
        lab.drain()
        theirs = mesh.router.dispatch("look", "them", "puppet", "shared", {})
        bells.drain(mesh)
        assert theirs.result(0) == {}
        assert mesh.trace(lab.rows("SELECT id FROM mesh.traces WHERE tenant_id = 'default'")[0]["id"]).db is mesh.db
        with pytest.raises(Exception, match="E_STILL_WORKING"):
            mesh.trace(lab.rows("SELECT id FROM mesh.traces WHERE tenant_id = 'default'")[0]["id"]).status()
    finally:
        mesh.close()


# DESIGN rule 9: the beat, the rescuer's selection, and a claim by our own id. The key table is asked by kid.
UNNAMED = (
    "UPDATE mesh.workers", "INSERT INTO mesh.workers", "FROM mesh.workers", "INTO mesh.leaders", "FROM mesh.keys",
    "pg_control_checkpoint", "mesh.audit_seal", "LEFT JOIN mesh.workers w", "c.deadline < mesh.mesh_asof()", "WHERE id = %(call)s AND epoch",
    "WHERE id = (SELECT trace_id FROM mesh.steps WHERE id = %(step)s)", "WHERE id = %(trace)s AND epoch = %(epoch)s AND status = 'queued'",
    "WHERE t.id = x.id AND t.epoch = x.epoch", "GROUP BY queue", "t.rung_at < t.wake_at", "ANALYZE mesh.", "ORDER BY relname", "WHERE parent_owed", "DELETE FROM mesh.lanes",
)  # fmt: skip


def test_s26_every_statement_of_a_worker_names_its_tenant(lab, monkeypatch):
    from agentmesh.coordination.heartbeat import Heart, here
    from agentmesh.coordination.rescuer import Pace, Rescuer
    from agentmesh.infrastructure.database import Tx

    seen = set()

    run = Tx._run

    def listening(tx, sql, params):
        seen.add(sql)
        return run(tx, sql, params)

    monkeypatch.setattr(Tx, "_run", listening)
    heart = Heart(lab.mesh.db, here(name="h", queues=[], agents=[], tools=[], version="1", lease_s=10), lab.mesh.notes,
                  beat_s=1, ring=lab.bells.ring)  # fmt: skip
    heart._register()
    heart.beat()
    for action in (
        {"tools": ["work", "twice"], "strategy": "parallel"}, {"tools": ["boom", "work"], "strategy": "fallback"},
        {"tools": ["quick", "shaky"], "strategy": "parallel", "require": "any"}, {"answer": {"text": "x" * 70_000}},
    ):  # fmt: skip
        lab.start(action, idempotency_key=str(new_id()), payload={"text": "y" * 70_000})
        lab.drain()
    lost = lab.open("work")
    lab.claim(lab.calls(lost)[0], lab.worker())
    lab.rows("UPDATE mesh.workers SET state = 'dead' WHERE name = 'other'")
    lab.start(delay=0.001)
    lab.shift(30)
    lab.rows("UPDATE mesh.workers SET beat_at = mesh.mesh_now()")
    Rescuer(lab.mesh.db, heart, lab.mesh.notes, Pace(), ring=lab.bells.ring, depths=lambda queues: {}).tick()
    lab.drain()
    assert lost.status() == "done"
    ours = [one for one in seen if "mesh." in one]
    unnamed = [one for one in ours if "tenant_id" not in one and not any(part in one for part in UNNAMED)]
    assert len(ours) > 20
    assert unnamed == []
