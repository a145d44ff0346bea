"""Every kind of step of a chain, read into the node it becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from pydantic import ValidationError

from agentmesh.behavior.reasoners import parse_action
from agentmesh.errors import BadAction
from agentmesh.execution import plan as plans
from agentmesh.execution.chainparts import STEPS, Parts, Path, Step, given
from agentmesh.execution.chaintypes import Held, Used
from agentmesh.execution.plan import BehaviorPlan, Place
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import Json, ToolUse


class Steps(Parts, ABC):
    """Reads steps."""

    @abstractmethod
    def nested(self, text: YamlText) -> BehaviorPlan | None:
        """The plan of a chain within this one; None, and its mistakes are noted."""

    def _nodes(self, read: list[Step]) -> list[Any]:
        nodes = []
        for number, step in enumerate(read):
            following = read[number + 1].id if number + 1 < len(read) else None
            if (made := self._node(step, read[: number + 1], following)) is not None:
                nodes.append(made)
        return nodes

    def _node(self, step: Step, before: list[Step], following: str | None) -> Any:
        raw, path = step.raw, step.path
        self._here = step.id
        fields: dict[str, Any] = {"id": step.id, "next": following}
        if "needs" in raw:
            fields["needs"] = self._needs((*path, "needs"), raw["needs"])
        if "when" in raw:
            fields["when"] = self._condition((*path, "when"), raw["when"])
        for key in ("on_fail", "on_timeout"):
            if key in raw:
                fields[key] = self._target((*path, key), raw[key], before)
        if step.kind in STEPS:
            fields["policy"] = policy = self._step_policy(step)
            fields |= {} if policy.trigger_next_action is None else {"otherwise": "trigger"}
        make: Callable[[Step, dict[str, Any], list[Step]], Any] = getattr(self, f"_{step.kind}")
        made = len(self.problems)
        try:
            node = make(step, fields, before)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            key = next((str(part) for part in first["loc"] if part in raw), step.kind)
            return self.wrong((*path, key), f"{key} is not allowed", first["input"], first["msg"])
        return node if len(self.problems) == made else None

    def _reasoner(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Place:
        name = step.raw["reasoner"]
        if name is not None:
            self._name((*step.path, "reasoner"), name, "a reasoner", self.known.reasoners)
        return plans.Reason(**fields, kind="reason", reasoner=name)

    def _tools(self, step: Step, fields: dict[str, Any], before: list[Step]) -> Any:
        raw, path = step.raw, (*step.path, "tools")
        if raw["tools"] == "chosen":
            if len(before) < 2 or before[-2].kind != "reasoner":
                return self.wrong(
                    path, "no reasoner stands before the tools it is to choose", "chosen", "a reasoner before it"
                )
            return plans.Tools(**fields, kind="tools")
        said: dict[str, Json] = {"tools": raw["tools"]}
        said |= {key: raw[key] for key in ("strategy", "require") if key in raw}
        if raw.get("race"):
            said |= {"strategy": raw.get("strategy", "parallel"), "require": "any"}
        try:
            action = parse_action(said)
        except BadAction as exc:
            return self.wrong(path, exc.what, exc.value, exc.expected)
        self._template(path, raw["tools"])
        for place, use in zip(_places(path, raw["tools"]), chain.from_iterable(action.slots), strict=True):
            self._name((*place, "tool"), use.tool, "a tool", self.known.tools)
            self._used.append(Used((*place, "args"), step.id, use))
        return plans.Tools(**fields, kind="tools", slots=action.slots, strategy=action.strategy, require=action.require)

    def _for_each(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        raw, path = step.raw, step.path
        items = self._expression((*path, "for_each"), raw["for_each"], role="items")
        if self._name((*path, "tool"), raw.get("tool"), "a tool", self.known.tools):
            return None
        args = raw.get("args") or {}
        self._template((*path, "args"), args, each=True)
        if not isinstance(args, dict):
            return self.wrong((*path, "args"), "the args of a tool are not an object", args)
        use = ToolUse(tool=raw["tool"], args=args)
        self._used.append(Used((*path, "args"), step.id, use, each=True))
        return plans.ForEach(**fields, kind="for_each", items=items, use=use, **given(raw, "limit", "require"))

    def _set(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        values, path = step.raw["set"], (*step.path, "set")
        if not isinstance(values, dict) or not values:
            return self.wrong(path, "set does not say which variables", values, "set: {name: value}")
        self._template(path, values)
        return plans.Assign(**fields, kind="set", values=values)

    def _jump_if(self, step: Step, fields: dict[str, Any], before: list[Step]) -> Place:
        raw, path = step.raw, step.path
        fields["when"] = self._condition((*path, "jump_if"), raw["jump_if"])
        then = self._target((*path, "then"), raw.get("then"), before)
        if "else" in raw:
            fields["next"] = resolved(self._target((*path, "else"), raw["else"], before), fields["next"])
        return plans.Jump(**fields, kind="jump", then=then, **given(raw, "limit"))

    def _jump(self, step: Step, fields: dict[str, Any], before: list[Step]) -> Place:
        then = self._target((*step.path, "jump"), step.raw["jump"], before)
        return plans.Jump(**fields, kind="jump", then=then, **given(step.raw, "limit"))

    def _switch(self, step: Step, fields: dict[str, Any], before: list[Step]) -> Any:
        raw, path = step.raw, (*step.path, "switch")
        if not isinstance(raw["switch"], list) or not raw["switch"]:
            return self.wrong(path, "a switch has no cases", raw["switch"], "switch: [{when, then}]")
        cases = []
        for number, one in enumerate(raw["switch"]):
            place = (*path, number)
            if not isinstance(one, dict) or set(one) != {"when", "then"}:
                self.wrong(place, "a case is not {when, then}", one, "{when, then}")
                continue
            then = self._target((*place, "then"), one["then"], before)
            cases.append(plans.Case(when=self._condition((*place, "when"), one["when"]), then=then))
        if "else" in raw:
            fields["next"] = resolved(self._target((*step.path, "else"), raw["else"], before), fields["next"])
        return plans.Switch(**fields, kind="switch", cases=tuple(cases), **given(raw, "limit"))

    def _wait(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        said, path = step.raw["wait"], (*step.path, "wait")
        if not isinstance(said, dict) or set(said) == {"="}:
            said = {"seconds": said}
        self._keys(path, said, ("seconds", "until", "cron", "timezone"), "a wait")
        if len({"seconds", "until", "cron"} & said.keys()) != 1:
            return self.wrong(path, "a wait says how long in one way", said, "a duration, until or cron")
        if "seconds" in said and not isinstance(said["seconds"], dict):
            said = said | {"seconds": self._duration(path, said["seconds"])}
        self._template(path, said)
        return plans.Wait(**fields, kind="wait", **said)

    def _signal(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Place:
        raw, path = step.raw, step.path
        within = self._duration((*path, "within"), raw["within"]) if "within" in raw else None
        if "schema" in raw:
            self._schema((*path, "schema"), raw["schema"])
        return plans.Signal(
            **fields, kind="signal", signal=raw["signal"], payload_schema=raw.get("schema"), within_s=within
        )

    def _approval(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        raw, path = step.raw, step.path
        self._template((*path, "approval"), raw["approval"])
        more: dict[str, Any] = {key: tuple(raw[key]) for key in ("who", "options") if isinstance(raw.get(key), list)}
        if "within" in raw:
            more["within_s"] = self._duration((*path, "within"), raw["within"])
        if "escalate" in raw:
            said = raw["escalate"]
            if not isinstance(said, dict) or set(said) != {"after", "who"} or not isinstance(said["who"], list):
                return self.wrong((*path, "escalate"), "escalate is not {after, who}", said, "{after: 1d, who: [name]}")
            after = self._duration((*path, "escalate", "after"), said["after"])
            more["escalate"] = plans.Escalation(after_s=after, who=tuple(said["who"]))
        if raw.get("reason") not in {None, "required", "optional"}:
            return self.wrong((*path, "reason"), "reason is neither required nor optional", raw["reason"])
        more["reason_required"] = raw.get("reason") == "required"
        return plans.Approval(**fields, kind="approval", ask=raw["approval"], **more)

    def _delegate(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        raw, path = step.raw, step.path
        listed = raw["delegate"] if isinstance(raw["delegate"], list) else [raw["delegate"]]
        errands = []
        for number, one in enumerate(listed):
            place = (*path, "delegate", number) if isinstance(raw["delegate"], list) else (*path, "delegate")
            said = {"to": one} if isinstance(one, str) else one
            if not isinstance(said, dict) or len({"to", "capability"} & said.keys()) != 1:
                return self.wrong(place, "an errand does not say for whom", one,
                                  "the name of an agent, {to: agent} or {capability: name}")  # fmt: skip
            self._keys(
                place, said, ("to", "capability", "count", "intent", "payload", "permissions", "as"), "an errand"
            )
            whom = self._whom(place, said)
            if whom is None:
                return None
            said = given(raw, "intent", "payload", "permissions") | said
            self._template(place, said.get("payload"), each="for_each" in raw)
            permissions = said.get("permissions")
            errands.append(plans.Errand(
                **whom, intent=said.get("intent"), payload=said.get("payload"),
                permissions=None if permissions is None else tuple(permissions),
            ))  # fmt: skip
        if twice := [one.label for n, one in enumerate(errands) if one.label in {two.label for two in errands[:n]}]:
            return self.wrong(
                (*path, "delegate"), "two errands would go by one name", twice[0], "a different 'as' for each"
            )
        more = given(raw, "require", "wait") | self._terms(step, errands) | self._each(step, errands)
        if "within" in raw:
            more["within_s"] = self._duration((*path, "within"), raw["within"])
        return plans.Delegate(**fields, kind="delegate", errands=tuple(errands), **more)

    def _each(self, step: Step, errands: list[plans.Errand]) -> dict[str, Any]:
        """The list for whose items one errand is done."""
        raw, path = step.raw, (*step.path, "for_each")
        if "for_each" not in raw:
            return {}
        if len(errands) != 1 or errands[0].count is not None:
            self.wrong(path, "one errand is done for each", raw["for_each"], "one agent, capability or chain")
        if odd := [key for key in ("vote", "accept") if key in raw] + ["wait"] * (raw.get("wait") is False):
            self.wrong(path, f"{odd[0]} means nothing beside for_each", raw["for_each"], "the list of all results")
        return {"each": self._expression(path, raw["for_each"], role="items")}

    def _whom(self, place: Path, said: dict[str, Json]) -> Any:
        """Who does an errand, and the name it goes by; None, and the mistake is noted."""
        key = "to" if "to" in said else "capability"
        if self._name((*place, key), said[key], "an agent" if key == "to" else "a capability", None):
            return None
        whom = {"label": str(said.get("as") or said[key]), "agent" if key == "to" else key: said[key]}
        if "count" not in said:
            return whom
        count = said["count"]
        if key == "to":
            return self.wrong((*place, "count"), "count means something only beside a capability", count)
        if count != "all" and (
            not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= plans.MAX_COUNT
        ):
            return self.wrong(
                (*place, "count"), "this is no number of agents", count, f"1 to {plans.MAX_COUNT}, or all"
            )
        if "as" in said:
            return self.wrong(
                (*place, "as"), "several agents do not go by one name", said["as"], "no 'as': they go by their own"
            )
        return whom | {"count": count}

    def _terms(self, step: Step, errands: list[plans.Errand]) -> dict[str, Any]:
        """How several answers become one."""
        raw, path = step.raw, step.path
        kinds = [key for key in ("vote", "accept") if key in raw]
        asked = None if any(one.count == "all" for one in errands) else sum(int(one.count or 1) for one in errands)
        for key in ("wait", "require"):
            if kinds and key in raw and raw[key] is not True:
                self.wrong((*path, key), f"{key} means nothing beside {kinds[0]}", raw[key], f"{kinds[0]} alone")
        if "within" in raw and raw.get("wait") is False:
            self.wrong((*path, "within"), "nobody waits for the answers", raw["within"], "wait: true")
        if len(kinds) == 2:
            return self.wrong((*path, "accept"), "answers are voted on or accepted, not both", raw["accept"]) or {}
        if kinds == ["vote"] and asked == 1:
            self.wrong((*path, "vote"), "one agent alone has no vote", raw["vote"], "several agents, or a count")
        if "quorum" in raw:
            self._quorum((*path, "quorum"), raw, asked)
        read = {"vote": self._expression, "accept": self._condition}
        return {key: read[key]((*path, key), raw[key], answer=True) for key in kinds} | given(raw, "quorum")

    def _quorum(self, path: Path, raw: dict[str, Json], asked: int | None) -> None:
        quorum = raw["quorum"]
        if "vote" not in raw:
            self.wrong(path, "a quorum is one of votes", quorum, "vote: an expression")
        elif quorum != "majority" and (not isinstance(quorum, int) or isinstance(quorum, bool) or quorum < 1):
            self.wrong(path, "this is no quorum", quorum, "how many equal votes, or majority")
        elif quorum != "majority" and asked is not None and quorum > asked:
            self.wrong(path, "so many votes there are not", quorum, f"at most {asked}, or majority")

    def _chain(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        raw, path = step.raw, (*step.path, "chain")
        name = raw["chain"]
        if self._name(path, name, "a chain", self.known.chains) or not self._adopt(path, name):
            return None
        self._template((*step.path, "payload"), raw.get("payload"), each="for_each" in raw)
        self._held.append(Held((*step.path, "payload"), step.id, name, raw.get("payload"), each="for_each" in raw))
        errand = plans.Errand(label=name, chain=name, payload=raw.get("payload"))
        more = given(raw, "require") | self._each(step, [errand])
        return plans.Delegate(**fields, kind="delegate", errands=(errand,), **more)

    def _adopt(self, path: Path, name: str) -> bool:
        """Whether the chain of this name, and all that it names, can be read."""
        if name in self._within or name == self.text.data.get("chain"):
            self.wrong(path, "a chain holds itself", name, "delegate to the agent for a recursion")
            return False
        if name not in self._chains and self.known.chains is not None:
            made = self.nested(self.known.chains[name])
            if made is None:
                return False
            self._chains[name] = made
        if name not in self._chains:
            self.wrong(path, "a chain of this name is not known here", name)
            return False
        return True

    def _parallel(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Any:
        raw, path = step.raw, (*step.path, "parallel")
        branches = raw["parallel"]
        if not isinstance(branches, dict) or not branches:
            return self.wrong(path, "there are no branches", branches, "parallel: {name: [steps], name: [steps]}")
        errands = []
        for name, steps in branches.items():
            marks = {
                key[len(path) + 1 :]: mark
                for key, mark in self.text.marks.items()
                if key[: len(path) + 1] == (*path, name)
            }
            text = YamlText(
                {"chain": name, "steps": steps}, self.text.source,
                {("steps", *key): mark for key, mark in marks.items()} | {("chain",): marks.get((), (1, 1))},
            )  # fmt: skip
            made = self.nested(text)
            if made is None:
                continue
            key = f"{step.id}-{name}"
            self._chains[key] = made
            errands.append(plans.Errand(label=name, chain=key, payload=raw.get("payload")))
        self._template((*step.path, "payload"), raw.get("payload"))
        if len(errands) < len(branches):
            return None
        return plans.Delegate(**fields, kind="delegate", errands=tuple(errands), **given(raw, "require"))

    def _finish(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Place:
        self._template((*step.path, "finish"), step.raw["finish"])
        return plans.Finish(**fields, kind="finish", result=step.raw["finish"])

    def _fail(self, step: Step, fields: dict[str, Any], _before: list[Step]) -> Place:
        self._template((*step.path, "fail"), step.raw["fail"])
        return plans.Give(**fields, kind="fail", message=step.raw["fail"], **given(step.raw, "code"))


def _places(path: Path, tools: list[Json]) -> Iterator[Path]:
    """Where each tool of a list stands; lists among them are slots."""
    for number, one in enumerate(tools):
        if isinstance(one, list):
            yield from ((*path, number, candidate) for candidate in range(len(one)))
        else:
            yield (*path, number)


def resolved(target: str, following: str | None) -> str | None:
    """What a target means where this is the next node; None: an end."""
    if target == plans.NEXT:
        return following
    return None if target in {plans.END, plans.FAIL, plans.COMPENSATE} else target
