"""When a failed step is tried again: pure arithmetic on a policy, an attempt's number and a seed.

Jitter is full jitter from a hash of run, seq and attempt: no two runs wait alike, and one run waits alike on every worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from typing import cast

from supervisor.core.errors import DefinitionError, NonRetryable, RetryAfter

SECONDS_MAX = 10_000_000_000  # 317 years: a moment so far away can be read anywhere; the database has the same figure (checked_delay)


def seconds(value: float | int | timedelta, what: str) -> float:
    """A duration in seconds from seconds or a timedelta. Raises DefinitionError for anything else, below 0 or from SECONDS_MAX on."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < SECONDS_MAX:
        raise DefinitionError(f"{what} is {value!r}; give seconds (0 or more, less than {SECONDS_MAX:,}) or a timedelta")
    return float(value)


@dataclass(frozen=True)
class Retry:
    """How often and when a step that raised is tried again.

    max_attempts    tries in all, the first included; 1..1000
    initial         seconds before the second try
    factor          each wait is that many times the one before
    maximum         no wait is longer, in seconds
    non_retryable   exception classes that fail at once
    """

    max_attempts: int = 5
    initial: float | timedelta = 0.2
    factor: float = 2.0
    maximum: float | timedelta = 60.0
    non_retryable: tuple[type[BaseException], ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.max_attempts, int) or not 1 <= self.max_attempts <= 1000:
            raise DefinitionError(f"Retry(max_attempts={self.max_attempts!r}): give a whole number from 1 to 1000")
        if self.factor < 1:
            raise DefinitionError(f"Retry(factor={self.factor!r}): give 1 or more")
        object.__setattr__(self, "initial", seconds(self.initial, "Retry(initial=…)"))
        object.__setattr__(self, "maximum", seconds(self.maximum, "Retry(maximum=…)"))
        if self.initial > self.maximum:  # type: ignore[operator]
            raise DefinitionError(f"Retry(initial={self.initial:g}, maximum={self.maximum:g}): no wait is longer than maximum, so the first would not be initial; give maximum={self.initial:g} or more, or a smaller initial")
        object.__setattr__(self, "non_retryable", tuple(self.non_retryable))
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.non_retryable):
            raise DefinitionError(f"Retry(non_retryable={self.non_retryable!r}): give exception classes")


ONCE = Retry(max_attempts=1)


def next_wait_s(policy: Retry, error: BaseException, attempt: int, run_id: bytes, seq: int) -> float | None:
    """Seconds until attempt number *attempt* + 1, or None when this failure is final."""
    if attempt >= policy.max_attempts and not (isinstance(error, RetryAfter) and policy.max_attempts == 1):
        return None
    if isinstance(error, NonRetryable) or isinstance(error, policy.non_retryable):
        return None
    if isinstance(error, RetryAfter):
        return error.seconds
    initial_s, maximum_s = cast(float, policy.initial), cast(float, policy.maximum)  # numbers since __post_init__
    try:
        ceiling = min(initial_s * policy.factor ** (attempt - 1), maximum_s)
    except OverflowError:  # 10.0 ** 998 is no float
        ceiling = maximum_s
    return ceiling * unit_interval(run_id, seq, attempt)


def unit_interval(run_id: bytes, seq: int, attempt: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = blake2b(run_id + seq.to_bytes(4, "big") + attempt.to_bytes(4, "big"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)
