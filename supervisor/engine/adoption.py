"""What a worker does when it no longer knows what is its own: its session was lost, or a run was taken from it.

Owns that protocol on the loop's side; the process, its threads and its coroutines live on. While there is no session
nothing is sent, claimed or begun. The new session is prepared by a thread, for it may take hours, and steps that are
tasks of the event loop go on meanwhile. Invariant: nothing is repeated before the old session can't commit any more and
was looked for; nothing is written for a run before this worker knows that it is still its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor._fastpath.loop import Run
from supervisor.core.errors import DatabaseUnavailable, Fenced
from supervisor.core.shown import count
from supervisor.db.arrays import elements, encode_rows
from supervisor.db.pipeline import Pipeline, Refused
from supervisor.db.worker_calls import Durable, Identity, Wanted, WorkerCalls
from supervisor.engine.batch import Batch
from supervisor.engine.executors import Call
from supervisor.engine.reading import Reads
from supervisor.engine.visibility import loop_hidden

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

log = logging.getLogger("pgsupervisor.worker")

ASKED = ("read_identity", "read_own")  # statements of this protocol that go through the loop's session
BACKOFF_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
END_ALL_AFTER = 3  # tries of taking over; then the session for transactional steps may be what is in the way
QUEUED = 1
NAMED_MAX = 5  # of runs that were taken away together
_i4 = struct.Struct(">i").unpack


@dataclass
class Own:
    """Runs about which was asked whether they are still this worker's."""

    runs: dict[bytes, Run]


@dataclass
class News:
    """What the thread that reconnects brings."""

    identity: Identity
    pipeline: Pipeline
    application_name: str
    own: set[bytes]
    durable: Durable
    catalogue: tuple[dict[str, int], dict[str, int]]
    offset_us: int


class Adoption:
    """`away`: there is no session. `asking`: a refused worker waits to hear what is still its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.away = self.asking = False
        self.losses = 0  # sessions lost since a batch was last acknowledged
        self._unknown: list[Batch] = []
        self._lost_at = 0.0
        self._stopping = threading.Event()
        self._events, self._context = asyncio.get_running_loop(), copy_context()  # of no step

    def stop(self) -> None:
        self._stopping.set()

    def _hold(self) -> None:
        self._worker.held = self.away or self.asking

    def known(self) -> dict[bytes, Run]:
        """Every run that this worker believes to be its own."""
        worker = self._worker
        runs: dict[bytes, Run] = dict(worker.loop.live)
        reads = [token.runs for token in worker.pipeline.unanswered() if isinstance(token, Reads)]
        for part in (worker.reading.waiting, *reads):
            runs.update((run.id, run) for run, _ in part)
        for batch in (*self._unknown, *worker.repairs):
            runs.update((run.id, run) for run in batch.runs)
        runs.update((run.id, run) for run in worker.loop.runs)
        return runs

    def drop(self, lost: dict[bytes, Run]) -> None:
        """Forget runs that are others' now, without executing anything of them, and all that was to be written of them."""
        worker = self._worker
        for run in lost.values():
            for cmd in list((run.open or {}).values()):
                if isinstance(cmd.extra, Call):
                    worker.executors.give_up(cmd.extra)
            worker.loop.evict(run)
        if not lost:
            return
        ids = set(lost)
        batches = [batch.without(ids) for batch in (*worker.repairs, worker.take_batch())]
        worker.repairs = deque(batch for batch in batches if not batch.empty())

    # ── refused: a run was taken away ────────────────────────────────────────────────────────────────────────────

    def refused(self, batch: Batch) -> None:
        """The fence refused this batch, so nothing of it was done. It is kept until it is known which of its runs are left."""
        if not batch.empty():
            self._worker.repairs.append(batch)
        self.ask()

    def ask(self) -> None:
        """Ask what this worker's epoch is now and which runs are still its own. Batches wait for the answer."""
        if self.away or self.asking:
            return
        self.asking = True
        self._hold()
        worker, runs = self._worker, self.known()
        ids = encode_rows((UUID_OID,), [(run_id,) for run_id in runs])
        id, boot, _ = worker.identity.fence()
        worker.ask(Own(runs), [("read_identity", [id, boot]), ("read_own", [*ids, id])])

    def told(self, asked: Own, answer: dict[str, Any] | Refused) -> None:
        """The answer. Raises Fenced when this worker was declared dead."""
        worker = self._worker
        self.asking = False
        self._hold()
        if isinstance(answer, Refused):
            worker.trouble = DatabaseUnavailable(f"what is still this worker's can't be read: {answer.message} ({answer.sqlstate})")
            return
        alive, own = answer["read_identity"], answer["read_own"]
        if alive.ntuples == 0:
            raise Fenced(f"worker {worker.id} was declared dead; its claims belong to others now")
        if self.known().keys() - asked.runs.keys():  # claimed by a batch that was in flight when it was asked: they may be lost as well
            self.ask()
            return
        epoch = _i4(alive.get_value(0, 0))[0]
        kept = {own.get_value(row, 0) for row in range(own.ntuples)}
        lost = {run_id: run for run_id, run in asked.runs.items() if run_id not in kept}
        explained = bool(lost) or epoch != worker.identity.epoch
        for batch in worker.repairs:
            batch.tries = 0 if explained else batch.tries + 1
        self.drop(lost)
        worker.become(replace(worker.identity, epoch=epoch), worker.application_name)
        for run_id, run in list(lost.items())[:NAMED_MAX]:
            log.info(
                "run %s%s is not worker %d's any more, for somebody has ended it or taken it away (terminate, skip, complete, replace): what it executes is dropped",
                UUID(bytes=run_id), f" of {run.workflow.name}" if run.workflow is not None else "", worker.id,
            )  # fmt: skip
        if len(lost) > NAMED_MAX:
            log.info("worker %d: %d more runs were taken from it, %s left", worker.id, len(lost) - NAMED_MAX, count(len(kept), "run"))

    # ── lost: the session is gone ────────────────────────────────────────────────────────────────────────────────

    def lose(self, error: BaseException) -> None:
        """The session is of no use any more. Keep what was sent and not answered, and begin to look for another one."""
        if self.away or self._stopping.is_set():
            return
        worker = self._worker
        self.away, self.asking = True, False
        self._lost_at = time.monotonic()
        self._hold()
        worker.unwatch()
        for token in worker.pipeline.unanswered():
            if isinstance(token, Batch):
                self._unknown.append(token)
            elif isinstance(token, Reads):
                worker.reading.again(token)
        worker.forget_asked()
        known = list(self.known())
        worker.pipeline.close()
        executing = worker.executors.active
        if worker.options.page is not None:
            worker.options.page.lost()
        log.warning("worker %d has lost its session, it keeps %s and %s and reconnects: %s", worker.id, count(len(known), "run"), count(executing, "executing step"), error)
        self.losses += 1
        arguments = (worker.identity, known, wanted(self._unknown), self.losses - 1)
        threading.Thread(target=self._reconnect, args=arguments, name="reconnect", daemon=True).start()
        worker.commands.pump()  # one that drains may have nothing left

    def idle(self) -> bool:
        """Whether there is no session and nothing that waits for one: no run, nothing that executes or is to be written. A claim that was in flight is its reaper's."""
        worker = self._worker
        if not self.away or self.known() or worker.executors.active or worker.loop.completions:
            return False
        return not any(batch.writes for batch in (*self._unknown, *worker.repairs, worker.commands.batch))

    def drain(self, within_s: float) -> None:
        """Its worker is to end: say what that waits for, where there is no session."""
        if self.away and not self.idle():
            log.warning(
                "worker %d can't give back its runs (%d), nor store what its executing steps (%d) bring: it waits for the database, for %g s at most",
                self._worker.id, len(self.known()), self._worker.executors.active, within_s,
            )  # fmt: skip

    def _reconnect(self, old: Identity, known: list[bytes], asked: Wanted, before: int) -> None:
        """In a thread of its own: until there is a session that has taken over, or the worker stops."""
        events, context = self._events, self._context
        attempt = before
        try:
            while not self._stopping.wait(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)] * random.uniform(0.5, 1.0)):
                attempt += 1
                try:
                    news = self._take_over(old, known, asked, attempt - before > END_ALL_AFTER)
                except DatabaseUnavailable as error:
                    log.debug("worker %d is still without a session: %s", old.id, error)
                    continue
                events.call_soon_threadsafe(self._arrived, news, context=context)
                return
        except BaseException as error:  # noqa: BLE001
            if not events.is_closed():  # else the worker has ended meanwhile
                events.call_soon_threadsafe(self._worker.fail, error)

    def _take_over(self, old: Identity, known: list[bytes], asked: Wanted, end_all: bool) -> News:
        worker = self._worker
        calls = WorkerCalls(worker.options.dsn, worker.options.schema, old.boot)
        try:
            server = calls.server()
            trusted = server == old.server
            identity, own, earlier = calls.take_over(worker.origin, worker.first_id, server, known if trusted else None, end_all)
            durable = calls.durable(asked, earlier) if trusted else Durable()
            catalogue, offset_us = worker.register(calls, identity.id), calls.clock_offset_us()
            return News(identity, calls.pipeline(worker.statements), calls.application_name, own, durable, catalogue, offset_us)
        except BaseException:
            calls.close()
            raise

    def _arrived(self, news: News) -> None:
        """There is a session again: settle what was in flight, drop what was lost, go on."""
        worker = self._worker
        if self._stopping.is_set():
            news.pipeline.close()
            return
        try:
            with loop_hidden():
                self._settle(news)
        except BaseException as error:
            log.exception("worker %d could not go on with its new session", worker.id)
            worker.fail(error)
            return
        try:
            worker.go_on()
        except DatabaseUnavailable as error:  # lost again before it was looked at
            self.lose(error)

    def _settle(self, news: News) -> None:
        worker = self._worker
        if news.catalogue != worker.catalogue:
            raise DatabaseUnavailable("workflows and queues have other numbers than before: this is another database, or an older one")
        trusted = news.identity.server == worker.identity.server
        runs, old_id = self.known(), worker.id
        unknown, self._unknown = self._unknown, []
        durable: list[Batch] = []
        again: list[Batch] = []
        for batch in unknown if trusted else ():
            (durable if is_durable(batch, news.durable, news.own) else again).append(batch)
        ended = {run.id for batch in durable for run in (*batch.finished, *batch.leaving)}
        for batch in again:
            batch.claim_nothing()
        worker.repairs = deque(batch for batch in (*again, *worker.repairs) if not batch.empty())
        lost = {run_id: run for run_id, run in runs.items() if run_id not in news.own and run_id not in ended}
        self.drop(lost)
        worker.pipeline = news.pipeline
        self.away = False
        self._hold()
        worker.become(news.identity, news.application_name)
        if not trusted:
            worker.new_server(news.offset_us)
        for batch in durable:
            self._acknowledge(batch, news.durable)
        self._give_back_strays(news.own)
        log.warning(
            "worker %d goes on as worker %d after %.1f s: %d runs are its own, %d are not any more; of %d batches in flight %d were durable%s",
            old_id, worker.id, time.monotonic() - self._lost_at, len(news.own), len(lost), len(unknown), len(durable),
            "" if trusted else "; the server is another one or was restored, so everything is read again",
        )  # fmt: skip

    def _give_back_strays(self, own: set[bytes]) -> None:
        """Runs that left memory with one batch in flight and were claimed again by the next: nobody would work on them."""
        worker = self._worker
        for run_id in own.difference(self.known()):
            row = (run_id, worker.loop.now_us(), QUEUED, None, None, None, None, 1, None, None)
            worker.commands.batch.add("release", run_id, row)

    def _acknowledge(self, batch: Batch, found: Durable) -> None:
        """What the lost answer of a durable batch would have done, but for its claim, which was given back."""
        worker = self._worker
        worker.settled(batch)
        timers = [(row[0], row[1]) for _, row in batch.rare.get("insert_timers", ())]
        worker.commands.timers_inserted([(*timer, *found.timers[timer]) for timer in timers if timer in found.timers])
        asked = [(row[0], row[1]) for _, row in batch.rare.get("fire_timers", ())]
        worker.tokens.expired(_rows(batch, "expire_tokens"))
        worker.commands.timers_fired(asked, {timer: found.steps[timer] for timer in asked if timer in found.steps})


# ── what a batch leaves behind ───────────────────────────────────────────────────────────────────────────────────


def _first_step(batch: Batch) -> tuple[bytes, int] | None:
    if batch.steps is None:
        return None
    run_id, seq = elements(batch.steps[0])[0], elements(batch.steps[1])[0]
    assert run_id is not None and seq is not None
    return run_id, _i4(seq)[0]


def _first_outcome(batch: Batch) -> bytes | None:
    return elements(batch.outcomes[0])[0] if batch.outcomes is not None else None


def _rows(batch: Batch, statement: str) -> list[Any]:
    return [row for _, row in batch.rare.get(statement, ())]


def wanted(batches: Iterable[Batch]) -> Wanted:
    """What to look for: of each batch one row of every kind that stays, for it is there with all others or not at all."""
    asked = Wanted()
    for batch in batches:
        step, outcome = _first_step(batch), _first_outcome(batch)
        asked.steps += [step] if step is not None else []
        asked.steps += [(row[0], row[1]) for row in _rows(batch, "fire_timers")]
        asked.outcomes += [outcome] if outcome is not None else []
        asked.attempts += [row[:4] for row in _rows(batch, "insert_attempts")[:1]]
        asked.timers += [(row[0], row[1]) for row in _rows(batch, "insert_timers")]
        asked.children += [(row[5], row[6], row[0]) for row in _rows(batch, "insert_runs")[:1]]
    return asked


def is_durable(batch: Batch, found: Durable, own: set[bytes]) -> bool:
    """Whether *batch* was committed. False for one of which nothing is to be seen: then it may be repeated without harm.

    own   runs whose task is the new id's. A batch that does nothing but give runs back is seen by their absence; somebody
          else may have taken them, but then there is nothing left to do for this worker either.
    """
    step, outcome = _first_step(batch), _first_outcome(batch)
    if step is not None:
        return step in found.steps
    if outcome is not None:
        return outcome in found.outcomes
    if _rows(batch, "insert_attempts"):
        return tuple(_rows(batch, "insert_attempts")[0][:4]) in found.attempts
    if _rows(batch, "insert_runs"):
        return _rows(batch, "insert_runs")[0][0] in found.children
    timers = [(row[0], row[1]) for row in _rows(batch, "insert_timers")]
    if any(timer in found.timers for timer in timers) or any((row[0], row[1]) in found.steps for row in _rows(batch, "fire_timers")):
        return True
    return not timers and bool(batch.leaving) and all(run.id not in own for run in batch.leaving)
