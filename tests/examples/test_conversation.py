"""The example conversation, as it stands, on real rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agentmesh import testing
from agentmesh.errors import BadMemory
from agentmesh.execution.callbacks import HANDLERS

HERE = Path(__file__).parents[2] / "examples" / "conversation"


def test_the_concierge_knows_who_asked_what_after_older_turns_are_summed_up(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    mesh, bells = testing.hand_mesh(database_url, root=HERE, flags={"mesh.home": tmp_path})
    try:

        def say(text: str) -> Any:
            trace = mesh.router.dispatch("say", "guest", "concierge", "room-7", {"text": text})
            bells.drain(mesh)
            return trace.result(0)

        assert say("I am Ada") == "Welcome, Ada."
        questions = [f"Where is room {n}?" for n in range(9)]
        assert {say(one) for one in questions} == {"Let me see, Ada."}
        assert say("What did I ask?") == f"Ada, you asked: {' '.join(questions)}"
        assert mesh.memory("room-7").retrieve("guest") == {"name": "Ada"}
        assert mesh.memory("room-7").history("summary")[0].node == "reason"
        with pytest.raises(BadMemory):
            mesh.memory("room-7").store("guest", {"nights": 2})
    finally:
        mesh.close()
        HANDLERS.pop("remember_guest", None)
        sys.modules.pop("concierge", None)
