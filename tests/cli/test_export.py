"""agentmesh export: told to the end with --once, and honest about a back end that does not take it."""

import json

from agentmesh.testing import until


def test_events_are_told_to_a_file_from_where_it_was(mesh_cli, lab, tmp_path):
    lab.start()
    lab.drain()
    path = tmp_path / "events.jsonl"
    every = {f"{row['trace_id']}:{row['seq']}" for row in lab.rows("SELECT trace_id, seq FROM mesh.events")}

    def told():
        assert mesh_cli("export", f"jsonl:{path}", "--once", "--json").code == 0
        return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []

    assert set(until(lambda: len(told()) == len(every) and told())) == every


def test_a_back_end_that_does_not_answer_exits_5_and_a_wrong_one_2(mesh_cli, lab):
    lab.start()
    ran = until(lambda: (made := mesh_cli("export", "elastic:http://127.0.0.1:9/x", "--once", "--json")).code and made)
    assert (ran.code, ran.problem["code"]) == (5, "E_EXPORT")
    assert mesh_cli("export", "kafka:x", "--once").code == 2
    assert mesh_cli("export", "jsonl:x", "--header", "nothing", "--once").code == 2
