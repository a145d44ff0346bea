"""The demo's own tables, in schema `demo`: past cases, open cases, and the cases that were filed.

A text becomes a tsvector whose every word carries a label by how rare it is (A: rarest). That is
all the weighting there is: `ts_rank` reads the labels. Connections are given, never opened here.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import scalar_row
from sqlalchemy import Connection

from agentmesh.demo.data import load_cases
from agentmesh.errors import Mistake
from agentmesh.records import Json

VERSION = 1
OPEN_EVERY = 11
"""Every 11th past case is taken to be still open: 910 of 10,003."""

SCHEMA = """
CREATE SCHEMA demo;
-- English stems, no stop words: in short questions "how", "why" and "not" tell cases apart.
CREATE TEXT SEARCH DICTIONARY demo.stem (TEMPLATE = snowball, LANGUAGE = english);
CREATE TEXT SEARCH CONFIGURATION demo.words (COPY = english);
ALTER TEXT SEARCH CONFIGURATION demo.words
  ALTER MAPPING FOR asciiword, asciihword, hword_asciipart, hword, hword_part, word WITH demo.stem;
CREATE TABLE demo.past_cases (
  id int PRIMARY KEY, customer int NOT NULL, age_days int NOT NULL, category text NOT NULL,
  text text NOT NULL, length int NOT NULL, words tsvector NOT NULL);
CREATE TABLE demo.open_cases (
  id int PRIMARY KEY, customer int NOT NULL, age_days int NOT NULL, category text NOT NULL,
  text text NOT NULL);
CREATE TABLE demo.filed_cases (
  trace_id uuid NOT NULL, run text NOT NULL, filed_at timestamptz NOT NULL DEFAULT now(),
  body jsonb NOT NULL);
CREATE TABLE demo.lexemes (lexeme text PRIMARY KEY, ndoc int NOT NULL, label char(1) NOT NULL);
CREATE TABLE demo.loaded (version int NOT NULL);
CREATE TEMPORARY TABLE demo_loading (
  id int, customer int, age_days int, category text, text text) ON COMMIT DROP;
"""

# How rare is rare: of 10,003 texts a word of label A stands in fewer than 40, B 300, C 1,350.
FILL = f"""
INSERT INTO demo.lexemes
  SELECT word, ndoc, CASE WHEN ndoc < 40 THEN 'A' WHEN ndoc < 300 THEN 'B'
                          WHEN ndoc < 1350 THEN 'C' ELSE 'D' END
    FROM ts_stat($$SELECT to_tsvector('demo.words', text) FROM demo_loading$$);
ANALYZE demo.lexemes;
INSERT INTO demo.past_cases
  SELECT c.id, c.customer, c.age_days, c.category, c.text, count(*),
         string_agg(quote_literal(u.lexeme) || ':1' || l.label, ' ')::tsvector
    FROM demo_loading c, unnest(to_tsvector('demo.words', c.text)) u
    JOIN demo.lexemes l USING (lexeme) GROUP BY c.id, c.customer, c.age_days, c.category, c.text;
INSERT INTO demo.open_cases
  SELECT id, customer, age_days, category, text FROM demo_loading WHERE id % {OPEN_EVERY} = 0;
CREATE INDEX past_cases_words ON demo.past_cases USING gin (words);
CREATE INDEX open_cases_customer ON demo.open_cases (customer);
CREATE INDEX filed_cases_run ON demo.filed_cases (run);
INSERT INTO demo.loaded VALUES ({VERSION});
ANALYZE demo.past_cases; ANALYZE demo.open_cases;
"""  # noqa: S608 - two constants of this file

# Any common word is enough to be compared, but words in more than `ceiling` texts only add to the
# rank: matching on "my" or "card" alone would rank half the table. Weights are in order D, C, B, A.
SIMILAR = """
WITH asked AS (
  SELECT quote_literal(u.lexeme) AS word, coalesce(l.ndoc, 0) < %(ceiling)s AS rare
    FROM unnest(to_tsvector('demo.words', %(text)s)) u LEFT JOIN demo.lexemes l USING (lexeme)),
query AS (
  SELECT string_agg(word, '|')::tsquery AS every,
         coalesce(string_agg(word, '|') FILTER (WHERE rare), string_agg(word, '|'))::tsquery AS rare
    FROM asked)
SELECT p.id, p.category, p.text,
       (ts_rank('{0.15, 0.42, 0.69, 1}', p.words, q.every) / sqrt(p.length))::float8 AS rank
  FROM demo.past_cases p, query q
 WHERE p.words @@ q.rare
 ORDER BY rank DESC, p.id LIMIT %(limit)s
"""

OPEN = """
SELECT id, category, age_days FROM demo.open_cases
 WHERE customer = %(customer)s ORDER BY age_days DESC, id LIMIT 20
"""


def prepare(connection: psycopg.Connection[Any]) -> bool:
    """The demo's tables are there and filled. True: this call made them; False: they were there.

    Loading takes about a second. Two callers at once: the second waits for the first. Raises
    Mistake when the database has a schema `demo` that is not this one; nothing is dropped then.
    """
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('agentmesh.demo'))")
        if _is_loaded(cursor):
            return False
        cursor.execute(SCHEMA)
        columns = "id, customer, age_days, category, text"
        with cursor.copy(f"COPY demo_loading ({columns}) FROM STDIN") as copy:
            for row, case in enumerate(load_cases()):
                copy.write_row((row, case.customer, case.age_days, case.category, case.text))
        cursor.execute(FILL)
    return True


def similar(connection: Connection, text: str, *, limit: int, wide: bool) -> list[dict[str, Json]]:
    """At most `limit` past cases that share words with `text`, best first.

    Narrow: those that share a rare word (in fewer than 300 texts). `wide`: or a less rare one
    (1,350), which takes twice as long and finds more.
    """
    given = {"text": text, "limit": limit, "ceiling": 1350 if wide else 300}
    return [dict(row) for row in connection.exec_driver_sql(SIMILAR, given).mappings()]


def open_cases(connection: Connection, customer: int) -> list[dict[str, Json]]:
    """At most 20 open cases of one customer, oldest first: id, category, age_days."""
    rows = connection.exec_driver_sql(OPEN, {"customer": customer}).mappings()
    return [dict(row) for row in rows]


def file_case(connection: Connection, *, trace_id: str, run: str, body: str) -> None:
    """One more filed case. No unique key guards the table: a case filed twice would show."""
    connection.exec_driver_sql(
        "INSERT INTO demo.filed_cases (trace_id, run, body) VALUES (%(trace_id)s, %(run)s, %(body)s)",
        {"trace_id": trace_id, "run": run, "body": body},
    )


def filed(connection: psycopg.Connection[Any], run: str) -> list[dict[str, Json]]:
    """The bodies of a run's filed cases in the order they were filed, doubles included."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("SELECT body FROM demo.filed_cases WHERE run = %s ORDER BY filed_at, trace_id", (run,))
        return list(cursor)


def _is_loaded(cursor: psycopg.Cursor[Any]) -> bool:
    if cursor.execute("SELECT to_regnamespace('demo') IS NULL").fetchone():
        return False
    ours = cursor.execute("SELECT to_regclass('demo.loaded') IS NOT NULL").fetchone()
    version = cursor.execute("SELECT max(version) FROM demo.loaded").fetchone() if ours else None
    if version == VERSION:
        return True
    raise Mistake(
        "the database has a schema 'demo' that this release did not make",
        value=f"version {version}" if ours else "a schema of somebody else's",
        expected=f"none, or version {VERSION}; 'DROP SCHEMA demo CASCADE' removes it",
        next="agentmesh demo",
    )
