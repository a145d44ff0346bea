"""The rows as an outbox: what is due, what was refused, what was overtaken."""

from agentmesh.coordination.rescuer import _ring
from agentmesh.state import rings


def due(lab, again_s=2.0, cap_s=10.0):
    return rings.due(lab.mesh.db, again_s=again_s, cap_s=cap_s, batch=100)


def age(lab, seconds, table="traces"):
    lab.rows(f"UPDATE mesh.{table} SET rung_at = mesh.mesh_now() - make_interval(secs => %(s)s)", s=seconds)


def test_what_was_just_rung_is_not_due(lab):
    lab.start()
    assert due(lab) == []


def test_a_ring_that_the_broker_refused_is_due_at_once_as_new(lab):
    trace = lab.start()
    rings.reset(lab.mesh.db, list(lab.bells.waiting))
    [row] = due(lab)
    assert (row["id"], row["new"]) == (trace.id, True)


def test_a_reset_that_comes_after_the_claim_changes_nothing(lab):
    trace = lab.start()
    ring = lab.bells.waiting[0]
    lab.answer()
    before = lab.trace(trace)
    rings.reset(lab.mesh.db, [ring])
    rings.mark(lab.mesh.db, [ring])
    assert lab.trace(trace) == before


def test_a_ring_of_an_old_epoch_neither_marks_nor_resets(lab):
    trace = lab.open("work")
    ring = lab.bells.waiting[0]
    lab.settle(lab.claim(lab.calls(trace)[0]), "released")
    before = lab.calls(trace)
    rings.reset(lab.mesh.db, [ring])
    assert lab.calls(trace) == before


def test_a_delayed_trace_is_due_when_its_time_has_come(lab):
    lab.start(delay=30)
    assert due(lab) == []
    lab.shift(31)
    assert [row["new"] for row in due(lab)] == [True]


def test_a_retry_is_due_when_its_back_off_is_over(lab):
    from agentmesh.records import Failure

    trace = lab.open("lasting")
    lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=Failure("E_TOOL", "x", after_s=40))
    assert due(lab) == []
    lab.shift(41)
    assert [row["kind"] for row in due(lab)] == ["call"]


def test_rings_back_off_up_to_the_cap(lab):
    lab.start()
    waits = []
    for _ in range(5):
        wait = next(seconds for seconds in range(1, 60) if age(lab, seconds + 0.5) or due(lab))
        waits.append(wait)
        rings.mark(lab.mesh.db, [_ring(row) for row in due(lab)])
    assert waits == [2, 4, 8, 10, 10]


def test_a_paused_trace_is_not_rung_and_neither_is_its_step(lab):
    first, second = lab.start(), lab.open("work")
    lab.settle(lab.claim(lab.calls(second)[0]), result=1)
    lab.rows("UPDATE mesh.traces SET paused_at = now(), rung_at = NULL")
    lab.rows("UPDATE mesh.steps SET rung_at = NULL")
    assert due(lab) == []
    lab.rows("UPDATE mesh.traces SET paused_at = NULL")
    assert {row["trace_id"] for row in due(lab)} == {first.id, second.id}


def test_a_held_trace_is_not_rung_for_its_steps(lab):
    trace = lab.open("work")
    lab.settle(lab.claim(lab.calls(trace)[0]), result=1)
    lab.rows("UPDATE mesh.steps SET rung_at = NULL")
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s", w=lab.hand.worker_id)
    assert [row for row in due(lab) if row["kind"] == "step"] == []


def test_ready_rows_are_counted_by_queue(lab):
    lab.start()
    lab.start()
    assert rings.ready(lab.mesh.db, ["agent.puppet", "tools"]) == {"agent.puppet": 2}


def test_what_was_overtaken_is_seen_by_queue_and_priority(lab):
    lab.start()
    later = lab.start(priority=5)
    lab.bells.waiting.popleft()
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s WHERE id = %(id)s", w=lab.hand.worker_id, id=later.id)
    assert set(rings.overtaken(lab.mesh.db, ["agent.puppet"])) == {("agent.puppet", 5)}


def test_f23_a_row_that_was_rung_again_overtakes_nobody(lab):
    trace = lab.start()
    [ring] = lab.bells.waiting
    rings.mark(lab.mesh.db, [ring])
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s WHERE id = %(id)s", w=lab.hand.worker_id, id=trace.id)
    assert rings.overtaken(lab.mesh.db, ["agent.puppet"]) == {}


def test_the_first_ring_of_a_timer_is_no_repetition(lab):
    trace = lab.start(delay=30)
    lab.shift(31)
    rings.mark(lab.mesh.db, [_ring(row) for row in due(lab)])
    assert lab.trace(trace)["rings"] == 0
    lab.shift(60)
    rings.mark(lab.mesh.db, [_ring(row) for row in due(lab)])
    assert lab.trace(trace)["rings"] == 1


def test_a_row_in_somebodys_hands_is_neither_waited_for_nor_marked(lab):
    first, second = lab.start(), lab.start()
    both = list(lab.bells.waiting)
    lab.rows("UPDATE mesh.traces SET rings = 0")
    with lab.held("traces", first.id):
        rings.mark(lab.mesh.db, both)
    assert [lab.trace(one)["rings"] for one in (first, second)] == [0, 1]


def test_rings_of_every_kind_are_marked(lab):
    trace = lab.open("work")
    lab.start()
    [call, other] = lab.bells.waiting
    lab.settle(lab.claim(lab.calls(trace)[0]), result=1)
    rings.mark(lab.mesh.db, [call, other, lab.ring(trace)])
    counted = lab.rows(
        "SELECT 'trace' AS kind, rings FROM mesh.traces WHERE status = 'queued'"
        " UNION ALL SELECT 'step', rings FROM mesh.steps WHERE status = 'joined' ORDER BY kind"
    )
    assert [(one["kind"], one["rings"]) for one in counted] == [("step", 1), ("trace", 1)]
