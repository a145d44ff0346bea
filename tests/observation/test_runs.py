"""A run's books: counted in the database, and able to say that something is wrong."""

from __future__ import annotations

from typing import Any

from agentmesh.observation import health, runs


def finished(lab: Any, *actions: Any) -> Any:
    trace = lab.start(*actions)
    lab.drain()
    return trace


def test_progress_counts_what_ended_and_what_is_open(lab: Any) -> None:
    ids = [finished(lab, {"tools": ["work"]}).id, finished(lab, {"tools": ["boom"]}).id]
    stranger = lab.start()
    ids.append(lab.start().id)
    seen = runs.progress(lab.mesh.db, "default", ids)
    assert (seen.done, seen.failed, seen.open, seen.ended) == (1, 1, 1, 2)
    assert stranger.id not in ids


def test_a_failure_that_another_tool_made_good_is_one_that_was_survived(lab: Any) -> None:
    trace = finished(lab, {"tools": ["boom", "work"], "strategy": "fallback"})
    assert runs.survived(lab.mesh.db, "default", [trace.id]) == 1
    times, whole = runs.durations(lab.mesh.db, "default", [trace.id])
    assert len(times) == 1
    assert 0 < times[0] <= whole + 0.001


def test_the_books_of_a_sound_run_show_nothing_lost_and_nothing_twice(lab: Any) -> None:
    ids = [finished(lab, {"tools": ["work", "quick"]}).id for _ in range(3)]
    seen = runs.ledger(lab.mesh.db, "default", ids)
    assert (seen.accepted, seen.done, seen.lost, seen.twice) == (3, 3, 0, 0)
    assert seen.row["calls_won"] == seen.row["calls_done"] == 6


def test_the_books_notice_a_trace_without_an_end(lab: Any) -> None:
    done, stuck = finished(lab), lab.start()
    assert runs.ledger(lab.mesh.db, "default", [done.id, stuck.id]).lost == 1


def test_the_books_notice_what_was_recorded_twice(lab: Any) -> None:
    trace = finished(lab, {"tools": ["work"]})
    attempt = next(one for one in lab.attempts(trace) if one["call_id"])
    lab.rows("UPDATE mesh.attempts SET outcome = 'failed' WHERE id = %(id)s", id=attempt["id"])
    assert runs.ledger(lab.mesh.db, "default", [trace.id]).row["calls_won"] == 0
    lab.rows(
        "INSERT INTO mesh.attempts SELECT gen_random_uuid(), tenant_id, trace_id, step_id, call_id, kind, 2, epoch, worker_id,"
        " child, idem_key, started_at, ended_at, 'won' FROM mesh.attempts WHERE id = %(id)s",
        id=attempt["id"],
    )
    lab.rows("UPDATE mesh.attempts SET outcome = 'won' WHERE id = %(id)s", id=attempt["id"])
    assert runs.ledger(lab.mesh.db, "default", [trace.id]).twice == 1
    lab.rows("DELETE FROM mesh.attempts WHERE n = 2")  # the promises are checked when a test is over


def test_what_a_killed_worker_held_is_told_by_tool_and_outcome(lab: Any) -> None:
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0], lab.worker("doomed"))
    assert health.held_by(lab.mesh.db, "default", "doomed") == 1
    lab.rows("UPDATE mesh.attempts SET outcome = 'lost', ended_at = mesh.mesh_now() WHERE call_id IS NOT NULL")
    assert [
        (one["kind"], one["name"], one["outcome"], one["n"]) for one in runs.rescued(lab.mesh.db, "default", [trace.id])
    ] == [("tool", "work", "lost", 1)]
    lab.rows("DELETE FROM mesh.attempts WHERE call_id IS NOT NULL")
    lab.rows("UPDATE mesh.calls SET status = 'ready', worker_id = NULL, claim_id = NULL")


def test_health_tells_who_beats_and_what_waits_longest(lab: Any) -> None:
    assert health.oldest_ready(lab.mesh.db, "default") is None
    trace = lab.start()
    assert health.oldest_ready(lab.mesh.db, "default")["trace_id"] == trace.id
    assert "hand" in health.alive(lab.mesh.db)
    lab.kill(lab.worker("gone"))
    assert health.workers(lab.mesh.db) == {"alive": 1, "dead": 1, "stuck": 0}
    assert "gone" not in health.alive(lab.mesh.db)
