"""The audit: every order has its row in its own transaction; rows are sealed once, and nobody can change them."""

import psycopg
import pytest

from agentmesh.execution.tools import register_tool
from agentmesh.records import Actor, PolicyPatch, new_id
from agentmesh.state import audit, deliveries, steering
from agentmesh.state.audit import Refusals
from agentmesh.testing import race

ANNA = Actor("anna", key="api:7", permission="traces:steer")


@pytest.fixture
def sealed_of():
    """sealed_of(mesh) -> every row of the default tenant, oldest first, once all are sealed."""

    def rows(mesh, tenant="default"):
        while audit.seal(mesh.db):
            pass
        return audit.AuditPipeline(mesh.db, tenant=tenant).rows(limit=1000)[::-1]

    return rows


@pytest.fixture
def sealed(lab, sealed_of):
    """sealed() -> `sealed_of` the lab's mesh."""
    return lambda tenant="default": sealed_of(lab.mesh, tenant)


def test_an_order_to_a_trace_is_audited_with_who_under_which_key_and_permission(lab, sealed):
    trace = lab.start()
    at = {"tenant": "default", "trace_id": trace.id, "by": ANNA}
    steering.pause(lab.mesh.db, **at, reason="too loud")
    steering.resume(lab.mesh.db, **at | {"by": "bert"})
    lab.mesh.people.signal(trace.id, "go", {"secret": 1}, by=ANNA)
    steering.cancel(lab.mesh.db, **at)
    rows = [one for one in sealed() if one.get("trace_id") == str(trace.id)]
    assert [(one["action"], one["by"], one.get("key"), one.get("permission")) for one in rows] == [
        ("BIR_DISPATCH", "tester", lab.mesh.key.kid, None),
        ("EXEC_PAUSE", "anna", "api:7", "traces:steer"),
        ("EXEC_RESUME", "bert", None, None),
        ("EXEC_SIGNAL", "anna", "api:7", "traces:steer"),
        ("EXEC_CANCEL", "anna", "api:7", "traces:steer"),
    ]
    assert rows[1]["said"] == {"reason": "too loud"}
    assert rows[0]["said"]["permissions"] == []
    assert "secret" not in str(rows)


def test_what_an_agent_does_by_itself_is_no_order(lab, sealed):
    trace = lab.start({"tools": ["work"]})
    lab.drain()
    assert trace.status() == "done"
    assert [one["action"] for one in sealed() if "trace_id" in one] == ["BIR_DISPATCH"]


def test_an_order_that_changed_nothing_is_not_audited_and_none_outlives_its_rollback(lab, sealed):
    trace = lab.start()
    at = {"tenant": "default", "trace_id": trace.id, "by": "anna"}
    steering.pause(lab.mesh.db, **at)
    assert not steering.pause(lab.mesh.db, **at).changed
    with lab.mesh.db.begin() as tx:
        tx.all(steering.RESUME, {"trace": trace.id, "tenant": "default", "body": '{"by": "bert"}'})
        raise psycopg.Rollback
    assert [one["action"] for one in sealed() if "trace_id" in one] == ["BIR_DISPATCH", "EXEC_PAUSE"]


def test_orders_beside_traces_are_audited_too(lab, sealed):
    sealed()
    mesh = lab.mesh
    lab.mesh.lifecycle.pause("puppet", by=ANNA)
    mesh.lifecycle.pause("puppet", by="too late")
    mesh.lifecycle.resume("puppet", by=ANNA)
    for _ in range(2):
        mesh.key_table.register(
            kid="api:9", tenant_id="default", owner="shop", public=bytes(32), grants=["a:b"], by=ANNA
        )
    assert mesh.key_table.revoke("api:9", by=ANNA)
    assert not mesh.key_table.revoke("api:9", by="too late")
    asked = {
        "agent": "puppet",
        "intent": "work",
        "payload": {},
        "cron": "0 9 * * *",
        "timezone": "UTC",
        "missed": "once",
    }
    mesh.timetable.add("default", "daily", by=ANNA, priority=5, **asked)
    mesh.timetable.add("default", "puppet.files", by="mesh", declared=True, priority=5, **asked)
    mesh.timetable.remove("default", "daily", by=ANNA)
    trace = lab.open("work")
    call = lab.calls(trace)[0]
    lab.claim(call)
    mesh.answers.finish(call["id"], 5, by=ANNA)
    rows = [one for one in sealed() if one["by"] == "anna"]
    assert {one["key"] for one in rows} == {"api:7"}
    assert [one["action"] for one in rows] == [
        "AGENT_PAUSE", "AGENT_RESUME", "KEY_NEW", "KEY_REVOKE", "SCHEDULE_ADD", "SCHEDULE_REMOVE", "CALL_FINISH",
    ]  # fmt: skip
    assert rows[2] | {"kid": "api:9", "owner": "shop", "grants": ["a:b"]} == rows[2]
    assert not [one for one in sealed() if one["by"] == "too late"]


def test_whoever_rewards_remembers_or_resends_is_audited(lab, sealed):
    trace = lab.start({"tools": ["work"]})
    lab.drain()
    sealed()
    for _ in range(2):
        trace.feedback(0.5, key="once", by=ANNA, note="slow")
    memory = lab.mesh.memory("c-1")
    memory.store("tone", "canary", origin=ANNA, reason="as agreed")
    memory.revert("tone", memory.store("tone", "loud", origin=ANNA) - 1, by=ANNA)
    lab.rows("INSERT INTO mesh.deliveries (id, tenant_id, trace_id, target, status) VALUES"
             " (%(id)s, 'default', %(trace)s, 'https://shop.example', 'failed')", id=new_id(), trace=trace.id)  # fmt: skip
    assert [deliveries.again(lab.mesh.db, "default", by=ANNA) for _ in range(2)] == [1, 0]
    rows = [one for one in sealed() if one["by"] == "anna"]
    assert {one["key"] for one in rows} == {"api:7"}
    assert [one["action"] for one in rows] == ["REWARD", *["MEMORY_WRITE"] * 3, "WEBHOOK_RETRY"]
    assert rows[0] | {"trace_id": str(trace.id), "reward": 0.5, "step_id": str(lab.steps(trace)[0]["id"])} == rows[0]
    assert rows[1] | {"context": "c-1", "entry": "long_term:tone", "reason": "as agreed"} == rows[1]
    assert "canary" not in str(rows)


def test_what_a_worker_announces_is_audited_where_it_changes_something(make_lab, tools, sealed_of):
    register_tool("work", registry=tools, needs=["a:b"])(lambda: 1)
    hook = {"url": "https://shop.example/hook?key=canary", "secret": "hooks"}
    lab = make_lab(policy={"webhook": hook})
    mesh = lab.mesh
    sealed_of(mesh)
    mesh.registry.announce(mesh.db, ["default"], by="worker:w-1")
    lab.rows("UPDATE mesh.tools SET needs = '{}' WHERE id = 'work'")
    lab.rows("UPDATE mesh.agents SET spec = spec - 'webhook' WHERE id = 'puppet'")
    mesh.registry.announce(mesh.db, ["default"], by="worker:w-1")
    lab.rows("DELETE FROM mesh.tools")
    mesh.registry.announce(mesh.db, ["default"], by="worker:w-1")
    rows = [one for one in sealed_of(mesh) if one["by"] == "worker:w-1"]
    assert [(one["action"], one.get("agent") or one["tool"]) for one in rows] == [
        ("AGENT_CHANGE", "puppet"), ("TOOL_CHANGE", "work"), ("TOOL_NEW", "work"),
    ]  # fmt: skip
    assert (rows[0]["webhook"], rows[1]["needs"]) == ("https://shop.example", ["a:b"])
    assert "canary" not in str(rows)


def test_an_intent_that_names_a_webhook_is_audited_with_whom_it_tells(lab, sealed):
    hook = {"url": "https://shop.example:8443/hook?key=canary", "secret": "hooks"}
    lab.start(policy=PolicyPatch.model_validate({"webhook": hook}))
    [row] = [one for one in sealed() if one["action"] == "BIR_DISPATCH"]
    assert row["said"]["webhook"] == "https://shop.example:8443"
    assert "canary" not in str(row)


# --- sealing


def test_rows_are_shown_once_they_are_sealed_in_batches_each_tenant_with_its_own_chain(lab):
    ours, theirs = (audit.AuditPipeline(lab.mesh.db, tenant=tenant) for tenant in ("default", "acme"))
    audit.seal(lab.mesh.db)  # what making the mesh has left
    for n in range(3):
        ours.record("NOTE", by="anna", n=n)
        theirs.record("NOTE", by="bert", n=n)
    assert theirs.rows() == []
    assert [audit.seal(lab.mesh.db, most=4), audit.seal(lab.mesh.db, most=4), audit.seal(lab.mesh.db, most=4)] == [
        4,
        2,
        0,
    ]
    assert sorted(one["n"] for one in theirs.rows()) == [0, 1, 2]
    assert [one["seq"] for one in theirs.rows()] == [3, 2, 1]
    assert {one["tenant"] for one in theirs.rows()} == {"acme"}
    assert [one["seq"] for one in theirs.rows(limit=1, before=3)] == [2]


def test_of_two_sealers_at_once_each_row_is_bound_by_one(lab):
    pipeline = audit.AuditPipeline(lab.mesh.db, tenant="acme")
    for n in range(20):
        pipeline.record("NOTE", by="anna", n=n)
    counts = race(*[lambda: audit.seal(lab.mesh.db, most=1000)] * 4)
    counts.append(audit.seal(lab.mesh.db))
    assert sum(counts) >= 20
    assert [one["seq"] for one in pipeline.rows()] == list(range(20, 0, -1))  # and I11, when the test ends


def test_rows_are_sealed_in_the_order_in_which_they_came(lab):
    """Many within a millisecond."""
    notes = ";".join(f"SELECT mesh.audit_note('acme', 'NOTE', '{{\"n\": {n}}}')" for n in range(200))
    lab.rows(notes)
    audit.seal(lab.mesh.db)
    rows = audit.AuditPipeline(lab.mesh.db, tenant="acme").rows(limit=200)
    assert [one["n"] for one in reversed(rows)] == list(range(200))
    assert {one["id"][14] for one in rows} == {"7"}


def test_the_leading_rescuer_seals(lab):
    from agentmesh.coordination.heartbeat import Heart, here
    from agentmesh.coordination.rescuer import Pace, Rescuer

    audit.AuditPipeline(lab.mesh.db, tenant="acme").record("NOTE", by="anna")
    me = here(name="h", queues=[], agents=[], tools=[], version="1", lease_s=10)
    heart = Heart(lab.mesh.db, me, lab.mesh.notes, beat_s=1, ring=lab.bells.ring)
    heart._register()
    looked = []
    assert Rescuer(lab.mesh.db, heart, lab.mesh.notes, Pace(), ring=lab.bells.ring, depths=lambda queues: {},
                   also=[lambda: looked.append(1)]).tick()  # fmt: skip
    assert len(audit.AuditPipeline(lab.mesh.db, tenant="acme").rows()) == 1
    assert looked == [1]


# --- nobody changes it


def test_s58_a_role_that_may_only_insert_writes_and_seals_and_can_do_no_more(own_database):
    refused = []
    with psycopg.connect(own_database) as connection:
        connection.execute("CREATE ROLE amtest_writer; GRANT USAGE ON SCHEMA mesh TO amtest_writer")
        connection.execute(
            "GRANT SELECT, INSERT ON mesh.audit, mesh.audit_heads TO amtest_writer; SET ROLE amtest_writer"
        )
        connection.execute("SELECT mesh.audit_note('default', 'NOTE', '{\"by\": \"anna\"}')")
        assert connection.execute("SELECT mesh.audit_seal(10)").fetchone() == (1,)
        for sql in (
            "UPDATE mesh.audit SET body = 'x'", "UPDATE mesh.audit SET seq = 9, prev = 'a', hash = 'b'",
            "DELETE FROM mesh.audit", "TRUNCATE mesh.audit", "UPDATE mesh.audit_heads SET seq = 1",
            "DELETE FROM mesh.audit_heads", "TRUNCATE mesh.audit_heads", "ALTER TABLE mesh.audit DISABLE TRIGGER ALL",
            "DROP TABLE mesh.audit", "SET session_replication_role = replica",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(sql)
            refused.append(sql)
        connection.rollback()
    assert len(refused) == 10


def test_s58_a_kept_head_cannot_be_changed_by_its_owner(lab):
    for sql in ("UPDATE mesh.audit_heads SET seq = 2", "DELETE FROM mesh.audit_heads", "TRUNCATE mesh.audit_heads"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            lab.rows(sql)


# --- refused envelopes


def test_refused_envelopes_are_counted_and_do_not_fill_the_table(lab, sealed):
    now = [0.0]
    refused = Refusals(lambda: lab.mesh.audit, monotonic=lambda: now[0])
    for _ in range(50):
        refused("signature", {"queue": "agent.puppet", "row": None})
    refused("expired", {"queue": "agent.puppet", "row": None})
    now[0] = 10.0
    refused("signature", {"queue": "agent.other", "row": None})
    rows = [one for one in sealed() if one["action"] == "ENVELOPE_REFUSED"]
    assert sorted((one["reason"], one["count"]) for one in rows) == [
        ("expired", 1),
        ("signature", 1),
        ("signature", 50),
    ]


def test_an_envelope_without_a_row_is_refused_counted_and_audited(lab, sealed):
    """Signed by our own key, so that it is believed; still a message makes no row."""
    from dataclasses import replace

    from agentmesh.records import new_id

    trace = lab.start()
    genuine = lab.bells.waiting[0]
    lab.bells.waiting.append(genuine)  # told twice, which is no fault of anybody's
    lab.bells.waiting.append(replace(genuine, id=new_id()))
    lab.bells.waiting.append(replace(genuine, id=new_id(), envelope=None))  # ids alone are nobody's claim
    lab.drain()
    assert trace.status() == "done"
    assert len(lab.rows("SELECT 1 FROM mesh.traces")) == 1
    [refused] = [one for one in sealed() if one["action"] == "ENVELOPE_REFUSED"]
    assert (refused["reason"], refused["count"], refused["last"]["queue"]) == ("row", 1, genuine.queue)
