"""Names, ids and permissions: which texts are one, and which never become one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agentmesh.errors import BadName, BadPermission
from agentmesh.records import (
    ContextId,
    Name,
    agent_queue,
    check_name,
    check_permissions,
    expand_grants,
    grants_cover,
    tool_queue,
)

ILL_FORMED = {
    "a wildcard as a need": "db:*",
    "a wildcard alone": "*",
    "a wildcard in the middle": "db:*:read",
    "a wildcard within a part": "db:re*",
    "upper case": "DB:READ",
    "one upper letter": "db:Read",
    "a cyrillic homoglyph": "db:r\u0435ad",
    "full width": "\uff44b:read",
    "a trailing dot": "db:read.",
    "a leading dot": ".db:read",
    "dots alone": "db:..",
    "a trailing colon": "db:read:",
    "a leading colon": ":read",
    "two colons": "db::read",
    "no verb": "db",
    "empty": "",
    "a newline behind": "db:read\n",
    "a space": "db: read",
    "NUL": "db:read\0",
    "129 characters": "db:" + "a" * 126,
    "a megabyte": "a:" * 500_000,
    "null": None,
    "a number": 1,
    "bytes": b"db:read",
    "a list": ["db:read"],
}


@pytest.mark.parametrize("one", ILL_FORMED.values(), ids=ILL_FORMED.keys())
def test_s13_an_ill_formed_permission_is_refused(one: object) -> None:
    with pytest.raises(BadPermission):
        check_permissions(["db:read", one])


@pytest.mark.parametrize("grant", [one for one in ILL_FORMED.values() if one not in ("db:*", "*")])
def test_s13_only_the_last_part_of_a_grant_is_a_wildcard(grant: object) -> None:
    with pytest.raises(BadPermission):
        check_permissions([grant], wildcards=True)
    assert check_permissions(["db:*", "*", "a:b:*"], wildcards=True) == ("*", "a:b:*", "db:*")


def test_s13_10_000_entries_are_refused_without_reading_them() -> None:
    endless = (f"db:{n}" for n in itertools.count())
    with pytest.raises(BadPermission, match="too many"):
        check_permissions(endless)
    with pytest.raises(BadPermission, match="too many"):
        check_permissions(["db:read"] * 10_000)


@pytest.mark.parametrize("listed", [None, "db:read", b"db:read", 1])
def test_s13_what_is_no_list_is_refused(listed: object) -> None:
    with pytest.raises(BadPermission, match="not a list"):
        check_permissions(listed)  # type: ignore[arg-type]


def test_permissions_are_sorted_without_doubles() -> None:
    assert check_permissions(["b:x", "a:x", "b:x"]) == ("a:x", "b:x")
    assert check_permissions([]) == ()
    assert check_permissions(["db:" + "a" * 125, "a_b.c-d:e:f"])


@given(st.text(max_size=140))
def test_s13_what_is_accepted_is_ascii_of_the_grammar(text: str) -> None:
    try:
        check_permissions([text])
    except BadPermission:
        return
    assert len(text) <= 128
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.:-")


def test_a_grant_covers_what_is_below_it_and_nothing_beside() -> None:
    assert grants_cover(["db:*"], "db:read")
    assert grants_cover(["db:*"], "db:rows:read")
    assert grants_cover(["*"], "db:read")
    assert grants_cover(["db:read"], "db:read")
    assert not grants_cover(["db:*"], "dbx:read")
    assert not grants_cover(["db:read"], "db:read:all")
    assert not grants_cover(["db:rows:*"], "db:read")
    assert not grants_cover([], "db:read")


def test_s13_wildcards_end_where_grants_are_expanded() -> None:
    known = ["db:read", "db:write", "mail:send"]
    assert expand_grants(["db:*", "web:*"], known) == ("db:read", "db:write")
    assert expand_grants(["*"], known) == tuple(known)
    assert expand_grants([], known) == ()


# --- names ---------------------------------------------------------------------------------------

NOT_NAMES = {
    "a dot": "a.b",
    "a star": "a*",
    "a hash": "a#",
    "a slash": "a/b",
    "a backslash": "a\\b",
    "up": "..",
    "a newline behind": "agent\n",
    "a newline before": "\nagent",
    "redis' priority separator": "agent\x06\x163",
    "a colon": "a:b",
    "300 characters": "a" * 300,
    "65 characters": "a" * 65,
    "upper case": "Agent",
    "a digit first": "1agent",
    "a hyphen first": "-agent",
    "a homoglyph": "\u0430gent",
    "a combining mark": "a\u0301gent",
    "right to left": "agent\u202e",
    "NUL": "agent\0",
    "a space": "agent ",
    "empty": "",
    "null": None,
    "a number": 7,
    "bytes": b"agent",
}
NAMES = ["a", "report_agent", "a-b_9", "a" * 64]
name_record = TypeAdapter(Name)
context_record = TypeAdapter(ContextId)


@pytest.mark.parametrize("name", NOT_NAMES.values(), ids=NOT_NAMES.keys())
def test_s24_what_could_name_another_queue_is_no_name(name: object) -> None:
    with pytest.raises(BadName):
        check_name(name, "the agent")
    with pytest.raises(ValidationError):
        name_record.validate_python(name, strict=True)


@given(st.text(max_size=70))
def test_s24_both_name_grammars_agree(text: str) -> None:
    try:
        checked = check_name(text, "the agent") == text
    except BadName:
        checked = False
    try:
        recorded = name_record.validate_python(text, strict=True) == text
    except ValidationError:
        recorded = False
    assert checked == recorded


@pytest.mark.parametrize("name", NAMES)
def test_names_are_kept_as_they_are(name: str) -> None:
    assert check_name(name, "the agent") == name
    assert name_record.validate_python(name, strict=True) == name


def test_s24_no_two_names_share_a_queue() -> None:
    names = [*NAMES, "tools", "agent", "agents", "tools-a"]
    queues = [agent_queue(name) for name in names] + [tool_queue(name) for name in names]
    assert len(set(queues)) == 2 * len(names)


@pytest.mark.parametrize(
    "text",
    [
        *("a*", "a#", "a/b", "../a", "..", "a\n", "\na", "a\x06\x163", "a" * 300, "a" * 129),
        *("a b", "", "é", "a\0", ".a", "-a", "a\\b", "a%b", "a'b", 'a"b', "a;b", "a$b", "\u202ea"),
    ],
)
def test_s24_a_context_id_has_no_pattern_path_or_control_characters(text: str) -> None:
    with pytest.raises(ValidationError):
        context_record.validate_python(text, strict=True)


@pytest.mark.parametrize("text", ["session-001", "order:17", "a.b", "Ann@example.org", "7", "a" * 128])
def test_a_context_id_is_the_user_s_text(text: str) -> None:
    assert context_record.validate_python(text, strict=True) == text
