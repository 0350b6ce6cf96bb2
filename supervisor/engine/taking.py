"""What a claim brought: runs that begin at once, runs that are read first, and runs that this worker can't go on with.

A run is pinned to the version of the code that began it. One that this process has not is given back, parked as code_missing; and now and
then the worker takes those that others gave back so, and it can run. Runs also end here whose time is over, but for those whose own code would have to
say what they have to undo.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from supervisor._fastpath.loop import INT4, TEXT, Run
from supervisor.core import registry
from supervisor.db.arrays import encode_rows
from supervisor.engine.commands import CODE_MISSING, CRASH_LOOP
from supervisor.engine.failures import UNKNOWN
from supervisor.engine.visibility import loop_hidden

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

CLAIMS_MAX = 10
DEADLINE_LOOK_S = 60.0
OVER_US = 1  # us since 2000: long past
LOOK_FOR_MISSING_S = 1.0  # the parent looks too, and nudges a worker that rests
_i2 = struct.Struct(">h").unpack
_i4 = struct.Struct(">i")
_i8 = struct.Struct(">q").unpack


class Taking:
    """One worker's."""

    def __init__(self, worker: Worker, workflow_ids: dict[str, int], queue_ids: Sequence[int]) -> None:
        self._worker = worker
        known = registry.workflows()
        self._workflows = {_i4.pack(id): known[name] for name, id in workflow_ids.items()}
        versions = [(id, known[name].version) for name, id in workflow_ids.items()]
        self._serves = [*encode_rows((INT4, TEXT), versions), *encode_rows((INT4,), [(id,) for id in queue_ids])]
        self._look_at = 0.0

    def missing(self, limit: int, now_s: float) -> list[bytes] | None:
        """Parameters of claim_missing, without the worker's id, when it is time to look."""
        if now_s < self._look_at:
            return None
        self._look_at = now_s + LOOK_FOR_MISSING_S
        return [*self._serves, _i4.pack(limit)]

    def look(self) -> None:
        """Look for what others could not run with the next claim."""
        self._look_at = 0.0

    def took_missing(self, result: Any, limit: int) -> None:
        """The same for what others could not run: no low-water mark is of it."""
        self.took(result, {})
        if result.ntuples >= limit:
            self.look()

    def took(self, result: Any, marks: dict[bytes, bytes]) -> None:
        """Runs that a claim brought: fresh ones begin at once, the others are read first or put aside."""
        others: list[tuple[Run, bytes, bytes, bytes | None, bytes, bytes | None, bytes | None, bytes]] = []
        self._worker.loop.admit(result, self._workflows, marks, others)
        commands, resumed = self._worker.commands, []
        for run, history, claims, payload, workflow_id, deadline, version, ready_at in others:
            run.resumed = _i2(history)[0]
            if deadline is not None:  # it was due no earlier than its deadline, and it was due: that is over by the database's clock, whatever this one says
                run.deadline_us = OVER_US if ready_at >= deadline else _i8(deadline)[0]
            run.timers = run.resumed != 0  # until its past is read, it may have some
            wants = None if version is None or run.workflow is None or run.workflow.accepts(version.decode()) else version.decode()
            if run.deadline_us and self._ends_unread(run, run.workflow is None or wants is not None, _i2(claims)[0]):
                continue
            if run.workflow is None:
                known = ", ".join(sorted(registry.workflows())) or "none"
                self._worker.failures.missing(UNKNOWN, f"it is number {_i4.unpack(workflow_id)[0]} in the catalogue, this worker knows {known}")
                commands.park(run, CODE_MISSING, {"workflow_id": _i4.unpack(workflow_id)[0], "this_worker_knows": known})
            elif wants is not None:
                self._worker.failures.missing(run.workflow.name, f"they want version {wants}, this worker has {run.workflow.version}")
                commands.park(run, CODE_MISSING, {"workflow": run.workflow.name, "wants": wants, "this_worker_has": run.workflow.version})
            elif _i2(claims)[0] > CLAIMS_MAX:
                commands.park(run, CRASH_LOOP, {"claims": _i2(claims)[0], "why": "claimed again and again without leaving its workers alive"})
            elif run.resumed == 0 and payload is not None:
                self._worker.loop.begin_run(run, payload)
            else:
                resumed.append((run, payload))
        self._worker.reading.add(resumed)

    def _ends_unread(self, run: Run, foreign: bool, claims: int) -> bool:
        """Whether its time is over and it ends for that with nothing undone: it has not begun, or whoever reads it dies. Of all others the history is read
        first, by their own code."""
        return (run.resumed == 0 or claims > CLAIMS_MAX and not foreign) and self.deadline_passed(run)

    def is_late(self, run: Run) -> bool:
        """Whether the run's time is over, as this worker knows the database's clock."""
        return run.deadline_us != 0 and run.deadline_us <= self._worker.loop.now_us()

    def deadline_passed(self, run: Run) -> bool:
        """Whether the run's time is over: it then ends as timed_out. Otherwise it is looked at again when it is."""
        if run.past is not None and run.past.compensating:
            return False
        left_s = (run.deadline_us - self._worker.loop.now_us()) / 1e6
        if left_s <= 0:
            self._worker.commands.time_out(run)
            self._worker.commands.pump()
            return True
        self._worker.commands.call_later(min(left_s, DEADLINE_LOOK_S), self._look_at_deadline, run)
        return False

    def _look_at_deadline(self, run: Run) -> None:
        if run.gone:
            return
        if run.batch != 0 or run.in_tx:  # first what is in flight, then the end
            self._worker.commands.call_later(0.01, self._look_at_deadline, run)
        else:
            with loop_hidden():
                self.deadline_passed(run)
