"""What becomes of a program, without executing it: the final state of its run and of every run below it.

Pure: knows the promises, and nothing of the engine. A program's commands are read in the order in which a workflow says them; each
adds what the history must have of it. What the promises leave open stays open: of branches that run at once the order,
of a child that is cancelled while it runs how far it came (`certain` is False then).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TRIES = 4
NAMES = {
    "inline": "modelled_inline", "plain": "modelled_plain", "thread": "modelled_thread", "task": "modelled_task", "once": "modelled_once",
    "tx": "modelled_tx", "tx task": "modelled_tx_task", "hangs": "modelled_hangs", "gated": "modelled_gated",
}  # fmt: skip
WORKFLOWS = {"async": "modelled", "def": "modelled_def"}
CANCELLED_BY = "model"
LOST = "its parent does not wait for it any more"
LOSERS = ("never", "cleans", "loses")  # members that wait for what never comes
EITHER = " or "  # between the names of a record, of which it has one


@dataclass
class Record:
    """A row of the history. `told`: the value or error, None where nothing can be said of it; `order`: see `before`; seq None: not determined."""

    kind: str
    name: str
    status: str = "completed"
    told: Any = None
    failed: int = 0  # attempts of it that raised, recorded as such
    seq: int | None = None
    order: tuple[int, ...] = ()


@dataclass
class Message:
    """A signal that the driver sends: at once, with the start, or when the run has published *place*."""

    place: str
    name: str
    value: Any
    when: str


@dataclass
class Expected:
    """The final state of one run."""

    place: str
    style: str
    status: str = "completed"
    result: Any = None
    records: list[Record] = field(default_factory=list)
    noted: dict[tuple[str, int], str] = field(default_factory=dict)  # (place, attempt) of steps that ran → surely, maybe, or at most once
    rows: dict[str, int] = field(default_factory=dict)  # place → attempt whose transaction was committed
    published: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    cancel_at: str | None = None
    children: list[Expected] = field(default_factory=list)
    certain: bool = True
    exists: bool = True  # for certain
    lost: bool = False  # that it is cancelled is certain, and why
    parallel: bool = False
    given: int = 0  # rows of its history that were another run's

    @property
    def workflow(self) -> str:
        return WORKFLOWS[self.style]

    def all(self) -> list[Expected]:
        return [self, *(run for child in self.children for run in child.all())]

    def doubt(self) -> None:
        """It may be cancelled anywhere, it and what is below it; or may never have been started."""
        for run in self.all():
            run.certain = run.exists = run.lost = False


def before(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether a record of order *a* must come before one of *b*: place in a sequence, branch, place in that branch, …"""
    for n, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return n % 2 == 0 and one < other
    return False


class Fails(Exception):
    """The program raises; `told` as a program would be told."""

    def __init__(self, *told: Any) -> None:
        self.told = list(told)


class Told(BaseException):
    """The program is told that it is cancelled."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def predict(
    place: str, style: str, body: list[Any], given: int = 0, variant: int = 0, opened: bool = False, inbox: Sequence[Message] = ()
) -> Expected:  # fmt: skip
    """The final state of a run of *body*.

    given    so many rows of its history are another run's, which it goes on with; nothing of that is executed again
    variant  what its own steps are told
    opened   its own steps find their gates open
    inbox    messages that were sent to that run
    """
    return Reader(place, style, given, variant, opened, inbox).read(body)


def forks(run: Expected) -> bool:
    """Whether it is known what becomes of a fork of it: its rows are in one order, and its children end in one way."""
    return not any(below.parallel or not below.certain for below in run.all())


def failed_row(run: Expected) -> int | None:
    """Which row a retry of *run*, which did not complete, executes again: where it was told that it is cancelled; else the last step that failed with
    the error that ended it; else its last step if that failed. len(…): none, its code goes on over all of them. None: there is no retry,
    or which row that is depends on more than the model knows."""
    kinds = [record.kind for record in run.records]
    if run.status == "completed" or "compensation" in kinds:
        return None
    if run.status == "cancelled":
        return kinds.index("cancellation")
    failed = [n for n, record in enumerate(run.records) if record.status == "failed"]
    same = [n for n in failed if run.records[n].told in (run.result, *run.result[1:])]
    if len(same) > 1:
        return None
    last = max((n for n, record in enumerate(run.records) if record.status != "cancelled"), default=-1)
    return same[-1] if same else last if last in failed else len(run.records)


class Reader:
    def __init__(self, place: str, style: str, given: int, variant: int, opened: bool, inbox: Sequence[Message]) -> None:
        self.run = Expected(place, style, given=given)
        self.inbox = list(inbox)
        self.given, self.variant, self.opened = given, variant, opened
        self.told = False
        self.seq = 0
        self.prefix: tuple[int, ...] = ()
        self.count = 0
        self.undo: list[tuple[str, int]] = []
        self.started: list[Expected] = []
        self.unjoined: list[tuple[str, Expected]] = []

    def read(self, body: list[Any]) -> Expected:
        run = self.run
        try:
            run.result = self.block(body, run.place)
        except Fails as error:
            run.status, run.result = "failed", error.told
        except Told as told:
            run.status, run.result = "cancelled", ["RunCancelled", told.reason]
        if run.status != "completed" and self.undo:
            self.record("compensation", "compensation", self.take())
            for place, fails in reversed(self.undo):
                self.tries(place, fails)
                self.record("step", "modelled_undo", self.take(), told=place, failed=fails)
        for close, child in self.unjoined:
            if close != "abandon":
                child.doubt()
        return run

    def block(self, body: list[Any], at: str) -> list[Any]:
        return [getattr(self, command[0].replace(" ", "_"))(f"{at}.{n}", *command[1:]) for n, command in enumerate(body)]

    # ── the history ──────────────────────────────────────────────────────────────────────────────────────────────

    def take(self) -> int:
        """The run's next seq."""
        self.seq += 1
        return self.seq - 1

    @property
    def own(self) -> bool:
        """Whether what comes now is not given."""
        return len(self.run.records) >= self.given

    def record(self, kind: str, name: str, seq: int, status: str = "completed", told: Any = None, failed: int = 0) -> None:
        self.run.records.append(Record(kind, name, status, told, failed, seq, (*self.prefix, self.count)))
        self.count += 1

    def branches(self, plays: list[Callable[[], Any]]) -> list[Any]:
        """What is said at once: in which order it happens is open."""
        self.run.parallel = True
        prefix, count = self.prefix, self.count
        said, errors = [], []
        for n, play in enumerate(plays):
            self.prefix, self.count = (*prefix, count, n), 0
            try:
                said.append(play())
            except Fails as error:
                errors.append(error)
        self.prefix, self.count = prefix, count + 1
        if errors:
            raise errors[0]
        return said

    def tries(self, place: str, fails: int) -> None:
        """The attempts of a step that succeeds at last."""
        for attempt in range(1, fails + 2):
            self.noted(place, attempt, "surely")

    def noted(self, place: str, attempt: int, how: str) -> None:
        if self.own:
            self.run.noted[place, attempt] = how

    # ── commands that may also stand in gather, first and shield ─────────────────────────────────────────────────

    def step(self, at: str, name: str, fails: int, how: str, value: Any) -> Any:
        seq = self.take()
        error = self.error(at, name, fails, how)
        attempts = 1 if name in ("once", "hangs", "gated") else fails if error else fails + 1
        for attempt in range(1, attempts + 1):
            self.noted(at, attempt, "maybe" if name == "hangs" else "at most once" if name == "once" else "surely")
        if error is not None:
            self.record("step", NAMES[name], seq, "failed", error.told, attempts)
            raise error
        told = [at, [value, self.variant] if self.variant and self.own else value]
        if name in ("tx", "tx task") and self.own:
            self.run.rows[at] = attempts
        self.record("step", NAMES[name], seq, told=told, failed=attempts - 1)
        return told

    def error(self, at: str, name: str, fails: int, how: str) -> Fails | None:
        if name == "once":
            return None
        if name == "hangs":
            return Fails("StepTimeout")
        if name == "gated":
            return None if self.opened and self.own else Fails("ModelledError", str(("shut", at)))
        if fails and how in ("lookup", "for good"):
            return Fails("LookupError" if how == "lookup" else "NonRetryable", f"{fails} of {fails}")
        return Fails("ModelledError", str((f"attempt {TRIES}", fails))) if fails >= TRIES else None

    def sleep(self, at: str, ms: int) -> Any:
        self.record("timer", "sleep", self.take())
        return "slept"

    def signal(self, at: str, name: str, value: Any, when: str) -> Any:
        seq = self.take()
        there = next((message for message in self.inbox if message.name == name), None)
        if there is not None:
            self.inbox.remove(there)
            value = there.value
        else:
            self.run.messages.append(Message(at, name, value, when))
        if when == "after":
            self.run.published[at] = True
        self.record("signal", name, seq, told=value)
        return value

    def late(self, at: str, ms: int) -> Any:
        self.record("signal", "late", self.take(), "failed", ["TimeoutError"])
        raise Fails("TimeoutError")

    def child(self, at: str, style: str, body: list[Any]) -> Any:
        seq = self.take()
        return self.joined(self.kid(at, style, body), seq)

    def kid(self, at: str, style: str, body: list[Any]) -> Expected:
        child = predict(at, style, body, opened=self.opened and self.own)
        if self.own:
            self.run.children.append(child)
        return child

    def joined(self, child: Expected, seq: int) -> Any:
        if child.status == "completed":
            self.record("child", child.workflow, seq, told=child.result)
            return child.result
        error = Fails(*child.result) if child.status == "cancelled" else Fails("RunFailed", child.result)
        self.record("child", child.workflow, seq, "failed", error.told)
        raise error

    def start(self, at: str, close: str, style: str, body: list[Any]) -> Any:
        child = self.kid(at, style, body)
        self.record("child_start", child.workflow, self.take())
        self.started.append(child)
        self.unjoined.append((close, child))
        return close

    def leave(self, at: str, close: str, style: str, body: list[Any]) -> Any:
        self.start(at, close, style, body)
        self.started.pop()
        return close

    def join(self, at: str) -> Any:
        if not self.started:
            return None
        child = self.started.pop(0)
        self.unjoined = [(close, other) for close, other in self.unjoined if other is not child]
        return self.joined(child, self.take())

    # ── at once ──────────────────────────────────────────────────────────────────────────────────────────────────

    def member(self, at: str, word: str, *more: Any) -> Any:
        if word == "branch":
            return self.block(more[0], at)
        if word == "loses":
            return self.unwanted(at, self.take(), *more)
        if word in LOSERS:
            return self.lost(at, word, *more)
        said = getattr(self, word)(at, *more)
        return None if word == "sleep" else said

    def gather(self, at: str, members: list[Any]) -> Any:
        return self.branches([lambda n=n, member=member: self.member(f"{at}.{n}", *member) for n, member in enumerate(members)])  # type: ignore[misc]

    def first(self, at: str, members: list[Any]) -> Any:
        winner = next(n for n, member in enumerate(members) if member[0] not in LOSERS)
        if at_once(members[winner]):  # then what comes after it has no time to begin
            members = members[: winner + 1] + [member for member in members[winner + 1 :] if member[0] in ("never", "loses")]
        said = self.gather(at, members)
        return [f"m{winner}", said[winner]]

    def lost(self, at: str, word: str, how: str, cleanup: list[Any] | None = None) -> None:
        """A wait that is cancelled, with what cleans up after it."""
        self.forgotten(how, self.take())
        if cleanup is not None:
            self.block(cleanup, f"{at}.f")

    def unwanted(self, at: str, seq: int, style: str, body: list[Any]) -> None:
        """A child that nobody waits for any more: it is cancelled, wherever it was."""
        child = self.kid(at, style, body)
        child.doubt()
        child.lost, child.result = True, ["RunCancelled", LOST]
        self.record("child", child.workflow, seq, "cancelled")

    def forgotten(self, how: str, seq: int) -> None:
        self.record(*(("timer", "sleep") if how == "sleep" else ("signal", "never")), seq, "cancelled")

    def shield(self, at: str, timeout: float | None, inside: list[Any]) -> Any:
        """What is shielded, and the timer that limits it."""
        late = inside[0] in LOSERS
        try:
            if late:
                lost = self.take()
                raise Fails("TimeoutError")
            said = getattr(self, inside[0])(at, *inside[1:])
            return None if inside[0] == "sleep" else said
        finally:
            if late:
                self.record("timer", "shield", self.take())
                if inside[0] == "loses":
                    self.unwanted(at, lost, *inside[1:])
                else:
                    self.forgotten(inside[1], lost)
            elif timeout is not None:
                self.record("timer", "shield", self.take(), "cancelled")

    # ── what is said without waiting ─────────────────────────────────────────────────────────────────────────────

    def publish(self, at: str, key: str, value: Any) -> None:
        self.run.published[key] = value

    def compensate(self, at: str, fails: int) -> None:
        self.undo.append((at, fails))

    def patched(self, at: str) -> Any:
        self.record("patch", at, self.take())
        return True

    def drawn(self, at: str) -> Any:
        self.tries(at, 0)
        self.record("step", EITHER.join([NAMES["inline"], NAMES["plain"]]), self.take())
        return True

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def attempt(self, at: str, body: list[Any], handler: list[Any]) -> Any:
        try:
            return self.block(body, f"{at}.b")
        except Fails as error:
            return [error.told, *self.block(handler, f"{at}.h")]

    def finish(self, at: str, body: list[Any], cleanup: list[Any]) -> Any:
        try:
            return self.block(body, f"{at}.b")
        finally:
            self.block(cleanup, f"{at}.f")

    def guard(self, at: str, body: list[Any], cleanup: list[Any], then: str) -> Any:
        try:
            return self.block(body, f"{at}.b")
        except Told as told:
            said = [told.reason, CANCELLED_BY, *(self.shield(f"{at}.f.{n}", 60.0, inside) for n, inside in enumerate(cleanup))]
            if then == "raise":
                raise
            if then == "fail":
                raise Fails("ModelledError", str(("cancelled", at))) from None
            return said

    def cancelled(self, at: str, inside: list[Any]) -> Any:
        if self.told:
            return None
        self.told = True
        for close, child in self.unjoined:
            if close != "abandon":
                child.doubt()
        self.started.clear()
        self.run.published[at] = True
        if self.own:
            self.run.cancel_at = at
        self.interrupted(at, *inside)
        raise Told(f"cancel {at}")

    def never(self, at: str, how: str) -> Any:
        """In a child that is left: its parent ends, and so does it."""
        self.forgotten(how, self.take())
        raise Told("its parent ended")

    def interrupted(self, at: str, word: str, *more: Any) -> None:
        """What the run awaits when it is told. The mark of the cancellation comes first, though its seq was taken last."""
        if word == "gather":
            self.run.parallel = True
            self.record("cancellation", "cancellation", self.seq)
            self.gather(at, more[0])
            self.seq += 1
            return
        seq = self.take()
        self.record("cancellation", "cancellation", self.take())
        if word == "child":
            child = predict(at, *more)
            child.doubt()
            if self.own:
                self.run.children.append(child)
            self.record("child", child.workflow, seq, "cancelled")
        else:
            self.forgotten(more[0], seq)


def at_once(member: list[Any]) -> bool:
    """Whether it ends without waiting for anything."""
    word, *more = member
    return word in ("branch", "attempt") and all(map(at_once, more[0]))
