"""The short pages: queues, batches, errors, versions, audit, storage. One query each, drawn by the list template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supervisor.core.errors import BatchUnknown
from supervisor.dashboard import health, verbs
from supervisor.dashboard.page import Asked, Cell, Code, Count, Facts, Json, Link, Page, Pip, Size, Table, When, quoted, run_link, runs_where, url
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
    rows = look.rows("page_batches", asked.moment("before"), LISTED, BATCH_RUNS)
    shown: list[list[Cell]] = [
        [Link(row["batch"], url("/batch", name=row["batch"])), Count(row["runs"], runs_where(batch=row["batch"]), not row["complete"]), sum(row[status] for status in LIVE), row["completed"], row["failed"], row["cancelled"],
         When(row["created_at"]), When(row["last_ended_at"])]
        for row in rows
    ]  # fmt: skip
    older = url("/batches", before=rows[-1]["created_at"].isoformat()) if len(rows) == LISTED else None
    note = "" if all(row["complete"] for row in rows) else f"of each its newest {BATCH_RUNS:,} runs are counted; its own page counts {ONE_BATCH_RUNS:,}"
    table = Table("Batches", ("batch", "runs", "live", "completed", "failed", "cancelled", "made", "last end"), shown, empty="no start has named a batch", note=note)
    return Page("Batches", "batches", {"batches": rows}, panels=[table], older=older, said=look.said)


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
    rows = look.rows("page_errors", ERRORS_SINCE, ERRORS_LOOKED)
    shown: list[list[Cell]] = [
        [Count(row["failures"]), Count(row["runs"]), Count(row["live"], _living(row) if row["live"] else None), row["workflow"], row["step"], (row["type"] or "").rpartition(".")[2] or None, row["message"],
         When(row["first_at"]), When(row["last_at"]), run_link(row["run_id"]), Code(row["fingerprint"])]
        for row in rows[:LISTED]
    ]  # fmt: skip
    columns = ("failures", "runs", "live", "workflow", "step", "error", "message", "first", "last", "newest", "fingerprint")
    return Page("Errors", "errors", {"errors": rows}, panels=[Table("Errors", columns, shown, empty="nothing has failed within a day", note="of the last day")], said=look.said)


def _living(row: Row) -> str:
    """Live runs at that step."""
    tests = [f"workflow = {quoted(row['workflow'])}", f"status in ({', '.join(LIVE)})", *([f"step = {quoted(row['step'])}"] if row["step"] else [])]
    return url("/runs", q=" AND ".join(tests))


def versions(look: Look, asked: Asked) -> Page:
    rows = look.rows("page_versions", health.LIVE_RUNS, VERSIONS_MAX)
    shown: list[list[Cell]] = [
        [Link(row["workflow"], runs_where(workflow=row["workflow"])), row["version"], row["workers"], *(Count(row[name], least=not row["complete"]) for name in ("live", "running", "code_missing")), When(row["missing_since"]), row["source"], When(row["last_seen_at"])]
        for row in rows
    ]
    columns = ("workflow", "version", "workers", "live", "running", "code missing", "since", "source", "last seen")
    return Page("Versions", "versions", {"versions": rows}, panels=[Table("Versions", columns, shown, empty="no worker has registered a workflow", note=health.capped(rows))], said=look.said)


def audit(look: Look, asked: Asked) -> Page:
    before = asked.moment("before")
    rows = look.rows("show_audit", None, asked.get("verb") or None, before, LISTED)
    table = Table("Audit", ("when", "verb", "done to", "workflow", "who", "role", "why", "what"), _deeds(rows), empty="no operator has done anything")
    older = url("/audit", before=rows[-1]["at"].isoformat(), verb=asked.get("verb")) if len(rows) == LISTED else None
    return Page("Audit", "audit", {"audit": rows}, panels=[table], older=older, newest="/audit" if before else None, said=look.said)


def _deeds(rows: Sequence[Row]) -> list[list[Cell]]:
    return [[When(row["at"]), row["verb"], _done_to(row), row["workflow"], row["actor"], row["login"], row["reason"], Json(row["details"]) if row["details"] is not None else None] for row in rows]


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
