"""Telling other systems: every committed event, in order, at least once, under the same id; no late commit slips behind."""

import json

import psycopg
import pytest

from agentmesh.coordination.exporter import Exporter, back_end
from agentmesh.errors import ExportRefused, Mistake
from agentmesh.infrastructure import faults
from agentmesh.records import new_id
from agentmesh.testing import until
from tests.sites import Site, saying

EVENT = """INSERT INTO mesh.events (trace_id, seq, tenant_id, name) VALUES (%s, 1, 'acme', 'NOTE')"""


def reader(lab, *, name="r", **options):
    """(exporter, the ids of what it has told)"""
    told = []
    return Exporter(
        lab.mesh.db, name, lambda rows: told.extend((row["trace_id"], row["seq"]) for row in rows), **options
    ), told


def caught_up(lab, exporter, name="r"):
    """Tell until all is told: transactions of others on this server hold a reader back while they last."""
    ids = "SELECT trace_id, seq FROM mesh.events ORDER BY xid DESC, trace_id DESC, seq DESC LIMIT 1"
    kept = "SELECT trace_id, seq FROM mesh.exports WHERE name = %(name)s"
    until(lambda: (exporter.look(), lab.rows(kept, name=name) == lab.rows(ids))[1])


def everything(lab):
    return {(row["trace_id"], row["seq"]) for row in lab.rows("SELECT trace_id, seq FROM mesh.events")}


def test_every_event_is_told_once_each_reader_at_its_own_pace(lab):
    lab.start({"tools": ["work"]})
    lab.drain()
    first, told = reader(lab)
    caught_up(lab, first)
    assert len(told) > 5
    assert first.look() == 0
    lab.start()
    lab.drain()
    caught_up(lab, first)
    assert (len(told), set(told)) == (len(set(told)), everything(lab))
    for trace in {one for one, _ in told}:
        assert [seq for one, seq in told if one == trace] == list(range(1, 1 + sum(one == trace for one, _ in told)))
    other, later = reader(lab, name="other")
    caught_up(lab, other, "other")
    assert set(later) == set(told)


def test_a_transaction_that_commits_late_does_not_slip_behind(lab):
    slow, quick = new_id(), new_id()
    exporter, told = reader(lab)
    with psycopg.connect(lab.url) as late:
        late.execute(EVENT, (slow,))
        with psycopg.connect(lab.url, autocommit=True) as other:
            other.execute(EVENT, (quick,))
        exporter.look()
        assert told == []  # neither: what came after it waits for it
        late.commit()
    caught_up(lab, exporter)
    assert sorted(told) == sorted([(slow, 1), (quick, 1)])
    lab.rows("DELETE FROM mesh.events WHERE tenant_id = 'acme'")


def test_killed_between_the_write_and_its_place_it_tells_the_same_again_under_the_same_ids(lab, tmp_path):
    lab.start()
    lab.drain()
    path = tmp_path / "out" / "events.jsonl"
    exporter = Exporter(lab.mesh.db, "file", back_end(f"jsonl:{path}", spans=None, headers={}))
    faults.arm("export.after_write", _die)
    with pytest.raises(KeyboardInterrupt):
        until(lambda: exporter.look() == -1)
    faults.disarm()
    before = path.read_bytes()
    path.write_bytes(before[:-20])  # … and in the middle of a line
    caught_up(lab, exporter, "file")
    lines = path.read_bytes().removeprefix(before[:-20]).decode().split("\n")
    assert (lines[0], lines[-1]) == ("", "")  # half a line stays by itself
    assert [json.loads(line)["id"] for line in lines[1:-1]] == [
        f"{row['trace_id']}:{row['seq']}" for row in lab.rows("SELECT * FROM mesh.events ORDER BY xid, trace_id, seq")
    ]
    assert exporter.look() == 0


def _die():
    raise KeyboardInterrupt


def test_what_a_back_end_refuses_stays_and_is_told_later(lab):
    lab.start()
    lab.drain()
    site = Site()
    caught_up(lab, *reader(lab)[:1])
    exporter = Exporter(lab.mesh.db, "es", back_end(f"elastic:{site.url}/events", spans=None, headers={"x-key": "k"}))
    refusals = [
        saying("no", status=503), saying("[]", kind="application/json"),
        saying(json.dumps({"items": [{"index": {"status": 400, "error": "no"}}]}), kind="application/json"),
    ]  # fmt: skip
    for answer in refusals:
        site.answer = answer
        with pytest.raises(ExportRefused):
            exporter.look()
    site.answer = saying('{"errors": false, "items": []}', kind="application/json")
    count = exporter.look()
    site.close()
    bodies = [one.body.decode().splitlines() for one in site.seen]
    assert len({tuple(one) for one in bodies}) == 1  # the same, under the same ids
    assert len(bodies[0]) == 2 * count
    assert json.loads(bodies[0][0]) == {"index": {"_index": "events", "_id": json.loads(bodies[0][1])["id"]}}
    assert isinstance(json.loads(bodies[0][1])["body"], str)


def test_an_ended_trace_is_told_as_spans_that_hold_no_payload(lab):
    from agentmesh.cli.export import _spans

    trace = lab.start(
        {"tools": ["work", "boom"], "strategy": "parallel", "require": "any"}, payload={"canary": "xyzzy"}
    )
    lab.drain()
    caught_up(lab, *reader(lab)[:1])
    site = Site()
    site.answer = saying("{}", kind="application/json")
    write = back_end(f"otlp:{site.url}", spans=lambda tenant, one: _spans(lab.mesh, tenant, one), headers={})
    for name in ("one", "again"):
        Exporter(lab.mesh.db, name, write).look()
    site.close()
    first, again = (one.body.decode() for one in site.seen)
    assert first == again
    assert "xyzzy" not in first
    [scope] = json.loads(first)["resourceSpans"][0]["scopeSpans"]
    by_name = {one["name"]: one for one in scope["spans"]}
    assert {"invoke_agent puppet", "execute_tool work", "execute_tool boom"} <= set(by_name)
    workflow = scope["spans"][0]
    assert workflow["name"].startswith("invoke_workflow ")
    assert by_name["invoke_agent puppet"]["parentSpanId"] == workflow["spanId"]
    assert by_name["execute_tool work"]["parentSpanId"] == by_name["invoke_agent puppet"]["spanId"]
    assert {one["traceId"] for one in scope["spans"]} == {trace.id.hex}
    assert (by_name["execute_tool boom"]["status"]["code"], by_name["execute_tool work"]["status"]["code"]) == (2, 1)
    said = {one["key"]: one["value"] for one in by_name["execute_tool work"]["attributes"]}
    assert said["gen_ai.operation.name"] == {"stringValue": "execute_tool"}
    assert said["gen_ai.tool.name"] == {"stringValue": "work"}
    published = next(one for one in scope["spans"] if one["name"].startswith("publish "))
    processed = [one for one in scope["spans"] if one["name"].startswith("process ")]
    assert {one["kind"] for one in processed} == {5}
    assert published["spanId"] in {one["parentSpanId"] for one in processed}


def test_spans_name_the_model_that_answered_and_link_hops_of_a_long_trace(lab):
    from agentmesh.cli.export import _spans

    trace = lab.start({"tools": ["work"]})
    asked = {"model": "small", "served": "small-0613", "finish": "stop", "input_tokens": 5, "output_tokens": 7}
    lab.answer()
    lab.rows(
        "UPDATE mesh.events SET name = 'REASONER_PROMPT', body = %(said)s WHERE name = 'REASONER_ACTION'",
        said=json.dumps(asked),
    )
    lab.shift(61)
    lab.drain()
    [scope] = _spans(lab.mesh, "default", trace.id)["resourceSpans"][0]["scopeSpans"]
    by_name = {one["name"].partition(" ")[0]: one for one in scope["spans"]}
    chat = {one["key"]: one["value"] for one in by_name["chat"]["attributes"]}
    assert chat["gen_ai.request.model"] == {"stringValue": "small"}
    assert chat["gen_ai.response.model"] == {"stringValue": "small-0613"}
    assert chat["gen_ai.response.finish_reasons"] == {"arrayValue": {"values": [{"stringValue": "stop"}]}}
    assert by_name["process"]["links"] == [{"traceId": trace.id.hex, "spanId": by_name["publish"]["spanId"]}]
    assert by_name["process"]["parentSpanId"] == by_name["invoke_agent"]["spanId"]


def test_verbose_events_are_sampled_by_trace_and_others_never(lab):
    traces = [lab.start({"tools": ["work"]}).id for _ in range(12)]
    lab.drain()
    caught_up(lab, *reader(lab)[:1])
    told = []
    Exporter(lab.mesh.db, "s", told.extend, sample=0.5, drop=["RUN_ONCE_START"]).look()
    ran = {row["trace_id"] for row in told if row["name"] == "TOOL_EXEC"}
    assert {row["trace_id"] for row in told if row["name"] == "EXEC_DONE"} == set(traces)
    assert ran == {one for one in traces if (one.int & 0xFFFFFFFF) / 2**32 < 0.5}
    assert not [row for row in told if row["name"] == "RUN_ONCE_START"]


def test_a_back_end_that_nobody_knows_is_refused():
    for target in ("", "jsonl:", "elastic:ftp://x/y", "kafka:x"):
        with pytest.raises(Mistake):
            back_end(target, spans=None, headers={})
