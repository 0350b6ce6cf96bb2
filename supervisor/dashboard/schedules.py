"""Schedules: which workflow is started when, and what became of its ticks. A list by name, and a page for each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from supervisor.api.schedules import ScheduleInfo
from supervisor.core.errors import ScheduleInvalid, ScheduleUnknown
from supervisor.core.shown import by_whom
from supervisor.dashboard import verbs
from supervisor.dashboard.page import Asked, Cell, Count, Facts, Json, Link, Page, Pip, Table, When, Why, json_of, run_link, runs_where, url
from supervisor.db.history import FROM_NOW_ON
from supervisor.db.pages import Look

Row = dict[str, Any]

LISTED = 100
NEXT = 5  # ticks that are said ahead


def page(look: Look, asked: Asked) -> Page:
    after = asked.get("after") or None
    found = look.rows("page_schedules", after, LISTED + 1)
    rows = found[:LISTED]
    shown: list[list[Cell]] = [
        [Link(row["name"], url("/schedule", name=row["name"])), Pip(row["state"]), Link(row["workflow"], runs_where(workflow=row["workflow"])), _when(row), row["timezone"], When(row["next_at"]), When(row["last_at"]),
         run_link(row["last_run"]) if row["last_run"] else None, Count(row["live"]), Count(row["held"]), Count(row["fired"], runs_where(schedule=row["name"])), Count(row["skipped"]), Count(row["missed"]), row["paused_by"], row["paused_reason"]]
        for row in rows
    ]  # fmt: skip
    columns = ("schedule", "state", "workflow", "when", "zone", "next tick", "last tick", "its run", "live", "held", "fired", "skipped", "missed", "paused by", "why")
    table = Table("Schedules", columns, shown, empty="there are no schedules; declare one in the app, or make one here or by: python -m supervisor schedules create --help")
    links = [Link("New schedule", "/schedules/new")] if asked.may_operate else []
    more = url("/schedules", after=rows[-1]["name"]) if len(found) > LISTED else None
    return Page("Schedules", "schedules", {"schedules": rows, "next": json_of(more)}, panels=[table], older=more, newest="/schedules" if after else None, by_name=True, links=links, said=look.said)


def one(look: Look, asked: Asked) -> Page:
    name, before = asked.get("name"), asked.moment("before")
    row = look.first("client_schedules", name)
    if row is None:
        raise ScheduleUnknown(name)
    found = look.rows("page_schedule_fires", name, before, LISTED + 1)
    fires = found[:LISTED]
    fires += [each for each in found[LISTED:] if each["tick_at"] == fires[-1]["tick_at"]]  # one tick may be missed, and fired by a backfill
    older = url("/schedule", name=name, before=fires[-1]["tick_at"].isoformat()) if len(found) > len(fires) or len(fires) > LISTED else None
    deeds = look.rows("show_schedule_audit", name, None, *FROM_NOW_ON, LISTED)
    ticks = _next(row)
    data = {**row, "next": ticks, "fires": fires, "older": json_of(older), "audit": deeds}
    panels = [_terms(row), ticks_table(ticks, "Next ticks", _no_ticks(row)), _fires(fires), _deeds(deeds)]
    links = [Link("Its runs", runs_where(schedule=name)), *([Link("Change", url("/schedule/change", name=name))] if asked.may_operate else [])]
    return Page(f"Schedule {name}", "schedules", data, template="detail", lead=f"Schedule {name}", crumbs=[("workflow", Link(row["workflow"], runs_where(workflow=row["workflow"]))), ("when", _when(row)), ("zone", row["timezone"])],
                panels=panels, why=_why(row), actions=verbs.of_schedule(row, asked), links=links, older=older, newest=url("/schedule", name=name) if before else None, said=look.said)  # fmt: skip


def _when(row: Row) -> str:
    return f"every {row['every_s']:g} s" if row["every_s"] is not None else str(row["cron"])


def _why(row: Row) -> Why:
    """How it stands, in the banner."""
    state, notes = row["state"], [("last run", run_link(row["last_run"]))] if row["last_run"] else []
    if state == "paused":
        return Why(state, f"Paused {by_whom(row['paused_by'], row['paused_reason'])}", since=row["paused_at"], freed_by="somebody resumes it", notes=notes)
    if state == "failing":
        return Why(state, f"It can't be fired: {row['error']}", freed_by="somebody changes it; what the database said to its start is tried again every minute", notes=notes)
    if state == "over":
        return Why(state, "No tick of it is left", freed_by="somebody changes it", notes=notes)
    return Why(state, f"It starts {row['workflow']}, {_when(row)}", wake_at=row["next_at"], notes=notes)


def _next(row: Row) -> list[datetime]:
    """Its next ticks; none while it is paused, or where nobody can read it."""
    try:
        return ticks_of(ScheduleInfo(**row)) if row["state"] != "paused" else []
    except ScheduleInvalid:
        return []


def ticks_of(found: ScheduleInfo) -> list[datetime]:
    """Its next ticks, in its zone. Raises ScheduleInvalid."""
    timing = found.timing()
    return [tick.astimezone(timing.zone) for tick in itertools.islice(timing.after(datetime.now(timezone.utc)), NEXT)]


def ticks_table(ticks: Sequence[datetime], title: str, empty: str) -> Table:
    return Table(title, ("tick", "that is"), [[When(tick), tick.isoformat()] for tick in ticks], empty=empty)


def _no_ticks(row: Row) -> str:
    return "none while it is paused" if row["state"] == "paused" else "there is none"


def _terms(row: Row) -> Facts:
    items: list[tuple[str, Cell]] = [
        ("while a run is live", row["overlap"]), ("input", Json(row["input"])), ("is given the tick", row["pass_tick"]), ("queue", row["queue"] or "the workflow's"), ("priority", row["priority"]),
        *([("attributes", Json(row["attributes"]))] if row["attributes"] else []),
        ("a tick may be late by", f"{row['catchup_s']:g} s"), ("jitter", f"{row['jitter_s']:g} s"), ("not before", When(row["starts_at"])), ("not after", When(row["ends_at"])),
        ("runs of it started", Count(row["fired"], runs_where(schedule=row["name"]))), ("ticks skipped", Count(row["skipped"])), ("ticks missed", Count(row["missed"])),
        ("live", Count(row["live"])), ("held", Count(row["held"])), ("backfills at work", Count(row["backfills"])), ("declared in code", "yes" if row["declared"] else "no"), ("made", When(row["created_at"])), ("changed", When(row["changed_at"])),
    ]  # fmt: skip
    return Facts("What it does", items, wide=True)


def _fires(fires: Sequence[Row]) -> Table:
    shown: list[list[Cell]] = [
        [When(each["tick_at"]), each["tick_at"].isoformat(), each["kind"], each["state"] + (f", {each['ticks']} ticks until {each['until_at'].isoformat()}" if each["ticks"] > 1 else ""),
         run_link(each["run_id"]) if each["run_id"] else None, Pip(each["status"]) if each["status"] else None, When(each["fired_at"])]
        for each in fires
    ]  # fmt: skip
    return Table("What became of its ticks", ("tick", "that is", "by", "became", "run", "is", "dealt with"), shown, empty="no tick has been reached")


def _deeds(deeds: Sequence[Row]) -> Table:
    shown: list[list[Cell]] = [[When(each["at"]), each["verb"], each["actor"] or each["login"], each["reason"], Json(each["details"])] for each in deeds]
    return Table("What people did to it", ("when", "verb", "who", "why", "what"), shown, empty="nobody has done anything to it")
