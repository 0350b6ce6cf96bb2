"""The statements of a worker's session, on tables in memory: each as the block of its name in sql/queries/loop.sql says.

Parameters come as the engine sends them, arrays in binary form, and rows go back as the server sends them: so everything that is sent and read is
the engine's own. What it does not know raises NotInMemory, and tests/unit/test_testing_statements.py notices.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from supervisor._fastpath.loop import FLOAT8, INT2, INT4, INT8, TEXT, TIMESTAMPTZ
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor._fastpath.wire import id_time_us
from supervisor.core import versions
from supervisor.db.arrays import elements
from supervisor.engine.batch import INFINITY, OUTCOME_OIDS, PLAIN_COLUMNS, RARE_OIDS, STEP_OIDS
from supervisor.engine.tokens import ENTRUSTED
from supervisor.testing.ending import close_children, error_json, lose_children
from supervisor.testing.errors import NotInMemory
from supervisor.testing.tables import (
    CANCELLED, CODE_MISSING, COMPLETED, EDITED, FRESH, HEIR, NONDETERMINISM, PARKED_FROM, PAUSED, QUEUED, RESUMED, SKIPPED, UPDATED, AttemptRow, Completion, Message,
    Outcome, RunRow, StepRow, Tables, Task,
)  # fmt: skip

EPOCH_2000_S = 946_684_800
_FORMS = {INT2: ">h", INT4: ">i", INT8: ">q", TIMESTAMPTZ: ">q", FLOAT8: ">d"}
_READ = {oid: struct.Struct(form).unpack for oid, form in _FORMS.items()}
i2, i4, i8 = (struct.Struct(form).pack for form in (">h", ">i", ">q"))
Cells = tuple[bytes | None, ...]
Params = Sequence[bytes]


class Result:
    """Rows as libpq gives them."""

    __slots__ = ("_rows", "nfields", "ntuples")

    def __init__(self, rows: Sequence[Cells] = ()) -> None:
        self._rows = rows
        self.ntuples = len(rows)
        self.nfields = len(rows[0]) if rows else 0

    def get_value(self, row: int, column: int) -> bytes | None:
        return self._rows[row][column]


def rows_of(oids: Sequence[int], params: Params) -> list[tuple[Any, ...]]:
    """Array parameters as rows of Python values."""
    columns = [[_value(oid, each) for each in elements(array)] for oid, array in zip(oids, params, strict=False)]
    return list(zip(*columns, strict=True))


def _value(oid: int, raw: bytes | None) -> Any:
    if raw is None:
        return None
    if oid in _READ:
        return _READ[oid](raw)[0]
    return raw.decode() if oid == TEXT else bytes(raw)


def _ids(params: Params) -> list[bytes]:
    return [each for each in elements(params[0]) if each is not None]


def _moment(s: float) -> int:
    """Us since 2000 of a float8 that is seconds since 1970."""
    return round((s - EPOCH_2000_S) * 1e6)


def _opt(pack: Callable[[int], bytes], value: int | None) -> bytes | None:
    return None if value is None else pack(value)


class Statements:
    """What one worker sends. `durable` counts the batches that changed something."""

    def __init__(self, tables: Tables) -> None:
        self.t = tables

    def execute(self, name: str, params: Params | None) -> Result:
        act = getattr(self, f"_{name}", None)
        if act is None:
            raise NotInMemory(f"the statement {name}")
        return Result(act(params or ()) or ())

    def _rows(self, name: str, params: Params) -> list[tuple[Any, ...]]:
        return rows_of(RARE_OIDS[name], params)

    def _own(self, run: bytes, params: Params) -> Task | None:
        """The task of a run if it is this worker's, whose id is the last parameter."""
        task = self.t.tasks.get(run)
        return task if task is not None and task.owner == struct.unpack(">i", params[-1])[0] else None

    # ── nothing to do here ───────────────────────────────────────────────────────────────────────────────────────

    def _fence(self, _: Params) -> None:
        """Nobody declares this worker dead while a batch is on its way."""

    _plan_custom = _plan_generic = _lock_parents = _lock_own = _fence

    # ── history ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _insert_steps(self, params: Params) -> None:
        self._steps(params, PLAIN_COLUMNS)

    def _insert_mixed_steps(self, params: Params) -> None:
        self._steps(params, len(STEP_OIDS))

    def _steps(self, params: Params, columns: int) -> None:
        worker = struct.unpack(">i", params[-1])[0]
        for run, seq, pos, name, result, started, ended, *more in rows_of(STEP_OIDS[:columns], params):
            kind, status = more or (1, COMPLETED)
            self.add_step(run, StepRow(seq, pos, kind, status, name, result, _moment(started), _moment(ended), worker))

    def add_step(self, run: bytes, row: StepRow) -> None:
        """One row. There is one for each seq, and `pos` has no holes."""
        there = self.t.steps[run]
        if any(each.seq == row.seq for each in there) or row.pos != len(there):
            raise AssertionError(f"seq {row.seq} at pos {row.pos} was recorded twice, or not in its turn: {[(each.seq, each.pos) for each in there]}")
        there.append(row)

    def _insert_attempts(self, params: Params) -> None:
        for run, seq, n, kind, name, error, _, started, ended, next_retry in self._rows("insert_attempts", params):
            self.t.attempts[run].append(AttemptRow(seq, n, kind, name, error, started, ended, next_retry))

    def _insert_published(self, params: Params) -> None:
        for run, key, pos, value, at in self._rows("insert_published", params):
            self.t.published[run].setdefault((key, pos), (value, at))

    def _insert_progress(self, params: Params) -> None:
        for run, pos, done, total, at in self._rows("insert_progress", params):
            self.t.progress[run].setdefault(pos, (done, total, at))

    def _set_attributes(self, params: Params) -> None:
        for run, pos, value, _ in self._rows("set_attributes", params):
            self.t.attributes[run].setdefault(pos, value)

    def _note_beats(self, params: Params) -> None:
        for run, seq, n, at, said in self._rows("note_beats", params):
            self.t.beats[run][seq] = (n, at, said if said is not None else self.t.beats[run].get(seq, (0, 0, None))[2])

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, params: Params) -> None:
        for run, status, steps, result, ended in rows_of(OUTCOME_OIDS, params):
            task = self._own(run, params)
            if task is None:
                raise AssertionError("a run ends that is not this worker's")
            del self.t.tasks[run]
            self.t.outcomes[run] = Outcome(status, result, _moment(ended), steps, task.version, task.owner)

    def _insert_children_done(self, params: Params) -> None:
        for parent, n, failed in self._rows("insert_children_done", params):
            self.t.tell_parent(parent, n, failed)

    def _wake_parents(self, params: Params) -> None:
        self.t.wake_parents(_ids(params))

    def _look_at_parked(self, params: Params) -> list[Cells]:
        return [(run,) for run in _ids(params) if self._is_due(run)]

    def _is_due(self, run: bytes) -> bool:
        task = self.t.tasks.get(run)
        return task is not None and task.owner is None and self.t.is_reached(run, task.children, task.children_failed)

    def _close_children(self, params: Params) -> None:
        close_children(self.t, _ids(params))

    def _lose_children(self, params: Params) -> None:
        lose_children(self.t, self._rows("lose_children", params))

    def _continue_runs(self, params: Params) -> None:
        for row in self._rows("continue_runs", params):
            task = self._own(row[0], params)
            if task is not None:
                self._continue(task, *row[1:])

    def _continue(self, task: Task, made: bytes, workflow: int | None, queue: str | None, prio: int | None, payload: bytes, delay_us: int) -> None:
        t, was, now = self.t, self.t.runs[task.id], self.t.now()
        number = workflow or task.workflow
        place = t.catalogue.queue(queue) if queue is not None else task.queue if number == task.workflow else t.catalogue.facts[number][0]
        for at, (named, hash_) in list(t.keys.items()):
            if named == task.id:
                t.keys[at] = (made, hash_)
        facts = t.merged_attributes(task.id)
        row = RunRow(
            made, number, place, task.prio if prio is None else prio, payload, now, was.key, was.parent, was.parent_seq, None,
            msgspec.json.encode(facts) if facts else None, chain=was.chain or task.id,
        )  # fmt: skip
        deadline = t.deadline(number, now + delay_us)
        fresh = t.add_run(row, ready_at=now + delay_us, parent_close=task.parent_close, cancel_at=deadline)
        if was.parent is not None and was.parent_seq is not None:
            t.continued[was.parent, was.parent_seq].append(made)
        t.kept[made] = [kid.id for kid in t.live_children(task.id)]
        if t.kept[made]:
            fresh.resumed = HEIR
        if task.cancel_to:
            t.cancellations[made] = dict(t.cancellations[task.id])
            fresh.cancel_to, fresh.resumed = 0, RESUMED
        if task.id in t.pauses:
            t.pauses[made] = t.pauses.pop(task.id)
            t.put_aside(made)
        for (run, name), messages in list(t.messages.items()):
            if run == task.id:
                taken = t.consumed[run, name]
                t.messages[made, name] = [each for each in messages if each.n not in taken]

    # ── leaving memory ───────────────────────────────────────────────────────────────────────────────────────────

    def _release(self, params: Params) -> None:
        for run, ready_at, kind, detail, seq, step, attempt, resumed, version, since in self._rows("release", params):
            task = self._own(run, params)
            if task is None:
                continue
            told = (task.cancel_to or 0) > 0
            for_code = kind in (NONDETERMINISM, CODE_MISSING) and resumed != FRESH  # it waits for that, though it is cancelled or late
            self._leave(task, detail, seq, step, version, ready_at, QUEUED if told and kind < PARKED_FROM else kind, told and not for_code, None if told else since)
            if for_code and not (kind == NONDETERMINISM and task.ready_at > self.t.now()):
                task.ready_at = INFINITY
            task.attempt, task.resumed = attempt, max(resumed, RESUMED) if told else resumed

    def _leave(
        self, task: Task, detail: str | None, seq: int | None, step: str | None, version: str | None, ready_at: int, kind: int, at_once: bool, since: int | None = None
    ) -> None:
        now = self.t.now()
        task.owner, task.claims, task.detail, task.since, task.seq, task.step, task.attempt = None, 0, detail, now if since is None else min(since, now), seq, step, None
        task.ready_at = now if at_once else min(ready_at, task.cancel_at) if task.cancel_at is not None else ready_at
        task.wait_kind = kind
        task.cancel_to = None if task.cancel_to is None else 0
        task.version = version if version is not None else task.version
        task.children = task.children_failed = task.signals = None

    def _park_on_children(self, params: Params) -> None:
        for run, children, failed, ready_at, seq, step, detail, kind, version, since in self._rows("park_on_children", params):
            self._park(run, params, children, failed, ready_at, seq, step, detail, kind, version, since, None, False)

    def _park_on_signals(self, params: Params) -> None:
        for run, names, afters, children, failed, ready_at, seq, step, detail, kind, version, since in self._rows("park_on_signals", params):
            wanted = names.split("\n")
            come = any(m.n > int(after) for name, after in zip(wanted, afters.split(","), strict=True) for m in self.t.messages[run, name])
            self._park(run, params, children, failed, ready_at, seq, step, detail, kind, version, since, wanted, come)

    def _park(
        self, run: bytes, params: Params, children: int | None, failed: int | None, ready_at: int, seq: int, step: str, detail: str, kind: int,
        version: str, since: int, signals: list[str] | None, come: bool,
    ) -> None:  # fmt: skip
        task = self._own(run, params)
        if task is None:
            return
        reached = come or (task.cancel_to or 0) > 0 or self.t.is_reached(run, children, failed)
        self._leave(task, detail, seq, step, version, ready_at, QUEUED if reached else kind, reached, None if reached else since)
        task.resumed = RESUMED
        if not reached:
            task.children, task.children_failed, task.signals = children, failed, signals

    def _publish(self, params: Params) -> None:
        for run, kind, seq, step, attempt, since in self._rows("publish", params):
            if (task := self._own(run, params)) is not None:
                task.wait_kind, task.seq, task.step, task.attempt, task.since = kind, seq, step, attempt, task.since if since is None else since

    def _told_cancel(self, params: Params) -> None:
        for run in _ids(params):
            if (task := self._own(run, params)) is not None:
                task.cancel_to = 0

    def _no_deadline(self, params: Params) -> None:
        for run in _ids(params):
            if (task := self._own(run, params)) is not None:
                task.cancel_at = None

    def _park_paused(self, params: Params) -> None:
        for run, seq, step, resumed, version in self._rows("park_paused", params):
            task, pause = self._own(run, params), self.t.pauses.get(run)
            if task is None:
                continue
            if pause is None:
                self._leave(task, None, seq, step, version, self.t.now(), QUEUED, True)
            else:
                pause.ready_at = None
                self._leave(task, pause.detail, seq, step, version, INFINITY, PAUSED, False)
            task.resumed = resumed

    def _look_at_requests(self, params: Params) -> list[Cells]:
        worker, seen = struct.unpack(">i", params[0])[0], {number for (number,) in rows_of((INT8,), params[1:2])}
        self.t.changed = {run: number for run, number in self.t.changed.items() if number not in seen and run in self.t.tasks}
        for changed in [self.t.tasks[run] for run in self.t.changed]:
            if changed.owner is None and changed.wait_kind != PAUSED:
                self._given_back_unheard(changed)
        for run in list(self.t.pauses):
            task = self.t.tasks.get(run)
            late = task is not None and task.cancel_at is not None and task.cancel_at <= self.t.now()
            if task is None or late and (task.owner == worker or task.owner is None and task.wait_kind != PAUSED):
                del self.t.pauses[run]
            else:
                self.t.put_aside(run)
        mine = [(run, None) for run in self.t.pauses if self.t.tasks[run].owner == worker]
        return [*mine, *((run, i8(number)) for run, number in self.t.changed.items() if self.t.tasks[run].owner == worker)]

    def _given_back_unheard(self, task: Task) -> None:
        """Its worker had not heard that a step of it was edited: whoever takes it finds that in its history."""
        del self.t.changed[task.id]
        if task.wait_kind in range(9, 16) and task.id not in self.t.pauses:
            task.wake(self.t.now())

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _wake_completed(self, params: Params) -> None:
        for run, seq, n in self._rows("wake_completed", params):
            task = self.t.tasks.get(run)
            if (seq, n) in self.t.completions[run] and task is not None and task.owner is None and task.wait_kind in (9, 10, 11, 13, 14, 15):
                task.wake(self.t.now())
                self.t.wake()

    def _expire_tokens(self, params: Params) -> list[Cells]:
        now = self.t.now()
        closed: list[Cells] = []
        for run, seq, n in self._rows("expire_tokens", params):
            given = next(row for row in self.t.attempts[run] if (row.seq, row.n, row.kind) == (seq, n, ENTRUSTED))
            late = given.next_retry is not None and given.next_retry <= now
            if (late or self._is_silent(run, given, now)) and (seq, n) not in self.t.completions[run]:
                self.t.completions[run][seq, n] = Completion(3 if late else 4, True, None, now)
                closed.append((run, i4(seq)))
        return closed

    def _is_silent(self, run: bytes, given: AttemptRow, now: int) -> bool:
        heartbeat_s = msgspec.json.decode(given.error or b"{}").get("heartbeat_s")
        n, at, _ = self.t.beats[run].get(given.seq, (0, 0, None))
        last = max(given.ended or 0, at if n == given.n else 0)
        return heartbeat_s is not None and last + heartbeat_s * 1e6 <= now

    def _read_completions(self, params: Params) -> list[Cells]:
        found: list[Cells] = []
        for run in _ids(params):
            found += [(run, i4(seq), i4(n), i2(c.kind), bytes([c.retry]), c.payload, i8(c.at)) for (seq, n), c in self.t.completions.get(run, {}).items()]
            found += [(run, i4(seq), i4(n), i2(0), b"\x01", said, i8(at)) for seq, (n, at, said) in self.t.beats.get(run, {}).items()]
        return found

    # ── timers and children ──────────────────────────────────────────────────────────────────────────────────────

    def _insert_timers(self, params: Params) -> list[Cells]:
        now = self.t.now()
        made: list[Cells] = []
        for run, seq, delay_us, due in self._rows("insert_timers", params):
            due = now + delay_us if due is None else due
            self.t.timers[run][seq] = due
            made.append((run, i4(seq), i8(due), i8(due - now)))
        return made

    def _fire_timers(self, params: Params) -> list[Cells]:
        now = self.t.now()
        fired: list[Cells] = []
        worker = struct.unpack(">i", params[-1])[0]
        for run, seq, pos, name, kind, status, result, called in self._rows("fire_timers", params):
            due = self.t.timers[run].get(seq)
            if due is not None and due <= now:
                del self.t.timers[run][seq]
                self.add_step(run, StepRow(seq, pos, kind, status, name, result, min(called, now), now, worker))
                fired.append((run, i4(seq), i8(now)))
        return fired

    def _fire_slept(self, params: Params) -> None:
        now, worker = self.t.now(), struct.unpack(">i", params[-1])[0]
        for run in _ids(params):
            timers = self.t.timers.get(run, {})
            if len(timers) == 1 and max(timers.values()) <= now and not self.t.cancellations.get(run):
                ((seq, due),) = self.t.timers.pop(run).items()
                given, since = max((each.ended for each in self.t.steps[run]), default=0), self.t.tasks[run].since
                began = since if since <= due else max(given, id_time_us(run))
                self.add_step(run, StepRow(seq, len(self.t.steps[run]), 2, COMPLETED, "sleep", None, began, now, worker))

    def _drop_timers(self, params: Params) -> None:
        for run, seq in self._rows("drop_timers", params):
            if seq is None:
                self.t.timers.pop(run, None)
            else:
                self.t.timers[run].pop(seq, None)

    def _insert_runs(self, params: Params) -> None:
        for row in self._rows("insert_runs", params):
            self._insert_child(*row)

    def _insert_child(
        self, kid: bytes, workflow: int, queue: str | None, prio: int, payload: bytes, parent: bytes, seq: int, delay_us: int, close: int, told: int
    ) -> None:
        t, now = self.t, self.t.now()
        place = t.catalogue.queue(queue) if queue is not None else t.catalogue.facts[workflow][0]
        row = RunRow(kid, workflow, place, prio, payload, now, None, parent, seq)
        t.children[parent][seq] = kid
        above = t.tasks.get(parent)
        if above is not None and above.cancel_to is not None and not told and close != 1:  # its parent was cancelled, and its code not told yet
            t.runs[kid] = row
            t.cancellations[kid][CANCELLED] = ("its parent was cancelled", "")
            t.outcomes[kid] = Outcome(CANCELLED, error_json("RunCancelled", "its parent was cancelled"), now, 0, None)
            t.tell_parent(parent, 1, 1)
            return
        t.add_run(row, ready_at=now + delay_us, parent_close=close, cancel_at=t.deadline(workflow, now + delay_us))

    # ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _claim(self, params: Params) -> list[Cells]:
        """Ready runs of every queue that is not paused, by priority, then oldest first."""
        now, limit = self.t.now(), struct.unpack(">i", params[4])[0]
        ready = [task for task in self.t.tasks.values() if task.owner is None and task.ready_at <= now and task.queue not in self.t.queue_pauses]
        ready.sort(key=lambda task: (task.prio, task.ready_at, task.id))
        return [self._take(task, params) for task in ready[:limit]]

    def _claim_missing(self, params: Params) -> list[Cells]:
        here, limit = dict(rows_of((INT4, TEXT), params[:2])), struct.unpack(">i", params[3])[0]
        found = [
            task for task in self.t.tasks.values()
            if task.owner is None and task.wait_kind == CODE_MISSING and task.queue not in self.t.queue_pauses
            and task.workflow in here and versions.accepts(here[task.workflow], task.version or "")
        ]  # fmt: skip
        for task in found[:limit]:
            task.ready_at = self.t.now()
        return [self._take(task, params) for task in sorted(found, key=lambda task: task.id)[:limit]]

    def _take(self, task: Task, params: Params) -> Cells:
        task.owner, task.wait_kind = struct.unpack(">i", params[-1])[0], None
        task.claims += 1
        version = None if task.version is None else task.version.encode()
        return (
            task.id, i4(task.workflow), i2(task.resumed), i2(task.claims), i4(task.queue), i2(task.prio), i8(task.ready_at), task.parent,
            None if task.key is None else task.key.encode(), task.input, _opt(i8, task.cancel_at), version,
        )  # fmt: skip

    # ── signals and updates ──────────────────────────────────────────────────────────────────────────────────────

    def _insert_consumed(self, params: Params) -> None:
        for run, name, n, seq in self._rows("insert_consumed", params):
            if n in self.t.consumed[run, name]:
                raise AssertionError(f"message {n} of signal {name} was given twice")
            self.t.consumed[run, name][n] = seq

    def _read_messages(self, params: Params) -> list[Cells]:
        found: list[tuple[int, Cells]] = []
        for run, name, after in rows_of((UUID_OID, TEXT, INT8), params[:3]):
            if after is None:
                after = max(self.t.consumed[run, name], default=0)
            come: list[Message] = [each for each in self.t.messages[run, name] if each.n > after][:256]
            found += [(each.n, (run, name.encode(), i8(each.n), each.payload, i8(after))) for each in come]
            if not come:
                found.append((0, (run, name.encode(), None, None, i8(after))))
        return [cells for _, cells in sorted(found, key=lambda one: one[0])]

    def _look_at_updates(self, params: Params) -> list[Cells]:
        sent = [(each.n, run, each) for run, open_ in self.t.updates.items() for each in open_ if each.error is None and self._own(run, params) is not None]
        return [(run, i8(n), each.name.encode(), each.id.encode(), each.payload) for n, run, each in sorted(sent, key=lambda one: one[0])]

    def _accept_updates(self, params: Params) -> None:
        for run, name, id_, seq in self._rows("accept_updates", params):
            self.t.updates[run] = [each for each in self.t.updates[run] if (each.name, each.id) != (name, id_)]
            self.t.accepted[run, name, id_] = seq

    def _reject_updates(self, params: Params) -> None:
        for run, name, id_, error in self._rows("reject_updates", params):
            for each in self.t.updates[run]:
                if (each.name, each.id) == (name, id_) and each.error is None:
                    each.error = error

    def _insert_update_ends(self, params: Params) -> None:
        for run, seq, status, result, ended in self._rows("insert_update_ends", params):
            self.t.answers.setdefault((run, seq), (status, result, ended))

    def _wake_updated(self, params: Params) -> list[Cells]:
        return [(run,) for run in wake_updated(self.t, _ids(params))]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_inputs(self, params: Params) -> list[Cells]:
        return [(run, self.t.runs[run].input, self.t.runs[run].drawn_from) for run in _ids(params)]

    def _read_steps(self, params: Params) -> list[Cells]:
        return [
            (run, i4(row.seq), i4(row.pos), i2(row.kind), i2(row.status), row.name.encode(), row.result, i8(row.ended))
            for run in sorted(_ids(params)) for row in self.t.steps[run]
        ]  # fmt: skip

    def _read_attempts(self, params: Params) -> list[Cells]:
        now = self.t.now()
        return [
            (run, i4(row.seq), i4(row.n), i2(row.kind), _opt(i8, None if row.next_retry is None else row.next_retry - now),
             row.error if row.kind in (EDITED, ENTRUSTED) else None, i8(row.started), _opt(i8, row.ended), _opt(i8, row.next_retry))
            for run in sorted(_ids(params)) for row in sorted(self.t.attempts[run], key=lambda each: (each.seq, each.n)) if row.kind != SKIPPED
        ]  # fmt: skip

    def _read_timers(self, params: Params) -> list[Cells]:
        now = self.t.now()
        return [(run, i4(seq), i8(due - now)) for run in _ids(params) for seq, due in self.t.timers.get(run, {}).items()]

    def _read_children(self, params: Params) -> list[Cells]:
        started: list[Cells] = [(run, i4(seq), self.t.child_now(run, seq), first) for run in _ids(params) for seq, first in self.t.children.get(run, {}).items()]
        return started + [(run, None, None, None) for run in _ids(params) if self.t.kept.get(run)]

    def _read_outcomes(self, params: Params) -> list[Cells]:
        found: Iterable[tuple[bytes, Outcome | None]] = ((run, self.t.outcomes.get(run)) for run in _ids(params))
        return [(run, i2(outcome.status), outcome.result) for run, outcome in found if outcome is not None]

    def _read_cancellations(self, params: Params) -> list[Cells]:
        return [
            (run, i2(how), None if reason is None else reason.encode(), actor.encode())
            for run in _ids(params) for how, (reason, actor) in self.t.cancellations.get(run, {}).items()
        ]  # fmt: skip

    def _read_marks(self, params: Params) -> list[Cells]:
        worker = struct.unpack(">i", params[0])[0]
        return [(task.id,) for task in self.t.tasks.values() if task.cancel_to == worker]


def wake_updated(tables: Tables, runs: Iterable[bytes]) -> list[bytes]:
    """Of these runs, wake those that are parked and were sent updates."""
    woken = []
    for run in sorted(runs):
        task = tables.tasks.get(run)
        parked = task is not None and task.owner is None and task.wait_kind in (9, 10, 11, 13, 14, 15)
        if task is not None and parked and any(each.error is None for each in tables.updates[run]):
            task.wake(tables.now())
            task.resumed = UPDATED
            woken.append(run)
    if woken:
        tables.wake()
    return woken


__all__ = ["Result", "Statements", "rows_of", "wake_updated"]
