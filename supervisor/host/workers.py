"""Who works, host by host: supervisors, their processes, what each executes, how the last one died. For `workers`, `top`, `show` and the dashboard.

Puts together what the black boxes of this host say of this moment and what the database says of all hosts; reads neither itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from supervisor.core.ends import deaths

if TYPE_CHECKING:
    from supervisor.host.boxes import Box, Process
    from supervisor.host.layout import Executing, LastCrash

Row = dict[str, Any]


def of_database(boxes: Iterable[Box], rows: Iterable[Row]) -> tuple[list[Box], int]:
    """Those whose supervisors stand in the database's *rows*, and how many others there are: of other databases and schemas, or without a worker as yet."""
    known, given = {str(row["supervisor"]) for row in rows}, list(boxes)
    own = [box for box in given if str(box.supervisor) in known]
    return own, len(given) - len(own)


def queues_by_worker(rows: Iterable[Row]) -> dict[tuple[str, int], list[str]]:
    """What each worker of the database's *rows* serves: supervisor, worker → queues."""
    return {(str(row["supervisor"]), row["worker"]): row["queues"] for row in rows}


def tree(boxes: Iterable[Box], rows: Iterable[Row], this_host: str) -> list[Row]:
    """Hosts, each with its supervisors, each with its workers: what --json prints, and the page has."""
    hosts: dict[str, dict[str, Row]] = {}
    told: set[str] = set()
    rows = list(rows)
    serves, died = queues_by_worker(rows), {row["worker"] for row in deaths(rows)}
    for box in boxes:
        told.add(str(box.supervisor))
        entry = hosts.setdefault(this_host, {})[str(box.supervisor)] = _local(box)
        for worker in entry["workers"]:
            worker["queues"] = serves.get((entry["supervisor"], worker["worker"]))
    for row in rows:
        name = str(row["supervisor"])
        if name in told:
            continue
        entry = hosts.setdefault(row["host"], {}).setdefault(name, {"supervisor": name, "pid": None, "schema": None, "started_at": None, "workers": []})
        if row["state"] != "dead":
            entry["workers"].append({name: row[name] for name in ("worker", "pid", "state", "queues", "runs", "started_at")})
        elif row["worker"] in died:
            entry["last_death"] = {"worker": row["worker"], "at": row["dead_at"], "how": row["death"]}
    return [
        {"host": host, "supervisors": living}
        for host, supervisors in sorted(hosts.items(), key=lambda item: (item[0] != this_host, item[0]))
        if (living := [entry for entry in supervisors.values() if entry["workers"]])
    ]


def _local(box: Box) -> Row:
    return {
        "supervisor": str(box.supervisor),
        "pid": box.pid,
        "schema": box.schema,
        "started_at": _moment(box.started_us),
        "workers": [_worker(process) for process in box.workers],
    }


def _worker(process: Process) -> Row:
    page = process.page
    entry: Row = {"number": page.number, "last_crash": crash_row(page.crash) if page.crash else None}
    if page.pid == 0:
        return {**entry, "worker": None, "pid": None, "state": "not running", "executing": []}
    return {
        **entry,
        "worker": page.worker,
        "pid": page.pid,
        "generation": page.generation,
        "state": process.state,
        "started_at": _moment(page.started_us),
        "progress_at": _moment(page.progress_us),
        "runs": page.live,
        "claimed": page.claimed,
        "steps": page.steps,
        "ended": page.ended,
        "failures": page.failures,
        "commits": page.commits,
        "memory_bytes": process.memory.resident_bytes,
        "executing": [executing_row(each) for each in page.executing],
    }


def executing_row(entry: Executing) -> Row:
    return {
        "run_id": entry.run_id,
        "seq": entry.seq if entry.seq >= 0 else None,
        "step": entry.step,
        "workflow": entry.workflow or None,
        "at": entry.stack[0] if entry.stack else None,
        "where": entry.place,
        "for_s": round(entry.for_s, 3),
        "since": _moment_ago(entry.for_s),
    }


def crash_row(crash: LastCrash) -> Row:
    from supervisor.host.blame import signal_name

    return {
        "at": _moment(crash.at_us),
        "signal": signal_name(-crash.code) if crash.code < 0 else None,
        "exit_code": crash.code if crash.code >= 0 else None,
        "pid": crash.pid,
        "deaths": crash.deaths,
        "run_id": crash.run_id,
        "seq": crash.seq if crash.run_id and crash.seq >= 0 else None,
        "step": crash.step or None,
    }


def _moment(us: int) -> datetime:
    from supervisor.host.layout import us_to_unix_s

    return datetime.fromtimestamp(us_to_unix_s(us), timezone.utc)


def _moment_ago(seconds: float) -> datetime:
    return datetime.fromtimestamp(datetime.now(timezone.utc).timestamp() - seconds, timezone.utc)
