"""agentmesh audit: shown as sealed, verified against anchors, exit code 6 and the number that is bad."""

from agentmesh.state import audit


def test_the_audit_is_listed_verified_and_anchored(mesh_cli, lab, tmp_path):
    trace = lab.start()
    lab.start()
    assert mesh_cli("pause", trace.id).code == 0
    place = {"AGENTMESH_AUDIT_ANCHORS": str(tmp_path / "anchors")}
    anchored = mesh_cli("audit", "anchor", "--json", **place)
    assert (anchored.code, anchored.json["heads"]) == (0, 1)
    listed = mesh_cli("audit", "list", "--trace", trace.id, "--json").json["rows"]
    assert [one["action"] for one in listed] == ["EXEC_PAUSE", "BIR_DISPATCH"]
    assert "EXEC_PAUSE" in mesh_cli("audit", "list").out
    well = mesh_cli("audit", "verify", "--json", **place)
    assert (well.code, well.json["whole"], well.json["chains"][0]["anchors"]) == (0, True, 1)
    assert "no anchors were given" in mesh_cli("audit", "verify").err


def test_s58_a_changed_audit_exits_6_and_names_the_first_bad_number(mesh_cli, lab):
    lab.start()
    audit.seal(lab.mesh.db)
    number = lab.mesh.audit.rows()[0]["seq"]
    spoil = "UPDATE mesh.audit SET body = replace(body, {}, {}) WHERE seq = {}"
    lab.rows("SET session_replication_role = replica; " + spoil.format("'tester'", "'nobody'", number))
    ran = mesh_cli("audit", "verify", "--json")
    assert (ran.code, ran.json["whole"]) == (6, False)
    assert (ran.problem["code"], ran.problem["value"]) == ("E_AUDIT", f"default:{number}")
    lab.rows("SET session_replication_role = replica; " + spoil.format("'nobody'", "'tester'", number))


def test_anchoring_without_a_file_says_what_to_set(mesh_cli, lab):
    ran = mesh_cli("audit", "anchor", "--json")
    assert ran.code == 2
    assert "audit.anchors" in ran.problem["expected"]
