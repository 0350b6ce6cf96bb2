"""The tables of a database that is not there, as Python values: what the engine's statements and a client's questions work on.

Owns the rows; what changes them stands in statements.py and questions.py. Times are us since 2000, by `now`. One thread at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisor.engine.batch import INFINITY

COMPLETED, FAILED, CANCELLED, TERMINATED, TIMED_OUT, CONTINUED = 1, 2, 3, 4, 5, 6  # outcome.status
OUTCOMES = {1: "completed", 2: "failed", 3: "cancelled", 4: "terminated", 5: "timed_out", 6: "continued"}
QUEUED, QUEUE_PAUSED, PAUSED, NONDETERMINISM, CODE_MISSING, PARKED_FROM = 1, 6, 7, 19, 20, 19  # task.wait_kind: from 19 on the engine has put it aside
NAMED = (8, 9, 13, 21)  # task.wait_kind: the row names a step that was called
FAILED_TRY, EDITED, SKIPPED = 1, 5, 6  # attempt.kind
WAITS = (
    "queued", "no_worker", "concurrency", "rate_limited", "fairness", "queue_paused", "run_paused", "step_running", "step_backoff", "timer", "signal", "update",
    "token", "child", "any_of", "debounce", "batch", "schedule_overlap", "nondeterminism", "code_missing", "attempts_exhausted", "crash_loop", "commit_rejected",
)  # fmt: skip
FRESH, RESUMED, CRASHED, UPDATED, HEIR = 0, 1, 2, 3, 5  # task.resumed
ACTOR = "test"  # of who does not say who he is: on every machine the same
REQUEST_CANCEL, ABANDON, TERMINATE = 0, 1, 2  # task.parent_close


@dataclass
class RunRow:
    """What was asked and never changes."""

    id: bytes
    workflow: int
    queue: int
    prio: int
    input: bytes
    created: int
    key: str | None = None
    parent: bytes | None = None
    parent_seq: int | None = None
    batch: str | None = None
    attributes: bytes | None = None
    drawn_from: bytes | None = None  # of a fork: whose random numbers it draws
    chain: bytes | None = None  # of a run that goes on with another one: the first of them


@dataclass
class Task:
    """What is to do now; one per live run."""

    id: bytes
    workflow: int
    queue: int
    prio: int
    ready_at: int
    input: bytes | None  # None: it is to be read where the run is
    since: int
    parent: bytes | None = None
    parent_close: int = REQUEST_CANCEL
    key: str | None = None
    cancel_at: int | None = None
    owner: int | None = None
    wait_kind: int | None = QUEUED
    detail: str | None = None
    seq: int | None = None
    step: str | None = None
    attempt: int | None = None
    claims: int = 0
    resumed: int = FRESH
    version: str | None = None
    cancel_to: int | None = None
    children: int | None = None  # that have to end, or to fail, before it is woken
    children_failed: int | None = None
    signals: list[str] | None = None

    def wake(self, now: int) -> None:
        """Ready at once."""
        self.ready_at, self.wait_kind, self.detail, self.since = now, QUEUED, None, now
        self.children = self.children_failed = self.signals = None

    @property
    def put_aside(self) -> bool:
        return (self.wait_kind or 0) >= PARKED_FROM


@dataclass
class StepRow:
    seq: int
    pos: int
    kind: int
    status: int
    name: str
    result: bytes | None
    started: int
    ended: int
    worker: int


@dataclass
class AttemptRow:
    seq: int
    n: int
    kind: int  # 1 it failed, 2 its start is durable, 5 edited, 6 skipped, 7 entrusted, 8 until when all tries may go on
    name: str
    error: bytes | None
    started: int
    ended: int | None
    next_retry: int | None


@dataclass
class Outcome:
    status: int
    result: bytes | None
    ended: int
    steps: int
    version: str | None
    worker: int | None = None


@dataclass
class Message:
    n: int
    id: str | None
    payload: bytes


@dataclass
class Sent:
    """An update that nobody has taken yet, or that was refused: then `error` says why."""

    n: int
    name: str
    id: str
    payload: bytes
    error: bytes | None = None


@dataclass
class Completion:
    """What came of a try that has a token: 1 completed, 2 failed, 3 its time was over, 4 its holder gave no sign of life."""

    kind: int
    retry: bool
    payload: bytes | None
    at: int


@dataclass
class Pause:
    """That somebody has paused a run, and what it waited for when it was put aside."""

    detail: str
    ready_at: int | None = None
    wait_kind: int | None = QUEUED
    wait_detail: str | None = None


@dataclass
class QueuePause:
    """That nothing is claimed from a queue: since when, who wanted it and why."""

    at: int
    by: str
    reason: str | None


@dataclass
class Seen:
    """A version of a workflow that a worker has had: module and function, when it was there first, and last, and with which worker."""

    source: str
    first: tuple[int, int]
    last: tuple[int, int]


@dataclass
class Catalogue:
    """Workflows and queues by number."""

    workflows: dict[str, int] = field(default_factory=dict)
    queues: dict[str, int] = field(default_factory=dict)
    facts: dict[int, tuple[int, float | None, bytes]] = field(default_factory=dict)  # workflow → queue, timeout in s, parameters
    known: dict[tuple[int, str], Seen] = field(default_factory=dict)  # workflow and version
    served: dict[int, dict[int, str]] = field(default_factory=dict)  # worker → workflow → version

    def queue(self, name: str) -> int:
        return self.queues.setdefault(name, len(self.queues) + 1)

    def name_of(self, workflow: int) -> str:
        return next(name for name, number in self.workflows.items() if number == workflow)

    def version_of(self, worker: int | None, workflow: int) -> str | None:
        """The version of a workflow that a worker has or had."""
        return self.served.get(worker or 0, {}).get(workflow)

    def queue_name(self, queue: int) -> str:
        return next(name for name, number in self.queues.items() if number == queue)


class Tables:
    """One database. `wake` is called when something may be to do for the worker."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.wake: Callable[[], None] = lambda: None
        self.drop: Callable[[bytes], None] = lambda _: None  # the worker forgets a run that it has
        self.catalogue = Catalogue()
        self.numbers = 0
        self.runs: dict[bytes, RunRow] = {}
        self.tasks: dict[bytes, Task] = {}
        self.steps: dict[bytes, list[StepRow]] = defaultdict(list)
        self.attempts: dict[bytes, list[AttemptRow]] = defaultdict(list)
        self.timers: dict[bytes, dict[int, int]] = defaultdict(dict)
        self.outcomes: dict[bytes, Outcome] = {}
        self.children: dict[bytes, dict[int, bytes]] = defaultdict(dict)
        self.continued: dict[tuple[bytes, int], list[bytes]] = defaultdict(list)
        self.kept: dict[bytes, list[bytes]] = defaultdict(list)  # children that earlier runs of its chain had started
        self.ended_children: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
        self.messages: dict[tuple[bytes, str], list[Message]] = defaultdict(list)
        self.consumed: dict[tuple[bytes, str], dict[int, int]] = defaultdict(dict)  # number of the message → seq of the wait
        self.published: dict[bytes, dict[tuple[str, int], tuple[bytes, int]]] = defaultdict(dict)
        self.progress: dict[bytes, dict[int, tuple[float, float | None, int]]] = defaultdict(dict)
        self.attributes: dict[bytes, dict[int, bytes]] = defaultdict(dict)
        self.updates: dict[bytes, list[Sent]] = defaultdict(list)
        self.accepted: dict[tuple[bytes, str, str], int] = {}
        self.answers: dict[tuple[bytes, int], tuple[int, bytes, int]] = {}
        self.cancellations: dict[bytes, dict[int, tuple[str | None, str]]] = defaultdict(dict)
        self.completions: dict[bytes, dict[tuple[int, int], Completion]] = defaultdict(dict)
        self.beats: dict[bytes, dict[int, tuple[int, int, bytes | None]]] = defaultdict(dict)  # run → seq → number of the try, when, what was said
        self.pauses: dict[bytes, Pause] = {}
        self.queue_pauses: dict[int, QueuePause] = {}
        self.changed: dict[bytes, int] = {}  # runs of which a step was edited while a worker had them: number of the change
        self.retried: dict[bytes, bytes] = {}  # a run that had ended → the one that goes on with it
        self.keys: dict[tuple[int, str], tuple[bytes, bytes]] = {}

    def number(self) -> int:
        """The next number of messages and updates."""
        self.numbers += 1
        return self.numbers

    # ── what is asked of several of them ─────────────────────────────────────────────────────────────────────────

    def next_due(self) -> int | None:
        """When the next run that nobody has, and somebody may take, is ready."""
        return min((task.ready_at for task in self.tasks.values() if task.owner is None and task.ready_at < INFINITY and task.queue not in self.queue_pauses), default=None)

    def newest(self, run: bytes) -> bytes:
        """The run as which *run* goes on, if it has continued as others."""
        while (outcome := self.outcomes.get(run)) is not None and outcome.status == CONTINUED:
            run = _successor(outcome)
        return run

    def was_sent(self, run: bytes, name: str, message_id: str) -> bool:
        """Whether *run*, or one of the chain that it goes on with, has a signal of that name and id."""
        chain = self.runs[run].chain
        runs = [run] if chain is None else [each for each in self.runs if each == chain or self.runs[each].chain == chain]
        return any(each.id == message_id for of in runs for each in self.messages[of, name])

    def outcome(self, run: bytes) -> Outcome | None:
        """How the newest of its chain ended."""
        return self.outcomes.get(self.newest(run))

    def child_now(self, parent: bytes, seq: int) -> bytes:
        went_on = self.continued.get((parent, seq))
        return went_on[-1] if went_on else self.children[parent][seq]

    def live_children(self, parent: bytes) -> list[Task]:
        kids = [self.child_now(parent, seq) for seq in self.children.get(parent, ())] + [self.newest(kid) for kid in self.kept.get(parent, ())]
        return [self.tasks[kid] for kid in kids if kid in self.tasks and self.tasks[kid].parent_close != ABANDON]

    def is_reached(self, run: bytes, children: int | None, failed: int | None) -> bool:
        """Whether so many of its children have ended that it can go on."""
        if children is None:
            return False
        n, bad = self.ended_children[run]
        return n >= children or bad > (failed or 0)

    def merged_attributes(self, run: bytes) -> dict[str, Any]:
        """The attributes of a run, from its start and from itself."""
        start, said = self.runs[run].attributes, self.attributes.get(run)
        found: dict[str, Any] = msgspec.json.decode(start) if start is not None else {}
        if said:
            found |= msgspec.json.decode(said[max(said)])
            found = {name: value for name, value in found.items() if value is not None}
        return found

    # ── rows that several write ──────────────────────────────────────────────────────────────────────────────────

    def add_run(self, run: RunRow, *, ready_at: int, parent_close: int = REQUEST_CANCEL, cancel_at: int | None = None) -> Task:
        """A run that is to begin at *ready_at*."""
        self.runs[run.id] = run
        task = self.tasks[run.id] = Task(
            run.id, run.workflow, run.queue, run.prio, ready_at, run.input, self.now(), run.parent, parent_close, run.key, cancel_at
        )  # fmt: skip
        self.wake()
        return task

    def deadline(self, workflow: int, from_us: int) -> int | None:
        timeout_s = self.catalogue.facts[workflow][1]
        return None if timeout_s is None else from_us + int(timeout_s * 1e6)

    def tell_parent(self, parent: bytes | None, n: int, failed: int) -> None:
        if parent is not None and parent in self.tasks:
            sums = self.ended_children[parent]
            sums[0] += n
            sums[1] += failed

    def put_aside(self, run: bytes) -> None:
        """Stop a run that is to be paused and that nobody has."""
        task, pause = self.tasks.get(run), self.pauses.get(run)
        if task is None or pause is None or task.owner is not None or task.wait_kind == PAUSED:
            return
        pause.ready_at = None if task.wait_kind in range(11, 16) else task.ready_at
        pause.wait_kind, pause.wait_detail = task.wait_kind, task.detail
        task.wake(self.now())
        task.ready_at, task.wait_kind, task.detail = INFINITY if task.cancel_at is None else task.cancel_at, PAUSED, pause.detail

    def is_wedged(self, task: Task) -> bool:
        """Whether a run that is put aside ends without its code: it kills its workers, or has nothing to undo; others wait for code that goes on with them."""
        if not task.put_aside or task.wait_kind not in (NONDETERMINISM, CODE_MISSING):
            return task.put_aside
        return task.resumed == FRESH or task.resumed != CRASHED and task.version is None and not self.has_begun(task.id)

    def pin(self, task: Task) -> str | None:
        """The version that a run stays with when it is taken from its worker: the one that it had, or that of the worker's code if it has begun."""
        return task.version or (self.catalogue.version_of(task.owner, task.workflow) if self.has_begun(task.id) else None)

    def run_version(self, run: bytes) -> str | None:
        """Of a live run, or of one that ended: its own, else that of who has or ended it, else of who recorded its last step."""
        task, workflow = self.tasks.get(run), self.runs[run].workflow
        if task is not None:
            return task.version or self.catalogue.version_of(task.owner, workflow)
        last = max(self.steps.get(run, ()), key=lambda step: step.seq, default=None)
        return self.ended_version(run) or self.catalogue.version_of(None if last is None else last.worker, workflow)

    def ended_version(self, run: bytes) -> str | None:
        """Of a run that ended: its own, else that of who ended it."""
        outcome = self.outcomes.get(run)
        return None if outcome is None else outcome.version or self.catalogue.version_of(outcome.worker, self.runs[run].workflow)

    def skippable(self, run: bytes, seq: int | None) -> str | None:
        """Name of a step that was called and has no result; None where that is not known."""
        if seq is None or any(step.seq == seq for step in self.steps.get(run, ())):
            return None
        tried = next((each.name for each in self.attempts.get(run, ()) if each.seq == seq and seq >= 0 and each.kind != SKIPPED), None)
        task = self.tasks.get(run)
        return tried or (task.step if task is not None and task.seq == seq and task.wait_kind in NAMED else None)

    def has_begun(self, run: bytes) -> bool:
        """Whether anything of a run is durable."""
        tried = any(each.kind <= 2 for each in self.attempts.get(run, ()))
        return tried or any(run in table for table in (self.timers, self.published, self.progress)) or bool(self.steps.get(run)) or run in self.children

    def wake_parents(self, parents: Iterable[bytes]) -> None:
        for parent in sorted(set(parents)):
            task = self.tasks.get(parent)
            if task is not None and task.owner is None and self.is_reached(parent, task.children, task.children_failed):
                task.wake(self.now())
                self.wake()


def _successor(outcome: Outcome) -> bytes:
    from uuid import UUID

    return UUID(msgspec.json.decode(outcome.result or b"")).bytes


__all__ = ["Tables"]
