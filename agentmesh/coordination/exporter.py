"""The Exporter: committed events, told to other systems. A reader of its own, which nobody waits for.

What was written is remembered after it was: a crash in between tells the same events again, under the same ids. What a
back end does not take stays where it is, and is told when it takes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import structlog

from agentmesh.errors import ExportRefused, MeshError, Mistake
from agentmesh.infrastructure import outbound
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.state import exports
from agentmesh.state.events import ENDS

log = structlog.get_logger("agentmesh.export")

VERBOSE = frozenset({"REASONER_PROMPT", "MEMORY_WRITE", "REASONER_FEEDBACK", "TOOL_EXEC"})
"""What sampling may leave out: nothing that a trace's state is rebuilt from is told any less for it."""
BATCH = 500
WITHIN_S = 10.0
MOST_BYTES = 16 << 20
Write = Callable[[Sequence[Row]], None]
Spans = Callable[[str, UUID], dict[str, Any]]
"""The body that tells the spans of one trace."""


class Exporter:
    """Tells one back end. `sample` is the share of traces whose verbose events are told; `drop` names events that never are."""

    def __init__(
        self, db: Database, name: str, write: Write, *, sample: float = 1.0, drop: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self._db, self._name, self._write = db, name, write
        self._sample, self._drop = sample, frozenset(drop)

    def look(self) -> int:
        """Tell what is new, at most one batch; how many events that were. Raises ExportRefused: then none was."""
        rows = exports.following(self._db, self._name, limit=BATCH)
        if not rows:
            return 0
        if told := [row for row in rows if self._wanted(row)]:
            self._write(told)
        point("export.after_write")
        exports.move(self._db, self._name, rows[-1])
        return len(rows)

    def _wanted(self, row: Row) -> bool:
        if row["name"] in self._drop:
            return False
        return row["name"] not in VERBOSE or _share(row["trace_id"]) < self._sample


def back_end(target: str, *, spans: Spans, headers: Mapping[str, str]) -> Write:
    """What writes to `jsonl:PATH`, `elastic:URL/index` or `otlp:URL`. Raises Mistake."""
    kind, _, place = target.partition(":")
    if kind == "jsonl" and place:
        return lambda rows: _append(Path(place), rows)
    if kind in {"elastic", "otlp"} and place.startswith(("http://", "https://")):
        if kind == "elastic":
            base, _, index = place.rstrip("/").rpartition("/")
            return lambda rows: _bulk(base, index, rows, headers)
        return lambda rows: _tell_spans(f"{place.rstrip('/')}/v1/traces", rows, spans, headers)
    raise Mistake("no back end is named so", value=target, expected="jsonl:PATH, elastic:URL/INDEX or otlp:URL",
                  next="agentmesh export --help")  # fmt: skip


def document(row: Row) -> dict[str, Any]:
    """One event as other systems keep it; its `id` is the same whenever it is told."""
    return {"id": f"{row['trace_id']}:{row['seq']}", "@timestamp": row["at"], "tenant": row["tenant_id"],
            "trace_id": row["trace_id"], "seq": row["seq"], "event": row["name"], "step_id": row["step_id"],
            "call_id": row["call_id"], "body": row["body"]}  # fmt: skip


def _append(path: Path, rows: Sequence[Row]) -> None:
    """Whole lines, on the disk when this returns; behind half a line that a crash has left, a line of its own."""
    text = "".join(_json(document(row)) + "\n" for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise ExportRefused(f"the file cannot be written: {exc.strerror}", value=str(path)) from exc


def _bulk(base: str, index: str, rows: Sequence[Row], headers: Mapping[str, str]) -> None:
    lines = []
    for row in rows:
        said = document(row)
        # a body has any form, and an index wants one: it goes in as text
        lines += [_json({"index": {"_index": index, "_id": said["id"]}}), _json(said | {"body": _json(said["body"])})]
    answer = _post(f"{base}/_bulk", "\n".join(lines) + "\n", "application/x-ndjson", headers)
    refused = [one["index"] for one in answer.get("items", []) if one["index"].get("status", 500) >= 300]
    if refused:
        raise ExportRefused(
            "documents were refused", value=refused[0].get("error"), expected="an index that takes them"
        )


def _tell_spans(url: str, rows: Sequence[Row], spans: Spans, headers: Mapping[str, str]) -> None:
    """The spans of every trace that ended among these events."""
    for tenant, trace_id in dict.fromkeys((row["tenant_id"], row["trace_id"]) for row in rows if row["name"] in ENDS):
        _post(url, _json(spans(tenant, trace_id)), "application/json", headers)


def _post(url: str, body: str, media: str, headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        with outbound.client(outbound.configured(url), within_s=WITHIN_S, most_bytes=MOST_BYTES) as client:
            answer = client.post(url, content=body.encode(), headers={"content-type": media, **headers})
    except (httpx.HTTPError, MeshError) as exc:
        raise ExportRefused(f"the back end does not answer: {type(exc).__name__}", value=url) from exc
    if answer.status_code >= 300:
        raise ExportRefused("the back end refused", value=f"{answer.status_code} {url}")
    try:
        said = answer.json() if answer.content else {}
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ExportRefused("the back end answered something else than JSON", value=url)
    return said


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _share(trace_id: UUID) -> float:
    """Where in [0, 1) a trace lies: the same whenever it is asked."""
    return (trace_id.int & 0xFFFFFFFF) / 2**32
