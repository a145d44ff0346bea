"""The demo's tools, as a user would write them: plain functions with type hints.

Importing this registers them. Those with `tx=True` work in the transaction that records their
result: what `file_case` inserts is there exactly once, however often its worker is killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from agentmesh import ToolContext, register_tool
from agentmesh.demo import keywords, model, tables
from agentmesh.demo.cases import (
    VOTERS,
    AppliedPolicy,
    Classification,
    OpenCase,
    Search,
    Similar,
    SolvedCase,
    vote,
)
from agentmesh.demo.policies import policy_for
from agentmesh.errors import Permanent

KEYWORD_CONFIDENCE = 0.5
"""How often the keyword rules are right on the train messages where they say anything (0.71), less
a good part: nothing similar was found, so the message is an unusual one."""
MODEL_TIMEOUT_S = 10.0


@register_tool("similar_cases", needs=["cases:read"], timeout=5, attempts=3, tx=True)
def similar_cases(ctx: ToolContext, text: str, round: int) -> Search:  # noqa: A002
    """Past cases that share words with `text`; the second round looks wider and for more."""
    found = tables.similar(ctx.tx, text, limit=VOTERS[round], wide=round > 1)
    return Search(round, [Similar(**one) for one in found])


@register_tool("open_cases", needs=["cases:read"], timeout=5, attempts=3, tx=True)
def open_cases(ctx: ToolContext, customer: int) -> list[OpenCase]:
    """The customer's open cases, oldest first."""
    return [OpenCase(**one) for one in tables.open_cases(ctx.tx, customer)]


@register_tool("policy_that_applies", needs=["policies:read"], timeout=5)
def policy_that_applies(ctx: ToolContext, text: str) -> AppliedPolicy:  # noqa: ARG001
    """The policy that the words of the message call for."""
    policy = policy_for(keywords.match(text).category)
    return AppliedPolicy(**asdict(policy))


@register_tool("ask_model", needs=["model:ask"], timeout=15, attempts=1)
def ask_model(ctx: ToolContext, text: str, cases: list[Similar], round: int) -> Classification:  # noqa: A002, ARG001
    """What a model says; fails at once where no endpoint is configured."""
    examples = [(one.category, one.text) for one in cases]
    named = model.ask(text, keywords.categories(), examples, timeout_s=MODEL_TIMEOUT_S)
    return Classification(named, 0.9, "model", round)


@register_tool("vote_of_similar_cases", needs=["cases:classify"], timeout=5)
def vote_of_similar_cases(
    ctx: ToolContext,  # noqa: ARG001
    cases: list[Similar],
    round: int,  # noqa: A002
) -> Classification:
    """What the similar cases were about. Raises Permanent when there are none."""
    found = vote(cases, round=round)
    if found is None:
        raise Permanent("no past case is similar")
    return found


@register_tool("keyword_rules", needs=["cases:classify"], timeout=5)
def keyword_rules(ctx: ToolContext, text: str, round: int) -> Classification:  # noqa: A002, ARG001
    """What the keyword rules say; category `unknown` with confidence 0 where they say nothing."""
    found = keywords.match(text)
    confidence = KEYWORD_CONFIDENCE if found.stems else 0.0
    return Classification(found.category, confidence, "keywords", round)


@register_tool("file_case", needs=["reports:write"], timeout=5, attempts=3, tx=True)
def file_case(ctx: ToolContext, case: SolvedCase) -> dict[str, str]:
    """The case stands in the report's table, once."""
    body = json.dumps(asdict(case), ensure_ascii=False)
    tables.file_case(ctx.tx, trace_id=str(ctx.trace_id), run=case.run, body=body)
    return {"filed": case.case}
