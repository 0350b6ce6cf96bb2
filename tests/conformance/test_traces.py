"""Spans of runs and steps: one tree, whoever executes what, however often; and a collector that is away costs nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from supervisor import Client
from supervisor.core import traces
from tests.apps import traced
from tests.collector import Collector, Span, collector
from tests.conformance.conftest import Live, living
from tests.harness import ROOT, Effects, HostFactory, Server, eventually

APP = "tests.apps.traced"
RUN, STEP = 5, 1  # SpanKind on the wire: consumer, internal
CALLER = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, False, TraceFlags(1), TraceState([("vendor", "x")]))
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def id_of(run: Any) -> bytes:
    found: bytes = run.id.bytes
    return found


@pytest.fixture(scope="module")
def got() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def live(build: str, server: Server, got: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A host that traces, on a database of its own."""
    with living(server, tmp_path_factory.mktemp("traces"), APP, build=build, args=("--traces", "--log-format", "json"), env=got.env) as made:
        yield made


def ended(live: Live, got: Collector, run: Any, within_s: float = 20) -> tuple[Span, list[Span]]:
    """The span of a run, once it has come, and the spans of its steps."""
    live.until(lambda: got.root(run), within_s, "the span of the run")
    return got.root(run)[0], [span for span in got.of(run) if span.name.startswith("step ")]


def test_a_run_is_one_tree_wherever_its_steps_execute(live: Live, got: Collector) -> None:
    """Each step's span is below its run's, current in its body, so that what libraries do there is below it: inline, thread, task, process, transaction."""
    run = live.start(traced.traced_all.options(key="t-1"), "x")
    seen = run.result(timeout=20)
    root, steps = ended(live, got, run)
    assert (root.trace_id, root.span_id, root.parent_id) == (f"{traces.trace_id_of(id_of(run)):032x}", f"{traces.run_span_id(id_of(run)):016x}", "")
    assert (root.name, root.kind, root.error) == ("run traced_all", RUN, None)
    kept = {"run.id": str(run.id), "run.key": "t-1", "run.queue": "default", "run.outcome": "completed", "run.steps": 7, "run.waits": 0, "workflow.name": "traced_all"}
    assert kept.items() <= {name.removeprefix("pgsupervisor."): value for name, value in root.attributes.items()}.items()
    assert root.attributes["order"] == "x" and [name for name, _, _ in root.events] == ["asked"]
    assert [span.name for span in steps] == [f"step traced_{kind}" for kind in ("inline", "thread", "task", "process", "tx", "async_tx", "calls_itself")]
    assert {(span.parent_id, span.trace_id, span.kind, span.error) for span in steps} == {(root.span_id, root.trace_id, STEP, None)}
    assert [span.span_id for span in steps] == [f"{traces.step_span_id(id_of(run), seq, 1):016x}" for seq in range(7)]
    for span, kind in zip(steps, ("inline", "thread", "task", "process", "tx", "async_tx")):
        assert seen[kind] == f"{span.trace_id}/{span.span_id}/True"
        live.until(lambda: got.below(span), 20, f"what is below {kind}")
        assert {below.name.removeprefix("inner ") for below in got.below(span)} <= {kind.replace("_", " "), "before"}
        assert root.began_ns <= span.began_ns <= span.ended_ns and span.resource["service.name"] == APP
    assert seen["workflow"] == seen["after"] == f"{root.trace_id}/{root.span_id}/True"
    assert steps[2].attributes["mine"] == "x"


def test_a_def_workflow_has_the_same(live: Live, got: Collector) -> None:
    """On greenlets its code finds its run's span too; a short sleep is an event of it."""
    run = live.start(traced.traced_def, "y")
    seen = run.result(timeout=20)
    root, steps = ended(live, got, run)
    assert seen == f"{root.trace_id}/{root.span_id}/True" and [span.name for span in steps] == ["step traced_thread"]
    assert [(name, values["pgsupervisor.wait.name"]) for name, values, _ in root.events] == [("pgsupervisor.timer", "sleep")]


def test_each_attempt_is_a_span_and_a_failure_is_said(live: Live, got: Collector) -> None:
    """Those that failed too, each linked to the one before, below the step that failed with them; the run that failed for it says why."""
    run = live.start(traced.traced_failing, "f")
    with pytest.raises(Exception, match="not yet f"):
        run.result(timeout=20)
    root, (step,) = ended(live, got, run)
    steps = got.below(step)
    assert (step.parent_id, step.attributes["pgsupervisor.step.attempts"], step.error) == (root.span_id, 3, "ValueError: not yet f")
    assert [span.attributes["pgsupervisor.step.attempt"] for span in steps] == [1, 2, 3] and {span.name for span in steps} == {"attempt traced_shaky"}
    assert [span.links for span in steps] == [[], *([(root.trace_id, before.span_id, {"pgsupervisor.link": "attempt"})] for before in steps[:2])]
    for span in steps:
        assert span.error == "ValueError: not yet f"
        name, values, _ = span.events[0]
        assert (name, values["exception.type"], values["exception.message"]) == ("exception", "ValueError", "not yet f") and "traced_shaky" in values["exception.stacktrace"]
    assert root.error == "failed: ValueError: not yet f" and root.attributes["pgsupervisor.run.outcome"] == "failed"


def test_a_run_that_left_memory_goes_on_in_another_process_as_the_same_tree(live: Live, got: Collector) -> None:
    """Its worker is killed while it sleeps. Its replay makes no span: not of the steps before, nor of what workflow code had begun."""
    run = live.start(traced.traced_sleeper, "s")
    live.until(lambda: live.client.get(run.id).status().wait == "timer" and [span for span in got.of(run)], 20, "asleep, and its step's span sent")
    live.until(lambda: [span for span in got.spans if span.name == "of the workflow" and span.trace_id == f"{traces.trace_id_of(id_of(run)):032x}"], 20)
    live.kill()
    seen = run.result(timeout=40)
    root, steps = ended(live, got, run)
    assert [span.name for span in steps] == ["step traced_inline", "step traced_thread"] and seen.startswith(f"{root.trace_id}/{steps[0].span_id}")
    assert {span.parent_id for span in steps} == {root.span_id} and len(got.root(run)) == 1
    assert steps[0].resource["pgsupervisor.worker.number"] == 0 and root.ended_ns - root.began_ns > 2e9
    assert [name for name, _, _ in root.events] == ["before the sleep", "pgsupervisor.timer"], "said before the sleep by a process that is dead, and known all the same"
    assert root.events[0][2] < root.events[1][2] - 2e9 and root.attributes["pgsupervisor.run.waits"] == 1
    mine = [span.name for span in got.spans if span.trace_id == root.trace_id and span.scope == "library" and span.parent_id == root.span_id]
    assert sorted(mine) == ["of the workflow", "of the workflow, later"]


def test_a_kill_in_the_middle_of_a_step_costs_the_span_of_that_execution(live: Live, got: Collector) -> None:
    """What was being executed is executed again, as the same attempt: one span, which says so. Nothing is an orphan, and the run has one span."""
    run = live.start(traced.traced_killed, "k")
    live.until(lambda: live.effects.count("held", "k") == 1 and got.of(run), 20)
    live.kill()
    live.until(lambda: live.effects.count("held", "k") == 2, 40)
    live.effects.open("go-k")
    assert run.result(timeout=40) == "k"
    root, steps = ended(live, got, run)
    assert [(span.name, span.attributes.get("pgsupervisor.step.redelivered", False)) for span in steps] == [
        ("step traced_inline", False), ("step traced_held", True), ("step traced_thread", False),
    ]  # fmt: skip
    assert steps[1].span_id == f"{traces.step_span_id(id_of(run), 1, 1):016x}" and steps[1].attributes["pgsupervisor.step.attempt"] == 1
    assert {span.parent_id for span in steps} == {root.span_id} and len(got.root(run)) == 1


def test_children_are_in_the_trace_of_their_parent(live: Live, got: Collector) -> None:
    """Below its run's span, with their own steps below them."""
    run = live.start(traced.traced_parent, "p")
    seen = run.result(timeout=20)
    root, _ = ended(live, got, run)
    live.until(lambda: len([span for span in got.below(root) if span.name == "run traced_child"]) == 2, 20)
    kids = [span for span in got.below(root) if span.name == "run traced_child"]
    assert {f"{kid.trace_id}/{kid.span_id}/True" for kid in kids} == set(seen)
    assert all([below.name for below in got.below(kid)] == ["step traced_inline"] for kid in kids)
    assert [values["pgsupervisor.wait.name"] for name, values, _ in root.events if name == "pgsupervisor.child"] == ["traced_child"] * 2


def test_a_run_that_continues_and_one_that_is_forked_are_linked(live: Live, got: Collector) -> None:
    """Each has a trace of its own: a chain that never ends would be one that never ends."""
    run = live.start(traced.traced_chain, 1)
    assert run.result(timeout=20) == 0
    root, _ = ended(live, got, run)
    successor = root.attributes["pgsupervisor.run.continued_as"]
    after, _ = ended(live, got, successor)
    assert root.attributes["pgsupervisor.run.outcome"] == "continued" and root.error is None
    assert after.links == [(root.trace_id, root.span_id, {"pgsupervisor.link": "continued"})] and after.trace_id != root.trace_id and after.parent_id == ""
    fork = live.client.fork(successor, seq=0)
    fork.result(timeout=20)
    forked, steps = ended(live, got, fork)
    assert forked.links == [(after.trace_id, after.span_id, {"pgsupervisor.link": "origin"})] and len(steps) == 1
    assert forked.trace_id not in (root.trace_id, after.trace_id)


def test_a_retry_of_a_run_of_somebodys_trace_is_linked_to_it(live: Live, got: Collector) -> None:
    """The origin's trace is its caller's, and the link says so."""
    with trace.use_span(NonRecordingSpan(CALLER)):
        run = live.start(traced.traced_failing, "r")
    with pytest.raises(Exception, match="not yet r"):
        run.result(timeout=20)
    again = live.client.retry(run)
    with pytest.raises(Exception, match="not yet r"):
        live.client.get(again.id).result(timeout=20)
    root, (first, *_) = ended(live, got, run)
    made, steps = ended(live, got, again)
    assert root.trace_id == f"{CALLER.trace_id:032x}" and made.links == [(root.trace_id, root.span_id, {"pgsupervisor.link": "origin"})]
    assert {span.parent_id for span in steps} == {made.span_id}


def test_a_run_that_was_cancelled_is_no_error(live: Live, got: Collector) -> None:
    """Somebody asked for it; why is its event."""
    run = live.start(traced.traced_waiter, "c")
    live.until(lambda: run.status().wait == "signal", 20)
    live.client.cancel(run, reason="not wanted")
    root, _ = ended(live, got, run)
    assert (root.attributes["pgsupervisor.run.outcome"], root.error) == ("cancelled", None)
    assert [name for name, _, _ in root.events][-1] == "exception" and "not wanted" in root.events[-1][1]["exception.message"]


def test_a_run_that_is_ended_from_outside_has_its_span(live: Live, got: Collector) -> None:
    """Out of memory, in the middle of a step, or for another run of its key: no worker ends it, one sends its span, and the others do not."""
    with trace.use_span(NonRecordingSpan(CALLER)):
        parked = live.start(traced.traced_waiter.options(key="t-out"), "w")
    held, replaced = live.start(traced.traced_killed, "out"), live.start(traced.traced_waiter.options(key="t-replaced"), "w")
    live.until(lambda: live.effects.count("held", "out") == 1 and all(live.client.get(run.id).status().wait == "signal" for run in (parked, replaced)), 30)
    for run in (parked, held):
        live.client.terminate(run, reason="enough of it")
    live.start(traced.traced_waiter.options(key="t-replaced", on_conflict="replace"), "another")
    for run, why, steps in ((parked, "enough of it", 0), (held, "enough of it", 1), (replaced, "its key was given to another run", 0)):
        root, _ = ended(live, got, run, 60)
        assert root.span_id == f"{traces.run_span_id(id_of(run)):016x}" and root.error is not None and root.error.startswith("terminated: ") and why in root.error
        told = {name.removeprefix("pgsupervisor."): value for name, value in root.attributes.items()}
        assert {"run.outcome": "terminated", "run.steps": steps, "run.waits": 0, "run.queue": "default", "workflow.name": f"traced_{'killed' if run is held else 'waiter'}"}.items() <= told.items()
    assert (got.root(parked)[0].trace_id, got.root(parked)[0].parent_id) == tuple(PARENT.split("-")[1:3]) and got.root(parked)[0].attributes["pgsupervisor.run.key"] == "t-out"
    live.effects.open("go-out")
    live.until(lambda: live.database.one("select count(*) from supervisor.trace_end") == 0, 60, "the notes to be forgotten")
    assert [len(got.root(run)) for run in (parked, held, replaced)] == [1, 1, 1]
    assert {span.parent_id for span in got.of(held) if span.name.startswith("step ")} == {got.root(held)[0].span_id}


def test_ends_are_noted_while_somebody_traces_and_told_again_if_he_dies(database: Any) -> None:
    """Nobody traces: nothing is noted. Somebody does: each end is one worker's for a minute, then another's, until its span was sent."""
    with Client(database.dsn) as client:
        def end() -> Any:
            run = client.start("shop")
            client.terminate(run)
            return run.id

        database.sql("select supervisor.queue_id('default')")
        database.sql("insert into supervisor.workflow (name, queue) select 'shop', id from supervisor.queue where name = 'default'")
        end()
        assert database.one("select count(*) from supervisor.trace_end") == 0
        take = "select run_id, workflow, status from supervisor.take_trace_ends(%s, 10)"
        assert database.sql(take, []) == []
        run = end()
        assert database.sql(take, []) == [(run, "shop", 4)] and database.sql(take, []) == []
        database.sql("update supervisor.trace_end set taken_at = taken_at - interval '61 s'")
        assert database.sql(take, []) == [(run, "shop", 4)] and database.sql(take, [run]) == []
        assert database.one("select count(*) from supervisor.trace_end") == 0
        database.sql("update supervisor.trace_reader set seen_at = seen_at - interval '181 s'")
        end()
        assert database.one("select count(*) from supervisor.trace_end") == 0


def test_a_signal_is_an_event(live: Live, got: Collector) -> None:
    """At the moment when it was given to the run."""
    run = live.start(traced.traced_waiter, "w")
    live.client.signal(run, traced.go, "on")
    assert run.result(timeout=20) == "on"
    root, _ = ended(live, got, run)
    assert [(name, values["pgsupervisor.wait.name"], values["pgsupervisor.wait.seq"]) for name, values, _ in root.events] == [("pgsupervisor.signal", "traced_go", 0)]


def test_what_undoes_a_run_has_spans_too(live: Live, got: Collector) -> None:
    """Compensations are steps."""
    run = live.start(traced.traced_refused, "u")
    with pytest.raises(Exception, match="no"):
        run.result(timeout=20)
    root, steps = ended(live, got, run)
    assert [span.name for span in steps] == ["step traced_undo"] and root.error == "failed: supervisor.core.errors.NonRetryable: no"


@pytest.mark.parametrize(("workflow", "word", "said", "error"), [
    (traced.traced_dies, "die", "StepDied", "exit code 9"),
    (traced.traced_dies, "raise", "ValueError", "from the process"),
    (traced.traced_timed_out, "late", "StepTimeout", "0.2 s"),
])  # fmt: skip
def test_the_process_of_a_step_dies_and_its_span_is_sent_by_the_worker(live: Live, got: Collector, workflow: Any, word: str, said: str, error: str) -> None:
    """Killed, or ended for its time: one span all the same. What it raised itself comes from itself."""
    run = live.start(workflow, word)
    assert run.result(timeout=30) == said
    root, steps = ended(live, got, run)
    assert len(steps) == 1 and error in (steps[0].error or "") and root.error is None


def test_a_step_that_holds_the_loop_and_one_that_is_given_up_have_theirs(live: Live, got: Collector) -> None:
    """Another thread has become the loop's when the first returns; nobody waits for the second when it does, and its span says so."""
    run = live.start(traced.traced_stuck, "h")
    held = run.result(timeout=20)
    root, steps = ended(live, got, run)
    assert [span.name for span in steps] == ["step traced_holds", "step traced_slow"] and held == f"{root.trace_id}/{steps[0].span_id}/True"
    assert [span.name for span in got.below(steps[0])] == ["inner held"] and steps[0].ended_ns - steps[0].began_ns > 1.4e8
    assert steps[1].attributes["pgsupervisor.step.given_up"] is True and "given_up" not in str(steps[0].attributes)
    assert "Failed to detach" not in live.host.log() and "spans are missing" not in live.host.log()


def test_a_span_of_workflow_code_is_current_until_it_ends(live: Live, got: Collector) -> None:
    """Over an await, where other runs have the thread; a step stays below the run, where a replay finds it too."""
    phase, again, step, after = live.run(traced.traced_phase, "p")
    assert phase == again != after and step.split("/")[0] == after.split("/")[0]
    assert "Failed to detach" not in live.host.log()


def test_a_run_whose_caller_is_not_sampled_is_not_sent(live: Live, got: Collector) -> None:
    """Its steps know: what they call is told not to record either."""
    run = live.start(traced.traced_child.options(traceparent=PARENT[:-2] + "00"), "quiet")
    assert run.result(timeout=20).endswith("/False")
    live.run(traced.traced_child, "loud")
    assert not got.of(run)


def test_log_lines_name_their_span(live: Live, got: Collector) -> None:
    """In a step that of the attempt, in workflow code that of the run."""
    run = live.start(traced.traced_all, "logged")
    run.result(timeout=20)
    root, steps = ended(live, got, run)
    lines = [json.loads(line) for line in live.host.log().splitlines() if line.endswith("}") and "logged" in line]
    mine = {line["message"]: line for line in lines if line.get("run") == str(run.id)}
    step, code = mine["in a thread logged"], mine["in the workflow logged"]
    assert (step["trace_id"], step["span_id"]) == (root.trace_id, steps[1].span_id) and (code["trace_id"], code["span_id"]) == (root.trace_id, root.span_id)
    assert "extra" not in step and step["attempt"] == 1 and step["step"] == "traced_thread"


def test_the_trace_of_a_run_can_be_asked_for_in_sql(live: Live, got: Collector) -> None:
    """Also after its end, and of a run that no worker has seen."""
    with trace.use_span(NonRecordingSpan(CALLER)):
        told = live.start(traced.traced_child, "told")
    own = live.start(traced.traced_child, "own")
    asked = [live.database.one("select supervisor.trace_id(%s)", run.id) for run in (told, own)]
    assert asked == [f"{CALLER.trace_id:032x}", f"{traces.trace_id_of(id_of(own)):032x}"]


# ── the collector ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_drain_sends_what_has_ended(build: str, database: Any, hosts: HostFactory, effects: Effects) -> None:
    """However long the exporter would have waited."""
    with collector() as got, Client(database.dsn) as client:
        host = hosts.start(APP, build=build, args=("--traces",), env={**got.env, "OTEL_BSP_SCHEDULE_DELAY": "600000"}).wait_up(1)
        run = client.start(traced.traced_all, "drained")
        run.result(timeout=20)
        assert not got.spans
        assert host.stop() == 0
        assert got.root(run) and len(got.of(run)) == 8


@pytest.mark.parametrize("how", ["away", "hangs", "refuses"])
def test_a_collector_that_is_of_no_use_costs_spans_and_one_line(how: str, database: Any, hosts: HostFactory) -> None:
    """Runs go on, workers live, the host stops in time."""
    with collector() as got, Client(database.dsn) as client:
        got.hold, got.status = how == "hangs", 400 if how == "refuses" else 200
        env = {**got.env, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"} | ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if how == "away" else {})
        host = hosts.start(APP, args=("--traces",), env=env).wait_up(1)
        pids = host.worker_pids()
        batch = client.start_many(traced.traced_child, [f"{n}" for n in range(300)])
        assert [run.result(timeout=60) is not None for run in batch] == [True] * 300
        eventually(lambda: "spans can't be delivered" in host.log(), 40, "the line")
        client.start(traced.traced_all, "more").result(timeout=20)
        assert host.worker_pids() == pids and host.log().count("can't be delivered") == 1 and "opentelemetry" not in host.log()
        assert host.stop(within_s=20) == 0


def test_without_the_flag_nothing_of_it_is_there(build: str, database: Any, hosts: HostFactory) -> None:
    """No import, no wrapped step, and the statement that claims is the one it always was."""
    with Client(database.dsn) as client, hosts(APP, build=build, env={"TRACED_WITHOUT": "1"}):
        loaded = client.start(traced.traced_modules).result(timeout=20)
    assert not {"opentelemetry", "requests", "google", "wrapped"} & set(loaded)
    assert not [name for name in loaded if name.startswith("opentel")]


def test_an_app_that_has_a_provider_keeps_it(database: Any, hosts: HostFactory) -> None:
    """Its libraries' spans are its own, and in the same trees."""
    with collector() as got, Client(database.dsn) as client, hosts(APP, args=("--traces",), env={**got.env, "TRACED_OWN": "1"}):
        run = client.start(traced.traced_child, "own")
        run.result(timeout=20)
        eventually(lambda: got.root(run), 20)
        (step,) = [span for span in got.of(run) if span.name == "step traced_inline"]
        (inner,) = got.below(step)
        assert (inner.resource["service.name"], step.resource["service.name"]) == ("own", APP)


def test_without_the_extra_it_says_what_to_install(database: Any, hosts: HostFactory, tmp_path: Path) -> None:
    """At once, before any worker."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    host = hosts.start("tests.apps.basic", args=("--traces",), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert host.process.wait(20) == 78
    assert "--traces needs opentelemetry.sdk, which is not installed: pip install 'pgsupervisor[otel]'" in host.log()


def test_an_exporter_that_is_not_there_is_said_at_once(database: Any, hosts: HostFactory) -> None:
    """By OpenTelemetry's own names."""
    host = hosts.start("tests.apps.basic", args=("--traces",), env={"OTEL_TRACES_EXPORTER": "zipkin"})
    assert host.process.wait(20) == 78
    assert "OTEL_TRACES_EXPORTER=zipkin: no exporter of that name is installed" in host.log()


def test_kill_of_everything_is_survived_by_the_tree(database: Any, hosts: HostFactory, effects: Effects) -> None:
    """Three hosts, one after the other, execute one run: what was sent is one tree."""
    with collector() as got, Client(database.dsn) as client:
        first = hosts.start(APP, args=("--traces",), env=got.env).wait_up(1)
        run = client.start(traced.traced_killed, "3")
        for n in (1, 2):
            eventually(lambda: effects.count("held", "3") == n and got.of(run), 30)
            hosts.started[-1].kill_all()
            hosts.start(APP, args=("--traces",), env=got.env).wait_up(1)
        eventually(lambda: effects.count("held", "3") == 3, 30)
        effects.open("go-3")
        assert run.result(timeout=30) == "3" and first.process.returncode == -signal.SIGKILL
        eventually(lambda: got.root(run), 20)
        assert len({span.trace_id for span in got.of(run)}) == 1 and len(got.root(run)) == 1
        assert {span.parent_id for span in got.of(run)} == {"", got.root(run)[0].span_id} and os.getpid()
