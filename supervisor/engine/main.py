"""The life of a worker process: run the worker, say why it ended by an exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from supervisor.core.errors import DatabaseUnavailable, Fenced
from supervisor.engine.worker import Worker, WorkerOptions

log = logging.getLogger("pgsupervisor.worker")

# Where def steps compute in threads, the loop waits that long for its turn at the interpreter; at Python's own 5 ms a commit waits for ten of them.
SWITCH_S = 0.0005
EXIT_OK, EXIT_DATABASE, EXIT_FENCED = 0, 69, 75


@dataclass(frozen=True)
class Birth:
    """What a parent gives a worker on its way.

    number    its place under its parent: its slots of the black box; a successor has the same
    born      told (worker id, application name, ready) once registered and once ready
    nudge_fd  an eventfd that the parent writes to say "there may be work"
    """

    number: int
    generation: int
    blackbox: Any
    born: Callable[[int, str, bool], None]
    nudge_fd: int
    supervisor_id: UUID


def work(options: WorkerOptions, birth: Birth) -> int:
    """Run one worker in this process until it is stopped; returns the exit code."""
    page = options.page = birth.blackbox.move_in(birth.number)

    def told(worker_id: int, application_name: str, ready: bool) -> None:
        page.born(worker_id)
        birth.born(worker_id, application_name, ready)

    options.number, options.born, options.supervisor_id, options.nudge_fd = birth.number, told, birth.supervisor_id, birth.nudge_fd
    options.loop_slot, options.thread_slots, options.task_slots = page.loop_slot, page.thread_slots, page.task_slots
    options.look_behind = birth.blackbox.look_behind
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what the parent made is never garbage here, and touching it would copy its pages
    # Runs in memory form no cycles on the common path; fewer, larger collections cost less.
    gc.set_threshold(50_000, 20, 50)
    try:
        asyncio.run(Worker(options).run())
    except DatabaseUnavailable as error:
        log.error("worker %d ends: %s", birth.number, error)
        return EXIT_DATABASE
    except Fenced as error:
        log.error("worker %d ends: %s", birth.number, error)
        return EXIT_FENCED
    finally:
        page.ends()  # by itself: no step is to blame
    return EXIT_OK
