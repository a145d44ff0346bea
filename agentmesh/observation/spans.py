"""An ended trace as OpenTelemetry spans, in the JSON of OTLP over HTTP, under the names of the GenAI conventions.

invoke_workflow ▸ invoke_agent ▸ chat / execute_tool; publish and process beside it where a call went over a queue. Ids are
made of our own, so that a span told twice is the same span. Prompts, arguments and results stay here. Names are those of
semantic-conventions 0.66b2 (status Development).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from agentmesh.infrastructure.database import Row

INTERNAL, CLIENT, PRODUCER, CONSUMER = 1, 3, 4, 5
LONG_S = 60.0
OK, ERROR = 1, 2
Span = dict[str, Any]


def spans(trace: Row, steps: Iterable[Row], calls: Iterable[Row], attempts: Iterable[Row]) -> list[Span]:
    """Every span of one trace, the root first."""
    root, own = _span_id(trace["root_id"], "workflow"), _span_id(trace["id"], "agent")
    conversation = {"gen_ai.conversation.id": trace["context_id"]}
    agent = {"gen_ai.agent.id": trace["agent"], "gen_ai.agent.name": trace["agent"],
             "gen_ai.agent.version": trace["agent_version"]}  # fmt: skip
    mine = {"agentmesh.trace.id": str(trace["id"]), "agentmesh.tenant.id": trace["tenant_id"]}
    since, until, error = trace["created_at"], trace["ended_at"], trace["error"]
    made = []
    if trace["id"] == trace["root_id"]:
        name = trace["chain"] or trace["intent"]
        said = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name} | conversation | mine
        made.append(_span(trace, (root, None), f"invoke_workflow {name}", (since, until), said, error))
    parent = root if trace["parent_id"] is None else _span_id(trace["parent_id"], "agent")
    said = {"gen_ai.operation.name": "invoke_agent"} | agent | conversation | mine
    made.append(_span(trace, (own, parent), f"invoke_agent {trace['agent']}", (since, until), said, error))
    for step in steps:
        if step["model"] is not None:
            said = {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": step["model"],
                "gen_ai.response.model": step["served"] or step["model"],
                "gen_ai.response.finish_reasons": step["finishes"],
                "gen_ai.usage.input_tokens": step["input_tokens"], "gen_ai.usage.output_tokens": step["output_tokens"],
                "agentmesh.step.id": str(step["id"]),
            }  # fmt: skip
            ids, times = (_span_id(step["id"], "chat"), own), (step["started_at"], step["ended_at"] or until)
            said |= conversation | mine
            made.append(_span(trace, ids, f"chat {step['model']}", times, said, step["error"], kind=CLIENT))
    tools = {call["id"]: call for call in calls}
    for one in attempts:
        call = tools.get(one["call_id"])
        if call is not None:
            said = {
                "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call["tool"], "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": str(call["id"]), "agentmesh.step.id": str(call["step_id"]),
                "agentmesh.attempt": one["n"], "agentmesh.epoch": one["epoch"], "agentmesh.outcome": one["outcome"],
            }  # fmt: skip
            failed = (one["error"] or {"code": one["outcome"]}) if one["outcome"] not in {"won", "released"} else None
            ids, times = (_span_id(one["id"], "tool"), own), (one["started_at"], one["ended_at"] or until)
            made.append(_span(trace, ids, f"execute_tool {call['tool']}", times, said | agent | mine, failed))
            if not call["inline"]:
                made += _hop(trace, call, one, own, mine)
    return made


def _hop(trace: Row, call: Row, attempt: Row, parent: str, mine: Mapping[str, Any]) -> Iterator[Span]:
    """How an attempt came over its queue: published when its call was made, processed where it ran. Of a trace that took
    longer than a minute the two are joined by a link."""
    queue, publish = call["queue"], _span_id(call["id"], "publish")
    said = {
        "messaging.system": "agentmesh",
        "messaging.destination.name": queue,
        "messaging.message.id": str(call["id"]),
        **mine,
    }
    if attempt["n"] == 1:
        sent = {"messaging.operation.name": "publish", "messaging.operation.type": "send", **said}
        times = (call["created_at"], call["created_at"])
        yield _span(trace, (publish, parent), f"publish {queue}", times, sent, None, kind=PRODUCER)
    taken = {"messaging.operation.name": "process", "messaging.operation.type": "process", **said}
    long = (trace["ended_at"] - trace["created_at"]).total_seconds() > LONG_S
    ids, times = (
        (_span_id(attempt["id"], "process"), parent if long else publish),
        (attempt["started_at"], attempt["ended_at"]),
    )
    made = _span(trace, ids, f"process {queue}", times, taken, None, kind=CONSUMER)
    yield made | ({"links": [{"traceId": trace["root_id"].hex, "spanId": publish}]} if long else {})


def request(found: Iterable[Span], *, mesh: str, version: str) -> dict[str, Any]:
    """The body of a POST to …/v1/traces."""
    about = {"service.name": "agentmesh", "service.namespace": mesh, "service.version": version}
    scope = {"name": "agentmesh", "version": version}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(about)},
                               "scopeSpans": [{"scope": scope, "spans": list(found)}]}]}  # fmt: skip


def _span(
    trace: Row, ids: tuple[str, str | None], name: str, times: tuple[datetime | None, datetime | None],
    said: Mapping[str, Any], error: Any, *, kind: int = INTERNAL,
) -> Span:  # fmt: skip
    (span_id, parent), (since, until) = ids, times
    start = since or trace["created_at"]
    code = (error.get("code") if isinstance(error, dict) else None) if error else None
    failed = bool(error)
    made: Span = {
        "traceId": trace["root_id"].hex, "spanId": span_id, "name": name, "kind": kind, "startTimeUnixNano": _nano(start),
        "endTimeUnixNano": _nano(max(until or start, start)),
        "attributes": _attributes(dict(said) | ({"error.type": code or "E_INTERNAL"} if failed else {})),
        "status": {"code": ERROR, "message": str(code or "")} if failed else {"code": OK},
    }  # fmt: skip
    return made | ({"parentSpanId": parent} if parent is not None else {})


def _span_id(row: UUID, what: str) -> str:
    """Eight bytes that are always the same for the same row: of its random half, told apart by what it is."""
    mark = {"workflow": 1, "agent": 2, "chat": 3, "tool": 4, "publish": 5, "process": 6}[what]
    return f"{(row.int & ((1 << 64) - 1)) ^ mark:016x}"


def _nano(at: datetime) -> str:
    return str(int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1000)


def _attributes(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in said.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(one) for one in value]}}
        case _:
            return {"stringValue": str(value)}
