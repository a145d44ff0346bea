"""Reasoners made of reasoners: rules with a model behind them, one reasoner of several, two beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from agentmesh.behavior.declared import Desk, Models
from agentmesh.behavior.expressions import Expression
from agentmesh.behavior.llm import LLMReasoner
from agentmesh.behavior.reasoners import Reasoner, ReasonerBase, RuleReasoner, ask, parse_action
from agentmesh.behavior.session import Note, Session
from agentmesh.behavior.templates import filled, is_true
from agentmesh.errors import Forbidden, MeshError, ReasonerFailed
from agentmesh.records import Action, Json


@dataclass(frozen=True, slots=True)
class Veto:
    """What a model may not do: when `when` is true of its action, it is refused, or `then` (if any) is done instead."""

    when: Expression
    why: str
    then: Json = None


class HybridReasoner(ReasonerBase):
    """Rules decide when they can, a model when they cannot; vetoes have the last word on what the model chose."""

    prompts: ClassVar[bool] = False

    def __init__(self, model: Reasoner, rules: RuleReasoner | None = None, vetoes: Sequence[Veto] = ()) -> None:
        super().__init__()
        self.model, self.rules, self.vetoes = model, rules, tuple(vetoes)

    def bind(self, desk: Desk | None, models: Models) -> None:
        bind(self.model, desk, models)

    def select_action(self, session: Session) -> Action:
        """Raises Forbidden for a choice of the model that is vetoed; an LLMReasoner is told first, and asked once more."""
        decided = None if self.rules is None else self.rules.first(session)
        if decided is not None:
            return decided

        def check(action: Action) -> None:
            veto = self._veto(action, session)
            if veto is not None and veto.then is None:
                raise Forbidden(f"this is vetoed: {veto.why}", value=_choice(action), expected="another action")

        if isinstance(self.model, LLMReasoner):
            chosen = self.model.decide(session, check)
        else:
            chosen = parse_action(ask(self.model, session))
            check(chosen)
        veto = self._veto(chosen, session)
        if veto is None:
            return chosen
        instead = parse_action(filled(veto.then, session.variables()))
        return instead.model_copy(
            update={"candidates": (f"veto: {veto.why}", _choice(chosen)), "policy_version": chosen.policy_version}
        )

    def _veto(self, action: Action, session: Session) -> Veto | None:
        if not self.vetoes:
            return None
        variables = session.variables() | {"action": _as_value(action)}
        return next((one for one in self.vetoes if is_true(one.when, variables)), None)

    def feedback(self, action_result: Json) -> None:
        self.model.feedback(action_result)


@dataclass(frozen=True, slots=True)
class Route:
    """A reasoner by its name, for the sessions of which `when` is true (None: all)."""

    name: str
    when: Expression | None
    reasoner: Reasoner


class ReasonerRouter(ReasonerBase):
    """The first route whose condition is true decides: by intent, content, tenant, policy, or what else a session has."""

    prompts: ClassVar[bool] = False

    def __init__(self, routes: Sequence[Route]) -> None:
        super().__init__()
        self.routes = tuple(routes)

    def bind(self, desk: Desk | None, models: Models) -> None:
        for one in self.routes:
            bind(one.reasoner, desk, models)

    def select_action(self, session: Session) -> Action:
        for one in self.routes:
            if one.when is None or is_true(one.when, session.variables(one.when.names)):
                action = parse_action(ask(one.reasoner, session))
                return action.model_copy(
                    update={"policy_version": "/".join(filter(None, (one.name, action.policy_version)))}
                )
        raise ReasonerFailed(
            f"no route fits intent {session.intent}",
            expected="a last route without 'when'",
            next="agentmesh agents show",
        )

    def feedback(self, action_result: Json) -> None:
        for one in self.routes:
            one.reasoner.feedback(action_result)


def bind(reasoner: object, desk: Desk | None, models: Models) -> None:
    """Hand it the desk and the models, if it wants them."""
    wants: Any = getattr(reasoner, "bind", None)
    if wants is not None:
        wants(desk, models)


# --- two beside each other


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reasoner chose, or why it failed; and what it noted, questions to models among it."""

    action: Action | None
    error: dict[str, Json] | None
    notes: tuple[Note, ...] = ()

    def said(self) -> dict[str, Json]:
        """What was chosen: without candidates, propensity and version, which do not run."""
        return self.error or ({} if self.action is None else _as_value(self.action))


@dataclass(frozen=True, slots=True)
class Difference:
    """Two decisions at one point."""

    first: Decision
    second: Decision

    @property
    def same(self) -> bool:
        return self.first.said() == self.second.said()


def decide(reasoner: Reasoner, session: Session) -> Decision:
    """What the reasoner decides at this point; that it fails is a decision too."""
    own = replace(session, notes=[])
    try:
        action = parse_action(ask(reasoner, own))
    except MeshError as exc:
        return Decision(None, exc.parts(), own.taken_notes())
    except Exception as exc:  # noqa: BLE001 - whatever a reasoner raises is its answer here
        return Decision(None, {"code": ReasonerFailed.code, "what": f"{type(exc).__name__}: {exc}"}, own.taken_notes())
    return Decision(action, None, own.taken_notes())


def diff(session: Session, first: Reasoner, second: Reasoner) -> Difference:
    """What two reasoners decide at the same point. Neither sees the other's notes, and nothing is written."""
    return Difference(decide(first, session), decide(second, session))


def _as_value(action: Action) -> dict[str, Json]:
    """An action as expressions see it: `answer`, or `tools` in one list, `strategy` and `require`."""
    if not action.slots:
        return {"answer": action.answer, "tools": []}
    tools = [{"tool": use.tool, "args": use.args} for slot in action.slots for use in slot]
    return {"tools": tools, "strategy": action.strategy, "require": action.require}


def _choice(action: Action) -> str:
    return ", ".join(use.tool for slot in action.slots for use in slot) or "answer"
