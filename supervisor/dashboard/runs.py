"""The list of runs: by the filter of the command line, newest first, a page at a time; and verbs on many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from supervisor.core.errors import FilterInvalid, ReadTimeout
from supervisor.core.filters import Filter, Order, parse_list
from supervisor.core.ids import id_time
from supervisor.core.shown import progress_words, run_as_json
from supervisor.dashboard import verbs
from supervisor.dashboard.page import Asked, Cell, Count, Link, Page, Pick, Pip, Refused, Search, Table, Took, When, json_of, run_link, runs_where, url
from supervisor.dashboard.why import PARKED
from supervisor.db.look import Found
from supervisor.db.pages import Look

Row = dict[str, Any]

PAGE_RUNS = 50
PICKED_MAX = 1000
SAVED = (
    ("All", ""),
    ("Live", "status in (ready, running, waiting, paused)"),
    ("Parked", f"wait in ({', '.join(PARKED)})"),
    ("Waiting over 5 min", "status = waiting AND waited > 5m"),
    ("Retrying", "wait = step_backoff"),
    ("Paused", "status = paused"),
    ("Failed today", "status in (failed, timed_out) AND age < 1d"),
    ("Running over 1 h", "status = running AND age > 1h"),
)


def page(look: Look, asked: Asked) -> Page:
    text = asked.get("q").strip()
    kept = look.rows("page_saved")
    named = [*SAVED, *((row["name"], row["filter"]) for row in kept)]
    search = Search(text, saved=[(name, url("/runs", q=words)) for name, words in named], kept=kept, may_keep=asked.may_operate)
    try:
        fits, order = parse_list(text) if text else (None, None)
        after = _run_id(asked.get("after"))
    except FilterInvalid as error:
        search.wrong = str(error)
        return Page("Runs", "runs", {"error": {"code": error.code, "message": str(error)}}, search=search, status=400)
    rows = look.apart(lambda: look.runs(fits, order, after, PAGE_RUNS + 1))  # one more says whether there is another page
    if isinstance(rows, Exception):
        return Page("Runs", "runs", {"error": {"message": str(rows)}}, search=search, panels=[Refused("Runs", str(rows))], said=look.said, status=503)
    return _listed(rows, text, search, after, look, asked, fits, order)


def _listed(rows: Found, text: str, search: Search, after: UUID | None, look: Look, asked: Asked, fits: Filter | None, order: Order | None) -> Page:
    reached, goes_on = rows.reached, rows.reached if len(rows) <= PAGE_RUNS else rows[PAGE_RUNS - 1]["run_id"]
    older = url("/runs", q=text, after=goes_on) if goes_on else None
    rows = Found(rows[:PAGE_RUNS])
    picks = asked.may_act
    columns = (*["choose"] * picks, "status", "run", "workflow", "key", "step", "started", "took", "in particular")
    table = Table("Runs", columns, [_cells(row, picks) for row in rows], empty="none as far as was looked" if reached else "no runs that fit" if fits or after else "no runs yet", note=_so_far(reached))
    bulk = [(verb, label) for verb, label in verbs.BULK if verb in ("cancel", "terminate") or asked.may_operate] if picks and order is None else []
    data = {"runs": [run_as_json(row) for row in rows], "complete": reached is None, "saved": search.kept, "next": json_of(older)}
    return Page("Runs", "runs", data, search=search, panels=[table], older=older, newest=url("/runs", q=text) if after else None, bulk=bulk, said=look.said)


def _run_id(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise FilterInvalid(text[:80], 0, 0, f"after={text[:80]!r} is no run's id", "leave it out") from None


def _cells(row: Row, picks: bool) -> list[Cell]:
    wait = row["wait"] if row["wait"] and row["wait"] != "queued" else None
    step = None if row["step"] is None else f"{row['seq']} {row['step']}" if row["seq"] is not None else row["step"]
    took = Took((row["ended_at"] - row["created_at"]).total_seconds()) if row["ended_at"] else None
    return [*([Pick(row["run_id"])] if picks else []), Pip(row["status"], wait), run_link(row["run_id"]), Link(row["workflow"], runs_where(workflow=row["workflow"])),
            row["key"], step, When(row["created_at"]), took, _particular(row)]  # fmt: skip


def _so_far(reached: UUID | None) -> str:
    """What is said of a page that is not full, and whose time was over before all was looked at."""
    return f"at least these: not all was looked at, only as far as a run that started at {id_time(reached).isoformat(timespec='seconds')}; “older” goes on from there" if reached is not None else ""


def _particular(row: Row) -> str | None:
    if row["error_type"] is not None:
        kind = str(row["error_type"]).rpartition(".")[2]
        text = f"{kind}: {row['error_message']}" if row["error_message"] else kind
        return text if len(text) <= 120 else text[:119] + "…"
    if row["progress"]:
        return progress_words(row["progress"])
    return f"try {row['attempt']}" if (row["attempt"] or 1) > 1 else None


# ── many runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def counted(look: Look, many: verbs.Many) -> tuple[int, list[Row]] | str:
    """How many runs a verb would be asked of, by workflow and status; or why that is not known."""
    rows = look.apart(lambda: look.counts(many.asked))
    if isinstance(rows, ReadTimeout):
        return "more than can be counted in the time that a page has; it is done slice by slice all the same"
    if isinstance(rows, Exception):
        raise rows
    return sum(row["runs"] for row in rows), rows


def dry(counts: tuple[int, list[Row]] | str) -> Table:
    rows: list[list[Cell]] = [] if isinstance(counts, str) else [[row["workflow"], Pip(row["status"]), Count(row["runs"])] for row in counts[1]]
    return Table("It would be asked of", ("workflow", "status", "runs"), rows, empty=counts if isinstance(counts, str) else "no run fits", note="" if isinstance(counts, str) else f"{counts[0]:,} runs")
