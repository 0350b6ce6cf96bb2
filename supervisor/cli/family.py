"""The family of a run: the runs that go on with it and that it goes on from; the tree that it is in, the runs above it, itself, and those below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.cli.output import plain
from supervisor.core.families import branches, is_deep, unseen_above

if TYPE_CHECKING:
    from supervisor.db.history import History

Row = dict[str, Any]
SHOWN = 40


def beside(found: History) -> list[str]:
    """What goes on with it and what it goes on from, one run per line."""
    return [f"{each['how']} {each['run_id']} ({each['status']})" for each in found.goes_on]


def tree(found: History) -> list[str]:
    """Indented, one run per line; nothing where its children, which are listed anyway, are all there is."""
    if not is_deep(found.tree):
        return []
    further = unseen_above(found.tree)
    lines = [f"above it: run {further}"] if further is not None else []
    for branch in branches(found.tree):
        lines.append(_indent(branch.depth) + (f"{branch.words}: python -m supervisor list 'parent = {branch.row['run_id']}'" if branch.more else _line(branch.row)))
    more = [f"and {len(lines) - SHOWN:,} lines more: --json"] if len(lines) > SHOWN else []
    return ["", "tree", *lines[:SHOWN], *more]


def _indent(depth: int) -> str:
    return f"{'   ' * (depth - 1)}└─ " if depth else ""


def _line(row: Row) -> str:
    status = row["status"] + (f" ({row['wait']})" if row["wait"] and row["wait"] != "queued" else "")
    key = f" {plain(row['key'])}" if row["key"] else ""
    went_on = f", continued from {row['started_id']}" if row["started_id"] != row["run_id"] else ""
    return f"{plain(row['workflow'])}{key}  {row['run_id']}  {status}" + (f" at {plain(row['step'])}" if row["step"] else "") + went_on + ("  <- this run" if row["level"] == 0 else "")
