"""The types of memory entries: what agents declared, held against what is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh.errors import BadMemory
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.fit import misfit
from agentmesh.records import Json

# Those who write to a context: agents with a trace in it.
OF_CONTEXT = """
SELECT a.id, a.spec->'memory' AS memory FROM mesh.agents a
 WHERE a.tenant_id = %(tenant)s AND a.spec ? 'memory' AND EXISTS (SELECT 1 FROM mesh.traces t
   WHERE t.tenant_id = a.tenant_id AND t.context_id = %(context)s AND t.agent = a.id) ORDER BY a.id
"""


class Templates:
    """What agents declared, by agent: `{"strict", "keep_s", "entries": {key: {"schema", "type", "keep_s"}}, "embedder":
    {"vectors", "spec"}}` (without the last: no vectors), empty for one that did not."""

    def __init__(self, declared: Mapping[str, Mapping[str, Any]]) -> None:
        self._declared = {agent: one for agent, one in declared.items() if one}

    def check(self, type_: str, key: str, value: Json) -> None:
        """Raises BadMemory where the value does not fit what some agent declared, or where the key is declared by none
        and one of them is strict. What steps came to (`result:<node>`) nobody has to declare."""
        known = False
        for agent, said in self._declared.items():
            entry = said["entries"].get(key)
            if entry is None or entry["type"] != type_:
                continue
            known = True
            if (why := misfit(entry["schema"], value)) is not None:
                raise BadMemory(f"the memory entry {key} does not fit what {agent} declared: {why}", value=value,
                                expected="its JSON Schema in the agent's file")  # fmt: skip
        if not (known or (type_, key[:7]) == ("short_term", "result:")) and (
            strict := [agent for agent, said in self._declared.items() if said["strict"]]
        ):
            names = sorted(key for said in self._declared.values() for key in said["entries"])
            raise BadMemory(f"{strict[0]} is strict, and no agent declares this memory entry", value=f"{type_}:{key}",
                            expected=f"one of {', '.join(names) or 'none'}")  # fmt: skip

    def keep_s(self, type_: str, key: str) -> float | None:
        """How long what is written there is kept: as the entry says, else its agent; the shortest of several. None: for
        ever."""
        found = [
            entry["keep_s"]
            if entry is not None and entry["type"] == type_ and entry["keep_s"] is not None
            else said["keep_s"]
            for said in self._declared.values()
            for entry in (said["entries"].get(key),)
        ]
        return min((one for one in found if one is not None), default=None)

    def embedders(self) -> dict[str, dict[str, Json]]:
        """What their entries are embedded by, by the name of its vectors."""
        return {said["embedder"]["vectors"]: said["embedder"] for said in self._declared.values() if "embedder" in said}

    def models(self, type_: str) -> tuple[str, ...]:
        """The vectors that an entry of this type is to have."""
        return tuple(self.embedders()) if type_ == "long_term" else ()


def of_context(db: Database, tenant_id: str, context_id: str) -> Templates:
    """What the agents declared that have a trace in this context."""
    rows = db.read(OF_CONTEXT, {"tenant": tenant_id, "context": context_id})
    return Templates({row["id"]: row["memory"] for row in rows})
