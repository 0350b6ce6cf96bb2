"""The short pages: queues, batches, errors, versions, audit, storage. One query each, drawn by the list template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supervisor.core.errors import BatchUnknown
from supervisor.dashboard import health, verbs
from supervisor.dashboard.page import Asked, Cell, Code, Count, Facts, Json, Link, Page, Pip, Size, Table, When, in_quotes, json_of, quoted, run_link, runs_where, url
from supervisor.db.history import FROM_NOW_ON, Place
from supervisor.db.pages import Look

Row = dict[str, Any]

LISTED = 100
BATCH_RUNS, ONE_BATCH_RUNS = 1_000, 100_000  # of each that are counted
VERSIONS_MAX = 1_000
ERRORS_SINCE, ERRORS_LOOKED = "1 day", 10_000
ENDS = ("completed", "failed", "cancelled", "terminated", "timed_out", "continued")
LIVE = ("ready", "running", "waiting", "paused")


def queues(look: Look, asked: Asked) -> Page:
    rows = look.rows("page_queues", health.LIVE_RUNS, health.QUEUES_MAX)
    return Page("Queues", "queues", {"queues": rows}, panels=[health.queues(rows, [verbs.of_queue(row, asked) for row in rows])], said=look.said)


def batches(look: Look, asked: Asked) -> Page:
    before = asked.moment("before")
    found = look.rows("page_batches", before, asked.get("name") or None, LISTED + 1, BATCH_RUNS)
    rows = found[:LISTED]
    shown: list[list[Cell]] = [
        [Link(row["batch"], url("/batch", name=row["batch"])), Count(row["runs"], runs_where(batch=row["batch"]), not row["complete"]), sum(row[status] for status in LIVE), row["completed"], row["failed"], row["cancelled"],
         When(row["created_at"]), When(row["last_ended_at"])]
        for row in rows
    ]  # fmt: skip
    older = url("/batches", before=rows[-1]["created_at"].isoformat(), name=rows[-1]["batch"]) if len(found) > LISTED else None
    note = "" if all(row["complete"] for row in rows) else f"of each its newest {BATCH_RUNS:,} runs are counted; its own page counts {ONE_BATCH_RUNS:,}"
    table = Table("Batches", ("batch", "runs", "live", "completed", "failed", "cancelled", "made", "last end"), shown, empty="no start has named a batch", note=note)
    return Page("Batches", "batches", {"batches": rows, "next": json_of(older)}, panels=[table], older=older, newest="/batches" if before else None, said=look.said)


def batch(look: Look, asked: Asked) -> Page:
    name = asked.get("name")
    row = look.first("page_batch", name, ONE_BATCH_RUNS) if "\0" not in name else None
    if row is None:
        raise BatchUnknown(name)
    items: list[tuple[str, Cell]] = [(status, Count(row[status], runs_where(batch=name, status=status), not row["complete"])) for status in (*LIVE, *ENDS) if row[status]]
    items += [("runs", Count(row["runs"], runs_where(batch=name), not row["complete"])), ("made", When(row["created_at"])), ("last start", When(row["last_started_at"])), ("last end", When(row["last_ended_at"]))]
    return Page(f"Batch {name}", "batches", row, template="detail", lead=f"Batch {name}", panels=[Facts("What became of its runs", items, note="" if row["complete"] else f"its newest {ONE_BATCH_RUNS:,} runs are counted")], said=look.said)


def errors(look: Look, asked: Asked) -> Page:
    """What failed within a day, by what it is and where: tries and crashes of steps, and runs that failed without any."""
    found = look.rows("page_errors", ERRORS_SINCE, ERRORS_LOOKED)
    rows = [{**row, "filter": _same_error(row)} for row in found]
    rows = [{**row, "retry_filter": _to_retry(row)} for row in rows]
    shown = [_error(row, asked.may_operate) for row in rows[:LISTED]]
    columns = ("failures", "runs", "live", "ended", "workflow", "step", "error", "message", "first", "last", "newest", "fingerprint", *["verb"] * asked.may_operate)
    table = Table("Errors", columns, shown, empty="nothing has failed within a day", note=_looked(rows))
    return Page("Errors", "errors", {"errors": rows, "listed": min(len(rows), LISTED), "complete": all(row["complete"] for row in rows)}, panels=[table], said=look.said)


def _error(row: Row, may_retry: bool) -> list[Cell]:
    least = not row["complete"]
    same = {which: url("/runs", q=f"{row['filter']}{more}") if row["filter"] and row[which] else None for which, more in (("runs", ""), ("live", f" AND {_IS_LIVE}"), ("ended", f" AND NOT {_IS_LIVE}"))}
    if row["source"] == "run":
        same["ended"] = same["runs"]
    retry = [Link("retry…", url("/runs", q=row["retry_filter"])) if row["retry_filter"] else None] if may_retry else []
    return [Count(row["failures"], least=least), *(Count(row[which], same[which], least) for which in ("runs", "live", "ended")), row["workflow"], row["step"], (row["type"] or "").rpartition(".")[2] or None, row["message"],
            When(row["first_at"]), When(row["last_at"]), run_link(row["run_id"]), Code(row["fingerprint"]), *retry]  # fmt: skip


_IS_LIVE = f"status in ({', '.join(LIVE)})"
_IS_RETRIED = "status in (failed, timed_out)"


def _same_error(row: Row) -> str | None:
    """The filter that fits the runs of a group and no others; None where nothing stored tells them apart."""
    if row["source"] == "step":
        return f'fingerprint.{in_quotes(row["step"])} = {quoted(row["fingerprint"])}' if row["fingerprint"] else None
    tests = [f"workflow = {quoted(row['workflow'])}", _IS_RETRIED, _equals("error.type", row["type"]), _equals("error.place", row["place"]), "fingerprint is null"]
    return " AND ".join(tests) if row["workflow"] is not None else None


def _to_retry(row: Row) -> str | None:
    """Those of them that a retry can do anything for: they failed, or are at that step still."""
    same: str | None = row["filter"]
    if row["source"] == "run" or same is None:
        return same
    return f"{same} AND (step = {quoted(row['step'])} OR {_IS_RETRIED})"


def _equals(field: str, value: str | None) -> str:
    return f"{field} is null" if value is None else f"{field} = {in_quotes(value)}"


def _looked(rows: Sequence[Row]) -> str:
    notes = ["of the last day"]
    if not all(row["complete"] for row in rows):
        notes.append(f"the newest {ERRORS_LOOKED:,} failed tries and as many ended runs were looked at")
    if len(rows) > LISTED:
        notes.append(f"the {LISTED} newest of {len(rows):,} kinds are listed")
    return "; ".join(notes)


def versions(look: Look, asked: Asked) -> Page:
    rows = look.rows("page_versions", health.LIVE_RUNS, VERSIONS_MAX)
    shown: list[list[Cell]] = [
        [Link(row["workflow"], runs_where(workflow=row["workflow"])), row["version"], row["workers"], *(Count(row[name], least=not row["complete"]) for name in ("live", "running", "code_missing")), When(row["missing_since"]), row["source"], When(row["last_seen_at"])]
        for row in rows
    ]
    columns = ("workflow", "version", "workers", "live", "running", "code missing", "since", "source", "last seen")
    return Page("Versions", "versions", {"versions": rows}, panels=[Table("Versions", columns, shown, empty="no worker has registered a workflow", note=health.capped(rows))], said=look.said)


def audit(look: Look, asked: Asked) -> Page:
    verb, before = asked.get("verb") or None, _place(asked)
    found = look.rows("show_audit", None, verb, *before, LISTED + 1)
    rows = found[:LISTED]
    table = Table("Audit", ("when", "verb", "done to", "workflow", "who", "role", "why", "what"), _deeds(rows), empty="no operator has done anything")
    older = url("/audit", before=Place.after(rows[-1]), verb=verb) if len(found) > LISTED else None
    newest = url("/audit", verb=verb) if before.at else None
    return Page("Audit", "audit", {"audit": rows, "next": json_of(older)}, panels=[table], older=older, newest=newest, said=look.said)


def _place(asked: Asked) -> Place:
    try:
        return Place.of(asked.get("before"))
    except ValueError:
        return FROM_NOW_ON


def _deeds(rows: Sequence[Row]) -> list[list[Cell]]:
    return [[When(row["at"]), row["verb"], _done_to(row), row["workflow"], row["actor"], row["login"], row["reason"], Json(row["details"]) if row["details"] else None] for row in rows]


def _done_to(row: Row) -> Cell:
    """The run, the schedule or the queue."""
    if row["schedule"] is not None:
        return Link(row["schedule"], url("/schedule", name=row["schedule"]))
    return run_link(row["run_id"]) if row["queue"] is None else Link(row["queue"], "/queues")


def storage(look: Look, asked: Asked) -> Page:
    rows = look.rows("page_storage")
    shown: list[list[Cell]] = [[row["name"], Count(row["partitions"]) if row["partitions"] else None, Size(row["bytes"]), Size(row["index_bytes"]), Count(row["rows"]), Count(row["dead"]), When(row["vacuumed_at"])] for row in rows]
    total = sum(row["bytes"] for row in rows)
    table = Table("Storage", ("table", "partitions", "size", "of that indexes", "rows", "dead rows", "last vacuum"), shown, note=f"{total / 1e6:,.1f} MB in all; rows as the server's statistics have them")
    return Page("Storage", "storage", {"tables": rows}, panels=[table], said=look.said)
