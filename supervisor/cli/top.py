"""`top`: what the workers of this host do, live: rates, latencies, memory, what each executes, what stands in the queues, and what live runs wait for.

Rates and latencies are differences between two looks at the black boxes; workers are asked nothing.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import ago, duration, plain, print_json, say
from supervisor.cli.screen import live, until_interrupted
from supervisor.cli.workers import code_words, crash_words, elsewhere_words, local_boxes, size
from supervisor.host.workers import crash_row, executing_row, of_database, queues_by_worker

if TYPE_CHECKING:
    from rich.console import Group

    from supervisor.host.boxes import Box, Process
    from supervisor.host.figures import Rates

Row = dict[str, Any]
ONCE_OVER_S = 0.5  # rates need two looks
QUEUES_SHARE = 0.1  # of the time may go into asking the database: counting queues takes 0.3 s per million live runs
QUEUES_SHOWN, WAITS_SHOWN = 15, 20
WAITS_LOOKED_AT = 10_000  # of each reason, queue and priority


@click.command("top")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=None, help="Seconds between two looks.  [default: 1]")
@click.option("--once", is_flag=True, help="Print one look and end; so it does where there is no terminal.")
@options.dsn
@options.schema
@options.as_json
def top(interval: float | None, once: bool, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Watch the workers of this host that serve this database and schema: rates, latencies, what each executes, memory, the last crash; then the queues, and what is stuck now: live runs
    by what they wait for, workflow and step.

    q or ^C ends. With --json one object per look: one, or with --interval one after the other.
    """
    repeats = not once and (interval is not None if as_json else sys.stdout.isatty())
    screen = Screen(dsn, schema, local_boxes())
    if not repeats:
        time.sleep(min(interval or ONCE_OVER_S, ONCE_OVER_S))
        _print(screen.look(), as_json)
    elif as_json:
        with contextlib.suppress(KeyboardInterrupt):
            for _ in until_interrupted():
                time.sleep(interval or 1.0)
                print_json(screen.look().as_json())
                sys.stdout.flush()
    else:
        live(lambda: drawn(screen.look()), interval or 1.0)


@dataclass
class Seen:
    """One look: boxes, figures; queues and waits, None without a database."""

    boxes: list[Box]
    total: Rates
    each: dict[tuple[int, int], Rates]
    queues: list[Row] | None
    waits: list[Row] | None
    elsewhere: int = 0  # supervisors of other databases and schemas
    serves: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # supervisor, worker → its queues

    def as_json(self) -> Row:
        from dataclasses import asdict

        workers = [{**_worker(box, process, self.each), "queues": self.queues_of(box, process)} for box in self.boxes for process in box.workers]
        return {"total": asdict(self.total), "workers": workers, "other_supervisors": self.elsewhere, "queues": self.queues, "waits": self.waits}

    def queues_of(self, box: Box, process: Process) -> list[str] | None:
        return self.serves.get((str(box.supervisor), process.page.worker))


def _worker(box: Box, process: Process, each: dict[tuple[int, int], Rates]) -> Row:
    from dataclasses import asdict

    page = process.page
    figures = each.get((box.pid, page.number))
    return {
        "supervisor_pid": box.pid, "number": page.number, "worker": page.worker or None, "pid": page.pid or None,
        "state": process.state, "runs": page.live, "memory_bytes": process.memory.resident_bytes,
        "executing": [executing_row(entry) for entry in page.executing],
        "last_crash": crash_row(page.crash) if page.crash else None,
        **(asdict(figures) if figures is not None else {}),
    }  # fmt: skip


@dataclass
class Screen:
    """What looks, again and again: keeps the last look, and what the database said last."""

    dsn: str | None
    schema: str | None
    before: list[Box]
    _asked: tuple[list[Row], list[Row], list[Row]] | None = None
    _asked_at: float = 0.0
    _silent: bool = field(default=False)

    def look(self) -> Seen:
        from supervisor.host.figures import rates

        there = local_boxes()
        asked = self._ask()
        if asked is None:
            total, each = rates(self.before, there)
            self.before = there
            return Seen(there, total, each, None, None)
        queues, waits, workers = asked
        boxes, elsewhere = of_database(there, workers)
        total, each = rates(of_database(self.before, workers)[0], boxes)
        self.before = there
        return Seen(boxes, total, each, queues, waits, elsewhere, queues_by_worker(workers))

    def _ask(self) -> tuple[list[Row], list[Row], list[Row]] | None:
        """Rows of the view queues, of wait_groups and of the view workers, asked for as often as their cost allows; None without a database."""
        from supervisor.core.errors import ConfigInvalid, DatabaseUnavailable
        from supervisor.db import look

        began = time.monotonic()
        if began < self._asked_at:
            return self._asked
        try:
            name = options.resolve_schema(self.schema)
            with options.connect(self.dsn, name, purpose="top") as conn:
                self._asked = look.queues(conn, name), look.wait_groups(conn, name, WAITS_LOOKED_AT), look.workers(conn, name, socket.gethostname())
        except (ConfigInvalid, DatabaseUnavailable) as error:
            self._asked = None
            if not self._silent:
                say(f"without the queues: {plain(error)}")
            self._silent = True
        self._asked_at = time.monotonic() + (time.monotonic() - began) / QUEUES_SHARE
        return self._asked


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────


def _print(seen: Seen, as_json: bool) -> None:
    if as_json:
        print_json(seen.as_json())
        return
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160, color_system=None)
    console.print(drawn(seen))


def drawn(seen: Seen) -> Group:
    """One look as tables."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(_headline(seen)), _worker_table(seen)]
    crashes = [(process.page.number, process.page.crash) for box in seen.boxes for process in box.workers if process.page.crash]
    parts += [Text(f"last crash of number {number}: {crash_words(crash_row(crash))}") for number, crash in crashes if crash]
    if seen.elsewhere:
        parts.append(Text(elsewhere_words(seen.elsewhere)))
    if seen.queues is not None:
        parts.append(_queue_table(seen.queues))
    if seen.waits:
        parts += [Text(""), _wait_table(seen.waits)]
    return Group(*parts)


def _headline(seen: Seen) -> str:
    if not seen.boxes:
        return "no supervisor of this user, database and schema runs on this host; start one: python -m supervisor run --app …"
    total = seen.total
    workers = sum(1 for box in seen.boxes for process in box.workers if process.page.pid)
    rates = f"{total.steps_per_s:,.0f} steps/s, {total.runs_per_s:,.0f} runs/s, {total.failures_per_s:,.0f} failures/s, {total.commits_per_s:,.0f} commits/s"
    return f"{_count(len(seen.boxes), 'supervisor')}, {_count(workers, 'worker')}: {rates}; commit p50 {_ms(total.p50_ms)}, p99 {_ms(total.p99_ms)}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _ms(figure: float | None) -> str:
    return "-" if figure is None else duration(figure / 1000)


def _worker_table(seen: Seen) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head, right in (("worker", 0), ("pid", 1), ("state", 0), ("runs", 1), ("steps/s", 1), ("p50", 1), ("p99", 1), ("cpu", 1), ("memory", 1), ("queues", 0), ("executes", 0)):
        table.add_column(head, justify="right" if right else "left", no_wrap=True)
    for box in seen.boxes:
        for process in box.workers:
            row = _worker(box, process, seen.each)
            if row["pid"] is None:
                continue
            cells = (
                row["worker"] or "-", row["pid"], row["state"], row["runs"], f"{row['steps_per_s']:,.0f}", _ms(row["p50_ms"]), _ms(row["p99_ms"]),
                f"{row['cpu_percent']:.0f} %", size(row["memory_bytes"]), ", ".join(seen.queues_of(box, process) or ()) or "-", _executes(row["executing"]),
            )  # fmt: skip
            table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _executes(entries: list[Row]) -> str:
    """The step that has been executing for longest, and how many others."""
    if not entries:
        return "-"
    longest = max(entries, key=lambda entry: entry["for_s"])
    more = f", {len(entries) - 1} more" if len(entries) > 1 else ""
    step = longest["step"] if longest["seq"] is not None else code_words(longest)
    return f"{step} for {duration(longest['for_s'])}{more}"


def _queue_table(queues: list[Row]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("queue", "workers", "ready", "running", "waiting", "paused", "oldest ready"):
        table.add_column(head, justify="left" if head in ("queue", "oldest ready") else "right")
    for row in sorted(queues, key=lambda row: (-row["ready"], row["queue"]))[:QUEUES_SHOWN]:
        cells = (row["queue"], row["workers"], row["ready"], row["running"], row["waiting"], row["paused"], ago(row["oldest_ready_at"]) + (f", queue paused {ago(row['paused_at'])}" if row["paused_at"] else ""))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _wait_table(groups: list[Row]) -> Any:
    """Most runs first; the sample is the one that has waited for longest."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("waits for", "workflow", "step", "runs", "longest", "next", "for example"):
        table.add_column(head, justify="right" if head == "runs" else "left", no_wrap=True)
    for row in groups[:WAITS_SHOWN]:
        runs = f"{row['runs']:,}" if row["complete"] else f"≥ {row['runs']:,}"
        cells = (row["code"], row["workflow"] or "-", row["step"] or "-", runs, ago(row["since"]), ago(row["wake_at"]), row["run_id"])
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table
