"""Ending runs from outside: cancel, terminate, what becomes of the children. As the functions of the database do it (sql/migrations/0019, 0023, 0032, 0049, 0052, 0055)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable

from supervisor.engine.batch import INFINITY
from supervisor.testing.tables import CANCELLED, FRESH, HEIR, PARKED_FROM, PAUSED, TERMINATE, TERMINATED, Outcome, Tables, Task


def error_json(kind: str, message: str) -> bytes:
    return json.dumps({"type": f"supervisor.core.errors.{kind}", "message": message, "args": [message]}).encode()


def end_runs(tables: Tables, runs: Iterable[bytes], status: int, error: bytes) -> list[bytes]:
    """End those that live, whoever has them."""
    ended = []
    for run in sorted(runs):
        task = tables.tasks.get(run)
        if task is None:
            continue
        version = task.version
        if task.owner is not None:
            version = tables.pin(task)
            tables.drop(run)
        del tables.tasks[run]
        tables.outcomes[run] = Outcome(status, error, tables.now(), len(tables.steps[run]), version)
        tables.timers.pop(run, None)
        tables.tell_parent(task.parent, 1, 1)
        if task.parent is not None:
            tables.wake_parents([task.parent])
        ended.append(run)
    close_children(tables, ended)
    return ended


def terminate_runs(tables: Tables, runs: Iterable[bytes], reason: str | None, actor: str) -> list[bytes]:
    """End those that live, as somebody asked for."""
    ended = end_runs(tables, runs, TERMINATED, error_json("RunTerminated", reason or "it was terminated"))
    for run in ended:
        tables.cancellations[run].setdefault(TERMINATED, (reason, actor))
    return ended


def request_cancel(tables: Tables, runs: Iterable[bytes], reason: str | None, actor: str) -> list[bytes]:
    """Ask that runs, and all below them, be cancelled; those that live and were not asked before."""
    asked: list[bytes] = []
    dead: list[bytes] = []
    level = sorted(runs)
    while level:
        live = [tables.tasks[run] for run in level if run in tables.tasks and tables.tasks[run].cancel_to is None]
        for task in live:
            if _mark(tables, task, reason, actor):
                dead.append(task.id)
        asked += [task.id for task in live]
        level = sorted({kid.id for task in live for kid in tables.live_children(task.id)})
    if dead:
        end_runs(tables, dead, CANCELLED, error_json("RunCancelled", reason or "it was cancelled"))
    if asked:
        tables.wake()
    return asked


def _mark(tables: Tables, task: Task, reason: str | None, actor: str) -> bool:
    """Whether no code of it has to be told: it never began, or the engine has put it aside and nothing is to be undone."""
    tables.cancellations[task.id][CANCELLED] = (reason, actor)
    pause = tables.pauses.pop(task.id, None)
    task.cancel_to = task.owner or 0
    if task.owner is not None:
        return False
    if pause is not None and task.wait_kind == PAUSED and (pause.wait_kind or 0) >= PARKED_FROM:
        task.ready_at, task.wait_kind, task.detail = INFINITY, pause.wait_kind, pause.wait_detail
    elif not task.put_aside:
        task.wake(tables.now())
    return task.resumed in (FRESH, HEIR) or tables.is_wedged(task)


def close_children(tables: Tables, parents: Iterable[bytes]) -> None:
    """Runs ended: treat their live children as each was started."""
    for parent in sorted(parents):
        kids, actor = tables.live_children(parent), f"run {uuid.UUID(bytes=parent)}"
        request_cancel(tables, [kid.id for kid in kids if kid.parent_close != TERMINATE], "its parent ended", actor)
        for kid in [each for each in kids if each.parent_close == TERMINATE]:
            tables.cancellations[kid.id].setdefault(TERMINATED, ("its parent ended", actor))
            if kid.owner is not None:
                kid.cancel_to = kid.owner
                tables.wake()
            else:
                end_runs(tables, [kid.id], TERMINATED, error_json("RunTerminated", "its parent ended"))


def lose_children(tables: Tables, lost: Iterable[tuple[bytes, int]]) -> None:
    """Branches lost that had called these children (parent, seq)."""
    for parent, seq in sorted(lost):
        request_cancel(tables, [tables.child_now(parent, seq)], "its parent does not wait for it any more", f"run {uuid.UUID(bytes=parent)}")
