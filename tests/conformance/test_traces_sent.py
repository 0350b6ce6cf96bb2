"""Whoever sends a signal or an update in a span: the span of the run that was given it is linked to that, stored with what was sent or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import psycopg
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from supervisor import AsyncClient
from tests.apps import traced
from tests.collector import Collector, collector
from tests.conformance.conftest import Live, living
from tests.harness import Server

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
go, touched, told = traced.go, traced.touched, traced.traced_told


@pytest.fixture(scope="module")
def got() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def live(server: Server, got: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A host that traces, on a database of its own."""
    with living(server, tmp_path_factory.mktemp("traces-sent"), "tests.apps.traced", args=("--traces",), env=got.env) as made:
        yield made


def span(number: int, sampled: bool = True) -> Any:
    """As the current one of the caller's program."""
    return trace.use_span(NonRecordingSpan(SpanContext(TRACE, number, False, TraceFlags(sampled), TraceState([("vendor", "x")]))))


def parent(number: int) -> str:
    return f"00-{TRACE:032x}-{number:016x}-01"


def links(live: Live, got: Collector, run: Any) -> set[tuple[str, int, str]]:
    """The senders that the run's span names: trace, span, name of what was sent."""
    live.until(lambda: got.root(run), 30, "the span of the run")
    (root,) = got.root(run)
    assert {values["pgsupervisor.link"] for _, _, values in root.links} <= {"sender"}
    return {(trace_id, int(span_id, 16), values["pgsupervisor.wait.name"]) for trace_id, span_id, values in root.links}


def stored(live: Live, run: Any) -> list[tuple[str, str, str | None]]:
    found: list[tuple[str, str, str | None]] = live.database.sql("select name, traceparent, tracestate from supervisor.trace_sender where run_id = %s order by 2", run.id)
    return found


def test_signals_are_linked_whatever_sends_them(live: Live, got: Collector) -> None:
    """A client, one in a transaction, with a start, in SQL, and a step of another run, whose sender is its attempt."""
    run, number = live.start(told.options(key="s-1"), "s", 6), count(1)
    with span(next(number)):
        assert live.client.signal(run, go, "client")

    async def send() -> None:
        async with AsyncClient(live.database.dsn) as client:
            await client.signal(run.id, go, "async")

    with span(next(number)):
        asyncio.run(send())
    with live.database.connect() as conn, conn.transaction(), span(next(number)):
        live.client.within(conn).signal(run, go, "within")
    with span(next(number)):
        assert live.client.signal_with_start(go.message("with a start"), told.options(key="s-1"), "s", 6).id == run.id
    sql = "select supervisor.signal(%s, 'traced_go', '\"sql\"', id => 'q'), supervisor.sent_by(%s, 'traced_go', 'q', %s, 'vendor=x')"
    assert live.database.sql(sql, run.id, run.id, parent(next(number))) == [(True, True)]
    assert stored(live, run) == [("traced_go", parent(n), "vendor=x") for n in range(1, 6)]
    sender = live.run(traced.traced_sender, str(run.id))
    assert run.result(timeout=20) == ["client", "async", "within", "with a start", "sql", "from a step"]
    attempt = sender.split("/")
    assert links(live, got, run) == {(f"{TRACE:032x}", n, "traced_go") for n in range(1, 6)} | {(attempt[0], int(attempt[1], 16), "traced_go")}


def test_updates_are_linked_too(live: Live, got: Collector) -> None:
    """They are told apart from the signals by their names."""
    run = live.start(told.options(key="u-1"), "u", 1)
    with span(1):
        assert run.update(touched, "x") == "x!"
    with live.database.connect() as conn, conn.transaction(), span(2):
        live.client.within(conn).update(run, touched, "y")
    with span(3):
        assert live.client.update_with_start(touched.message("z"), told.options(key="u-1"), "u", 1).result(timeout=20) == "z!"
    sql = "with s as materialized (select supervisor.update(%s, 'traced_touched', '\"sql\"') as id) select supervisor.sent_by(%s, 'traced_touched', s.id, %s) from s"
    assert live.database.one(sql, run.id, run.id, parent(4)) is True
    live.until(lambda: live.database.one("select count(*) from supervisor.update_accepted where run_id = %s", run.id) == 4, 20)
    live.client.signal(run, go, "on")
    run.result(timeout=20)
    assert links(live, got, run) == {(f"{TRACE:032x}", n, "traced_touched") for n in range(1, 5)}


def test_signals_that_meet_at_a_client_keep_each_its_own_sender(live: Live, got: Collector) -> None:
    """Those of nobody's span beside them."""
    run = live.start(told, "m", 80)

    def send(n: int) -> None:
        for _ in range(10):
            if n % 2:
                live.client.signal(run, go, f"{n}")
            else:
                with span(n + 1):
                    live.client.signal(run, go, f"{n}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(send, range(8)))
    assert len(run.result(timeout=20)) == 80
    assert stored(live, run) == [("traced_go", parent(n + 1), "vendor=x") for n in range(0, 8, 2) for _ in range(10)]
    assert {number for _, number, _ in links(live, got, run)} == {1, 3, 5, 7}


def test_nothing_is_stored_where_there_is_no_span_to_be_linked_to(live: Live, got: Collector) -> None:
    """None, one that is not sampled, one whose transaction was rolled back, what is no traceparent; and who repeats what another had sent is not its sender."""
    run = live.start(told, "n", 3)
    live.client.signal(run, go, "plain")
    with span(1, sampled=False):
        live.client.signal(run, go, "not sampled")
        run.update(touched, "not sampled")
    with live.database.connect() as conn, span(2), pytest.raises(ZeroDivisionError), conn.transaction():
        live.client.within(conn).signal(run, go, "rolled back")
        raise ZeroDivisionError
    assert live.client.signal(run, go, "once", id="o")
    with span(3):
        assert not live.client.signal(run, go, "once", id="o")
    assert [live.database.one("select supervisor.sent_by(%s, 'traced_go', %s, %s)", run.id, *more) for more in (("o", "nonsense"), ("o", parent(4)), ("other", parent(5)))] == [False] * 3
    run.result(timeout=20)
    assert stored(live, run) == [] and links(live, got, run) == set()


def test_a_run_that_is_ended_from_outside_has_its_links(live: Live, got: Collector) -> None:
    """Who ends it knows nothing of them."""
    run = live.start(told, "t", 2)
    with span(1):
        live.client.signal(run, go, "one")
    live.until(lambda: live.rows(run) == 1 and run.status().wait == "signal", 20)
    live.client.terminate(run, reason="enough")
    assert links(live, got, run) == {(f"{TRACE:032x}", 1, "traced_go")}


def test_a_client_can_not_write_senders_otherwise(live: Live, got: Collector) -> None:
    """Its role has the function, not the table."""
    run = live.start(told, "r", 1)
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute("set local role supervisor_client")
        sent = conn.execute("select supervisor.signal(%s, 'traced_go', '1', id => 'r'), supervisor.sent_by(%s, 'traced_go', 'r', %s)", (run.id, run.id, parent(1)))
        assert sent.fetchone() == (True, True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("insert into supervisor.trace_sender (run_id, name, id, traceparent) values (%s, 'x', 'x', 'x')", (run.id,))
    live.client.signal(run, go, "on")
    run.result(timeout=20)
