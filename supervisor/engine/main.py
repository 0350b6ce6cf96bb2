"""The life of a worker process: run the worker, say why it ended by an exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from supervisor.core.errors import DatabaseUnavailable, Fenced
from supervisor.engine import answering, nursery, stacks
from supervisor.engine.forked import leave
from supervisor.engine.responder import Responder
from supervisor.engine.worker import Worker, WorkerOptions

log = logging.getLogger("pgsupervisor.worker")

# Where def steps compute in threads, the loop waits that long for its turn at the interpreter; at Python's own 5 ms a commit waits for ten of them.
SWITCH_S = 0.0005
EXIT_OK, EXIT_FAILED, EXIT_DATABASE, EXIT_FENCED = 0, 1, 69, 75
EXIT_UNFIT = 79  # drained, but to be replaced at once: too many of its threads are lost


@dataclass(frozen=True)
class Birth:
    """What a parent gives a worker on its way.

    number    its place under its parent: its slots of the black box; a successor has the same
    born      told (worker id, application name, ready) once registered and once ready
    left      told what it leaves behind when it ends in peace: runs given back, runs in the middle, steps cut off
    away      told why there was no session to be born with; the parent says it, once for many
    nudge_fd  an eventfd that the parent writes to say "there may be work"
    fds       this one and all others that are between parent and worker: what the worker forks keeps none of them
    """

    number: int
    generation: int
    blackbox: Any
    born: Callable[[int, str, bool], None]
    left: Callable[[int, int, int], None]
    away: Callable[[str], None]
    nudge_fd: int
    supervisor_id: UUID
    fds: tuple[int, ...] = ()


def work(options: WorkerOptions, birth: Birth) -> int:
    """Run one worker in this process until it is stopped; returns the exit code."""
    if nursery.wanted():  # the app is imported, and there are no threads, sessions, event loop yet, nor the box, into which only this process may write
        options.nursery = nursery.start(close=birth.fds)
    if answering.wanted() and options.hints_fd >= 0:
        answering.start(options.dsn, options.schema, options.hints_fd, close=(*birth.fds, *nursery_fds(options.nursery)))
    page = options.page = birth.blackbox.move_in(birth.number)

    born: list[bool] = []

    def told(worker_id: int, application_name: str, ready: bool) -> None:
        page.born(worker_id)
        born.append(ready)
        birth.born(worker_id, application_name, ready)

    options.left = birth.left
    options.number, options.born, options.supervisor_id, options.nudge_fd = birth.number, told, birth.supervisor_id, birth.nudge_fd
    options.loop_slot, options.thread_slots, options.task_slots = page.loop_slot, page.thread_slots, page.task_slots
    options.look_behind = birth.blackbox.look_behind
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what the parent made is never garbage here, and touching it would copy its pages
    # Runs in memory form no cycles on the common path; fewer, larger collections cost less.
    gc.set_threshold(50_000, 20, 50)
    if options.begin_traces is not None:
        options.traces = options.begin_traces(birth.number)  # with a thread of its own, so not before the last fork
    worker = Worker(options)
    options.leave = partial(_leave, worker, page)
    Responder(birth.number, lambda everything: stacks.dump(worker, everything, birth.blackbox.executing(birth.number))).start()
    try:
        asyncio.run(worker.run())
    except (DatabaseUnavailable, Fenced) as error:
        if isinstance(error, DatabaseUnavailable) and True not in born:
            birth.away(str(error))
            return EXIT_DATABASE
        return _exit_code(worker.id, error, worker.unfit)
    finally:
        page.ends()  # by itself: no step is to blame
        if options.traces is not None:
            options.traces.flush()
    return _exit_code(worker.id, None, worker.unfit)


def nursery_fds(made: Any) -> tuple[int, ...]:
    return (made.control.fileno(),) if made is not None else ()


def _exit_code(worker_id: int, error: BaseException | None, unfit: bool) -> int:
    if error is not None:
        log.error("worker %d ends: %s", worker_id, error)
    if isinstance(error, DatabaseUnavailable):
        return EXIT_DATABASE
    if isinstance(error, Fenced):
        return EXIT_FENCED
    return EXIT_FAILED if error is not None else EXIT_UNFIT if unfit else EXIT_OK


def _leave(worker: Worker, page: Any, error: BaseException | None, unfit: bool) -> None:
    """End the process from another thread than the main one, which is stuck in a step."""
    page.ends()  # by itself: no step is to blame
    if worker.options.traces is not None:
        worker.options.traces.flush()
    leave(_exit_code(worker.id, error, unfit))
