"""The look that rides on the pulse: how often it may."""

import time

import pytest

from supervisor.leader import look
from supervisor.leader.look import NOTHING, Look

WANTED = {"queues": None, "workflows": ["w"], "depth": 64}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def told():
    return []


@pytest.fixture
def looking(told):
    made = Look()
    made.wanted(lambda: WANTED, lambda *row: told.append(row))
    return made


def rides(looking: Look, clock: list[float], took_s: float) -> bool:
    wanted = looking.parameters() is WANTED
    clock[0] += took_s
    looking.answered(1, None, False)
    return wanted


def test_without_an_owner_nothing_is_looked_at():
    assert Look().parameters() is NOTHING


def test_a_quick_look_rides_on_every_pulse_and_not_on_hurried_ones(looking, clock, told):
    assert rides(looking, clock, 0.002)
    clock[0] += 0.02
    assert not rides(looking, clock, 0.002)
    clock[0] += 0.4
    assert rides(looking, clock, 0.002)
    assert told == [(1, None, False)] * 2, "what a pulse without a look brings is no answer"


def test_a_slow_look_is_asked_for_more_rarely(looking, clock):
    assert rides(looking, clock, 0.3)
    clock[0] += 2.5
    assert not rides(looking, clock, 0.002)
    clock[0] += 0.5
    assert rides(looking, clock, 0.002)


def test_a_refused_look_is_left_out_for_a_while(looking, clock, told):
    assert looking.parameters() is WANTED and looking.out
    looking.refused()
    assert not looking.out and looking.parameters() is NOTHING
    clock[0] += look.REFUSED_S
    assert looking.parameters() is WANTED and not told
