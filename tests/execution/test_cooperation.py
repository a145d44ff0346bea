"""How answers become one and who is asked: against naive counts, in any order of arrival, and in exact words."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import NoAgent
from agentmesh.execution.cooperation import Chosen, Offer, choose, decided, heard, settled
from agentmesh.records import Failure

ANSWERS = st.sampled_from(["a", "b", "c", {"deep": [1]}, None, "failed"])


def terms(**said: Any) -> dict[str, Any]:
    return {"given": {}} | said


def naive(kind: dict[str, Any], answers: list[Any], came: list[int]) -> Any:
    """What an election officer would say with all ballots on the table, in the order they came; None: nobody wins."""
    if "accept" in kind:
        return next((n for n in came if answers[n] == "a"), None)
    ballots = [one for one in answers if one not in (None, "failed")]
    if "quorum" not in kind:
        return max(ballots, key=ballots.count, default=None)
    need = len(answers) // 2 + 1 if kind["quorum"] == "majority" else kind["quorum"]
    seen: list[Any] = []
    for n in came:
        seen.append(answers[n])
        if answers[n] not in (None, "failed") and seen.count(answers[n]) == need:
            return answers[n]
    return None


def won(kind: dict[str, Any], found: Chosen | Failure) -> Any:
    if isinstance(found, Failure):
        return None
    return int(found.told({})["winner"]) if "accept" in kind else found.told({})["answer"]


@given(
    kind=st.one_of(
        st.just({"vote": "result"}), st.just({"accept": "result == 'a'"}),
        st.builds(lambda n: {"vote": "result", "quorum": n}, st.sampled_from([1, 2, 3, 5, "majority"])),
    ),
    answers=st.lists(ANSWERS, min_size=1, max_size=7), data=st.data(),
)  # fmt: skip
def test_those_that_are_not_waited_for_would_have_changed_nothing(kind, answers, data):
    said = terms(**kind)
    came = data.draw(st.permutations(range(len(answers))))
    late = data.draw(st.integers(0, 3))  # ends that are told before the decision is taken, though it stands already
    ended: dict[int, dict[str, Any]] = {}
    for place, n in enumerate(came, 1):
        ended[n] = ({} if answers[n] == "failed" else heard(said, answers[n])) | {"place": place}
        if settled(said, list(ended.values()), len(answers) - place):
            late -= 1
            if late < 0:
                break
    found = decided(said, [(str(n), ended.get(n, {})) for n in range(len(answers))])
    assert won(kind, found) == naive(kind, answers, came)


@pytest.mark.parametrize(
    ("answers", "answer", "votes"), [("aab", "a", 2), ("ab", "a", 1), ("bba", "b", 2), ([1, 2, 1.0], 1, 2)]
)
def test_a_vote_is_what_most_say_and_of_equals_whose_voter_was_asked_first(answers, answer, votes):
    said = terms(vote="result")
    told = [(f"v{n}", heard(said, one) | {"place": 9 - n}) for n, one in enumerate(answers)]
    found = decided(said, told)
    assert isinstance(found, Chosen)
    assert found.told({}) == {
        "answer": answer, "votes": votes, "of": len(answers), "by": {f"v{n}": one for n, one in enumerate(answers)},
    }  # fmt: skip


def test_an_answer_the_expression_has_no_value_for_counts_for_nothing():
    assert heard(terms(vote="result.kind"), {"other": 1}) == {"vote": None}
    assert heard(terms(accept="result.price < 5"), {}) == {
        "wrong": "accept: the expression reads a field that is not there: price"
    }  # fmt: skip
    assert heard(terms(vote="result"), "x" * 5000) == {"wrong": "vote: more than 4096 bytes"}
    assert heard(terms(accept="result.price < vars.most") | {"given": {"vars": {"most": 5}}}, {"price": 4}) == {
        "accepted": True
    }


@pytest.mark.parametrize(("said", "ends", "code", "message"), [
    (terms(vote="result"), [{}, {}], "E_NO_QUORUM", "no answer has 1 of 2 votes: nobody gave one"),
    (terms(vote="result", quorum=2), [{"vote": "a"}, {"vote": "b"}, {}], "E_NO_QUORUM",
     'no answer has 2 of 3 votes: "a" 1, "b" 1'),
    (terms(accept="result"), [{"accepted": False}, {"accepted": False}, {}], "E_NO_BID",
     "none of 3 answers was acceptable: 2 refused, 1 failed"),
])  # fmt: skip
def test_where_nothing_is_decided_it_says_how_the_answers_were(said, ends, code, message):
    found = decided(said, [(str(n), one | {"place": n}) for n, one in enumerate(ends)])
    assert isinstance(found, Failure)
    assert (found.code, found.message) == (code, message)


# --- whom


OFFERS = [Offer("a", "1", 1, 4), Offer("b", "1", 4, 8), Offer("c", "1", 0, 0), Offer("d", "1", 1, 0, open=False)]


def chosen(
    count: Any = None, offers: list[Offer] = OFFERS, busy: dict[str, int] | None = None, seed: str = "s"
) -> list[str]:
    return [one.agent for one in choose(offers, count, of="x", busy=Counter(busy or {}), seed=seed)]


def test_the_least_loaded_by_live_worker_is_asked_and_who_is_away_or_paused_last():
    assert chosen() == ["b"]
    assert chosen(2) == ["b", "a"]
    assert chosen("all") == ["b", "a"]
    assert set(chosen(4)[2:]) == {"c", "d"}
    assert chosen(busy={"b": 20}) == ["a"]
    assert chosen(offers=OFFERS[2:3]) == ["c"]


def test_equally_loaded_agents_are_asked_in_turn_and_the_same_by_the_same_seed():
    equal = [Offer(name, "1", 1, 3) for name in "abc"]
    picked = Counter(chosen(offers=equal, seed=str(n))[0] for n in range(300))
    assert set(picked) == set("abc")
    assert min(picked.values()) > 60
    assert chosen(3, offers=equal, seed="7") == chosen(3, offers=random.Random(1).sample(equal, 3), seed="7")


def test_too_few_and_none_that_knows_the_intent_are_told():
    with pytest.raises(NoAgent) as few:
        choose(OFFERS, 5, of="x", busy=Counter(), seed="")
    assert (few.value.what, few.value.expected) == ("too few agents offer x", "5 of them")
    deaf = [Offer("a", "1", 1, 0, knows=False)]
    with pytest.raises(NoAgent) as none:
        choose(deaf, None, of="x", busy=Counter(), seed="")
    assert str(none.value) == (
        "E_NO_AGENT  no agent that offers x knows this intent (got a); expected an agent that offers it and declares the"
        " intent. Next: agentmesh agents list"
    )
