"""Filters: text to tree, tree to SQL. What is typed never becomes a part of a statement's text."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core import filters
from supervisor.core.errors import FilterInvalid, SupervisorError
from supervisor.core.filters import And, Compare, Filter, Not, Or, both, parse
from supervisor.db.filters import EVERY_LIVE, FEW, Sizes, compiled

RUN = uuid.UUID("01a20372-5082-702e-8dae-5c638c476000")


# ── text to tree ─────────────────────────────────────────────────────────────────────────────────────────────────

READ: list[tuple[str, Filter]] = [
    ("workflow = checkout", Compare("workflow", "=", ("checkout",))),
    ("workflow=checkout", Compare("workflow", "=", ("checkout",))),
    ("WORKFLOW == checkout", Compare("workflow", "=", ("checkout",))),
    ("workflow <> checkout", Compare("workflow", "!=", ("checkout",))),
    ('key ^= "order-"', Compare("key", "^=", ("order-",))),
    ("key ^= order-", Compare("key", "^=", ("order-",))),
    (r"key = 'it\'s'", Compare("key", "=", ("it's",))),
    (r'key = "a\"b\\c"', Compare("key", "=", ('a"b\\c',))),
    ('key = "and"', Compare("key", "=", ("and",))),
    ("error ~ declined", Compare("error", "~", ("declined",))),
    ("error !~ declined", Not(Compare("error", "~", ("declined",)))),
    ("error.type = shop.CardDeclined", Compare("error", "=", ("shop.CardDeclined",), ("type",))),
    ("fingerprint = 12ab34cd56ef", Compare("fingerprint", "=", ("12ab34cd56ef",))),
    ('fingerprint."a step" in (123456789012, b)', Compare("fingerprint", "in", ("123456789012", "b"), ("a step",))),
    ("fingerprint.charge != b", Compare("fingerprint", "!=", ("b",), ("charge",))),
    ("fingerprint is null", Compare("fingerprint", "null")),
    ("status in (failed, timed_out)", Compare("status", "in", ("failed", "timed_out"))),
    ("status NOT IN (failed)", Not(Compare("status", "in", ("failed",)))),
    ("Status = FAILED", Compare("status", "=", ("failed",))),
    ("wait = signal", Compare("wait", "=", ("signal",))),
    ("key is null", Compare("key", "null")),
    ("key is not null", Not(Compare("key", "null"))),
    ("parent IS NULL", Compare("parent", "null")),
    (f"parent = {RUN}", Compare("parent", "=", (RUN,))),
    (f"id = {str(RUN).upper()}", Compare("run", "=", (RUN,))),
    ("attempt >= 3", Compare("attempt", ">=", (3,))),
    ("age > 1h", Compare("age", ">", (3600.0,))),
    ("age > 90", Compare("age", ">", (90.0,))),
    ("took >= 1h30m", Compare("took", ">=", (5400.0,))),
    ('waited > "2 days"', Compare("waited", ">", (172_800.0,))),
    ("took < 250ms", Compare("took", "<", (0.25,))),
    ("started >= 2026-11-22", Compare("started", ">=", (datetime(2026, 11, 22, tzinfo=timezone.utc),))),
    ("ended < 2026-11-22T08:30:00+02:00", Compare("ended", "<", (datetime(2026, 11, 22, 6, 30, tzinfo=timezone.utc),))),
    ("attribute.tenant = a", Compare("attribute", "=", ("a",), ("tenant",))),
    ('attribute."first name".x = a', Compare("attribute", "=", ("a",), ("first name", "x"))),
    ("input.order.items.0 = 4711", Compare("input", "=", (4711,), ("order", "items", "0"))),
    ('input.order = "4711"', Compare("input", "=", ("4711",), ("order",))),
    ("input.price > 9.5", Compare("input", ">", (9.5,), ("price",))),
    ("result.ok = true", Compare("result", "=", (True,), ("ok",))),
    ("input ~ 4711", Compare("input", "~", ("4711",))),
    ("attribute.order = order", Compare("attribute", "=", ("order",), ("order",))),
]


@pytest.mark.parametrize(("text", "tree"), READ, ids=lambda value: value if isinstance(value, str) else "")
def test_a_test_is_read(text: str, tree: Filter) -> None:
    assert parse(text) == tree


def test_and_binds_closer_than_or_and_not_closer_than_and() -> None:
    """As everywhere; who wants it otherwise writes parentheses."""
    a, b, c = (Compare("key", "=", (name,)) for name in "abc")
    assert parse("key = a OR key = b AND key = c") == Or((a, And((b, c))))
    assert parse("key = a and key = b or key = c") == Or((And((a, b)), c))
    assert parse("(key = a OR key = b) AND key = c") == And((Or((a, b)), c))
    assert parse("NOT key = a AND key = b") == And((Not(a), b))
    assert parse("NOT (key = a AND NOT key = b)") == Not(And((a, Not(b))))


def test_filters_go_together() -> None:
    a, b = Compare("key", "=", ("a",)), Compare("key", "=", ("b",))
    assert (both(), both(None, a), both(a, None, b)) == (None, a, And((a, b)))


WRONG = [
    # text, where (from 0), what is wrong, what would fit
    ("", 0, "empty", "workflow = checkout"),
    ("stauts = failed", 0, "no field 'stauts'", "did you mean 'status'?"),
    ("a = b", 0, "no field 'a'", "fields are workflow, status"),
    ("status = fialed", 9, "'fialed' is not a status", "did you mean 'failed'?"),
    ("status = x", 9, "'x' is not a status", "there are ready, running"),
    ("status =", 8, "ends too early", "ready, running"),
    ("status", 6, "ends too early", "= != or in"),
    ("status failed", 7, "'failed' is no operator", "= != or in"),
    ("status ~ fail", 7, "does not take ~", "= != or in"),
    ("age = 1h", 4, "does not take =", "< <= > or >="),
    ("fingerprint ~ a", 12, "does not take ~", "= != in or is null"),
    ("fingerprint.a.b = c", 0, "has one part", "in quotes"),
    ("age > soon", 6, "'soon' is not a span", "1h30m"),
    ("age > 99999999d", 6, "is not a span", "1h30m"),
    ("started > yesterday", 10, "is not a date", "2026-11-22"),
    ("priority = high", 11, "is not a whole number", "a whole number"),
    ("priority = 99999999999", 11, "is not a whole number", "a whole number"),
    ("run = 5", 6, "is not a run's id", "a run's id"),
    ("attribute = a", 10, "needs a part", "attribute.name"),
    ("workflow.name = a", 0, "has no parts", "workflow alone"),
    ("key = a b", 8, "'b' does not fit", "AND, OR"),
    ("key = a)", 7, "')' does not fit", "AND, OR"),
    ("(key = a", 0, "not closed", ")"),
    ("(key = a key = b)", 9, "does not fit", "AND, OR or )"),
    ('key = "a', 6, "quote is not closed", '"a"'),
    ("key in a", 7, "does not fit", "key in (one, two)"),
    ("key in (a b)", 10, "does not fit", ", or )"),
    ("key in ()", 8, "does not fit", "a text"),
    ("key = AND", 6, "word of the grammar", "in quotes"),
    ("key = a AND", 11, "ends too early", "workflow"),
    ("AND key = a", 0, "does not fit", "workflow"),
    ("key = a; drop table run", 9, "does not fit", "AND, OR"),
    ("key ! a", 4, "does not fit", "quotes"),
    ("key = a\0", 7, "no text", "leave it out"),
    ("key = \udcff", 6, "no text", "leave it out"),
    ("NOT " * 60 + "key = a", 204, "nested deeper", "in parts"),
    ("(" * 60, 51, "nested deeper", "in parts"),
    (" or ".join(["key = a"] * 501), 5500, "more than 500 tests", "in parts"),
    ("key = " + "a" * 20_001, 0, "20,007 characters", "in parts"),
]


@pytest.mark.parametrize(("text", "at", "why", "remedy"), WRONG, ids=lambda value: value[:20].replace("\0", "NUL").encode("ascii", "replace").decode() if isinstance(value, str) else "")
def test_what_does_not_fit_is_shown_with_its_place_and_what_would_fit(text: str, at: int, why: str, remedy: str) -> None:
    with pytest.raises(FilterInvalid) as raised:
        parse(text)
    error = raised.value
    assert (error.code, error.at) == ("filter_invalid", at)
    assert why in str(error).rpartition("; ")[0] and remedy in str(error).rpartition("; ")[2]
    assert f"character {at + 1}" in str(error) and "»" in str(error) and len(str(error)) < 1000


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*filters.FIELDS, "and", "or", "not", "in", "is", "null", "(", ")", ",", "=", "!=", "<", ">=", "~", "^=", '"', "'", "\\", "a", "1h", "5", " ", "failed", ".x", ";", "\0", "é"]), max_size=25))  # fmt: skip
def test_any_text_is_read_or_refused(parts: list[str]) -> None:
    """Whatever is typed: a tree that becomes SQL, or FilterInvalid within its text."""
    text = " ".join(parts)
    try:
        made = parse(text)
    except FilterInvalid as error:
        assert 0 <= error.at <= len(text) and error.remedy
    else:
        check_sql(made)


# ── tree to SQL ──────────────────────────────────────────────────────────────────────────────────────────────────


def check_sql(made: Filter) -> str:
    """The condition: parameters numbered without holes from 4, each value of its own."""
    where = compiled(made, 4)
    text = f"{where.source} {where.bounds} {where.condition}"
    assert {int(number) for number in re.findall(r"\$(\d+)", text)} == set(range(4, 4 + len(where.values)))
    assert text.count("(") == text.count(")")
    return text


HOSTILE = ["'; drop table run; --", "$1", "{schema}", "%s", '"', "\\", "/*joins*/", "a' or 'a'='a", "\x1b[31m", "é"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("shape", ["key = {}", "key != {}", "key in (x, {})", "key ^= {}", "workflow ~ {}", "error !~ {}", "input.{} = 5", "attribute.x = {}", "input ~ {}", "error.{} ^= {}", "NOT queue < {}", "fingerprint = {}", "fingerprint.{} != a", "error.place = {}"])
def test_no_character_of_a_value_gets_into_the_statement(shape: str, value: str) -> None:
    """Values and names within JSON are parameters: the text is the same whatever they are."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    given_, harmless = (compiled(parse(shape.format(*[each] * shape.count("{}"))), 3) for each in (quoted, '"zz"'))
    assert (given_.condition, given_.source, given_.bounds) == (harmless.condition, harmless.source, harmless.bounds)
    assert value in str(given_.values) or value in [part for each in given_.values for part in (each if isinstance(each, list) else [each])]


QUICK = [
    ("status = running", "live"),
    ("status in (ready, waiting) AND key ^= a", "live"),
    ("wait in (signal, timer) AND age > 1h", "live"),
    ("waited > 1h", "live"),
    ("status = failed", "failures"),
    ("workflow = a AND (status in (failed, timed_out))", "failures"),
    ("error ~ declined", "failures"),
    ("error.type = a AND age < 1d", "failures"),
    ("status = failed AND status = running", "failures"),
    ("key = a AND status = failed", "keys"),
    ("key in (a, b)", "keys"),
    (f"parent = {RUN} AND status = running", "children"),
    # those may be true of others as well
    ("status = failed OR wait = signal", "started"),
    ("NOT status = failed", "started"),
    ("status != failed", "started"),
    ("status in (failed, completed)", "started"),
    ("status = lost", "started"),
    ("error is null", "started"),
    ("error !~ declined", "started"),
    ("wait is null", "started"),
    ("key ^= a", "started"),
    ("key != a", "started"),
    ("parent is null", "started"),
]


@pytest.mark.parametrize(("text", "view"), QUICK, ids=[text for text, _ in QUICK])
def test_what_asks_for_few_goes_through_those_few(text: str, view: str) -> None:
    """And only there: another view would hide what may be true of other runs."""
    assert compiled(parse(text), 1).source == f"{{schema}}.{view}"


SIGNAL, CHILD, TIMER, PAUSED = "l.parked = 11 ", "l.parked = 14 ", "l.parked = 10 ", "l.parked = 7 "
DUE, LATER, PARKED = "{schema}.due", "{schema}.later", "l.parked > 1"
LIVE_PLACES = [
    # filter; sizes of what is due, what will be, what is parked; where it looks
    ("wait = signal", (FEW + 1, FEW + 1, FEW + 1), [SIGNAL]),
    ("wait in (signal, child) AND status = waiting", (FEW + 1, FEW + 1, FEW + 1), [SIGNAL, CHILD]),
    ("status = paused", (FEW + 1, FEW + 1, FEW + 1), [PAUSED]),
    ("status = running", (FEW, FEW + 1, FEW + 1), [DUE]),
    ("status = running AND wait = signal", (1, FEW + 1, FEW + 1), [SIGNAL]),
    ("wait = timer", (FEW + 1, FEW, FEW + 1), [TIMER, LATER]),
    ("status = waiting", (FEW + 1, 3, 4), [LATER, PARKED]),
    ("status = waiting", (FEW + 1, FEW, 1), []),
    ("status = running", (FEW + 1, 0, 0), []),
    ("wait in (queued, timer)", (FEW, 1, 0), []),
    ("status in (ready, running, waiting, paused)", (1, 2, 3), [DUE, LATER, PARKED]),
]


@pytest.mark.parametrize(("text", "sizes", "places"), LIVE_PLACES, ids=[f"{text} {sizes}" for text, sizes, _ in LIVE_PLACES])
def test_live_runs_are_looked_for_where_they_are_few(text: str, sizes: tuple[int, int, int], places: list[str]) -> None:
    """By reasons in the order of an index, however many; by ranges that are read whole where they have few together; else from the newest on."""
    source = compiled(parse(text), 1, Sizes(*sizes)).source
    assert {place for place in (SIGNAL, CHILD, TIMER, PAUSED, DUE, LATER, PARKED) if place in source} == set(places)
    assert (source == EVERY_LIVE) == (not places)


@pytest.mark.parametrize(("text", "runs", "by_keys"), [("key ^= a", FEW, True), ("key ^= a AND status = failed", 0, True), ("key ^= a", FEW + 1, False), ("key ^= a OR key = b", 1, False), ("NOT key ^= a", 1, False), ('key ^= ""', 1, False)])
def test_keys_that_begin_so_lead_to_runs_where_they_are_few(text: str, runs: int, by_keys: bool) -> None:
    where = compiled(parse(text), 1, Sizes(keys=runs))
    assert ("s.key OPERATOR(pg_catalog.~>=~)" in where.source) is by_keys
    assert "starts_with" in where.condition, "the whole filter is asked of every run all the same"


@pytest.mark.parametrize(("text", "by_errors"), [("fingerprint = a", True), ("fingerprint.charge in (a, b) AND status = failed", True), ("fingerprint = a OR key = b", False), ("fingerprint != a", False), ("fingerprint is null", False)])
def test_an_error_leads_to_the_runs_that_met_it(text: str, by_errors: bool) -> None:
    """By the index of its fingerprint; of those that did not meet it, it leads to none."""
    assert ("{schema}.errors AS e" in compiled(parse(text), 1).source) == by_errors


def test_a_run_is_asked_for_by_its_id() -> None:
    assert "unnest($2" in compiled(parse(f"run = {RUN}"), 1).source
    assert "s.batch = ANY ($3" in compiled(parse("batch = nightly AND status = failed"), 1).source


def test_nothing_asked_is_true() -> None:
    where = compiled(None, 3)
    assert (where.source, where.bounds, where.condition, where.values) == ("{schema}.started", "true", "true", [])


def test_an_error_says_it_in_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """What, why, and what to do, with nothing in it that acts on a terminal."""
    from supervisor.cli.main import main

    for words in (["list", "stauts = failed"], ["list", "key = \x1b[31m; x"], ["list", "--filter", "age > soon"], ["cancel", "--filter", "status ="]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert 2 <= len(said.splitlines()) <= 3 and said.startswith("error: filter, character ") and "\x1b" not in said
