"""Whoever starts a run in a span, in whatever way: the run is in that trace, stored with the start, or not at all."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Client
from supervisor.core import traces
from tests.apps import traced
from tests.conformance.conftest import Live, living
from tests.harness import ROOT, Database, Server

trace = pytest.importorskip("opentelemetry.trace", reason="the extra [otel] is not installed")

APP = "tests.apps.traced"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALLER = trace.SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, False, trace.TraceFlags(1), trace.TraceState([("vendor", "x")]))
STATE = "vendor=x"
child = traced.traced_child


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A host that does not trace: what is stored does not depend on it."""
    with living(server, tmp_path_factory.mktemp("traces-started"), APP) as made:
        yield made


def in_span() -> Any:
    return trace.use_span(trace.NonRecordingSpan(CALLER))


def stored(database: Database, *runs: Any) -> list[tuple[str, str | None] | None]:
    """What is stored of each run's trace."""
    ids = [getattr(run, "id", run) for run in runs]
    found = dict((row[0], row[1:]) for row in database.sql("select run_id, traceparent, tracestate from supervisor.trace where run_id = any(%s)", ids))
    return [found.get(run_id) for run_id in ids]


def by_client(client: Client, live: Live) -> list[Any]:
    return [client.start(child, "1")]


def with_key(client: Client, live: Live) -> list[Any]:
    return [client.start(child.options(key="k-1"), "1")]


def with_key_replaced(client: Client, live: Live) -> list[Any]:
    client.start(traced.traced_waiter.options(key="k-2"), "1")
    return [client.start(traced.traced_waiter.options(key="k-2", on_conflict="replace"), "2"), client.start(traced.traced_waiter.options(key="k-3", on_conflict="replace"), "2")]


def by_name(client: Client, live: Live) -> list[Any]:
    return [client.start("traced_child", word="1")]


def many(client: Client, live: Live) -> list[Any]:
    return list(client.start_many(child, ["1", "2"]))


def many_with_keys(client: Client, live: Live) -> list[Any]:
    return list(client.start_many(child, ["1", "2"], key=lambda item: f"many-{item}"))


def within(client: Client, live: Live) -> list[Any]:
    with live.database.connect() as conn, conn.transaction():
        return [client.within(conn).start(child, "1"), *client.within(conn).start_many(child, ["2"])]


def with_signal(client: Client, live: Live) -> list[Any]:
    return [client.signal_with_start(traced.go.message("on"), traced.traced_waiter, "x")]


def with_update(client: Client, live: Live) -> list[Any]:
    return [client.update_with_start(traced.touched.message("on"), traced.traced_waiter, "x").run_id]


def by_async_client(client: Client, live: Live) -> list[Any]:
    async def start() -> list[Any]:
        async with AsyncClient(live.database.dsn) as other:
            sent = await other.signal_with_start(traced.go.message("on"), traced.traced_waiter, "x")
            return [await other.start(child, "1"), *(await other.start_many(child, ["2"])), sent]

    return asyncio.run(start())


WAYS = (by_client, with_key, with_key_replaced, by_name, many, many_with_keys, within, with_signal, with_update, by_async_client)


@pytest.mark.parametrize("start", WAYS, ids=lambda each: each.__name__)
def test_a_start_in_a_span_is_stored_with_it(live: Live, start: Callable[[Client, Live], list[Any]]) -> None:
    """Of all runs that it makes."""
    with in_span():
        runs = start(live.client, live)
    assert runs and stored(live.database, *runs) == [(PARENT, STATE)] * len(runs)


def test_starts_that_meet_at_a_client_keep_each_its_own_span(live: Live) -> None:
    """Those that share a transaction are in one span, or in none."""

    def start(n: int) -> tuple[int, list[Any]]:
        span = trace.SpanContext(n + 1, n + 1, False, trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(span)):
            return n, [live.client.start(child, f"{n}") for _ in range(10)]

    with ThreadPoolExecutor(8) as threads:
        started = dict(threads.map(start, range(8)))
    for n, runs in started.items():
        assert stored(live.database, *runs) == [(f"00-{n + 1:032x}-{n + 1:016x}-01", None)] * 10


def test_a_key_that_names_a_run_leaves_its_trace_as_it_was(live: Live) -> None:
    """The run is of whoever started it."""
    run = live.client.start(traced.traced_waiter.options(key="older"), "x")
    with in_span():
        assert live.client.start(traced.traced_waiter.options(key="older"), "x").id == run.id
        assert live.client.signal_with_start(traced.go.message("on"), traced.traced_waiter.options(key="older"), "x").id == run.id
    assert stored(live.database, run) == [None]


def test_without_a_span_nothing_is_stored(live: Live) -> None:
    """And nothing is asked: the quick start of one run stays the one call that it was."""
    before = live.database.one("select count(*) from supervisor.trace")
    live.run(child, "plain")
    assert live.database.one("select count(*) from supervisor.trace") == before


def test_headers_are_taken_where_there_is_no_current_span(live: Live) -> None:
    """A program that has the headers of a request and no OpenTelemetry; what is none of that form is ignored, and starts all the same."""
    good = live.client.start(child.options(traceparent=PARENT, tracestate=STATE), "1")
    bad = [live.client.start(child.options(traceparent=text, tracestate="x" * 600), "1") for text in ("", "nonsense", PARENT.upper(), "00-" + "0" * 32 + PARENT[35:], "x" * 10_000)]
    long = live.client.start(child.options(traceparent=PARENT, tracestate="a=" + "x" * 600), "1")
    assert stored(live.database, good, *bad, long) == [(PARENT, STATE), *[None] * 5, (PARENT, None)]
    assert bad[1].result(timeout=20)


def test_sql_says_it_beside_the_start(live: Live) -> None:
    """In the transaction of the start, of a function or a trigger; rolled back with it; and of nothing that a worker has taken up."""
    sql = live.database.sql
    start = "select supervisor.traced(supervisor.start('traced_child', '{\"word\": \"sql\"}'), %s, %s)"
    (run,), (other,) = (sql(start, text, STATE)[0] for text in (PARENT, "nonsense"))
    assert stored(live.database, run, other) == [(PARENT, STATE), None]
    inputs = [f'{{"word": "{word}"}}' for word in ("1", "2")]
    many = sql("select supervisor.traced(s.run_id, %s) from supervisor.start_many('traced_child', %s::jsonb[]) as s", PARENT, inputs)
    assert stored(live.database, *(row[0] for row in many)) == [(PARENT, None)] * 2
    assert live.database.one(f"select supervisor.trace_id(({start}))", PARENT, STATE) == PARENT[3:35], "in the statement that starts it"
    done = live.client.start(child, "done")
    done.result(timeout=20)
    sql("select supervisor.traced(%s, %s)", done.id, PARENT)
    assert stored(live.database, done) == [None]
    with live.database.connect() as conn, pytest.raises(ZeroDivisionError), conn.transaction():
        rolled = conn.execute(start, (PARENT, STATE)).fetchone()
        raise ZeroDivisionError
    assert rolled and stored(live.database, rolled[0]) == [None]


def test_a_client_can_not_write_traces_otherwise(live: Live) -> None:
    """Its role has the function, not the table."""
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute("set local role supervisor_client")
        assert conn.execute("select supervisor.traced(supervisor.start('traced_child', '{\"word\": \"role\"}'), %s)", (PARENT,)).fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("insert into supervisor.trace (run_id) values (supervisor.new_id())")


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_the_command_line_takes_it_as_a_flag_or_from_its_environment(live: Live, how: str, tmp_path: Any) -> None:
    """TRACEPARENT is what tools that trace builds and jobs set."""
    (tmp_path / "words.jsonl").write_text('"a"\n"b"\n')
    words = ["--input", str(tmp_path / "words.jsonl"), "--batch", "of-a-file"] if how == "file" else [f"word={how}", "--key", how]
    env = {"TRACEPARENT": PARENT, "TRACESTATE": STATE} if how != "flag" else {"TRACESTATE": STATE}
    flag = ("--traceparent", PARENT) if how == "flag" else ()
    made = subprocess.run(
        [sys.executable, "-m", "supervisor", "start", "traced_child", *words, *flag, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, **env, "PGSUPERVISOR_DATABASE_URL": live.database.dsn},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    where = "key = %s" if how != "file" else "batch = %s"
    runs = live.database.sql(f"select run_id from supervisor.runs where {where}", how if how != "file" else "of-a-file")
    assert runs and stored(live.database, *(row[0] for row in runs)) == [(PARENT, STATE)] * len(runs)


def test_sql_and_python_read_the_same(live: Live) -> None:
    """What one takes for a traceparent the other does."""
    texts = [PARENT, PARENT[:-2] + "00", "01" + PARENT[2:] + "-more", "00" + PARENT[2:] + "-more", "ff" + PARENT[2:], PARENT + " ", "", "00", PARENT.replace("7", "g"), PARENT + "\n"]
    for text in texts:
        told = traces.read(text)
        assert live.database.one("select supervisor.as_traceparent(%s)", text) == (told.parent if told else None), text


def test_what_is_ignored_is_said_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """With its length and not its text, which may be anything."""
    with caplog.at_level(logging.DEBUG, "pgsupervisor.traces"):
        assert traces.read("secret-of-somebody") is None and traces.read(7) is None and traces.read(None) is None
    assert "18 characters" in caplog.text and "secret" not in caplog.text
