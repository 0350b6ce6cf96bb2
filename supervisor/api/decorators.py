"""`@step` and `@workflow`: plain functions become durable ones, with their types kept.

A decorated function is decided upon at import as far as possible (`DefinitionError`), its annotations at first use.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from supervisor._fastpath import loop as core_loop
from supervisor.api.asked import Asked, How, OnConflict, encode_attributes, refuse_inside_run
from supervisor.api.transaction import AsyncTransaction, Transaction
from supervisor.core import codec, registry, traces
from supervisor.core.errors import ClientMisused, DefinitionError, OutsideWorkflow, QueryReadOnly
from supervisor.core.parameters import Input, hints, named_parameters
from supervisor.core.retry import ONCE, Retry, seconds
from supervisor.core.versions import accepts, check_version, version_of

if TYPE_CHECKING:
    from supervisor.api.handles import AsyncRun, Run

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
# What is awaited in a workflow. No Any in it: mypy would find the overloads of gather ambiguous and answer Any.
Durable = Coroutine[object, None, R]
Place = Literal["inline", "thread", "process"]
ParentClose = Literal["request_cancel", "abandon", "terminate"]
MAX_STEPS, MAX_STEPS_MOST = 100_000, 10_000_000  # of one run; a replay of 100,000 small results takes half a second and 20 MB
WARN_TENTHS = 8
PLAIN = (bool, int, float, str, bytes, list, dict, tuple, set)  # annotations that no transaction has


@dataclass(frozen=True)
class StepInfo:
    """What a step was declared as."""

    retry: Retry
    timeout_s: float | None
    at_most_once: bool
    transactional: bool
    isolation: str | None
    place: Place | None
    where: str  # module.function, for errors and logs
    heartbeat_s: float | None = None  # within which a try has to give signs of life
    close_s: float | None = None  # all tries together


def _look_like(made: Any, fn: Callable[..., Any]) -> None:
    """Give what a decorator made the name, home and docstring of the function, for help(), tracebacks and checkers."""
    made.__name__, made.__qualname__ = fn.__name__, fn.__qualname__
    made.__module__, made.__doc__, made.__wrapped__ = fn.__module__, fn.__doc__, fn


class _StepBase(core_loop.Step):
    """What both kinds of step share: resolving annotations at first use, and saying what to write instead."""

    info: StepInfo

    def __init__(self, fn: Callable[..., Any], name: str, info: StepInfo) -> None:
        super().__init__(fn, name, None, codec.encode_raw, inspect.iscoroutinefunction(fn))
        self.info = info
        self.retry = info.retry
        self.special = info.at_most_once or info.transactional or _limited(info) or info.place == "process"
        self.input: Input | None = None  # of a step that runs in a process: how its arguments travel
        self.sync = _block
        _look_like(self, fn)

    def settle(self) -> None:
        """Resolve the return annotation; a worker does it before its first claim, so that errors come early."""
        if self.shape is None:
            annotations = hints(self.fn)
            if self.info.transactional:
                self._check_transaction(annotations)
            if self.info.place == "process":
                self.input = Input(self.fn, self.name, "step")
            self.shape = codec.Shape(annotations.get("return", Any), f"step {self.name}")
            self.exact = self.shape.exact
            self.decode = self.shape.decode if self.shape.plain else None
            self.floats = self.shape.floats

    def _check_transaction(self, annotations: dict[str, Any]) -> None:
        """An async def step that takes a Transaction would not await its SQL, which would then never run."""
        first = next(iter(inspect.signature(self.fn).parameters))
        wrong, right = (Transaction, "AsyncTransaction") if self.is_async else (AsyncTransaction, "Transaction")
        if annotations.get(first) is wrong:
            raise DefinitionError(f"step {self.name}: {first} is annotated {wrong.__name__}; {'an async def' if self.is_async else 'a def'} step is given a {right}")

    def misplaced(self, where: int) -> Any:
        if where == core_loop.INERT:
            raise GeneratorExit
        if where == core_loop.READING:
            raise QueryReadOnly(f"step {self.name}")
        if where == core_loop.IN_ASYNC:
            raise DefinitionError(f"step {self.name} is a def step; in an async def workflow write: await {self.fn.__name__}.aio(…)")
        raise DefinitionError(f"step {self.name} is an async def step; in a def workflow write: {self.fn.__name__}.sync(…)")

    def outside_aio(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`.aio` outside of a run: the plain function, awaitable."""
        if self.is_async:
            return self.fn(*args, **kwargs)
        return asyncio.to_thread(self.fn, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<step {self.name}>"


class AsyncStep(_StepBase, Generic[P, R]):
    """A step from an `async def` function: `await charge(…)` in an async workflow, `charge.sync(…)` in a def workflow."""

    def __init__(self, fn: Callable[..., Any], name: str, info: StepInfo) -> None:
        super().__init__(fn, name, info)
        self.sync = self._sync

    def _sync(self, *args: Any, **kwargs: Any) -> Any:
        if core_loop.mode() == core_loop.OUTSIDE:
            return asyncio.run(self.fn(*args, **kwargs))
        return _block(self.aio(*args, **kwargs))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self


class DefStep(_StepBase, Generic[P, R]):
    """A step from a `def` function: `parse(…)` in a def workflow, `await parse.aio(…)` in an async workflow."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self


def _block(command: Any) -> Any:
    """In a def workflow: hand *command* to the loop and come back with its value, or raise its error."""
    if core_loop.mode() != core_loop.IN_SYNC:
        raise OutsideWorkflow("this word waits, which only a def workflow can do here; in an async workflow use await")
    return core_loop.block(command)


# ── workflows ────────────────────────────────────────────────────────────────────────────────────────────────────


class Starter(Generic[P, R]):
    """`checkout.start(order)`, `await checkout.start.aio(order)`: starts by the process's own client."""

    __slots__ = ("_what",)

    def __init__(self, what: Any) -> None:
        self._what = what

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        from supervisor.api.client import default_client

        refuse_inside_run()
        if _loop_is_running():
            raise ClientMisused(f"{self._shown()}.start(…) would hold up the running event loop: write `await {self._shown()}.start.aio(…)`")
        return default_client().start(self._what, *args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncRun[R]:
        from supervisor.api.client_async import default_async_client

        refuse_inside_run()
        client = await default_async_client()
        return await client.start(self._what, *args, **kwargs)  # type: ignore[no-any-return]

    def _shown(self) -> str:
        name: str = getattr(self._what, "workflow", self._what).__name__
        return name

    def __repr__(self) -> str:
        return f"<start of {self._shown()}>"


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class StartOptions(How, Generic[P, R]):
    """A workflow with how it is to be started: pass it where the workflow goes."""

    workflow: Workflow[P, R]
    parent_close: ParentClose = "request_cancel"

    @property
    def start(self) -> Starter[P, R]:
        """Start it by the process's own client: `checkout.options(key="o-42").start(order)`."""
        return Starter(self)


@dataclass(frozen=True)
class WorkflowInfo:
    queue: str
    timeout_s: float | None
    max_steps: int
    where: str
    version: str


class Workflow(core_loop.Workflow, Generic[P, R]):
    """A durable function. In a workflow, calling it starts a child run and waits for it; `Client.start` starts it from outside."""

    info: WorkflowInfo

    def __init__(self, fn: Callable[..., Any], name: str, info: WorkflowInfo) -> None:
        named_parameters(fn, "workflow")
        super().__init__(fn, name, inspect.iscoroutinefunction(fn))
        self.info = info
        self.seq_warn = info.max_steps * WARN_TENTHS // 10
        self.queue = info.queue
        self.version = info.version
        self.encode_raw = codec.encode_raw
        self._input: Input | None = None
        _look_like(self, fn)

    def settle(self) -> None:
        """Resolve annotations of parameters and result. Raises DefinitionError."""
        if self.shape is None:
            self.read_input = self.input.read
            shape = codec.Shape(hints(self.fn).get("return", Any), f"workflow {self.name}")
            self.exact = shape.exact
            self.shape = shape

    def accepts(self, pin: str) -> bool:
        """Whether this code may go on with a run that is pinned to version *pin*."""
        return accepts(self.version, pin)

    @property
    def input(self) -> Input:
        if self._input is None:
            self._input = Input(self.fn, self.name)
        return self._input

    def encode_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The stored form of a call's arguments. Raises InputInvalid or PayloadRefused."""
        return self.input.write(args, kwargs)

    def encode_record(self, record: Any) -> bytes:
        """The stored form of one record: the only parameter's value where there is one parameter, else the object by name."""
        return self.input.write_record(record)

    def decode_result(self, payload: bytes) -> R:
        self.settle()
        result: R = self.shape.decode(payload)
        return result

    @property
    def start(self) -> Starter[P, R]:
        """Start it by the process's own client: `checkout.start(order)`, or `await checkout.start.aio(order)`."""
        return Starter(self)

    def options(
        self, *, key: str | None = None, queue: str | None = None, priority: int = 5, delay: float | timedelta = 0,
        on_conflict: OnConflict = "return", attributes: Mapping[str, Any] | None = None, batch: str | None = None,
        parent_close: ParentClose = "request_cancel", traceparent: str | None = None, tracestate: str | None = None,
    ) -> StartOptions[P, R]:  # fmt: skip
        """This workflow with options for its start: `client.start(checkout.options(key="o-42"), order)`.

        key          idempotency key, per workflow: a second start with it gives the first one's run
        priority     0 (first) to 9 (last)
        delay        seconds or timedelta until it may be claimed
        on_conflict  where the key names a run: "return" it, "reject" (KeyExists), "replace" it (it ends as terminated first), or
                     "restart_failed": a new run if it ended otherwise than completed, else return it
        attributes   facts to find the run by: name → str, int, float, bool, datetime or list of str
        batch        name of the batch that the run belongs to
        parent_close of a child: what becomes of it where its parent ends first: "request_cancel", "abandon" (it goes on by itself) or "terminate"
        traceparent, tracestate  headers of W3C Trace Context: the span that it is started in, where that is not the current one of OpenTelemetry. What is
                     none is ignored; a child is in its parent's span
        """
        if type(priority) is not int or not 0 <= priority <= 9:
            raise DefinitionError(f"priority={priority!r}: give a whole number from 0 (first) to 9 (last)")
        if key is not None and (not isinstance(key, str) or not key or len(key) > 500 or "\x00" in key):
            raise DefinitionError(f"key={key!r}: give a text of 1 to 500 characters without NUL")
        if parent_close not in ("request_cancel", "abandon", "terminate"):
            raise DefinitionError(f"parent_close={parent_close!r}: give \"request_cancel\", \"abandon\" or \"terminate\"")
        made = StartOptions(
            workflow=self, parent_close=parent_close, key=key, queue=queue, priority=priority, delay_s=seconds(delay, "delay="), batch=batch, on_conflict=on_conflict,
            attributes=encode_attributes(attributes), trace=traces.read(traceparent, tracestate),
        )  # fmt: skip
        Asked.of(made)
        return made

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Durable[R]:
        where = core_loop.mode()
        if where == core_loop.OUTSIDE:
            return self.fn(*args, **kwargs)  # type: ignore[no-any-return]
        if where == core_loop.INERT:
            raise GeneratorExit
        if where == core_loop.READING:
            raise QueryReadOnly(f"child run {self.name}")
        if where == core_loop.IN_SYNC:
            raise DefinitionError(f"workflow {self.name}: in a def workflow write: {self.fn.__name__}.sync(…)")
        return _child(self.options(), args, kwargs)  # type: ignore[no-any-return]

    def sync(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """In a def workflow: start a child run and wait for its result."""
        if core_loop.mode() == core_loop.OUTSIDE:
            raise OutsideWorkflow(f"{self.name}.sync(…) is for def workflows; from outside use Client().start({self.name}, …)")
        result: R = _block(_child(self.options(), args, kwargs))
        return result

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Durable[R]:
        """In a def workflow: a child run to be gathered."""
        if core_loop.mode() == core_loop.OUTSIDE:
            raise OutsideWorkflow(f"{self.name}.aio(…) is for workflows")
        return _child(self.options(), args, kwargs)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"


@dataclass(frozen=True)
class ChildStart:
    """What the loop needs to start a child run; stands where a step stands in a command."""

    workflow: Any
    options: StartOptions[Any, Any]
    payload: bytes
    name: str
    wire_name: bytes
    inline: bool = False


def _child(options: StartOptions[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], kind: int = core_loop.CHILD) -> Any:
    workflow = options.workflow
    if core_loop.mode() == core_loop.READING:
        raise QueryReadOnly(f"child run {workflow.name}")
    payload = workflow.encode_input(args, kwargs)
    return core_loop.new_command(kind, ChildStart(workflow, options, payload, workflow.name, workflow.name.encode()), ())


# ── the decorators ───────────────────────────────────────────────────────────────────────────────────────────────


# A coroutine function fits both first overloads, on purpose: the first one wins.


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStepOf[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> DefStepOf[P, R]: ...
@overload
def step(
    *, transactional: Literal[True], name: str | None = None, retry: Retry | bool | None = None,
    timeout: float | timedelta | None = None, isolation: Literal["serializable", "repeatable read"] | None = None,
    schedule_to_close: float | timedelta | None = None,
) -> _TransactionalDecorator: ...  # fmt: skip
@overload
def step(
    *, name: str | None = None, retry: Retry | bool | None = None, timeout: float | timedelta | None = None,
    at_most_once: bool = False, transactional: Literal[False] = False, run: Place | None = None,
    heartbeat: float | timedelta | None = None, schedule_to_close: float | timedelta | None = None,
) -> _StepDecorator: ...  # fmt: skip
def step(
    fn: Callable[..., Any] | None = None, /, *, name: str | None = None, retry: Retry | bool | None = None,
    timeout: float | timedelta | None = None, at_most_once: bool = False, transactional: bool = False,
    isolation: str | None = None, run: Place | None = None, heartbeat: float | timedelta | None = None,
    schedule_to_close: float | timedelta | None = None,
) -> Any:  # fmt: skip
    """Make a function a durable step: its result is stored before the next step starts, and never computed again.

    name           stored with the result; default the function's name
    retry          True (5 attempts), or a Retry; without it the step is tried once and its error is raised in the workflow
    timeout        seconds or timedelta for one attempt; StepTimeout counts as a failed attempt
    at_most_once   commit the start first; after a crash the workflow gets StepInterrupted instead of a second call
    transactional  the first parameter is a Transaction (AsyncTransaction in async def): its SQL and the result commit together
    isolation      of a transactional step: "serializable" or "repeatable read"; it then runs alone
    run            "inline" on the loop's thread, "thread", or "process": in a process of its own, which a timeout ends for certain;
                   default: the engine decides by measuring
    heartbeat      seconds or timedelta within which the step says heartbeat(…), again and again; else the attempt fails with HeartbeatMissed
    schedule_to_close  seconds or timedelta for all attempts together, waits between them included; then StepTimeout, or the last attempt's error
    """

    def decorate(fn: Callable[..., Any]) -> Any:
        _check_function(fn, "step", name)
        info = StepInfo(_policy(retry), _timeout(timeout), at_most_once, transactional, isolation, run, f"{fn.__module__}.{fn.__qualname__}", _limit(heartbeat, "heartbeat="), _limit(schedule_to_close, "schedule_to_close="))
        _check_step(fn, info)
        kind: Any = AsyncStep if inspect.iscoroutinefunction(fn) else DefStep
        made = kind(fn, name or fn.__name__, info)
        registry.register_step(made)
        return made

    return decorate if fn is None else decorate(fn)


def _check_function(fn: Any, what: str, name: str | None) -> None:
    odd = isinstance(fn, type) or not callable(fn) or not hasattr(fn, "__qualname__")
    if odd or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"@{what} on {fn!r}: give a def or async def function that returns its result")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 500 and name.isprintable()):
        raise DefinitionError(f"{what} {fn.__qualname__}: name={name[:50]!r}; give a name of 1 to 500 printable characters")


def _check_step(fn: Callable[..., Any], info: StepInfo) -> None:
    is_async = inspect.iscoroutinefunction(fn)
    if info.place is not None and (is_async or info.place not in ("inline", "thread", "process")):
        raise DefinitionError(
            f"step {fn.__qualname__}: run={info.place!r}; a def step may run \"inline\", \"thread\" or \"process\", an async def step runs on the event loop"
        )
    if info.place == "inline" and _limited(info):
        raise DefinitionError(f"step {fn.__qualname__}: a step with a timeout, heartbeat or schedule_to_close is never inline; leave out run=\"inline\"")
    if info.heartbeat_s is not None and info.transactional:
        raise DefinitionError(f"step {fn.__qualname__}: a transactional step gives no heartbeats; give it a timeout=")
    if info.heartbeat_s is not None and info.timeout_s is not None and info.heartbeat_s >= info.timeout_s:
        raise DefinitionError(f"step {fn.__qualname__}: heartbeat={info.heartbeat_s:g} s is not less than timeout={info.timeout_s:g} s, so it would never be missed; give less, or leave it out")
    if info.place == "process":
        if "<" in fn.__qualname__:
            raise DefinitionError(f"step {fn.__qualname__}: a lambda or a function inside of another one is not the same in every process; define it at the module's level")
        named_parameters(fn, "step")
    if info.transactional and (info.at_most_once or info.place is not None):
        raise DefinitionError(f"step {fn.__qualname__}: a transactional step is exactly once already and has its own session; leave out at_most_once= and run=")
    if info.isolation is not None and not info.transactional:
        raise DefinitionError(f"step {fn.__qualname__}: isolation={info.isolation!r} is of a transaction; add transactional=True or leave it out")
    if info.isolation not in (None, "serializable", "repeatable read"):
        raise DefinitionError(f"step {fn.__qualname__}: isolation={info.isolation!r}; give \"serializable\" or \"repeatable read\"")
    if info.transactional:
        _check_first(fn, is_async)


def _check_first(fn: Callable[..., Any], is_async: bool) -> None:
    """A transactional step is given its transaction as first argument: what is annotated as plain data was meant for another one."""
    wanted = f"def {fn.__name__}(tx: {'AsyncTransaction' if is_async else 'Transaction'}, …)"
    first = next(iter(inspect.signature(fn).parameters.values()), None)
    if first is None:
        raise DefinitionError(f"step {fn.__qualname__}: a transactional step takes its transaction as first parameter; write {wanted}")
    if first.annotation in PLAIN or first.annotation in [kind.__name__ for kind in PLAIN]:
        kind = first.annotation if isinstance(first.annotation, str) else first.annotation.__name__
        raise DefinitionError(f"step {fn.__qualname__}: a transactional step is given its transaction as first parameter, and {first.name} is annotated {kind}; write {wanted}, or leave out transactional=True")


def _policy(retry: Retry | bool | None) -> Retry:
    if retry is None or retry is False:
        return ONCE
    if retry is True:
        return Retry()
    if not isinstance(retry, Retry):
        raise DefinitionError(f"retry={retry!r}: give True or Retry(max_attempts=…, …)")
    return retry


def _limited(info: StepInfo) -> bool:
    return info.timeout_s is not None or info.heartbeat_s is not None or info.close_s is not None


def _limit(value: float | timedelta | None, what: str) -> float | None:
    if value is None:
        return None
    limit_s = seconds(value, what)
    if not limit_s:
        raise DefinitionError(f"{what}{value!r}: give more than 0 s")
    return limit_s


def _timeout(timeout: float | timedelta | None) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout=")


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(fn: Callable[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str | None = None, queue: str = "default", timeout: float | timedelta | None = None, version: str | None = None, max_steps: int = MAX_STEPS
) -> _WorkflowDecorator: ...
def workflow(
    fn: Callable[..., Any] | None = None, /, *, name: str | None = None, queue: str = "default", timeout: float | timedelta | None = None,
    version: str | None = None, max_steps: int = MAX_STEPS,
) -> Any:  # fmt: skip
    """Make a function a durable workflow: it survives the death of its process and goes on after its last finished step.

    name     what starts and the history call it; default the function's name
    queue    whose workers run it
    timeout  seconds or timedelta from its start to its end
    version  of its code; default a hash of the function's own source. Runs that have begun go on with code of the version that they began with
    max_steps  of one run: so many steps, timers, children and waits it may call (HistoryTooLong); at eight tenths of it the log says so
    """

    def decorate(fn: Callable[..., Any]) -> Any:
        _check_function(fn, "workflow", name)
        if type(max_steps) is not int or not 0 < max_steps <= MAX_STEPS_MOST:
            raise DefinitionError(f"workflow {fn.__qualname__}: max_steps={max_steps!r}; give a whole number from 1 to {MAX_STEPS_MOST}")
        if not registry.is_queue_name(queue):
            raise DefinitionError(f"workflow {fn.__qualname__}: queue={queue!r}; give {registry.QUEUE_NAME}")
        named = None if version is None else check_version(version)
        info = WorkflowInfo(queue, _timeout(timeout), max_steps, f"{fn.__module__}.{fn.__qualname__}", version_of(fn, named))
        made: Workflow[Any, Any] = Workflow(fn, name or fn.__name__, info)
        registry.register(made)
        return made

    return decorate if fn is None else decorate(fn)


# ── types only: what the decorators return, as a type checker sees it ────────────────────────────────────────────


class AsyncStepOf(Protocol[P, R_co]):
    """Type of an `async def` step."""

    @property
    def name(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Durable[R_co]: ...
    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Durable[R_co]: ...
    def sync(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class DefStepOf(Protocol[P, R_co]):
    """Type of a `def` step."""

    @property
    def name(self) -> str: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Durable[R_co]: ...


class AsyncDefTakesAsyncTransaction:
    """What a type checker makes of an `async def` step that asks for a Transaction: its SQL would never run, so nothing can be done with it."""


class _StepDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStepOf[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> DefStepOf[P, R]: ...


class _TransactionalDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[AsyncTransaction, P], Coroutine[Any, Any, R]], /) -> AsyncStepOf[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]], /) -> AsyncDefTakesAsyncTransaction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[Concatenate[Transaction, P], R], /) -> DefStepOf[P, R]: ...


class _WorkflowDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Workflow[P, R]: ...


__all__ = ["AsyncStep", "DefStep", "Retry", "StartOptions", "Workflow", "replace", "step", "workflow"]
