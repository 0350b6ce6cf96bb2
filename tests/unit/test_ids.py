"""Run ids: version 7, ascending, by the database's clock, with the cell's number."""

import os
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from supervisor.core import ids
from supervisor.core.ids import RunIds, clock_offset_us, id_cell, id_time


def test_an_id_is_a_version_7_uuid_with_time_and_cell():
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    made = RunIds(cell=0xABC).new()
    assert (7, uuid.RFC_4122) == (made.version, made.variant)
    assert 0xABC == id_cell(made)
    assert before <= id_time(made) <= datetime.now(timezone.utc)


def test_an_id_carries_the_databases_clock_and_not_this_machines():
    """A client whose clock is wrong must still make ids that fit the partitions."""
    ahead = id_time(RunIds(offset_us=3_600_000_000).new()) - datetime.now(timezone.utc)
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)


def test_ids_ascend_within_a_process_one_by_one_and_in_bulk():
    source = RunIds(cell=5)
    made = []
    for n in (1, 1, 5000, 1, 3, 20_000, 1):
        made += [source.new().bytes] if n == 1 else source.new_bytes(n)
    assert made == sorted(set(made))
    assert {5} == {id_cell(uuid.UUID(bytes=each)) for each in made}
    assert {7} == {uuid.UUID(bytes=each).version for each in made}


def test_ids_ascend_also_when_the_clock_steps_back(monkeypatch):
    source = RunIds()
    first = source.new()
    monkeypatch.setattr(ids.time, "time_ns", lambda now=time.time_ns(): now - 30_000_000_000)
    assert first < source.new() < source.new()


def test_ids_go_on_in_the_next_millisecond_when_one_is_full(monkeypatch):
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    source = RunIds()
    first = source.new()
    source._count = (1 << ids._COUNT_BITS) - 2
    second = source.new()
    assert first < second
    assert id_time(second) - id_time(first) == timedelta(milliseconds=1)


def test_no_ids_for_zero_and_no_cell_out_of_range():
    assert [] == RunIds().new_bytes(0)
    for cell in (-1, 4096):
        with pytest.raises(ValueError, match="4095"):
            RunIds(cell=cell)


def test_threads_share_a_source_without_a_double():
    source, made = RunIds(), []
    threads = [threading.Thread(target=lambda: made.extend(source.new_bytes(500) + [source.new().bytes])) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert 8 * 501 == len(set(made))


def test_a_forked_child_makes_other_ids_than_its_parent(monkeypatch):
    """Both go on from the same state in the same millisecond; without fresh noise they would make the same ids."""
    source = RunIds()
    source.new()
    frozen = time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: frozen)
    source.new()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"".join(source.new_bytes(10)))
        os._exit(0)
    mine = source.new_bytes(10)
    theirs = os.read(read, 160)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert not set(mine) & {theirs[at : at + 16] for at in range(0, 160, 16)}


DELAY_US = st.integers(min_value=0, max_value=50_000)


@given(there=DELAY_US, back=DELAY_US, asked=st.integers(min_value=0, max_value=10**15))
def test_processes_of_one_machine_agree_about_the_time_however_slow_the_answer(there, back, asked):
    """Half a round trip of difference would let a step end before its run was started, by the run's own clock."""
    assert clock_offset_us(asked, asked + there + back, asked + there) == 0


@given(there=DELAY_US, back=DELAY_US, ahead=st.integers(min_value=-(10**10), max_value=10**10))
def test_a_clock_that_is_wrong_is_known_to_half_a_round_trip(there, back, ahead):
    asked = 10**15
    found = clock_offset_us(asked, asked + there + back, asked + there + ahead)
    assert abs(found - ahead) <= max(there + back, 1) + 1
    assert found == 0 or abs(found - ahead) <= (there + back) // 2 + 1
    assert found != 0 or abs(ahead) <= there + back + 1
