"""What a process notes of its claims, and where its parent sees it."""

import os

import pytest

from agentmesh.coordination.notes import CHILDREN, Notes
from agentmesh.errors import BadSettings
from agentmesh.records import new_id


def in_child(notes, slot):
    """What the parent sees while child number `slot` holds a claim, whether that was it, and what it sees afterwards."""
    claim = new_id()
    noted, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            notes.become_child(slot)
            with notes.note("call", new_id(), claim):
                os.write(noted[1], b"x")
                os.read(go[0], 1)
            code = 0
        except BadSettings:
            code = 2
        finally:
            os.write(noted[1], b"x")
            os._exit(code)
    os.read(noted[0], 1)
    seen = notes.claims().keys() == {claim}
    os.write(go[1], b"x")
    _, status = os.waitpid(child, 0)
    for end in (*noted, *go):
        os.close(end)
    return seen, os.waitstatus_to_exitcode(status), notes.claims()


@pytest.mark.parametrize("slot", [0, 1, 2, 7, 500, CHILDREN - 1])
def test_a_child_of_a_pool_that_has_grown_is_noted_as_well(slot):
    assert in_child(Notes(children=2), slot) == (True, 0, {})


def test_a_child_without_a_slot_claims_nothing():
    assert in_child(Notes(children=2), CHILDREN) == (False, 2, {})


def test_more_children_than_there_are_slots_are_refused():
    with pytest.raises(BadSettings, match=f"at most {CHILDREN}"):
        Notes(children=CHILDREN + 1)


def test_a_process_that_is_nobodys_child_notes_for_itself():
    notes, claim = Notes(), new_id()
    with notes.note("call", new_id(), claim):
        assert notes.claims().keys() == {claim}
    assert notes.claims() == {}
