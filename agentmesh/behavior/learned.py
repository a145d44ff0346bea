"""RLPolicyReasoner: one of several actions, chosen by chance, the better ones more often.

What each choice earned is read from rewards (`learn`) and written into a file; a running agent reads that file once. Each
decision records how likely its choice was, so that what it earned can be counted without bias afterwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from agentmesh.behavior.reasoners import ReasonerBase, parse_action, read_action
from agentmesh.behavior.session import Session
from agentmesh.behavior.templates import filled
from agentmesh.errors import BadAgentFile
from agentmesh.infrastructure import jsontext
from agentmesh.records import Action, Json

UNTAUGHT = "untaught"


class RLPolicyReasoner(ReasonerBase):
    """Chooses by weights; a share `explore` of its decisions is spread evenly, so that every choice is tried."""

    prompts: ClassVar[bool] = False

    def __init__(
        self, choices: Mapping[str, Json], weights: Mapping[str, Any] | None = None, *, version: str = UNTAUGHT,
        explore: float = 0.1, where: Callable[..., str] | None = None,
    ) -> None:  # fmt: skip
        """`choices` are actions by name, with {"=": "CEL"} for values; `where(name, *path)` is where one stands.

        Raises BadRule or BadAction for what is no action, BadAgentFile for weights that are none.
        """
        super().__init__()
        place = where or (lambda *path: f"choices.{path[0]}")
        self.choices = {
            name: read_action(one, lambda *path, n=name: place(n, *path)) for name, one in sorted(choices.items())
        }
        self.version = version
        self.chances = _chances(list(self.choices), weights or {}, explore)

    def select_action(self, session: Session) -> Action:
        names = list(self.choices)
        chosen = random.choices(names, [self.chances[name] for name in names])[0]  # noqa: S311 - a choice, not a secret
        action = parse_action(filled(self.choices[chosen], session.variables()))
        others = (name for name in names if name != chosen)
        return action.model_copy(
            update={"candidates": (chosen, *others), "propensity": self.chances[chosen], "policy_version": self.version}
        )


def _chances(names: list[str], weights: Mapping[str, Any], explore: float) -> dict[str, float]:
    """How likely each name is; together they are 1."""
    known = [weights.get(name, 0.0) for name in names]
    if not names or not all(isinstance(one, int | float) and math.isfinite(one) and one >= 0 for one in known):
        raise BadAgentFile(
            "a policy has no usable weights", value=dict(weights), expected="a number >= 0 for each choice"
        )
    total = sum(known)
    shares = [one / total if total else 1 / len(names) for one in known]
    return {name: explore / len(names) + (1 - explore) * share for name, share in zip(names, shares, strict=True)}


def learn(decisions: Iterable[Mapping[str, Any]], *, temperature: float = 0.1) -> dict[str, Json]:
    """A policy of what decisions earned: `weights` by choice (a softmax of their values), `values`, `decisions`, `version`.

    A decision is a mapping with `candidates` (the chosen one first), `propensity` and `reward`; one without a propensity
    teaches nothing. A value is the mean reward, each decision weighted by how unlikely it was.
    """
    earned: dict[str, list[tuple[float, float]]] = {}
    names: set[str] = set()
    for one in decisions:
        if one["propensity"] and one["candidates"]:
            names |= set(one["candidates"])
            earned.setdefault(one["candidates"][0], []).append((1 / one["propensity"], one["reward"]))
    values = {name: sum(w * r for w, r in seen) / sum(w for w, _ in seen) for name, seen in earned.items()}
    guess = sum(values.values()) / len(values) if values else 0.0  # what nobody tried is as good as the others
    full = {name: values.get(name, guess) for name in sorted(names)}
    best = max(full.values(), default=0.0)
    raw = {name: math.exp((value - best) / temperature) for name, value in full.items()}
    total = sum(raw.values())
    weights = {name: round(one / total, 6) for name, one in raw.items()}
    return {
        "version": jsontext.digest(weights)[:12], "weights": weights,
        "values": {name: round(value, 6) for name, value in values.items()},
        "decisions": {name: len(seen) for name, seen in earned.items()},
    }  # fmt: skip
