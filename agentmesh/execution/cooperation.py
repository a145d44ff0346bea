"""How the answers of several agents become one, and which agents are asked: a vote, bids, the least loaded. Pure.

What an answer counts for is told from it alone when its agent has ended, and is kept on its call with its place among
those that ended. Every decision follows from that, whoever looks and however often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentmesh.behavior.templates import compiled, found, holds
from agentmesh.errors import BadRule, NoAgent
from agentmesh.execution.plan import Delegate
from agentmesh.infrastructure import jsontext
from agentmesh.records import Failure, Json

Terms = Mapping[str, Json]
"""`vote` and perhaps `quorum`, or `accept`; `given` is what the expression names besides the answer."""

Heard = Mapping[str, Json]
"""What one end counts for: its `vote`, or whether it is `accepted`; neither where it failed. `place`: the how manieth."""

MAX_VOTE_BYTES = 4096


# --- answers


def terms_of(node: Delegate, variables: Mapping[str, Json]) -> dict[str, Json] | None:
    """How the answers that this node asks for become one, with what that depends on as it is now; None: they do not."""
    text = node.vote or node.accept
    if text is None:
        return None
    kind = "vote" if node.vote else "accept"
    given = compiled(text, f"node {node.id}, {kind}").reads(variables)
    return {kind: text, "given": {name: value for name, value in given.items() if name != "result"}} | (
        {"quorum": node.quorum} if node.quorum is not None else {}
    )


def heard(terms: Terms, answer: Json) -> dict[str, Json]:
    """What an answer counts for. One that the expression has no value for, or null, counts for nothing."""
    variables = {**terms["given"], "result": answer}
    try:
        if "accept" in terms:
            return {"accepted": holds(terms["accept"], variables, "accept")}
        vote = found(terms["vote"], variables, "vote")
    except BadRule as exc:
        return {"wrong": f"{exc.what}: {exc.value}"}
    if len(jsontext.canonical(vote)) > MAX_VOTE_BYTES:
        return {"wrong": f"vote: more than {MAX_VOTE_BYTES} bytes"}
    return {"vote": vote}


def settled(terms: Terms, ended: Sequence[Heard], left: int) -> bool:
    """Whether the `left` that have not ended can change nothing any more."""
    if "accept" in terms:
        return any(one.get("accepted") for one in ended)
    best, second = (*sorted(_count(ended).values(), reverse=True), 0, 0)[:2]
    need = _need(terms, len(ended) + left)
    return best > second + left if need is None else best >= need or best + left < need


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the answers come to: that of the `winner`, or what a vote came to."""

    winner: str | None = None
    poll: Mapping[str, Json] | None = None

    def told(self, answers: Mapping[str, Json]) -> dict[str, Json]:
        """As the result of the step, given the answers by label."""
        return (
            {"winner": self.winner, "answer": answers.get(str(self.winner))} if self.poll is None else dict(self.poll)
        )


def decided(terms: Terms, answers: Sequence[tuple[str, Heard]]) -> Chosen | Failure:
    """What the answers come to, by label in the order they were asked for; nothing is heard of who has not ended.

    Of the bids that are acceptable, and of the values that have a quorum, the first to be so is taken. Of values that
    equally many have, without a quorum, it is the one whose voter was asked first.
    """
    came = sorted((one for one in answers if "place" in one[1]), key=lambda one: one[1]["place"])
    if "accept" in terms:
        winner = next((label for label, said in came if said.get("accepted")), None)
        refused = sum("accepted" in said for _, said in came)
        return Chosen(winner) if winner is not None else Failure(
            "E_NO_BID", f"none of {len(answers)} answers was acceptable: {refused} refused, {len(answers) - refused} failed",
        )  # fmt: skip
    need = _need(terms, len(answers))
    counts = _count(said for _, said in answers)
    best = max(counts, key=counts.__getitem__, default=None) if need is None else _first(came, need)
    if best is None:
        shown = ", ".join(f"{key.decode()[:80]} {n}" for key, n in counts.most_common(5)) or "nobody gave one"
        return Failure("E_NO_QUORUM", f"no answer has {need or 1} of {len(answers)} votes: {shown}")
    votes = {label: said["vote"] for label, said in answers if said.get("vote") is not None}
    answer = next(vote for vote in votes.values() if jsontext.canonical(vote) == best)
    return Chosen(poll={"answer": answer, "votes": counts[best], "of": len(answers), "by": votes})


def _first(came: Iterable[tuple[str, Heard]], need: int) -> bytes | None:
    """The vote that so many had first."""
    so_far: Counter[bytes] = Counter()
    for _, said in came:
        for key in _count([said]):
            so_far[key] += 1
            if so_far[key] == need:
                return key
    return None


def _count(ended: Iterable[Heard]) -> Counter[bytes]:
    """How often each vote was given, in the order of its first voter."""
    return Counter(jsontext.canonical(one["vote"]) for one in ended if one.get("vote") is not None)


def _need(terms: Terms, voters: int) -> int | None:
    """How many equal votes decide; None: more than any other has."""
    quorum = terms.get("quorum")
    return voters // 2 + 1 if quorum == "majority" else quorum


# --- agents


@dataclass(frozen=True, slots=True)
class Offer:
    """An agent that offers what is wanted, its live workers, and what waits or is worked on there.

    `knows`: whether it accepts the intent. `open`: whether it takes new work.
    """

    agent: str
    version: str
    workers: int
    load: int
    knows: bool = True
    open: bool = True

    @property
    def live(self) -> bool:
        return self.open and self.workers > 0

    def told(self) -> dict[str, Json]:
        return {"agent": self.agent, "version": self.version, "workers": self.workers, "load": self.load}


def choose(offers: Sequence[Offer], count: int | str | None, *, of: str, busy: Counter[str], seed: str) -> list[Offer]:
    """The agents that are asked, least loaded first: those with live workers, then those whose workers are away.

    Load is what each live worker has to do, with what `busy` adds; among equals `seed` decides, so that not all go the
    same way. "all" are those with live workers, or one. Raises NoAgent.
    """
    known = [one for one in offers if one.knows]
    if offers and not known:
        raise NoAgent(f"no agent that offers {of} knows this intent", value=", ".join(one.agent for one in offers),
                      expected="an agent that offers it and declares the intent")  # fmt: skip

    def rank(one: Offer) -> tuple[bool, float, str]:
        load = (one.load + busy[one.agent]) / max(1, one.workers)
        return not one.live, load, jsontext.digest([seed, one.agent])

    ranked = sorted(known, key=rank)
    wanted = max(1, sum(one.live for one in ranked)) if count == "all" else int(count or 1)
    if len(ranked) < wanted:
        raise NoAgent(f"too few agents offer {of}", value=", ".join(one.agent for one in ranked) or "nobody else",
                      expected=f"{wanted} of them")  # fmt: skip
    return ranked[:wanted]
