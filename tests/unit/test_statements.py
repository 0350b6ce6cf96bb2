"""The project's SQL: named blocks, tokens, and which schema names can be used."""

import re

import pytest

from supervisor.core.errors import ConfigInvalid
from supervisor.db import statements
from supervisor.db.statements import Sql, identifier, literal, parse_blocks

FILE = """-- the file's own comment

-- name: release :many
-- Give back what a dead worker held.
-- Nothing of it can commit any more.
-- Locks:  task rows, by run_id     Index:  task_owner_idx (owner) WHERE owner IS NOT NULL
-- $1 int4 worker    $2 int4 run_max
-- $3 text why     Returns run, seq
UPDATE {schema}.task
-- a comment inside stays
SET owner = NULL WHERE owner = $1 AND note = '{"a": {}}';

-- ── a rule between blocks ──
-- name: bare
SELECT 1
"""


def test_a_block_has_its_text_without_its_header():
    release, bare = parse_blocks(FILE, "x.sql")
    assert release.text.startswith("UPDATE {schema}.task\n-- a comment inside stays\n")
    assert release.text.endswith("""note = '{"a": {}}'""")
    assert ("bare", "exec", "SELECT 1") == (bare.name, bare.shape, bare.text)


def test_a_header_is_read_by_its_labels():
    header = parse_blocks(FILE, "x.sql")[0].header
    assert "Give back what a dead worker held. Nothing of it can commit any more." == header["what"]
    assert "task rows, by run_id" == header["locks"]
    assert "task_owner_idx (owner) WHERE owner IS NOT NULL" == header["index"]
    assert "$1 int4 worker    $2 int4 run_max $3 text why" == header["params"]
    assert "run, seq" == header["returns"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-- name: Claim :many\nSELECT 1", "line 1"),
        ("-- name: a :lots\nSELECT 1", ":lots"),
        ("-- name: a\n-- only words\n", "no statement"),
    ],
)
def test_a_malformed_block_is_refused_with_its_place(text, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_blocks(text, "x.sql")


def test_every_block_of_the_project_renders_and_says_what_it_locks_if_it_writes():
    sql = Sql('We"ird')
    assert sql.names()
    for name in sql.names():
        assert not re.search(r"\{[a-z_]+\}", sql.get(name)), name
        assert "supervisor." not in sql.get(name), name
        if re.search(r"\b(INSERT INTO|UPDATE|DELETE FROM|FOR SHARE)\b", sql.get(name)):
            assert sql.header(name).get("locks"), f"{name} does not say what it locks"


def test_every_migration_renders_and_says_how_it_is_deployed_and_undone():
    for file in statements.migration_files():
        text = Sql('We"ird').render(file.text)
        assert not re.search(r"\{[a-z_]+\}", text), file.name
        for label in ("-- deploy:", "-- lock:", "-- undo:"):
            assert label in file.text, f"{file.name} lacks {label}"


def test_an_unknown_block_names_the_near_ones():
    with pytest.raises(KeyError, match="client_start"):
        Sql().get("client_strat")


def test_only_the_tokens_are_replaced_and_only_once():
    sql = Sql("a{schema}b".replace("{", "").replace("}", ""))
    assert '"aschemab".t {} {other} {"schema": 1} {Schema}' == sql.render('{schema}.t {} {other} {"schema": 1} {Schema}')


def test_tokens_are_quoted_for_their_place():
    sql = Sql('We"ird')
    assert '"We""ird"' == sql.render("{schema}")
    assert "'\"We\"\"ird\"'" == sql.render("{schema_literal}")
    assert '"We""ird_worker"' == sql.render("{role_worker}")
    assert "'We\"ird_operator'" == sql.render("{role_operator_literal}")
    assert "hashint4('\"We\"\"ird\"'::pg_catalog.regnamespace" in sql.render("{lock_class}")


def test_quoting_survives_quotes_and_backslashes():
    assert '"a""b"' == identifier('a"b')
    assert "'a''b'" == literal("a'b")
    assert " E'a\\\\b'" == literal("a\\b")


@pytest.mark.parametrize("name", ["supervisor", 'We"ird', "with space", "UPPER", "ünïcode", "a" * 54])
def test_usable_schema_names(name):
    assert name == Sql(name).schema


@pytest.mark.parametrize(
    "name",
    ["", "public", "pg_x", "information_schema", "o'x", "a%b", "a$$b", "a\\b", "{schema}", "a\x00b", "a\nb", "a" * 55, "ü" * 28],
)
def test_unusable_schema_names_are_refused_with_the_reason(name):
    """They would end a literal, a function body or a format() template, or take rights from everybody's objects."""
    with pytest.raises(ConfigInvalid, match="can't be used"):
        Sql(name)


def test_a_block_that_asks_another_along_has_its_text():
    sql = Sql("s")
    for name in ("beat", "seek_lead"):
        assert f"look AS ({sql.get('pulse')})" in sql.get(name)
