"""The black box: what is written into it is read out of it, half-written is not, and who is blamed for a death."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor import _fastpath
from supervisor._fastpath import wire as built
from supervisor._fastpath.wire import clock_us
from supervisor.host import boxes, layout
from supervisor.host.blackbox import BlackBox
from supervisor.core.codec import crash_fingerprint
from supervisor.host.blame import Death, OomKills, inquest, stack
from supervisor.host.figures import percentile_ms, rates
from supervisor.host.layout import Executing, Note, Page
from supervisor.host.witness import Ring

RUN = uuid.UUID("01a20372-5082-702e-8dae-5c638c476000")
OTHER = uuid.UUID("01a20372-5082-702e-8dae-5c638c476001")


def plain_wire() -> Any:
    """wire.py itself, whichever build is imported."""
    spec = importlib.util.spec_from_file_location("plain_wire", Path(_fastpath.__file__).parent / "wire.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["built", "plain"])
def wire(request: pytest.FixtureRequest) -> Any:
    return built if request.param == "built" else plain_wire()


@pytest.fixture
def box() -> BlackBox:
    return BlackBox(2, 3, RUN, "shop")


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slot_says_what_executes(wire: Any) -> None:
    """Both builds write the same bytes, and layout.py reads them."""
    memory = bytearray(2 * wire.SLOT_BYTES)
    slot = wire.Slot(memory, wire.SLOT_BYTES)
    slot.own()
    slot.enter(RUN.bytes, 7, 1234, b"charge")
    run_id, seq, size, resting, started, count, thread, name = layout.slot_record.unpack_from(memory, wire.SLOT_BYTES)
    assert (run_id, seq, name[:size], resting, started, count) == (RUN.bytes, 7, b"charge", False, 1234, 1)
    assert thread == wire.thread_id() and memory[: wire.SLOT_BYTES] == bytes(wire.SLOT_BYTES)
    slot.enter(RUN.bytes, 8, 1235, b"x" * 200)
    *_, count, _, name = layout.slot_record.unpack_from(memory, wire.SLOT_BYTES)
    assert count == 2 and name == b"x" * 80
    slot.leave()
    assert memory[wire.SLOT_BYTES : wire.SLOT_BYTES + 16] == bytes(16)
    slot.code(RUN.bytes)
    assert layout.slot_record.unpack_from(memory, wire.SLOT_BYTES)[:2] == (RUN.bytes, -1)


def test_a_slot_outside_of_its_memory_is_refused(wire: Any) -> None:
    """Writing past the end would be another worker's page."""
    with pytest.raises(ValueError, match="outside"):
        wire.Slot(bytearray(wire.SLOT_BYTES), 1)


def test_a_watched_coroutine_rests_while_it_waits(wire: Any) -> None:
    """A task that waits does not have the thread: whatever kills the process meanwhile was not it."""

    class Pause:
        def __await__(self) -> Any:
            return (yield "paused")

    memory = bytearray(wire.SLOT_BYTES)
    slot = wire.Slot(memory, 0)
    seen = []

    async def body(error: bool) -> int:
        seen.append(memory[22])
        try:
            await Pause()
        except KeyError:
            seen.append("thrown")
        seen.append(memory[22])
        if error:
            raise LookupError
        return 42

    async def outer(error: bool) -> int:
        return await wire.Watched(body(error), slot)

    for how in ("send", "throw"):
        seen.clear()
        coroutine = outer(False)
        assert coroutine.send(None) == "paused" and memory[22] == 1
        with pytest.raises(StopIteration) as end:
            coroutine.send(None) if how == "send" else coroutine.throw(KeyError())
        assert end.value.value == 42 and seen == [0, 0] if how == "send" else [0, "thrown", 0]
    coroutine = outer(True)
    coroutine.send(None)
    with pytest.raises(LookupError):
        coroutine.send(None)
    unfinished = outer(False)
    unfinished.send(None)
    unfinished.close()


def test_a_slot_that_changes_under_the_readers_eyes_is_left_out(box: BlackBox) -> None:
    """A death is charged by what stands there: half of one step and half of another must not be read as a third."""
    page = box.page(0)
    page.thread_slots[0].enter(RUN.bytes, 1, 10, b"charge")
    first = bytes(box.memory)
    page.thread_slots[0].enter(OTHER.bytes, 2, 11, b"charge")
    page.thread_slots[1].enter(OTHER.bytes, 3, 11, b"book")
    at = box._offset(0)
    size = layout.page_bytes(3)
    read = layout.read_page(0, first[at : at + size], bytes(box.memory)[at : at + size], 3, 20)
    assert read.executing == []
    assert [(entry.step, entry.seq, entry.place) for entry in box.executing(0)] == [("charge", 2, "thread"), ("book", 3, "thread")]


def test_two_equal_looks_at_code_are_one_turn_of_it(wire: Any) -> None:
    """The parent decides by that who holds the loop: two short turns of the same run must not be taken for a long one."""
    memory = bytearray(wire.SLOT_BYTES)
    slot = wire.Slot(memory, 0)
    marks = []
    for name in (b"checkout", b"checkout", b"refund"):
        slot.enter(RUN.bytes, 1, 1000, b"charge")
        slot.leave()
        for _ in range(2):
            slot.code(RUN.bytes, name)
            marks.append(bytes(memory[: layout.MARK_BYTES]))
            slot.leave()
        *_, size, _, _, _, _, told = layout.slot_record.unpack(memory)
        assert told[:size] == name
    assert len(set(marks)) == len(marks)


def test_the_parent_says_for_how_long_code_has_held_the_loop(box: BlackBox) -> None:
    """The worker can't: it calls itself idle, and knows of no run."""
    page = box.page(0)
    page.born(5)
    page.batch(0.001, claimed=1, steps=0, ended=0, failures=0, live=0, draining=False)
    page.loop_slot.code(RUN.bytes, b"checkout")
    mark, on_main = box.code(0, os.getpid()) or (b"", False)
    assert mark[:16] == RUN.bytes and on_main and box.code(0, 999_999_999) is None
    assert (box.read(0).state, box.read(0).executing[0].for_s) == (layout.IDLE, 0)
    box.hold(0, mark, clock_us() - 5_000_000, ["app.py:7 in checkout", "app.py:7 in checkout"])
    read = box.read(0)
    (entry,) = read.executing
    assert (read.state, read.live, entry.workflow, entry.stack[0]) == (layout.BUSY, 1, "checkout", "app.py:7 in checkout") and 5 <= entry.for_s < 60
    # when it is killed for that, it is charged, and nothing beside it
    page.thread_slots[0].enter(OTHER.bytes, 3, 10, b"book")
    box.accuse(0, mark, 9)
    found = {each.run_id: each for each in box.inquest(0, os.getpid(), -9, ordered=False)}
    crash = json.loads(found[RUN].crash or b"")
    assert (crash["workflow"], crash["place"], crash["seq"]) == ("checkout", "app.py:7 in checkout", -1) and "held the loop for 5 s" in crash["message"]
    assert found[OTHER].crash is None and not found[OTHER].suspect
    # and code that has ended in that very moment charges nobody
    page = box.page(0)
    page.loop_slot.code(RUN.bytes, b"checkout")
    page.loop_slot.leave()
    page.thread_slots[0].enter(OTHER.bytes, 3, 10, b"book")
    box.accuse(0, mark, 9)
    assert [each.crash for each in box.inquest(0, os.getpid(), -9, ordered=False)] == [None]


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_says_how_its_worker_is(box: BlackBox) -> None:
    """What top and workers show."""
    page = box.page(1)
    page.born(17)
    assert box.read(1).state == layout.STARTING
    page.batch(0.003, claimed=10, steps=100, ended=4, failures=2, live=6, draining=False)
    page.batch(0.003, claimed=1, steps=150, ended=7, failures=2, live=0, draining=False)
    read = box.read(1)
    assert (read.pid, read.worker, read.generation, read.state) == (os.getpid(), 17, 1, layout.IDLE)
    assert (read.claimed, read.steps, read.ended, read.failures, read.commits, read.live) == (11, 150, 7, 2, 2, 0)
    assert sum(read.latency) == 2 and percentile_ms(read.latency, 0.5) == pytest.approx(3, abs=1.1)
    page.batch(1e9, claimed=0, steps=150, ended=7, failures=2, live=1, draining=True)
    assert box.read(1).state == layout.DRAINING
    page.lost()
    assert layout.STATES[box.read(1).state] == "database away"
    assert box.read(0).pid == 0


def test_the_log_ring_keeps_the_last_lines(box: BlackBox) -> None:
    """What a worker said last explains its death; it is read after kill -9."""
    page = box.page(0)
    ring = Ring(page)
    for number in range(100):
        ring.handle(logging.makeLogRecord({"msg": "line %d", "args": (number,), "levelname": "INFO"}))
    lines = box.read(0).log
    assert len(lines) == layout.LOG_LINES and lines[-1].endswith("I line 99") and lines[0].endswith("I line 36")
    ring.handle(logging.makeLogRecord({"msg": "ä" * 500}))
    assert len(box.read(0).log[-1].encode()) <= 2 * layout.LOG_LINE_BYTES
    ring.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "name": "shop"}))
    assert "shop could not be formatted" in box.read(0).log[-1]


def test_a_new_worker_finds_an_empty_page_and_the_last_crash(box: BlackBox) -> None:
    """A successor is not what its predecessor was executing; how that died stays."""
    page = box.page(0)
    page.thread_slots[0].enter(RUN.bytes, 1, 10, b"charge")
    page.say("the end")
    found = box.inquest(0, os.getpid(), -11, ordered=False)
    assert [(entry.step, entry.crash is not None) for entry in found] == [("charge", True)]
    assert json.loads(found[0].crash or b"")["log"] == ["the end"]
    read = box.read(0)
    assert read.executing == [] and read.log == [] and read.pid == 0
    assert read.crash is not None and (read.crash.code, read.crash.run_id, read.crash.step, read.crash.deaths) == (-11, RUN, "charge", 1)
    box.page(0).thread_slots[0].enter(OTHER.bytes, 1, 10, b"book")
    assert box.inquest(0, 999_999_999, -9, ordered=False) == [], "it died before it moved in: that is its predecessor's page"
    box.inquest(0, os.getpid(), -9, ordered=True)
    assert box.read(0).crash == read.crash, "an ordered kill is no crash"


def test_claims_without_marks_take_turns(box: BlackBox) -> None:
    assert box.look_behind(100.0) and not box.look_behind(100.5) and box.look_behind(101.1)


# ── from another process ─────────────────────────────────────────────────────────────────────────────────────────


def test_another_process_finds_it_until_its_parent_is_gone() -> None:
    """Nothing is left over: not by an exit, not by kill -9."""
    code = (
        "import os, sys, uuid\nfrom supervisor.host.blackbox import BlackBox\n"
        f"box = BlackBox(2, 3, uuid.UUID('{OTHER}'), 'shop')\npage = box.page(1)\npage.born(5)\nprint(flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        found = [each for each in boxes.look()[0] if each.pid == process.pid]
        assert len(found) == 1 and (found[0].supervisor, found[0].schema) == (OTHER, "shop")
        assert [(worker.page.number, worker.page.worker) for worker in found[0].workers] == [(1, 5)]
        assert found[0].workers[0].memory.resident_bytes > 1_000_000
    finally:
        process.kill()
        process.wait()
    assert not [each for each in boxes.look()[0] if each.pid == process.pid]


def test_another_layout_is_refused_in_words(box: BlackBox) -> None:
    """After an upgrade the old supervisor still runs: its box must not be read as something else."""
    path = f"/proc/self/fd/{box.fd}"
    assert boxes.read(path, os.getpid()) is not None
    for version, words in ((layout.VERSION + 1, "newer"), (layout.VERSION - 1, "older")):
        struct.pack_into("@I", box.memory, 8, version)
        with pytest.raises(boxes.BoxRefused, match=words):
            boxes.read(path, os.getpid())
        assert [error.version for error in boxes.look()[1] if error.pid == os.getpid()] == [version]


def test_what_is_no_black_box_is_none(tmp_path: Path, box: BlackBox) -> None:
    """A file of another program, one that is too short, and a box that somebody else's descriptor shows."""
    for content in (b"", b"x" * 5000):
        (tmp_path / "file").write_bytes(content)
        assert boxes.read(str(tmp_path / "file"), 1) is None
    assert boxes.read(f"/proc/self/fd/{box.fd}", os.getpid() + 1) is None


# ── who is blamed ────────────────────────────────────────────────────────────────────────────────────────────────

A = Executing(RUN, 1, 0.5, "a", "thread", thread=0xA1)
B = Executing(OTHER, 2, 0.5, "b", "thread", thread=0xB2)
TASK = Executing(uuid.UUID(int=3), 3, 9.0, "waits", "task", resting=True, thread=0xC3)
FAULT_IN_B = "Fatal Python error: Segmentation fault\n\nThread 0x00a1 (most recent call first):\n  File \"x\"\n\nCurrent thread 0x00b2 (most recent call first):\n  File \"y\"\n"
CASES: list[tuple[str, list[Executing], Death, str | None, str]] = [
    # what                                executing      death                                      charged, suspects
    ("the only one", [A], Death(-9), "a", ""),
    ("the only one that does not rest", [A, TASK], Death(-9), "a", ""),
    ("none that does not rest", [TASK], Death(-9), None, ""),
    ("two without a sign", [A, B, TASK], Death(-9), None, "ab"),
    ("two and a note", [A, B], Death(-9, note=Note(-9, OTHER, 2)), "b", ""),
    ("a note of a step that has ended", [A, B], Death(-9, note=Note(-9, OTHER, 1)), None, ""),
    ("a note of a signal that was survived", [A, B], Death(-9, note=Note(-10, OTHER, 2)), None, "ab"),
    ("two and the faulting thread", [A, B], Death(-11, last_words=FAULT_IN_B), "b", ""),
    ("a fault of a forked child, then kill -9", [A, B], Death(-9, last_words=FAULT_IN_B), None, "ab"),
    ("a fault of a forked child, then its own", [A, B], Death(-11, last_words=FAULT_IN_B.replace("b2", "a9") + FAULT_IN_B), "b", ""),
    ("a fault in a thread without a step", [A], Death(-11, last_words=FAULT_IN_B), None, ""),
    ("two and an exit code with a note", [A, B], Death(3, note=Note(3, RUN, 1)), "a", ""),
    ("an exit code zero that nobody ordered", [A], Death(0), "a", ""),
    ("killed by its parent", [A], Death(-9, ordered=True), None, ""),
    ("asked to end", [A], Death(-15), None, ""),
    ("ended by itself", [A], Death(69, ending=True), None, ""),
    ("out of memory", [A, TASK], Death(-9, oom=True), None, "a"),
    ("nothing executing", [], Death(-11), None, ""),
]


@pytest.mark.parametrize(("what", "executing", "death", "charged", "suspects"), CASES, ids=[case[0] for case in CASES])
def test_who_is_charged(what: str, executing: list[Executing], death: Death, charged: str | None, suspects: str) -> None:
    """At most one, and none where it is not known: a neighbour is never charged."""
    page = Page(0, 4242, 17, 1, layout.BUSY, 0, 0, executing=executing)
    found = inquest(page, death)
    assert [entry.step for entry in found if entry.crash] == ([charged] if charged else [])
    assert "".join(entry.step for entry in found if entry.suspect) == suspects
    assert [replace(entry, crash=None, suspect=False) for entry in found] == executing


def test_a_crash_record_is_what_postgresql_takes() -> None:
    """NUL and lone surrogates come in log lines; the record of a crash must not fail for them."""
    page = Page(0, 4242, 17, 1, layout.BUSY, 0, 0, executing=[A])
    death = Death(-signal.SIGSEGV, log=["nul \x00", "half \ud800"], last_words=FAULT_IN_B.replace("b2", "a1", 1))
    crash = inquest(page, replace(death, last_words=""))[0].crash
    assert crash is not None and b"\\u0000" not in crash and b"ud800" in crash
    facts = json.loads(crash)
    assert (facts["type"], facts["signal"], facts["worker"], facts["pid"], facts["step"], facts["exit_code"]) == ("WorkerCrash", "SIGSEGV", 17, 4242, "a", None)
    assert crash_fingerprint(crash) == crash_fingerprint(inquest(page, Death(-signal.SIGSEGV))[0].crash or b"")
    assert stack(FAULT_IN_B) == ["Fatal Python error: Segmentation fault", '  File "y"']


def test_kills_for_memory_are_counted(tmp_path: Path) -> None:
    """By the group's counter where it is readable, else the machine's."""
    counter = tmp_path / "memory.events"
    counter.write_text("oom 5\noom_kill 2\n")
    kills = OomKills([tmp_path / "missing", counter])
    assert not kills.happened()
    counter.write_text("oom 5\noom_kill 3\n")
    assert kills.happened() and not kills.happened()
    assert not OomKills([]).happened()


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rates_are_differences_of_two_looks() -> None:
    """A process that is new counts from zero, one that was replaced does not count backwards."""

    def look(at_s: int, pid: int, steps: int, slow: int) -> list[boxes.Box]:
        latency = tuple(100 if n == 10 else slow if n == 20 else 0 for n in range(layout.BUCKETS))
        page = Page(0, pid, 1, 1, layout.BUSY, 0, 0, steps=steps, ended=steps // 10, commits=5, latency=latency)
        return [boxes.Box(1, RUN, "shop", 0, [boxes.Process(page, boxes.Memory(1, steps / 1e4))], at_s * 1_000_000, layout.read_host(bytes(layout.HEADER_BYTES)), {})]

    total, each = rates(look(10, 7, 1000, 0), look(12, 7, 3000, 10))
    assert (total.steps_per_s, total.runs_per_s, total.cpu_percent) == (1000, 100, pytest.approx(10))
    assert total.p50_ms == pytest.approx(786, rel=0.01) and each[1, 0] == total
    replaced, _ = rates(look(10, 7, 1000, 0), look(12, 8, 30, 0))
    assert replaced.steps_per_s == 15
    # a second supervisor, which came later, takes nothing from the rate of the first
    later = boxes.Box(2, RUN, "shop", 11_000_000, look(12, 9, 500, 0)[0].workers, 12_000_000, layout.read_host(bytes(layout.HEADER_BYTES)), {})
    both, each = rates(look(10, 7, 1000, 0), [*look(12, 7, 3000, 0), later])
    assert both.steps_per_s == each[1, 0].steps_per_s + each[2, 0].steps_per_s == 1000 + 500
    nothing, _ = rates([], [])
    assert nothing.steps_per_s == 0 and nothing.p50_ms is None
