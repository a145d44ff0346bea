"""What begins by the clock: each moment once, in its own zone, and the missed ones as the schedule says."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import psycopg
import pytest

from agentmesh import define_agent
from agentmesh.coordination.rescuer import Pace, Rescuer
from agentmesh.coordination.timetable import moments
from agentmesh.errors import BadAgentFile, ScheduleTaken, UnknownSchedule
from agentmesh.infrastructure import faults
from agentmesh.state import schedules
from agentmesh.testing import race

HOURLY = {"agent": "puppet", "intent": "work", "payload": {"do": []}, "cron": "0 * * * *", "timezone": "UTC",
          "missed": "once", "priority": 5}  # fmt: skip


@pytest.fixture
def due(lab):
    """due(hours, **changes) -> the lab, with a schedule whose moment came so many hours ago."""

    def make(hours=0, **changes):
        lab.mesh.timetable.add("default", "hourly", by="me", **HOURLY | changes)
        lab.rows(
            "UPDATE mesh.schedules SET next_at = date_trunc('hour', mesh.mesh_now()) - make_interval(hours => %(h)s)",
            h=hours,
        )
        lab.rows(
            "UPDATE mesh.schedules SET cron = extract(minute FROM mesh.mesh_now()) || ' * * * *',"
            " next_at = date_trunc('minute', mesh.mesh_now()) - make_interval(hours => %(h)s)", h=hours,
        )  # fmt: skip
        return lab

    return make


def fired(lab):
    return lab.rows("SELECT * FROM mesh.traces ORDER BY id")


def test_a_moment_that_came_begins_a_trace_with_an_envelope_of_its_own(due):
    lab = due()
    lab.mesh.timetable.fire()
    (trace,) = fired(lab)
    (envelope,) = lab.rows("SELECT kid FROM mesh.envelopes WHERE trace_id = %(id)s", id=trace["id"])
    assert (trace["agent"], trace["from_id"], envelope["kid"]) == ("puppet", "schedule:hourly", lab.mesh.key.kid)
    assert trace["payload"]["scheduled_at"].endswith(":00+00:00")
    lab.drain()
    assert fired(lab)[0]["status"] == "done"
    assert schedules.listed(lab.mesh.db, "default")[0]["next_at"] > datetime.now(UTC)  # noqa: TID251 - the server's clock is ours


def test_eight_who_see_one_moment_fire_it_once(due):
    lab = due()
    seen = schedules.due(lab.mesh.db, batch=10)[0]
    race(*[lambda: lab.mesh.timetable._fire(seen)] * 8)
    assert len(fired(lab)) == 1
    assert schedules.listed(lab.mesh.db, "default")[0]["fired"] == 1


@pytest.mark.parametrize(("missed", "began"), [("skip", 1), ("once", 1), ("all", 4)])
def test_what_was_missed_for_three_hours_begins_as_it_says(due, missed, began):
    lab = due(3, missed=missed)
    for _ in range(6):
        lab.mesh.timetable.fire()
    assert len(fired(lab)) == began


def test_a_moment_long_gone_is_skipped_by_skip_alone():
    now = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
    row = {"next_at": datetime(2026, 5, 4, 9, tzinfo=UTC), "cron": "0 * * * *", "timezone": "UTC"}
    nine, ten, one = (datetime(2026, 5, 4, hour, tzinfo=UTC) for hour in (9, 10, 13))
    assert moments(row | {"missed": "skip"}, now) == (None, one)
    assert moments(row | {"missed": "once"}, now) == (nine, one)
    assert moments(row | {"missed": "all"}, now) == (nine, ten)


def test_nine_in_berlin_stays_nine_in_berlin_over_the_change_of_clocks():
    row = {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "missed": "all"}
    at, seen = datetime(2026, 3, 27, 8, tzinfo=UTC), []
    for _ in range(4):
        _, at = moments(row | {"next_at": at}, at)
        seen.append((at.astimezone(ZoneInfo("Europe/Berlin")).hour, at.astimezone(UTC).hour))
    assert seen == [(9, 8), (9, 7), (9, 7), (9, 7)]


def test_one_whose_agent_is_gone_says_so_and_stops_no_other(due):
    lab = due()
    lab.mesh.timetable.add("default", "orphan", by="me", **HOURLY | {"agent": "nobody"})
    lab.rows("UPDATE mesh.schedules SET next_at = mesh.mesh_now() - interval '5 s' WHERE id = 'orphan'")
    lab.mesh.timetable.fire()
    rows = {row["id"]: row for row in schedules.listed(lab.mesh.db, "default")}
    assert (rows["orphan"]["error"]["code"], rows["orphan"]["fired"]) == ("E_AGENT_UNKNOWN", 0)
    assert rows["orphan"]["next_at"] > rows["hourly"]["fired_at"]
    assert len(fired(lab)) == 1


def test_a_commit_that_fails_leaves_the_moment_to_be_fired(due):
    lab = due()
    lab.rows(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$"
    )
    lab.rows("CREATE TRIGGER bad BEFORE INSERT ON mesh.envelopes FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        lab.mesh.timetable.fire()
    finally:
        lab.rows("DROP TRIGGER bad ON mesh.envelopes; DROP FUNCTION refuse")
    assert fired(lab) == []
    lab.mesh.timetable.fire()
    assert len(fired(lab)) == 1


def test_a_rescuer_that_does_not_lead_fires_too_and_rings(due):
    lab = due()

    class Heard:
        def heard_for(self, now_s):
            return 0.0

    lab.rows("INSERT INTO mesh.leaders (name, worker_id, until)"
             " SELECT 'rescuer', gen_random_uuid(), mesh.mesh_now() + interval '1 min'")  # fmt: skip
    made = Rescuer(lab.mesh.db, Heard(), lab.mesh.notes, Pace(), ring=lab.bells.ring, depths=lambda queues: {},
                   also=[lab.mesh.timetable.fire])  # fmt: skip
    assert not made.tick()
    assert [ring.id for ring in lab.bells.waiting] == [one["id"] for one in fired(lab)]


def test_an_agents_file_declares_its_schedules_and_takes_them_back(lab):
    def declare(**specs):
        made = define_agent("puppet", reasoner=lambda s: {"answer": 1}, schedules=specs)
        lab.mesh.timetable.declare("default", "puppet", {name: one.row() for name, one in made.schedules.items()})
        return {row["id"]: row for row in schedules.listed(lab.mesh.db, "default")}

    night = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "intent": "work"}
    before = declare(night=night, noon=night | {"cron": "0 12 * * *"})
    assert set(before) == {"puppet.night", "puppet.noon"}
    lab.rows("UPDATE mesh.schedules SET next_at = next_at - interval '3 days'")  # missed while nobody was there
    after = declare(night=night)
    assert set(after) == {"puppet.night"}
    assert after["puppet.night"]["next_at"] < before["puppet.night"]["next_at"]
    assert declare(night=night | {"timezone": "UTC"})["puppet.night"]["next_at"] > after["puppet.night"]["next_at"]
    with pytest.raises(ScheduleTaken, match="an agent's file declares this schedule"):
        lab.mesh.timetable.remove("default", "puppet.night", by="me")
    with pytest.raises(UnknownSchedule):
        lab.mesh.timetable.remove("default", "nothing", by="me")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cron": "61 * * * *"}, "this is no cron expression"),
        ({"timezone": "Europe/Nowhere"}, "no time zone has this name"),
    ],
)
def test_a_file_with_a_bad_schedule_is_refused(wrong, said):
    with pytest.raises(BadAgentFile, match=said):
        define_agent("x", reasoner=lambda s: 1, schedules={"n": {"cron": "0 3 * * *", "intent": "work"} | wrong})


def test_a_crash_after_the_commit_costs_a_ring_alone(due):
    lab = due()
    faults.arm("timer.after_fire", lambda: (_ for _ in ()).throw(psycopg.OperationalError("gone")))
    lab.mesh.timetable.fire()
    faults.disarm()
    lab.mesh.timetable.fire()
    assert len(fired(lab)) == 1
