"""What can't be made durable is refused where it is written: at the decorator, or at the call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from supervisor import Client, DefinitionError, OutsideWorkflow, Retry, first, gather, step, workflow
from supervisor.core import registry
from tests.apps import placed
from tests.conformance.conftest import Live

APP = "tests.apps.placed"


def _variadic(*args: int) -> None: ...
def _keywords(**kwargs: int) -> None: ...
def _positional(a: int, /) -> None: ...
def _nothing() -> None: ...
def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


async def _async_variadic(*args: int) -> None: ...
def _plain(n: int) -> int:
    return n


async def _plain_async(n: int) -> int:
    return n


def _unresolvable(n: "NoSuchType") -> None: ...  # type: ignore[name-defined] # noqa: F821
def _no_json_form(n: list[int] | tuple[str, ...]) -> None: ...


BAD: dict[str, Callable[[], Any]] = {
    "workflow *args": lambda: workflow(_variadic),
    "workflow **kwargs": lambda: workflow(_keywords),
    "workflow positional-only": lambda: workflow(_positional),
    "workflow async *args": lambda: workflow(_async_variadic),
    "workflow generator": lambda: workflow(_generator),
    "workflow async generator": lambda: workflow(_async_generator),
    "workflow class": lambda: workflow(type("Thing", (), {})),
    "workflow not callable": lambda: workflow(42),  # type: ignore[call-overload]
    "workflow queue empty": lambda: workflow(queue="")(_plain),
    "workflow queue long": lambda: workflow(queue="x" * 201)(_plain),
    "workflow timeout negative": lambda: workflow(timeout=-1)(_plain),
    "workflow timeout text": lambda: workflow(timeout="1h")(_plain),  # type: ignore[call-overload]
    "step generator": lambda: step(_generator),
    "step async generator": lambda: step(_async_generator),
    "step class": lambda: step(type("Thing", (), {})),
    "step not callable": lambda: step("x"),  # type: ignore[call-overload]
    "step retry text": lambda: step(retry="yes")(_plain),  # type: ignore[call-overload]
    "step retry number": lambda: step(retry=3)(_plain),  # type: ignore[call-overload]
    "step timeout negative": lambda: step(timeout=timedelta(seconds=-1))(_plain),
    "step timeout nan": lambda: step(timeout=float("nan"))(_plain),
    "step async inline": lambda: step(run="inline")(_plain_async),
    "step place unknown": lambda: step(run="gpu")(_plain),  # type: ignore[call-overload]
    "step inline with timeout": lambda: step(run="inline", timeout=1)(_plain),
    "step transactional at_most_once": lambda: step(transactional=True, at_most_once=True)(_plain),  # type: ignore[call-overload]
    "step transactional in thread": lambda: step(transactional=True, run="thread")(_plain),  # type: ignore[call-overload]
    "step transactional without tx": lambda: step(transactional=True)(_nothing),
    "step transactional with data first": lambda: step(transactional=True)(_counts),
    "step isolation unknown": lambda: step(transactional=True, isolation="chaos")(_plain),  # type: ignore[call-overload]
    "step isolation without transaction": lambda: step(isolation="serializable")(_plain),  # type: ignore[call-overload]
    "retry attempts": lambda: Retry(max_attempts=0),
    "retry attempts many": lambda: Retry(max_attempts=1001),
    "retry factor": lambda: Retry(factor=0.5),
    "retry initial": lambda: Retry(initial=-1),
    "retry initial over maximum": lambda: Retry(initial=5, maximum=1),
    "first without names": lambda: first(placed.add.aio(1, 2), placed.add.aio(3, 4)),  # type: ignore[arg-type]
    "retry non_retryable": lambda: Retry(non_retryable=("ValueError",)),  # type: ignore[arg-type]
    "options priority": lambda: placed.ordinary.options(priority=10),
    "options priority bool": lambda: placed.ordinary.options(priority=True),
    "options delay": lambda: placed.ordinary.options(delay=-1),
    "options key empty": lambda: placed.ordinary.options(key=""),
    "options key long": lambda: placed.ordinary.options(key="x" * 501),
    "step name empty": lambda: step(name="\x00")(_plain),
    "workflow name nul": lambda: workflow(name="a\x00b")(_plain),
    "workflow name long": lambda: workflow(name="x" * 501)(_plain),
}


def _counts(n: int) -> int:
    return n


@pytest.fixture
def clean_registry() -> Any:
    known, steps = dict(registry._workflows), list(registry._steps)
    yield
    registry._workflows.clear()
    registry._workflows.update(known)
    registry._steps[:] = steps


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize("case", BAD)
def test_bad_definition_is_refused_where_it_is_written(case: str) -> None:
    """At import, on the developer's screen, and not at night in a worker's log."""
    with pytest.raises(DefinitionError) as caught:
        BAD[case]()
    assert len(str(caught.value)) > 30, "what, which, evidence, what to do"


@pytest.mark.usefixtures("clean_registry")
def test_two_workflows_of_one_name_are_refused() -> None:
    """Which of them would run would depend on the order of imports."""
    workflow(name="same")(_plain)
    with pytest.raises(DefinitionError, match="same"):
        workflow(name="same")(_plain_async)


@pytest.mark.usefixtures("clean_registry")
def test_annotations_that_can_not_be_read_are_told_before_any_run() -> None:
    """A worker settles all before its first claim."""
    for fn in (_unresolvable, _no_json_form):
        made = workflow(name=fn.__name__)(fn)
        with pytest.raises(DefinitionError, match=fn.__name__):
            made.settle()


def test_outside_of_a_run_steps_and_workflows_are_plain_functions() -> None:
    """They can be tested and used without a database."""
    import asyncio

    assert placed.add(1, 2) == 3
    assert asyncio.run(placed.add_async(1, 2)) == 3
    assert asyncio.run(placed.add.aio(1, 2)) == 3
    assert placed.add_async.sync(1, 2) == 3
    assert asyncio.run(placed.calls_plain(3)) == 3
    for call in (lambda: gather(), lambda: first(a=None), lambda: placed.ordinary.sync(1)):  # type: ignore[arg-type,dict-item]
        with pytest.raises(OutsideWorkflow):
            call()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("def step without aio", "await add.aio("), ("async step in def workflow", "add_async.sync("),
        ("workflow in def workflow", "ordinary.sync("),
        ("first without members", "first("), ("gather of a value", "gather("), ("gather of an asyncio coroutine function", "gather("),
        ("start of no workflow", "start("),
    ],
)  # fmt: skip
def test_call_that_can_not_be_durable_is_refused_at_the_call(live: Live, wrong: str, word: str) -> None:
    """A def step called without .aio in an async workflow would run unrecorded: the error says what to write."""
    error = live.error(placed.calls_wrongly_def if "in def workflow" in wrong else placed.calls_wrongly, wrong)
    assert isinstance(error, DefinitionError), repr(error)
    assert word in str(error)
    assert live.effects.count("ran") == 0


def test_parameters_with_defaults_keep_old_runs_valid(live: Live) -> None:
    """An input stored before a parameter was added still starts; a field that is not known any more is no error."""
    with Client(live.database.dsn) as client:
        run = client.start(placed.defaulted, 1)
        assert run.result(timeout=20) == [1, 2, [], None]
        assert client.start("defaulted", n=5, also=6).result(timeout=20) == [5, 6, [], None]
        run = client.start(placed.defaulted.options(delay=0.2), 1, also=7, items=[1])
        live.database.sql(
            "update supervisor.task set input = convert_to('{\"n\":1,\"removed_since\":true}', 'UTF8') where run_id = %s", run.id
        )
        assert run.result(timeout=20) == [1, 2, [], None]


def test_default_that_is_a_list_is_not_shared_between_runs(live: Live) -> None:
    """Python's oldest trap must not leak one run's data into another."""
    assert [live.run(placed.mutates) for _ in range(3)] == [[1]] * 3
