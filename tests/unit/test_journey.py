"""Where a run's time went, and its steps as bars: from rows of the views, for a moment that is given."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from supervisor.cli import family, journey
from supervisor.cli.why import FRAMES_SHOWN, detail_words, raised_at
from supervisor.db.history import History

BEGAN = datetime(2026, 11, 30, tzinfo=timezone.utc)
Row = dict[str, Any]


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def step(seq: int, begin: float, end: float, kind: str = "step", status: str = "completed", name: str = "") -> Row:
    return {"seq": seq, "name": name or f"{kind}{seq}", "kind": kind, "status": status, "started_at": at(begin), "ended_at": at(end)}


def tried(seq: int, n: int, begin: float, end: float, again: float | None = None, kind: str = "failed") -> Row:
    retry = None if again is None else at(again)
    return {"seq": seq, "n": n, "name": f"step{seq}", "kind": kind, "started_at": at(begin), "ended_at": at(end), "next_retry_at": retry}


def wait(code: str | None, seq: int | None, since: float, name: str | None = None) -> Row:
    return {"status": "waiting", "code": code, "seq": seq, "step": name, "since": at(since)}


def history(steps: list[Row], attempts: list[Row] | None = None, wait: Row | None = None, ended: float | None = None, audit: list[Row] | None = None) -> History:
    run = {"run_id": "r", "created_at": BEGAN, "ended_at": None if ended is None else at(ended), "queue": "q", "status": "completed", "parent_id": None}
    return History(run, wait, steps, attempts or [], audit=audit or [])


def spans(found: History, now: float) -> dict[int, list[tuple[str, float, float]]]:
    return {
        lane.seq: [(span.what, (span.begin - BEGAN).total_seconds(), (span.end - BEGAN).total_seconds()) for span in lane.spans]
        for lane in journey.lanes(found, at(now))
    }  # fmt: skip


FAILS_TWICE = [tried(1, 1, 2, 3, 10), tried(1, 2, 11, 12, 20)]
CASES: dict[str, tuple[History, float, dict[int, list[tuple[str, float, float]]]]] = {
    "each kind that takes time": (
        history([step(0, 1, 2), step(1, 2, 9, "timer"), step(2, 9, 10, "child"), step(3, 10, 12, "signal"), step(4, 12, 12, "child_start"), step(5, 12, 12, "patch")], ended=12), 99,
        {0: [("steps", 1, 2)], 1: [("sleep", 2, 9)], 2: [("children", 9, 10)], 3: [("signals", 10, 12)]},
    ),
    "tries, backoffs, then it completes": (
        history([step(1, 21, 22)], FAILS_TWICE, ended=22), 99,
        {1: [("failed tries", 2, 3), ("backoff", 3, 11), ("failed tries", 11, 12), ("backoff", 12, 21), ("steps", 21, 22)]},
    ),
    "the last try fails it": (
        history([step(1, 11, 12, status="failed")], [tried(1, 1, 2, 3, 10), tried(1, 2, 11, 12)], ended=12), 99,
        {1: [("failed tries", 2, 3), ("backoff", 3, 11), ("failed tries", 11, 12)]},
    ),
    "it waits for its retry now": (history([], FAILS_TWICE, wait("step_backoff", 1, 12)), 15, {1: [("failed tries", 2, 3), ("backoff", 3, 11), ("failed tries", 11, 12), ("backoff", 12, 15)]}),
    "it executes now": (history([], FAILS_TWICE, wait("step_running", 1, 21)), 30, {1: [("failed tries", 2, 3), ("backoff", 3, 11), ("failed tries", 11, 12), ("backoff", 12, 20), ("steps", 21, 30)]}),
    "a token holds it": (history([], [tried(0, 1, 1, 2, 90, "entrusted")], wait("token", 0, 2)), 7, {0: [("steps", 1, 2), ("tokens", 2, 7)]}),
    "a token held it": (history([step(0, 1, 8)], [tried(0, 1, 1, 2, 90, "entrusted")], ended=8), 99, {0: [("steps", 1, 2), ("tokens", 2, 8)]}),
    "it is parked": (history([], [tried(0, 1, 1, 2, kind="crashed")], wait("attempts_exhausted", 0, 5)), 7, {0: [("failed tries", 1, 2), ("parked", 5, 7)]}),
    "it waits where nothing is recorded": (history([], wait=wait("signal", 0, 4, "approved")), 6, {0: [("signals", 4, 6)]}),
    "nothing yet": (history([], wait=wait("queued", None, 0)), 6, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_went_on_when(name: str) -> None:
    found, now, expected = CASES[name]
    assert spans(found, now) == expected


def test_time_in_each_thing_counts_what_branches_do_at_once_once() -> None:
    found = history([step(0, 10, 20), step(1, 12, 25), step(2, 25, 85, "timer")], ended=90)
    assert journey.time_in(found, journey.lanes(found, at(99)), at(99)) == {"sleep": 60, "steps": 15, "queue": 10, "between": 5}
    paused = [{"n": n, "verb": verb, "at": at(when), "actor": "ann", "login": "x"} for n, verb, when in ((1, "pause", 30), (2, "pause", 31), (3, "resume", 40), (4, "pause", 50))]
    found = history([step(0, 0, 20)], wait=wait("run_paused", None, 50), audit=paused)
    assert journey.time_in(found, journey.lanes(found, at(60)), at(60)) == {"steps": 20, "between": 20, "pause": 20}


def test_nothing_yet_is_time_in_the_queue() -> None:
    found = history([], wait=wait("queued", None, 0))
    assert journey.time_in(found, [], at(6)) == {"queue": 6, "between": 0} and journey.gantt(found, at(6), 100) == []
    assert "now: waiting, queued for 6.0 s" in "\n".join(journey.journey(found, at(6)))


@pytest.mark.parametrize("columns", [40, 61, 100, 333])
def test_bars_fit_and_show_what_is_short(columns: int) -> None:
    """A week's sleep between two steps of a millisecond: both are seen, and the week is cut short."""
    found = history([step(0, 1, 1.001), step(1, 1.001, 604_800, "timer"), step(2, 604_800, 604_800.002), step(3, 604_800.002, 604_800.003)], FAILS_TWICE[:0], ended=604_801)
    lines = journey.gantt(found, at(700_000), columns)[1:-1]
    drawn = [line[line.index("│") + 1 : line.rindex("│")] for line in lines[1:]]
    assert max(map(len, lines[1:])) <= max(columns, 20 + 30) and len({len(bar) for bar in drawn}) == 1
    assert [bar.count("█") > 0 for bar in drawn] == [True, False, True, True] and "─" in drawn[1]
    assert (journey.CUT in drawn[1]) == ("cut short" in lines[0]) == (columns >= 61)
    if columns == 333:
        starts = [bar.index("█") for bar in (drawn[0], drawn[2], drawn[3])]
        assert starts == sorted(set(starts)) and starts[1] > 10, "what is cut short leaves room for the rest"


def test_few_steps_are_in_true_proportion_over_an_axis() -> None:
    """What took a thousandth of the time has one column, not most of them: who looks at bars compares lengths."""
    found = history([step(0, 1, 3)], [tried(0, 1, 1, 1.0012, 90, "entrusted")], ended=3)
    _, _, bar, axis = journey.gantt(found, at(99), 100)
    assert (bar.count("█"), journey.CUT in bar) == (1, False) and bar.count("─") > 60
    failed = history([step(0, 1.055, 1.05505)], [tried(0, 1, 1, 1.00005, 1.055)], ended=2)
    assert [journey.gantt(failed, at(99), 100)[2].count(sign) for sign in "▓█"] == [1, 1]
    assert axis.split() == ["+1.0", "s", "+1.5", "s", "+2.0", "s", "+2.5", "s", "+3.0", "s"]
    assert axis.rstrip().endswith("+3.0 s") and len(axis) == bar.rindex("│") and axis.index("+1.0 s") == bar.index("│") + 1
    assert axis.index("+2.0 s") == pytest.approx((bar.index("│") + bar.rindex("│")) / 2, abs=1.5)


def test_times_of_branches_are_said_to_overlap() -> None:
    both = journey.journey(history([step(0, 0, 1.4, "timer"), step(1, 0.1, 1.5, "signal")], ended=1.7), at(9))[-1]
    assert both == "where the time went: sleep 1.4 s, signals 1.4 s, between 200 ms; some of it at the same time, it took 1.7 s"


def test_a_long_run_is_shown_by_its_ends() -> None:
    found = history([step(n, n, n + 1) for n in range(10_000)], [tried(n, 1, n, n + 0.5, n + 0.5) for n in range(0, 10_000, 2)], ended=10_000)
    lines = journey.gantt(found, at(10_000), 100)
    assert len(lines) == 2 + journey.LANES_SHOWN + 2 and f"… {10_000 - journey.LANES_SHOWN} more …" in "\n".join(lines) and lines[-2].startswith("9999")
    said = journey.journey(found, at(10_000))
    assert len(said) <= journey.EVENTS_SHOWN + 4 and "more …" in "\n".join(said)


def test_moments_that_go_back_do_not_break_it() -> None:
    """Clocks of two hosts: a step that ended before it began, a retry before its failure."""
    found = history([step(0, 5, 4), step(1, 3, 3)], [tried(2, 1, 9, 8, 1)], wait("step_backoff", 2, 12))
    assert journey.gantt(found, at(2), 80) and journey.journey(found, at(2))


def test_details_are_words() -> None:
    assert detail_words(None) == detail_words("") == []
    assert detail_words('{"waits_for": ["signal go at seq 0", "timer sleep at seq 1"], "of": 7, "signals": ["go"], "until": null}') == ["it waits for signal go at seq 0, timer sleep at seq 1, and 5 more"]
    assert detail_words('{"waits_for": ["child run a at seq 0"], "of": 1}; 0 of 1 ended') == ["it waits for child run a at seq 0", "0 of 1 ended"]
    assert detail_words('{"this_worker_knows": "a, b", "claims": 12}') == ["this worker knows: a, b", "claims: 12"]
    assert detail_words("worker 4, process 7 on h") == ["worker 4, process 7 on h"] and detail_words("[1]") == ["[1]"]
    assert detail_words('{"a\x1b": "\x1b[2J"}'.replace("\x1b", "\\u001b")) == ["a\\x1b: \\x1b[2J"]


def run_row(level: int, run_id: str, parent: str | None, seq: int | None = None, children: int = 0, **more: object) -> dict[str, object]:
    return {"level": level, "run_id": run_id, "started_id": run_id, "parent_id": parent, "seq": seq, "workflow": "w", "key": None, "status": "running", "wait": None, "step": None, "children": children, **more}


def test_the_tree_says_where_more_is() -> None:
    """Below a run with more children than are read, at the level where reading ends, above the first one, and where the terminal's lines end."""
    itself, children = run_row(0, "r", None, children=60, key="k"), [run_row(1, f"c{n}", "r", n) for n in range(40, 60)]
    found = History(itself, None, [], [], tree=[itself, *children])
    assert family.tree(found) == [], "its children are listed anyway"
    below = run_row(2, "g", "c59", 1, children=1000, started_id="f")
    lines = family.tree(History(itself, None, [], [], tree=[itself, *children[:-1], {**children[-1], "children": 1}, below]))
    assert lines[2:4] == ["w k  r  running  <- this run", "└─ w  c40  running"]
    assert lines[-4:] == ["└─ w  c59  running", "   └─ w  g  running, continued from f", "      └─ and at least 1,000 more: python -m supervisor list 'parent = g'", "└─ and 40 more: python -m supervisor list 'parent = r'"]
    above = [run_row(-2, "a", "further", 3), run_row(-1, "b", "a", 4)]
    lines = family.tree(History(itself, None, [], [], tree=[*above, run_row(0, "r", "b", 2, children=50), *(run_row(1, f"c{n}", "r", n) for n in range(50))]))
    assert lines[2:6] == ["above it: run further", "w  a  running", "└─ w  b  running", "   └─ w  r  running  <- this run"]
    assert len(lines) == 2 + family.SHOWN + 1 and lines[-1] == "and 14 lines more: --json"


def test_where_it_was_raised_is_said_by_the_lines_of_the_app() -> None:
    """The engine's are ours to read; of many the innermost say most."""
    frames = ["supervisor/_fastpath/loop.py", "/x/supervisor/engine/executors.py", "/app/shop.py", "/x/supervisor/core/codec.py"]
    trace = "".join(f'  File "{file}", line {n}, in f\n    code\n' for n, file in enumerate(frames))
    assert raised_at({"traceback": trace}, {"traceback": '  File "/app/bank.py", line 9, in pay\x1b\n'}) == ["  raised at /app/shop.py:2 in f", "  raised at /app/bank.py:9 in pay\\x1b"]
    deep = "".join(f'  File "/app/deep.py", line {n}, in f\n' for n in range(20))
    assert raised_at({"traceback": deep}) == ["  … 15 frames before these: --json", *(f"  raised at /app/deep.py:{n} in f" for n in range(20 - FRAMES_SHOWN, 20))]
    assert raised_at(None) == raised_at({"traceback": None}) == []
