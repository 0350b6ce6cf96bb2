"""When a failed step is tried again: arithmetic alone."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.errors import DefinitionError, InputInvalid, NonRetryable, RetryAfter, StepTimeout
from supervisor.core.retry import ONCE, Retry, next_wait_s, seconds, unit_interval

RUN = bytes(range(16))
_ids = st.binary(min_size=16, max_size=16)


class Declined(Exception):
    pass


class Stolen(Declined):
    pass


def test_without_a_policy_the_first_failure_is_final() -> None:
    assert next_wait_s(ONCE, ValueError(), 1, RUN, 0) is None


def test_policy_counts_the_first_try() -> None:
    """max_attempts=3 is three calls, not four."""
    policy = Retry(max_attempts=3)
    waits = [next_wait_s(policy, ValueError(), attempt, RUN, 0) for attempt in (1, 2, 3, 4)]
    assert [wait is None for wait in waits] == [False, False, True, True]


@given(run=_ids, seq=st.integers(0, 2**31 - 1), attempt=st.integers(1, 4))
def test_wait_lies_between_nothing_and_its_ceiling(run: bytes, seq: int, attempt: int) -> None:
    """Full jitter: 0.2 s × 2, at most what maximum says."""
    wait = next_wait_s(Retry(), ValueError(), attempt, run, seq)
    assert wait is not None and 0 <= wait < 0.2 * 2 ** (attempt - 1)
    capped = next_wait_s(Retry(max_attempts=1000, maximum=0.3), ValueError(), 999, run, seq)
    assert capped is not None and 0 <= capped < 0.3


@given(run=_ids, seq=st.integers(0, 2**31 - 1), attempt=st.integers(1, 999))
def test_wait_is_a_function_of_run_seq_and_attempt(run: bytes, seq: int, attempt: int) -> None:
    """Alike on every worker, so that a takeover does not shift it; different between runs, so that no two storm together."""
    assert unit_interval(run, seq, attempt) == unit_interval(run, seq, attempt)
    assert 0 <= unit_interval(run, seq, attempt) < 1
    assert unit_interval(run, seq, attempt) != unit_interval(run, seq, attempt + 1)


def test_jitter_is_spread_evenly() -> None:
    """Ten thousand runs that fail together come back spread over the whole wait."""
    drawn = [unit_interval(os.urandom(16), 0, 1) for _ in range(10_000)]
    tenths = [sum(n / 10 <= value < (n + 1) / 10 for value in drawn) for n in range(10)]
    assert min(tenths) > 800 and max(tenths) < 1200


def test_what_is_not_retryable_fails_at_once() -> None:
    policy = Retry(non_retryable=(Declined,))
    assert next_wait_s(policy, Declined(), 1, RUN, 0) is None
    assert next_wait_s(policy, Stolen(), 1, RUN, 0) is None, "subclasses too"
    assert next_wait_s(policy, ValueError(), 1, RUN, 0) is not None
    assert next_wait_s(Retry(), NonRetryable("x"), 1, RUN, 0) is None
    assert next_wait_s(Retry(), StepTimeout("x"), 1, RUN, 0) is not None, "a timeout is a failure like any other"
    assert next_wait_s(Retry(non_retryable=(TimeoutError,)), StepTimeout("x"), 1, RUN, 0) is None


def test_retry_after_says_the_wait_itself() -> None:
    assert next_wait_s(Retry(max_attempts=3, maximum=1), RetryAfter(30), 1, RUN, 0) == 30
    assert next_wait_s(Retry(max_attempts=3), RetryAfter(30), 3, RUN, 0) is None
    assert next_wait_s(ONCE, RetryAfter(30), 7, RUN, 0) == 30, "without a policy the step decides alone"
    assert next_wait_s(Retry(non_retryable=(RetryAfter,)), RetryAfter(1), 1, RUN, 0) is None


def test_huge_powers_do_not_overflow() -> None:
    """2 ** 998 × 0.2 is a float; a factor of 10 is not, and must not fail the failure path."""
    for factor in (2.0, 10.0, 1e6):
        wait = next_wait_s(Retry(max_attempts=1000, factor=factor, maximum=60), ValueError(), 999, RUN, 0)
        assert wait is not None and 0 <= wait < 60


@pytest.mark.parametrize("bad", [-1, -0.001, float("nan"), float("inf"), 1e10, True, "1", None, timedelta(seconds=-1)])
def test_bad_durations_are_refused(bad: object) -> None:
    with pytest.raises(DefinitionError, match="what="):
        seconds(bad, "what=")  # type: ignore[arg-type]


def test_durations_are_seconds_or_timedelta() -> None:
    assert seconds(0, "x") == 0.0
    assert seconds(timedelta(minutes=1, milliseconds=5), "x") == 60.005
    policy = Retry(initial=timedelta(seconds=1), maximum=timedelta(minutes=1))
    assert (policy.initial, policy.maximum) == (1.0, 60.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_attempts": 0}, {"max_attempts": 1001}, {"max_attempts": 2.5}, {"factor": 0.9}, {"initial": -1}, {"maximum": "x"},
        {"non_retryable": (1,)},
    ],
)  # fmt: skip
def test_bad_policies_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(DefinitionError, match="Retry"):
        Retry(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1e12, 1e10, float("inf"), timedelta(days=200_000)])
def test_a_duration_that_no_timestamp_can_hold_is_told_the_most(value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"sleep\(…\) is .*; give seconds \(0 or more, less than 10,000,000,000\) or a timedelta"):
        seconds(value, "sleep(…)")


def test_what_does_not_fit_is_told_without_words_about_calls() -> None:
    """It may be an attribute, a progress, or a date in a form."""
    assert str(InputInvalid("progress", "done='x' is no number")) == "progress: done='x' is no number"
