"""What the log is told of runs that fail and of runs that this code can't go on with: the first of a kind at once, of a storm its sums.

Told when it is durable, never before. Where no run fails it costs nothing; one that fails costs the reading of its error.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from supervisor._fastpath.loop import FAILED, TIMED_OUT
from supervisor.core import codec
from supervisor.core.shown import count, plain
from supervisor.db.arrays import elements

if TYPE_CHECKING:
    from supervisor.engine.batch import Batch

log = logging.getLogger("pgsupervisor.engine")

SUM_S = (1.0, 10.0, 60.0)  # from one sum to the next, while it goes on
KINDS_MAX = 1000  # remembered; a storm of errors that are all of another kind is summed up like any other
FIRST_MAX = 10  # told at once between two sums
ERROR_MAX = 300
UNKNOWN = "a workflow that this app has not"  # a run whose time was over before anybody who knows it took it
STATUS_COLUMN, ERROR_COLUMN = 1, 3  # of a batch's outcomes
_BAD = tuple(struct.pack(">ih", 2, status) for status in (FAILED, TIMED_OUT))  # an element of the array of statuses


class Failures:
    """Of one worker. call_later(seconds, what) as the event loop has it."""

    def __init__(self, call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._call_later = call_later
        self._known: set[str] = set()
        self._more: Counter[tuple[str, str]] = Counter()  # (workflow, error) → runs that were not told one by one
        self._missing: Counter[str] = Counter()
        self._said: set[str] = set()
        self._first = self._sums = 0
        self._waiting = False

    def settled(self, batch: Batch) -> None:
        """*batch* is durable, and some of its runs have ended. Cost where none of them has failed: one search through 6 bytes a run."""
        assert batch.outcomes is not None
        if not any(bad in batch.outcomes[STATUS_COLUMN] for bad in _BAD):
            return
        errors = dict(zip(elements(batch.outcomes[0]), elements(batch.outcomes[ERROR_COLUMN]), strict=True))
        for run in batch.finished:
            if run.status in (FAILED, TIMED_OUT):
                self._failed(run, errors.get(run.id), batch)

    def _failed(self, run: Any, encoded: bytes | None, batch: Batch) -> None:
        name = run.workflow.name if run.workflow is not None else UNKNOWN
        kind, error = codec.told(encoded)
        kind, error = f"{name} {kind}", plain(error[:ERROR_MAX])
        if kind in self._known or self._first >= FIRST_MAX:
            self._more[name, error.partition(":")[0]] += 1
        else:
            self._first += 1
            self._known = self._known if len(self._known) < KINDS_MAX else set()
            self._known.add(kind)
            self._say(run, name, error, batch)
        self._sum_later()

    def _say(self, run: Any, name: str, error: str, batch: Batch) -> None:
        run_id = str(UUID(bytes=run.id))
        tries = [row for run_id_, row in batch.rare.get("insert_attempts", ()) if run_id_ == run.id]
        step, seq, attempt = (tries[-1][4], tries[-1][1], tries[-1][2]) if tries else (None, None, None)
        place = {"run": run_id, "workflow": name, "step": step, "seq": seq, "attempt": attempt}
        log.warning(
            "run %s of %s %s%s: %s; python -m supervisor show %s", run_id, name, "failed" if run.status == FAILED else "timed out",
            f", after step {step} (seq {seq}) had" if tries else "", error, run_id, extra={"place": tuple(place.values()), "error": error, **place},
        )  # fmt: skip

    def flush(self) -> None:
        """Its worker ends: say what is not said yet."""
        if self._waiting:
            self._sum()

    def missing(self, workflow: str, why: str) -> None:
        """A run is parked as code_missing. What is missing is told once, with how many runs that were at first."""
        key = f"of {workflow}: {why}"
        if key not in self._said:
            self._missing[key] += 1
            self._sum_later()

    def _sum_later(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._call_later(SUM_S[min(self._sums, len(SUM_S) - 1)], self._sum)

    def _sum(self) -> None:
        self._waiting, self._first = False, 0
        for key, runs in self._missing.items():
            log.warning(
                "%s parked as code_missing, %s; a worker that has it takes them up by itself: start one with that code beside this, or bring it back and reload",
                count(runs, "run"), key,
            )  # fmt: skip
        self._said.update(self._missing)
        self._missing.clear()
        more, self._more = self._more, Counter()
        if not more:
            self._sums = 0
            self._known.clear()
            return
        parts = ", ".join(f"{runs} of {name} with {error}" for (name, error), runs in more.most_common(5))
        rest = f", and {len(more) - 5} other kinds" if len(more) > 5 else ""
        log.warning("%s failed like those before: %s%s; python -m supervisor list --status failed", count(sum(more.values()), "more run"), parts, rest)
        self._sums += 1
        self._sum_later()
