"""Who is alive and who leads, by the database's time."""

from agentmesh.state import leases
from agentmesh.state.look import look
from agentmesh.testing import race


def silent(lab, after_s=2.0):
    return {row["id"]: row for row in leases.silent(lab.mesh.db, after_s=after_s)}


def lead(lab, holder):
    return look(lab.mesh.db, holder.worker_id, lease_s=5).leads


def test_a_beat_returns_what_names_the_worker(lab):
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0])
    [named] = leases.beat(lab.mesh.db, lab.hand.worker_id).named
    assert (named.kind, named.id, named.epoch) == ("call", lab.calls(trace)[0]["id"], 1)


def test_a_dead_worker_learns_it_with_its_next_beat(lab):
    holder = lab.worker()
    lab.kill(holder)
    assert leases.beat(lab.mesh.db, holder.worker_id).named is None


def test_a_worker_is_silent_by_the_databases_time(lab):
    holder = lab.worker()
    assert holder.worker_id not in silent(lab)
    lab.shift(5)
    assert silent(lab)[holder.worker_id]["expired"] is False
    lab.shift(11)
    assert silent(lab)[holder.worker_id]["expired"] is True


def test_a_worker_that_has_beaten_since_it_was_looked_at_is_not_declared_dead(lab):
    holder = lab.worker()
    lab.shift(60)
    row = silent(lab)[holder.worker_id]
    leases.beat(lab.mesh.db, holder.worker_id)
    assert not leases.declare_dead(lab.mesh.db, row, gone=False)
    assert not leases.declare_dead(lab.mesh.db, row, gone=True)


def test_a_beat_and_a_death_at_one_lock_agree(lab):
    holder = lab.worker()
    lab.shift(60)
    row = silent(lab)[holder.worker_id]
    beaten, dead = lab.at_lock(
        "workers",
        holder.worker_id,
        lambda: leases.beat(lab.mesh.db, holder.worker_id),
        lambda: leases.declare_dead(lab.mesh.db, row, gone=False),
    )
    assert (beaten.named is None) == dead


def test_a_worker_within_its_lease_is_not_declared_dead_unless_it_is_gone(lab):
    holder = lab.worker()
    lab.shift(5)
    row = silent(lab)[holder.worker_id]
    assert not leases.declare_dead(lab.mesh.db, row, gone=False)
    assert leases.declare_dead(lab.mesh.db, row, gone=True)


def test_eight_who_want_to_lead_leave_one_leader(lab):
    workers = [lab.worker(f"w{n}") for n in range(8)]
    leading = race(*[lambda w=w: lead(lab, w) for w in workers])
    assert leading.count(True) == 1


def test_leadership_passes_on_when_its_lease_is_over_and_not_before(lab):
    first, second = lab.worker("a"), lab.worker("b")
    assert lead(lab, first)
    assert not lead(lab, second)
    assert lead(lab, first)
    lab.shift(6)
    assert lead(lab, second)
    assert not lead(lab, first)
    assert lab.rows("SELECT term FROM mesh.leaders") == [{"term": 2}]


def test_who_does_not_lead_writes_nothing_by_looking(lab):
    first, second = lab.worker("a"), lab.worker("b")
    lead(lab, first)
    before = lab.rows("SELECT xmax, ctid FROM mesh.leaders")
    assert not lead(lab, second)
    assert lab.rows("SELECT xmax, ctid FROM mesh.leaders") == before
