"""What a reasoner is shown of a conversation, what is recorded of that, and how a context is summed up."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.errors import BadAgentFile
from agentmesh.observation import decisions


class Talk:
    """A mesh whose agent answers with what it was shown of the turns before; `sums` is what its summariser was asked."""

    def __init__(self, make_mesh: Any, url: str, **session: Any) -> None:
        self.sums: list[Any] = []
        self.fails = False
        spec = define_agent(
            "talker", reasoner=self.answer, reasoners={"sums": self.sum}, session=session, policy={"reasoner_attempts": 1}
        )  # fmt: skip
        self.spec, self.url = spec, url
        self.mesh, self.bells = make_mesh(spec)

    def answer(self, session: Any) -> Any:
        if session.payload.get("fail"):
            raise ValueError("no")
        seen = [one.get("answer", one.get("error")) for one in session.turns]
        before = session.memory.get("long_term:summary")
        return {"answer": {"n": session.payload["n"], "saw": len(seen), "summary": before and before["text"]}}

    def sum(self, session: Any) -> Any:
        if self.fails:
            raise ValueError("no words")
        said = [one["payload"]["n"] for one in session.payload["turns"]]
        self.sums.append((session.payload["summary"], said))
        return {"answer": f"{session.payload['summary'] or ''}{','.join(map(str, said))};"}

    def say(self, n: int, **payload: Any) -> Any:
        trace = self.mesh.router.dispatch("say", "ann", "talker", "c-1", {"n": n, **payload})
        self.bells.drain(self.mesh)
        return trace

    def bodies(self, trace: Any, name: str) -> list[Any]:
        return [one["body"] for one in self.mesh.trace_writer.get(trace.id) if one["name"] == name]


def test_turns_before_are_shown_and_what_was_left_out_is_recorded_with_the_step(
    make_mesh: Any, database_url: str
) -> None:
    talk = Talk(make_mesh, database_url, strategy="dialogue", options={"most": 2})
    traces = [talk.say(n) for n in range(4)]
    assert [one.result(0)["saw"] for one in traces] == [0, 1, 2, 2]
    [chosen] = talk.bodies(traces[3], "REASONER_ACTION")
    assert chosen["session"]["shown"]["turns"].keys() == {str(traces[2].id), str(traces[1].id)}
    assert "answer" not in str(chosen["session"])


def test_a_turn_that_failed_is_shown_with_its_code_and_other_contexts_are_not(
    make_mesh: Any, database_url: str
) -> None:
    talk = Talk(make_mesh, database_url, strategy="dialogue")
    talk.say(0, fail=True)
    talk.mesh.router.dispatch("say", "ann", "talker", "c-2", {"n": 1})
    talk.bells.drain(talk.mesh)
    assert talk.mesh.parts.sessions.turns("default", "c-1", talk.say(2).id)[0]["error"] == "E_REASONER"
    assert talk.say(3).result(0)["saw"] == 2


SUMMED = {"strategy": "summary", "summary": {"reasoner": "sums", "after": 3, "keep": 1}}


def test_a_context_that_has_grown_is_summed_up_in_the_commit_of_the_step(make_mesh: Any, database_url: str) -> None:
    talk = Talk(make_mesh, database_url, **SUMMED)
    traces = [talk.say(n) for n in range(9)]
    assert talk.sums == [(None, [0, 1, 2]), ("0,1,2;", [3, 4, 5])]
    assert [one.result(0)["summary"] for one in traces] == [None] * 4 + ["0,1,2;"] * 3 + ["0,1,2;3,4,5;"] * 2
    assert [one.result(0)["saw"] for one in traces] == [0, 1, 2, 3, 1, 2, 3, 1, 2]
    assert talk.bodies(traces[4], "MEMORY_WRITE")[0] == {"keys": ["long_term:summary"]}
    [newest, _] = talk.mesh.memory("c-1").history("summary")
    assert (newest.trace_id, newest.node, newest.origin, newest.trusted) == (traces[7].id, "reason", "summary", False)


def test_what_a_decision_was_shown_is_found_again(make_mesh: Any, database_url: str) -> None:
    talk = Talk(make_mesh, database_url, **SUMMED)
    traces = [talk.say(n) for n in range(7)]
    for trace in traces:
        point = decisions.point(
            talk.mesh.db, "default", trace.id, step=None, blobs=talk.mesh.blobs, spec=talk.spec
        )  # fmt: skip
        assert talk.answer(point.session) == {"answer": trace.result(0)}


def test_a_summariser_that_fails_is_recorded_and_asked_again_and_the_decision_goes_on(
    make_mesh: Any, database_url: str
) -> None:
    talk = Talk(make_mesh, database_url, **SUMMED)
    talk.fails = True
    traces = [talk.say(n) for n in range(5)]
    assert traces[4].result(0) == {"n": 4, "saw": 4, "summary": None}
    [asked] = talk.bodies(traces[4], "REASONER_PROMPT")
    assert asked["error"]["message"] == "ValueError: no words"
    talk.fails = False
    assert talk.say(5).result(0)["summary"] == "0,1,2,3;"


def test_a_step_that_fails_writes_no_summary(make_mesh: Any, database_url: str) -> None:
    talk = Talk(make_mesh, database_url, **SUMMED)
    for n in range(4):
        talk.say(n)
    talk.say(4, fail=True)
    assert talk.mesh.memory("c-1").snapshot() == {}
    assert len(talk.sums) >= 1


def test_a_summary_needs_a_reasoner_that_the_agent_has(make_mesh: Any) -> None:
    spec = define_agent("a", reasoner=lambda session: 1, session={"summary": {"reasoner": "sums"}})
    with pytest.raises(BadAgentFile, match="no reasoner that could sum"):
        make_mesh(spec)
