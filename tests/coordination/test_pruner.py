"""What is over is taken out whole, archived first, and nothing is lost wherever it is killed."""

import gzip
import itertools
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from agentmesh import define_agent, register_tool, testing
from agentmesh.coordination.archive import Archive
from agentmesh.coordination.pruner import Pruner, Wish
from agentmesh.errors import ArchiveRefused, TracePruned, UnknownTrace
from agentmesh.infrastructure import faults
from agentmesh.observation import timeline
from agentmesh.records import new_id
from agentmesh.state import leftovers, partitions
from tests.cli.test_dlq import parked
from tests.conftest import Lab, do_as_told

__all__ = ["parked"]

TABLES = ("traces", "envelopes", "events", "steps", "calls", "attempts", "effects", "memory", "contexts", "idempotency")
WEEK = 7 * 86400


@pytest.fixture
def prune(lab, tmp_path):
    """prune(**wish) -> the report; into the archive `tmp_path`/archive."""
    made = []

    def run(*, age_s=0.0, archive=True, survey=False, **wish):
        kept = Archive(tmp_path / "archive", tenant="default") if archive else None
        wish = Wish(age_s, wish.pop("letters_s", 0.0), **({"exact": True} | wish))
        made.append(Pruner(lab.mesh.db, tenant="default", wish=wish, archive=kept, by="anna"))
        return made[-1].survey() if survey else made[-1].run()

    yield run
    for one in made:
        one.close()
    faults.disarm()


def counts(lab):
    found = {table: lab.rows(f"SELECT count(*) AS n FROM mesh.{table}")[0]["n"] for table in TABLES}
    return {table: n for table, n in found.items() if n}


def archived(folder, kind="traces"):
    """Every document of the archive, by the file it stands in."""
    files = sorted(Path(folder).rglob(f"{kind}/**/*.gz"))
    return {str(one): [json.loads(line) for line in gzip.decompress(one.read_bytes()).splitlines()] for one in files}


def told(lab):
    """What rows of prunings say: the file of each trace."""
    rows = lab.rows("SELECT archive, ids FROM mesh.prunings WHERE kind = 'traces'")
    return {str(one): row["archive"] for row in rows for one in row["ids"]}


def test_an_ended_trace_goes_whole_and_every_row_of_it_is_in_the_archive(lab, prune, tmp_path):
    trace = lab.start({"tools": ["work", "work"]}, idempotency_key="k-1")
    lab.drain()
    before = {table: lab.rows(f"SELECT to_jsonb(x) - '{{words,xid}}'::text[] AS row FROM mesh.{table} x")
              for table in TABLES if table != "contexts"}  # fmt: skip
    done = prune()
    assert counts(lab) == {}
    [[one]] = archived(tmp_path).values()
    assert one["id"] == str(trace.id)
    assert one["trace"] == before.pop("traces")[0]["row"]
    for table, rows in before.items():
        assert sorted(map(json.dumps, one.get(table, []))) == sorted(json.dumps(row["row"]) for row in rows), table
    assert (done.traces, done.rows["events"], done.files) == (1, len(one["events"]), 1)
    assert lab.start(idempotency_key="k-1").id != trace.id  # the key went with its trace
    lab.drain()


def test_what_is_open_younger_parked_or_untold_stays_and_is_counted(lab, prune, parked):
    parked()
    lab.rows("INSERT INTO mesh.deliveries (id, tenant_id, trace_id, target) SELECT gen_random_uuid(), tenant_id, id, 'x'"
             " FROM mesh.traces WHERE id = %(id)s", id=ended(lab).id)  # fmt: skip
    ended(lab)
    running = lab.open("work")
    assert dict(prune(survey=True).kept) == {"parked": 1, "open": 1, "to deliver": 1}
    lab.rows("INSERT INTO mesh.exports (name, xid, trace_id, seq) VALUES ('slow', 0, gen_random_uuid(), 1)")
    done = prune()
    assert (done.traces, done.kept["to export"]) == (0, 1)
    lab.rows("DELETE FROM mesh.exports; DELETE FROM mesh.deliveries")
    assert prune().traces == 2
    assert len(lab.rows("SELECT 1 FROM mesh.traces")) == 2
    lab.drain()
    assert lab.trace(running)["status"] == "done"


def test_a_trace_is_as_old_as_its_end(lab, prune):
    trace = lab.open("work")
    lab.shift(7200)
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert dict(prune(age_s=3600).kept) == {"younger": 1}


def ended(lab):
    trace = lab.start(context_id=f"c-{new_id()}")
    lab.drain()
    return trace


def test_a_tree_goes_only_as_a_whole(make_lab):
    clerk = define_agent("clerk", chain={"chain": "ask", "steps": [{"approval": "ok?"}, {"finish": 1}]}, grants=["*"])
    lab = make_lab(clerk, chain={"chain": "send", "steps": [{"delegate": "clerk", "wait": False}, {"finish": 1}]})
    parent = lab.start()
    lab.drain()
    [child] = lab.rows("SELECT id FROM mesh.traces WHERE parent_id = %(id)s", id=parent.id)
    assert lab.trace(parent)["status"] == "done"
    pruner = Pruner(lab.mesh.db, tenant="default", wish=Wish(0.0, 0.0, exact=True), archive=None, by="anna")
    assert (pruner.run().traces, pruner.report.kept["open"]) == (0, 1)
    lab.mesh.people.decide(child["id"], by="anna")
    lab.drain()
    assert pruner.run().traces == 2
    pruner.close()


def test_a_pruned_trace_says_when_by_whom_and_where_it_is_kept(lab, prune, tmp_path):
    trace, other = ended(lab), ended(lab)
    prune()
    [path] = archived(tmp_path)
    for given in (str(trace.id), str(other.id)):
        with pytest.raises(TracePruned, match="by anna") as seen:
            timeline.resolve(lab.mesh.db, "default", given)
        assert path in seen.value.what
    with pytest.raises(TracePruned):
        timeline.header(lab.mesh.db, "default", trace.id)
    with pytest.raises(UnknownTrace) as never:
        timeline.resolve(lab.mesh.db, "default", str(new_id()))
    assert not isinstance(never.value, TracePruned)
    [row] = lab.rows("SELECT body::jsonb AS said FROM mesh.audit WHERE body::jsonb->>'action' = 'PRUNED'")
    assert (row["said"]["by"], row["said"]["archive"], row["said"]["traces"]) == ("anna", path, 2)


@pytest.mark.parametrize("at", ["prune.before_commit", "prune.after_commit"])
def test_killed_in_the_middle_nothing_is_lost_and_the_next_run_goes_on(lab, prune, tmp_path, at):
    every = {str(ended(lab).id) for _ in range(5)}
    code = (
        "import sys; from pathlib import Path; from agentmesh.coordination.archive import Archive;"
        "from agentmesh.coordination.pruner import Pruner, Wish; from agentmesh.infrastructure.database import Database;"
        "Pruner(Database(sys.argv[1]), tenant='default', wish=Wish(0.0, 0.0, exact=True, batch=2),"
        " archive=Archive(Path(sys.argv[2]), tenant='default'), by='anna').run()"
    )
    env = {"AGENTMESH_TEST_FAULTS": f"{at}=kill@2", "PATH": "/usr/bin:/bin"}
    killed = subprocess.run(
        [sys.executable, "-c", code, lab.url, str(tmp_path / "archive")], env=env, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    standing = {str(row["id"]) for row in lab.rows("SELECT id FROM mesh.traces")}
    assert len(standing) == {"prune.before_commit": 3, "prune.after_commit": 1}[at]
    assert standing | told(lab).keys() == every
    assert testing.broken(lab.url) == {}
    assert prune(batch=2).traces == len(standing)
    files = archived(tmp_path)
    assert {one: {doc["id"] for doc in files[path]} >= {one} for one, path in told(lab).items()} == dict.fromkeys(
        every, True
    )


def test_what_cannot_be_archived_is_not_deleted(lab, prune, tmp_path, monkeypatch):
    ended(lab)
    (tmp_path / "archive").write_text("a file where the folder should be")
    with pytest.raises(ArchiveRefused):
        prune()
    (tmp_path / "archive").unlink()
    monkeypatch.setattr("agentmesh.coordination.archive.Archive.ready", lambda _: (tmp_path / "archive").write_text(""))
    with pytest.raises(ArchiveRefused):
        prune()
    assert len(lab.rows("SELECT 1 FROM mesh.traces")) == 1


def test_a_trace_that_somebody_holds_is_left_to_the_next_run(lab, prune):
    trace = ended(lab)
    with lab.held("traces", trace.id):
        done = prune()
    assert (done.traces, done.kept["held"]) == (0, 1)
    assert prune().traces == 1


def test_a_fork_outlives_its_source_and_waits_for_none(make_lab, tools):
    register_tool("work", registry=tools)(lambda: 7)
    one, two = ({"tools": [{"tool": "work", "as": name}]} for name in ("one", "two"))
    steps = [one, two, {"finish": {"=": "results.one"}}]
    lab = make_lab(chain={"chain": "c", "steps": steps})
    trace = ended(lab)
    fork = lab.mesh.forks.fork(trace.id, 2, by="anna")
    pruner = Pruner(lab.mesh.db, tenant="default", wish=Wish(0.0, 0.0, exact=True), archive=None, by="anna")
    assert pruner.run().traces == 1
    pruner.close()
    lab.drain()
    assert (lab.trace(fork)["status"], lab.trace(fork)["result"]) == ("done", 7)
    [row] = lab.rows("SELECT count(*) AS n FROM mesh.traces")
    assert row["n"] == 1


def test_memory_keeps_its_newest_version_and_what_an_open_trace_may_go_back_to(lab, prune, tmp_path):
    def versions():
        return [row["version"] for row in lab.rows("SELECT version FROM mesh.memory WHERE key = 'k' ORDER BY version")]

    engine = lab.mesh.memory("c-1")
    for value in range(3):
        engine.store("k", value, "long_term", origin="anna", trusted=True)
    waiting = lab.open("work")
    lab.rows("UPDATE mesh.memory SET at = at - interval '2 days'; UPDATE mesh.traces SET started_at = started_at"
             " - interval '3 days'")  # fmt: skip
    prune()
    assert versions() == [1, 2, 3]
    lab.rows("UPDATE mesh.traces SET started_at = mesh.mesh_now()")
    prune()
    assert versions() == [3]
    assert {doc["row"]["version"] for docs in archived(tmp_path, "memory").values() for doc in docs} == {1, 2}
    lab.drain()
    assert lab.trace(waiting)["status"] == "done"


def test_a_value_put_aside_goes_with_the_last_row_that_refers_to_it(lab, prune, tmp_path):
    big = "x" * 100_000
    first, second = (lab.start(payload={"text": big}, context_id=f"c-{n}") for n in range(2))
    lab.drain()
    lab.rows("UPDATE mesh.blobs SET touched_at = touched_at - interval '1 day'")
    number = len(lab.rows("SELECT 1 FROM mesh.blobs"))
    with lab.held("traces", second.id):
        prune()
    assert len(lab.rows("SELECT 1 FROM mesh.blobs")) == number
    prune()
    assert lab.rows("SELECT 1 FROM mesh.blobs") == []
    kept = [doc["row"] for docs in archived(tmp_path, "blobs").values() for doc in docs]
    assert len(kept) == number
    assert any(big in json.dumps(row["value"]) for row in kept)
    assert first.id != second.id


def test_settled_letters_and_workers_long_gone_have_their_own_time(lab, prune, parked):
    parked()
    lab.rows("UPDATE mesh.dead_letters SET settled_at = mesh.mesh_now(), settled_as = 'discarded'")
    lab.kill(lab.worker("old"))
    done = prune(letters_s=3600)
    assert (done.traces, done.rows["dead_letters"], done.rows["workers"]) == (1, 0, 1)
    assert prune().rows["dead_letters"] == 1


def test_of_two_runs_at_once_each_trace_is_taken_by_one(lab, prune, tmp_path):
    every = {str(ended(lab).id) for _ in range(12)}
    reports = testing.race(lambda: prune(batch=3), lambda: prune(batch=3))
    assert sum(one.traces for one in reports) + prune().traces == 12
    docs = [doc["id"] for docs in archived(tmp_path).values() for doc in docs]
    assert (len(docs), set(docs)) == (12, every)


def test_a_context_that_somebody_begins_with_meanwhile_stays(lab):
    lab.mesh.memory("c-9").store("k", 1, "long_term", origin="anna", trusted=True)
    lab.rows("DELETE FROM mesh.memory")
    [now] = lab.rows("SELECT mesh.mesh_now() + interval '1 hour' AS later")
    gone = []
    prunes = threading.Thread(
        target=lambda: gone.append(leftovers.empty(lab.mesh.db, "default", now["later"], ["c-9"]))
    )
    with lab.held("contexts", "c-9"):
        prunes.start()
        lab.until_blocked(1)
        trace = lab.open("work", context_id="c-9")  # which the one that waits has not seen
    prunes.join(timeout=20)
    assert gone == [0]
    lab.drain()
    assert lab.trace(trace)["status"] == "done"


def test_who_begins_with_a_context_that_goes_makes_it_anew(lab):
    lab.mesh.memory("c-9").store("k", 1, "long_term", origin="anna", trusted=True)
    lab.rows("DELETE FROM mesh.memory")
    trace = lab.start({"tools": ["work"]}, context_id="c-9")
    claims = threading.Thread(target=lab.answer)
    with psycopg.connect(lab.url) as other:
        other.execute("DELETE FROM mesh.contexts")
        claims.start()
        lab.until_blocked(1)
        other.commit()
    claims.join(timeout=20)
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert lab.rows("SELECT id FROM mesh.contexts") == [{"id": "c-9"}]


# --- partitions


@pytest.fixture
def weekly(own_database, tools, tmp_path):
    """A lab in a database of its own whose events of this week have a partition, `events_now`."""
    register_tool("work", registry=tools)(lambda: 1)
    with psycopg.connect(own_database, autocommit=True) as connection:
        now = connection.execute("SELECT extract(epoch FROM now()) * 1000").fetchone()[0]
        low = int(now) // partitions.WEEK_MS * partitions.WEEK_MS
        low, high = partitions.first_id(low), partitions.first_id(low + partitions.WEEK_MS)
        connection.execute("ALTER TABLE mesh.events DETACH PARTITION mesh.events_first")
        connection.execute(
            f"ALTER TABLE mesh.events ATTACH PARTITION mesh.events_first FOR VALUES FROM (MINVALUE) TO ('{low}')"
        )
        connection.execute(
            f"CREATE TABLE mesh.events_now PARTITION OF mesh.events FOR VALUES FROM ('{low}') TO ('{high}')"
        )
    mesh, bells = testing.hand_mesh(
        own_database, root=tmp_path, flags={}, tools=tools,
        agents={"puppet": define_agent("puppet", reasoner=do_as_told, tools=["work"])},
    )  # fmt: skip
    yield Lab(own_database, mesh, bells)
    mesh.close()


@pytest.fixture
def prune_weekly(weekly, tmp_path):
    made = []

    def run(**wish):
        kept = Archive(tmp_path / "archive", tenant="default")
        made.append(Pruner(weekly.mesh.db, tenant="default", wish=Wish(WEEK, WEEK, **wish), archive=kept, by="anna"))
        return made[-1].run()

    yield run
    for one in made:
        one.close()


def partition_names(lab):
    return [one.name for one in partitions.listed(lab.mesh.db)]


def test_weeks_to_come_have_their_partitions_ahead_without_a_gap(weekly):
    assert partitions.make_ahead(weekly.mesh.db) != []
    known = partitions.listed(weekly.mesh.db)
    assert all(one.high == two.low for one, two in itertools.pairwise(known))
    assert partitions.make_ahead(weekly.mesh.db) == []
    ended(weekly)
    assert weekly.rows("SELECT count(*) AS n FROM mesh.events_default") == [{"n": 0}]


def test_rows_of_a_time_to_come_keep_its_partition_from_being_made_and_nothing_else(weekly):
    late = UUID(int=partitions.listed(weekly.mesh.db)[-1].high.int + 1)
    weekly.rows(
        "INSERT INTO mesh.events (trace_id, seq, tenant_id, name) VALUES (%(id)s, 1, 'default', 'NOTE')", id=late
    )
    assert partitions.make_ahead(weekly.mesh.db) == []
    ended(weekly)


def test_a_week_that_is_over_is_dropped_with_its_events_which_are_archived(weekly, prune_weekly, tmp_path):
    every = {str(ended(weekly).id) for _ in range(3)}
    weekly.shift(WEEK)  # its end is less than a week ago
    assert prune_weekly().traces == 0
    weekly.shift(3 * WEEK)
    done = prune_weekly()
    assert (done.traces, done.dropped[0]) == (3, "events_now")
    [docs] = archived(tmp_path).values()
    assert {doc["id"]: len(doc["events"]) > 3 for doc in docs} == dict.fromkeys(every, True)
    assert weekly.rows("SELECT count(*) AS n FROM mesh.events") == [{"n": 0}]
    assert testing.broken(weekly.url) == {}


def test_a_week_with_a_trace_that_stays_is_deleted_from(weekly, prune_weekly):
    ended(weekly)
    stays = weekly.open("work")
    weekly.shift(3 * WEEK)
    assert prune_weekly().traces == 1
    assert "events_now" in partition_names(weekly)
    assert {row["trace_id"] for row in weekly.rows("SELECT trace_id FROM mesh.events")} == {stays.id}
    assert testing.broken(weekly.url, quiet=False) == {}


def test_a_partition_that_lost_its_last_trace_in_a_killed_run_is_dropped_by_the_next(weekly, prune_weekly):
    ended(weekly)
    weekly.shift(3 * WEEK)
    faults.arm("prune.after_commit", die)
    with pytest.raises(KeyboardInterrupt):
        prune_weekly()
    faults.disarm()
    assert weekly.rows("SELECT count(*) > 0 AS left FROM mesh.events") == [{"left": True}]
    assert "events_now" in prune_weekly().dropped


def test_a_trace_that_is_accepted_while_a_partition_is_dropped_keeps_it(weekly):
    now = next(one for one in partitions.listed(weekly.mesh.db) if one.name == "events_now")
    late = new_id()
    accept = "INSERT INTO mesh.events (trace_id, seq, tenant_id, name) VALUES (%s, 1, 'default', 'NOTE')"
    with psycopg.connect(weekly.url) as other:
        other.execute(accept, (late,))
        assert not partitions.drop(weekly.mesh.db, now)  # busy: nobody waits behind it for long
        other.rollback()
    assert partitions.drop(weekly.mesh.db, now)


def die():
    raise KeyboardInterrupt
