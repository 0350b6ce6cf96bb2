"""Runs that begin with the history of another one, on tables in memory: fork, and retry of what has ended. As the functions of sql/migrations/0027 and 0031."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from supervisor.core.errors import UnknownWorkflow
from supervisor.testing import jsonb
from supervisor.testing.errors import BadValue
from supervisor.testing.tables import CANCELLED, COMPLETED, FAILED, FRESH, RESUMED, TIMED_OUT, Message, RunRow, StepRow, Tables

K = TypeVar("K")
V = TypeVar("V")
CHILD_START, SIGNAL, COMPENSATION, CANCELLATION, UPDATE = 4, 5, 6, 7, 9  # step.kind
STEP_FAILED, STEP_CANCELLED = 2, 3  # step.status
INPUT_BYTES_MAX = 2_097_152


@dataclass
class Plan:
    """A fork that is to be made. `pos`: how many deliveries of *run* it takes over; `why`: it can't be forked there."""

    run: RunRow
    workflow: int
    input: bytes
    pos: int
    why: str | None


class Forks:
    def __init__(self, tables: Tables) -> None:
        self._t = tables

    def plan(self, run: bytes, seq: int | None, payload: bytes | None, workflow: str | None) -> Plan | None:
        """None where there is no such run. Raises UnknownWorkflow, BadValue."""
        row = self._t.runs.get(run)
        if row is None:
            return None
        number = row.workflow if workflow is None else self._t.catalogue.workflows.get(workflow)
        if number is None:
            raise UnknownWorkflow(workflow or "")
        given = payload if payload is not None else row.input
        if payload is not None or number != row.workflow:
            self._check_input(number, given)
        return Plan(row, number, given, *self._cut_before(run, seq))

    def make(self, plan: Plan, made: bytes, keeps_key: bool) -> None:
        """*keeps_key*: it goes on with what the key stands for, unless that names another run by now."""
        t, was = self._t, plan.run
        key = None
        if keeps_key and was.key is not None and t.keys.get((was.workflow, was.key), (b"",))[0] == was.id:
            key = was.key
            t.keys[was.workflow, key] = (made, t.keys[was.workflow, key][1])
        now, same = t.now(), plan.workflow == was.workflow
        queue = was.queue if same else t.catalogue.facts[plan.workflow][0]
        row = RunRow(made, plan.workflow, queue, was.prio, plan.input, now, key, attributes=was.attributes, drawn_from=was.drawn_from or was.id, chain=was.chain if keeps_key else None)
        task = t.add_run(row, ready_at=now, cancel_at=t.deadline(plan.workflow, now))
        task.resumed = RESUMED if plan.pos > 0 else FRESH
        if plan.pos == 0:
            task.input = None  # so that whoever claims it reads whose numbers it draws
        self._copy(was.id, made, plan.pos)

    def failed_seq(self, run: bytes) -> int | None:
        """The step whose error ended a run, or where it was told to end; None where it was the code's own error, or somebody's who terminated it."""
        steps, outcome = self._t.steps[run], self._t.outcomes[run]
        if outcome.status in (CANCELLED, TIMED_OUT):
            return next((step.seq for step in steps if step.kind == CANCELLATION), None)
        if outcome.status != FAILED:
            return None
        error = jsonb.read(outcome.result)
        known = {_named(error), _named(jsonb.part(error, ("cause",)))} - {(None, None)}
        alike = [step.seq for step in steps if step.status == STEP_FAILED and _named(jsonb.read(step.result)) in known]
        if alike:
            return alike[-1]
        last = next((step for step in reversed(steps) if step.status != STEP_CANCELLED), None)
        return last.seq if last is not None and last.status == STEP_FAILED else None

    def _cut_before(self, run: bytes, seq: int | None) -> tuple[int, str | None]:
        steps = self._t.steps[run]
        pos = next((step.pos for step in steps if step.seq == seq), None)
        if pos is None:
            pos, last = len(steps), max((step.seq for step in steps), default=-1)
            if seq is not None and (seq < 0 or seq > last + 1 and self._t.skippable(run, seq) is None):
                return pos, f"its history has no step {seq}: the last one that is known is {last}"
        for step in steps[:pos]:
            if step.kind == CHILD_START and (kid := self._t.child_now(run, step.seq)) in self._t.tasks:
                return pos, f"its child {uuid.UUID(bytes=kid)} was started before that and still lives: it reports to one parent alone; wait for its end, or fork before its start"
        return pos, None

    def _check_input(self, workflow: int, stored: bytes) -> None:
        given, described = jsonb.read(stored), msgspec.json.decode(self._t.catalogue.facts[workflow][2])
        names = [each["name"] for each in described]
        unknown = [name for name in sorted(given, key=jsonb.by_length) if name not in names] if isinstance(given, dict) else []
        missing = [each["name"] for each in described if each["required"] and each["name"] not in (given if isinstance(given, dict) else ())]
        if not isinstance(given, dict):
            why = f"it must be an object by parameter name, not {jsonb.kind(given)}"
        elif unknown:
            why = f"{', '.join(unknown)}: no parameter of it; it takes {', '.join(names) or 'none'}"
        elif missing:
            why = f"required but not given: {', '.join(missing)}"
        elif len(stored) > INPUT_BYTES_MAX:
            why = f"{len(stored)} bytes of JSON, more than {INPUT_BYTES_MAX}"
        else:
            return
        raise BadValue(f'input 1 of workflow "{self._t.catalogue.name_of(workflow)}": {why}')

    def _copy(self, was: bytes, made: bytes, pos: int) -> None:
        """The first deliveries of one run as the history of another; not what was asked of it from outside."""
        t, kept = self._t, self._t.steps[was][:pos]
        seqs = {step.seq for step in kept}
        t.steps[made] = [replace(step) for step in kept]
        t.attempts[made] = [replace(each) for each in t.attempts[was] if each.seq in seqs]
        kids = {step.seq: t.children[was][step.seq] for step in kept if step.kind == CHILD_START and step.seq in t.children[was]}
        if kids:  # they have ended, so they are counted as they would have been
            t.children[made] = kids
            ended = [t.outcome(kid) for kid in kids.values()]
            t.ended_children[made] = [len(kids), sum(each is None or each.status != COMPLETED for each in ended)]
        self._copy_messages(was, made, {step.seq for step in kept if step.kind == SIGNAL})
        self._copy_updates(was, made, kept)
        _take_over(t.progress, was, made, lambda at: at < pos)
        _take_over(t.attributes, was, made, lambda at: at < pos)
        _take_over(t.published, was, made, lambda place: place[1] < pos)

    def _copy_messages(self, was: bytes, made: bytes, seqs: set[int]) -> None:
        """All of them: those that were not consumed before the point are there for what comes after it."""
        for (run, name), messages in list(self._t.messages.items()):
            if run == was:
                self._t.messages[made, name] = [Message(each.n, each.id, each.payload) for each in messages]
                self._t.consumed[made, name] = {n: seq for n, seq in self._t.consumed[was, name].items() if seq in seqs}

    def _copy_updates(self, was: bytes, made: bytes, kept: list[StepRow]) -> None:
        """Handlers that had ended for certain have; the others end again."""
        seqs = {step.seq for step in kept if step.kind == UPDATE}
        for (run, name, id_), seq in list(self._t.accepted.items()):
            if run == was and seq in seqs:
                self._t.accepted[made, name, id_] = seq
        for (run, seq), answer in list(self._t.answers.items()):
            if run == was and seq in seqs and answer[2] < kept[-1].ended:
                self._t.answers[made, seq] = answer


def _take_over(table: dict[bytes, dict[K, V]], was: bytes, made: bytes, wanted: Callable[[K], bool]) -> None:
    kept = {at: row for at, row in table.get(was, {}).items() if wanted(at)}
    if kept:
        table[made] = kept


def _named(error: object) -> tuple[str | None, str | None]:
    """Class and message of an error."""
    return jsonb.text(jsonb.part(error, ("type",))), jsonb.text(jsonb.part(error, ("message",)))


__all__ = ["Forks", "Plan"]
