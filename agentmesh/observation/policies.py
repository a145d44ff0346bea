"""The policy that a trace is worked under, and where each part of it comes from. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agentmesh.infrastructure.database import Row
from agentmesh.records import Json, Policy

Source = Literal["default", "agent", "plan", "intent"]


@dataclass(frozen=True, slots=True)
class Part:
    """One field of the policy at a node (None: at every node that says nothing itself)."""

    name: str
    value: Json
    source: Source
    node: str | None = None


def parts(trace: Row, events: Sequence[Row], plan: Mapping[str, Json] | None) -> list[Part]:
    """The trace's policy field by field, then what its nodes have of their own. `plan` None: it is not kept."""
    policy = trace["policy"] or {}
    given = set(policy.get("given") or ())
    began: dict[str, Json] = next((one["body"] for one in events if one["name"] == "RUN_ONCE_START"), {})
    agent = set(began.get("policy") or ())
    whole = (plan or {}).get("policy") or {}
    found = []
    for name in Policy.model_fields:
        if name == "given" or name not in policy:
            continue
        source: Source = "intent" if name in given else "agent" if name in agent else "default"
        if name in whole and name not in given:
            found.append(Part(name, whole[name], "plan"))
        else:
            found.append(Part(name, policy[name], source))
    for node in (plan or {}).get("nodes", ()):
        own = (node.get("policy") or {}).items()
        found += [Part(name, value, "plan", node["id"]) for name, value in own if name not in given]
    return found
