"""The tree that a run is in, as its rows are drawn one below the other: the runs above it, itself, and below each run those that it started. Pure.

Of a tree only a part is read; every place at which there is more says how much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
COUNTED = 1_000  # children of one run


class Branch(NamedTuple):
    """One line of the tree: a run; or, where `more` is not 0, how many of the run's children are not among its rows, of at least so many where `least`."""

    depth: int
    row: Row
    more: int = 0
    least: bool = False

    @property
    def words(self) -> str:
        return f"and {'at least ' if self.least else ''}{self.more:,} more"


def branches(tree: Sequence[Row]) -> Iterator[Branch]:
    """The lines of *tree*, whose rows are those above (level < 0), the root first, the run itself (0), and those below it, with how many `children` each has (at most COUNTED)."""
    above = [each for each in tree if each["level"] < 0]
    below: dict[object, list[Row]] = defaultdict(list)
    for each in tree:
        if each["level"] > 0:
            below[each["parent_id"]].append(each)
    yield from (Branch(depth, each) for depth, each in enumerate(above))
    todo = [Branch(len(above), each) for each in tree if each["level"] == 0]
    while todo:
        branch = todo.pop()
        yield branch
        if branch.more:
            continue
        children = sorted(below[branch.row["run_id"]], key=lambda child: child["seq"])
        more = branch.row["children"] - len(children)
        if more > 0:
            todo.append(Branch(branch.depth + 1, branch.row, more, branch.row["children"] >= COUNTED))
        todo += [Branch(branch.depth + 1, child) for child in reversed(children)]


def unseen_above(tree: Sequence[Row]) -> object:
    """The run above the first one of the tree: too far up to be read, or not kept any more; None where that one is the root."""
    return tree[0]["parent_id"] if tree else None


def is_deep(tree: Sequence[Row]) -> bool:
    """Whether there is more to it than a run and its children."""
    return any(each["level"] not in (0, 1) or each["level"] == 1 and each["children"] for each in tree) or unseen_above(tree) is not None
