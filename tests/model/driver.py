"""Play a batch of programs on a real host: start them all at once, send what they wait for, cancel where they want it, and read what became of them.

Signals and cancellations follow what the model says and what runs publish, so that each meets its run at a determined command. Owns
no verdict: `verdict.py` compares.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from supervisor import Client, OperationRefused, RunClosed, RunEnded, Signal
from tests.apps import modelled
from tests.harness import Database
from tests.model.model import CANCELLED_BY, Expected, Message, failed_row, forks, predict

WORKFLOWS = {"async": modelled.modelled, "def": modelled.modelled_def}
POLL_S = 0.02
ENDED_WITHIN_S = 180.0
CLOCKS_APART_MS = 5  # an id that a client makes may be so much older than one that the database makes then; the batch before ended earlier
TABLES = ["create table modelled_ledger (place text, attempt int, n serial)"]


@dataclass
class Row:
    """A row of the history, as it stands in the table."""

    seq: int
    pos: int
    kind: str
    name: str
    status: str
    result: bytes | None


@dataclass
class Found:
    """What became of one run."""

    run_id: UUID
    place: str
    workflow: str
    parent: UUID | None
    status: str | None  # None: it lives
    result: bytes | None
    steps: int
    rows: list[Row] = field(default_factory=list)
    failed: dict[int, list[int]] = field(default_factory=dict)  # seq → attempts that raised
    published: dict[str, Any] = field(default_factory=dict)
    wait: str | None = None


@dataclass
class Played:
    """A batch that has ended: what was expected of each program, and what was found."""

    name: str
    programs: list[dict[str, Any]]
    expected: list[Expected]
    killed: int
    problems: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))  # by place
    notes: dict[tuple[str, int], list[bool]] = field(default_factory=lambda: defaultdict(list))  # (place, attempt) → redelivered, each time
    ledger: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


class Driver:
    """Plays batches on one database and the host that serves it. `kill` ends workers."""

    def __init__(self, client: Client, database: Database, folder: Path, kill: Callable[[], int] = lambda: 0) -> None:
        self.client, self.database, self.folder, self.kill = client, database, folder, kill
        self.ended_within_s = ENDED_WITHIN_S
        self.batches = self.notes_read = self.ledger_read = self.cancelled = 0

    def play(self, programs: list[dict[str, Any]], kills: Sequence[float] = ()) -> list[Played]:
        """Play them all at once, and then what is to be done with those that have ended; *kills*: workers are killed when no larger part of the runs is live."""
        self.batches += 1
        name = f"b{self.batches}"
        began = self._now()
        talks = []
        expected = [predict(str(n), program["style"], program["body"]) for n, program in enumerate(programs)]
        for root, program in zip(expected, programs, strict=True):
            talks.append(Talk(self, name, root))
            talks[-1].start(program["body"])
        first = self._played(name, programs, talks, began, kills)
        began = self._now()
        talks = [talk for root, program in zip(expected, programs, strict=True) for talk in self._operated(first, root, program)]
        return [first, self._played(f"{name}f", programs, talks, began, kills)] if talks else [first]

    def _now(self) -> UUID:
        return UUID(int=self.database.one("select supervisor.new_id()").int - (CLOCKS_APART_MS << 80))

    def _played(self, name: str, programs: list[dict[str, Any]], roots: list[Talk], began: UUID, kills: Sequence[float]) -> Played:
        """Talk to the runs that were begun, and to all below them, until they have ended; read what is left."""
        below = [Talk(self, name, run) for root in roots for run in root.run.all()[1:]]
        killed = self._until_ended(began, {talk.run.place: talk for talk in [*roots, *below]}, kills)
        played = Played(name, programs, [talk.run for talk in roots], killed)
        for talk in [*roots, *below]:
            played.problems[int(talk.run.place.split(".")[0])] += talk.said
        Reading(self, played, began).read()
        return played

    def _operated(self, first: Played, root: Expected, program: dict[str, Any]) -> list[Talk]:
        """The run of *program* has ended as *root* says: retry or fork it, if it is known what comes of that."""
        found = first.runs.get(root.place, [])
        verb, *where = program.get("then") or [""]
        if not verb or not forks(root) or [run.status for run in found] != [root.status]:
            return []
        if first.killed and any(record.name == "modelled_once" for record in root.records):  # it may have been interrupted
            return []
        number, style, body = root.place, program["style"], program["body"]
        if verb == "fork":
            given = where[0] % (len(root.records) + 1)
            after = predict(number, style, body, given, variant=1, inbox=root.messages)
            seq = root.records[given].seq if given < len(root.records) else None
            changed = {"batch": f"{first.name}f", "at": number, "body": body, "variant": 1}
            return [Talk(self, f"{first.name}f", after, self.client.fork(found[0].run_id, seq, input=changed).id)]
        row = failed_row(root)
        if row is None:
            return []
        (self.folder / f"gate-{first.name}-{number}").touch()
        after = predict(number, style, body, row, opened=True, inbox=root.messages)
        return [Talk(self, f"{first.name}f", after, self.client.retry(found[0].run_id, "the gates are open").id)]

    def _until_ended(self, began: UUID, talks: dict[str, Talk], kills: Sequence[float]) -> int:
        killed, until, due = 0, time.monotonic() + self.ended_within_s, sorted(kills, reverse=True)
        roots = sum("." not in place for place in talks)
        while time.monotonic() < until:
            self._hear(began, talks)
            for talk in talks.values():
                talk.go_on()
            live = self.database.one("select count(*) from supervisor.task where run_id > %s", began)
            if not live:
                break
            if due and live < roots * due[0]:
                due.pop(0)
                killed += self.kill()
            time.sleep(POLL_S)
        return killed

    def _hear(self, began: UUID, talks: dict[str, Talk]) -> None:
        """Which runs there are now, and what they have published."""
        if any(talk.run_id is None and talk.has_to_say for talk in talks.values()):
            known = [talk.run_id for talk in talks.values() if talk.run_id is not None]
            query = "select run_id, supervisor.as_json(input, codec) ->> 'at' from supervisor.run where run_id > %s and run_id <> all (%s)"
            for run_id, place in self.database.sql(query, began, known):
                if place in talks:
                    talks[place].run_id = run_id
        if any(talk.has_to_say for talk in talks.values()):
            by_id = {talk.run_id: talk for talk in talks.values()}
            for run_id, key in self.database.sql("select run_id, key from supervisor.publication where run_id > %s", began):
                if run_id in by_id:
                    by_id[run_id].published.add(key)


class Talk:
    """What is said to one run."""

    def __init__(self, driver: Driver, batch: str, run: Expected, run_id: UUID | None = None) -> None:
        self.driver, self.batch, self.run, self.run_id = driver, batch, run, run_id
        self.published: set[str] = set()
        self.said: list[str] = []  # what should not have happened
        self.cancel_at = run.cancel_at
        self.queues: dict[str, list[Message]] = defaultdict(list)
        for message in run.messages:
            self.queues[message.name].append(message)

    @property
    def has_to_say(self) -> bool:
        return self.cancel_at is not None or any(self.queues.values())

    def id_of(self, message: Message) -> str:
        return f"{self.batch} {message.place}"

    def start(self, body: list[Any]) -> None:
        """Start the run, with its first message where that is to come with the start."""
        what, args = WORKFLOWS[self.run.style], (self.batch, self.run.place, body)
        first = next((messages[0] for messages in self.queues.values() if messages[0].when == "with"), None)
        if first is None:
            self.run_id = self.driver.client.start(what, *args).id
        else:
            message = Signal(first.name).message(first.value, id=self.id_of(first))
            self.run_id = self.driver.client.signal_with_start(message, what, *args).id

    def go_on(self) -> None:
        """Send what is to be sent now, each twice: the second is the first."""
        if self.run_id is None:
            return
        try:
            for messages in self.queues.values():
                while messages and (messages[0].when != "after" or messages[0].place in self.published or not self.run.certain):
                    self._send(messages[0])
                    messages.pop(0)
        except RunClosed:
            self.queues.clear()
        if self.cancel_at is not None and self.cancel_at in self.published:
            self._cancel(self.run_id, self.cancel_at)
            self.cancel_at = None

    def _cancel(self, run_id: UUID, at: str) -> None:
        """Every other time it is paused before, or somebody tries to pause it after: that holds up nothing."""
        self.driver.cancelled += 1
        early = self.driver.cancelled % 2
        if early:
            self._pause(run_id)
        self.driver.client.cancel(run_id, f"cancel {at}", actor=CANCELLED_BY)
        if not early and (state := self._pause(run_id)):
            self.said.append(f"it was {state} when it had been cancelled")

    def _pause(self, run_id: UUID) -> str | None:
        try:
            return self.driver.client.pause(run_id)
        except (OperationRefused, RunEnded):
            return None

    def _send(self, message: Message) -> None:
        assert self.run_id is not None
        for time_ in range(2):
            new = self.driver.client.signal(self.run_id, Signal(message.name), message.value, id=self.id_of(message))
            if new and time_:
                self.said.append(f"message {message.place} was stored twice")


class Reading:
    """All that is left of a batch, in a few statements."""

    def __init__(self, driver: Driver, played: Played, began: UUID) -> None:
        self.driver, self.sql, self.played, self.began = driver, driver.database.sql, played, began

    def read(self) -> None:
        found = {row.run_id: row for row in self._runs()}
        steps = "select v.run_id, v.seq, v.pos, v.kind, v.name, v.status, s.result from supervisor.steps v join supervisor.step s using (run_id, seq) where v.run_id > %s order by 1, 3"
        for run_id, *row in self.sql(steps, self.began):
            found[run_id].rows.append(Row(*row))
        for run_id, seq, n in self.sql("select run_id, seq, n from supervisor.attempt where run_id > %s and kind = 1 order by 1, 2, 3", self.began):
            found[run_id].failed.setdefault(seq, []).append(n)
        for run_id, key, value in self.sql("select run_id, key, value from supervisor.publication where run_id > %s order by pos", self.began):
            found[run_id].published[key] = json.loads(value)
        self._effects()

    def _runs(self) -> list[Found]:
        query = """
            select r.run_id, r.input ->> 'at', r.workflow, r.parent_id, case when r.ended_at is not null then r.status end, o.result, coalesce(o.steps, 0), r.wait
            from supervisor.runs r left join supervisor.outcome o using (run_id) where r.run_id > %s"""
        runs = []
        for *facts, wait in self.sql(query, self.began):
            run = Found(*facts)
            run.wait = wait
            runs.append(run)
            self.played.runs[run.place].append(run)
        return runs

    def _effects(self) -> None:
        """What steps have done since it was last read; of an earlier batch is what nobody waited for."""
        driver, batch = self.driver, f"b{self.driver.batches}"
        for at, attempt, driver.ledger_read in self.sql("select place, attempt, n from modelled_ledger where n > %s order by n", driver.ledger_read):
            name, _, place = at.partition("/")
            if name.removesuffix("f") == batch:
                self.played.ledger[place].append(attempt)
        with (driver.folder / "notes").open("ab+") as notes:
            notes.seek(driver.notes_read)
            lines = notes.readlines()
            driver.notes_read = notes.tell()
        for at, attempt, redelivered in map(json.loads, lines):
            name, _, place = at.partition("/")
            if name.removesuffix("f") == batch:
                self.played.notes[place, attempt].append(redelivered)


def kill_times(draw: random.Random) -> list[float]:
    """When workers are killed while a batch is played: once or twice."""
    return [draw.uniform(0.3, 1.1) for _ in range(draw.choice([1, 2]))]
