"""Health: what stands where, what is stuck and why, how fast it goes, who works, and whether the database has room. Each part for itself.

Reads stored facts alone, so it is as true while no worker is alive. Counts live runs, never the history.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from supervisor.core import ends
from supervisor.core.shown import ago, by_whom
from supervisor.dashboard.page import Action, Asked, Cell, Chart, Count, Do, Facts, Findings, Link, Page, Pip, Refused, Size, Table, When, quoted, runs_where, url
from supervisor.dashboard.why import PARKED
from supervisor.db.pages import Look
from supervisor.db.statements import migration_files

Row = dict[str, Any]

LIVE_RUNS, QUEUES_MAX = 10_000, 1_000  # that are looked at, and listed
WAITING_RUNS, GROUPS_SHOWN = 2_000, 100  # runs of each reason that are looked at
WORKERS_MAX = 2_000
RATES_ROWS, RATES_MINUTES, SETTLED_S = 20_000, 60, 60.0  # a minute that is over for so long has its numbers
LAG_S = 60.0  # an oldest ready run that is older is worth a word
SIZE_S = 30.0
AHEAD = timedelta(days=2)  # partitions
OLD_TRANSACTION = timedelta(minutes=10)
FROZEN_AGE = 1_000_000_000
SESSIONS_SHARE = 0.9


def page(look: Look, asked: Asked) -> Page:
    parts: dict[str, Any] = look.parts({
        "queues": ("page_queues", LIVE_RUNS, QUEUES_MAX), "stuck": ("look_at_waits", WAITING_RUNS), "workers": ("page_workers", WORKERS_MAX), "leader": ("page_leader",),
        "database": ("page_database", look.remembered.get("size_until", 0.0) < time.monotonic()), "horizon": ("page_horizon",), "rates": ("page_rates", since(look), RATES_ROWS),
    })  # fmt: skip
    changed: dict[str, Callable[[list[Row]], Any]] = {"stuck": waiting, "database": lambda rows: _sized(look, _only(rows)), "horizon": _only, "rates": lambda rows: rates(look, rows)}
    parts = {name: part if isinstance(part, Exception) else changed.get(name, list)(part) for name, part in parts.items()}
    panels = [
        Findings("Needs attention", findings(parts), "nothing: workers are alive, nothing is parked, partitions are there, no queue is late"),
        _part("Live runs", parts["queues"], _states),
        _part("Workers", parts["workers"], lambda rows: _workers(rows, parts["leader"])),
        _part("Database", parts["database"], lambda row: _database(row, parts["horizon"])),
        _part("What live runs wait for", parts["stuck"], _stuck),
        _part("Starts and ends by the minute", parts["rates"], _rates),
        _part("Queues", parts["queues"], queues),
    ]
    data = {name: {"error": str(part)} if isinstance(part, Exception) else part for name, part in parts.items()}
    return Page("Health", "health", {**data, "findings": findings(parts)}, template="detail", lead="Health", panels=panels, said=look.said)


def _part(title: str, found: Any, draw: Callable[[Any], Any]) -> Any:
    return Refused(title, str(found)) if isinstance(found, Exception) else draw(found)


# ── what is not as it should be ──────────────────────────────────────────────────────────────────────────────────


def findings(parts: dict[str, Any]) -> list[str]:
    """In words, with what to do."""
    there = {name: None if isinstance(part, Exception) else part for name, part in parts.items()}
    return [*_of_parked(there["stuck"] or []), *_of_work(there["queues"] or [], there["workers"], there["leader"]), *_of_database(there["database"], there["horizon"])]


def _least(rows: Sequence[Row]) -> str:
    """What stands before a number where not all were looked at."""
    return "" if all(row["complete"] for row in rows) else "at least "


def capped(rows: Sequence[Row]) -> str:
    """What a panel says where not all live runs were looked at."""
    return f"{LIVE_RUNS:,} live runs were looked at, of each queue the same number" if _least(rows) else ""


def _of_parked(stuck: Sequence[Row]) -> list[str]:
    parked, least = Counter[str](), _least([row for row in stuck if row["code"] in PARKED])
    for row in stuck:
        if row["code"] in PARKED:
            parked[row["code"]] += row["runs"]
    words = ", ".join(f"{n:,} {code}" for code, n in parked.most_common())
    return [f"{least}{parked.total():,} {'run is' if parked.total() == 1 else 'runs are'} parked until somebody acts: {words}"] if parked else []


def _of_work(queues: Sequence[Row], workers: Sequence[Row] | None, leader: Sequence[Row] | None) -> list[str]:
    found = []
    ready, least = sum(row["ready"] for row in queues), _least(queues)
    alive = None if workers is None else sum(row["state"] == "alive" for row in workers)
    if alive == 0:
        found.append(f"no worker is alive, and {least}{ready:,} runs are ready: python -m supervisor run --app …" if ready else "no worker is alive: python -m supervisor run --app …")
    lost = [row for row in workers or [] if row["state"] == "lost"]
    if lost:
        found.append(f"{len(lost)} workers are gone and not released yet; a running supervisor does that within seconds")
    if leader is not None and not leader and alive:
        found.append("nobody leads: timers fire and runs go on, but lost workers of other hosts are not released and no partitions are made")
    now = datetime.now().astimezone()
    for row in queues:
        if row["paused_at"]:
            found.append(f"queue {row['queue']} is paused since {ago(row['paused_at'])} {by_whom(row['paused_by'], row['paused_reason'])}; {_least([row])}{row['ready']:,} are ready in it")
    late = [row for row in queues if row["oldest_ready_at"] and not row["paused_at"] and (now - row["oldest_ready_at"]).total_seconds() > LAG_S]
    found += [f"queue {row['queue']}: the oldest ready run has waited since {ago(row['oldest_ready_at'])}; {_least([row])}{row['ready']:,} are ready" for row in late]
    return found


def _of_database(row: Row | None, horizon: Row | None) -> list[str]:
    if row is None:
        return []
    found, now = [], row["now"]
    known = len(migration_files())
    if row["migration"] != known:
        found.append(f"the schema is at migration {row['migration']} and this program knows {known}: python -m supervisor migrate, or upgrade the program")
    if horizon and horizon["until_at"] and horizon["until_at"] - now < AHEAD:
        found.append(f"partitions exist only until {horizon['until_at']:%Y-%m-%d %H:%M} UTC; a supervisor makes them ahead, or: python -m supervisor migrate")
    if row["connections"] > SESSIONS_SHARE * row["connections_max"]:
        found.append(f"{row['connections']} of {row['connections_max']} connections are used")
    if row["oldest_transaction_at"] and now - row["oldest_transaction_at"] > OLD_TRANSACTION:
        found.append(f"a transaction has been open since {ago(row['oldest_transaction_at'], now)}: it keeps dead rows from being removed")
    if row["frozen_age"] > FROZEN_AGE:
        found.append(f"the oldest unfrozen transaction is {row['frozen_age']:,} ago; VACUUM must reach it before 2 billion")
    return found


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _states(rows: Sequence[Row]) -> Facts:
    items: list[tuple[str, Cell]] = [(status, Count(sum(row[status] for row in rows), runs_where(status=status), bool(_least(rows)))) for status in ("ready", "running", "waiting", "paused")]
    oldest = min((row["oldest_ready_at"] for row in rows if row["oldest_ready_at"]), default=None)
    return Facts("Live runs", [*items, ("oldest ready", When(oldest))], note=capped(rows))


def waiting(rows: Sequence[Row]) -> list[Row]:
    """What live runs wait for but a worker, those first that are parked until somebody acts."""
    return sorted((row for row in rows if row["code"] != "queued"), key=lambda row: (row["code"] not in PARKED, -row["runs"]))


def _stuck(rows: Sequence[Row]) -> Table:
    shown: list[list[Cell]] = [
        [Count(row["runs"], _same(row), not row["complete"]), Pip("waiting" if row["code"] != "run_paused" else "paused", row["code"]), row["workflow"], row["step"], row["meaning"], When(row["since"]), When(row["wake_at"])]
        for row in rows[:GROUPS_SHOWN]
    ]
    runs = sum(row["runs"] for row in rows)
    note = f"{_least(rows)}{runs:,} runs; those that are parked until somebody acts come first" if rows else ""
    return Table("What live runs wait for", ("runs", "why", "workflow", "step", "meaning", "since", "next"), shown, empty="no run waits for anything", note=note)


def _same(row: Row) -> str:
    """The list of these runs."""
    tests = [f"wait = {row['code']}", f"workflow = {quoted(row['workflow'])}", f"step = {quoted(row['step'])}" if row["step"] is not None else ""]
    return url("/runs", q=" AND ".join(test for test in tests if test))


def since(look: Look) -> str:
    """How far back the minutes are that are to be counted: those that are over are counted once in the life of this process."""
    now = datetime.now().astimezone()
    first = now - timedelta(minutes=RATES_MINUTES)
    return f"{(now - max((minute for minute in look.remembered.get('rates', {}) if minute > first), default=first)).total_seconds():.3f} s"


def rates(look: Look, rows: Sequence[Row]) -> list[Row]:
    """Starts and ends of the last hour's minutes: *rows*, and what pages of before have counted; of what was new the newest RATES_ROWS were looked at."""
    now = datetime.now().astimezone()
    known = {minute: row for minute, row in look.remembered.get("rates", {}).items() if minute > now - timedelta(minutes=RATES_MINUTES)}
    found = {**{row["minute"]: row for row in rows}, **known}
    look.remembered["rates"] = {minute: row for minute, row in found.items() if row["counted_s"] >= 60 and (now - minute).total_seconds() > 60 + SETTLED_S}
    return [found[minute] for minute in sorted(found)]


def _sized(look: Look, row: Row | None) -> Row | None:
    """With the size of the database, which is asked for twice a minute."""
    if row is None:
        return None
    if row["bytes"] is not None:
        look.remembered |= {"size": row["bytes"], "size_until": time.monotonic() + SIZE_S}
    return {**row, "bytes": look.remembered.get("size")}


def _only(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


def _rates(rows: Sequence[Row]) -> Chart:
    """A minute that was not looked at has no point, and one of which a part was is drawn as that part."""
    by = {int(row["minute"].timestamp()): row for row in rows}
    now = int(datetime.now().timestamp()) // 60 * 60
    times = list(range(now - (RATES_MINUTES - 1) * 60, now + 60, 60))
    lines = [(name, [float(by[at][name]) if at in by else None for at in times]) for name in ("started", "completed", "failed")]
    there = any(row["started"] or row["completed"] or row["failed"] for row in rows)
    missing = next((at for at in times if at in by and by[at]["counted_s"] < 60 and at < now), None) or (min(by) if by and min(by) > times[0] else None)
    note = f"of the last hour; before {datetime.fromtimestamp(missing, timezone.utc):%H:%M} UTC not all were counted, {RATES_ROWS:,} of both at most" if missing else "of the last hour"
    return Chart("Starts and ends by the minute", times if there else [], lines, note)


def queues(rows: Sequence[Row], actions: Sequence[Action | None] = ()) -> Table:
    """Queues, with the lists that prove their numbers, and what can be done to each."""
    shown: list[list[Cell]] = [
        [Link(row["queue"], runs_where(queue=row["queue"])), Count(row["workers"], "/workers"), *(Count(row[status], runs_where(status=status, queue=row["queue"]), not row["complete"]) for status in ("ready", "running", "waiting", "paused")),
         When(row["oldest_ready_at"])]
        for row in rows
    ]  # fmt: skip
    columns = ["queue", "workers", "ready", "running", "waiting", "paused", "oldest ready"]
    if any(row["paused_at"] for row in rows):
        columns += ["queue is paused", "by", "why"]
        shown = [[*cells, *((When(row["paused_at"]), row["paused_by"], row["paused_reason"]) if row["paused_at"] else (None, None, None))] for cells, row in zip(shown, rows, strict=True)]
    if any(actions):
        columns.append("verb")
        shown = [[*cells, Do(action) if action else None] for cells, action in zip(shown, actions, strict=True)]
    return Table("Queues", columns, shown, empty="no queues yet; one exists once a worker or a start has named it", note=capped(rows))


def _workers(rows: Sequence[Row], leader: Any) -> Facts:
    states, died = Counter[str](row["state"] for row in rows), len(ends.deaths(rows))
    items: list[tuple[str, Cell]] = [("alive", Count(states["alive"], "/workers")), ("lost", Count(states["lost"], "/workers")), ("died within the hour", Count(died, "/workers")),
                                     ("ended as told within the hour", Count(states["dead"] - died)), ("hosts", len({row["host"] for row in rows if row["state"] == "alive"}))]  # fmt: skip
    if isinstance(leader, Exception) or not leader:
        items.append(("leader", "nobody"))
    else:
        items += [("leader", f"process {leader[0]['pid']} on {leader[0]['host']}"), ("its last sign of life", When(leader[0]["beat_at"]))]
    return Facts("Workers", items)


def _database(row: Row, horizon: Any) -> Facts:
    items: list[tuple[str, Cell]] = [
        ("database", row["database"]), ("PostgreSQL", row["version"]), ("size", Size(row["bytes"])), ("connections", f"{row['connections']} of {row['connections_max']}"),
        ("oldest transaction", When(row["oldest_transaction_at"])), ("rows of task", Count(row["task_rows"])), ("dead rows of task", Count(row["task_dead"])), ("size of task", Size(row["task_bytes"])),
        ("migration", row["migration"]),
    ]  # fmt: skip
    if horizon and not isinstance(horizon, Exception):
        items += [("partitions until", When(horizon["until_at"])), ("partitions of run", Count(horizon["partitions"]))]
    return Facts("Database", items)
