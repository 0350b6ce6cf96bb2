"""What a worker asks outside of its loop: when it is born, and when a new session of it takes over from a lost one.

Everything here blocks; the session then becomes the loop's pipeline. Knows ids and rows, nothing of coroutines.
The order of taking over is what makes it right: end the earlier session, see that its sign of life is free (so nothing of
it can commit any more), take its tasks in the transaction that declares it dead, and only then look what was durable.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from supervisor._fastpath.wire import clock_us
from supervisor.core import ends
from supervisor.core.errors import DatabaseUnavailable, Fenced
from supervisor.core.ids import clock_offset_us
from supervisor.db.connect import connect
from supervisor.db.pipeline import Pipeline
from supervisor.db.statements import Sql, identifier, wake_channel, wake_now_channel

GONE_S, LOOK_S = 5.0, 0.01  # how long a session that was told to end is waited for, and how often it is looked at
CLOCK_LOOKS = 5  # 0.1 ms each; the first one has to read the statement

log = logging.getLogger("pgsupervisor.worker")


@dataclass(frozen=True)
class Identity:
    """The token of every fence: the worker's id, its process's boot id, and its epoch. `server` says where that holds."""

    id: int
    boot: UUID
    epoch: int = 1
    server: tuple[int, int] = (0, 0)  # system identifier and timeline, 0 where the server keeps one to itself

    def fence(self) -> list[bytes]:
        """Parameters of the statements that fence."""
        return [self.id.to_bytes(4, "big"), self.boot.bytes, self.epoch.to_bytes(4, "big")]


@dataclass(frozen=True)
class Origin:
    """The process, as its row in `worker` names it."""

    boot: UUID
    host: str
    pid: int
    supervisor: UUID


@dataclass
class Wanted:
    """What is asked about batches whose answer was lost."""

    steps: list[tuple[bytes, int]] = field(default_factory=list)  # run, seq
    outcomes: list[bytes] = field(default_factory=list)
    attempts: list[tuple[bytes, int, int, int]] = field(default_factory=list)  # run, seq, n, kind
    timers: list[tuple[bytes, int]] = field(default_factory=list)
    children: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # parent, seq, child


@dataclass
class Durable:
    """What of it is there. Times are us since 2000."""

    steps: dict[tuple[bytes, int], int] = field(default_factory=dict)  # → ended
    outcomes: set[bytes] = field(default_factory=set)
    attempts: set[tuple[bytes, int, int, int]] = field(default_factory=set)
    timers: dict[tuple[bytes, int], tuple[int, int]] = field(default_factory=dict)  # → due, from now to due
    children: set[bytes] = field(default_factory=set)


class WorkerCalls:
    """One session under the loop's profile, before it is a pipeline. Every method raises DatabaseUnavailable."""

    def __init__(self, dsn: str, schema: str, boot: UUID) -> None:
        self._sql = Sql(schema)
        purpose = f"worker {boot.hex[:8]}"
        self._conn = connect(dsn, purpose=purpose, schema=schema, profile="loop")
        self.application_name = self._conn.info.parameter_status("application_name") or f"pgsupervisor: {purpose}"

    def close(self) -> None:
        self._conn.close()

    def _rows(self, name: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._conn.execute(self._sql.get(name), parameters)
        return cursor.fetchall() if cursor.description is not None else []

    def _one(self, name: str, *parameters: Any) -> Any:
        return self._rows(name, parameters)[0][0]

    # ── birth ────────────────────────────────────────────────────────────────────────────────────────────────────

    def register(self, origin: Origin) -> Identity:
        """A new incarnation with its sign of life."""
        with _told("registering"):
            return self._incarnation(origin, self.server())

    def _incarnation(self, origin: Origin, server: tuple[int, int]) -> Identity:
        id = self._one("register_worker", origin.boot, origin.host, origin.pid, origin.supervisor)
        if not self._one("live_lock", id):
            raise Fenced(f"the sign of life of worker {id} is taken; another program uses advisory locks of this class")
        return Identity(id, origin.boot, 1, server)

    def server(self) -> tuple[int, int]:
        """Which cluster this is and on which timeline it writes; 0 for what can't be known."""
        with _told("asking which server this is"):
            return read_server(self._conn, self._sql)

    def upsert_workflow(self, name: str, queue: str, timeout_s: float | None, described: bytes) -> tuple[int, int]:
        """Tell the catalogue what this worker can run; returns the numbers of workflow and queue."""
        with _told("registering workflows"):
            workflow_id, queue_id = self._rows("upsert_workflow", (name, queue, timeout_s, described))[0]
            return workflow_id, queue_id

    def serve(self, versions: Sequence[tuple[int, str, str]], queues: Iterable[int], worker: int) -> None:
        """Say which version of each workflow the worker has: (workflow, version, module and function); and from which queues it claims."""
        with _told("registering versions"):
            ordered = sorted(versions)
            self._rows("serve_versions", (*([row[column] for row in ordered] for column in range(3)), sorted(queues), worker))

    def declare_schedule(self, name: str, said: str, hashed: str) -> None:
        """Say what the app declares of a schedule; one that is as it was declared last is left as it is."""
        with _told(f"declaring schedule {name!r}"):
            if (done := self._one("declare_schedule", name, said, hashed)) != "unchanged":
                log.info("schedule %s %s as the app declares it", name, done)

    def queue_id(self, name: str) -> int:
        with _told("registering queues"):
            number: int = self._one("queue_id", name)
            return number

    def clock_offset_us(self) -> int:
        """The database's clock minus this machine's, by the quickest of a few questions."""
        with _told("reading the clock"):
            looks = [(clock_us(), self._one("clock"), clock_us()) for _ in range(CLOCK_LOOKS)]
        asked, told, answered = min(looks, key=lambda look: look[2] - look[0])
        return clock_offset_us(asked, answered, told)

    def token_key(self) -> bytes:
        """What tokens are made with."""
        with _told("reading the key of tokens"):
            key: bytes = self._one("token_key")
            return key

    def cell(self) -> int:
        with _told("reading the cell"):
            number: int = self._one("cell_number")
            return number

    def pipeline(self, statements: Mapping[str, str]) -> Pipeline:
        """From here on the session belongs to the loop. Each statement is that of the block which is named beside it."""
        with _told("preparing"):
            pipeline = Pipeline(self._conn)
            for name, block in statements.items():
                pipeline.prepare(name, self._sql.get(block))
            pipeline.prepare("hear", f"LISTEN {identifier(wake_channel(self._sql.schema))}")
            pipeline.prepare("hear_now", f"LISTEN {identifier(wake_now_channel(self._sql.schema))}")
            pipeline.enter()
            return pipeline

    # ── a lost session ───────────────────────────────────────────────────────────────────────────────────────────

    def take_over(
        self, origin: Origin, first_id: int, server: tuple[int, int], known: Sequence[bytes] | None, end_all: bool = False
    ) -> tuple[Identity, set[bytes], list[int]]:
        """Become a new worker and take what the process's earlier ids hold, in one transaction.

        first_id  the first id of this process     known  runs in memory; None gives everything back instead
        end_all   end the session for transactional steps too: one that is stuck between its fence and its COMMIT holds the worker's row
        Returns   the new identity, the runs that are its own, the earlier ids
        Raises    DatabaseUnavailable also when an earlier session does not end within 5 s
        """
        deadline = time.monotonic() + GONE_S
        names = [self.application_name, *([self.application_name.replace(": worker ", ": tx ")] if end_all else [])]
        while True:
            with _told("taking over from the lost session"):
                self._rows("end_earlier_sessions", (names, first_id, origin.boot))
                with self._conn.transaction():
                    earlier = [id for (id,) in self._rows("lock_earlier", (first_id, origin.boot))]
                    if all(self._one("earlier_is_gone", id) for id in earlier):
                        return self._adopt(origin, earlier, server, known)
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"an earlier session of this worker ({self.application_name}) was told to end and is still there")
            time.sleep(LOOK_S)

    def _adopt(self, origin: Origin, earlier: list[int], server: tuple[int, int], known: Sequence[bytes] | None) -> tuple[Identity, set[bytes], list[int]]:
        new = self._incarnation(origin, server)
        self._rows("inherit_versions", (earlier, new.id))
        self._rows("bury_earlier", (ends.adopted_by(new.id), earlier))
        if known is None:
            self._rows("give_back_tasks", (earlier,))
            return new, set(), earlier
        rows = self._rows("adopt_tasks", {"earlier": earlier, "known": _ids(known), "id": new.id})
        return new, {run_id.bytes for run_id, own in rows if own}, earlier

    def durable(self, wanted: Wanted, ids: list[int]) -> Durable:
        """What of *wanted* is there, made by one of the worker's *ids*."""
        found = Durable()
        with _told("looking what was durable"):
            if wanted.steps:
                rows = self._rows("durable_steps", (*_columns(wanted.steps, 2), ids))
                found.steps = {(run_id.bytes, seq): ended for run_id, seq, ended in rows}
            if wanted.outcomes:
                found.outcomes = {run_id.bytes for (run_id,) in self._rows("durable_outcomes", (_ids(wanted.outcomes), ids))}
            if wanted.attempts:
                rows = self._rows("durable_attempts", (*_columns(wanted.attempts, 4), ids))
                found.attempts = {(run_id.bytes, seq, n, kind) for run_id, seq, n, kind in rows}
            if wanted.timers:
                rows = self._rows("durable_timers", _columns(wanted.timers, 2))
                found.timers = {(run_id.bytes, seq): (due, due_in) for run_id, seq, due, due_in in rows}
            if wanted.children:
                parents, seqs, kids = zip(*wanted.children, strict=True)
                found.children = {kid.bytes for (kid,) in self._rows("durable_children", (_ids(parents), list(seqs), _ids(kids)))}
        return found


def read_server(conn: psycopg.Connection[Any], sql: Sql) -> tuple[int, int]:
    """System identifier and timeline of the server; 0 for what a managed server keeps to itself."""
    found = []
    for statement in ("server_identifier", "server_timeline"):
        try:
            row = conn.execute(sql.get(statement)).fetchone()
            found.append(int(row[0]) if row else 0)
        except psycopg.errors.InsufficientPrivilege:
            found.append(0)
    return found[0], found[1]


def _ids(run_ids: Iterable[bytes]) -> list[UUID]:
    return [UUID(bytes=run_id) for run_id in run_ids]


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Arrays of the rows' columns, the first of which is a run id."""
    return [_ids(row[0] for row in rows), *([row[column] for row in rows] for column in range(1, width))]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever the server says here, the session is of no use and another one is tried."""
    try:
        yield
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from None


__all__ = ["Durable", "Identity", "Origin", "Wanted", "WorkerCalls", "read_server"]
