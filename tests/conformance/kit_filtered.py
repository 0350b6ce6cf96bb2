"""Programs for test_testing_equals_host.py that look for runs by filters, and do something to all that one finds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from supervisor import Run
from tests.apps import families, kitted, operated, replayed
from tests.conformance.kit_operated import at_rest, ended, word
from tests.conformance.kit_programs import Stage

FILTERS = """
workflow = kid | workflow != kid | workflow in (kid, bad_kid) | workflow not in (kid, bad_kid) | workflow ^= kit | workflow ~ IT | workflow !~ IT | workflow > kid
status = completed | status != completed | status in (waiting, paused) | status = failed | status = running | NOT status = waiting
wait = signal | wait is null | wait is not null | wait != signal | wait in (step_backoff, timer) | wait = run_paused
waited < 1h | waited > 1h | age < 1h | age > 1h | NOT age > 1h | took < 1h | took >= 0s | took > 1h
started > 2001-01-01 | started < 2001-01-01 | started >= 2999-01-01 | ended > 2001-01-01 | ended < 2001-01-01 | NOT ended > 2001-01-01
key = kit-l-a | key != kit-l-a | key in (kit-l-a, kit-l-e, none) | key ^= "kit-l-" | key ~ L-B | key is null | key > kit-l-c
queue = default | queue = kitted | queue ^= def | schedule is null | schedule = nightly | schedule != nightly | batch is not null | batch is null | batch != kit-l
step = kitted_word | step is null | step ^= operated | seq = 0 | seq > 0 | attempt = 2 | attempt is null | attempt >= 1
version is null | version is not null | version ^= zzz | steps = 1 | steps >= 1 | steps is null | steps != 1
worker is null | worker > 0 | worker = 2147483646 | priority = 5 | priority < 5 | priority in (1, 2) | priority != 5
error ~ lookup | error ^= "LookupError: kid" | error is null | error !~ lookup | error.type ~ LookupError | error.message = "kid 3" | error.args.0 = "kid 3"
input.n = 1 | input.n > 1 | input.n in (1, 3) | input.n = "1" | input.n is null | input ~ '"n": 2' | input ^= '{"n"' | input.none.deeper is null | input.n ~ 1
result = 2 | result.a = 2 | result ~ 2 | result is null | result ^= 4 | result is not null | input.gate_name = ""
attribute.stage = paid | attribute.stage = "paid" | attribute.stage != paid | attribute.stage in (paid, open) | attribute.stage ^= pa | attribute.stage ~ AI
attribute.stage > open | attribute.stage is null | attribute.amount >= 100 | attribute.amount < 100 | attribute.amount = 99.5 | attribute.amount = "100" | attribute.amount ^= 10
attribute.vip = true | attribute.vip = false | attribute.vip != true | attribute.tags = x | attribute.tags = "x" | attribute.tags ~ "y" | attribute.tags.0 = x | attribute.tags.-1 = y
attribute.tags in (y, z) | attribute.due < 2026-12-02 | attribute.due = 2026-12-01 | attribute.due >= 2026-12-01T00:00:01 | attribute.due ~ 2026 | attribute.mixed > 5
attribute.mixed = 7 | attribute.mixed = seven | attribute.said ~ told | attribute is null | attribute is not null | attribute ~ '"amount": 100' | attribute.text = 2026-12-01
(workflow = kid AND input.n = 1) OR attribute.amount > 100 | NOT (workflow = kid OR status = waiting) | NOT NOT workflow = kid | parent is null | parent is not null
"""
ORDERS = ("", "started", "started asc", "attribute.amount", "attribute.amount desc", "attribute.mixed", "attribute.mixed desc", "attribute.vip", "attribute.due", "attribute.stage desc", "attribute.tags", "attribute.none")


def population(stage: Stage, batch: str) -> list[Run[Any]]:
    """Runs in each state, with attributes of each kind; keys begin with the batch."""
    client = stage.client
    day = datetime(2026, 12, 1, tzinfo=UTC)
    facts: list[dict[str, Any]] = [
        {"stage": "paid", "amount": 100, "vip": True, "tags": ["x", "y"], "due": day, "mixed": 7}, {"stage": "open", "amount": 99.5, "vip": False, "mixed": "seven"},
        {"stage": "Paid", "amount": 1000, "tags": [], "due": day.replace(day=2), "mixed": True, "text": "2026-12-01"},
        {"stage": "pärt", "amount": -1, "mixed": day, "tags": ["z"]},
    ]  # fmt: skip
    runs: list[Run[Any]] = [
        client.start(families.kid.options(key=f"{batch}-a", batch=batch, attributes=facts[0]), 1), client.start(families.kid.options(key=f"{batch}-b", batch=batch, priority=1), 2),
        client.start(families.bad_kid.options(key=f"{batch}-c", batch=batch, attributes=facts[1]), 3), client.start(families.kid.options(batch=batch, delay=3600), 4),
    ]  # fmt: skip
    for run in runs[:3]:
        ended(run)
    runs += [
        at_rest(stage, kitted.kitted_waits.options(key=f"{batch}-e", batch=batch, attributes=facts[2])), at_rest(stage, replayed.replayed_sleeps.options(batch=batch)),
        at_rest(stage, kitted.kitted_waits.options(key=f"{batch}-g", batch=batch)), at_rest(stage, operated.operated_retrying.options(batch=batch), batch, f"{batch}-open"),
        at_rest(stage, kitted.kitted_in_queue.options(key=f"{batch}-i", batch=batch, attributes=facts[3])), at_rest(stage, kitted.kitted_fails.options(batch=batch), batch, f"{batch}-open"),
    ]  # fmt: skip
    client.pause(runs[6])
    word(runs[9], "said")  # it sets attributes, and fails
    ended(runs[9])
    return runs


def finish(stage: Stage, runs: list[Run[Any]]) -> list[Run[Any]]:
    for run in runs:
        run.cancel("enough", actor="me")
    return runs


def found(stage: Stage, runs: list[Run[Any]], filter: str, **more: Any) -> list[int]:
    """Which of them, in their order."""
    ids = [run.id for run in runs]
    return [ids.index(each.run_id) for each in stage.client.list(filter=filter, **more)]


def filtered(stage: Stage) -> list[Run[Any]]:
    runs = population(stage, "kit-l")
    for line in FILTERS.split("\n"):
        for test in line.split(" | ") if line else ():
            stage.said.append(test)
            stage.ask(lambda test=test: found(stage, runs, f"({test}) AND batch = kit-l"))  # type: ignore[misc]
    stage.ask(
        lambda: found(stage, runs, f"run = {runs[1].id}"), lambda: found(stage, runs, f"run in ({runs[1].id}, {runs[4].id})"), lambda: found(stage, runs, f"batch = kit-l AND run != {runs[1].id}"),
        lambda: found(stage, runs, "batch = kit-l", status="waiting"), lambda: found(stage, runs, "status = completed", key="kit-l-a"), lambda: found(stage, runs, "status = failed", workflow="kid", key="kit-l-a"),
        lambda: [each.workflow for each in stage.client.list(filter=f"parent = {runs[9].id}")], lambda: stage.client.list(filter="parent is not null AND batch = kit-l"),
        lambda: stage.client.list(filter="workflow ="), lambda: stage.client.list(filter="colour = red"), lambda: stage.client.list(filter="status = gone"), lambda: stage.client.list(filter=""),
    )  # fmt: skip
    return finish(stage, runs)


def filtered_pages(stage: Stage) -> list[Run[Any]]:
    """Page by page, in each order, which may be that of an attribute: then of those that have one."""
    runs = population(stage, "kit-p")
    for order in ORDERS:
        by = f"batch = kit-p{f' ORDER BY {order}' if order else ''}"
        whole = found(stage, runs, by)
        stage.said.append([order, whole])
        paged: list[int] = []
        while page := found(stage, runs, by, limit=2, before=runs[paged[-1]].id if paged else None):
            paged += page
        assert paged == whole, order
        stage.ask(lambda by=by: found(stage, runs, by, limit=3, before=runs[0].id), lambda by=by: found(stage, runs, by, before=runs[7].id))  # type: ignore[misc]
    stage.ask(lambda: found(stage, runs, "attribute.amount > 0 AND batch = kit-p ORDER BY attribute.amount", limit=2), lambda: found(stage, runs, "batch = kit-p", limit=0))
    stage.ask(lambda: found(stage, runs, "batch = kit-p AND key = kit-p-a ORDER BY attribute.amount", before=runs[2].id))
    return finish(stage, runs)


def operated_all(stage: Stage) -> list[Run[Any]]:
    """In slices, with what came of each; what has ended, or is refused, is told."""
    client, runs = stage.client, population(stage, "kit-o")
    ids = [run.id for run in runs]

    def all_of(verb: Any, filter: str = "batch = kit-o", **more: Any) -> Any:
        each: list[Any] = []
        bulk = client.operate_all(verb, filter, each=each.append, **more)
        return [bulk.found, bulk.done, bulk.refused, bulk.locked, sorted((ids.index(one.run_id), one.did, one.state, one.why, one.made in (None, one.run_id)) for one in each)]

    stage.ask(
        lambda: all_of("pause", dry_run=True), lambda: all_of("pause", reason="year end", actor="ann"), lambda: all_of("pause"), lambda: all_of("retry"), lambda: all_of("resume"), lambda: all_of("resume"),
        lambda: all_of("edit_retry", seq=0, policy={"max_attempts": 7}), lambda: all_of("edit_retry", seq=0, policy={"max_attempts": 0}), lambda: all_of("skip", seq=1, result=1),
        lambda: all_of("skip", "batch = kit-o AND step = operated_failing", seq=0, result=11), lambda: all_of("fork", "batch = kit-o AND workflow = kid", seq=0, workflow=kitted.kitted_late),
        lambda: all_of("fork", "batch = kit-o AND workflow = kid", seq=0), lambda: all_of("fork", "batch = kit-o AND workflow = kid", seq=9), lambda: all_of("pause", "colour = red"),
        lambda: all_of("pause", reason="r" * 4001),
    )  # fmt: skip
    stage.notes.open("kit-o-open")
    stage.ask(lambda: all_of("retry", "batch = kit-o AND status = failed"), lambda: all_of("retry", "batch = kit-o AND status = failed")[:3])
    stage.ask(
        lambda: all_of("terminate", "batch = kit-o AND wait = timer", reason="no more", actor="ann"), lambda: all_of("terminate", "batch = kit-o AND wait = timer"),
        lambda: all_of("cancel", "batch = kit-o AND status = ready", dry_run=True), lambda: all_of("cancel", "batch = kit-o AND status = ready", reason="enough", actor="ann"), lambda: all_of("cancel", "batch = kit-o AND status = ready"),
    )  # fmt: skip
    return finish(stage, runs)


FILTERED: dict[str, Callable[[Stage], list[Run[Any]]]] = {program.__name__: program for program in (filtered, filtered_pages, operated_all)}
