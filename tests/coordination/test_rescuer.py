"""The rescuer's look: bury, give back, time out, ring again; two leaders are harmless, one bad row stops nothing."""

import pytest

from agentmesh.coordination.rescuer import SELDOM, Pace, Rescuer
from agentmesh.state.look import look
from agentmesh.testing import race


class Ears:
    """A heart that has heard the database for so long."""

    def __init__(self, seconds=1000.0):
        self.seconds = seconds

    def heard_for(self, now_s):
        return self.seconds


@pytest.fixture
def make_rescuer(lab):
    def make(*, heard=1000.0, depths=lambda queues: {}, pace=None, notes=None, ring=None):
        return Rescuer(
            lab.mesh.db,
            Ears(heard),
            notes or lab.mesh.notes,
            pace or Pace(),
            ring=ring or lab.bells.ring,
            depths=depths,
        )

    return make


def state(lab, holder):
    return lab.rows("SELECT state FROM mesh.workers WHERE id = %(id)s", id=holder.worker_id)[0]["state"]


def keep_hand_alive(lab):
    lab.rows("UPDATE mesh.workers SET beat_at = mesh.mesh_now() WHERE id = %(id)s", id=lab.hand.worker_id)


def test_a_worker_silent_for_its_lease_is_buried_and_its_work_goes_on(lab, make_rescuer):
    dead = lab.worker()
    trace = lab.open("work")
    lab.bells.waiting.clear()
    lab.claim(lab.calls(trace)[0], dead)
    lab.shift(11)
    keep_hand_alive(lab)
    assert make_rescuer().tick()
    assert state(lab, dead) == "dead"
    lab.drain()
    assert trace.result(0) == 1
    assert lab.outcomes(trace) == ["lost", "won"]


def test_memory_whose_time_is_over_is_forgotten_by_the_leader(lab, make_rescuer):
    lab.mesh.memory("c-1").write({"old": 1, "new": 2})
    lab.rows("UPDATE mesh.memory SET forget_at = mesh.mesh_now() - interval '1 s' WHERE key = 'old'")
    assert make_rescuer().tick()
    assert lab.mesh.memory("c-1").snapshot() == {"long_term:new": 2}


def test_a_rescuer_whose_own_beats_were_broken_declares_nobody_dead(lab, make_rescuer):
    silent = lab.worker()
    lab.shift(60)
    keep_hand_alive(lab)
    make_rescuer(heard=9.0).tick()
    assert state(lab, silent) == "alive"
    make_rescuer(heard=11.0).tick()
    assert state(lab, silent) == "dead"


def test_a_process_that_is_provably_gone_is_buried_before_its_lease_is_over(lab, make_rescuer):
    gone, silent = lab.worker("gone", pid=1), lab.worker("silent")
    lab.shift(3)
    make_rescuer(heard=0.0).tick()
    assert (state(lab, gone), state(lab, silent)) == ("dead", "alive")


def test_a_worker_of_another_host_is_never_provably_gone(lab, make_rescuer):
    far = lab.worker("far", pid=1)
    lab.rows("UPDATE mesh.workers SET host = 'elsewhere' WHERE id = %(id)s", id=far.worker_id)
    lab.shift(3)
    make_rescuer().tick()
    assert state(lab, far) == "alive"


def test_who_does_not_lead_does_nothing(lab, make_rescuer):
    other = lab.worker("leader")
    look(lab.mesh.db, other.worker_id, lease_s=60)
    lab.start(delay=1)
    lab.shift(5)
    assert not make_rescuer().tick()
    assert not lab.bells.waiting


def test_two_leaders_at_once_are_harmless(lab, make_rescuer):
    trace = lab.open("work", {"tool": "work", "as": "b"}, strategy="parallel")
    lab.bells.waiting.clear()
    dead = lab.worker()
    for call in lab.calls(trace):
        lab.claim(call, dead)
    lab.kill(dead)
    rescuers = [make_rescuer() for _ in range(4)]
    race(*[one.tick for one in rescuers])
    assert [one["epoch"] for one in lab.calls(trace)] == [2, 2]
    assert len(lab.bells.waiting) == 2
    lab.drain()
    assert trace.result(0) == {"work": 1, "b": 1}


def test_one_bad_row_stops_nothing(lab, make_rescuer):
    traces = [lab.open("work") for _ in range(5)]
    lab.bells.waiting.clear()
    dead = lab.worker()
    for trace in traces:
        lab.claim(lab.calls(trace)[0], dead)
    lab.kill(dead)
    bad = lab.calls(traces[0])[0]["id"]
    lab.rows(
        f"CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = '{bad}'"
        " THEN RAISE EXCEPTION 'bad row'; END IF; RETURN NEW; END $$"
    )
    lab.rows("CREATE TRIGGER bad BEFORE UPDATE ON mesh.calls FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        make_rescuer().tick()
        assert [lab.calls(one)[0]["status"] for one in traces] == ["running", *["ready"] * 4]
    finally:
        lab.rows("DROP TRIGGER bad ON mesh.calls")
    make_rescuer().tick()
    lab.drain()
    assert {one.status() for one in traces} == {"done"}


def test_a_broker_that_is_away_stops_no_rescue(lab, make_rescuer):
    from agentmesh.errors import BrokerUnreachable

    traces = [lab.open("work") for _ in range(3)]
    dead = lab.worker()
    for trace in traces:
        lab.claim(lab.calls(trace)[0], dead)
    lab.kill(dead)

    def refuse(_):
        raise BrokerUnreachable("away")

    make_rescuer(ring=refuse).tick()
    assert {lab.calls(one)[0]["status"] for one in traces} == {"ready"}


def test_who_leads_goes_on_to_lead_and_seals_the_audit_while_the_broker_is_away(lab, make_rescuer):
    from agentmesh.errors import BrokerUnreachable

    def away(_):
        raise BrokerUnreachable("away")

    lab.open("work")
    lab.shift(30)
    keep_hand_alive(lab)
    rescuer = make_rescuer(depths=away)
    assert [rescuer.tick() for _ in range(2)] == [True, True]
    assert lab.rows("SELECT 1 FROM mesh.audit WHERE seq IS NULL") == []


def test_a_row_whose_message_is_still_queued_is_not_rung_again(lab, make_rescuer):
    lab.start()
    lab.bells.waiting.clear()
    lab.shift(30)
    make_rescuer(depths=lambda queues: dict.fromkeys(queues, 1)).tick()
    assert not lab.bells.waiting


def test_a_row_whose_message_was_lost_is_rung_again_as_often_as_messages_are_missing(lab, make_rescuer):
    for _ in range(3):
        lab.start()
    lab.bells.waiting.clear()
    lab.shift(30)
    make_rescuer(depths=lambda queues: dict.fromkeys(queues, 1)).tick()
    assert len(lab.bells.waiting) == 2


def test_a_row_that_was_overtaken_is_rung_again_however_full_its_queue_is(lab, make_rescuer):
    old = lab.start()
    new = lab.start()
    lab.bells.waiting.clear()
    lab.rows("UPDATE mesh.traces SET rung_at = rung_at - interval '20 s' WHERE id = %(id)s", id=old.id)
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s WHERE id = %(id)s", w=lab.hand.worker_id, id=new.id)
    make_rescuer(depths=lambda queues: dict.fromkeys(queues, 1000)).tick()
    assert [ring.id for ring in lab.bells.waiting] == [old.id]
    lab.rows("UPDATE mesh.traces SET worker_id = NULL")


def test_timers_fire_by_the_databases_clock(lab, make_rescuer):
    trace = lab.start({"answer": 1}, delay=3600)
    make_rescuer().tick()
    assert not lab.bells.waiting
    lab.shift(3601)
    keep_hand_alive(lab)
    make_rescuer().tick()
    lab.drain()
    assert trace.result(0) == 1


def test_a_database_that_is_away_is_survived(lab, make_rescuer):
    import psycopg

    class Away:
        def once(self, *_):
            raise psycopg.OperationalError("away")

    rescuer = make_rescuer()
    assert rescuer.tick()
    rescuer._db = Away()
    assert not rescuer.tick()


def test_a_rescuer_that_looks_silent_itself_declares_nobody_dead(lab, make_rescuer):
    """The database's clock jumped, or this whole host was frozen: everybody's beats look old at once."""
    other = lab.worker()
    lab.shift(60)
    make_rescuer().tick()
    assert (state(lab, other), state(lab, lab.hand)) == ("alive", "alive")


def test_a_call_whose_tool_no_worker_had_for_long_is_given_up_and_its_slot_goes_on(lab, make_rescuer):
    lab.rows("UPDATE mesh.workers SET tools = '{twice}'")
    trace = lab.open("work", "twice", strategy="fallback")
    lab.bells.waiting.clear()
    make_rescuer(pace=Pace(no_worker_s=60)).tick()
    assert [one["status"] for one in lab.calls(trace)] == ["ready", "held"]
    lab.shift(61)
    keep_hand_alive(lab)
    make_rescuer(pace=Pace(no_worker_s=60)).tick()
    work, other = lab.calls(trace)
    assert (work["status"], work["error"]["code"], other["status"]) == ("failed", "E_NO_WORKER", "ready")
    lab.drain()
    assert trace.status() == "done"


def test_a_call_waits_for_a_worker_that_has_its_tool_however_old_it_is(lab, make_rescuer):
    lab.rows("UPDATE mesh.workers SET tools = '{work}'")
    trace = lab.open("work")
    lab.shift(3600)
    keep_hand_alive(lab)
    make_rescuer(pace=Pace(no_worker_s=60)).tick()
    assert lab.calls(trace)[0]["status"] == "ready"


def test_a_leader_with_nothing_to_do_asks_once_a_look(lab, make_rescuer):
    rescuer, said = make_rescuer(), []
    rescuer.tick()

    class Counted:
        def once(self, sql, params=None):
            said.append(sql)
            return lab.mesh.db.once(sql, params)

    rescuer._db = Counted()
    for _ in range(SELDOM - 1):
        assert rescuer.tick()
    assert len(said) == SELDOM - 1
