"""Every error that a user can meet, under one base.

A class is a noun, carries its facts as fields, has a stable `code`, and its message says what, which, the evidence
and what to do. Nothing here imports anything of the project.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class SupervisorError(Exception):
    """Base of all errors of pgsupervisor. `code` is stable and fit for programs."""

    code = "error"


# ── what the caller wrote ────────────────────────────────────────────────────────────────────────────────────────


class DefinitionError(SupervisorError):
    """A decorator was given something that can't be made durable; raised at import."""

    code = "definition"


class UnknownWorkflow(SupervisorError):
    """A start names a workflow that no worker has registered."""

    code = "unknown_workflow"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"no worker has ever registered a workflow named {name!r}; "
            f"start a worker whose app defines it (python -m supervisor run --app …), or check the name"
        )


class InputInvalid(SupervisorError):
    """Arguments do not fit a workflow's or a step's parameters; `path` says where."""

    code = "input_invalid"

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(f"{name}: {why}")


class PayloadRefused(SupervisorError):
    """A value can't be stored as JSON without changing it; `path` is where in the value, `what` which value it is."""

    code = "payload_refused"

    def __init__(self, path: str, why: str, what: str = "value") -> None:
        self.path, self.why, self.what = path, why, what
        super().__init__(f"{what} at {path}: {why}")

    def of(self, what: str) -> PayloadRefused:
        """The same of a value that is known by name."""
        return PayloadRefused(self.path, self.why, what)


class ResultInvalid(SupervisorError):
    """A step's or a workflow's result does not fit its return annotation."""

    code = "result_invalid"

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(f"{name} returned a value that does not fit its return annotation: {why}; mend the value or the annotation")


class FilterInvalid(SupervisorError):
    """A filter that can't be read: characters `at` to `end` of `text`; `why` says what is wrong, `remedy` what would fit."""

    code = "filter_invalid"

    def __init__(self, text: str, at: int, end: int, why: str, remedy: str) -> None:
        self.text, self.at, self.end, self.why, self.remedy = text, at, end, why, remedy
        before, there, after = text[max(0, at - 40) : at], text[at:end][:80] or "…", text[end : end + 20]
        place = f"{'…' if at > 40 else ''}{before}»{there}«{after}{'…' if end + 20 < len(text) else ''}"
        super().__init__(f"filter, character {at + 1}: {why}: {place}; {remedy}")


class KeyMismatch(SupervisorError):
    """The key names a run that was started with another input."""

    code = "key_mismatch"

    def __init__(self, workflow: str, key: str, run_id: object) -> None:
        self.workflow, self.key, self.run_id = workflow, key, run_id
        super().__init__(
            f"key {key!r} of workflow {workflow!r} names run {run_id}, which was started with another input; "
            f"use another key, or start with the same input"
        )


class KeyExists(SupervisorError):
    """The key names a run already, and the start asked to be refused then (`on_conflict="reject"`); nothing was started."""

    code = "key_exists"

    def __init__(self, workflow: str, key: str, run_id: object) -> None:
        self.workflow, self.key, self.run_id = workflow, key, run_id
        super().__init__(
            f"key {key!r} of workflow {workflow!r} names run {run_id} already and on_conflict is 'reject': nothing was started; "
            f"use another key, or on_conflict 'return', 'replace' or 'restart_failed'"
        )


class RecordRefused(SupervisorError):
    """A record of a file does not fit, and --strict ends the reading there; `line` and `path` say where."""

    code = "record_refused"

    def __init__(self, file: str, line: int, path: str, why: str) -> None:
        self.file, self.line, self.path, self.why = file, line, path, why
        super().__init__(f"{file}, line {line}, {path}: {why}; mend the record, or leave out --strict to go on without it")


class FileDamaged(SupervisorError):
    """A file can't be read to its end."""

    code = "file_damaged"


class ClockSkew(SupervisorError):
    """This machine's clock and the database's are too far apart for run ids."""

    code = "clock_skew"


# ── inside a run ─────────────────────────────────────────────────────────────────────────────────────────────────


class AsyncioInWorkflow(SupervisorError):
    """Workflow code used asyncio where only durable words are replayed."""

    code = "asyncio_in_workflow"


class OutsideWorkflow(SupervisorError):
    """A word that only means something inside a run was used outside."""

    code = "outside_workflow"


class ClientInsideRun(SupervisorError):
    """A client was used by workflow code; a replay would do it again."""

    code = "client_inside_run"


class ClientMisused(SupervisorError):
    """A client or a connection was used where it can't be: after a fork, on another event loop, without a transaction."""

    code = "client_misused"


class StepFailed(SupervisorError):
    """A step failed with an exception that can't be rebuilt here: its class is not imported, or takes other arguments."""

    code = "step_failed"

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name, self.message = type_name, message
        super().__init__(f"{type_name}: {message}")


class StepTimeout(SupervisorError, TimeoutError):
    """An attempt of a step did not end within its `timeout=`, or all of them together within `schedule_to_close=`."""

    code = "step_timeout"


class StepDied(SupervisorError):
    """The process of a step with run="process" ended before it gave a result; `signal` is what killed it, if it was one."""

    code = "step_died"

    def __init__(self, step: str, pid: int, how: str, signal: int | None = None) -> None:
        self.step, self.pid, self.signal = step, pid, signal
        super().__init__(f"step {step}: its process{f' {pid}' if pid else ''} {how} before the step had returned; the worker is not affected")


class StepInterrupted(SupervisorError):
    """An at_most_once step had begun when its worker died; whether it did its work is not known."""

    code = "step_interrupted"


class NonRetryable(SupervisorError):
    """Raise it in a step to fail at once, whatever the policy: `raise NonRetryable("…") from e`."""

    code = "non_retryable"


class RetryAfter(SupervisorError):
    """Raise it in a step to be tried again after *seconds*; it counts as an attempt."""

    code = "retry_after"

    def __init__(self, seconds: float) -> None:
        self.seconds = float(seconds)
        super().__init__(f"try again after {self.seconds:g} s")


class CompleteLater(SupervisorError):
    """Raise it in a step that has handed out `current().token()`: its result comes from outside, by complete or fail.

    timeout     seconds until it is given up (StepTimeout); else what is left of the step's own, else none
    heartbeat   seconds within which whoever holds the token is to give a sign of life, again and again (HeartbeatMissed)
    """

    code = "complete_later"

    def __init__(self, timeout: float | timedelta | None = None, heartbeat: float | timedelta | None = None) -> None:
        self.timeout_s, self.heartbeat_s = _seconds("timeout", timeout), _seconds("heartbeat", heartbeat)
        super().__init__("its result comes from outside")


def _seconds(name: str, given: float | timedelta | None) -> float | None:
    if given is None:
        return None
    value = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e10:
        raise DefinitionError(f"CompleteLater({name}={given!r}): give seconds, more than 0, or a timedelta")
    return float(value)


class HeartbeatMissed(SupervisorError, TimeoutError):
    """A step, or whoever was to complete it from outside, gave no sign of life in time; the step's policy decides whether it is tried again."""

    code = "heartbeat_missed"


class CompletionFailed(SupervisorError):
    """What a step is told that was failed from outside with a text."""

    code = "completion_failed"


class TransactionMisused(SupervisorError):
    """A transactional step did to its transaction what only the engine may do."""

    code = "transaction_misused"


class ReplayMismatch(SupervisorError):
    """The code does not do what the history says it did; the run is parked, nothing was executed.

    place     file:line of the code where it does something else, where that is known
    version   the code's, which is the run's too: then its own source is hardly what differs
    """

    code = "replay_mismatch"

    def __init__(self, run_id: object, seq: int, expected: str, found: str, place: str = "", version: str | None = None) -> None:
        self.run_id, self.seq, self.expected, self.found, self.place, self.version = run_id, seq, expected, found, place, version
        at = f" at {place}" if place else ""
        super().__init__(f"run {run_id}: at seq {seq} the history has {expected} but the code now does {found}{at}; {_replayed_otherwise(version)}")


def _replayed_otherwise(version: str | None) -> str:
    if version is None:
        return "bring the old code back, or give the changed workflow a new name"
    return (
        f"the same version, {version}, did something else: look for what a replay does not repeat (time, random, process, globals, order of a set) "
        f"and take it from now(), random(), uuid4() or a step, or, where a function that it calls has changed or the run was moved here, bring the old code back"
    )


class CompensationFailed(SupervisorError):
    """The run ended, and not all that it had done could be undone; `failed` names what is left, `__cause__` is what ended the run."""

    code = "compensation_failed"

    def __init__(self, failed: list[tuple[str, int, str]], why: str) -> None:
        self.failed, self.why = [list(each) for each in failed], why
        left = "; ".join(f"{name} (undo of seq {of}): {error}" for name, of, error in failed)
        super().__init__(f"{len(failed)} of its undo steps failed after {why}: {left}; do by hand what they would have done")


class CompensationPending(SupervisorError):
    """A run that has named undo steps called continue_as_new: its successor would not know of them. `steps`: name, and seq of what it undoes, of each, in the order in which they would be done."""

    code = "compensation_pending"

    def __init__(self, run_id: object, workflow: str, steps: list[tuple[str, int]]) -> None:
        self.run_id, self.workflow, self.steps = run_id, workflow, [list(each) for each in steps]
        named = ", ".join(f"{name} (undo of seq {of})" for name, of in steps[:3]) + (f" and {len(steps) - 3} more" if len(steps) > 3 else "")
        super().__init__(
            f"run {run_id} of {workflow} can't continue as a new one: it has {len(steps)} undo step{'s' * (len(steps) > 1)} that its successor would not know of: {named}; "
            f"do what they would undo in a child run, whose end settles that, or return instead of continue_as_new(…)"
        )


class HistoryUnreadable(SupervisorError):
    """A file of exported histories has something else in it, at `line`."""

    code = "history_unreadable"

    def __init__(self, file: str, line: int, why: str) -> None:
        self.file, self.line, self.why = file, line, why
        super().__init__(f"{file}, line {line}: no exported history: {why}; python -m supervisor export writes such files")


class HistoryTooLarge(SupervisorError):
    """The history of a run is longer than what is exported or compared."""

    code = "history_too_large"

    def __init__(self, run_id: object, steps: int, bytes: int, steps_max: int, bytes_max: int) -> None:
        self.run_id, self.steps, self.bytes = run_id, steps, bytes
        super().__init__(
            f"run {run_id} has {steps:,} results of {bytes:,} bytes; at most {steps_max:,} of {bytes_max:,} bytes are read here: leave it out"
        )


# ── queries ──────────────────────────────────────────────────────────────────────────────────────────────────────


class QueryFailed(SupervisorError):
    """A run could not answer a query; `__cause__` is what its handler, or the replay, raised, rebuilt."""

    code = "query_failed"

    def __init__(self, run_id: object, name: str, why: str) -> None:
        self.run_id, self.name, self.why = run_id, name, why
        super().__init__(f"run {run_id} did not answer query {name!r}: {why}")


class QueryUnknown(SupervisorError):
    """The run has no handler of that name, as far as it has come."""

    code = "query_unknown"

    def __init__(self, run_id: object, name: str, known: list[str]) -> None:
        self.run_id, self.name, self.known = run_id, name, known
        super().__init__(
            f"run {run_id} has no handler for query {name!r} where it stands (it has: {', '.join(known) or 'none'}); "
            f"check the name, or let the workflow name its handler before it first waits"
        )


class QueryReadOnly(SupervisorError):
    """A query's handler, or an update's validator, asked for something that only a run may do."""

    code = "query_read_only"

    def __init__(self, word: str) -> None:
        self.word = word
        super().__init__(
            f"{word} in a query's handler or an update's validator: it answers from what the run holds, and can't do or record anything; "
            f"do it in the workflow, or in the update's handler"
        )


class QueryTooLong(SupervisorError):
    """The history is longer than a query may replay."""

    code = "query_too_long"


# ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────────


class UpdateRejected(SupervisorError):
    """A run refused an update before it was accepted, and nothing of it is in the history; `__cause__` is what its validator raised, rebuilt."""

    code = "update_rejected"

    def __init__(self, run_id: object, name: str, why: str) -> None:
        self.run_id, self.name, self.why = run_id, name, why
        super().__init__(f"run {run_id} rejected update {name!r}: {why}; it changed nothing and left no trace in the run's history")


class UpdateUnknown(SupervisorError):
    """The run has no handler of that name, as far as it has come."""

    code = "update_unknown"

    def __init__(self, run_id: object, name: str, known: list[str]) -> None:
        self.run_id, self.name, self.known = run_id, name, known
        super().__init__(
            f"run {run_id} has no handler for update {name!r} where it stands (it has: {', '.join(known) or 'none'}); "
            f"check the name, or let the workflow name its handler before it first waits"
        )


class UpdateFailed(SupervisorError):
    """The handler of an accepted update raised; `__cause__` is its error, rebuilt. The run went on."""

    code = "update_failed"

    def __init__(self, run_id: object, name: str, why: str) -> None:
        self.run_id, self.name, self.why = run_id, name, why
        super().__init__(f"run {run_id} accepted update {name!r} and its handler failed: {why}")


class UpdateUnfinished(SupervisorError):
    """The run ended while the handler of an accepted update was under way: the handler was given up, and no answer will come."""

    code = "update_unfinished"

    def __init__(self, run_id: object, name: str, status: str) -> None:
        self.run_id, self.name, self.status = run_id, name, status
        super().__init__(
            f"run {run_id} ended ({status}) before its handler of update {name!r} did, so there is no answer; "
            f"a workflow waits for its handlers with `await handlers_finished()`: python -m supervisor show {run_id}"
        )


# ── how a run ended, as its waiter sees it ───────────────────────────────────────────────────────────────────────


class Link(NamedTuple):
    """A run that an error went through. `seq`: where its parent had started it; None of a run that a client asked about."""

    run_id: str
    workflow: str
    seq: int | None


CHAIN_MAX = 64  # of runs below one another that are named; causes themselves are stored four deep


def chain_of(error: BaseException | None) -> list[Link]:
    """The runs that *error* has gone through; none where it is of no run."""
    if isinstance(error, RunFailed):
        return error.chain
    return [Link(str(error.run_id), error.workflow, error.seq)] if isinstance(error, EndedFromOutside) else []


class RunFailed(SupervisorError):
    """The run failed; `__cause__` is the error that ended it, rebuilt."""

    code = "run_failed"

    def __init__(self, run_id: object, workflow: str, why: str, seq: int | None = None, cause: BaseException | None = None) -> None:
        self.run_id, self.workflow, self.why, self.seq = run_id, workflow, why, seq
        self.below: list[Any] = [list(link) for link in chain_of(cause)[:CHAIN_MAX]]  # as JSON has it
        self.__cause__ = cause
        super().__init__(f"run {run_id} of {workflow} failed: {why.replace(f'run {run_id} of {workflow}: ', '', 1)}")

    @property
    def chain(self) -> list[Link]:
        """The runs through which it went, from this one to the one in which it began."""
        return [Link(str(self.run_id), self.workflow, self.seq), *(Link(*link) for link in self.below)]


class HistoryTooLong(SupervisorError):
    """A run called more steps, timers, children and waits than its workflow's `max_steps=`; raised at the call that was one too many."""

    code = "history_too_long"

    def __init__(self, run_id: object, workflow: str, max_steps: int) -> None:
        self.run_id, self.workflow, self.max_steps = run_id, workflow, max_steps
        super().__init__(
            f"run {run_id} of {workflow} has called {max_steps} steps, timers, children and waits, and a replay reads all of them; "
            f"continue_as_new(…) before that (current().should_continue says when), or raise @workflow(max_steps=…)"
        )


class RunTimedOut(SupervisorError, TimeoutError):
    """The run did not end within its workflow's `timeout=`."""

    code = "run_timed_out"
    run_id: object = None
    workflow = ""

    @classmethod
    def of(cls, run_id: object, workflow: str, ended_at: datetime | None) -> RunTimedOut:
        """What is told to who waited for the run."""
        at = f" at {ended_at:%Y-%m-%d %H:%M:%S %Z}" if ended_at is not None else ""
        error = cls(f"run {run_id} of {workflow} timed out{at}: it did not end within the timeout= of its workflow; see: python -m supervisor show {run_id}")
        error.run_id, error.workflow = run_id, workflow
        return error


class EndedFromOutside(SupervisorError):
    """Somebody ended the run, or the child that was waited for; `why` is the reason that was given."""

    code = "ended_from_outside"
    how = "ended"
    run_id: object = None
    workflow = why = ""
    seq: int | None = None

    def __init__(self, run_id: object, workflow: str, why: str = "", ended_at: datetime | None = None, seq: int | None = None) -> None:
        self.run_id, self.workflow, self.why, self.seq = run_id, workflow, why, seq
        at = f" at {ended_at:%Y-%m-%d %H:%M:%S %Z}" if ended_at is not None else ""
        super().__init__(f"run {run_id} of {workflow} was {self.how}{at}{f' ({why})' if why else ''}; see: python -m supervisor show {run_id}")


class RunCancelled(EndedFromOutside):
    """Somebody cancelled it."""

    code = "run_cancelled"
    how = "cancelled"


class RunTerminated(EndedFromOutside):
    """Its key was given to another run."""

    code = "run_terminated"
    how = "terminated"


class RunUnknown(SupervisorError):
    """No run has that id or key."""

    code = "run_unknown"

    def __init__(self, which: object) -> None:
        self.which = which
        super().__init__(f"there is no run {which}; it was never started here, or its history was pruned")


class RunClosed(SupervisorError):
    """A signal or an update was sent to a run that has ended, and never reached it; `signal` or `update` is its name."""

    code = "run_closed"

    def __init__(self, run_id: object, status: str, signal: str | None = None, update: str | None = None) -> None:
        self.run_id, self.status, self.signal, self.update = run_id, status, signal, update
        what = f"signal {signal!r} was not stored: nobody would ever read it" if update is None else f"update {update!r} was not accepted"
        super().__init__(
            f"run {run_id} has ended ({status}), so {what}; "
            f"start another run ({'signal' if update is None else 'update'}_with_start does both), or see how it ended: python -m supervisor show {run_id}"
        )


class VersionUnknown(SupervisorError):
    """Runs can be moved only to a version that a worker has had; `known` are those of the workflow, the newest first."""

    code = "version_unknown"

    def __init__(self, workflow: str, version: str, known: Sequence[str]) -> None:
        self.workflow, self.version, self.known = workflow, version, tuple(known)
        super().__init__(
            f"no worker has ever had version {version!r} of workflow {workflow!r} (known: {', '.join(known) or 'none'}); "
            f"start a worker whose app has it first: python -m supervisor versions says which there are"
        )


class RunEnded(SupervisorError):
    """An operator's verb was asked of a run that has ended; nothing was done."""

    code = "run_ended"

    def __init__(self, run_id: object, status: str, verb: str) -> None:
        self.run_id, self.status, self.verb = run_id, status, verb
        super().__init__(
            f"run {run_id} has ended ({status}), so {verb} changes nothing of it; "
            f"retry goes on with one that did not complete, fork with any, as another run: python -m supervisor retry {run_id}"
        )


class OperationRefused(SupervisorError):
    """An operator's verb does not fit what the run does now; nothing was done. `why` says what stands in its way."""

    code = "operation_refused"

    def __init__(self, run_id: object, verb: str, why: str) -> None:
        self.run_id, self.verb, self.why = run_id, verb, why
        super().__init__(f"run {run_id}: {verb} is not possible: {why}; see what it does: python -m supervisor show {run_id}")


class RunLocked(SupervisorError):
    """Somebody else's transaction has the run locked: within the time that there was, nothing could be done, and nothing was."""

    code = "run_locked"

    def __init__(self, what: str, waited_s: float, evidence: str) -> None:
        self.what, self.waited_s, self.evidence = what, waited_s, evidence
        super().__init__(
            f"{what} was given up after {waited_s:g} s, and nothing was done: another transaction has the run, or its worker, locked ({evidence}); "
            f"ask again in a moment; pg_stat_activity shows who has been in a transaction for long"
        )


class TokenUnknown(SupervisorError):
    """It is no token that was given out in this database and schema."""

    code = "token_unknown"

    def __init__(self) -> None:
        super().__init__("this is no token that was given out here; give it whole, as current().token() had it, to the same database and schema")


class TokenClosed(SupervisorError):
    """The try that the token is of has ended: nothing was changed. `why` says how."""

    code = "token_closed"

    def __init__(self, run_id: object, seq: int, attempt: int, why: str) -> None:
        self.run_id, self.seq, self.attempt, self.why = run_id, seq, attempt, why
        super().__init__(f"the token of run {run_id}, seq {seq}, try {attempt} is closed: {why}; see: python -m supervisor show {run_id}")


class BatchUnknown(SupervisorError):
    """No start has ever named that batch."""

    code = "batch_unknown"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no batch {name!r}; no start has ever named it here: select batch from batches lists those that there are")


# ── schedules ────────────────────────────────────────────────────────────────────────────────────────────────────


class ScheduleInvalid(SupervisorError):
    """What was said of a schedule can't be followed: a cron or a time zone that nobody can read, a duration out of its bounds. `term` says which of its terms."""

    code = "schedule_invalid"

    def __init__(self, schedule: str, why: str, remedy: str = "mend it, and say it again", term: str | None = None) -> None:
        self.schedule, self.why, self.term = schedule, why, term
        super().__init__(f"schedule {schedule!r}: {why}; {remedy}")


class ScheduleUnknown(SupervisorError):
    """A verb names a schedule that is not there."""

    code = "schedule_unknown"

    def __init__(self, schedule: str) -> None:
        self.schedule = schedule
        super().__init__(f"there is no schedule {schedule!r}; python -m supervisor schedules lists those that there are")


class ScheduleExists(SupervisorError):
    """A schedule was to be created under a name that one has already."""

    code = "schedule_exists"

    def __init__(self, schedule: str) -> None:
        self.schedule = schedule
        super().__init__(f"there is a schedule {schedule!r} already; change it (python -m supervisor schedules change), or take another name")


class QueueUnknown(SupervisorError):
    """A verb names a queue that is not there: one exists once a worker or a start has named it. `known`: the first ones by name."""

    code = "queue_unknown"

    def __init__(self, queue: str, known: Sequence[str] = (), queues: int = 0) -> None:
        self.queue, self.known = queue, known
        names = ", ".join(map(repr, known)) + (f" and {queues - len(known)} more" if queues > len(known) else "")
        super().__init__(f"there is no queue {queue!r}; " + (f"those that there are: {names}" if known else "there is none yet: one exists once a worker or a start has named it"))


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────


class PermissionMissing(SupervisorError):
    """The role of the session may not do that; the message says which role would be needed."""

    code = "permission_missing"


class ReadTimeout(SupervisorError, TimeoutError):
    """Looking at the history took longer than it may."""

    code = "read_timeout"


class DatabaseUnavailable(SupervisorError):
    """No session could be had, or it broke."""

    code = "database_unavailable"


class SchemaMissing(SupervisorError):
    code = "schema_missing"


class SchemaTooOld(SupervisorError):
    code = "schema_too_old"


class SchemaTooNew(SupervisorError):
    code = "schema_too_new"


class MigrationChanged(SupervisorError):
    """A migration that was applied has another text now."""

    code = "migration_changed"


class Fenced(SupervisorError):
    """This worker was declared dead, or runs were taken from it; nothing of the batch was written."""

    code = "fenced"


class ConfigInvalid(SupervisorError):
    code = "config_invalid"


class MissingExtra(SupervisorError):
    """A feature needs packages that were not installed."""

    code = "missing_extra"

    def __init__(self, feature: str, extra: str, missing: str) -> None:
        self.feature, self.extra, self.missing = feature, extra, missing
        super().__init__(f"{feature} needs {missing}, which is not installed: pip install 'pgsupervisor[{extra}]'")
