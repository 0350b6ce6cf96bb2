"""Staging: runs that wait for every kind of thing, on one host, for tests of what is shown of them.

What the engine writes is brought about by the engine; the reasons that nothing writes yet (WRITTEN) are written into a task's row. What waits because
no worker lives has a staging of its own. Whoever stages needs a host of APP with one process, and the database, effects and client of it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from supervisor import Client
from tests.apps import staged
from tests.harness import Database, Effects, eventually

APP = "tests.apps.staged"
GATE = "staged-gate"  # opens what executes
WHOLE_ORDERS = 3  # that completed: how many steps an order usually has
WRITTEN = ("concurrency", "rate_limited", "fairness", "update", "debounce", "batch")
ENGINE = (
    "queued", "queue_paused", "run_paused", "step_running", "step_backoff", "timer", "signal", "token", "child", "any_of", "nondeterminism", "code_missing",
    "attempts_exhausted", "crash_loop", "commit_rejected", "schedule_overlap",
)  # fmt: skip
NOBODY = "no_worker"
SCHEDULE = "staged_schedule"  # which has one run that sleeps, and one behind that
CODES = (*ENGINE, *WRITTEN, NOBODY)

_LATER = {"delay": 86_400}


def stage(database: Database, client: Client, effects: Effects) -> dict[str, UUID]:
    """A run for each code of ENGINE and WRITTEN, all of them waiting for it; and WHOLE_ORDERS that completed."""
    for order in range(WHOLE_ORDERS):
        client.start(staged.staged_order, order, False).result(timeout=60)
    runs = {"attempts_exhausted": client.start(staged.staged_killer.options(key="attempts_exhausted"))}
    eventually(lambda: code_of(database, runs["attempts_exhausted"].id) == "attempts_exhausted", 120, "parked after three crashes")
    runs |= _as_they_come(client)
    client.pause(runs["run_paused"], reason="the warehouse is shut", actor="ann")
    ids = {code: run.id for code, run in runs.items()} | _brought_about(database, client) | {"schedule_overlap": _behind(client)}
    eventually(lambda: effects.count("staged_slow"), 60)
    database.sql("update supervisor.worker set queues = queues || (select id from supervisor.queue where name = 'staged_elsewhere') where dead_at is null")  # as one that has no room
    for code, run in ids.items():
        eventually(lambda: code_of(database, run) == code, 60, f"{code}, not {code_of(database, run)}")  # noqa: B023 - asked at once
    return ids | {code: _written(database, client, code) for code in WRITTEN}


def code_of(database: Database, run: UUID) -> str | None:
    found = database.sql("select code from supervisor.waits where run_id = %s", run)
    return found[0][0] if found else None


def _as_they_come(client: Client) -> dict[str, Any]:
    said: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "step_backoff": (staged.staged_order, (7, True)), "timer": (staged.staged_sleep, (86_400.0,)), "signal": (staged.staged_approval, (86_400.0,)),
        "run_paused": (staged.staged_approval, ()), "token": (staged.staged_outside, ()), "child": (staged.staged_parent, (86_400.0,)),
        "any_of": (staged.staged_either, (86_400.0,)), "step_running": (staged.staged_long, (GATE,)),
    }  # fmt: skip
    runs = {code: client.start(workflow.options(key=code), *values) for code, (workflow, values) in said.items()}
    runs["queue_paused"] = client.start(staged.staged_sleep.options(key="queue_paused", queue="staged_shut"), 0.0)
    client.pause_queue("staged_shut", "the shelves are counted", actor="ann")
    runs["queued"] = client.start(staged.staged_sleep.options(key="queued", queue="staged_elsewhere"), 0.0)  # which the worker will say that it serves
    return runs


def _behind(client: Client) -> UUID:
    """A run of a schedule whose previous one lives."""
    client.create_schedule(SCHEDULE, staged.staged_sleep, every=86_400.0, input={"seconds": 86_400.0})
    assert client.trigger_schedule(SCHEDULE) is not None
    held = client.trigger_schedule(SCHEDULE, overlap="buffer_one")
    assert held is not None
    return held


def in_front(database: Database) -> UUID:
    """The run that the other one of the schedule is behind."""
    found: UUID = database.one("select l.run_id from supervisor.schedule_live l where l.schedule = %s and not l.held", SCHEDULE)
    return found


def _brought_about(database: Database, client: Client) -> dict[str, UUID]:
    """What takes a history, a number or a constraint that no program comes to by itself."""
    database.sql("alter table supervisor.step add constraint staged check (encode(result, 'escape') not like '%%staged refusal%%') not valid")
    database.sql("insert into supervisor.workflow (name, queue) select 'staged_gone', id from supervisor.queue where name = 'staged'")
    gone = database.one("select supervisor.start('staged_gone', '{}', 'code_missing')")
    other = client.start(staged.staged_order.options(key="nondeterminism", **_LATER), 8, False).id
    database.sql("insert into supervisor.step values (%s, now(), now(), 0, 0, 1, 1, 1, 'staged_other', '0')", other)
    looped = client.start(staged.staged_sleep.options(key="crash_loop", **_LATER), 0.0).id
    database.sql("update supervisor.task set ready_at = clock_timestamp(), resumed = 1 where run_id = %s", other)
    database.sql("update supervisor.task set ready_at = clock_timestamp(), resumed = 2, claims = 11 where run_id = %s", looped)
    refused = client.start(staged.staged_refusing.options(key="commit_rejected"), "a staged refusal").id
    return {"code_missing": gone, "nondeterminism": other, "crash_loop": looped, "commit_rejected": refused}


def _written(database: Database, client: Client, code: str) -> UUID:
    run = client.start(staged.staged_sleep.options(key=code, **_LATER), 0.0).id
    database.sql(
        "update supervisor.task set ready_at = 'infinity', wait_since = now(), wait_kind = (select id from supervisor.wait_kind where code = %s) where run_id = %s", code, run
    )
    return run


def stage_without_workers(database: Database) -> UUID:
    """A run that nobody can take, for no worker of the schema lives."""
    database.sql("insert into supervisor.queue (name) values ('staged') on conflict do nothing")
    database.sql("insert into supervisor.workflow (name, queue) select 'staged_sleep', id from supervisor.queue where name = 'staged' on conflict do nothing")
    run: UUID = database.one("select supervisor.start('staged_sleep', '{}', %s)", NOBODY)
    return run
