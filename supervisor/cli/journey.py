"""Where a run's time went: what happened when, how long it was in what, and its steps with their tries as bars of text.

Pure: rows of a History and a moment in, lines out. What is not stored is not guessed: between two records a run was on its way, in a queue or on a worker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from supervisor.cli.output import duration, plain, table
from supervisor.core.spans import rests

if TYPE_CHECKING:
    from supervisor.db.history import History

Row = dict[str, Any]
EVENTS_SHOWN, LANES_SHOWN = 20, 40
NAME_SHOWN, BAR_MIN = 28, 20
IDLE_CELLS, IDLE_SHARE = 6, 0.25
CUT_FOR, CUT_BELOW = 3, 0.1  # steps that executed, and the share of the bar that they would have in true proportion
BARS = {"steps": "█", "failed tries": "▓", "backoff": "░"}  # all else is a wait
WAIT_BAR, NOW, CUT = "─", "▶", "┄"
OF_KIND = {"step": "steps", "timer": "sleep", "child": "children", "signal": "signals"}  # others of steps take no time
OF_CODE = {
    "step_running": "steps", "step_backoff": "backoff", "timer": "sleep", "child": "children", "signal": "signals", "token": "tokens", "any_of": "several things",
    "run_paused": "pause", "queued": "queue", "no_worker": "queue", "queue_paused": "queue",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """What went on from *begin* to *end*; open: until now."""

    what: str
    begin: datetime
    end: datetime
    open: bool = False


@dataclass
class Lane:
    """A line of the bars: one position of the run."""

    seq: int
    name: str
    spans: list[Span] = field(default_factory=list)
    failed: int = 0


# ── what went on when ────────────────────────────────────────────────────────────────────────────────────────────


def lanes(found: History, now: datetime) -> list[Lane]:
    """One lane for each position that took time, in their order."""
    made: dict[int, Lane] = {}
    ends = {each["seq"]: each for each in found.steps}
    for seq, tries in _by_seq(found.attempts).items():
        lane = made.setdefault(seq, Lane(seq, tries[0]["name"]))
        lane.failed = sum(each["kind"] in ("failed", "crashed") for each in tries)
        lane.spans += _tries(tries, ends.get(seq), now)
    for seq, step in ends.items():
        what = OF_KIND.get(step["kind"])
        lane = made.get(seq) or Lane(seq, step["name"])
        if what and not (lane.failed and step["status"] == "failed") and not any(span.what == "tokens" for span in lane.spans):
            made[seq] = lane
            lane.spans.append(Span(what if step["status"] == "completed" or what != "steps" else "failed tries", step["started_at"], step["ended_at"]))
    if (present := _present(found, now)) is not None:
        made.setdefault(present.seq, present).spans += [] if made.get(present.seq) is present else _beyond(made[present.seq], present.spans[0])
    return [made[seq] for seq in sorted(made) if made[seq].spans]


def _by_seq(attempts: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for each in attempts:
        if each["kind"] in ("failed", "crashed", "entrusted"):
            found[each["seq"]].append(each)
    return {seq: sorted(tries, key=lambda row: row["started_at"]) for seq, tries in found.items()}


def _tries(tries: list[Row], end: Row | None, now: datetime) -> list[Span]:
    """Each failed try and the time until the next one; of one that a token holds, the wait for it."""
    spans = []
    for each, after in zip(tries, [*tries[1:], None]):
        ended = each["ended_at"] or each["started_at"]
        if each["kind"] == "entrusted":
            spans += [Span("steps", each["started_at"], ended), Span("tokens", ended, end["ended_at"] if end else now, end is None)]
            continue
        spans.append(Span("failed tries", each["started_at"], ended))
        begins = after["started_at"] if after else end["started_at"] if end else None
        if each["next_retry_at"] and (begins is None or begins > ended):
            spans.append(Span("backoff", ended, begins or min(each["next_retry_at"], now), begins is None and each["next_retry_at"] > now))
    return spans


def _present(found: History, now: datetime) -> Lane | None:
    """What it is in at this moment, where that is a thing of one position."""
    wait = found.wait
    if wait is None or wait["code"] is None or wait["seq"] is None or wait["seq"] < 0:
        return None
    return Lane(wait["seq"], wait["step"] or wait["code"], [Span(OF_CODE.get(wait["code"], "parked"), wait["since"], now, True)])


def _beyond(lane: Lane, present: Span) -> list[Span]:
    """*present*, unless what is recorded has it already."""
    return [] if any(span.open for span in lane.spans) else [present]


def pauses(found: History, now: datetime) -> list[Span]:
    """From each pause to what ended it."""
    spans, since = [], None
    for each in sorted((row for row in found.audit if row["verb"] in ("pause", "resume")), key=lambda row: row["n"]):
        if each["verb"] == "pause":
            since = since or each["at"]
        elif since:
            spans.append(Span("pause", since, each["at"]))
            since = None
    if since and found.wait and found.wait["code"] == "run_paused":
        spans.append(Span("pause", since, now, True))
    return spans


def time_in(found: History, drawn: Sequence[Lane], now: datetime) -> dict[str, float]:
    """Seconds in each thing, the longest first; what branches do at one time counts once for each thing."""
    by_what: dict[str, list[Span]] = defaultdict(list)
    for span in [*(span for lane in drawn for span in lane.spans), *pauses(found, now), *_queue(found, drawn, now)]:
        by_what[span.what].append(span)
    found_s = {what: _union_s(spans) for what, spans in by_what.items()}
    rest_s = _union_s([Span("", found.run["created_at"], found.run["ended_at"] or now)]) - _union_s([span for spans in by_what.values() for span in spans])
    return dict(sorted({**found_s, "between": rest_s}.items(), key=lambda item: -item[1]))


def _queue(found: History, drawn: Sequence[Lane], now: datetime) -> list[Span]:
    """From the start to the first thing that it did."""
    begun = [span.begin for lane in drawn for span in lane.spans]
    waits = found.wait is not None and found.wait["code"] in ("queued", "no_worker", "queue_paused")
    end = min(begun) if begun else now if waits else None
    return [Span("queue", found.run["created_at"], end)] if end and end > found.run["created_at"] else []


def _union_s(spans: Iterable[Span]) -> float:
    total, reached = 0.0, None
    for span in sorted(spans, key=lambda each: each.begin):
        begin = span.begin if reached is None or span.begin > reached else reached
        if span.end > begin:
            total += (span.end - begin).total_seconds()
        reached = max(span.end, reached or span.end)
    return total


# ── as lines ─────────────────────────────────────────────────────────────────────────────────────────────────────


def journey(found: History, now: datetime) -> list[str]:
    """What happened, with moments and how long after the start; then where the time went."""
    drawn = lanes(found, now)
    events = sorted(_events(found, drawn, now), key=lambda each: each[0])
    if len(events) > EVENTS_SHOWN:
        head, tail = events[: EVENTS_SHOWN // 2], events[-EVENTS_SHOWN // 2 :]
        events = [*head, (tail[0][0], f"… {len(events) - EVENTS_SHOWN} more …"), *tail]
    began = found.run["created_at"]
    rows = [(_moment(at), f"+{duration((at - began).total_seconds())}", what) for at, what in events]
    spent = {what: s for what, s in time_in(found, drawn, now).items() if s >= 0.001}
    went = ", ".join(f"{what} {duration(s)}" for what, s in spent.items())
    whole_s = ((found.run["ended_at"] or now) - began).total_seconds()
    beside = f"; some of it at the same time, it took {duration(whole_s)}" if sum(spent.values()) > 1.05 * whole_s else ""
    return ["", table(("when", "after", "what happened"), rows), *([f"where the time went: {went}{beside}"] if went else [])]


def _moment(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}Z"


def _events(found: History, drawn: Sequence[Lane], now: datetime) -> list[tuple[datetime, str]]:
    run = found.run
    events = [(run["created_at"], f"started, in queue {plain(run['queue'])}")]
    begun = [(span.begin, lane) for lane in drawn for span in lane.spans]
    if begun:
        first, lane = min(begun, key=lambda each: each[0])
        events.append((first, f"its first step began: {plain(lane.name)}"))
    for lane in drawn:
        events += _of_lane(lane)
    events += [(each["sent_at"], f"signal {plain(each['name'])} came in") for each in found.signals]
    events += [(each["at"], " ".join([plain(each["verb"]).replace("_", " "), "by", plain(each["actor"] or each["login"])])) for each in found.audit]
    if found.wait is None:
        events.append((run["ended_at"], f"{run['status']}"))
    else:
        events.append((now, f"now: {found.wait['status']}" + (f", {found.wait['code']} for {_for(found.wait['since'], now)}" if found.wait["code"] else "")))
    return events


def _for(since: datetime, now: datetime) -> str:
    return duration((now - since).total_seconds())


def _of_lane(lane: Lane) -> list[tuple[datetime, str]]:
    """Failures, and waits that are over and took a second."""
    events = []
    failed = [span for span in lane.spans if span.what == "failed tries"]
    if failed:
        times = "" if len(failed) == 1 else f" {len(failed)} times"
        events.append((failed[0].end, f"{plain(lane.name)} (seq {lane.seq}) failed{times}"))
    waits = [span for span in lane.spans if span.what not in BARS and not span.open and span.end - span.begin >= timedelta(seconds=1)]
    return events + [(span.end, f"{plain(lane.name)} (seq {lane.seq}): had waited {_for(span.begin, span.end)}") for span in waits]


def gantt(found: History, now: datetime, columns: int) -> list[str]:
    """Its steps with their tries as bars, in at most *columns*, over an axis of times since the start; a bar has one column at least.

    Where several steps would share few columns beside a long wait, what nothing executed in is cut short, and drawn so.
    """
    drawn = lanes(found, now)
    if not drawn:
        return []
    shown = drawn if len(drawn) <= LANES_SHOWN else [*drawn[: LANES_SHOWN // 4], *drawn[-LANES_SHOWN * 3 // 4 :]]
    name = min(NAME_SHOWN, max(len(plain(lane.name)) for lane in shown))
    number = len(str(shown[-1].seq))
    frame = number + name + 6 + max(len(_took(lane)) for lane in shown)
    scale = Scale.over([span for lane in shown for span in lane.spans], max(BAR_MIN, columns - frame), sum(any(span.what == "steps" for span in lane.spans) for lane in shown) >= CUT_FOR)
    lines = ["", f"{'':{number}}  {'█ executes  ▓ failed  ░ until its retry  ─ waits' + (f'  {CUT} cut short' if scale.cut else '')}"]
    for at, lane in enumerate(shown):
        if len(shown) < len(drawn) and at == LANES_SHOWN // 4:
            lines.append(f"{'':{number}}  … {len(drawn) - len(shown)} more …")
        lines.append(f"{lane.seq:{number}}  {_cut(plain(lane.name), name):{name}} │{scale.bar(lane.spans)}│ {_took(lane)}")
    return [*lines, f"{'':{number}}  {'':{name}}  {scale.axis(found.run['created_at'])}"]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _took(lane: Lane) -> str:
    took = duration(_union_s(lane.spans))
    return f"{took}, {lane.failed} failed" if lane.failed else took


class Piece(NamedTuple):
    """A stretch of time, and how many columns it has; cut: fewer than its length."""

    begin: datetime
    end: datetime
    cells: int
    cut: bool


@dataclass(frozen=True)
class Scale:
    """Moments as columns, piece by piece; long stretches in which nothing executed have few."""

    pieces: Sequence[Piece]

    @property
    def cut(self) -> bool:
        return any(piece.cut for piece in self.pieces)

    @classmethod
    def over(cls, spans: Sequence[Span], columns: int, several: bool = True) -> Scale:
        begin, end = min(span.begin for span in spans), max(span.end for span in spans)
        whole_s = max((end - begin).total_seconds(), 1e-6)
        executed = ((span.begin, span.end) for span in spans if span.what in ("steps", "failed tries"))
        idle = [(a, b) for a, b in rests(executed, begin, end) if (b - a).total_seconds() > IDLE_SHARE * whole_s] if columns > 4 * IDLE_CELLS and several else []
        busy_s = whole_s - sum((b - a).total_seconds() for a, b in idle)
        if not idle or busy_s <= 0 or busy_s > CUT_BELOW * whole_s:
            return cls([Piece(begin, end, columns, False)])
        busy = rests(idle, begin, end)
        left = columns - IDLE_CELLS * len(idle)
        cells = [max(1, int(left * (b - a).total_seconds() / busy_s)) for a, b in busy]
        cells[cells.index(max(cells))] += left - sum(cells)
        return cls(sorted([*(Piece(a, b, each, False) for (a, b), each in zip(busy, cells)), *(Piece(a, b, IDLE_CELLS, True) for a, b in idle)]))

    def column(self, at: datetime) -> int:
        column = 0
        for begin, end, cells, _ in self.pieces:
            if at <= end:
                length = (end - begin).total_seconds()
                return column + (min(cells - 1, int(cells * max(0.0, (at - begin).total_seconds()) / length)) if length > 0 else 0)
            column += cells
        return column - 1

    def axis(self, began: datetime) -> str:
        """Times since *began*: at the ends and the quarters, or where a cut begins and ends."""
        width = sum(piece.cells for piece in self.pieces)
        begin, end = self.pieces[0].begin, self.pieces[-1].end
        marks = [piece.begin for piece in self.pieces] if self.cut else [begin + quarter * (end - begin) / 4 for quarter in range(4)]
        last = f"+{duration((end - began).total_seconds())}"
        line = ""
        for at in marks:
            label, column = f"+{duration((at - began).total_seconds())}", self.column(at + timedelta(microseconds=1)) if at > begin else 0
            if (column > len(line) or not line) and column + len(label) < width - len(last):
                line = f"{line:{column}}{label}"
        return f"{line:{max(0, width - len(last))}}{last}"

    def bar(self, spans: Sequence[Span]) -> str:
        """What executed stands over what waited, so that a short try is seen."""
        cells = [" "] * sum(piece.cells for piece in self.pieces)
        for span in sorted(spans, key=lambda each: (each.what in ("failed tries", "steps"), each.begin)):
            first, last = self.column(span.begin), self.column(span.end)
            cells[first : last + 1] = [BARS.get(span.what, WAIT_BAR)] * (last + 1 - first)
            if span.open:
                cells[last] = NOW
        column = 0
        for piece in self.pieces:
            if piece.cut and cells[column + 2] not in (" ", NOW):
                cells[column + 2 : column + 4] = [CUT] * 2
            column += piece.cells
        return "".join(cells)
