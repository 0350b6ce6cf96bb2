"""`workers`: who works, host by host: supervisors, their processes, what each executes, since when, how the last one died.

Of this host from the black boxes, which know what is executing at this moment; of other hosts from the database.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options, watch
from supervisor.cli.output import ago, duration, plain, print_json, say, table
from supervisor.host.workers import of_database, tree

if TYPE_CHECKING:
    from supervisor.host.boxes import Box

Row = dict[str, Any]
EXECUTING_SHOWN = 10
NONE = "no workers; start some: python -m supervisor run --app …"


@click.command("workers")
@watch.option
@watch.interval
@options.dsn
@options.schema
@options.as_json
def workers(watching: bool, interval: float, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show who works for this database and schema: hosts, supervisors, processes, which queues each serves, what it executes and since when, memory, the last crash."""
    told: set[str] = set()

    def hosts_now() -> list[Row]:
        boxes = local_boxes(told)
        rows = from_database(dsn, schema, needed=not boxes, told=told)
        if rows is not None:
            boxes, elsewhere = of_database(boxes, rows)
            if elsewhere:
                _say_once(elsewhere_words(elsewhere), told)
        return tree(boxes, rows or [], socket.gethostname())

    if watching:
        watch.watch(watch.Watched(hosts_now, lambda hosts: _text(hosts) or NONE, lambda hosts: [("hosts", {"hosts": hosts})]), interval, as_json)
        return
    hosts = hosts_now()
    if as_json:
        print_json({"hosts": hosts})
    elif not hosts:
        say(NONE)
    else:
        click.echo(_text(hosts))


def local_boxes(told: set[str] | None = None) -> list[Box]:
    """The black boxes of this host; what can't be read is said, once to whoever keeps what was *told*."""
    from supervisor.host import boxes

    found, refused = boxes.look()
    for error in refused:
        _say_once(str(error), told)
    return found


def pid_of(worker: int) -> int:
    """The process whose number in the database, as `workers`, `top` and `show` have it, is *worker*; else *worker*, which its supervisor or the system may count so."""
    pages = [process.page for box in local_boxes() for process in box.workers if process.page.pid and process.page.worker == worker]
    if len(pages) > 1:
        raise click.UsageError(f"worker {worker} is a worker of {len(pages)} databases: give its pid, of {', '.join(str(page.pid) for page in pages)}")
    if not pages:
        return worker
    say(f"worker {worker} is pid {pages[0].pid}, number {pages[0].number} of its supervisor")
    return pages[0].pid


def elsewhere_words(n: int) -> str:
    return f"and {n} other supervisor{'' if n == 1 else 's'} of this host: of other databases or schemas (--dsn, --schema), or just starting"


def from_database(dsn: str | None, schema: str | None, needed: bool, told: set[str] | None = None) -> list[Row] | None:
    """Rows of the view workers; None without a database, for what is local is enough then, unless that is nothing (*needed*)."""
    from supervisor.core.errors import ConfigInvalid, DatabaseUnavailable
    from supervisor.db import look

    try:
        name = options.resolve_schema(schema)
        with options.connect(dsn, name, purpose="workers") as conn:
            return look.workers(conn, name, socket.gethostname())
    except (ConfigInvalid, DatabaseUnavailable) as error:
        if needed or dsn is not None:
            raise
        _say_once(f"this host alone, without the database: {plain(error)}", told)
        return None


def _say_once(words: str, told: set[str] | None) -> None:
    if told is None or words not in told:
        say(words)
    if told is not None:
        told.add(words)


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────


def _text(hosts: list[Row]) -> str:
    lines = []
    for host in hosts:
        lines.append(f"host {plain(host['host'])}")
        for supervisor in host["supervisors"]:
            lines += _supervisor(supervisor)
    return "\n".join(lines)


def _supervisor(supervisor: Row) -> list[str]:
    facts = [f"supervisor {supervisor['supervisor'][:8]}"]
    if supervisor["pid"]:
        facts += [f"pid {supervisor['pid']}", f"schema {plain(supervisor['schema'])}", f"started {ago(supervisor['started_at'])}"]
    rows = [
        (each["worker"], each["pid"], each["state"], each.get("runs"), each.get("steps"), size(each.get("memory_bytes")), ago(each.get("started_at")), ", ".join(each.get("queues") or ()) or None)
        for each in supervisor["workers"]
    ]
    shown = table(("worker", "pid", "state", "runs", "steps", "memory", "started", "queues"), rows).splitlines()
    lines = ["  " + ", ".join(facts), *(f"    {line}" for line in shown)]
    for each in supervisor["workers"]:
        lines += [f"    worker {each['worker']} executes {line}" for line in _executing(each.get("executing", []))]
    for each in supervisor["workers"]:
        if each.get("last_crash"):
            lines.append(f"    last crash of number {each['number']}: {crash_words(each['last_crash'])}")
    if supervisor.get("last_death"):
        death = supervisor["last_death"]
        lines.append(f"    last death: worker {death['worker']}, {ago(death['at'])}: {plain(death['how'])}")
    return lines


def _executing(entries: list[Row]) -> list[str]:
    lines = [what_words(each) for each in entries[:EXECUTING_SHOWN]]
    return [*lines, f"{len(entries) - EXECUTING_SHOWN} more"] if len(entries) > EXECUTING_SHOWN else lines


def what_words(entry: Row) -> str:
    """ "charge of run … (seq 2, thread) for 3 s", "workflow code of checkout of run … for 12 s, at app.py:7 in checkout; it holds the loop"."""
    if entry["seq"] is not None:
        return f"{plain(entry['step'])} of run {entry['run_id']} (seq {entry['seq']}, {entry['where']}) for {duration(entry['for_s'])}"
    at = f", at {plain(entry['at'])}" if entry["at"] else ""
    held = f" for {duration(entry['for_s'])}{at}; it holds the loop, no other run moves" if entry["for_s"] else ""
    return f"{code_words(entry)} of run {entry['run_id']}{held}"


def code_words(entry: Row) -> str:
    """ "workflow code of checkout"."""
    return f"workflow code of {plain(entry['workflow'])}" if entry["workflow"] else "workflow code"


def crash_words(crash: Row) -> str:
    """ "3 min ago by SIGKILL in step charge of run … (seq 2), 4 in all"."""
    how = f"by {crash['signal']}" if crash["signal"] else f"with exit code {crash['exit_code']}"
    where = f" in {plain(crash['step'])} of run {crash['run_id']}" if crash["run_id"] else ""
    return f"{ago(crash['at'])} {how}{where}" + (f", {crash['deaths']} in all" if crash["deaths"] > 1 else "")


def size(amount: int | None) -> str | None:
    """Bytes for a person: 46 MB."""
    return None if amount is None else f"{amount / 1e6:.0f} MB"
