"""An agent that decides by a model, in real worker processes: one that dies while the model thinks is asked for anew."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentmesh.testing import until
from tests.model_server import calls, model_server, says, silent

pytestmark = pytest.mark.story

AGENT = """
agent: thinker
tools: [rate]
grants: ["data:read"]
policy: {trigger_next_action: true, backoff: {base_s: 0.05, cap_s: 0.1}}
reasoner: {llm: {prompt: You think., price: {input: 1.0, output: 1.0}}}
"""


@pytest.fixture
def thinking(make_story: Any) -> Any:
    """thinking(url) -> a story whose agent asks the model there."""

    def make(url: str) -> Any:
        story = make_story("embedded")
        (story.home / "thinkers").mkdir()
        (story.home / "thinkers" / "thinker.yaml").write_text(AGENT)
        story.env |= {"AGENTMESH_AGENTS_PATHS": str(story.home / "thinkers"), "AGENTMESH_LLM_BASE_URL": url,
                      "AGENTMESH_LLM_MODEL": "small", "AGENTMESH_WORKER_DRAIN": "1s"}  # fmt: skip
        return story

    return make


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_while_the_model_thinks_leaves_a_question_that_is_asked_again(
    thinking: Any, end: int
) -> None:
    with model_server(silent, calls(("rate", '{"text": "calm"}')), says("It is calm.")) as server:
        story = thinking(server.url)
        first = story.worker("all")
        trace = story.mesh.router.dispatch("think", "story", "thinker", "c-1", {"n": 1})
        until(lambda: len(server.asked) == 1, what="the first question")
        first.signal(end, tree=end == signal.SIGKILL)
        story.worker("all")
        assert trace.result(timeout=60) == "It is calm."
    assert len(server.asked) == 3
    assert server.asked[0].messages == server.asked[1].messages
    names = story.events(trace.id)
    assert (names.count("REASONER_PROMPT"), names.count("REASONER_ACTION"), names.count("TOOL_EXEC")) == (2, 2, 1)
    outcomes = story.rows("SELECT outcome FROM mesh.attempts WHERE kind = 'reason' ORDER BY started_at, n")
    lost = "lost" if end == signal.SIGKILL else outcomes[0]["outcome"]
    assert [one["outcome"] for one in outcomes] == [lost, "won", "won"]
    assert lost in {"lost", "released"}
