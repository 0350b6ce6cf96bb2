"""Workers: per host and supervisor its processes, what each executes, memory, rates, the last crash.

Of the dashboard's own host the black boxes know it, as `python -m supervisor workers` shows it; of other hosts the database knows what has been
executing for more than a second. Only those supervisors are shown that stand in this database.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from supervisor.core import ends
from supervisor.core.shown import duration
from supervisor.dashboard import health
from supervisor.dashboard.page import Asked, Cell, Code, Count, Facts, Page, Pip, Size, Table, When, run_link, runs_where
from supervisor.db.pages import Look
from supervisor.host import boxes, figures
from supervisor.host import workers as working

Row = dict[str, Any]

EXECUTING_SHOWN = 10  # of each worker, the longest first
STEPS_MAX = 500  # published steps that are looked at: 50 us each
RATES_OVER_S, RATES_UNTIL_S = 1.0, 60.0  # how far apart two looks are that rates are made of
HERE_ALONE = "what the database knows: memory, rates, crashes and steps below a second are seen on that host alone: python -m supervisor workers"
OWN = ("worker", "process", "state", "generation", "since", "queues", "runs", "executes", "run", "for", "memory", "cpu", "steps/s", "runs/s", "last crash", "by", "in step", "its run")
OTHER = ("worker", "process", "state", "since", "queues", "runs", "executes", "run", "step since")


def page(look: Look, asked: Asked) -> Page:
    held = {row["worker"]: row for row in look.rows("page_worker_sizes", health.LIVE_RUNS)}
    rows = [{**row, **held.get(row["worker"], {"runs": None, "complete": True})} for row in look.rows("page_workers", health.WORKERS_MAX)]
    leader = look.first("page_leader")
    found, refused = boxes.look()
    own, elsewhere = working.of_database(found, rows)
    hosts = working.tree(own, rows, socket.gethostname())
    _add(hosts, rows, leader, _rates(look, own))
    notes = [note for note in (_published(look, hosts), *map(str, refused)) if note]
    died = ends.deaths(rows)
    ended = sum(row["state"] == "dead" for row in rows) - len(died)
    panels: list[Any] = [panel for host in hosts for supervisor in host["supervisors"] for panel in (_supervisor(host, supervisor), _processes(supervisor))]
    if not panels:
        panels.append(Table("Processes", OTHER, [], empty="no worker is alive: python -m supervisor run --app …"))
    panels.append(_dead(died, ended))
    data = {"hosts": hosts, "died": died, "ended_as_told": ended, "other_supervisors": elsewhere, "notes": notes}
    if notes:
        panels[0].note = "; ".join(notes)
    return Page("Workers", "workers", data, template="detail", lead="Workers", panels=panels, said=look.said)


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _add(hosts: Sequence[Row], rows: Sequence[Row], leader: Row | None, rates: dict[tuple[int, int], figures.Rates]) -> None:
    """What the tree has not of itself: who leads, whether a count is all, rates."""
    complete = {row["worker"]: row["complete"] for row in rows}
    for supervisor in (each for host in hosts for each in host["supervisors"]):
        leads = leader is not None and str(leader["supervisor"]) == supervisor["supervisor"]
        supervisor |= {"leads": leads, "term": leader["term"] if leader and leads else None, "leads_since": leader["began_at"] if leader and leads else None}
        for worker in supervisor["workers"]:
            seen = rates.get((supervisor["pid"], worker.get("number", -1)))
            worker |= {"complete": complete.get(worker["worker"], True), "rates": asdict(seen) if seen is not None else None}


def _rates(look: Look, now: list[boxes.Box]) -> dict[tuple[int, int], figures.Rates]:
    """Since a look of this process that was at least a second and at most a minute ago; nothing where there was none."""
    at = time.monotonic()
    kept = look.remembered.get("boxes", ())
    before = next((there for then, there in reversed(kept) if RATES_OVER_S <= at - then <= RATES_UNTIL_S), None)
    if not kept or at - kept[-1][0] >= RATES_OVER_S:
        look.remembered["boxes"] = (*kept[-1:], (at, now))
    return figures.rates(before, now)[1] if before is not None else {}


def _published(look: Look, hosts: Sequence[Row]) -> str:
    """Give workers of other hosts the steps that they have published; a word where there may be more."""
    others = {worker["worker"]: worker for host in hosts for supervisor in host["supervisors"] if not _is_here(supervisor) for worker in supervisor["workers"]}
    if not others:
        return ""
    steps = look.rows("page_worker_steps", STEPS_MAX)
    for worker in others.values():
        worker["executing"] = [step for step in steps if step["worker"] == worker["worker"]]
    return f"of steps that run for more than a second those of the newest {STEPS_MAX} runs are shown" if len(steps) == STEPS_MAX else ""


def _is_here(supervisor: Row) -> bool:
    """Whether its black box was read."""
    return supervisor["pid"] is not None


# ── panels ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _supervisor(host: Row, supervisor: Row) -> Facts:
    items: list[tuple[str, Cell]] = [("supervisor", Code(supervisor["supervisor"])), ("leads", When(supervisor["leads_since"]) if supervisor["leads"] else "no"), ("term", supervisor["term"])]
    items += [("process", supervisor["pid"]), ("since", When(supervisor["started_at"]))] if _is_here(supervisor) else []
    if supervisor.get("last_death"):
        death = supervisor["last_death"]
        items += [("last death", When(death["at"])), ("of worker", death["worker"]), ("how", death["how"])]
    return Facts(f"{host['host']}, supervisor {supervisor['supervisor'][:8]}", items, wide=True)


def _processes(supervisor: Row) -> Table:
    title, workers = f"Processes of supervisor {supervisor['supervisor'][:8]}", supervisor["workers"]
    hidden = sum(max(0, len(worker["executing"]) - EXECUTING_SHOWN) for worker in workers)
    notes = [f"of each worker the {EXECUTING_SHOWN} that execute for longest; {hidden:,} more" if hidden else ""]
    if not _is_here(supervisor):
        return Table(title, OTHER, [row for worker in workers for row in _beside(_other(worker), worker["executing"], ())], note="; ".join(filter(None, [HERE_ALONE, *notes])))
    if not any(worker["rates"] for worker in workers):
        notes.insert(0, "rates are of the time between two looks: from the next one on")
    return Table(title, OWN, [row for worker in workers for row in _beside(_own(worker), worker["executing"], _crash(worker))], note="; ".join(filter(None, notes)))


def _own(worker: Row) -> list[Cell]:
    return [worker["worker"], worker["pid"], Pip(worker["state"]), worker.get("generation"), When(worker.get("started_at")), ", ".join(worker.get("queues") or ()) or None, _runs(worker)]


def _other(worker: Row) -> list[Cell]:
    return [worker["worker"], worker["pid"], Pip(worker["state"]), When(worker["started_at"]), ", ".join(worker["queues"] or ()) or None, _runs(worker)]


def _runs(worker: Row) -> Count:
    runs = worker.get("runs")
    return Count(runs, runs_where(worker=worker["worker"]) if runs else None, runs is not None and not worker["complete"])


def _beside(first: list[Cell], executing: Sequence[Row], last: Sequence[Cell]) -> list[list[Cell]]:
    """The row of a worker with what it executes for longest, and a row for each other step that it executes."""
    steps = [_executes(each, bool(last)) for each in sorted(executing, key=lambda each: each["since"])[:EXECUTING_SHOWN]] or [[None, None, None]]
    return [[*(first if n == 0 else [""] * len(first)), *step, *(last if n == 0 else [""] * len(last))] for n, step in enumerate(steps)]


def _executes(each: Row, here: bool) -> list[Cell]:
    if each["seq"] is None:
        words = f"workflow code of {each['workflow']}" if each["workflow"] else "workflow code"
        return [words + (f", at {each['at']}" if each["at"] else ""), run_link(each["run_id"]), duration(each["for_s"])]
    return [f"{each['step']} (seq {each['seq']}{', ' + each['where'] if here else ''})", run_link(each["run_id"]), duration(each["for_s"]) if here else When(each["since"])]


def _crash(worker: Row) -> list[Cell]:
    """Memory, rates, and how a process of that number died last."""
    rates, crash = worker["rates"], worker["last_crash"]
    moved: list[Cell] = [f"{rates['cpu_percent']:.0f} %", f"{rates['steps_per_s']:,.1f}", f"{rates['runs_per_s']:,.1f}"] if rates else [None, None, None]
    if crash is None:
        return [Size(worker.get("memory_bytes")), *moved, None, None, None, None]
    how = (crash["signal"] or f"exit code {crash['exit_code']}") + (f", {crash['deaths']} in all" if crash["deaths"] > 1 else "")
    step = crash["step"] and crash["step"] + (f" (seq {crash['seq']})" if crash["seq"] is not None else "")
    return [Size(worker.get("memory_bytes")), *moved, When(crash["at"]), how, step, run_link(crash["run_id"]) if crash["run_id"] else None]


def _dead(rows: Sequence[Row], ended: int) -> Table:
    shown: list[list[Cell]] = [[row["worker"], row["host"], Code(str(row["supervisor"])[:8]), row["pid"], When(row["started_at"]), When(row["dead_at"]), row["death"]] for row in rows]
    return Table("Died within the hour", ("worker", "host", "supervisor", "process", "since", "died", "how"), shown, empty="none", note=f"{ended:,} more ended as they were told to, or go on under another number" if ended else "")
