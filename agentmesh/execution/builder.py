"""Chains in Python: the steps of execution/chain with their keys as arguments, and the same plan, byte for byte.

plan = chain("analyze", reason("generate_plan"), tools("query_db", "fetch_doc", strategy="parallel"),
             callback("update_memory"), jump_if("result.low_confidence", then="generate_plan"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentmesh.execution import chain as chains
from agentmesh.execution.chain import Known
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.tools import TOOLS
from agentmesh.records import Json, Require, Strategy

Step = dict[str, Json]


def chain(name: str, *steps: Step, on_fail: str | None = None, policy: Mapping[str, Json] | None = None,
          input: Mapping[str, Json] | None = None, known: Known | None = None) -> BehaviorPlan:  # fmt: skip # noqa: A002
    """The plan of these steps; `input` is the JSON Schema of its payload. Raises BadChain with every mistake.

    Without `known`, what is handed to the tools registered in this process, and what they return, is checked.
    """
    given = {"chain": name, "steps": list(steps), "on_fail": on_fail, "policy": dict(policy) if policy else None,
             "input": dict(input) if input else None}  # fmt: skip
    said = {key: value for key, value in given.items() if value is not None}
    return chains.from_values(said, known or Known(signature=TOOLS.signature))


def cel(text: str) -> dict[str, str]:
    """Where a value stands: what this expression comes to."""
    return {"=": text}


def tool(name: str, args: Mapping[str, Json] | None = None, *, as_: str | None = None) -> Step:
    """One tool with its arguments, and the name its result goes by."""
    return _given(tool=name, args=dict(args) if args else None, **{"as": as_})


def reason(reasoner: str | None, **more: Json) -> Step:
    return {"reasoner": reasoner, **more}


def tools(*uses: str | Step | Sequence[str | Step], strategy: Strategy | None = None, require: Require | None = None,
          **more: Json) -> Step:  # fmt: skip
    """Tools by name or as `tool(…)`; lists of them are slots of candidates. None at all: those that a reasoner chose."""
    listed: Json = [list(one) if isinstance(one, list | tuple) else one for one in uses] if uses else "chosen"
    return _given(tools=listed, strategy=strategy, require=require, **more)


def callback(*names: str) -> Step:
    return {"callback": list(names)}


def assign(**values: Json) -> Step:
    """Variables get values."""
    return {"set": values}


def jump_if(condition: str, *, then: str, otherwise: str | None = None, limit: int | None = None) -> Step:
    return _given(jump_if=condition, then=then, limit=limit, **{"else": otherwise})


def switch(*cases: tuple[str, str], otherwise: str | None = None, **more: Json) -> Step:
    """Cases are (condition, id of a step)."""
    return _given(switch=[{"when": when, "then": then} for when, then in cases], **{"else": otherwise}, **more)


def for_each(items: str, use: str, args: Mapping[str, Json] | None = None, *, limit: int | None = None,
             require: Require | None = None, **more: Json) -> Step:  # fmt: skip
    return _given(for_each=items, tool=use, args=dict(args) if args else None, limit=limit, require=require, **more)


def wait(duration: str | float | Mapping[str, Json], **more: Json) -> Step:
    return {"wait": dict(duration) if isinstance(duration, Mapping) else duration, **more}


def signal(name: str, *, within: str | None = None, schema: Mapping[str, Json] | None = None, **more: Json) -> Step:
    return _given(signal=name, within=within, schema=dict(schema) if schema else None, **more)


def approval(ask: Json, *, who: Sequence[str] | None = None, options: Sequence[str] | None = None,
             within: str | None = None, escalate: Mapping[str, Json] | None = None, **more: Json) -> Step:  # fmt: skip
    return {"approval": ask} | _given(
        who=list(who) if who else None, options=list(options) if options else None, within=within,
        escalate=dict(escalate) if escalate else None, **more,
    )  # fmt: skip


def delegate(to: str | Step | Sequence[str | Step], *, wait: bool = True, vote: str | None = None,
             quorum: int | Literal["majority"] | None = None, accept: str | None = None, within: str | None = None,
             **more: Json) -> Step:  # fmt: skip
    """To agents by name or as `any_of(…)`; their answers may be one by `vote`, or the first that `accept` holds for."""
    listed: Json = to if isinstance(to, str | Mapping) else list(to)
    return _given(delegate=listed, wait=None if wait else False, vote=vote, quorum=quorum, accept=accept, within=within,
                  **more)  # fmt: skip


def any_of(capability: str, *, count: int | Literal["all"] | None = None, as_: str | None = None, **more: Json) -> Step:
    """For `delegate`: the least loaded agent that offers a capability, or so many of them."""
    return _given(capability=capability, count=count, **{"as": as_}, **more)


def follow(name: str, **more: Json) -> Step:
    """Another chain, as a child trace."""
    return {"chain": name, **more}


def parallel(require: Require | None = None, **branches: Sequence[Step]) -> Step:
    """Branches by name, each with steps of its own."""
    return _given(parallel={name: list(steps) for name, steps in branches.items()}, require=require)


def finish(result: Json = None, **more: Json) -> Step:
    return {"finish": result, **more}


def fail(message: Json, *, code: str | None = None, **more: Json) -> Step:
    return _given(fail=message, code=code, **more)


def _given(**keys: Any) -> Step:
    return {key: value for key, value in keys.items() if value is not None}
