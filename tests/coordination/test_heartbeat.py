"""The heart: beats, compares rows with notes, and gives back what nothing here runs."""

import os
import subprocess
import sys
import threading

import pytest

from agentmesh.coordination.heartbeat import Heart, here
from agentmesh.coordination.notes import Notes
from agentmesh.infrastructure import faults
from agentmesh.records import new_id


@pytest.fixture
def heart(lab):
    """A heart that has registered and whose beats the test gives itself."""
    me = here(name="hand", queues=[], agents=[], tools=[], version="1", lease_s=10)
    made = Heart(lab.mesh.db, me, lab.mesh.notes, beat_s=1, ring=lab.bells.ring)
    made._register()
    lab.hand = lab.mesh.notes.holder()
    return made


def heard(lab, heart):
    """For how long it says to have heard the database, at the time that this one shows now."""
    [row] = lab.rows("SELECT extract(epoch FROM mesh.mesh_now())::float8 AS now_s")
    return heart.heard_for(row["now_s"])


def test_a_claim_whose_answer_was_lost_is_released_by_the_second_beat(lab, heart):
    trace = lab.open("work")
    lab.bells.waiting.clear()
    lab.claim(lab.calls(trace)[0])
    heart.beat()
    assert lab.calls(trace)[0]["status"] == "running"
    heart.beat()
    assert lab.calls(trace)[0]["status"] == "ready"
    assert lab.outcomes(trace) == ["released"]
    lab.drain()
    assert trace.result(0) == 1


def test_a_noted_claim_is_never_released(lab, heart):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    with lab.mesh.notes.note("call", claimed.row["id"], claimed.attempt_id):
        for _ in range(3):
            heart.beat()
    assert lab.calls(trace)[0]["status"] == "running"
    lab.settle(claimed)


def test_an_unnoted_claim_seen_once_and_gone_is_not_held_against_the_next_one(lab, heart):
    trace = lab.open("work", {"tool": "work", "as": "b"}, strategy="parallel")
    first, second = lab.calls(trace)
    claimed = lab.claim(first)
    heart.beat()
    lab.settle(claimed)
    other = lab.claim(second)
    heart.beat()
    assert lab.calls(trace)[1]["status"] == "running"
    lab.settle(other)


def test_a_held_trace_nobody_runs_is_released_by_the_second_beat(lab, heart):
    trace = lab.start({"answer": 4})
    runtime = lab.mesh.runtime("puppet")
    runtime.prepare_context(lab.bells.waiting.popleft())
    heart.beat()
    heart.beat()
    assert lab.trace(trace)["worker_id"] is None
    lab.drain()
    assert trace.result(0) == 4


def test_a_dead_childs_work_is_given_back_at_once(lab, heart):
    from agentmesh.state.traces import Holder

    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait(timeout=20)
    trace = lab.open("work")
    lab.bells.waiting.clear()
    lab.claim(lab.calls(trace)[0], Holder(lab.hand.worker_id, child.pid))
    heart.beat()
    assert lab.calls(trace)[0]["status"] == "ready"
    assert lab.outcomes(trace) == ["lost"]


def test_a_living_childs_noted_work_is_left_alone(lab, heart):
    from agentmesh.state.traces import Holder

    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0], Holder(lab.hand.worker_id, os.getpid()))
    with lab.mesh.notes.note("call", claimed.row["id"], claimed.attempt_id):
        heart.beat()
        heart.beat()
    assert lab.calls(trace)[0]["status"] == "running"
    lab.settle(claimed)


def test_a_worker_found_dead_registers_anew_and_takes_new_work(lab, heart):
    before = lab.mesh.notes.worker_id
    lab.kill(lab.hand)
    heart.beat()
    after = lab.mesh.notes.worker_id
    assert after != before
    assert lab.rows("SELECT state FROM mesh.workers WHERE id = %(id)s", id=after) == [{"state": "alive"}]
    trace = lab.start({"answer": 1})
    lab.drain()
    assert trace.result(0) == 1


def test_a_zombie_that_registered_anew_cannot_finish_what_it_held_before(lab, heart):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    lab.kill(lab.hand)
    heart.beat()
    from agentmesh.state import rescue

    [row] = rescue.orphans(lab.mesh.db, batch=10)
    rescue.give_back(lab.mesh.db, row, "lost")
    assert lab.settle(claimed) is None


def test_unbroken_hearing_begins_anew_after_a_beat_that_failed(lab, heart):
    heart.beat()
    assert heard(lab, heart) > 0

    class Away:
        def once(self, *_):
            import psycopg

            raise psycopg.OperationalError("away")

    db, heart._db = heart._db, Away()
    heart.beat()
    assert heard(lab, heart) == 0
    heart._db = db
    heart.beat()
    assert 0 < heard(lab, heart) < 5


def test_a_beat_never_raises_when_one_row_cannot_be_given_back(lab, heart):
    trace = lab.open("work", {"tool": "work", "as": "b"}, strategy="parallel")
    for call in lab.calls(trace):
        lab.claim(call)
    bad = lab.calls(trace)[0]["id"]
    lab.rows(
        f"CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = '{bad}' AND"
        " NEW.status = 'ready' THEN RAISE EXCEPTION 'bad row'; END IF; RETURN NEW; END $$"
    )
    lab.rows("CREATE TRIGGER bad BEFORE UPDATE ON mesh.calls FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        heart.beat()
        heart.beat()
        heart.beat()
        assert [one["status"] for one in lab.calls(trace)] == ["running", "ready"]
        assert heard(lab, heart) > 0
    finally:
        lab.rows("DROP TRIGGER bad ON mesh.calls")
    heart.beat()
    heart.beat()
    assert [one["status"] for one in lab.calls(trace)] == ["ready", "ready"]


def test_the_heart_goes_on_beating_after_an_error_nobody_foresaw(lab):
    me = here(name="tough", queues=[], agents=[], tools=[], version="1", lease_s=10)
    notes = Notes()
    heart = Heart(lab.mesh.db.alone(deadline_s=2), me, notes, beat_s=0.02, ring=lab.bells.ring)
    seen = threading.Event()
    beats = []

    def odd():
        beats.append(1)
        if len(beats) > 2:
            seen.set()
        raise ZeroDivisionError

    heart.start()
    faults.arm("beat.before", odd)
    assert seen.wait(timeout=5)
    faults.disarm()
    heart.stop()


def test_leaving_gives_the_worker_up(lab):
    me = here(name="leaver", queues=[], agents=[], tools=[], version="1", lease_s=10)
    notes = Notes()
    notes.rename(new_id())
    heart = Heart(lab.mesh.db.alone(deadline_s=2), me, notes, beat_s=0.05, ring=lab.bells.ring)
    heart.start()
    heart.stop()
    assert lab.rows("SELECT state FROM mesh.workers WHERE name = 'leaver'") == [{"state": "gone"}]


def test_unbroken_hearing_begins_anew_after_a_jump_of_the_databases_clock(lab, heart):
    heart.beat()
    heart._heard_since -= 100
    heart.beat()
    assert heard(lab, heart) > 100
    lab.shift(60)
    heart.beat()
    assert heard(lab, heart) < 5


def test_a_clock_that_has_jumped_since_the_last_beat_makes_nobody_silent(lab, heart):
    heart.beat()
    heart._heard_since -= 100
    assert heard(lab, heart) > 100
    lab.shift(60)
    assert heard(lab, heart) == 0


def test_a_process_that_was_frozen_has_heard_nobody(lab, heart):
    heart.beat()
    heart._heard_since -= 100
    heart._last -= 6
    assert heard(lab, heart) == 0
