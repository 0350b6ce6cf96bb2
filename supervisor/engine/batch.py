"""What one Sync makes durable: rows of the batch by statement, in the order of locks, and how a refused batch is halved.

Rows of steps and outcomes arrive as ready array parameters from the loop; everything rarer is kept as tuples until it
is sent. Nothing here talks to the server. Every row belongs to one run in memory, so a batch can be split by runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervisor._fastpath.loop import BYTEA, FLOAT8, INT2, INT4, INT8, TEXT, TIMESTAMPTZ, UUID
from supervisor._fastpath.wire import Column
from supervisor.db.arrays import Row, elements, encode_rows

# what the loop's session prepares
HOT = (
    "fence", "insert_steps", "insert_mixed_steps", "insert_attempts", "insert_published", "insert_progress", "set_attributes", "note_beats", "continue_runs", "finish", "insert_children_done", "lock_parents", "wake_parents",
    "look_at_parked", "release", "lock_own", "park_on_children", "park_on_signals", "park_paused", "insert_consumed", "read_messages", "insert_runs", "insert_timers",
    "fire_timers", "fire_slept", "drop_timers", "publish", "claim", "claim_missing", "plan_custom", "plan_generic",
    "look_at_updates", "accept_updates", "reject_updates", "insert_update_ends", "wake_updated",
    "look_at_requests", "expire_tokens", "wake_completed",
    "read_inputs", "read_steps", "read_attempts", "read_timers", "read_children", "read_completions", "read_outcomes", "read_cancellations", "read_marks", "told_cancel", "no_deadline", "close_children", "lose_children",
)  # fmt: skip
STEP_OIDS = (UUID, INT4, INT4, TEXT, BYTEA, FLOAT8, FLOAT8, INT2, INT2)  # the last two only where the batch is mixed
PLAIN_COLUMNS = 7
OUTCOME_OIDS = (UUID, INT2, INT4, BYTEA, FLOAT8)
# statement → types of its columns, in the order in which they are sent; those with the worker's id as last parameter
RARE_OIDS: dict[str, tuple[int, ...]] = {
    "insert_attempts": (UUID, INT4, INT4, INT2, TEXT, BYTEA, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ),
    "insert_published": (UUID, TEXT, INT4, BYTEA, TIMESTAMPTZ),
    "insert_progress": (UUID, INT4, FLOAT8, FLOAT8, TIMESTAMPTZ),
    "set_attributes": (UUID, INT4, BYTEA, TIMESTAMPTZ),
    "note_beats": (UUID, INT4, INT4, TIMESTAMPTZ, BYTEA),
    "continue_runs": (UUID, UUID, INT4, TEXT, INT2, BYTEA, INT8),
    "insert_timers": (UUID, INT4, INT8, TIMESTAMPTZ),
    "insert_runs": (UUID, INT4, TEXT, INT2, BYTEA, UUID, INT4, INT8, INT2, INT2),
    "insert_traces": (UUID, TEXT, TEXT, TEXT),
    "told_cancel": (UUID,),
    "no_deadline": (UUID,),
    "close_children": (UUID,),
    "lose_children": (UUID, INT4),
    "drop_timers": (UUID, INT4),
    "insert_children_done": (UUID, INT4, INT4),
    "release": (UUID, TIMESTAMPTZ, INT2, TEXT, INT4, TEXT, INT4, INT2, TEXT, TIMESTAMPTZ),
    "park_on_children": (UUID, INT4, INT4, TIMESTAMPTZ, INT4, TEXT, TEXT, INT2, TEXT, TIMESTAMPTZ),
    "park_on_signals": (UUID, TEXT, TEXT, INT4, INT4, TIMESTAMPTZ, INT4, TEXT, TEXT, INT2, TEXT, TIMESTAMPTZ),
    "park_paused": (UUID, INT4, TEXT, INT2, TEXT),
    "insert_consumed": (UUID, TEXT, INT8, INT4),
    "insert_update_ends": (UUID, INT4, INT2, BYTEA, TIMESTAMPTZ),
    "accept_updates": (UUID, TEXT, TEXT, INT4),
    "reject_updates": (UUID, TEXT, TEXT, BYTEA),
    "publish": (UUID, INT2, INT4, TEXT, INT4, TIMESTAMPTZ),
    "fire_timers": (UUID, INT4, INT4, TEXT, INT2, INT2, BYTEA, TIMESTAMPTZ),
    "expire_tokens": (UUID, INT4, INT4),
    "wake_completed": (UUID, INT4, INT4),
    "wake_parents": (UUID,),
    "look_at_parked": (UUID,),
}
NOBODYS = ("wake_parents", "look_at_parked")  # of runs that are not in this worker's memory
# The generic plans of `publish` and `release` compare every row with every other (9,000 in one statement took 25 s): many small ones instead.
JOINED_ROWS_MAX = 64  # 2 ms of the server's; a statement more costs 0.1 ms
SAID = ("insert_published", "insert_progress", "set_attributes", "note_beats")  # what workflow code and steps say without waiting
WITH_WORKER = frozenset({"continue_runs", "insert_attempts", "release", "park_on_children", "park_on_signals", "park_paused", "fire_timers", "publish", "told_cancel", "no_deadline"})
PARKINGS = ("park_on_children", "park_on_signals", "park_paused")
INFINITY = (1 << 63) - 1  # timestamptz 'infinity' on the wire


@dataclass
class Batch:
    """Rows of one implicit transaction.

    runs      runs with something in it; leaving: those that are to leave memory when it is durable
    steps     parameters of insert_steps, outcomes: of finish, both without the worker's id
    rare      statement → [(run in memory, row)]
    said      what runs publish, how far they are, their attributes, signs of life of their steps: (run, statement, key) → the row; of what one batch would write twice the last is enough
    claim     parameters of the claim that rides along, or None; asked: how many it may bring
    missing   parameters of claim_missing, now and then beside it
    tried     what is counted when it is durable: (tally, what its `book` is given); None: what the rows say (counting.py)
    tries     how often it was refused by trouble of the session that may be a row's fault after all
    """

    runs: list[Any] = field(default_factory=list)
    finished: list[Any] = field(default_factory=list)
    leaving: list[Any] = field(default_factory=list)
    steps: list[bytes] | None = None
    outcomes: list[bytes] | None = None
    rare: dict[str, list[tuple[bytes, Row]]] = field(default_factory=dict)
    said: dict[tuple[bytes, str, str], Row] = field(default_factory=dict)
    claim: list[bytes] | None = None
    missing: list[bytes] | None = None
    asked: int = 0
    sent_at: float = 0.0
    tried: list[tuple[Any, bytes]] | None = field(default_factory=list)
    tries: int = 0

    def add(self, statement: str, run_id: bytes, row: Row) -> None:
        self.rare.setdefault(statement, []).append((run_id, row))

    @property
    def writes(self) -> bool:
        """Whether something would be lost with it."""
        return bool(self.runs or self.rare or self.said or self.steps or self.outcomes)

    def empty(self) -> bool:
        return not (self.runs or self.rare or self.steps or self.outcomes or self.claim)

    def statements(self, fence: list[bytes], worker: bytes) -> list[tuple[str, list[bytes] | None]]:
        """What is sent, in the order of locks: worker row, inserts, task rows, the claim."""
        out: list[tuple[str, list[bytes] | None]] = [("fence", fence)]
        if "wake_parents" in self.rare:
            parents = encode_rows((UUID,), sorted({row for _, row in self.rare["wake_parents"]}))
            out += [("plan_custom", None), ("lock_parents", parents), ("wake_parents", parents), ("plan_generic", None)]
        if "look_at_parked" in self.rare:
            out += [("plan_custom", None), ("look_at_parked", self._encoded("look_at_parked", worker)), ("plan_generic", None)]
        if self.steps is not None:
            out.append(("insert_steps" if len(self.steps) == PLAIN_COLUMNS else "insert_mixed_steps", [*self.steps, worker]))
        for name in ("insert_attempts", "insert_timers", "insert_runs", "insert_traces", "insert_consumed", "insert_update_ends", "drop_timers"):
            if name in self.rare:
                out.append((name, self._encoded(name, worker)))
        for name in SAID if self.said else ():
            rows = [row for (_, statement, _), row in self.said.items() if statement == name]
            if rows:
                out.append((name, encode_rows(RARE_OIDS[name], rows)))
        out += [(name, self._encoded(name, worker)) for name in ("told_cancel", "no_deadline") if name in self.rare]
        if "publish" in self.rare:
            out += self._sliced("publish", worker)
        if "continue_runs" in self.rare:
            out.append(("continue_runs", self._encoded("continue_runs", worker)))
        if self.outcomes is not None:
            out.append(("finish", [*self.outcomes, worker]))
        if "insert_children_done" in self.rare:
            out.append(("insert_children_done", encode_rows(RARE_OIDS["insert_children_done"], self._children_done())))
        for name in ("lose_children", "close_children"):
            if name in self.rare:
                out += [("plan_custom", None), (name, self._encoded(name, worker)), ("plan_generic", None)]
        if "release" in self.rare:
            out += self._sliced("release", worker)
        parkings = [name for name in PARKINGS if name in self.rare]
        if parkings:
            ids = encode_rows((UUID,), sorted((row[0],) for name in parkings for _, row in self.rare[name]))
            out += [("lock_own", [*ids, worker]), ("plan_custom", None)]
            out += [(name, self._encoded(name, worker)) for name in parkings]
            out.append(("plan_generic", None))
        for name in ("wake_completed", "expire_tokens"):
            if name in self.rare:
                out += [("plan_custom", None), (name, self._encoded(name, worker)), ("plan_generic", None)]
        if "fire_timers" in self.rare:
            out.append(("fire_timers", self._encoded("fire_timers", worker)))
        for name in ("accept_updates", "reject_updates"):  # after the task rows: whoever sends one locks both in that order
            if name in self.rare:
                out.append((name, self._encoded(name, worker)))
        if self.claim is not None:
            out.append(("claim", [*self.claim, worker]))
        if self.missing is not None:
            out.append(("claim_missing", [*self.missing, worker]))
        return out

    def claim_nothing(self) -> None:
        self.claim = self.missing = None
        self.asked = 0

    def parked_on_children(self) -> list[bytes]:
        """Runs that are parked here and wait for children, perhaps beside signals."""
        beside = (row[0] for _, row in self.rare.get("park_on_signals", ()) if row[3] is not None)
        return [*(row[0] for _, row in self.rare.get("park_on_children", ())), *beside]

    def _encoded(self, name: str, worker: bytes) -> list[bytes]:
        rows = encode_rows(RARE_OIDS[name], self._sorted(name))
        return [*rows, worker] if name in WITH_WORKER else rows

    def _sliced(self, name: str, worker: bytes) -> list[tuple[str, list[bytes] | None]]:
        """Statements of few rows each, in the order of locks over all of them."""
        rows = self._sorted(name)
        parts = (rows[at : at + JOINED_ROWS_MAX] for at in range(0, len(rows), JOINED_ROWS_MAX))
        return [(name, [*encode_rows(RARE_OIDS[name], part), worker]) for part in parts]

    def _sorted(self, name: str) -> list[Row]:
        return sorted((row for _, row in self.rare[name]), key=lambda row: row[0])

    def _children_done(self) -> list[Row]:
        """One row per parent, however many of its children ended here."""
        sums: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
        for _, (parent, n, failed) in self.rare["insert_children_done"]:
            sums[parent][0] += n
            sums[parent][1] += failed
        return [(parent, n, failed) for parent, (n, failed) in sums.items()]

    def nobodys(self) -> dict[str, list[tuple[bytes, Row]]]:
        """What belongs to no run in memory."""
        return {name: self.rare[name] for name in NOBODYS if name in self.rare}

    def halves(self) -> list[Batch]:
        """Two batches with half of the runs each; none of them claims."""
        middle = len(self.runs) // 2
        return [self.only({run.id for run in self.runs[:middle]}), self.only({run.id for run in self.runs[middle:]})]

    def only(self, ids: set[bytes]) -> Batch:
        """The part of this batch that belongs to the runs *ids*."""
        return self._part(ids.__contains__)

    def without(self, ids: set[bytes]) -> Batch:
        """This batch, but for what belongs to the runs *ids*; parents that are to be woken, or were parked, are nobody's."""
        part = self._part(lambda run_id: run_id not in ids)
        part.rare.update(self.nobodys())
        part.tries = self.tries
        return part

    def _part(self, mine: Callable[[bytes], bool]) -> Batch:
        part = Batch(
            runs=[run for run in self.runs if mine(run.id)],
            finished=[run for run in self.finished if mine(run.id)],
            leaving=[run for run in self.leaving if mine(run.id)],
            steps=_rows_of(self.steps, STEP_OIDS, mine),
            outcomes=_rows_of(self.outcomes, OUTCOME_OIDS, mine),
            tried=None,
        )
        part.said = {which: row for which, row in self.said.items() if mine(which[0])}
        for name, rows in self.rare.items():
            kept = [entry for entry in rows if mine(entry[0])]
            if kept:
                part.rare[name] = kept
        return part


def _rows_of(params: list[bytes] | None, oids: tuple[int, ...], mine: Callable[[bytes], bool]) -> list[bytes] | None:
    if params is None:
        return None
    kept = [row for row in zip(*(elements(column) for column in params), strict=True) if mine(row[0])]
    if not kept:
        return None
    columns = [Column(oid) for oid in oids[: len(params)]]
    for row in kept:
        for column, value in zip(columns, row, strict=True):
            column.put_null() if value is None else column.put(value)
    return [column.take() for column in columns]


__all__ = ["HOT", "INFINITY", "Batch", "elements", "encode_rows"]
