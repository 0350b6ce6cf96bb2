"""What metrics ask of the database: few, bounded questions, seldom, on a session of their own, and nobody waits long for the answer.

Owns the thread in which they are asked: a database that is away, or hangs, costs a scrape its patience at most, and a probe the same.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from supervisor.core.errors import SupervisorError
from supervisor.db.pages import Look, Sessions
from supervisor.host.tallies import OTHER

log = logging.getLogger("pgsupervisor.metrics")

FRESH_S = 5.0  # for so long an answer is told again
PATIENCE_S = 2.5
STATEMENT_S = 0.5
ABANDONED_S = 60.0  # an answer that has not come by then is waited for no longer, and the question asked on another session
SESSIONS_MAX = 8
ROWS_MAX = 10_000
NAMES_MAX = 200  # queues; what comes after the longest of them is told together
READY = ("queued", "no_worker")
PARKED = ("nondeterminism", "code_missing", "attempts_exhausted", "crash_loop", "commit_rejected")
WAITING = (
    "concurrency", "rate_limited", "fairness", "queue_paused", "run_paused", "step_running", "step_backoff", "timer", "signal", "update", "token", "child", "any_of",
    "debounce", "batch", "schedule_overlap",
)  # fmt: skip

T = TypeVar("T")
Values = dict[tuple[str, ...], float]
Row = dict[str, Any]


class Question(Generic[T]):
    """Something that may take long, or for ever, to be answered. `answer` is what was said within *fresh_s*, or None after *patience_s*."""

    def __init__(self, ask: Callable[[], T], fresh_s: float = FRESH_S, patience_s: float = PATIENCE_S) -> None:
        self._ask, self._fresh_s, self._patience_s = ask, fresh_s, patience_s
        self._changed = threading.Condition()
        self._turn = 0  # of asking; an answer of an earlier one comes too late
        self._asked_at: float | None = None  # since when it is being asked
        self._answered_at = float("-inf")
        self._answer: T | None = None

    def answer(self) -> T | None:
        with self._changed:
            now = time.monotonic()
            if now - self._answered_at < self._fresh_s:
                return self._answer
            if self._asked_at is None or now - self._asked_at > ABANDONED_S:
                self._turn += 1
                self._asked_at = now
                threading.Thread(target=self._run, args=(self._turn,), daemon=True).start()
            turn, until = self._turn, self._asked_at + self._patience_s
            self._changed.wait_for(lambda: self._turn != turn or self._asked_at is None, max(0.0, until - now))
            return self._answer if time.monotonic() - self._answered_at < self._fresh_s + self._patience_s else None

    def _run(self, turn: int) -> None:
        try:
            answer = self._ask()
        except SupervisorError as error:
            log.debug("no answer for metrics: %s", error)
            answer = None
        except Exception:
            log.exception("metrics could not ask the database")
            answer = None
        with self._changed:
            if turn == self._turn:
                self._answer, self._answered_at, self._asked_at = answer, time.monotonic(), None
                self._changed.notify_all()


@dataclass
class Facts:
    """answered: which parts were; values: by metric of the catalogue, by its labels."""

    answered: dict[str, bool] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)


def facts(sessions: Sessions) -> Facts:
    """Ask it all, in one transaction. Raises SupervisorError where there is no session."""
    found = Facts()
    with sessions.look() as look:
        parts: dict[str, tuple[Callable[[], Sequence[Row]], Callable[[Sequence[Row]], dict[str, Values]]]] = {
            "queues": (lambda: look.rows("metrics_queues", NAMES_MAX), of_queues),
            "runs": (lambda: look.rows("metrics_waits", ROWS_MAX), of_waits),
            "hosts": (lambda: look.rows("metrics_hosts"), of_hosts),
            "tables": (lambda: look.rows("page_storage"), of_tables),
            "server": (lambda: look.rows("metrics_server"), of_server),
        }
        for part, (ask, tell) in parts.items():
            rows = look.apart(ask)
            found.answered[part] = not isinstance(rows, SupervisorError)
            if isinstance(rows, SupervisorError):
                log.debug("no answer for metrics, part %s: %s", part, rows)
                continue
            for name, values in tell(rows).items():
                found.values.setdefault(name, {}).update(values)
    _bound(found.values)
    return found


def of_waits(groups: Sequence[Row]) -> dict[str, Values]:
    """What stands ready in each queue, what waits and what is parked, by why."""
    runs: dict[str, float] = defaultdict(float)
    for row in groups:
        runs[row["code"]] += row["runs"]
    waiting = {code: runs.get(code, 0.0) for code in (*WAITING, *runs) if code not in READY and code not in PARKED}
    ready = [row for row in groups if row["code"] in READY]
    return {
        "queue_ready_runs": _by_queue(ready, "runs", operator.add),
        "queue_oldest_ready_seconds": _by_queue(ready, "age_s", max),
        "waiting_runs": {(code,): count for code, count in waiting.items()},
        "parked_runs": {(code,): runs.get(code, 0.0) for code in PARKED},
    }


def _by_queue(rows: Sequence[Row], column: str, together: Callable[[float, float], float]) -> Values:
    values: Values = {}
    for row in rows:
        labels = (row["queue"] or OTHER,)
        values[labels] = together(values.get(labels, 0.0), max(0.0, row[column]))
    return values


def of_queues(rows: Sequence[Row]) -> dict[str, Values]:
    """What those have in which nothing stands."""
    nothing: Values = {(row["queue"],): 0.0 for row in rows}
    return {"queue_ready_runs": nothing, "queue_oldest_ready_seconds": dict(nothing)}


def of_hosts(rows: Sequence[Row]) -> dict[str, Values]:
    row = rows[0]
    age: Values = {} if row["leader_age_s"] is None else {(): max(0.0, row["leader_age_s"])}
    return {
        "database_workers": {("alive",): row["alive"], ("lost",): row["lost"]},
        "database_leaders": {(): row["leaders"]},
        "database_leader_age_seconds": age,
        "database_schema_version": {(): row["migration"]},
    }


def of_tables(rows: Sequence[Row]) -> dict[str, Values]:
    return {
        "table_live_rows": {(row["name"],): row["rows"] or 0 for row in rows},
        "table_dead_rows": {(row["name"],): row["dead"] or 0 for row in rows},
        "table_bytes": {(row["name"],): row["bytes"] for row in rows},
        "table_partitions": {(row["name"],): row["partitions"] for row in rows if row["partitions"]},
    }


def of_server(rows: Sequence[Row]) -> dict[str, Values]:
    row = rows[0]
    named = {
        "database_xid_age": "xid_age", "database_oldest_xmin_age": "xmin_age", "database_oldest_transaction_seconds": "transaction_s",
        "database_connections": "connections", "database_connections_limit": "connections_max",
    }  # fmt: skip
    return {name: {(): row[column] or 0} for name, column in named.items()}


def _bound(values: dict[str, Values]) -> None:
    """No more queues than NAMES_MAX: those with the most runs, and OTHER for the rest."""
    ready, oldest = values.get("queue_ready_runs", {}), values.get("queue_oldest_ready_seconds", {})
    for labels in sorted(ready, key=lambda each: (-ready[each], each))[NAMES_MAX:]:
        ready[(OTHER,)] = ready.get((OTHER,), 0) + ready.pop(labels)
        oldest[(OTHER,)] = max(oldest.get((OTHER,), 0), oldest.pop(labels, 0))
