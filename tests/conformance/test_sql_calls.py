"""What people type: start, start_many, result, batches, from psql, triggers and other languages, with jsonb and named arguments."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest

from supervisor.core import awaited, codec
from supervisor.core.errors import PayloadRefused
from supervisor.db.statements import ended_channel, wake_channel
from supervisor.engine import rest
from tests.harness import Database, eventually

PARAMETERS = [{"name": "order", "required": True}, {"name": "cents", "required": False}]


@pytest.fixture
def shop(database: Database) -> Database:
    """A database in which one workflow is known and no worker lives."""
    database.sql("insert into supervisor.queue (name) values ('default')")
    insert = "insert into supervisor.workflow (name, queue, timeout_s, parameters) select 'checkout', id, 60, %s from supervisor.queue"
    database.sql(insert, json.dumps(PARAMETERS).encode())
    return database


def refused(database: Database, statement: str, *values: Any) -> tuple[str, str]:
    """SQLSTATE and message of a statement that must be refused."""
    with database.connect() as conn, pytest.raises(psycopg.DatabaseError) as caught:
        conn.execute(statement, values or None)
    return caught.value.sqlstate or "", caught.value.diag.message_primary or ""


def end(database: Database, run_id: uuid.UUID, status: int, result: bytes | None) -> None:
    """End a run as a worker would."""
    database.sql(
        "with gone as (delete from supervisor.task where run_id = %s returning run_id) "
        "insert into supervisor.outcome (run_id, ended_at, steps, status, result) select run_id, now(), 0, %s, %s from gone", run_id, status, result
    )  # fmt: skip


# ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_start_takes_every_option_by_its_name(shop: Database) -> None:
    run_id = shop.one(
        "select supervisor.start(workflow => 'checkout', input => '{\"order\": 1, \"cents\": 5}', key => 'k', queue => 'urgent', priority => 2, "
        "delay => interval '1 hour', attributes => '{\"tenant\": \"a\"}', batch => 'nightly', on_conflict => 'reject', notify => true)"
    )
    row = shop.sql("select key, queue, priority, status, wait, input, attributes, batch from supervisor.runs where run_id = %s", run_id)
    assert row == [("k", "urgent", 2, "waiting", "timer", {"order": 1, "cents": 5}, {"tenant": "a"}, "nightly")]
    times = "select extract(epoch from ready_at - now())::int between 3590 and 3600, extract(epoch from cancel_at - ready_at)::int from supervisor.task"
    assert shop.sql(times) == [(True, 60)]


def test_start_returns_the_run_that_the_key_names(shop: Database) -> None:
    one = shop.one("select supervisor.start('checkout', '{\"order\": 1}', 'k')")
    assert shop.one("select supervisor.start('checkout', '{\"order\": 1}', 'k')") == one
    other = shop.one("select supervisor.start('checkout', '{\"order\": 2}', 'k', on_conflict => 'replace')")
    assert other != one
    assert shop.sql("select status, error ->> 'type' from supervisor.result(%s)", one) == [("terminated", "supervisor.core.errors.RunTerminated")]


@pytest.mark.parametrize(
    ("call", "sqlstate", "words"),
    [
        ("'nosuch'", "SV001", '"nosuch"'),
        ("'checkout'", "22023", "required but not given: order"),
        ("'checkout', '{}'", "22023", "required but not given: order"),
        ("'checkout', '{\"ordr\": 1, \"cent\": 2}'", "22023", "cent, ordr: no parameter of it; it takes order, cents"),
        ("'checkout', '[1]'", "22023", "must be an object by parameter name, not array"),
        ("'checkout', null", "22023", "must be an object by parameter name, not null"),
        ("'checkout', 'null'", "22023", "must be an object by parameter name, not null"),
        ("'checkout', jsonb_build_object('order', repeat('x', 2097152))", "22023", "more than 2097152"),
        ("'checkout', '{\"order\": 1}', key => ''", "22023", "a key has 1 to 500 characters, not 0"),
        ("'checkout', '{\"order\": 1}', key => repeat('x', 501)", "22023", "a key has 1 to 500 characters, not 501"),
        ("'checkout', '{\"order\": 1}', priority => 10", "22023", "priority"),
        ("'checkout', '{\"order\": 1}', priority => 1000000", "22023", "priority"),
        ("'checkout', '{\"order\": 1}', priority => null", "22023", "priority"),
        *((f"'checkout', '{{\"order\": 1}}', attributes => {given}", "22023", words) for given, words in (
            ("'[]'", "an object by name, not array"),
            ("jsonb_build_object('a', repeat('x', 16384))", "a has 16384 characters and 500 are the most"),
            ("'{\"a\": {\"b\": 1}}'", "a is an object"),
            ("'{\"a\": [1]}'", "a is a list of something else than"),
            ("'{\"a\": [[\"b\"]]}'", "a is a list of something else than"),
            ("'{\"\": 1}'", "is no name of 1 to 200"),
            ("'{\"a\\nb\": 1}'", "is no name of 1 to 200"),
            ("(select jsonb_object_agg(n, n) from generate_series(1, 51) n)", "51 names were given and 50 are the most"),
        )),
        *((f"'checkout', '{{\"order\": 1}}', delay => {given}", "22023", "a delay is 0 s or more and less than 1e10 s") for given in ("'40000 years'", "'-1 s'", "'-40000 years'", "'10000000000 s'", "null")),
        *((f"'checkout', '{{\"order\": 1}}', queue => {given}", "22023", "a name has 1 to 200 characters on one line") for given in ("''", "repeat('x', 201)", "e'a\\nb'", "e'\\u0085'", "e'\\u2028'")),
        ("'checkout', '{\"order\": 1}', batch => ''", "22023", "name of a batch"),
        ("'checkout', '{\"order\": 1}', batch => repeat('x', 201)", "22023", "name of a batch"),
        ("'checkout', '{\"order\": 1}', on_conflict => 'renew'", "22023", "none of return, reject, replace, restart_failed"),
        ("'checkout', '{\"order\": 1}', on_conflict => null", "22023", "none of return, reject, replace, restart_failed"),
    ],
)
def test_a_start_that_can_not_be_is_refused_in_words(shop: Database, call: str, sqlstate: str, words: str) -> None:
    """What is accepted here and does not fit would fail later, far from whoever wrote it."""
    found, message = refused(shop, f"select supervisor.start({call})")
    assert found == sqlstate and words in message
    assert shop.one("select (select count(*) from supervisor.run) + (select count(*) from supervisor.run_key) + (select count(*) from supervisor.batch)") == 0


def test_a_trigger_starts_a_run_for_every_row_that_is_committed(shop: Database) -> None:
    shop.sql("create table orders (id int primary key)")
    shop.sql(
        "create function start_checkout() returns trigger language plpgsql as $$ begin "
        "perform supervisor.start('checkout', jsonb_build_object('order', new.id), key => 'o-' || new.id); return new; end $$"
    )
    shop.sql("create trigger t after insert on orders for each row execute function start_checkout()")
    with shop.connect() as conn:
        conn.execute("set search_path = pg_temp, public")
        conn.execute("create temporary table run (run_id int); create temporary table task (run_id int)")  # in nobody's way
        conn.execute("insert into orders select generate_series(1, 50)")
        with conn.transaction(force_rollback=True):
            conn.execute("insert into orders values (51)")
    assert shop.sql("select count(*), count(distinct key), min(status) from supervisor.runs") == [(50, 50, "ready")]


def test_only_who_asks_for_it_notifies_and_the_hosts_understand_it(shop: Database) -> None:
    """NOTIFY takes a lock of the whole cluster at the commit: no trigger should do so unasked."""
    with shop.connect() as ear, shop.connect() as conn:
        ear.execute(f"listen {wake_channel('supervisor')}")
        conn.execute("select supervisor.start('checkout', '{\"order\": 1}')")
        conn.execute("select supervisor.start('checkout', '{\"order\": 1}', notify => true, delay => '1 hour')")
        conn.execute("select supervisor.start('checkout', '{\"order\": 1}', key => 'k', queue => 'urgent', notify => true, delay => '500 ms')")
        conn.execute("select supervisor.start('checkout', '{\"order\": 1}', key => 'k', notify => true)")
        conn.execute("select supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[3]), notify => true)")
        heard = [rest._hints(each.payload.encode()) for each in ear.notifies(timeout=10, stop_after=2)]
    assert heard == [[("checkout", "urgent", 1, 0.5)], [("checkout", None, 3, 0.0)]]


def test_only_who_asks_for_it_announces_what_is_ended(shop: Database) -> None:
    """Clients that wait hear of it, whatever else they hear; 360 runs go into one notification."""
    many = "select run_id from supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[%s]), %s) order by n"
    keys = [f"k{n}" for n in range(800)]
    old = [run_id.bytes for (run_id,) in shop.sql(many, len(keys), keys)]
    with shop.connect() as ear, shop.connect() as conn:
        ear.execute(f"listen {ended_channel('supervisor')}")
        replace = "select supervisor.start('checkout', '{\"order\": 1}', key => %s, on_conflict => 'replace', notify => %s)"
        conn.execute(replace, ("k0", False))
        conn.execute("select supervisor.cancel(%s)", (old[1].hex(),))
        with conn.transaction(force_rollback=True):
            conn.execute("select supervisor.cancel(%s, notify => true)", (old[2].hex(),))
        assert list(ear.notifies(timeout=0.2)) == []
        conn.execute("select supervisor.cancel(%s, 'by name', notify => true)", (old[2].hex(),))
        conn.execute("select supervisor.cancel(%s, notify => true)", (old[2].hex(),))
        conn.execute(replace, ("k3", True))
        conn.execute("select supervisor.start('checkout', '{\"order\": 1}', key => 'fresh', on_conflict => 'replace', notify => true)")
        conn.execute("select supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[%s]), %s, on_conflict => 'replace', notify => true)", (796, keys[4:]))
        heard = [awaited.ids_of(each.payload) for each in ear.notifies(timeout=10, stop_after=5)]
    assert heard[:2] == [[old[2]], [old[3]]] and [len(ids) for ids in heard[2:]] == [360, 360, 76]
    assert [run_id for ids in heard[2:] for run_id in ids] == old[4:]
    live = "select count(*) from supervisor.task where run_id = any(%s::uuid[])"
    assert shop.one(live, [run_id.hex() for run_id in old]) == 0 and shop.one("select count(*) from supervisor.task") == 799


def nested(levels: int, inner: str = "1") -> str:
    """An array in an array, so many times; as a parameter's value one level deeper."""
    return "[" * levels + inner + "]" * levels


def test_what_is_nested_too_deeply_is_refused_as_a_client_refuses_it(shop: Database) -> None:
    """Here, and not at the worker that reads it: with which input, which parameter, and why."""
    fine = [nested(63), nested(63, '"%s"' % ("[" * 500)), nested(62, "{}"), json.dumps([nested(40)] * 50), "[" + ",".join(["[[]]"] * 500) + "]"]
    for value in fine:
        codec.encode({"order": json.loads(value)})
        assert shop.one("select supervisor.start('checkout', jsonb_build_object('order', %s::jsonb))", value)
    for value in (nested(64), nested(65, "{}"), nested(63, "[]"), nested(63, '{"a": 1}'), nested(600), '{"a": ' * 64 + "1" + "}" * 64):
        with pytest.raises(PayloadRefused, match="nested deeper than 64 levels"):
            codec.encode({"order": json.loads(value)})
        code, message = refused(shop, "select supervisor.start('checkout', jsonb_build_object('cents', 1, 'order', %s::jsonb))", value)
        assert (code, message) == ("22023", 'input 1 of workflow "checkout": order: nested deeper than 64 levels, the most that every reader of JSON copes with')
    several = "select supervisor.start_many('checkout', array[jsonb_build_object('order', 1), jsonb_build_object('order', %s::jsonb)])"
    assert "input 2" in refused(shop, several, nested(64))[1]
    code, message = refused(shop, "select supervisor.start('checkout', '{\"order\": 1}', attributes => jsonb_build_object('a', %s::jsonb))", nested(64))
    assert code == "22023" and "attributes" in message and "64 levels" in message
    assert refused(shop, "select supervisor.start('checkout', jsonb_build_object('order', %s::jsonb))", nested(100_000))[0] == "54001", "the server's own limit"
    assert shop.one("select count(*) from supervisor.run") == len(fine)


# ── start_many ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_start_many_answers_in_the_order_of_its_inputs(shop: Database) -> None:
    old = shop.one("select supervisor.start('checkout', '{\"order\": 1}', 'k1')")
    inputs = [json.dumps({"order": n}) for n in range(2000)]
    keys = [f"k{n}" if n % 2 else None for n in range(2000)]
    rows = shop.sql("select * from supervisor.start_many('checkout', %s::jsonb[], %s, batch => 'b')", inputs, keys)
    assert [n for n, _, _ in rows] == list(range(1, 2001))
    assert rows[1] == (2, old, False) and all(created for n, _, created in rows if n != 2)
    assert [run_id for _, run_id, _ in rows if run_id != old] == sorted(run_id for _, run_id, _ in rows if run_id != old)
    found = dict(shop.sql("select run_id, input ->> 'order' from supervisor.runs"))
    assert [int(found[run_id]) for _, run_id, _ in rows] == list(range(2000))
    assert shop.sql("select * from supervisor.start_many('checkout', '{}')") == []


def test_start_many_starts_all_or_none(shop: Database) -> None:
    """And names the input that is wrong."""
    code, message = refused(shop, "select supervisor.start_many('checkout', array['{\"order\": 1}', '{\"ordre\": 2}']::jsonb[])")
    assert code == "22023" and "input 2" in message and "ordre" in message
    shop.sql("select supervisor.start('checkout', '{\"order\": 1}', 'k')")
    several = "select supervisor.start_many('checkout', array['{\"order\": 1}', '{\"order\": 2}']::jsonb[], %s)"
    code, message = refused(shop, several, ["new", "k"])
    assert code == "SV007" and '"k"' in message
    assert "1 keys" in refused(shop, several, ["one"])[1]
    assert shop.one("select count(*) from supervisor.run") == 1


# ── result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_result_tells_how_a_run_stands_and_never_fails_on_a_row(shop: Database) -> None:
    ids = [run_id for _, run_id, _ in shop.sql("select * from supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[4]))")]
    end(shop, ids[1], 1, b'{"paid":true}')
    end(shop, ids[2], 2, b'{"type":"ValueError","message":"no"}')
    end(shop, ids[3], 1, b"\xff no JSON")
    told = [shop.sql("select status, result, error, ended_at is not null from supervisor.result(%s)", run_id)[0] for run_id in ids]
    assert told[:3] == [
        ("ready", None, None, False),
        ("completed", {"paid": True}, None, True),
        ("failed", None, {"type": "ValueError", "message": "no"}, True),
    ]
    assert told[3][0] == "completed" and "unreadable" in told[3][1]
    for unknown in (uuid.uuid4(), None):
        assert refused(shop, "select supervisor.result(%s)", unknown)[0] == "SV006"


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_read_in_the_order_of_its_inputs_page_by_page(shop: Database) -> None:
    many = "select run_id from supervisor.start_many('checkout', %s::jsonb[], batch => %s) order by n"
    mine: list[uuid.UUID] = []
    for chunk in range(5):
        given = [json.dumps({"order": chunk * 100 + n}) for n in range(100)]
        mine += [run_id for (run_id,) in shop.sql(many, given, "mine")]
        shop.sql(many, given, "theirs")
        shop.sql("select supervisor.start('checkout', '{\"order\": 0}')")
        last = shop.one("select run_id from supervisor.run order by run_id desc limit 1")
        eventually(lambda last=last: shop.one("select supervisor.new_id()") > last, 10)  # ids of one millisecond have no order between calls
    for at, run_id in enumerate(mine):
        if at % 3 == 0:
            end(shop, run_id, 1 + at % 2, json.dumps(at).encode())
    pages, after = [], None
    while page := shop.sql("select run_id, key, status, result, ended_at is not null from supervisor.batch_results('mine', %s, 33)", after):
        pages.append(page)
        after = page[-1][0]
    assert len(pages) == 16
    assert [row for page in pages for row in page] == [
        (run_id, None, "ready", None, False) if at % 3 else (run_id, None, ("completed", "failed")[at % 2], json.dumps(at).encode(), True)
        for at, run_id in enumerate(mine)
    ]
    assert refused(shop, "select supervisor.batch_results('nosuch', null, 10)") == ("SV008", 'there is no batch "nosuch"')


def test_batches_counts_what_became_of_them(shop: Database) -> None:
    many = "select run_id from supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[%s]), batch => %s) order by n"
    ids = [run_id for (run_id,) in shop.sql(many, 8, "b")]
    shop.sql(many, 3, "other")
    for status, run_id in enumerate(ids[:6], 1):
        end(shop, run_id, status, b"null")
    shop.sql("update supervisor.task set wait_kind = 19, ready_at = 'infinity' where run_id = %s", ids[6])
    columns = "batch, runs, ready, running, waiting, paused, completed, failed, cancelled, terminated, timed_out, continued"
    assert shop.sql(f"select {columns} from supervisor.batches where batch = 'b'") == [("b", 8, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1)]
    times = "select first_started_at <= last_started_at, last_ended_at is null, created_at <= now() from supervisor.batches order by batch"
    assert shop.sql(times) == [(True, False, True), (True, True, True)]


def test_a_batch_costs_what_it_holds_and_not_what_the_history_holds(shop: Database) -> None:
    """One page, and the counts of one batch, read an index of the batches alone."""
    many = "select count(*) from supervisor.start_many('checkout', array_fill('{\"order\": 1}'::jsonb, array[%s]), batch => %s)"
    shop.sql(many, 20_000, "big")
    shop.sql(many, 20_000, None)
    shop.sql(many, 10, "small")
    shop.sql("analyze supervisor.run, supervisor.task, supervisor.batch")
    for statement in (
        "select r.run_id from supervisor.run r join supervisor.batch b on b.id = r.batch where b.name = 'small' order by r.run_id limit 10",
        "select * from supervisor.batches where batch = 'small'",
    ):
        plan = "\n".join(row for (row,) in shop.sql(f"explain (analyze, costs off, timing off, summary off) {statement}"))
        assert "batch" in plan and "Seq Scan on run" not in plan and "Seq Scan on task" not in plan, plan
    assert len(shop.sql("select * from supervisor.batch_results('small', null, 100)")) == 10
