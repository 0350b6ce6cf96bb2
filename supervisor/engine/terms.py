"""On what terms a step is tried: its policy with what somebody changed for this run, the time of one try, and that of all tries together.

Decides, and does nothing. Moments are us since 2000 by the loop's clock. When the time of all tries ends is recorded when the first one
begins (attempt kind 8), so that no crash begins it anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core.errors import StepTimeout
from supervisor.core.retry import Retry, next_wait_s

SKIPPED, SCHEDULED = 6, 8  # attempt.kind
NEVER = (1 << 63) - 1


def policy(run: Any, cmd: Any) -> Retry:
    """What a step was declared with, but for what somebody changed for this run."""
    terms = run.past.terms.get(cmd.seq) if run.past is not None else None
    declared: Retry = cmd.step.retry
    return replace(declared, **terms) if terms else declared


def next_try_s(run: Any, cmd: Any, error: BaseException, ended_us: int) -> float | None:
    """Seconds until the next try, or None when this failure is final: by the policy, or because that try would come too late."""
    wait_s = next_wait_s(policy(run, cmd), error, cmd.attempt, run.id, cmd.seq)
    return None if wait_s is not None and ended_us + int(wait_s * 1e6) >= closes_us(run, cmd) else wait_s


def closes_us(run: Any, cmd: Any) -> int:
    """When the time of all tries together is over."""
    if cmd.step.info.close_s is None or run.past is None:
        return NEVER
    found: int = run.past.closes.get(cmd.seq, NEVER)
    return found


def limit_s(run: Any, cmd: Any, now_us: int) -> float | None:
    """How long a try that begins now may take."""
    info = cmd.step.info
    closes = closes_us(run, cmd)
    if closes == NEVER:
        return info.timeout_s  # type: ignore[no-any-return]
    left_s = max(closes - now_us, 0) / 1e6
    return left_s if info.timeout_s is None else min(info.timeout_s, left_s)


def over(cmd: Any, limit_s: float, more: str = "") -> StepTimeout:
    """What a try is told that did not end within *limit_s*."""
    return StepTimeout(f"step {cmd.step.name} did not end within {limit_s:g} s{more}") if limit_s == cmd.step.info.timeout_s else closed(cmd, more)


def closed(cmd: Any, more: str = "") -> StepTimeout:
    """What a step is told whose time was over, all tries together."""
    return StepTimeout(f"step {cmd.step.name} did not end within {cmd.step.info.close_s:g} s, all its tries together (schedule_to_close){more}")
