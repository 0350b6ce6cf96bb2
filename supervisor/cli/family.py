"""The family of a run: the runs that go on with it and that it goes on from; the tree that it is in, the runs above it, itself, and those below it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from supervisor.cli.output import plain

if TYPE_CHECKING:
    from supervisor.db.history import History

Row = dict[str, Any]
SHOWN = 40


def beside(found: History) -> list[str]:
    """What goes on with it and what it goes on from, one run per line."""
    return [f"{each['how']} {each['run_id']} ({each['status']})" for each in found.goes_on]


def tree(found: History) -> list[str]:
    """Indented, one run per line; nothing where its children, which are listed anyway, are all there is."""
    if all(each["level"] == 1 for each in found.tree):
        return []
    below: dict[object, list[Row]] = defaultdict(list)
    for each in found.tree:
        below[each["parent_id"]].append(each)
    above = [each for each in found.tree if each["level"] < 0]
    lines = [_line(depth, each) for depth, each in enumerate(above)]
    lines.append(f"{_line(len(above), found.run)}  <- this run")
    lines += _below(found.run["run_id"], len(above) + 1, below)
    more = [f"and more: python -m supervisor list 'parent = {found.run['run_id']}'"] if len(lines) > SHOWN else []
    return ["", "tree", *lines[:SHOWN], *more]


def _below(parent: object, depth: int, below: dict[object, list[Row]]) -> list[str]:
    lines = []
    for each in below[parent]:
        if each["level"] > 0:
            lines += [_line(depth, each), *_below(each["run_id"], depth + 1, below)]
    return lines


def _line(depth: int, row: Row) -> str:
    status = row["status"] + (f" ({row['wait']})" if row["wait"] and row["wait"] != "queued" else "")
    key = f" {plain(row['key'])}" if row["key"] else ""
    return f"{'   ' * (depth - 1) + '└─ ' if depth else ''}{plain(row['workflow'])}{key}  {row['run_id']}  {status}" + (f" at {plain(row['step'])}" if row["step"] else "")
