"""When schedules tick: across the hours that summer time takes and gives twice, whoever asks, and what is planned about it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings, strategies as st

from supervisor import Schedule, workflow
from supervisor.core import registry
from supervisor.core.errors import DefinitionError, ScheduleInvalid
from supervisor.core.schedules import LOOKED_MAX, TICKS_MAX, Due, Timing, backfill_of, jitter_of, plan

BERLIN = ZoneInfo("Europe/Berlin")  # 2027: 28 March 02:00 → 03:00, 31 October 03:00 → 02:00


def ticks(cron: str, after: datetime, n: int, zone: str = "Europe/Berlin") -> list[str]:
    timing = Timing("s", cron, None, zone)
    return [tick.astimezone(timing.zone).strftime("%d %H:%M %z") for tick in itertools.islice(timing.after(after), n)]


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["27 02:30 +0100", "28 03:00 +0200", "29 02:30 +0200"]),  # its time is not there: as soon as there is one again
        ("30 1 * * *", ["27 01:30 +0100", "28 01:30 +0100", "29 01:30 +0200"]),
        ("0 3 * * *", ["27 03:00 +0100", "28 03:00 +0200", "29 03:00 +0200"]),
        ("0 2,3 * * *", ["27 02:00 +0100", "27 03:00 +0100", "28 03:00 +0200", "29 02:00 +0200"]),  # both fall on one moment, which is one tick
    ],
)
def test_the_hour_that_spring_takes(cron: str, expected: list[str]) -> None:
    """A nightly run is not lost because its hour is, and is not started twice."""
    assert ticks(cron, datetime(2027, 3, 27, 0, 0, tzinfo=BERLIN), len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["30 02:30 +0200", "31 02:30 +0200", "01 02:30 +0100"]),  # a time of day: once, the first time
        ("0 3 * * *", ["30 03:00 +0200", "31 03:00 +0100", "01 03:00 +0100"]),
    ],
)
def test_the_hour_that_autumn_gives_twice(cron: str, expected: list[str]) -> None:
    assert ticks(cron, datetime(2027, 10, 30, 0, 0, tzinfo=BERLIN), len(expected)) == expected


def test_what_comes_every_hour_comes_in_both_of_them() -> None:
    """A job of every half hour must not pause for an hour in autumn, or run twice in spring."""
    autumn = ticks("*/30 * * * *", datetime(2027, 10, 31, 1, 59, tzinfo=BERLIN), 5)
    assert autumn == ["31 02:00 +0200", "31 02:30 +0200", "31 02:00 +0100", "31 02:30 +0100", "31 03:00 +0100"]
    spring = ticks("*/30 * * * *", datetime(2027, 3, 28, 1, 29, tzinfo=BERLIN), 3)
    assert spring == ["28 01:30 +0100", "28 03:00 +0200", "28 03:30 +0200"]


def test_asked_within_the_second_of_both_hours_it_does_not_go_back() -> None:
    """A leader that begins in the repeated hour asks from there: what the first one had must not come again."""
    second = datetime(2027, 10, 31, 2, 15, tzinfo=BERLIN, fold=1)
    assert ticks("30 2 * * *", second, 1) == ["01 02:30 +0100"]


CRONS = st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0 2,3 * * *", "15 */2 * * *", "0 0 31 * *", "59 1-3 * * 0", "0 12 1 1 *", "@hourly", "@weekly", "*/20 * * * * *"])
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo"])
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@settings(deadline=None, max_examples=300)
@given(CRONS, ZONES, MOMENTS, st.integers(0, 4))
def test_ticks_ascend_and_are_the_same_whoever_asks_from_wherever(cron: str, zone: str, after: datetime, at: int) -> None:
    """A leader that takes over asks from the last tick that was fired, or from any moment between two: the ticks must be those that its predecessor would have fired."""
    timing = Timing("s", cron, None, zone)
    found = list(itertools.islice(timing.after(after), 6))
    assert all(one < another for one, another in itertools.pairwise([after, *found]))
    assert list(itertools.islice(timing.after(found[at]), 5 - at)) == found[at + 1 :]
    between = found[at] + (found[at + 1] - found[at]) / 3
    assert list(itertools.islice(timing.after(between), 5 - at)) == found[at + 1 :]


@given(st.integers(100_000, 10**12), MOMENTS)
def test_intervals_are_counted_from_1970(every_us: int, after: datetime) -> None:
    """So a schedule that is made again ticks as it did."""
    timing = Timing("s", None, every_us)
    first, second = itertools.islice(timing.after(after), 2)
    assert after < first <= after + timedelta(microseconds=every_us) and second - first == timedelta(microseconds=every_us)
    assert (first - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(microseconds=every_us) == timedelta(0)


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "@never", "a b c d e", "*/0 * * * *", "0 0 * * 9"])
def test_a_cron_that_cant_be_read_is_refused(cron: str) -> None:
    with pytest.raises(ScheduleInvalid, match="schedule 's': cron .* can't be read: .*; give five fields"):
        Timing("s", cron, None)


def test_a_name_that_cron_does_not_have_is_told_those_that_it_has() -> None:
    with pytest.raises(ScheduleInvalid, match="cron '@reboot' can't be read: it knows no such name; there are @hourly, @daily, .*; give five fields"):
        Timing("s", "@reboot", None)


@pytest.mark.parametrize("zone", ["Mars", "", "../etc/passwd", "Europe", "/etc/localtime", "\0"])
def test_a_zone_that_is_not_there_is_refused(zone: str) -> None:
    with pytest.raises(ScheduleInvalid, match="there is no time zone"):
        Timing("s", "@daily", None, zone)


NOW = datetime(2027, 5, 1, 12, 0, 30, tzinfo=UTC)


def due(**terms: object) -> Due:
    given = {"name": "s", "version": 1, "cron": "* * * * *", "every_us": None, "timezone": "UTC", "jitter_s": 0.0, "catchup_s": 3600.0, "starts_at": None, "ends_at": None}
    return Due(**{**given, "after_at": NOW - timedelta(minutes=3), "now": NOW, **terms})  # type: ignore[arg-type]


def minutes(found: list[datetime]) -> list[str]:
    return [tick.strftime("%H:%M") for tick in found]


def test_what_is_due_is_fired_and_the_next_tick_is_known() -> None:
    planned = plan(due())
    assert minutes(planned.ticks) == ["11:58", "11:59", "12:00"] and not planned.missed
    assert (planned.next_at, planned.due_at, planned.after_at) == (NOW.replace(minute=1, second=0), NOW.replace(minute=1, second=0), NOW.replace(second=0))


def test_what_is_too_old_is_missed() -> None:
    planned = plan(due(catchup_s=60.0))
    assert (minutes(planned.missed), minutes(planned.ticks)) == (["11:58", "11:59"], ["12:00"])


def test_a_turn_is_bounded_and_goes_on_where_it_stopped() -> None:
    """A year that nobody was there must not hold the leader up."""
    first = plan(due(after_at=NOW - timedelta(days=365)))
    assert len(first.missed) == LOOKED_MAX and first.due_at == NOW
    second = plan(due(after_at=first.after_at))
    assert second.missed[0] == first.missed[-1] + timedelta(minutes=1)
    many = plan(due(every_us=1_000_000, cron=None, after_at=NOW - timedelta(minutes=10)))
    assert len(many.ticks) == TICKS_MAX and many.due_at == NOW


def test_bounds_are_kept() -> None:
    starts, ends = NOW - timedelta(minutes=2, seconds=30), NOW - timedelta(seconds=60)
    planned = plan(due(starts_at=starts, ends_at=ends))
    assert minutes(planned.ticks) == ["11:58", "11:59"] and planned.next_at is None and planned.due_at is None
    assert minutes(plan(due(starts_at=NOW.replace(second=0))).ticks) == ["12:00"], "its first moment is a tick"


def test_jitter_is_of_name_and_tick_alone() -> None:
    """Another leader computes the same moment, so nothing is fired twice or early."""
    tick = NOW.replace(second=0)
    assert timedelta(0) <= jitter_of("s", tick, 60) == jitter_of("s", tick, 60) < timedelta(seconds=60)
    assert len({jitter_of(f"s{n}", tick, 60) for n in range(20)}) == 20
    late = due(jitter_s=3600.0, after_at=tick - timedelta(minutes=1))
    assert plan(late).due_at == tick + jitter_of("s", tick, 3600.0) and plan(late).ticks == []


def test_what_cant_be_read_is_an_error_and_no_exception() -> None:
    """One bad row must not break the leader's turn."""
    assert "can't be read" in str(plan(due(cron="x")).error) and plan(due(cron="x")).due_at is None
    assert "no time zone" in str(plan(due(timezone="Mars")).error)


def test_a_backfill_misses_nothing() -> None:
    planned = plan(backfill_of(due(catchup_s=0.0, jitter_s=9.0, ends_at=NOW.replace(minute=0, second=0))))
    assert minutes(planned.ticks) == ["11:58", "11:59", "12:00"] and planned.next_at is None


# ── a declaration ────────────────────────────────────────────────────────────────────────────────────────────────


@workflow
async def schedules_declared(region: str, at: datetime, copies: int = 1) -> None:
    """For declarations that fit, and others."""


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"input": {"region": "us", "zzz": 1}}, "input= has 'zzz', which is not one of its parameters: workflow schedules_declared takes region, at, copies"),
    "missing": ({"input": {}}, "input= has no 'region', which has no default"),
    "no input": ({}, "input= has no 'region'"),
    "no dict": ({"input": ["us"]}, "input= is a dict by parameter name, not list"),
    "the tick twice": ({"input": {"region": "us", "at": "now"}}, "input= has 'at', which is what pass_tick= gives"),
    "tick unknown": ({"input": {"region": "us"}, "pass_tick": "when"}, "pass_tick='when' is not one of its parameters"),
    "tick nowhere": ({"input": {"region": "us"}, "pass_tick": None}, "input= has no 'at'"),
    "catchup": ({"catchup": 1}, "catchup is 10 s at least, not 1"),
    "jitter": ({"jitter": 86_401}, "jitter is between 0 and 86400 s, not 86401"),
    "queue": ({"queue": ""}, "the name of a queue has 1 to 200 characters"),
    "bounds": ({"starts_at": datetime(2026, 2, 1, tzinfo=UTC), "ends_at": datetime(2026, 1, 1, tzinfo=UTC)}, "it ends before it begins"),
    "no moment": ({"starts_at": "monday"}, "starts_at='monday' is no datetime"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_declaration_that_cant_be_followed_is_refused_at_its_line(case: str) -> None:
    """On the developer's screen, and not by every worker that is born."""
    terms, word = WRONG[case]
    known = registry.schedules()
    with pytest.raises(ScheduleInvalid, match="schedule 'wrong': ") as caught:
        Schedule("wrong", schedules_declared, **{"every": 3600, "pass_tick": "at", **terms})  # type: ignore[arg-type]
    assert word in str(caught.value)
    assert registry.schedules() == known, "what was refused is not declared"


def test_types_of_a_declared_input_are_held_against_the_annotations_when_a_worker_starts() -> None:
    """They can be resolved then; the schedule is named."""
    wrong = Schedule("typed", schedules_declared, every=3600, pass_tick="at", input={"region": 5})
    try:
        with pytest.raises(DefinitionError, match="schedule 'typed': its input does not fit workflow schedules_declared: parameter 'region': Expected `str`, got `int`; mend its input="):
            registry.settle()
    finally:
        del registry._schedules[wrong.name]
    registry.settle()
