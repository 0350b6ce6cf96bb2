"""The durable words of an `async def` workflow: each is recorded, and answered from the record in a replay."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from random import Random
from typing import Any, Generic, Never, NoReturn, ParamSpec, Protocol, TypeVar, overload
from uuid import UUID

from supervisor._fastpath import loop as core_loop
from supervisor._fastpath.wire import Command
from supervisor.api.asked import check_text
from supervisor.api.decorators import Durable, StartOptions, Workflow, _child
from supervisor.core import codec, context
from supervisor.core.attributes import checked
from supervisor.core.versions import check_patch
from supervisor.core.context import Current, current
from supervisor.core.errors import CompensationPending, DefinitionError, InputInvalid, OutsideWorkflow, PayloadRefused, QueryReadOnly
from supervisor.core.retry import seconds

P = ParamSpec("P")
R = TypeVar("R")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)
PUBLISHED_KEY_MAX = 200
HEARTBEAT_BYTES_MAX = 65_536


class _Named:
    """Stands where a step stands in a command that has none."""

    inline = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.wire_name = name.encode()


SLEEP = _Named("sleep")
GATHERED = _Named("gather")
FIRST_OF = _Named("first")
CANCELLATION = _Named("cancellation")
SHIELDED = _Named("shield")
COMPENSATION = _Named("compensation")
TIMEOUT = _Named("timeout")
SHIELD_S = 60.0


def inside_run() -> bool:
    """Whether the calling code is workflow code that is executing now."""
    return core_loop.mode() != core_loop.OUTSIDE


def _inside(word: str, *, reads: bool = False) -> Any:
    run = core_loop.current_run()
    if run is None:
        raise OutsideWorkflow(f"{word} means something inside a workflow only; it was called outside of one")
    if core_loop.mode() == core_loop.INERT:
        raise GeneratorExit
    if core_loop.mode() == core_loop.READING and not reads:
        raise QueryReadOnly(word)
    return run


def sleep_command(duration: float | timedelta) -> Any:
    _inside("sleep(…)")
    command = core_loop.new_command(core_loop.TIMER, SLEEP, ())
    command.extra = ("for", int(seconds(duration, "sleep(…)") * 1_000_000))
    return command


def sleep_until_command(when: datetime) -> Any:
    _inside("sleep_until(…)")
    if when.tzinfo is None:
        raise DefinitionError(f"sleep_until({when!r}): give a datetime with a time zone; without one it depends on the machine")
    command = core_loop.new_command(core_loop.TIMER, SLEEP, ())
    command.extra = ("until", (when - EPOCH_2000) // timedelta(microseconds=1))
    return command


def group_command(kind: int, members: list[Any], names: list[str] | None) -> Any:
    word = {core_loop.GATHER: "gather(…)", core_loop.FIRST: "first(…)"}.get(kind, "shield(…)")
    _inside(word)
    for member in members:
        if not isinstance(member, Command) and not inspect.iscoroutine(member):
            raise DefinitionError(f"{word} was given {member!r}; give calls of steps, child workflows, sleep(…) or coroutines of your own")
        if core_loop.mode() == core_loop.IN_SYNC and not isinstance(member, Command):
            member.close()
            raise DefinitionError(f"{word} in a def workflow was given a coroutine; give calls: step.aio(…), workflow.aio(…)")
    command = core_loop.new_command(kind, {core_loop.GATHER: GATHERED, core_loop.FIRST: FIRST_OF}.get(kind, SHIELDED), (), False)
    for member in members:
        if isinstance(member, Command):
            member.taken = True
    command.extra = core_loop.Group(members, names)
    return command


def shield_command(inside: Any, timeout: float | timedelta | None) -> Any:
    limit = [] if timeout is None else [sleep_command(timeout)]
    for timer in limit:
        timer.step = SHIELDED
    command = group_command(core_loop.SHIELD, [inside, *limit], None)
    command.extra.names = f"{limit[0].extra[1] / 1e6:g}" if limit else ""
    return command


def sleep(duration: float | timedelta) -> Durable[None]:
    """Sleep for *duration* (seconds or timedelta) by the database's clock, through crashes and restarts; never less."""
    return sleep_command(duration)  # type: ignore[no-any-return]


def sleep_until(when: datetime) -> Durable[None]:
    """Sleep until *when* (with a time zone) by the database's clock."""
    return sleep_until_command(when)  # type: ignore[no-any-return]


@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> Durable[tuple[T1, T2]]: ...
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> Durable[tuple[T1, T2, T3]]: ...
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /) -> Durable[tuple[T1, T2, T3, T4]]: ...
@overload
def gather(*awaitables: Awaitable[T1]) -> Durable[list[T1]]: ...
def gather(*awaitables: Any) -> Any:
    """Run several things at once; a list of their results in the order given.

    The first error is raised, after the others were cancelled and have unwound.
    """
    return group_command(core_loop.GATHER, list(awaitables), None)


def first(*nameless: Never, **awaitables: Awaitable[Any]) -> Durable[tuple[str, Any]]:
    """Run several things at once; (name, result) of the first that ends. The losers are cancelled, durably."""
    if nameless or not awaitables:
        each: object
        for each in nameless:
            if inspect.iscoroutine(each):
                each.close()
        what = f"was given {len(nameless)} without a name, and its answer says by name which of them ended" if nameless else "needs at least one thing to wait for"
        raise DefinitionError(f"first() {what}: first(paid=charge(…), late=sleep(600))")
    return group_command(core_loop.FIRST, list(awaitables.values()), list(awaitables))  # type: ignore[no-any-return]


def shield(awaitable: Awaitable[T1], *, timeout: float | timedelta | None = SHIELD_S) -> Durable[T1]:
    """Let what is awaited come to its end: it is not cancelled with the run, nor with the branch that it stands in; who awaits it is told afterwards.

    For cleaning up: `except Cancelled: await shield(release(order), timeout=30); raise`. After *timeout* (seconds or timedelta; None: never) it is
    cancelled after all, and TimeoutError raised.
    """
    return shield_command(awaitable, timeout)  # type: ignore[no-any-return]


class ChildRun(Generic[R]):
    """A child run that was started; `await child.result()` waits for it."""

    def __init__(self, run_id: UUID, workflow: Any, seq: int) -> None:
        self.id = run_id
        self._workflow = workflow
        self._seq = seq

    def result(self) -> Durable[R]:
        return self.result_command()  # type: ignore[no-any-return]

    def result_command(self) -> Any:
        _inside("result()")
        command = core_loop.new_command(core_loop.CHILD, _Named(self._workflow.name), ())
        command.extra = ("join", self._seq, self._workflow)
        return command


def start_command(workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _inside("start(…)")
    if not isinstance(workflow, (StartOptions, Workflow)):
        raise DefinitionError(f"start(…) was given {workflow!r}; give a workflow or its .options(…), or await a step's call")
    options = workflow if isinstance(workflow, StartOptions) else workflow.options()
    if options.key is not None:
        raise DefinitionError("a child run has no key: its parent's command is its identity, so it is started once however often the parent is replayed")
    return _child(options, args, kwargs, core_loop.START)


@overload
def start(workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> Durable[ChildRun[R]]: ...
@overload
def start(workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> Durable[ChildRun[R]]: ...
def start(workflow: Any, *args: Any, **kwargs: Any) -> Any:
    """Start a child run without waiting for it; `await (await start(child, …)).result()` waits later."""
    return start_command(workflow, args, kwargs)


def now() -> datetime:
    """The run's time: when the last thing it was given happened, by the database's clock; before that, when it was started. The same in a replay, and in a fork."""
    run = _inside("now()", reads=True)
    return EPOCH_2000 + timedelta(microseconds=run.now_us)


def random() -> Random:
    """The run's random numbers: seeded by its id, so a replay draws the same ones. So does a fork: it draws those of the run that it was made from."""
    run = _inside("random()")
    if run.drawn is None:
        run.drawn = Random(run.id)
    drawn: Random = run.drawn
    return drawn


def uuid4() -> UUID:
    """A random UUID that a replay draws again, and a fork."""
    return UUID(int=random().getrandbits(128), version=4)


def publish(key: str, value: Any) -> None:
    """Let others read *value* under *key*, while the run lives and after: `run.published("key")`, the view `published`, `show`.

    Workflow code says it, without await; it is readable once what led to it is durable. The last value of a key counts,
    and a replay writes none of them again. Raises InputInvalid for the key, PayloadRefused for the value.
    """
    run = _inside("publish(…)")
    check_text("publish", "key", key, PUBLISHED_KEY_MAX)
    context.loop.published(run, key, codec.encode(value, f"publish({key!r})"))


def progress(done: float, total: float | None = None) -> None:
    """Say how far the run is: `run.progress()`, `list`, `show`, the column `progress` of the view `runs`.

    Workflow code says it, without await, as often as it likes: it is stored with what led to it, and the last one counts. Raises InputInvalid.
    """
    run = _inside("progress(…)")
    for what, value in (("done", done), ("total", total)):
        if value is None and what == "total":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise InputInvalid("progress", f"{what}={value!r} is no number")
    context.loop.progressed(run, float(done), None if total is None else float(total))


def heartbeat(details: Any = None) -> None:
    """In a step: say that it is at work, and how far: `heartbeat({"row": 4_000})`; the next attempt reads it: `current().heartbeat_details()`.

    From any thread or task of the step, as often as it likes: it costs about 10 µs, and is stored once a second at most, or when the attempt
    fails. *details* are JSON of at most 64 KiB; without them what was said before stays. A step with `heartbeat=` fails with
    HeartbeatMissed when it says nothing for so long. Raises OutsideWorkflow, PayloadRefused.
    """
    found = context.here()
    if found is None or context.note_beat is None or getattr(found, "run", found) is found:
        raise OutsideWorkflow("heartbeat(…) is for steps: it was called outside of one; workflow code says progress(…)")
    encoded = None if details is None else codec.encode(details, "details of a heartbeat")
    if encoded is not None and len(encoded) > HEARTBEAT_BYTES_MAX:
        raise PayloadRefused("details", f"{len(encoded):,} bytes are too many for a heartbeat, {HEARTBEAT_BYTES_MAX:,} are the most; store the value elsewhere and say where it is")
    context.note_beat(found, context.given.get(), encoded)


def set_attributes(attributes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Set attributes of the run, by which it is found: `set_attributes(stage="paid", amount=12.5)`; None removes one.

    Values are str, int, float, bool, datetime (with a time zone) or list of str. Workflow code says it, without await; it is durable with
    what led to it, and a replay sets none of them again. Those that are not named stay. Raises InputInvalid.
    """
    run = _inside("set_attributes(…)")
    changes = checked({**(attributes or {}), **more}, "set_attributes")
    if changes:
        context.loop.attributed(run, changes)


class Continued(BaseException):
    """What continue_as_new raises: it passes `except Exception`, and `finally` blocks run."""

    def __init__(self, options: StartOptions[Any, Any], payload: bytes, chosen: bool) -> None:
        super().__init__(f"continues as a new run of {options.workflow.name}")
        self.options, self.payload, self.chosen = options, payload, chosen


def undo_pending(run: Any) -> CompensationPending | None:
    """Why the run can't go on as a new one: what it has named to undo its steps, which a replay has named again when it gets here."""
    undo = run.past.undo if run.past is not None else []
    return CompensationPending(UUID(bytes=run.id), run.workflow.name, [(each.what.name, each.of) for each in reversed(undo)]) if undo else None


@overload
def continue_as_new(workflow: Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> NoReturn: ...
@overload
def continue_as_new(workflow: StartOptions[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> NoReturn: ...
@overload
def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn: ...
def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End this run as `continued` and start its successor with these arguments, both or neither: a history that begins anew.

    The successor is a run of the same workflow, or of the one that is given first, with queue and priority of its options. It has the key, the parent,
    the attributes, and the signals that this run was not given; who waits for this run's result waits for the successor's.
    Children that this run has started go on, but nobody waits for them any more. Raises InputInvalid where the arguments do not fit, and
    CompensationPending in a run that has named undo steps.
    """
    run = _inside("continue_as_new(…)")
    if (pending := undo_pending(run)) is not None:
        raise pending
    named = args[0] if args and isinstance(args[0], (StartOptions, Workflow)) else None
    options = run.workflow.options() if named is None else named if isinstance(named, StartOptions) else named.options()
    if options.key is not None or options.batch is not None or options.attributes is not None:
        raise DefinitionError("continue_as_new(…): key, batch and attributes of the successor are this run's; give queue, priority and delay alone")
    payload = options.workflow.encode_input(args if named is None else args[1:], kwargs)
    raise Continued(options, payload, isinstance(named, StartOptions))


class _Undoes(Protocol[P]):
    """A step or a workflow."""

    @property
    def name(self) -> str: ...
    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...


def compensate(undo: _Undoes[P], *args: P.args, **kwargs: P.kwargs) -> None:
    """Name what undoes what the run has done, or is about to do: a step or a workflow, with its arguments.

    Workflow code says it, without await. When the run fails, is cancelled or its time is over, all that it has named is done before it ends, the last
    one first, each after the other, whatever becomes of the others. A run that completes, or is terminated, undoes nothing.
    """
    run = _inside("compensate(…)")
    if not isinstance(undo, (core_loop.Step, Workflow)):
        raise DefinitionError(f"compensate(…) was given {undo!r}; give a step or a workflow, and its arguments after it")
    if isinstance(undo, Workflow):
        undo.encode_input(args, kwargs)  # at this line, not when it is too late
    context.loop.compensates(run, undo, args, kwargs)


def patched(patch: str) -> bool:
    """Whether the run takes the new branch of a change of this workflow: True for all but runs that had passed this place before the change.

    The first answer is recorded and holds for the whole run, in every replay. Written as `if patched("id"): … else: …` it does not
    change the workflow's version, and runs of the code before go on. Workflow code says it, without await.
    """
    run = _inside("patched(…)")
    known: bool | None = (run.patches or {}).get(check_patch(patch))
    if known is None:
        known = _recorded(run, patch) or _is_new(run)
        if known and patch not in (run.patches or {}):
            context.loop.met(run, core_loop.new_command(core_loop.PATCH, _Named(patch), ()))
        run.patches = {**(run.patches or {}), patch: known}
    return known


def deprecate_patch(patch: str) -> None:
    """In place of `patched(…)`, when no run is left that took the old branch: runs that recorded the patch go on, new ones record nothing."""
    run = _inside("deprecate_patch(…)")
    if check_patch(patch) not in (run.patches or {}):
        _recorded(run, patch)


def _recorded(run: Any, patch: str) -> bool:
    """Whether the history has the patch here; then it is taken from it."""
    record = run.history.get(run.seq) if run.history is not None else None
    if record is None or record.kind != core_loop.PATCH or record.name != patch.encode():
        return False
    core_loop.new_command(core_loop.PATCH, _Named(patch), ())
    run.pos += 1
    run.patches = {**(run.patches or {}), patch: True}
    return True


def _is_new(run: Any) -> bool:
    """Whether the run gets here for the first time: nothing that it was given later, or asked for later, is known. Patches that it has met are no deliveries."""
    past = run.past
    if run.history is None:
        return True
    return past.reached < run.seq and all(record.kind == core_loop.PATCH and record.seq < run.seq for record in past.records[past.given :])


__all__ = ["ChildRun", "Current", "compensate", "continue_as_new", "current", "deprecate_patch", "first", "gather", "inside_run", "now", "patched", "progress", "publish", "random", "set_attributes", "shield", "sleep", "sleep_until", "start", "uuid4"]
