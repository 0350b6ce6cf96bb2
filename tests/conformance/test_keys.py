"""Keys, straight on the SQL functions: whatever comes at once, in whatever transactions, there is one run and every caller is told the truth."""

from __future__ import annotations

import json
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from supervisor import BatchUnknown, Client, KeyExists, KeyMismatch, RunUnknown
from supervisor.api.client import Named
from supervisor.core.ids import RunIds
from supervisor.db.client_calls import ClientCalls
from tests.harness import Database, eventually

WORKFLOW = "checkout"
CONTENDERS = 64
LEVELS = (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)
POLICIES = ("return", "reject", "replace", "restart_failed")
START = "select n, run_id, matches from supervisor.start_runs(%s, %s, %s, %s, %s, p_on_conflict => %s)"
IDS = RunIds()
Row = tuple[int, uuid.UUID, bool]


@pytest.fixture
def shop(database: Database) -> Database:
    """A database in which one workflow is known and no worker lives."""
    database.sql("insert into supervisor.queue (name) values ('default')")
    parameters = json.dumps([{"name": "order", "required": True}, {"name": "cents", "required": False}]).encode()
    database.sql("insert into supervisor.workflow (name, queue, parameters) select %s, id, %s from supervisor.queue", WORKFLOW, parameters)
    return database


def new_ids(n: int) -> list[uuid.UUID]:
    return [uuid.UUID(bytes=each) for each in IDS.new_bytes(n)]


def start(conn: Any, keys: list[str | None], ids: list[uuid.UUID], policy: str, inputs: list[bytes] | None = None) -> list[Row]:
    inputs = inputs or [b'{"order":1}'] * len(keys)
    rows = conn.execute(START, (WORKFLOW, ids, inputs, keys, [sha256(each).digest() for each in inputs], policy)).fetchall()
    return sorted(rows)


def start_one(database: Database, key: str, policy: str = "return", given: bytes = b'{"order":1}') -> tuple[uuid.UUID, list[Row]]:
    (run_id,) = new_ids(1)
    with database.connect() as conn:
        return run_id, start(conn, [key], [run_id], policy, [given])


def stands(database: Database, key: str) -> dict[uuid.UUID, str]:
    return dict(database.sql("select run_id, status from supervisor.runs where key = %s", key))


def named(database: Database, key: str) -> uuid.UUID:
    found: uuid.UUID = database.one("select run_id from supervisor.run_key where key = %s", key)
    return found


def end(database: Database, run_id: uuid.UUID, status: int) -> None:
    """End a run as a worker would."""
    database.sql(
        "with gone as (delete from supervisor.task where run_id = %s returning run_id) "
        "insert into supervisor.outcome (run_id, ended_at, steps, status) select run_id, now(), 0, %s from gone", run_id, status
    )  # fmt: skip


# ── 64 at once ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Told:
    """What the callers of one key were told, those whose transactions committed, and those that were refused for good."""

    created: list[uuid.UUID] = field(default_factory=list)
    there: list[Row] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    rolled_back: int = 0
    repeated: int = 0


def contend(database: Database, key: str, policy: str, seed: int) -> Told:
    """CONTENDERS sessions start by *key* at the same moment: every isolation level, some with an older snapshot, some roll back."""
    told, barrier, lock = Told(), threading.Barrier(CONTENDERS), threading.Lock()

    def one(at: int) -> None:
        chance = random.Random(seed * 1000 + at)
        (run_id,) = new_ids(1)
        rolls_back, looks_first = chance.random() < 0.3, chance.random() < 0.5
        with psycopg.connect(database.dsn) as conn:
            conn.isolation_level = LEVELS[at % len(LEVELS)]
            if looks_first:  # under the stricter levels this is the transaction's snapshot for good
                conn.execute("select count(*) from supervisor.workflow")
            barrier.wait(60)
            while True:
                try:
                    rows = start(conn, [key], [run_id], policy)
                    if rolls_back:
                        conn.rollback()
                        with lock:
                            told.rolled_back += 1
                        return
                    conn.commit()
                    break
                except (errors.SerializationFailure, errors.DeadlockDetected):
                    conn.rollback()
                    with lock:
                        told.repeated += 1
                except psycopg.DatabaseError as error:
                    conn.rollback()
                    assert error.sqlstate == "SV005", error
                    with lock:
                        told.refused.append(json.loads(error.diag.message_detail or ""))
                    return
        with lock:
            if rows:
                told.there += rows
            else:
                told.created.append(run_id)

    with ThreadPoolExecutor(CONTENDERS) as pool:
        for done in [pool.submit(one, at) for at in range(CONTENDERS)]:
            done.result(120)
    return told


@pytest.mark.parametrize("round_", range(3))
def test_64_starts_of_one_key_make_one_run(shop: Database, round_: int) -> None:
    """`return`: one is told that it created the run, all others which run it is."""
    told = contend(shop, "k", "return", round_)
    (run_id,) = stands(shop, "k")
    assert told.created == [run_id] and named(shop, "k") == run_id
    assert told.there == [(1, run_id, True)] * (CONTENDERS - 1 - told.rolled_back)
    assert told.rolled_back and told.repeated, "nothing was rolled back, or nothing was refused: the test has shown less than it should"


@pytest.mark.parametrize("round_", range(3))
def test_64_starts_of_one_key_that_reject_make_one_run(shop: Database, round_: int) -> None:
    """`reject`: one creates the run, all others are refused, and the error names that run and key."""
    told = contend(shop, "k", "reject", round_)
    (run_id,) = stands(shop, "k")
    assert told.created == [run_id]
    assert not told.there and told.refused == [{"workflow": WORKFLOW, "key": "k", "run_id": str(run_id)}] * len(told.refused)
    assert len(told.refused) >= CONTENDERS - 1 - told.rolled_back


@pytest.mark.parametrize("round_", range(3))
def test_64_starts_of_one_key_that_replace_leave_one_live_run(shop: Database, round_: int) -> None:
    """`replace`: each that committed has its run, all but the last were ended before the next came to life."""
    told = contend(shop, "k", "replace", round_)
    runs = stands(shop, "k")
    assert not told.there and sorted(told.created) == sorted(runs)
    assert [run_id for run_id, status in runs.items() if status == "ready"] == [named(shop, "k")]
    assert sorted(set(runs.values())) == ["ready", "terminated"]
    assert len(told.created) == CONTENDERS - told.rolled_back
    assert shop.one("select count(*) from supervisor.task") == 1


@pytest.mark.parametrize("round_", range(3))
def test_64_restarts_of_a_failed_run_make_one(shop: Database, round_: int) -> None:
    """`restart_failed`: the first starts it again, to all others it is the live run that it is."""
    failed, _ = start_one(shop, "k")
    end(shop, failed, 2)
    told = contend(shop, "k", "restart_failed", round_)
    runs = stands(shop, "k")
    (run_id,) = runs.keys() - {failed}
    assert runs == {failed: "failed", run_id: "ready"}
    assert told.created == [run_id]
    assert told.there == [(1, run_id, True)] * (CONTENDERS - 1 - told.rolled_back)


def test_many_keys_at_once_in_any_order_make_one_run_each(shop: Database) -> None:
    """Calls with many keys meet at each other's rows; they take them in one order, so nobody waits in a circle."""
    keys = [f"k{at}" for at in range(200)]
    created: list[uuid.UUID] = []
    there: list[tuple[str, uuid.UUID]] = []
    barrier, lock = threading.Barrier(16), threading.Lock()

    def one(at: int) -> None:
        chance = random.Random(at)
        mine: list[str | None] = list(chance.sample(keys, 150))
        ids = new_ids(len(mine))
        with shop.connect() as conn:
            barrier.wait(60)
            rows = start(conn, mine, ids, "return" if at % 2 else "restart_failed")
        with lock:
            there.extend((str(mine[n - 1]), run_id) for n, run_id, _ in rows)
            created.extend(run_id for n, run_id in enumerate(ids, 1) if n not in {row[0] for row in rows})

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(one, at) for at in range(16)]:
            done.result(120)
    runs = dict(shop.sql("select key, run_id from supervisor.run"))
    assert len(runs) == shop.one("select count(*) from supervisor.run") == shop.one("select count(*) from supervisor.task")
    assert sorted(created) == sorted(runs.values())
    assert all(runs[key] == run_id for key, run_id in there)


# ── each policy by itself ────────────────────────────────────────────────────────────────────────────────────────


ENDS = {None: "live", 1: "completed", 2: "failed", 3: "cancelled", 4: "terminated", 5: "timed_out", 6: "continued"}


@pytest.mark.parametrize("status", ENDS, ids=lambda status: ENDS[status])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_by_how_the_run_stands(shop: Database, policy: str, status: int | None) -> None:
    """The table of the policies: what a key that names a live or an ended run means to a start."""
    old, _ = start_one(shop, "k")
    if status is not None:
        end(shop, old, status)
    if policy == "reject":
        with pytest.raises(psycopg.DatabaseError) as refused:
            start_one(shop, "k", policy)
        assert refused.value.sqlstate == "SV005"
        assert set(stands(shop, "k")) == {old}
        return
    new, rows = start_one(shop, "k", policy)
    restarts = policy == "replace" or policy == "restart_failed" and status in (2, 3, 4, 5)
    assert rows == ([] if restarts else [(1, old, True)])
    assert named(shop, "k") == (new if restarts else old)
    as_it_was = "ready" if status is None else ENDS[status]
    now = "terminated" if policy == "replace" and status is None else as_it_was
    assert stands(shop, "k") == ({old: now, new: "ready"} if restarts else {old: now})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_that_arrives_twice_changes_nothing(shop: Database, policy: str) -> None:
    """A client whose answer was lost repeats the start under the same id: that is the same run, under every policy."""
    first, second = new_ids(2)
    with shop.connect() as conn:
        assert start(conn, ["k"], [first], policy) == []
        assert start(conn, ["k"], [first], policy) == [(1, first, True)]
        assert stands(shop, "k") == {first: "ready"}
        # also when the key was given to another run in between
        assert start(conn, ["k"], [second], "replace") == []
        if policy != "return":
            assert start(conn, ["k"], [first], policy) == [(1, first, True)]
    assert stands(shop, "k") == {first: "terminated", second: "ready"} and named(shop, "k") == second


def test_a_key_that_stands_twice_in_one_call_is_started_one_after_the_other(shop: Database) -> None:
    """As if the items had been started by calls of their own."""
    a, b, c, d = new_ids(4)
    with shop.connect() as conn:
        assert start(conn, ["k", None, "k", "k"], [a, b, c, d], "return") == [(3, a, True), (4, a, True)]
        e, f, g = new_ids(3)
        assert start(conn, ["k", "k", "other"], [e, f, g], "replace") == []
        assert stands(shop, "k") == {a: "terminated", e: "terminated", f: "ready"}
        end(shop, f, 2)
        h, i = new_ids(2)
        assert start(conn, ["k", "k"], [h, i], "restart_failed") == [(2, h, True)]
        with pytest.raises(psycopg.DatabaseError, match='key "new" of workflow "checkout" names run'):
            start(conn, ["new", "new"], new_ids(2), "reject")
    assert stands(shop, "new") == {}


def test_a_key_is_the_workflows(shop: Database) -> None:
    shop.sql("insert into supervisor.workflow (name, queue) select 'other', id from supervisor.queue")
    one, other = new_ids(2)
    with shop.connect() as conn:
        assert start(conn, ["k"], [one], "return") == []
        assert conn.execute(START, ("other", [other], [b"{}"], ["k"], [b""], "reject")).fetchall() == []
    assert set(stands(shop, "k")) == {one, other}


def test_what_is_rolled_back_was_never_started(shop: Database) -> None:
    """Also to a savepoint, under every policy: the key is free, the old run lives."""
    old, _ = start_one(shop, "k")
    for policy in POLICIES:
        with shop.connect() as conn, conn.transaction(force_rollback=True):
            with conn.transaction(force_rollback=True):
                assert start(conn, [f"free {policy}"], new_ids(1), policy) == []
                if policy != "reject":
                    start(conn, ["k"], new_ids(1), policy)
            assert start(conn, [f"free {policy}"], new_ids(1), policy) == []
    assert stands(shop, "k") == {old: "ready"} and named(shop, "k") == old
    assert shop.one("select count(*) from supervisor.run") == shop.one("select count(*) from supervisor.run_key") == 1


def test_another_input_is_told_and_another_spelling_of_the_same_is_none(shop: Database) -> None:
    """The hash is quick; where it differs the values decide, for SQL and Python write the same JSON differently."""
    old, _ = start_one(shop, "k", given=b'{"order":{"id":1,"name":"a"}}')
    assert start_one(shop, "k", given=b'{"order": {"name": "a", "id": 1.0}}')[1] == [(1, old, True)]
    assert start_one(shop, "k", given=b'{"order":{"id":2,"name":"a"}}')[1] == [(1, old, False)]
    assert start_one(shop, "k", given=b"no JSON")[1] == [(1, old, False)]
    with shop.connect() as conn:
        given = [b'{"order":{"name":"a","id":1}}', b'{"order":1}', b'{"order":{"id":1,"name":"a"}}']
        assert start(conn, ["k", "k", "k"], new_ids(3), "return", given) == [(1, old, True), (2, old, False), (3, old, True)]


def test_sql_and_python_start_by_the_same_key(shop: Database) -> None:
    """A trigger and an application may meet at one key: one run, and a mismatch only where the input is another."""
    with Client(shop.dsn) as client:
        by_sql = shop.one("select supervisor.start('checkout', '{\"order\": {\"b\": 1, \"a\": [1.5]}}', key => 'k')")
        run = client.start(Named(workflow=WORKFLOW, key="k"), {"a": [1.5], "b": 1})
        assert (run.id, run.created) == (by_sql, False)
        with pytest.raises(KeyMismatch):
            client.start(Named(workflow=WORKFLOW, key="k"), {"a": [1.5], "b": 2})
        by_python = client.start(Named(workflow=WORKFLOW, key="p"), {"b": 1, "a": []}).id
    assert shop.one("select supervisor.start('checkout', '{\"order\": {\"a\": [], \"b\": 1}}', key => 'p')") == by_python
    with pytest.raises(psycopg.DatabaseError) as refused:
        shop.sql("select supervisor.start('checkout', '{\"order\": {}}', key => 'p')")
    assert refused.value.sqlstate == "SV007" and json.loads(refused.value.diag.message_detail or "")["run_id"] == str(by_python)


def test_the_client_says_which_run_a_rejected_key_names(shop: Database) -> None:
    """The words and fields of SV005, SV006 and SV008, whatever the key has in it."""
    key = 'a "quoted"\n% key'
    calls = ClientCalls(shop.dsn, "supervisor")
    try:
        (first,), (second,), given, digest = calls.run_ids(1), calls.run_ids(1), [b'{"order":1}'], [sha256(b'{"order":1}').digest()]
        assert calls.start(WORKFLOW, [first], given, [key], digest, on_conflict="reject", attributes=b'{"a":1}', batch="b") == []
        with pytest.raises(KeyExists, match="on_conflict 'return'") as refused:
            calls.start(WORKFLOW, [second], given, [key], digest, on_conflict="reject")
        assert (refused.value.workflow, refused.value.key, refused.value.run_id) == (WORKFLOW, key, uuid.UUID(bytes=first))
        assert calls.start(WORKFLOW, [first], given, [key], digest, on_conflict="reject") == [(0, uuid.UUID(bytes=first), True)]
        assert calls.ask(calls.questions.terminate(uuid.UUID(bytes=first), None, None)) is True
        with pytest.raises(RunUnknown, match=str(uuid.UUID(bytes=second))):
            calls.ask(calls.questions.terminate(uuid.UUID(bytes=second), "why", "who"))
        page = calls.batch_results("b", None, 10)
        assert [(run_id, named, status) for run_id, named, status, _, _ in page] == [(uuid.UUID(bytes=first), key, "terminated")]
        with pytest.raises(BatchUnknown, match="'nosuch'"):
            calls.batch_results("nosuch", None, 10)
    finally:
        calls.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_whose_answer_was_lost_is_repeated_under_every_policy(shop: Database, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """With keys and without in one call: what the first try did is the answer, and nothing is done twice."""
    calls = ClientCalls(shop.dsn, "supervisor")
    rows, lost = calls._rows, []

    def lose_the_first_answer(conn: Any, question: Any) -> Any:
        found = rows(conn, question)
        if question[0] in ("client_start", "client_replace") and not lost:
            lost.append(found)
            conn.close()
            raise psycopg.OperationalError("the connection was lost")
        return found

    monkeypatch.setattr(calls, "_rows", lose_the_first_answer)
    try:
        ids, given = calls.run_ids(3), [b'{"order":1}'] * 3
        told = calls.start(WORKFLOW, ids, given, ["a", None, "b"], [sha256(each).digest() for each in given], on_conflict=policy)
    finally:
        calls.close()
    assert lost == [[]] and [(at, run_id.bytes) for at, run_id, matches in told if matches] == [(0, ids[0]), (2, ids[2])]
    assert sorted(shop.sql("select run_id, status from supervisor.runs")) == sorted((uuid.UUID(bytes=each), "ready") for each in ids)


def test_a_start_of_taken_keys_costs_lookups_and_no_scan(shop: Database) -> None:
    """A file that is started again, before anybody has analyzed the table: a plan that scanned took a hundred times as long."""
    for at in range(8):
        shop.sql(f"alter table supervisor.run_key_{at} set (autovacuum_enabled = off)")  # nor may anybody do so meanwhile
    keys: list[str | None] = [f"k{at}" for at in range(2000)]
    for policy, taken in (("return", 0), ("return", 2000), ("restart_failed", 2000)):
        with shop.connect() as conn:
            assert len(start(conn, keys, new_ids(len(keys)), policy)) == taken
    counted = "select sum(seq_scan), sum(idx_scan) from pg_stat_user_tables where relname like 'run\\_key\\__'"
    found = eventually(lambda: shop.sql(counted + " having sum(idx_scan) >= 6000"), 20)  # sessions tell what they counted when they end
    assert found[0][0] == 0
