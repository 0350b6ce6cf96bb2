"""One run's history as lanes: bars on a common scale of time, in which long waits without any work are drawn short. Pure.

Units are thousandths of the width. Nothing here knows of HTML; a lane is a row of the journal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from supervisor.core.shown import duration

Row = dict[str, Any]

WIDTH = 1000.0
BAR_MIN = 3.0  # a step of a microsecond is seen, too
GAP_SHARE = 0.25  # a rest longer than this part of all work is drawn short
GAP_WIDTH = 120.0
TICKS = 4
LANE = 16
HEIGHTS = {"failed": 16, "crashed": 16, "backoff": 4, "timer": 6, "tick": 16}

# what an entry of the history is drawn as
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

    def ticks(self) -> list[str]:
        return [f"+{duration(self.moment(WIDTH * n / TICKS))}" if n else "0" for n in range(TICKS + 1)]


def scale(busy: Iterable[tuple[datetime, datetime]], began_at: datetime, until: datetime) -> Scale:
    """A scale from *began_at* to *until* on which the times outside of *busy* are short where they are long."""
    length = max((until - began_at).total_seconds(), 0.001)
    spans = _merged(((max((a - began_at).total_seconds(), 0.0), min((b - began_at).total_seconds(), length)) for a, b in busy), length)
    work = sum(end - begin for begin, end in spans)
    rests = [(a, b) for a, b in zip([0.0, *(end for _, end in spans)], [*(begin for begin, _ in spans), length]) if b > a]
    short = {rest for rest in rests if work and rest[1] - rest[0] > max(work * GAP_SHARE, 0.05)}
    plain_s = length - sum(end - begin for begin, end in short)
    width = min(GAP_WIDTH, WIDTH * 0.6 / len(short)) if short else 0.0
    per_s = (WIDTH - width * len(short)) / plain_s if plain_s > 0 else 0.0
    pieces, gaps, x = [], [], 0.0
    for begin, end in sorted([*short, *_between(short, length)]):
        right = x + (width if (begin, end) in short else (end - begin) * per_s)
        pieces.append((begin, end, x, right))
        if (begin, end) in short:
            gaps.append((x, right - x, f"nothing executes for {duration(end - begin)}; drawn short"))
        x = right
    return Scale(began_at, pieces or [(0.0, length, 0.0, WIDTH)], gaps)


def _merged(spans: Iterable[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """Spans that touch as one, each long enough to be seen."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        end = min(max(end, begin), length)
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _between(short: set[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """What lies outside of *short*."""
    found, at = [], 0.0
    for begin, end in sorted(short):
        if begin > at:
            found.append((at, begin))
        at = end
    if at < length:
        found.append((at, length))
    return found


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Drawn:
    lanes: Sequence[Lane]
    ticks: Sequence[str]
    gaps: Sequence[tuple[float, float, str]]


def drawn(steps: Sequence[Row], attempts: Sequence[Row], wait: Row | None, began_at: datetime, now: datetime) -> Drawn:
    """The rows of a window: finished entries, those that are not yet, and what the run waits for now."""
    lanes = {each["seq"]: Lane(each["seq"], each["name"], each["kind"], each["status"], each["started_at"], each["ended_at"], each) for each in steps}
    for each in attempts:
        lane = lanes.setdefault(each["seq"], Lane(each["seq"], each["name"], "step", "not yet", each["started_at"], None))
        lane.attempts.append(each)
        if lane.step is not None and each["kind"] == "skipped":
            lane.status = "skipped"
    if wait is not None and wait["seq"] is not None and wait["step"]:
        kind = {"timer": "timer", "signal": "signal", "child": "child", "update": "signal"}.get(wait["code"] or "", "step")
        lane = lanes.setdefault(wait["seq"], Lane(wait["seq"], wait["step"], kind, wait["status"], wait["since"], None))
        if lane.step is None:
            lane.status = wait["status"]
    ordered = [lanes[seq] for seq in sorted(lanes)]
    if not ordered:
        return Drawn([], [], [])
    since = None if wait is None else wait["since"]
    first = min([at for lane in ordered for at in [lane.began_at, *(each["started_at"] for each in lane.attempts)] if at] or [began_at])
    last = max([at for lane in ordered for at in [lane.ended_at, *(each["ended_at"] for each in lane.attempts)] if at] or [first])
    until = max(last, now) if any(lane.step is None for lane in ordered) else last
    made = scale(_busy(ordered, wait, now), first, max(until, first + timedelta(microseconds=1)))
    for lane in ordered:
        lane.bars = _bars(lane, made, wait if wait is not None and wait["seq"] == lane.seq else None, since, now)
    return Drawn(ordered, made.ticks(), made.gaps)


def _busy(lanes: Sequence[Lane], wait: Row | None, now: datetime) -> list[tuple[datetime, datetime]]:
    """When something was executing."""
    found = [(lane.began_at, lane.ended_at) for lane in lanes if lane.kind == "step" and lane.began_at and lane.ended_at and lane.step is not None]
    found += [(each["started_at"], each["ended_at"]) for lane in lanes for each in lane.attempts if each["kind"] in ("failed", "crashed") and each["ended_at"]]
    if wait is not None and wait["status"] == "running" and wait["since"]:
        found.append((wait["since"], now))
    return found


def _bars(lane: Lane, made: Scale, wait: Row | None, since: datetime | None, now: datetime) -> list[Bar]:
    bars = []
    for each in lane.attempts:
        if each["kind"] in ("failed", "crashed"):
            ended = each["ended_at"] or each["started_at"]
            bars.append(_bar(made, each["started_at"], ended, each["kind"], f"try {each['n']} {each['kind']} after {duration((ended - each['started_at']).total_seconds())}"))
            if each["next_retry_at"]:
                bars.append(_bar(made, ended, min(each["next_retry_at"], now), "backoff", f"backoff of {duration((each['next_retry_at'] - ended).total_seconds())}"))
        elif each["kind"] == "entrusted" and each["ended_at"]:
            bars.append(_bar(made, each["ended_at"], lane.ended_at or now, "signal", "waits for its token"))
        elif each["kind"] in ("skipped", "edited", "forgiven"):
            bars.append(_bar(made, each["started_at"], each["started_at"], "tick", each["kind"]))
    if lane.step is not None and lane.began_at and lane.ended_at:
        kind = "failed" if lane.status == "failed" else KINDS.get(lane.kind, "tick")
        if not (kind == "failed" and bars):
            bars.append(_bar(made, lane.began_at, lane.ended_at, kind, f"{lane.status}, {duration((lane.ended_at - lane.began_at).total_seconds())}"))
    elif wait is not None and since and wait["code"] not in ("step_backoff", "token"):  # whose tries have a bar already
        kind = "now" if wait["status"] == "running" else KINDS.get(lane.kind, "tick") if lane.kind != "step" else "backoff"
        bars.append(_bar(made, since, now, kind, f"{wait['meaning']}, for {duration((now - since).total_seconds())}"))
    return bars


def _bar(made: Scale, begin: datetime, end: datetime, kind: str, says: str) -> Bar:
    left = made.x(begin)
    width = max(made.x(end) - left, BAR_MIN)
    return Bar(round(min(left, WIDTH - width), 1), round(width, 1), kind, says)
