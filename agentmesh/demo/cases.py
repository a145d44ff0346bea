"""The demo's nouns, and what is decided about a case: the vote, when it is sure, who has to look.

Pure: the same results give the same case. The numbers were chosen on the train messages alone
(each asked against all the others), never on the test messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from agentmesh.demo.keywords import UNKNOWN
from agentmesh.demo.policies import Policy, Urgency, overdue, policy_for, urgency
from agentmesh.records import Json

SURE = 0.5
"""A confidence below this asks for one more round (22 % of the train messages)."""
PERSON = 0.4
"""A confidence below this after the last round goes to a person."""
ROUNDS = 2
VOTERS = {1: 10, 2: 25}
"""How many similar cases are looked for in each round."""
SHARPNESS = 4
"""A voter counts with its rank to this power: the nearest few decide, the others break ties."""

Method = Literal["model", "vote", "keywords", "none"]


@dataclass(frozen=True, slots=True)
class Similar:
    """A past case that shares words with a message. `rank` is ts_rank over the root of length."""

    id: int
    category: str
    text: str
    rank: float


@dataclass(frozen=True, slots=True)
class Search:
    """What one round of looking for similar cases found, best first."""

    round: int
    cases: list[Similar]


@dataclass(frozen=True, slots=True)
class OpenCase:
    """A case of the same customer that is not closed yet."""

    id: int
    category: str
    age_days: int


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """The policy that the words of a message call for, before anybody classified it."""

    area: str
    within_h: int
    worked_by: str
    action: str


@dataclass(frozen=True, slots=True)
class Classification:
    """What a message is about, how sure that is (0 to 1), and who said so in which round."""

    category: str
    confidence: float
    method: Method
    round: int


@dataclass(frozen=True, slots=True)
class SolvedCase:
    """A worked complaint as it is filed. `reason` is why a person has to look; None: nobody has."""

    run: str
    case: str
    text: str
    customer: int
    age_days: int
    category: str
    confidence: float
    method: Method
    rounds: int
    area: str
    urgency: Urgency
    overdue: bool
    action: str
    reason: str | None
    similar: list[int]
    open_cases: int


def vote(cases: Sequence[Similar], *, round: int) -> Classification | None:  # noqa: A002
    """The category most of the similar cases have, the nearer ones counting more; None for none.

    The confidence is the winner's share of all votes.
    """
    votes: dict[str, float] = {}
    for one in cases:
        votes[one.category] = votes.get(one.category, 0.0) + one.rank**SHARPNESS
    total = sum(votes.values())
    if not total:
        return None
    winner = max(votes, key=lambda name: votes[name])
    return Classification(winner, votes[winner] / total, "vote", round)


def classification_in(results: Mapping[str, Json]) -> Classification | None:
    """The latest classification among a trace's results, whichever tool gave it; None if none."""
    found = [made for one in results.values() if (made := as_classification(one))]
    return max(found, key=lambda one: one.round, default=None)


def as_classification(result: Json) -> Classification | None:
    """`result` as a Classification; None if it is something else."""
    if not isinstance(result, dict) or not {"category", "confidence", "method", "round"} <= set(result):
        return None
    return Classification(result["category"], float(result["confidence"]), result["method"], int(result["round"]))


def is_settled(found: Classification) -> bool:
    """Whether another round cannot help or is not needed."""
    return found.confidence >= SURE or found.round >= ROUNDS


def solved(payload: Mapping[str, Json], found: Classification | None, results: Mapping[str, Json]) -> dict[str, Json]:
    """The finished case as JSON: classified, with its policy, its urgency and who has to look."""
    found = found or Classification(UNKNOWN, 0.0, "none", 0)
    policy, age = policy_for(found.category), int(payload["age_days"])
    search, opened = results.get("similar_cases") or {}, results.get("open_cases") or []
    case = SolvedCase(
        run=str(payload["run"]),
        case=str(payload["case"]),
        text=str(payload["text"]),
        customer=int(payload["customer"]),
        age_days=age,
        category=found.category,
        confidence=found.confidence,
        method=found.method,
        rounds=found.round,
        area=policy.area,
        urgency=urgency(policy, age),
        overdue=overdue(policy, age),
        action=policy.action,
        reason=_why_person(found, policy, results.get("policy_that_applies") or {}),
        similar=[int(one["id"]) for one in search.get("cases", [])[:5]],
        open_cases=len(opened),
    )
    return asdict(case)


def _why_person(found: Classification, policy: Policy, by_words: Mapping[str, Json]) -> str | None:
    if found.category == UNKNOWN:
        return "nothing says what it is about"
    if found.method == "keywords":
        return "only keywords say what it is about"
    if found.confidence < PERSON:
        return "the similar cases disagree"
    if policy.worked_by == "person":
        return "the policy asks for a person"
    if found.confidence < SURE and by_words.get("worked_by") == "person":
        return f"its words may mean {by_words['area']}"
    return None
