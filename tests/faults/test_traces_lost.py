"""Spans while sessions are lost: of each run one, of each step and attempt one, whatever was in flight and however often it had to be sent."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from supervisor import Client
from supervisor.core import traces
from tests.apps import traced, tried
from tests.collector import collector
from tests.harness import Database, HostFactory, eventually

END_WORKERS = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name like 'pgsupervisor: worker%%'"
PARTS, SENT = 5, 300
CALLER = NonRecordingSpan(SpanContext(1, 1, False, TraceFlags(1)))


@pytest.mark.parametrize(("workflow", "count", "spans"), [
    (traced.traced_row, 1200, [(seq, 1) for seq in range(6)]),
    (tried.tried_row, 100, [(seq, number) for seq in range(4) for number in range(4)]),
], ids=["steps", "steps that are tried again"])  # fmt: skip
def test_a_lost_session_loses_no_span_and_doubles_none(workflow: Any, count: int, spans: list[tuple[int, int]], hosts: HostFactory, database: Database) -> None:
    """Batches that were durable and had lost their answer, batches that are sent again, claims that are given back: a run's span is sent once, when its end is durable."""
    chance, app = random.Random(11), workflow.fn.__module__
    with collector() as got, hosts(app, procs=2, args=("--traces",), env={**got.env, "OTEL_BSP_MAX_QUEUE_SIZE": "65536"}) as host, Client(database.dsn) as client:
        runs, lost = [], 0
        for part in range(PARTS):
            runs += client.start_many(workflow, [part] * (count // PARTS))
            there = part * (count // PARTS) + chance.randrange(count // PARTS // 2)
            eventually(lambda there=there: database.one("select count(*) from supervisor.outcome") > there, 60, f"more than {there} that have ended")  # type: ignore[misc]
            lost += database.one(END_WORKERS)
        for n, run in enumerate(runs):
            assert run.result(timeout=60) == n * PARTS // count
        assert lost >= PARTS and "has lost its session" in host.log() and "goes on as worker" in host.log()
        wanted = {f"{traces.run_span_id(run.id.bytes):016x}" for run in runs}
        wanted |= {f"{traces.step_span_id(run.id.bytes, seq, number):016x}" for run in runs for seq, number in spans}
        assert len(wanted) == count * (1 + len(spans))

        def came() -> Counter[str]:
            return Counter(span.span_id for span in list(got.spans) if span.scope == "pgsupervisor")

        eventually(lambda: came().keys() >= wanted, 60, "all spans")
        host.stop()  # what is sent late is sent now
        found = came()
        assert found.keys() == wanted and {span: times for span, times in found.items() if times > 1} == {}


def test_a_lost_session_costs_links_and_no_span(hosts: HostFactory, database: Database) -> None:
    """Who sent a run its signal is asked for when it has ended: where that question is lost its span comes all the same, once."""
    with collector() as got, hosts("tests.apps.traced", procs=2, args=("--traces",), env=got.env) as host, Client(database.dsn) as client:
        runs = list(client.start_many(traced.traced_waiter, ["x"] * SENT))
        lost = 0
        with trace.use_span(CALLER):
            for n, run in enumerate(runs):
                client.signal(run, traced.go, f"{n}")
                lost += database.one(END_WORKERS) if n % (SENT // PARTS) == SENT // PARTS // 2 else 0
        for n, run in enumerate(runs):
            assert run.result(timeout=60) == f"{n}"
        assert lost >= PARTS and "has lost its session" in host.log()
        eventually(lambda: all(got.root(run) for run in runs), 60, "the spans of the runs")
        host.stop()  # what is sent late is sent now
        roots = [got.root(run) for run in runs]
        assert {len(each) for each in roots} == {1} and "spans are missing" not in host.log()
        linked = [root.links for (root,) in roots if root.links]
        assert len(linked) > SENT // 2 and {len(links) for links in linked} == {1}


def test_a_question_for_senders_that_is_lost_costs_its_link(hosts: HostFactory, database: Database) -> None:
    """The session ends while the server answers it: the run's span comes some seconds later, and its worker goes on."""
    waits = "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%trace_sender%' and application_name like 'pgsupervisor: worker%'"
    with collector() as got, hosts("tests.apps.traced", args=("--traces",), env=got.env) as host, Client(database.dsn) as client:
        run, before = client.start(traced.traced_told, "x", 2), client.start(traced.traced_told, "y", 1)
        with trace.use_span(CALLER):
            client.signal(before, traced.go, "one")
            client.signal(run, traced.go, "one")
        assert before.result(timeout=20) == ["one"] and eventually(lambda: got.root(before), 20)[0].links
        with database.connect() as locking, locking.transaction():
            locking.execute("lock table supervisor.trace_sender in access exclusive mode")
            client.signal(run, traced.go, "two")
            assert run.result(timeout=20) == ["one", "two"]
            ((pid,),) = eventually(lambda: database.sql(waits), 20, "the question to wait")
            database.sql("select pg_terminate_backend(%s)", pid)
        eventually(lambda: got.root(run), 60, "the span of the run")
        assert got.root(run)[0].links == [] and len(got.root(run)) == 1
        assert "has lost its session" in host.log() and client.start(traced.traced_child, "z").result(timeout=20)
