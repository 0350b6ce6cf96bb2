"""Steps that are tried again: a span around their attempts, from the begin of the first to their end, wherever those were and whatever died in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from supervisor.core import traces
from tests.apps import tried
from tests.collector import Collector, Span, collector
from tests.conformance.conftest import Live, living
from tests.harness import Server, eventually

APP = "tests.apps.tried"
CLOCKS_NS = 50_000_000  # by which spans of two processes may differ
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.fixture(scope="module")
def got() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def live(build: str, server: Server, got: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A host that traces, on a database of its own."""
    with living(server, tmp_path_factory.mktemp("tried"), APP, build=build, args=("--traces",), env=got.env) as made:
        yield made


def root_of(got: Collector, run: Any, within_s: float = 20) -> Span:
    (root,) = eventually(lambda: got.root(run), within_s, "the span of the run")
    return root


def attempts_of(got: Collector, run: Any, seq: int) -> list[Span]:
    """Spans of attempts, in their order."""
    found = [span for span in got.of(run) if span.attributes.get("pgsupervisor.step.seq") == seq and "pgsupervisor.step.attempt" in span.attributes]
    return sorted(found, key=lambda span: span.attributes["pgsupervisor.step.attempt"])


def step_of(got: Collector, run: Any, name: str, attempts: int, seq: int = 0, **said: Any) -> Span:
    """The one span of a step around *attempts* attempts, once they have come, which are its parts."""
    root, id_of = root_of(got, run), lambda number: f"{traces.step_span_id(run.id.bytes, seq, number):016x}"
    eventually(lambda: len(attempts_of(got, run, seq)) >= attempts, 20, f"attempts of {name}")
    (step,) = [span for span in got.of(run) if span.span_id == id_of(0)]
    parts = attempts_of(got, run, seq)
    assert (step.name, step.parent_id, step.trace_id, step.kind) == (f"step {name}", root.span_id, root.trace_id, 1)
    assert [(part.span_id, part.name, part.parent_id, part.trace_id) for part in parts] == [
        (id_of(number), f"attempt {name}", step.span_id, root.trace_id) for number in range(1, attempts + 1)
    ]
    assert [part.links for part in parts] == [[], *([(root.trace_id, before.span_id, {"pgsupervisor.link": "attempt"})] for before in parts[:-1])]
    told = {key.removeprefix("pgsupervisor.step."): value for key, value in step.attributes.items() if key.startswith("pgsupervisor.step.")}
    assert told == {"name": name, "seq": seq, "attempts": attempts, **said}
    assert root.began_ns - CLOCKS_NS <= step.began_ns <= parts[0].began_ns + CLOCKS_NS and parts[0].began_ns - step.began_ns < 1_000_000_000
    assert step.ended_ns <= root.ended_ns + CLOCKS_NS
    return step


def token(live: Live, word: str, attempt: int) -> str:
    return live.effects.lines("token")[[line[1:3] for line in live.effects.lines("token")].index([word, str(attempt)])][3]


def test_attempts_are_parts_of_their_step_wherever_they_execute(live: Live, got: Collector) -> None:
    """Inline, in a thread, as a task, in a process that raises or dies, in a transaction, begun once at most, and where nobody waited for the first any more."""
    run = live.start(tried.tried_everywhere, "e")
    assert run.result(timeout=40) == ["e"] * len(tried.PLACES)
    live.effects.open("late-e")
    for seq, place in enumerate(tried.PLACES):
        step = step_of(got, run, place.name, 2, seq)
        first, second = attempts_of(got, run, seq)
        assert step.error is None and second.error is None and step.ended_ns >= second.ended_ns - CLOCKS_NS
        if place is tried.tried_late_thread:
            assert first.error is None and first.attributes["pgsupervisor.step.given_up"] is True and first.ended_ns > second.ended_ns
        else:
            assert first.error is not None and first.ended_ns <= second.began_ns
    assert len([span for span in got.of(run) if span.name.startswith(("step ", "attempt "))]) == 3 * len(tried.PLACES)
    assert "spans are missing" not in live.host.log()


def test_beside_each_other_each_step_has_its_own(live: Live, got: Collector) -> None:
    """Branches of gather."""
    run = live.start(tried.tried_beside, "b")
    run.result(timeout=20)
    for seq, place in enumerate((tried.tried_inline, tried.tried_thread, tried.tried_task)):
        step_of(got, run, place.name, 2, seq)


def test_a_worker_is_killed_between_attempts_and_the_span_begins_with_the_first(live: Live, got: Collector) -> None:
    """The run waits out of memory for its second attempt; who brings it back knows from what is stored when the first one began."""
    run = live.start(tried.tried_later, "k", 3.0)
    live.until(lambda: run.status().wait == "step_backoff" and attempts_of(got, run, 0), 20, "parked, and the first attempt's span sent")
    live.kill()
    live.effects.open("go-k")
    assert run.result(timeout=40) == "k"
    step = step_of(got, run, "tried_after", 2)
    first, second = attempts_of(got, run, 0)
    assert len({pid for _, word, _, pid in live.effects.lines("try") if word == "k"}) == 2 and first.ended_ns < second.began_ns
    assert step.ended_ns - step.began_ns > 3e9 and step.ended_ns >= second.ended_ns - CLOCKS_NS


def test_a_worker_is_killed_in_an_attempt_and_all_of_them_are_one_step(live: Live, got: Collector) -> None:
    """The first in one process, the second in two: it is executed again as the same span."""
    run = live.start(tried.tried_later, "in", 0.05)
    live.until(lambda: live.effects.count("try", "in", 2) == 1 and attempts_of(got, run, 0), 20, "the second attempt to wait")
    live.kill()
    live.until(lambda: live.effects.count("try", "in", 2) == 2, 40, "the second attempt again")
    live.effects.open("go-in")
    assert run.result(timeout=20) == "in"
    step_of(got, run, "tried_after", 2)
    assert attempts_of(got, run, 0)[1].attributes["pgsupervisor.step.redelivered"] is True


def test_a_retry_at_once_is_an_attempt_like_the_others(live: Live, got: Collector) -> None:
    """Somebody asked for it."""
    run = live.start(tried.tried_later, "now", 3000.0)
    live.until(lambda: run.status().wait == "step_backoff", 20)
    live.effects.open("go-now")
    live.client.retry(run)
    assert run.result(timeout=20) == "now"
    step_of(got, run, "tried_after", 2)


def test_a_step_that_is_given_its_result_ends_then(live: Live, got: Collector) -> None:
    """Nobody executes it again: who brings its run back sends its span."""
    run = live.start(tried.tried_later, "skip", 3000.0)
    live.until(lambda: run.status().wait == "step_backoff", 20)
    live.client.skip(run, 0, "given")
    assert run.result(timeout=20) == "given"
    step_of(got, run, "tried_after", 1, skipped=True)


@pytest.mark.parametrize("how", ["cancelled", "terminated", "timed_out", "completed"])
def test_a_step_that_nobody_waits_for_any_more_has_its_span(live: Live, got: Collector, how: str) -> None:
    """Its run is ended while it waits for its second attempt: by itself, by its code, by whoever terminates it when no worker has it; or its branch lost."""
    workflow = {"timed_out": tried.tried_in_vain, "completed": tried.tried_beside_sleep}.get(how)
    run = live.start(workflow, how) if workflow is not None else live.start(tried.tried_later, how, 3000.0)
    if workflow is None:
        live.until(lambda: run.status().wait == "step_backoff", 20)
        (live.client.cancel if how == "cancelled" else live.client.terminate)(run, reason="enough")
    live.until(lambda: got.root(run), 60, "the span of the run")
    assert root_of(got, run).attributes["pgsupervisor.run.outcome"] == how
    step = step_of(got, run, "tried_after", 1, given_up=True)
    assert step.error is None and (how != "completed" or root_of(got, run).ended_ns - step.ended_ns > 1e9)


def test_a_step_that_a_token_completes_ends_when_it_does(live: Live, got: Collector) -> None:
    """Its attempt ends where its body does, so there is a span around one attempt, too."""
    run = live.start(tried.tried_with_token, "t")
    live.until(lambda: run.status().wait == "token" and attempts_of(got, run, 0), 20, "handed over")
    (attempt,) = attempts_of(got, run, 0)
    assert attempt.attributes["pgsupervisor.step.handed_over"] is True and attempt.error is None
    live.client.complete(token(live, "t", 1), "done")
    assert run.result(timeout=20) == "done"
    step = step_of(got, run, "tried_token", 1)
    assert step.error is None and step.ended_ns > attempt.ended_ns


def test_a_token_that_fails_is_an_attempt_that_failed(live: Live, got: Collector) -> None:
    """The next one is a part of the same step, and so is the error by which it ends."""
    run = live.start(tried.tried_with_token, "f")
    for number, again in ((1, True), (2, False)):
        live.until(lambda number=number: live.effects.count("token", "f", number) == 1 and run.status().wait == "token", 20, f"token {number}")  # type: ignore[misc]
        live.client.fail(token(live, "f", number), "no such account", retry=again)
    with pytest.raises(Exception, match="no such account"):
        run.result(timeout=20)
    step = step_of(got, run, "tried_token", 2)
    assert step.error is not None and "no such account" in step.error and step.events[0][0] == "exception"
    assert {part.attributes["pgsupervisor.step.handed_over"] for part in attempts_of(got, run, 0)} == {True}


def test_of_a_run_that_is_not_sampled_there_is_nothing(live: Live, got: Collector) -> None:
    """However often it is tried."""
    run = live.start(tried.tried_everywhere.options(traceparent=UNSAMPLED), "quiet")
    live.effects.open("late-quiet")
    run.result(timeout=40)
    live.start(tried.tried_beside, "loud").result(timeout=20)
    assert not got.of(run) and "spans are missing" not in live.host.log()
