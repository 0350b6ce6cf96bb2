"""Greenlets of def workflows are used again, and nothing of one run reaches the next."""

from __future__ import annotations

import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from supervisor.engine import green as module
from supervisor.engine.green import close_green, green

seen: ContextVar[str] = ContextVar("seen", default="nothing")


@pytest.fixture(autouse=True)
def none_kept() -> None:
    module._kept.clear()


def value_of(made: Any) -> Any:
    """Run it to its end, which it reaches at the first switch."""
    assert made.switch() is made
    return made.returned().value


def test_the_second_call_runs_on_the_first_ones_greenlet_and_sees_no_context_of_it() -> None:
    def first() -> str:
        seen.set("the first run's")
        return seen.get()

    one = green(first, ())
    shell = one.shell
    assert value_of(one) == "the first run's"
    two = green(seen.get, ())
    assert two.shell is shell
    assert value_of(two) == "nothing"


def test_closing_what_has_returned_does_not_touch_who_has_the_greenlet_now() -> None:
    from greenlet import getcurrent

    one = green(lambda: 1, ())
    assert value_of(one) == 1
    two = green(lambda: getcurrent().parent.switch("waiting"), ())
    assert two.switch() == "waiting"
    close_green(one)
    assert not two.shell.dead
    assert two.switch() is two


def test_closing_unwinds_and_an_error_comes_out_of_switch() -> None:
    from greenlet import getcurrent

    unwound = []

    def waits() -> None:
        try:
            getcurrent().parent.switch("waiting")
        finally:
            unwound.append(True)

    one = green(waits, ())
    one.switch()
    close_green(one)
    assert unwound == [True]

    def fails() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        green(fails, ()).switch()
    assert module._kept == []


def test_a_result_does_not_live_on_in_a_greenlet_that_waits_for_work() -> None:
    class Result:
        pass

    one = green(Result, ())
    watched = weakref.ref(value_of(one))
    gc.collect()
    assert watched() is None
    assert len(module._kept) == 1
