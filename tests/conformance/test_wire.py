"""What goes over the wire: one Sync makes a whole batch durable, however many runs are in it.

Counted by a proxy between worker and server that reads the frontend's messages, not by the engine's own numbers.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import Client
from tests.apps import slept
from tests.faults import apps_plain, apps_queues
from tests.harness import Database, Effects, HostFactory, eventually

WRITES = {"insert_steps", "insert_mixed_steps", "insert_attempts", "finish", "release", "claim", "insert_runs", "insert_timers", "fire_timers"}


@dataclass
class Batch:
    """What was bound between two Syncs: (prepared statement, rows in its first array parameter)."""

    binds: list[tuple[str, int]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.binds]

    def rows(self, name: str) -> int:
        return sum(rows for bound, rows in self.binds if bound == name)


@dataclass
class Session:
    """One session's messages from the frontend, grouped by Sync."""

    application_name: str = ""
    batches: list[Batch] = field(default_factory=list)
    open: Batch = field(default_factory=Batch)
    _bytes: bytearray = field(default_factory=bytearray)
    _started: bool = False

    def feed(self, data: bytes) -> None:
        self._bytes += data
        while self._take():
            pass

    def _take(self) -> bool:
        head = 0 if not self._started else 1
        if len(self._bytes) < head + 4:
            return False
        size = head + struct.unpack_from(">i", self._bytes, head)[0]
        if len(self._bytes) < size:
            return False
        kind, body = self._bytes[:head], bytes(self._bytes[head + 4 : size])
        del self._bytes[:size]
        if not self._started:
            self._startup(body)
        else:
            self._message(bytes(kind), body)
        return True

    def _startup(self, body: bytes) -> None:
        self._started = True
        words = body[4:].split(b"\0")
        self.application_name = dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()

    def _message(self, kind: bytes, body: bytes) -> None:
        if kind == b"S":
            self.batches.append(self.open)
            self.open = Batch()
        elif kind == b"B":
            self.open.binds.append(_bound(body))
        elif kind in (b"Q", b"H"):  # a simple query; a request to answer in mid-batch
            self.open.binds.append((f"message {kind.decode()}", 0))


def _bound(body: bytes) -> tuple[str, int]:
    """The statement's name and the number of elements of its first parameter, where that is a binary array."""
    _portal, name, rest = body.split(b"\0", 2)
    formats = struct.unpack_from(">h", rest)[0]
    at = 2 + 2 * formats
    if struct.unpack_from(">h", rest, at)[0] == 0:
        return name.decode(), 0
    size = struct.unpack_from(">i", rest, at + 2)[0]
    value = rest[at + 6 : at + 6 + max(size, 0)]
    is_array = len(value) >= 20 and struct.unpack_from(">i", value)[0] == 1
    return name.decode(), struct.unpack_from(">i", value, 12)[0] if is_array else 0


class Proxy:
    """Passes everything on between a unix socket in a folder of its own and the server's; keeps what frontends sent."""

    def __init__(self, folder: Path, dsn: str) -> None:
        server = psycopg.conninfo.conninfo_to_dict(dsn)
        name = f".s.PGSQL.{server.get('port') or 5432}"
        self._server = f"{server['host']}/{name}"
        self.dsn = psycopg.conninfo.make_conninfo(dsn, host=str(folder))
        self.sessions: list[Session] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / name))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            back = socket.socket(socket.AF_UNIX)
            back.connect(self._server)
            session = Session()
            self.sessions.append(session)
            threading.Thread(target=_pass_on, args=(front, back, session.feed), daemon=True).start()
            threading.Thread(target=_pass_on, args=(back, front, lambda _: None), daemon=True).start()

    def loops(self) -> list[Session]:
        """Sessions of workers' loops."""
        return [session for session in self.sessions if session.application_name.startswith("pgsupervisor: worker ")]

    def close(self) -> None:
        self._listener.close()


def _pass_on(source: socket.socket, target: socket.socket, look) -> None:  # type: ignore[no-untyped-def]
    try:
        while data := source.recv(1 << 16):
            look(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()


@pytest.fixture
def proxy(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("wire"), database.dsn)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def proxied(database: Database, proxy: Proxy, effects: Effects, tmp_path: Path) -> Iterator[HostFactory]:
    """Hosts whose workers reach the server through the proxy."""
    factory = HostFactory(replace(database, dsn=proxy.dsn, _conn=None), effects, tmp_path)
    try:
        yield factory
    finally:
        factory.stop_all()


def register(hosts: HostFactory, app: str) -> None:
    """Let the catalogue know the app, so that runs can be started before the host under test."""
    with hosts(app):
        pass


def worked(session: Session) -> list[Batch]:
    """The batches from the loop's first on; before, each statement of the worker's birth stands alone. What only asks, or listens, has no fence."""
    first = next(at for at, batch in enumerate(session.batches) if "fence" in batch.names)
    return [batch for batch in session.batches[first:] if not all(name.startswith(("read_", "look_at_", "plan_", "hear")) for name in batch.names)]


@pytest.mark.parametrize("app", [apps_plain, apps_queues], ids=["one queue", "one queue of three is busy"])
def test_one_sync_makes_a_batch_durable_however_many_runs_are_in_it(
    database: Database, hosts: HostFactory, proxied: HostFactory, proxy: Proxy, build: str, app: Any
) -> None:
    """A commit costs the server a flush of its log: at one per step no engine is quick."""
    runs, steps = 3000, 10
    register(hosts, app.__name__)
    with Client(database.dsn) as client:
        client.start_many(app.ten_steps, range(runs))
    with proxied(app.__name__, build=build):
        eventually(lambda: database.one("select count(*) from supervisor.outcome where status = 1") == runs, 60)
    (session,) = proxy.loops()
    batches = worked(session)
    # every Sync ends one batch: one fence, and it comes first; no statement that writes comes twice
    for batch in batches:
        assert batch.names[0] == "fence" and batch.names.count("fence") == 1, f"a Sync without a fence before it: {batch.binds}"
        assert not {"message Q", "message H"} & set(batch.names), f"a simple query, or a wait for the server in mid-batch: {batch.binds}"
        twice = {name for name in WRITES if batch.names.count(name) > 1}
        assert not twice, f"{twice} more than once in one batch: {batch.binds}"
    # all that was done went that way, and nothing by the simple protocol
    assert sum(batch.rows("insert_steps") for batch in batches) == runs * steps
    assert sum(batch.rows("finish") for batch in batches) == runs
    assert not any(batch.names for batch in [session.open]), "a batch without its Sync"
    # and far fewer Syncs than steps; the batch that carries most carries hundreds of runs
    syncs = len(batches)
    print(
        {
            "syncs": syncs,
            "steps": runs * steps,
            "syncs_per_step": syncs / (runs * steps),
            "largest": max(batch.rows("insert_steps") for batch in batches),
        }
    )
    assert syncs < 0.05 * runs * steps
    assert max(batch.rows("insert_steps") for batch in batches) >= 500


def test_history_of_resumed_runs_is_read_in_one_batch_for_many_runs(
    database: Database, hosts: HostFactory, proxied: HostFactory, proxy: Proxy, build: str
) -> None:
    """What a killed worker held comes back by few reads: at most one batch of reads per 64 runs."""
    runs = 300
    host = hosts.start("tests.faults.apps_plain", build=build, threads=1000).wait_up(1)
    with Client(database.dsn) as client:
        client.start_many(apps_plain.waits_at_gate, ({"word": f"w{n}"} for n in range(runs)))
    held = hosts.effects
    eventually(lambda: held.count("held") == runs, 30)
    host.kill_all()
    held.open("gate")
    with proxied("tests.faults.apps_plain", build=build):
        eventually(lambda: database.one("select count(*) from supervisor.outcome where status = 1") == runs, 30)
    (session,) = proxy.loops()
    reads = [batch for batch in session.batches if "read_steps" in batch.names]
    print({"read_batches": len(reads), "runs": sum(batch.rows("read_steps") for batch in reads)})
    assert sum(batch.rows("read_steps") for batch in reads) == runs
    # claims grow from a handful: small ones at first, then full slices
    assert len(reads) <= runs / 8
    for batch in reads:
        assert batch.names[:2] == ["look_at_requests", "plan_custom"] and batch.names[-1] == "plan_generic", "history read with a generic plan locks every partition"


def test_ends_of_sleeps_are_recorded_under_the_fence(database: Database, proxied: HostFactory, proxy: Proxy, build: str) -> None:
    """A worker that was declared dead ends no sleep: what is written beside a reading is fenced as every batch is. Hundreds are one statement."""
    runs = 300
    with proxied("tests.apps.slept", build=build), Client(database.dsn) as client:
        started = client.start_many(slept.slept_short, ({"label": f"wire {n}"} for n in range(runs)))
        parked = "select count(*) from supervisor.task where owner is null and wait_kind = 10 and ready_at > now()"
        eventually(lambda: database.one(parked) == runs, 60)
        database.sql("with t as (update supervisor.timer set due_at = now()) update supervisor.task set ready_at = now()")
        assert [run.result(timeout=60) for run in started] == [f"wire {n}" for n in range(runs)]
    (session,) = proxy.loops()
    woken = [batch for batch in session.batches if "fire_slept" in batch.names]
    assert sum(batch.rows("fire_slept") for batch in woken) == runs
    assert len(woken) <= runs / 8
    for batch in woken:
        assert batch.names[:4] == ["fence", "look_at_requests", "plan_custom", "fire_slept"] and batch.names[-1] == "plan_generic"
    assert not any("fire_timers" in batch.names for batch in session.batches)
