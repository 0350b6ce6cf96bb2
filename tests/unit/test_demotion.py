"""When a step that ran on the loop's thread goes back to threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from supervisor.engine import executors


def a_step(place: str = "auto") -> Any:
    class Step(SimpleNamespace):
        __hash__ = object.__hash__

    return Step(inline=True, info=SimpleNamespace(place=place))


def strikes(step: Any, took_us: int, times: int, apart_s: float) -> int:
    """Strike until it is demoted; how many it took, or 0."""
    for n in range(times):
        executors.demote(step, 100 + n * apart_s, took_us)
        if not step.inline:
            return n + 1
    return 0


def test_a_step_that_sleeps_every_time_goes_back_within_a_tenth_of_a_second() -> None:
    step = a_step()
    assert strikes(step, 10_000, 50, 0.01) == 10
    assert step in executors._DEMOTED


def test_one_very_slow_call_is_no_verdict_and_three_are() -> None:
    assert strikes(a_step(), 500_000, 2, 0.1) == 0
    assert strikes(a_step(), 500_000, 5, 0.1) == 3


def test_a_few_calls_that_waited_for_the_interpreter_are_forgiven() -> None:
    """Right after a promotion the threads still end what they began, and a call may wait for them."""
    assert strikes(a_step(), 7_000, 10, 0.001) == 0


def test_what_was_long_ago_does_not_count() -> None:
    assert strikes(a_step(), 40_000, 30, 6.0) == 0


def test_a_step_declared_inline_stays() -> None:
    assert strikes(a_step("inline"), 900_000, 50, 0.01) == 0
