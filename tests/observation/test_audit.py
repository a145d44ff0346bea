"""Whether the audit is what was written: every way to change it that its owner and a superuser have (S58)."""

from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from agentmesh.communication.keys import new_key
from agentmesh.communication.statements import read_statement, sign_statement
from agentmesh.coordination.anchors import KIND, Anchors
from agentmesh.observation.audit import verify
from agentmesh.state import audit

PAST_THE_GUARD = "SET LOCAL session_replication_role = replica"
UNINDEXED = "DROP INDEX mesh.audit_chain"  # which row an UPDATE comes to first is PostgreSQL's affair
HASH = "sha256(prev || convert_to(body, 'UTF8'))"
INSERTED = """INSERT INTO mesh.audit (id, tenant_id, body, seq, prev, hash) SELECT gen_random_uuid(), tenant_id, 'x', 3, hash,
  sha256(hash || convert_to('x', 'UTF8')) FROM mesh.audit WHERE seq = 2"""
ATTACKS = [  # what, its statements, the first bad number without anchors (None: not seen) and with them
    ("nothing", [], None, None),
    ("an edit", ["UPDATE mesh.audit SET body = replace(body, 'anna', 'bert') WHERE seq = 3"], 3, 3),
    ("an edit with its own hash", ["UPDATE mesh.audit SET body = replace(body, 'anna', 'bert') WHERE seq = 3",
                                   f"UPDATE mesh.audit SET hash = {HASH} WHERE seq = 3"], 4, 4),
    ("another time", ["UPDATE mesh.audit SET id = gen_random_uuid() WHERE seq = 2"], 2, 2),
    ("a row taken out", ["DELETE FROM mesh.audit WHERE seq = 3"], 3, 3),
    ("a row taken out, the others moved up", ["DELETE FROM mesh.audit WHERE seq = 3",
                                              "UPDATE mesh.audit SET seq = seq - 1 WHERE seq > 3"], 3, 3),
    ("the newest taken out", ["DELETE FROM mesh.audit WHERE seq = 6"], None, 6),
    ("all taken out", ["TRUNCATE mesh.audit"], None, 1),
    ("another order", ["UPDATE mesh.audit SET seq = CASE seq WHEN 2 THEN -3 ELSE -2 END WHERE seq IN (2, 3)",
                       "UPDATE mesh.audit SET seq = -seq WHERE seq < 0"], 2, 2),
    ("a row put in", ["UPDATE mesh.audit SET seq = -seq - 1 WHERE seq > 2", "UPDATE mesh.audit SET seq = -seq WHERE seq < 0",
                      INSERTED], 3, 3),
    ("a fork with right hashes", ["UPDATE mesh.audit SET body = replace(body, '\"n\": 1', '\"n\": 8')",
                                  "UPDATE mesh.audit SET seq = NULL, prev = NULL, hash = NULL",
                                  "SELECT mesh.audit_seal(100)"], None, 6),
    ("a row copied from another tenant", ["UPDATE mesh.audit SET tenant_id = 'acme' WHERE seq = 1"], 1, 1),
]  # fmt: skip


class Reading:
    """One open transaction as what verify reads from."""

    def __init__(self, connection):
        self._connection = connection

    def read(self, sql, params=None):
        return self._connection.cursor(row_factory=dict_row).execute(sql, params).fetchall()


@pytest.fixture
def chain(lab, tmp_path):
    """A chain of six rows of tenant default; (lines of its anchors, what opens them)."""
    lab.rows(f"{PAST_THE_GUARD}; SET session_replication_role = replica; DELETE FROM mesh.audit")
    for n in range(6):
        lab.mesh.audit.record("NOTE", by="anna", n=n)
    assert audit.seal(lab.mesh.db) == 6
    anchors = Anchors(lab.mesh.db, tmp_path / "out" / "anchors", key=lambda: lab.mesh.key, mesh="mesh", every_s=60)
    assert anchors.write() == 1
    assert anchors.write() == 0  # nothing has moved
    lines = (tmp_path / "out" / "anchors").read_text().splitlines()
    return lines, lambda line: read_statement(line, [lab.mesh.key.public], kind=KIND)


def first_bad(found):
    return next((one.bad for one in found if one.bad is not None), None)


def test_s58_every_change_is_named_by_its_first_bad_number(lab, chain):
    """As a superuser past every guard; the heads beside the chain are taken away, too. Each rolled back."""
    lines, opened = chain
    seen = []
    with psycopg.connect(lab.url) as connection:
        for what, statements, _, _ in ATTACKS:
            connection.execute(PAST_THE_GUARD)
            for sql in [UNINDEXED, *statements, "DELETE FROM mesh.audit_heads"]:
                connection.execute(sql)
            alone = first_bad(verify(Reading(connection), [], opened))
            seen.append((what, alone, first_bad(verify(Reading(connection), lines, opened))))
            connection.rollback()
    assert seen == [(what, alone, anchored) for what, _, alone, anchored in ATTACKS]


def test_s58_the_heads_beside_the_chain_see_a_fork_whose_maker_forgot_them(lab, chain):
    fork = next(statements for what, statements, _, _ in ATTACKS if what.startswith("a fork"))
    with psycopg.connect(lab.url) as connection:
        connection.execute(PAST_THE_GUARD)
        for sql in fork:
            connection.execute(sql)
        assert first_bad(verify(Reading(connection), [], chain[1])) == 6
        connection.rollback()


def test_s58_an_anchor_that_another_key_has_signed_is_not_believed(lab, chain, tmp_path):
    lines, opened = chain
    said = read_statement(lines[0], [lab.mesh.key.public], kind=KIND)
    stranger = new_key(tmp_path / "stranger.pem")
    forged = sign_statement(said, stranger, kind=KIND)
    lab.mesh.key_table.register(kid=stranger.kid, tenant_id="default", owner="x", public=stranger.public, grants=["*"])
    for line in (forged, "", lines[0][:-9] + "AAAAAAAAA", sign_statement(said, lab.mesh.key, kind="other+jws")):
        found = verify(lab.mesh.db, [lines[0], "", line], opened)
        assert first_bad(found) == (3 if line else None)


def test_what_cannot_be_anchored_is_tried_again(lab, tmp_path):
    lab.mesh.audit.record("NOTE", by="anna")
    audit.seal(lab.mesh.db)
    now, place = [0.0], tmp_path / "disk"
    place.write_text("in the way")
    anchors = Anchors(
        lab.mesh.db, place / "anchors", key=lambda: lab.mesh.key, mesh="mesh", every_s=60, monotonic=lambda: now[0]
    )
    anchors.look()
    Path(place).unlink()
    anchors.look()
    assert not place.exists()  # it is not yet time
    now[0] = 61.0
    anchors.look()
    assert (place / "anchors").read_text().count("\n") == 1
