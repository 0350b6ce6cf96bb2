"""Spans while sessions are lost: of each run one, of each step and attempt one, whatever was in flight and however often it had to be sent."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from supervisor import Client
from supervisor.core import traces
from tests.apps import traced, tried
from tests.collector import collector
from tests.harness import Database, HostFactory, eventually

END_WORKERS = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name like 'pgsupervisor: worker%%'"
PARTS = 5


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
