"""Admission by limits: no lane has more than it may, each has its turn, and no place is lost with who held it."""

import pytest
from sqlalchemy.orm import Session

from agentmesh import define_agent
from agentmesh.coordination import scheduler
from agentmesh.coordination.rescuer import Pace, Rescuer
from agentmesh.errors import BadAgentFile, BadPayload, BadRule
from agentmesh.state import admission, steering
from agentmesh.state.admission import Lane
from agentmesh.testing import race

KEY = "payload.customer"


@pytest.fixture
def make(make_lab):
    """make(**limits) -> a lab whose puppet is limited so."""

    def made(**limits):
        return make_lab(limits=limits)

    return made


def send(lab, customer, **options):
    return lab.start(payload={"customer": customer}, **options)


def states(lab, *traces):
    return [lab.trace(one)["status"] for one in traces]


def look(lab):
    """The rescuer's look, by a rescuer of nothing else."""

    class Heard:
        def heard_for(self, now_s):
            return 0.0

    made = Rescuer(lab.mesh.db, Heard(), lab.mesh.notes, Pace(), ring=lab.bells.ring, depths=lambda queues: {})
    assert made.tick()


def test_what_is_over_its_keys_limit_is_held_and_neither_rung_nor_claimable(make):
    lab = make(key=KEY, concurrency=2)
    traces = [send(lab, "a") for _ in range(3)]
    other = send(lab, "b")
    assert states(lab, *traces, other) == ["queued", "queued", "held", "queued"]
    assert {one.id for one in lab.bells.waiting} == {one.id for one in (*traces[:2], other)}
    row = lab.trace(traces[2])
    assert (row["waits_for"], row["lane"], row["rung_at"]) == ("limit", '"a"', None)


def test_the_end_of_one_admits_the_next_of_its_key_without_a_look(make):
    lab = make(key=KEY, concurrency=1)
    traces = [send(lab, "a") for _ in range(5)]
    lab.drain()
    assert states(lab, *traces) == ["done"] * 5
    began = [lab.trace(one)["admitted_at"] for one in traces]
    assert began == sorted(began)


def test_many_admissions_at_once_do_not_go_over_the_total(make):
    lab = make(key=KEY, total=2)
    for number in range(8):
        send(lab, number)
    lab.bells.waiting.clear()
    lab.rows("UPDATE mesh.traces SET status = 'held', waits_for = 'limit', rung_at = NULL, admitted_at = NULL")
    lanes = [Lane("default", "puppet", str(number)) for number in range(8)]
    won = race(*[lambda lane=lane: admission.admit(lab.mesh.db, lane) for lane in lanes])
    assert [type(one).__name__ for one in won if one is not None] == ["Ring", "Ring"]


def test_the_look_admits_what_a_crash_left_and_what_a_cancel_made_room_for(make):
    lab = make(key=KEY, concurrency=1)
    first, second, third = (send(lab, "a") for _ in range(3))
    steering.cancel(lab.mesh.db, tenant="default", trace_id=first.id, by="me")
    assert states(lab, second, third) == ["held", "held"]
    lab.bells.waiting.clear()
    look(lab)
    assert states(lab, second, third) == ["queued", "held"]
    lab.drain()
    assert states(lab, second, third) == ["done", "done"]


def test_no_more_begin_in_a_time_than_the_rate_says(make):
    lab = make(key=KEY, rate="2/min")
    traces = [send(lab, "a") for _ in range(5)]
    lab.drain()
    assert states(lab, *traces) == ["done", "done", "held", "held", "held"]
    lab.shift(59)
    look(lab)
    assert lab.drain() == 0
    lab.shift(61)
    look(lab)
    lab.drain()
    assert states(lab, *traces) == ["done"] * 4 + ["held"]


def test_the_keys_of_an_agent_with_a_total_have_their_turn(make):
    lab = make(key=KEY, total=1)
    big = [send(lab, "big") for _ in range(4)]
    small = [send(lab, "small") for _ in range(2)]
    mid = [send(lab, "mid") for _ in range(2)]
    lab.drain()
    name = {one.id: who for who, some in (("big", big), ("small", small), ("mid", mid)) for one in some}
    rows = lab.rows("SELECT id FROM mesh.traces ORDER BY admitted_at")
    assert [name[row["id"]] for row in rows] == ["big", "mid", "small", "big", "mid", "small", "big", "big"]


def test_tenants_have_limits_of_their_own(make):
    lab = make(key=KEY, total=1)
    send(lab, "a")
    held = send(lab, "b")
    lab.rows("UPDATE mesh.traces SET tenant_id = tenant_id || '-2', status = 'held', waits_for = 'limit', admitted_at = NULL"
             " WHERE id = %(id)s", id=held.id)  # fmt: skip
    lab.rows(
        "INSERT INTO mesh.agents SELECT 'default-2', id, version, queue, plan_hash, intents, accepts, spec FROM mesh.agents"
    )
    lab.rows("UPDATE mesh.envelopes SET tenant_id = 'default-2' WHERE trace_id = %(id)s", id=held.id)
    lab.rows("UPDATE mesh.events SET tenant_id = 'default-2' WHERE trace_id = %(id)s", id=held.id)
    look(lab)
    assert states(lab, held) == ["queued"]


def test_tenants_have_their_turn_however_many_keys_each_has(make, monkeypatch):
    lab = make(key=KEY, rate="100/min")
    traces = {key: send(lab, key) for key in "abcdz"}
    lab.rows(
        "INSERT INTO mesh.agents SELECT 'small', id, version, queue, plan_hash, intents, accepts, spec FROM mesh.agents"
    )
    at = {"id": traces["z"].id}
    lab.rows("UPDATE mesh.traces SET status = 'held', waits_for = 'limit', admitted_at = NULL, rung_at = NULL")
    lab.rows("UPDATE mesh.traces SET tenant_id = 'small' WHERE id = %(id)s", **at)
    lab.rows("UPDATE mesh.envelopes SET tenant_id = 'small' WHERE trace_id = %(id)s", **at)
    lab.rows("UPDATE mesh.events SET tenant_id = 'small' WHERE trace_id = %(id)s", **at)
    monkeypatch.setattr(scheduler, "BATCH", 2)
    look(lab)
    assert states(lab, *traces.values()) == ["queued", "held", "held", "held", "queued"]


def test_the_highest_priority_is_admitted_first_under_a_backlog(make):
    lab = make(key=KEY, total=1)
    backlog = [send(lab, key) for key in "abcabc"]
    urgent = send(lab, "z", priority=9)
    same_lane = send(lab, "b", priority=8)
    lab.drain()
    rows = [row["id"] for row in lab.rows("SELECT id FROM mesh.traces ORDER BY admitted_at")]
    assert rows[:3] == [backlog[0].id, urgent.id, same_lane.id]


def test_a_look_that_sees_many_lanes_goes_on_where_it_ended(make, monkeypatch):
    lab = make(key=KEY, rate="1/h")
    traces = [send(lab, f"c{number}") for number in range(5) for _ in range(2)]
    lab.drain()
    held = [one for one in traces if states(lab, one) == ["held"]]
    assert len(held) == 5
    lab.shift(3601)
    monkeypatch.setattr(scheduler, "LANES", 2)
    for admitted in (2, 4, 5):
        lab.mesh.scheduler.look()
        assert states(lab, *held).count("queued") == admitted


def test_a_delayed_trace_takes_no_place_before_its_time(make):
    lab = make(key=KEY, concurrency=1)
    later = send(lab, "a", delay=60)
    now = send(lab, "a")
    assert states(lab, later, now) == ["held", "queued"]
    lab.drain()
    lab.shift(61)
    look(lab)
    lab.drain()
    assert states(lab, later) == ["done"]


def test_a_paused_trace_is_not_admitted_before_its_resume(make):
    lab = make(key=KEY, concurrency=1)
    first, second = send(lab, "a"), send(lab, "a")
    steering.pause(lab.mesh.db, tenant="default", trace_id=second.id, by="me")
    lab.drain()
    assert states(lab, first, second) == ["done", "held"]
    steering.resume(lab.mesh.db, tenant="default", trace_id=second.id, by="me")
    look(lab)
    lab.drain()
    assert states(lab, second) == ["done"]


def test_a_dispatch_in_a_callers_transaction_is_admitted_after_its_commit(make, database_url):
    import sqlalchemy as sa

    lab = make(key=KEY, concurrency=1)
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    with Session(engine) as session:
        trace = lab.start(payload={"customer": "a"}, session=session)
        assert not lab.bells.waiting
        session.commit()
    engine.dispose()
    assert states(lab, trace) == ["queued"]
    lab.drain()
    assert states(lab, trace) == ["done"]


def test_an_intent_without_the_key_shares_a_lane_with_those_that_have_none_either(make):
    lab = make(key=KEY, concurrency=1)
    traces = [lab.start() for _ in range(2)]
    assert [lab.trace(one)["lane"] for one in traces] == ["null", "null"]
    assert states(lab, *traces) == ["queued", "held"]


def test_an_intent_that_a_key_cannot_be_made_of_is_refused(make):
    lab = make(key="payload.customer.name + '!'", concurrency=1)
    with pytest.raises(BadPayload, match="the key by which agent puppet is limited cannot be made of this intent"):
        lab.start(payload={"customer": 7})
    assert lab.rows("SELECT 1 FROM mesh.traces") == []


def test_a_key_of_what_is_not_known_at_dispatch_is_refused_with_its_place():
    with pytest.raises(BadRule, match=r"names something unknown at 1:1 \(got results\)"):
        define_agent("puppet", reasoner=lambda s: {"answer": 1}, limits={"key": "results.x", "concurrency": 1})
    with pytest.raises(BadAgentFile, match="a limit says concurrency, rate or total"):
        define_agent("puppet", reasoner=lambda s: {"answer": 1}, limits={"key": KEY})


def errand(wait, **boss):
    def helper(session):
        return {"answer": session.payload.get("n")}

    chain = {"chain": "boss", "steps": [{"delegate": "helper", "wait": wait, "intent": "work", "payload": {"n": 1}}]}
    return (
        define_agent("helper", reasoner=helper, limits={"concurrency": 1}, grants=["*"]),
        define_agent("boss", chain=chain, grants=["*"], **boss),
    )


def children(lab, boss):
    return lab.rows("SELECT id, status, waits_for, lane FROM mesh.traces WHERE parent_id = %(id)s", id=boss.id)


def test_a_child_its_parent_waits_for_runs_in_its_parents_place(make_lab):
    lab = make_lab(*errand(True, limits={"concurrency": 1}))
    blocker = lab.mesh.router.dispatch("work", "me", "helper", "c", {})
    lab.bells.waiting.clear()  # it never runs
    boss = lab.mesh.router.dispatch("work", "me", "boss", "c", {})
    lab.drain()
    assert states(lab, blocker, boss) == ["queued", "done"]
    assert [one["lane"] for one in children(lab, boss)] == [None]


def test_a_child_nobody_waits_for_is_held_by_its_own_agents_limits(make_lab):
    lab = make_lab(*errand(False))
    blocker = lab.mesh.router.dispatch("work", "me", "helper", "c", {})
    first = lab.bells.waiting.popleft()
    boss = lab.mesh.router.dispatch("work", "me", "boss", "c", {})
    lab.drain()
    (child,) = children(lab, boss)
    assert (child["status"], child["waits_for"], states(lab, boss)) == ("held", "limit", ["done"])
    lab.bells.ring([first])
    lab.drain()
    assert states(lab, blocker) == ["done"]
    assert children(lab, boss)[0]["status"] == "done"


def test_a_child_of_a_paused_parent_waits_for_its_parent_first_and_for_its_place_then(make_lab):
    lab = make_lab(*errand(True))
    lab.mesh.router.dispatch("work", "me", "helper", "c", {})
    lab.bells.waiting.clear()  # it never runs
    boss = lab.mesh.router.dispatch("work", "me", "boss", "c", {})
    runtime = lab.mesh.runtime("boss")
    with runtime.claimed(lab.bells.waiting.popleft()) as taken:
        steering.pause(lab.mesh.db, tenant="default", trace_id=boss.id, by="me")
        runtime.run(taken)
    assert [one["waits_for"] for one in children(lab, boss)] == ["parent"]
    steering.resume(lab.mesh.db, tenant="default", trace_id=boss.id, by="me")
    look(lab)
    assert [(one["status"], one["waits_for"]) for one in children(lab, boss)] == [("held", "limit")]


def test_lanes_that_nobody_uses_are_forgotten(make):
    lab = make(key=KEY, concurrency=1)
    send(lab, "a")
    lab.drain()
    lab.shift(90_000)
    send(lab, "b")
    lab.mesh.scheduler.forget()
    assert [row["key"] for row in lab.rows("SELECT key FROM mesh.lanes")] == ['"b"']
