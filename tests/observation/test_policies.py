"""Where each part of a trace's policy comes from."""

from agentmesh.observation import policies, timeline


def test_every_part_names_the_level_it_comes_from(make_lab):
    chain = {
        "chain": "c",
        "policy": {"callback_attempts": 5},
        "steps": [{"reasoner": "think", "timeout": "7s", "id": "n"}],
    }
    lab = make_lab(chain=chain, reasoners={"think": lambda _session: {"answer": 1}}, policy={"reasoner_attempts": 4})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {}, policy={"max_steps": 9})
    lab.drain()
    seen = timeline.trace(lab.mesh.db, "default", trace.id)
    body = timeline.plan(lab.mesh.db, "default", seen.trace["plan_hash"])
    found = {
        (one.name, one.node): (one.value, one.source)
        for one in policies.parts(seen.trace, timeline.events(lab.mesh.db, "default", trace.id), body)
    }
    assert found["max_steps", None] == (9, "intent")
    assert found["reasoner_attempts", None] == (4, "agent")
    assert found["callback_attempts", None] == (5, "plan")
    assert found["write_memory", None] == (True, "default")
    assert found["reasoner_timeout_s", "n"] == (7, "plan")
