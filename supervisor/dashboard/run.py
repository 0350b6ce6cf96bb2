"""The page of one run: why it does not move, its journey, its history in a window, its family, messages, state, and what was done to it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from supervisor.core.errors import ConfigInvalid, RunUnknown
from supervisor.core.families import Branch, branches, is_deep, unseen_above
from supervisor.core.shown import duration, place_of, progress_words
from supervisor.core.spans import Stretch
from supervisor.dashboard import timeline, verbs
from supervisor.dashboard.page import Asked, Cell, Code, Count, Facts, Failure, Json, Link, Page, Pip, Refused, Table, Text, Took, Twig, When, json_of, run_link, runs_where, short_id, url
from supervisor.dashboard.why import why
from supervisor.db.history import FROM_NOW_ON, TREE, one_of
from supervisor.db.pages import Asking, Look
from supervisor.db.statements import identifier
from supervisor.host import log_files, log_lines

Row = dict[str, Any]

WINDOW = 100  # entries of the history on a page
BEFORE_ALL = -1  # where stands what befell the code itself
SPAN_COUNTED = 10_000  # entries of a span of time that are counted
ATTEMPTS_MAX = 1000
PAYLOAD_CHARS = 2000  # of a payload in the window; its own page has all of it
LISTED, CHILDREN, DEEDS = 50, 100, 100
# what is listed beside the history: so many, which ones, and the view that has all
PARTS = {
    "children": (CHILDREN, "last", "children"), "signals": (LISTED, "newest", "signals"), "updates": (LISTED, "newest", "updates"), "tokens": (LISTED, "last", "tokens"),
    "compensations": (LISTED, "first", "compensations"), "audit": (DEEDS, "newest", "audits"),
}  # fmt: skip
USUAL_S, USUAL_RUNS, USUAL_KEPT = 60.0, 20, 500  # the median of so many stays so for that long; of so many workflows and versions
USUAL_OF = 2_000  # newest runs among which those of its workflow and version are looked for
COMPARED, DIFFERENCES = 1_000, 20  # entries of a fork that are compared with the other run's, and differences that are shown
LOG_LINES, LOG_BYTES = 50, 4 << 20  # that are looked for, in so much of the log's end
SPAN_MIN_S = 0.00001


@dataclass(frozen=True)
class Window:
    """What part of a history is looked at: entries from a position on, up to another or before one; or those of a span of time, from a position on."""

    start: int | None = None
    until: int | None = None
    before: int | None = None
    span: Stretch | None = None
    during: str = ""  # as the address has it

    @classmethod
    def of(cls, asked: Asked, began_at: datetime) -> Window:
        span = _span(asked.get("during"), began_at)
        start = _position(asked.get("from"))
        return cls(start, span=span, during=asked.get("during")) if span else cls(start, _position(asked.get("to")), _position(asked.get("before")))


@dataclass(frozen=True)
class Part:
    """What of a window is there: entries in their order, tries of theirs and of what has no entry yet between `low` and `high` (None: or later). `complete`: all entries that were asked for; `there`: how many those of a span of time are; `all_tries`: not the last ones alone."""

    steps: list[Row]
    attempts: list[Row]
    low: int
    high: int | None
    complete: bool
    there: int
    all_tries: bool

    def has(self, seq: int | None) -> bool:
        """Whether a position is in it."""
        return self.high is None or seq is None or self.low <= seq <= self.high


@dataclass
class Journal:
    """A window of the history: lanes, the payloads of their rows, and where the windows beside it are."""

    drawn: timeline.Drawn
    entries: int
    earlier: str | None
    later: str | None
    run_id: UUID
    window: Window
    begin_s: float  # of what is drawn, after the run's start
    end_s: float
    part: Part
    note: str  # on its tries

    @property
    def says(self) -> str:
        """The span that is looked at, and how much of it."""
        span = f"from {timeline.after_words(self.begin_s)} to {timeline.after_words(self.end_s)}"
        if self.part.complete:
            return span
        most = f"{self.part.there:,}" if self.part.there < SPAN_COUNTED else f"at least {self.part.there:,}"
        return f"{span}: the first {len(self.part.steps)} of {most}" + (f" from {self.window.start} on" if self.window.start else "")

    @property
    def first(self) -> str:
        """The same span from its beginning on."""
        return url(f"/runs/{self.run_id}", during=self.window.during)

    @property
    def moves(self) -> list[tuple[str, str, str]]:
        """Other spans of time as key, words and link: larger, and once one is looked at smaller, beside it, and all."""
        length, middle = self.end_s - self.begin_s, (self.begin_s + self.end_s) / 2
        found = [("+", "zoom in", self.during(middle - length / 4, middle + length / 4))]
        if self.window.span:
            found += [("-", "zoom out", self.during(middle - length, middle + length)), ("[", "← before", self.during(self.begin_s - length / 2, self.end_s - length / 2)),
                      ("]", "after →", self.during(self.begin_s + length / 2, self.end_s + length / 2)), ("0", "all of it", f"/runs/{self.run_id}#journal")]  # fmt: skip
        return found

    def during(self, begin_s: float, end_s: float) -> str:
        """The page with that span of time looked at."""
        return url(f"/runs/{self.run_id}", during=f"{begin_s:.6f},{max(end_s, begin_s + SPAN_MIN_S):.6f}") + "#journal"

    def of_lane(self, lane: timeline.Lane) -> str | None:
        """The page with one entry's time looked at, and some room beside it."""
        times = [at for at in (lane.began_at, lane.ended_at, *(each["started_at"] for each in lane.attempts), *(each["ended_at"] for each in lane.attempts)) if at]
        if not times:
            return None
        begin_s, end_s = (self.begin_s + (at - self.drawn.began_at).total_seconds() for at in (min(times), max(times) if lane.ended_at else self.drawn.until))
        room_s = max((end_s - begin_s) * 0.1, SPAN_MIN_S)
        return self.during(begin_s - room_s, end_s + room_s)


def page(look: Look, asked: Asked) -> Page:
    which = asked.params["run"]
    run = _by_id(look, which)
    if run is None:
        named = _named(look, which)
        if len(named) > 1:
            return _several(look, which, named)
        run = _keyed(look, which, named)
    run_id, now = run["run_id"], datetime.now(timezone.utc)
    window = Window.of(asked, run["created_at"])
    usual = _usual(look, run)
    facts = look.together(_asked_of(run, window, now, usual))
    if "usual" in facts:
        usual = facts["usual"][0]
        _remember(look, run, usual)
    wait = next(iter(facts.get("wait", ())), None)
    pause = next(iter(facts["pause"]), None) if wait else None
    usual = usual if wait else None
    cut = {name for name, (most, _, _) in PARTS.items() if len(facts[name]) > most}
    facts |= {name: facts[name][: PARTS[name][0]] for name in cut}
    kinds, beats, backoffs = facts["kinds"], facts["beats"], facts["backoffs"][0]
    part, attempts = _part(look, run_id, window, kinds, facts["steps"], wait)
    place = place_of(sum(each["entries"] for each in kinds), usual, run["progress"]) if wait else None
    children = {each["seq"]: each for each in facts["children"]}
    journal = _journal(run, wait, part, kinds, now, window, children, f"tries: {_all_in(look, run_id, ATTEMPTS_MAX, 'last', 'attempts')}")
    data, panels = _around(look, run, asked, facts, cut)
    by = next(iter(facts["schedule"]), None)
    return Page(
        title=f"{run['workflow']} {run['key'] or str(run_id)[-12:]}",
        nav="runs",
        template="detail",
        data={**run, "why": wait, "place": place, "usual": usual, "pause": pause, "heartbeats": beats, "kinds": kinds, "history": part.steps, "attempts": attempts, "complete": {"history": part.complete, "attempts": part.all_tries, **{name: name not in cut for name in PARTS}}, "next": json_of(journal.later), "schedule": by, "goes_on": facts["goes_on"], **data},
        lead=run["workflow"],
        crumbs=[*_facts(run), *_goes_on(facts["goes_on"]), *([("schedule", Link(by["schedule"], url("/schedule", name=by["schedule"]))), (f"its {by['kind']}", by["tick_at"].isoformat())] if by else [])],
        why=why(run, wait, attempts, pause, beats, place, data["cancellations"]),
        actions=verbs.offered(run, wait, attempts, data["tokens"], asked),
        journal=journal,
        panels=[_journey(run, wait, kinds, backoffs, now), *panels],
        said=look.said,
    )


def _remember(look: Look, run: Row, usual: Row) -> None:
    if usual["runs"] >= USUAL_RUNS:
        kept: dict[tuple[str, str | None], tuple[float, Row]] = look.remembered.setdefault("usual", {})
        if len(kept) >= USUAL_KEPT:
            kept.clear()
        kept[run["workflow"], run["version"]] = (time.monotonic() + USUAL_S, usual)


def _usual(look: Look, run: Row) -> Row | None:
    """What runs of its workflow and version come to, where a page has asked within the minute."""
    until, usual = look.remembered.get("usual", {}).get((run["workflow"], run["version"]), (0.0, None))
    return usual if until > time.monotonic() else None


def _asked_of(run: Row, window: Window, now: datetime, usual: Row | None) -> dict[str, Asking]:
    """What is asked of one run in one go."""
    run_id = run["run_id"]
    if window.span:
        steps: Asking = ("page_steps_during", run_id, *window.span, window.start or 0, WINDOW, PAYLOAD_CHARS, SPAN_COUNTED)
    elif window.start is not None or window.until is not None:
        steps = ("page_steps_from", run_id, window.start or 0, WINDOW, PAYLOAD_CHARS)
    else:
        steps = ("page_steps_before", run_id, window.before, WINDOW, PAYLOAD_CHARS)
    asked: dict[str, Asking] = {
        "kinds": ("page_kinds", run_id), "steps": steps, "beats": ("show_heartbeats", run_id),
        "backoffs": ("page_backoffs", run_id, run["ended_at"] or now), "tree": ("show_below", run_id, *TREE), "children": ("page_children", run_id, CHILDREN + 1), "signals": ("page_signals", run_id, LISTED + 1, PAYLOAD_CHARS),
        "updates": ("page_updates", run_id, LISTED + 1), "tokens": ("page_tokens", run_id, LISTED + 1), "published": ("show_published", run_id), "compensations": ("page_compensations", run_id, LISTED + 1),
        "cancellations": ("show_cancellations", run_id), "audit": ("show_audit", run_id, None, *FROM_NOW_ON, DEEDS + 1), "schedule": ("show_schedule", run_id), "goes_on": ("show_goes_on", run_id),
    }  # fmt: skip
    if run["ended_at"] is None:
        asked |= {"wait": ("show_wait", run_id), "pause": ("show_pause", run_id)}
        if usual is None:
            asked["usual"] = ("show_usual", run["workflow"], USUAL_OF, run["version"])
    if run["parent_id"]:
        asked["above"] = ("show_above", run_id, TREE[1])
    return asked


def found(look: Look, which: str) -> Row:
    """The run of that id; else, for ids make good keys, the one that the key names."""
    return _by_id(look, which) or _keyed(look, which, _named(look, which))


def _by_id(look: Look, which: str) -> Row | None:
    try:
        return look.first("show_run", UUID(which))
    except ValueError:
        return None


def _keyed(look: Look, key: str, named: Sequence[Row]) -> Row:
    """The only one that the key names."""
    run = look.first("show_run", one_of(key, [(each["run_id"], each["workflow"]) for each in named])) if named else None
    if run is None:
        raise RunUnknown(key)
    return run


def _named(look: Look, key: str) -> list[Row]:
    """The runs of every workflow that a key names."""
    return look.rows("show_same_key", key) if "\0" not in key else []


def _several(look: Look, key: str, named: Sequence[Row]) -> Page:
    """A key is one workflow's: of two, which is meant is for the visitor to say."""
    shown: list[list[Cell]] = [[each["workflow"], run_link(each["run_id"])] for each in named]
    table = Table("Runs", ("workflow", "run"), shown, note="a key names one run of each workflow")
    return Page(f"Key {key}", "runs", {"key": key, "runs": [*named]}, status=300, panels=[table], said=look.said)


def _goes_on(runs: Sequence[Row]) -> list[tuple[str, Cell]]:
    return [(each["how"], run_link(each["run_id"], f"{short_id(each['run_id'])} {each['status'].replace('_', ' ')}")) for each in runs]


def _facts(run: Row) -> list[tuple[str, Cell]]:
    made: list[tuple[str, Cell]] = [("run", Code(str(run["run_id"])))]
    if run["key"]:
        made.append(("key", Link(run["key"], runs_where(key=run["key"]))))
    made += [("queue", Link(run["queue"], runs_where(queue=run["queue"]))), ("priority", run["priority"]), ("version", run["version"])]
    if run["parent_id"]:
        made.append(("child of", run_link(run["parent_id"])))
    if run["forked_from"]:
        made.append(("forked from", run_link(run["forked_from"], f"{short_id(run['forked_from'])} " + _fork_place(run))))
    if run["worker"] is not None:
        made.append(("worker", Link(run["worker"], url("/workers"))))
    return [(name, cell) for name, cell in made if cell is not None]


# ── the history ──────────────────────────────────────────────────────────────────────────────────────────────────


def _part(look: Look, run_id: UUID, window: Window, kinds: Sequence[Row], rows: list[Row], wait: Row | None) -> tuple[Part, list[Row]]:
    """*rows*, which are those of *window*, as far as they fit on a page; and tries: of them, of what is not finished there, and of what the run waits for, wherever that is."""
    first, last = min((each["first"] for each in kinds), default=0), max((each["last"] for each in kinds), default=-1)
    there = rows[0]["there"] if window.span and rows else 0
    if window.span or window.start is not None or window.until is not None:
        rows = [row for row in rows if window.until is None or row["seq"] <= window.until]
        complete = len(rows) == there if window.span else len(rows) < WINDOW or rows[-1]["seq"] >= last
        low, high = window.start or BEFORE_ALL, window.until if complete else rows[-1]["seq"]
    else:
        rows = rows[::-1]
        complete = len(rows) < WINDOW or rows[0]["seq"] <= first
        low, high = rows[0]["seq"] if rows and not complete else BEFORE_ALL, None if window.before is None else window.before - 1
    steps = [_with_payload({name: value for name, value in row.items() if name != "there"}) for row in rows]
    shown = {row["seq"] for row in rows}
    asked = [*shown, *([wait["seq"]] if wait is not None and wait["seq"] is not None else [])]
    attempts, all_tries = _last(look.rows("page_attempts", run_id, asked, low, high, window.span[1] if window.span else None, ATTEMPTS_MAX + 1))
    part = Part(steps, [], low, high, complete, there, all_tries)
    part.attempts.extend(each for each in attempts if each["seq"] in shown or part.has(each["seq"]))
    return part, attempts


def _last(attempts: list[Row]) -> tuple[list[Row], bool]:
    """The last tries in their order, and whether they are all."""
    return attempts[ATTEMPTS_MAX - 1 :: -1], len(attempts) <= ATTEMPTS_MAX


def _position(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _span(text: str, began_at: datetime) -> Stretch | None:
    """A span of time as a link has it: from when to when, in seconds after the run's start."""
    begin, _, end = text.partition(",")
    try:
        begin_s, end_s = float(begin), float(end)
        return (began_at + timedelta(seconds=begin_s), began_at + timedelta(seconds=end_s)) if begin_s < end_s else None
    except (ValueError, OverflowError):
        return None


def _with_payload(row: Row) -> Row:
    """`payload`: what fits as a value; `cut`: its beginning, and of how many bytes, where it does not."""
    text, size = row.pop("payload"), row.pop("bytes")
    try:
        return {**row, "payload": None if text is None else json.loads(text), "cut": None}
    except (ValueError, RecursionError):
        return {**row, "payload": text, "cut": size}


def _journal(run: Row, wait: Row | None, part: Part, kinds: Sequence[Row], now: datetime, window: Window, children: dict[int, Row], note: str) -> Journal:
    entries, first, last = sum(each["entries"] for each in kinds), min((each["first"] for each in kinds), default=0), max((each["last"] for each in kinds), default=-1)
    steps = part.steps
    drawn = timeline.drawn(steps, part.attempts, wait if wait is not None and part.has(wait["seq"]) else None, run["created_at"], now, window.span, children, part.has)
    path = f"/runs/{run['run_id']}"
    later = None
    if steps and (not part.complete if window.span else steps[-1]["seq"] < last):
        later = url(path, **({"during": window.during} if window.span else {}), **{"from": steps[-1]["seq"] + 1})
    earlier = url(path, before=steps[0]["seq"]) if steps and steps[0]["seq"] > first and not window.span else None
    begin_s, end_s = ((at - run["created_at"]).total_seconds() for at in (drawn.began_at, drawn.until))
    return Journal(drawn, entries, earlier, later, run["run_id"], window, begin_s, end_s, part, "" if part.all_tries else note)


def _journey(run: Row, wait: Row | None, kinds: Sequence[Row], backoffs: Row, now: datetime) -> Facts:
    """Where its time went. Branches beside one another count each."""
    by = {each["kind"]: each for each in kinds}
    began = min((each["began_at"] for each in kinds), default=None)
    until = run["ended_at"] or now
    items: list[tuple[str, Cell]] = [("started", When(run["created_at"])), *([("first entry", When(began))] if began else [])]
    items.append(("ended" if run["ended_at"] else "now", When(until) if run["ended_at"] else f"after {duration((now - run['created_at']).total_seconds())}"))
    for kind, words in (("step", "in steps"), ("timer", "asleep"), ("signal", "waiting for signals"), ("child", "waiting for children")):
        if kind in by:
            items.append((words, f"{duration(by[kind]['seconds'])} in {by[kind]['entries']:,}"))
    if backoffs.get("failed"):
        items.append(("failed tries", Count(backoffs["failed"])))
    if backoffs.get("seconds"):
        items.append(("between tries", duration(backoffs["seconds"])))
    if backoffs.get("crashed"):
        items.append(("workers ended", Count(backoffs["crashed"])))
    if wait is not None and wait["since"]:
        items.append(("in this state", duration((now - wait["since"]).total_seconds())))
    if run["progress"]:
        items.append(("progress", progress_words(run["progress"])))
    return Facts("Journey", items, wide=True)


# ── beside the history ───────────────────────────────────────────────────────────────────────────────────────────


def _all_in(look: Look, run_id: UUID, most: int, which: str, view: str) -> str:
    """What is said where not all is listed, for whoever wants the rest."""
    return f"the {which} {most:,}; all: SELECT * FROM {identifier(look.schema)}.{view} WHERE run_id = '{run_id}'"


def _around(look: Look, run: Row, asked: Asked, facts: dict[str, list[Row]], cut: Set[str]) -> tuple[dict[str, Any], list[Any]]:
    run_id = run["run_id"]
    notes = {name: _all_in(look, run_id, *PARTS[name]) if name in cut else "" for name in PARTS}
    children, updates, tokens, published, undo, ends, audit = (facts[name] for name in ("children", "updates", "tokens", "published", "compensations", "cancellations", "audit"))
    signals, tree = [_with_payload(row) for row in facts["signals"]], [*facts.get("above", []), *facts["tree"]]
    data: dict[str, Any] = {"tree": tree, "children": children, "signals": signals, "updates": updates, "tokens": tokens, "published": published, "compensations": undo, "cancellations": ends, "audit": audit}
    panels: list[Any] = [Facts("Input and state", [
        ("input", Json(run["input"])),
        *([("attributes", Json(run["attributes"]))] if run["attributes"] else []),
        *[(f"published {each['key']}", Json(each["value"])) for each in published],
    ], wide=True)]  # fmt: skip
    if run["forked_from"]:
        data["fork"], table = _fork(look, run)
        panels.append(table)
    if is_deep(tree):
        panels.append(_tree(tree))
    panels += [_children(run, children, f"the last {CHILDREN}" if "children" in cut else "")] if children else []
    panels += _messages(signals, updates, tokens, notes)
    if undo:
        panels.append(Table("Undone before it ends", ("seq", "step", "of", "status", "ended"), [(each["seq"], each["name"], each["of_seq"], each["status"], When(each["ended_at"])) for each in undo], note=notes["compensations"]))
    panels.append(_deeds(audit, notes["audit"]))
    if asked.log_dir is not None:
        data["log"], text = _log(asked.log_dir, run_id)
        panels.append(text)
    return data, panels


def _fork(look: Look, run: Row) -> tuple[dict[str, Any], Table]:
    """What it differs in from the run whose history it was given: input, code, and the first entries from that place on."""
    origin_id, seq = run["forked_from"], run["forked_seq"]
    origin = look.first("show_run", origin_id)
    if origin is None:
        return {"forked_from": origin_id, "differences": None}, Table("Beside the run that it was forked from", (), (), empty="that run's history is not kept any more")
    start = seq if seq is not None else max((each["last"] + 1 for each in look.rows("page_kinds", origin_id)), default=0)
    rows = look.rows("page_differences", run["run_id"], origin_id, start, COMPARED, DIFFERENCES, PAYLOAD_CHARS)
    facts = {name: {"here": run[name], "there": origin[name]} for name in ("input", "workflow", "version", "status") if run[name] != origin[name]}
    drawn: list[list[Cell]] = [[name, None, Json(each["here"]) if name == "input" else each["here"], None, Json(each["there"]) if name == "input" else each["there"]] for name, each in facts.items()]
    drawn += [[_entry_name(row), *_entry(row, ""), *_entry(row, "other_")] for row in rows]
    note = f"{_fork_place(run)}; all before that was given to it" + (f"; the first {DIFFERENCES} differences" if len(rows) == DIFFERENCES else "")
    table = Table("Beside the run that it was forked from", ("what", "here", "its result", "there", "its result there"), drawn, empty="nothing differs", note=note, more=run_link(origin_id, "the run that it was forked from"))
    return {"forked_from": origin_id, "seq": seq, "facts": facts, "differences": rows}, table


def _fork_place(run: Row) -> str:
    return f"before the result of seq {run['forked_seq']}" if run["forked_seq"] is not None else "with all of its history"


def _entry_name(row: Row) -> str:
    names = [name for name in (row["name"], row["other_name"]) if name is not None]
    return f"{row['seq']} {' / '.join(dict.fromkeys(names))}"


def _entry(row: Row, whose: str) -> list[Cell]:
    """Status and payload of one side; nothing where it has no such entry."""
    if row[f"{whose}status"] is None:
        return ["no such entry", None]
    shown = _with_payload({"payload": row[f"{whose}payload"], "bytes": row[f"{whose}bytes"]})
    return [Pip(row[f"{whose}status"]), Json(shown["payload"], shown["cut"])]


def _log(folder: Path, run_id: UUID) -> tuple[list[Any], Text | Refused]:
    """Its last lines in the log directory of this host, as `show --logs` has them."""
    try:
        lines, all_read = log_files.last(folder, str(run_id).encode(), LOG_LINES, LOG_BYTES)
    except ConfigInvalid as error:
        return [], Refused("Log", str(error))
    mine = [line for line in lines if line.run in (str(run_id), None)]
    how_far = "of this host" if all_read else f"of this host, the last {LOG_LINES}" if len(lines) == LOG_LINES else f"of this host, in the last {LOG_BYTES >> 20} MiB of its log"
    return [msgspec.to_builtins(line) for line in mine], Text("Log", "".join(map(_log_line, mine)), note=f"lines {how_far}", empty="no line of this run; each host keeps those of the steps that it executed, and rotates old ones away")


def _log_line(line: log_lines.Line) -> str:
    """As `logs` prints it, without the run, which is the page's."""
    message = line.message if line.step is None else f"{line.message} [{line.step}, seq {line.seq}]"
    return log_lines.as_text(msgspec.structs.replace(line, run=None, message=message)).decode()


def _tree(tree: Sequence[Row]) -> Table:
    rows: list[list[Cell]] = []
    for depth, row, more, least in branches(tree):
        if more:
            rows.append([Twig(depth, Link(Branch(depth, row, more, least).words, runs_where(parent=row["run_id"]))), *[""] * 6])
            continue
        took = Took((row["ended_at"] - row["created_at"]).total_seconds()) if row["ended_at"] else None
        run = Twig(depth, run_link(row["run_id"]) if row["level"] else None, "" if row["started_id"] == row["run_id"] else "continued")
        rows.append([run, Pip(row["status"], row["wait"] if row["wait"] != "queued" else None), row["workflow"], row["key"], row["step"], When(row["created_at"]), took])
    further = unseen_above(tree)
    more_above = Link("the run above the first one", f"/runs/{further}") if further is not None else None
    return Table("Tree", ("run", "status", "workflow", "key", "step", "started", "took"), rows, note="from the root down; of each run the last ones that it started", more=more_above)


def _children(run: Row, children: Sequence[Row], note: str) -> Table:
    rows = [
        (each["seq"], Pip(each["status"], each["wait"] if each["wait"] != "queued" else None), run_link(each["run_id"]), each["workflow"], each["key"], each["step"], When(each["created_at"]),
         Took((each["ended_at"] - each["created_at"]).total_seconds() if each["ended_at"] else None))
        for each in children
    ]  # fmt: skip
    return Table("Children", ("seq", "status", "run", "workflow", "key", "step", "started", "took"), rows, note=note,
                 more=Link("all of them as a list", runs_where(parent=run["run_id"])))  # fmt: skip


def _messages(signals: Sequence[Row], updates: Sequence[Row], tokens: Sequence[Row], notes: Mapping[str, str]) -> list[Table]:
    made: list[Table] = []
    rows: list[tuple[Cell, ...]]
    if signals:
        rows = [(each["name"], When(each["sent_at"]), f"seq {each['seq']}" if each["seq"] is not None else "not yet", each["id"], Json(each["payload"], each["cut"])) for each in signals]
        made.append(Table("Signals", ("signal", "sent", "given to", "id", "payload"), rows, note=notes["signals"]))
    if updates:
        rows = [(each["name"], each["stage"], When(each["sent_at"]), each["id"], Json(each["payload"]), Failure(each["error"]) if each["error"] is not None else Json(each["result"])) for each in updates]
        made.append(Table("Updates", ("update", "stage", "sent", "id", "argument", "answer"), rows, note=notes["updates"]))
    if tokens:
        rows = [(each["seq"], each["step"], each["attempt"], each["state"], When(each["since"]), When(each["due_at"]), When(each["beat_at"])) for each in tokens]
        made.append(Table("Tokens", ("seq", "step", "try", "state", "since", "due", "heartbeat"), rows, note=notes["tokens"]))
    return made


def _deeds(audit: Sequence[Row], note: str) -> Table:
    rows: list[list[Cell]] = [[When(each["at"]), each["verb"], each["actor"] or each["login"], each["reason"], Json(each["details"]) if each["details"] else None] for each in audit]
    return Table("Done by people", ("when", "verb", "who", "why", "what"), rows, empty="nobody has done anything to this run", note=note)


# ── one entry, whole ─────────────────────────────────────────────────────────────────────────────────────────────


def step(look: Look, asked: Asked) -> Page:
    """One entry of a run's history: its whole payload, every try with its traceback."""
    run = found(look, asked.params["run"])
    seq = _position(asked.params["seq"])
    if seq is None:
        raise RunUnknown(f"{asked.params['run']} with a step at {asked.params['seq']}")
    entry = look.first("page_step", run["run_id"], seq)
    attempts, complete = _last(look.rows("page_attempts", run["run_id"], [seq], seq, seq, None, ATTEMPTS_MAX + 1))
    beats = [each for each in look.rows("show_heartbeats", run["run_id"]) if each["seq"] == seq]
    if entry is None and not attempts:
        raise RunUnknown(f"{run['run_id']} with anything recorded at {seq}")
    name = (entry or attempts[0])["name"]
    items: list[tuple[str, Cell]] = [("run", run_link(run["run_id"], run["run_id"]))]
    if entry is not None:
        items += [("kind", entry["kind"]), ("status", Pip(entry["status"])), ("began", When(entry["started_at"])), ("took", Took(entry["duration_ms"] / 1000)),
                  ("delivered as", f"number {entry['pos']}"), ("worker", entry["worker"])]  # fmt: skip
        items.append(("error", Failure(entry["error"])) if entry["error"] is not None else ("result", Json(entry["result"])))
    items += [("last heartbeat", When(each["at"])) for each in beats]
    rows = [(each["n"], each["kind"], When(each["started_at"]), When(each["ended_at"]), When(each["next_retry_at"]), each["worker"], each["fingerprint"], Failure(each["error"])) for each in attempts]
    tries = Table("Tries and what else is recorded", ("n", "what", "began", "ended", "next", "worker", "fingerprint", "error"), rows, empty="only its result is recorded: the first try succeeded",
                  note="" if complete else f"{_all_in(look, run['run_id'], ATTEMPTS_MAX, 'last', 'attempts')} AND seq = {seq}")  # fmt: skip
    data = {"run_id": run["run_id"], "step": entry, "attempts": attempts, "complete": complete, "heartbeats": beats}
    return Page(f"{seq} {name}", "runs", data, template="detail", lead=f"{name}", crumbs=[("workflow", run["workflow"]), ("position", seq)], panels=[Facts("This entry", items), tries], said=look.said)
