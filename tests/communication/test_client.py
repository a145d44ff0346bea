"""What a dispatch rings, and when: nothing before its rows are committed."""

import psycopg
import pytest

from agentmesh.errors import DatabaseUnreachable
from agentmesh.infrastructure import faults


@pytest.fixture
def rung(lab):
    """For every doorbell of a dispatch: whether others could see its trace when it rang."""
    seen = []

    def ring(rings):
        known = [lab.rows("SELECT 1 FROM mesh.traces WHERE id = %(id)s", id=one.id) for one in rings]
        seen.extend(bool(one) for one in known)

    lab.mesh.client._ring = ring
    return seen


def test_f03_what_rings_is_committed(lab, rung):
    lab.start()
    lab.start(idempotency_key="k")
    assert rung == [True, True]


def test_f04_a_dispatch_that_fails_in_its_commit_rings_nothing(lab, rung):
    lab.rows(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'refused in the commit'; END $$"
    )
    lab.rows(
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON mesh.traces DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    try:
        with pytest.raises(psycopg.errors.RaiseException):
            lab.start()
    finally:
        lab.rows("DROP TRIGGER late ON mesh.traces")
    assert rung == []
    assert lab.rows("SELECT 1 FROM mesh.traces") == []


def drop_every_session(lab):
    lab.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_f07_a_producer_whose_connections_died_meanwhile_notices_nothing(lab):
    first = lab.start()
    lab.mesh.client._agents.clear()
    drop_every_session(lab)
    second = lab.start()
    drop_every_session(lab)
    assert {first.status(), second.status()} == {"queued"}


def test_f07_a_producer_whose_database_went_away_is_told_by_name(lab):
    lab.start()
    lab.mesh.client._agents.clear()
    faults.arm("wire.before_send", faults.ACTIONS["drop"])
    with pytest.raises(DatabaseUnreachable):
        lab.start()
    faults.disarm()
    assert lab.start().status() == "queued"
