"""One run's history as lanes: bars on a common scale of time, in which long waits without any work are drawn short. Pure.

Units are thousandths of the width. Nothing here knows of HTML; a lane is a row of the journal.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from supervisor.core.shown import detail_of, duration
from supervisor.core.spans import Stretch, rests

Row = dict[str, Any]

WIDTH = 1000.0
BAR_MIN = 3.0  # a step of a microsecond is seen, too
GAP_SHARE = 0.25  # a rest longer than this part of all work is drawn short
GAP_MIN = timedelta(milliseconds=50)
GAP_WIDTH = 120.0
TICKS = 4
LANE = 16
HEIGHTS = {"failed": 16, "crashed": 16, "backoff": 4, "timer": 6, "tick": 16}

# what an entry of the history is drawn as
# and what a run waits for now, where that is no step's next try
WAITS = {"timer": "timer", "child": "child", "concurrency": "timer", "rate_limited": "timer", "fairness": "timer", "debounce": "timer", "batch": "timer", "queued": "timer", "no_worker": "timer"}
LEGEND = {"work": "executes", "failed": "failed", "crashed": "ended its worker", "backoff": "between tries", "timer": "waits for a time", "signal": "waits for somebody", "child": "child runs", "now": "now", "tick": "noted"}
OPEN = {"timer": "timer", "signal": "signal", "child run": "child"}  # as the detail of a wait has them
_OPEN = re.compile(rf"({'|'.join(OPEN)}) (.*) at seq (\d+)", re.DOTALL)
KINDS = {"step": "work", "timer": "timer", "signal": "signal", "update": "signal", "child": "child", "child_start": "tick", "patch": "tick", "cancellation": "tick"}


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    kind: str
    says: str

    @property
    def height(self) -> int:
        """Kinds differ in height too, for whoever sees no colours."""
        return HEIGHTS.get(self.kind, 10)

    @property
    def top(self) -> int:
        return (LANE - self.height) // 2


@dataclass
class Lane:
    """One entry: what is in its row, and its bars."""

    seq: int
    name: str
    kind: str
    status: str
    began_at: datetime | None
    ended_at: datetime | None
    step: Row | None = None
    attempts: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    @property
    def tries(self) -> int:
        failed = sum(1 for each in self.attempts if each["kind"] == "failed")
        return failed + (1 if self.step is not None and self.step["status"] == "completed" and self.kind == "step" else 0)

    @property
    def crashes(self) -> int:
        return sum(1 for each in self.attempts if each["kind"] == "crashed")


@dataclass(frozen=True)
class Scale:
    """Moments to thousandths. `pieces`: (from, to, x, x) in seconds since the beginning; `gaps` are drawn short."""

    began_at: datetime
    pieces: Sequence[tuple[float, float, float, float]]
    gaps: Sequence[tuple[float, float, str]]

    def x(self, at: datetime) -> float:
        seconds = (at - self.began_at).total_seconds()
        index = min(max(bisect_right([piece[0] for piece in self.pieces], seconds) - 1, 0), len(self.pieces) - 1)
        begin, end, left, right = self.pieces[index]
        share = (seconds - begin) / (end - begin) if end > begin else 0.0
        return min(max(left + (right - left) * share, 0.0), WIDTH)

    def moment(self, x: float) -> float:
        """Seconds since the beginning at *x*."""
        for begin, end, left, right in self.pieces:
            if x <= right:
                return begin + (end - begin) * ((x - left) / (right - left) if right > left else 0.0)
        return self.pieces[-1][1]

    def ticks(self, since: datetime) -> list[str]:
        """Moments along it, as how long after *since*; finer where they would read the same."""
        before_s = (self.began_at - since).total_seconds()
        moments = [before_s + self.moment(WIDTH * n / TICKS) for n in range(TICKS + 1)]
        words = [after_words(s) for s in moments]
        return words if len(set(words)) == len(words) else [f"{s:+,.{_places(moments)}f} s" for s in moments]


def after_words(seconds: float) -> str:
    """How long after the run's start; before it for what a fork was given."""
    return f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"


def _places(moments: Sequence[float]) -> int:
    """Figures behind the point by which they differ."""
    return next((n for n in range(7) if len({round(s, n) for s in moments}) == len(moments)), 6)


def scale(busy: Iterable[Stretch], began_at: datetime, until: datetime) -> Scale:
    """A scale from *began_at* to *until*, which is later, on which the times outside of *busy* are short where they are long."""
    idle = rests(busy, began_at, until)
    work = until - began_at - sum((b - a for a, b in idle), timedelta())
    short = [(a, b) for a, b in idle if work and b - a > max(work * GAP_SHARE, GAP_MIN)]
    drawn = rests(short, began_at, until)
    width = min(GAP_WIDTH, WIDTH * 0.6 / len(short)) if short else 0.0
    per_s = (WIDTH - width * len(short)) / sum((b - a).total_seconds() for a, b in drawn) if drawn else 0.0
    pieces, gaps, x = [], [], 0.0
    for begin, end in sorted([*short, *drawn]):
        length = (end - begin).total_seconds()
        right = x + (width if (begin, end) in short else length * per_s)
        pieces.append(((begin - began_at).total_seconds(), (end - began_at).total_seconds(), x, right))
        if (begin, end) in short:
            gaps.append((x, right - x, f"nothing executes for {duration(length)}; drawn short"))
        x = right
    return Scale(began_at, pieces, gaps)


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Drawn:
    """`began_at`, `until`: what the scale is of; `pieces`: its pieces, in seconds after that."""

    lanes: Sequence[Lane]
    ticks: Sequence[str]
    gaps: Sequence[tuple[float, float, str]]
    began_at: datetime
    until: datetime
    pieces: Sequence[tuple[float, float, float, float]]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """What the kinds of its bars mean."""
        there = {bar.kind for lane in self.lanes for bar in lane.bars}
        return [(kind, words) for kind, words in LEGEND.items() if kind in there]


def drawn(steps: Sequence[Row], attempts: Sequence[Row], wait: Row | None, began_at: datetime, now: datetime, span: Stretch | None = None, children: Mapping[int, Row] | None = None, has: Callable[[int], bool] = lambda _: True) -> Drawn:
    """The rows of a window: finished entries, those that are not yet, and what the run waits for now, each of several. *span*: the time that is looked at, else all of theirs; *children*: by position; *has*: which positions are in the window."""
    beside = {seq: (name, kind) for seq, name, kind in _beside(wait)}
    lanes = {each["seq"]: Lane(each["seq"], each["name"], each["kind"], each["status"], each["started_at"], each["ended_at"], each) for each in steps}
    for each in attempts:
        lane = lanes.setdefault(each["seq"], Lane(each["seq"], each["name"], "step", "not yet", each["started_at"], None))
        lane.attempts.append(each)
        if lane.step is not None and each["kind"] == "skipped":
            lane.status = "skipped"
    if wait is not None and wait["seq"] is not None and wait["step"]:
        kind = beside[wait["seq"]][1] if wait["seq"] in beside else {"timer": "timer", "signal": "signal", "child": "child", "update": "signal"}.get(wait["code"] or "", "step")
        lane = lanes.setdefault(wait["seq"], Lane(wait["seq"], wait["step"], kind, wait["status"], wait["since"], None))
        if lane.step is None:
            lane.status = wait["status"]
    for seq, (name, kind) in beside.items():
        if not has(seq):
            continue
        child = (children or {}).get(seq, {"created_at": None, "ended_at": None})
        lanes.setdefault(seq, Lane(seq, name, kind, "waiting", child["created_at"], child["ended_at"]))
    ordered = [lanes[seq] for seq in sorted(lanes)]
    if not ordered:
        return Drawn([], [], [], began_at, now, [])
    since = None if wait is None else wait["since"]
    first = min([at for lane in ordered for at in [lane.began_at, *(each["started_at"] for each in lane.attempts)] if at] or [began_at])
    last = max([at for lane in ordered for at in [lane.ended_at, *(each["ended_at"] for each in lane.attempts)] if at] or [first])
    until = max(last, now) if any(lane.step is None for lane in ordered) else last
    first, until = span or (first, max(until, first + timedelta(microseconds=1)))
    made = scale(_busy(ordered, wait, now), first, until)
    for lane in ordered:
        spans = _spans(lane, wait if wait is not None and wait["seq"] == lane.seq else None, since, now)
        lane.bars = [_bar(made, begin, end, kind, says) for begin, end, kind, says in spans if end >= first and begin <= until]
    if span:
        ordered = [lane for lane in ordered if lane.bars]
    return Drawn(ordered, made.ticks(began_at), made.gaps, first, until, made.pieces)


def _beside(wait: Row | None) -> list[tuple[int, str, str]]:
    """Position, name and kind of what else a run waits for at the same time, as far as its detail names it."""
    found = (detail_of(wait["detail"])[0] or {}).get("waits_for") if wait is not None and wait["status"] == "waiting" else None
    matches = [match for each in (found if isinstance(found, list) else []) if (match := _OPEN.fullmatch(str(each)))]
    return [(int(match[3]), match[2], OPEN[match[1]]) for match in matches]


def _busy(lanes: Sequence[Lane], wait: Row | None, now: datetime) -> list[tuple[datetime, datetime]]:
    """When something was executing."""
    found = [(lane.began_at, lane.ended_at) for lane in lanes if lane.kind == "step" and lane.began_at and lane.ended_at and lane.step is not None]
    found += [(each["started_at"], each["ended_at"]) for lane in lanes for each in lane.attempts if each["kind"] in ("failed", "crashed") and each["ended_at"]]
    if wait is not None and wait["status"] == "running" and wait["since"]:
        found.append((wait["since"], now))
    return found


def _spans(lane: Lane, wait: Row | None, since: datetime | None, now: datetime) -> list[tuple[datetime, datetime, str, str]]:
    """What went on in it: from when, until when, as what it is drawn, and in words."""
    spans = []
    for each in lane.attempts:
        if each["kind"] in ("failed", "crashed"):
            ended = each["ended_at"] or each["started_at"]
            spans.append((each["started_at"], ended, each["kind"], f"try {each['n']} {each['kind']} after {_length(each['started_at'], ended)}"))
            if each["next_retry_at"]:
                spans.append((ended, min(each["next_retry_at"], now), "backoff", f"backoff of {_length(ended, each['next_retry_at'])}"))
        elif each["kind"] == "entrusted" and each["ended_at"]:
            spans.append((each["ended_at"], lane.ended_at or now, "signal", "waits for its token"))
        elif each["kind"] in ("skipped", "edited", "forgiven"):
            spans.append((each["started_at"], each["started_at"], "tick", each["kind"]))
    if lane.step is not None and lane.began_at and lane.ended_at:
        kind = "failed" if lane.status == "failed" else KINDS.get(lane.kind, "tick")
        if not (kind == "failed" and spans):
            spans.append((lane.began_at, lane.ended_at, kind, f"{lane.status}, {_length(lane.began_at, lane.ended_at)}"))
    elif wait is not None and since and wait["code"] not in ("step_backoff", "token"):  # whose tries have a bar already
        kind = "now" if wait["status"] == "running" else WAITS.get(wait["code"], "signal")
        spans.append((since, now, kind, f"{wait['meaning']}, for {_length(since, now)}"))
    elif wait is None and lane.status == "waiting":
        begun = lane.began_at or now  # when a timer or a signal beside the first one began is nowhere until it ends
        until = lane.ended_at or now
        says = f"the {lane.kind} has ended" if lane.ended_at else f"waits for the {lane.kind}"
        spans.append((begun, until, KINDS[lane.kind], says + (f", after {_length(begun, until)}" if lane.ended_at else f", for {_length(begun, until)}" if lane.began_at else "")))
    return spans


def _length(begin: datetime, end: datetime) -> str:
    return duration((end - begin).total_seconds())


def _bar(made: Scale, begin: datetime, end: datetime, kind: str, says: str) -> Bar:
    left = made.x(begin)
    width = max(made.x(end) - left, BAR_MIN)
    return Bar(round(min(left, WIDTH - width), 1), round(width, 1), kind, says)
