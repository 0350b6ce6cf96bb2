"""Stretches of time in which nothing goes on."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from supervisor.core.spans import rests

T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)


@pytest.mark.parametrize(
    ("busy", "found"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 10)]),
        ([(5, 6), (2, 3)], [(0, 2), (3, 5), (6, 10)]),
        ([(2, 7), (3, 4)], [(0, 2), (7, 10)]),
        ([(2, 5), (4, 8)], [(0, 2), (8, 10)]),
        ([(-4, 1), (9, 40)], [(1, 9)]),
        ([(-4, -1)], [(0, 10)]),
        ([(20, 30)], [(0, 10)]),
        ([(4, 4)], [(0, 4), (4, 10)]),
        ([(5, 3)], [(0, 5), (5, 10)]),
    ],
)
def test_what_lies_between(busy: list[tuple[float, float]], found: list[tuple[float, float]]) -> None:
    """Overlapping, out of order, outside, of no length, backwards by a clock that was set: what is found lies within, in order, and meets nothing."""
    assert rests([(at(a), at(b)) for a, b in busy], at(0), at(10)) == [(at(a), at(b)) for a, b in found]
