"""How agents are, and what pausing one stops: claims, and nothing that has begun."""

import pytest

from agentmesh import testing
from agentmesh.coordination.lifecycle import instance_state, state_of
from agentmesh.errors import UnknownAgent
from agentmesh.records import Ring
from agentmesh.state import rings


def state(lab):
    return {row["id"]: row["state"] for row in lab.mesh.lifecycle.agents()}["puppet"]


def test_a_paused_agent_claims_nothing_and_its_running_work_goes_on(lab):
    begun = lab.open("work")
    assert lab.mesh.lifecycle.pause("puppet", by="me")
    waiting = lab.start()
    lab.drain()
    assert (begun.status(), waiting.status()) == ("done", "queued")
    assert state(lab) == "paused"
    assert lab.mesh.lifecycle.resume("puppet", by="me")
    lab.shift(3)
    due = rings.due(lab.mesh.db, again_s=2, cap_s=10, batch=10)
    assert [row["id"] for row in due] == [waiting.id]
    lab.bells.ring([Ring("trace", waiting.id, 1, due[0]["queue"], due[0]["task"], waiting.id)])
    lab.drain()
    assert waiting.status() == "done"


def test_what_waits_for_a_paused_agent_is_not_rung_again_and_is_not_stuck(lab, database_url):
    lab.start()
    lab.mesh.lifecycle.pause("puppet", by="me")
    lab.rows(
        "UPDATE mesh.traces SET rung_at = rung_at - interval '1 hour', created_at = created_at - interval '1 hour'"
    )
    assert rings.due(lab.mesh.db, again_s=2, cap_s=10, batch=10) == []
    assert testing.broken(database_url) == {}
    lab.mesh.lifecycle.resume("puppet", by="me")
    assert len(rings.due(lab.mesh.db, again_s=2, cap_s=10, batch=10)) == 1
    lab.drain()


def test_pausing_twice_changes_nothing_and_a_new_announcement_does_not_resume(lab):
    life = lab.mesh.lifecycle
    assert [life.pause("puppet", by="me"), life.pause("puppet", by="you")] == [True, False]
    lab.mesh.registry.announce(lab.mesh.db, ["default"])
    (row,) = life.agents()
    assert (row["state"], row["paused_by"]) == ("paused", "me")
    assert [life.resume("puppet", by="me"), life.resume("puppet", by="me")] == [True, False]
    with pytest.raises(UnknownAgent):
        life.pause("nobody", by="me")


def test_instances_are_told_from_their_workers(lab):
    holder = lab.worker("one")
    lab.rows("UPDATE mesh.workers SET agents = '{puppet}' WHERE id = %(id)s", id=holder.worker_id)
    (row,) = lab.mesh.lifecycle.instances("puppet")
    assert (row["name"], row["state"]) == ("one", "idle")
    lab.kill(holder)
    assert lab.mesh.lifecycle.instances("puppet")[0]["state"] == "error"


@pytest.mark.parametrize(
    ("paused_at", "workers", "queued", "running", "state"),
    [(None, 1, 3, 0, "idle"), (None, 1, 0, 1, "running"), (1, 1, 0, 1, "paused"), (None, 0, 1, 0, "error"),
     (None, 0, 0, 1, "error"), (None, 0, 0, 0, "done")],
)  # fmt: skip
def test_how_an_agent_is(paused_at, workers, queued, running, state):
    row = {"paused_at": paused_at, "workers": workers, "queued": queued, "running": running}
    assert state_of(row) == state


@pytest.mark.parametrize(
    ("worker_state", "holds", "paused_at", "state"),
    [("alive", 0, None, "idle"), ("alive", 1, 1, "running"), ("alive", 0, 1, "paused"), ("gone", 0, None, "done"),
     ("dead", 1, None, "error")],
)  # fmt: skip
def test_how_an_instance_is(worker_state, holds, paused_at, state):
    assert instance_state({"worker_state": worker_state, "holds": holds, "paused_at": paused_at}) == state
