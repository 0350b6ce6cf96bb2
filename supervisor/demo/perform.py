"""One performance of the demo: workers under a parent, runs on them, kills among them, and the proof at the end.

The calling process is the parent. It draws and kills between the parent's steps and has no thread of its own.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from supervisor.api.client import Client
from supervisor.core.errors import PayloadRefused, SupervisorError
from supervisor.db.connect import Dsn, connect
from supervisor.demo import workflows
from supervisor.demo.kills import KILLS, Kill, Killer
from supervisor.demo.progress import Progress
from supervisor.demo.table import Table
from supervisor.host.parent import Part
from supervisor.host.service import Service, ServiceOptions

TICK_S = 0.05
DRAW_EVERY_S = 0.2
THREADS = 2  # steps are computing, so more of them only take turns
IN_FLIGHT = 64  # few, so that files are finished one after the other and not all read before the first is parsed
EXPECTED = Path(__file__).with_name("expected.py")
ENDED = ("completed", "failed", "cancelled", "terminated", "timed_out")


class Interrupted(Exception):
    """Somebody stopped the demo; its runs stay."""


class Figures(msgspec.Struct):
    """What `demo --json` prints."""

    files: int
    runs: int
    steps: int
    retries: int
    kills: int
    killed_in_step: int
    reclaimed_ms_max: int
    booked: int
    expected: int
    equal: bool
    seconds: float

    @property
    def good(self) -> bool:
        return self.equal and self.kills == self.killed_in_step == KILLS


@dataclass
class Demo:
    """What is performed, on what."""

    files: Sequence[str]
    dsn: Dsn
    schema: str
    procs: int
    progress: Progress
    parts: Sequence[Part] = ()  # what else lives in the parent's loop

    def perform(self) -> tuple[Figures, list[Kill], uuid.UUID]:
        """Run it all; returns the figures, the kills and the parent run. Raises Interrupted, SupervisorError."""
        began = time.monotonic()
        warnings.simplefilter("ignore", SyntaxWarning)  # of files that are parsed, here and in workers
        logging.getLogger("pgsupervisor").setLevel(logging.ERROR)  # deaths are ours, and said by us
        with connect(self.dsn, purpose="demo", schema=self.schema) as conn, Client(self.dsn.conninfo or None, schema=self.schema) as client:
            table = Table(conn, self.schema)
            table.prepare()
            with Expected(self.files) as expected:
                run_id, kills = _Performance(self, client, table).run()
                total = expected.total()
            booked = table.booked()
            hit = [kill for kill in kills if _finished_elsewhere(kill, table)]
            figures = Figures(
                files=len(self.files),
                runs=booked.rows + 1,
                steps=booked.steps,
                retries=booked.retries,
                kills=len(kills),
                killed_in_step=len(hit),
                reclaimed_ms_max=round(1000 * max((kill.reclaimed_s or 0.0 for kill in kills), default=0.0)),
                booked=booked.total,
                expected=total,
                equal=booked.total == total and booked.rows == len(self.files),
                seconds=round(time.monotonic() - began, 2),
            )
        return figures, kills, run_id


def _finished_elsewhere(kill: Kill, table: Table) -> bool:
    """Whether every step that a killed worker was executing was ended by another worker, and its run completed."""
    ended_by = [table.finished_by(each.run_id, each.seq) for each in kill.executing]
    return bool(ended_by) and all(worker not in (None, kill.worker_id) for worker in ended_by)


class _Performance:
    """The loop around the parent: begin when the workers are up, look at the database now and then, stop when the run has ended."""

    def __init__(self, demo: Demo, client: Client, table: Table) -> None:
        self._demo, self._client, self._table = demo, client, table
        self._id = uuid.uuid4().hex[:8]
        shared = mmap.mmap(-1, 2)
        workflows.stage = workflows.Stage(self._id, demo.files[-1], shared)
        self._service = Service(ServiceOptions(demo.dsn.conninfo, demo.schema, demo.procs, THREADS, IN_FLIGHT))
        self._parent = self._service.parent
        for part in demo.parts:
            self._parent.add(part)
        self._killer = Killer(self._parent, shared)
        self._run: Any = None
        self._ended = False
        self._draw_at = 0.0
        self._booked = 0

    def run(self) -> tuple[uuid.UUID, list[Kill]]:
        self._parent.start()
        try:
            while self._parent.step(TICK_S):
                if not self._ended:
                    self._tick()
        except BaseException:
            self._parent.stop(fast=True)
            while self._parent.step(TICK_S):
                pass
            raise
        finally:
            self._demo.progress.close()
        self._killer.note_reclaims()
        if not self._ended:
            if self._parent.exit_code:
                raise SupervisorError("the workers of the demo could not work; their messages are above")
            raise Interrupted
        return self._run.id, self._killer.kills

    def _tick(self) -> None:
        if self._run is None:
            if all(child.born and child.born.ready for child in self._parent.children.values()):
                self._run = self._start()
            return
        for kill in self._killer.note_reclaims():
            self._say_reclaimed(kill)
        self._killer.look(self._booked / len(self._demo.files), lambda runs: self._table.children(self._run.id, runs))
        now = time.monotonic()
        if now >= self._draw_at:
            self._draw_at = now + DRAW_EVERY_S
            self._ended = self._client.status(self._run.id).status in ENDED
            self._booked = self._table.rows()
            self._demo.progress.show(self._booked)
            if self._ended:
                self._parent.stop()

    def _start(self) -> Any:
        root = os.path.commonprefix(list(self._demo.files)) if len(self._demo.files) > 1 else ""
        try:
            return self._client.start(workflows.measure_all, self._id, root, [name[len(root) :] for name in self._demo.files])
        except PayloadRefused as error:
            error.add_note(f"the parent is given the names of all {len(self._demo.files):,} files; take fewer: --limit N")
            raise

    def _say_reclaimed(self, kill: Kill) -> None:
        what = kill.executing[0]
        self._demo.progress.say(
            f"killed worker {kill.worker_id} (pid {kill.pid}) inside step {what.seq} of run {what.run_id}; its claims were free after "
            f"{1000 * (kill.reclaimed_s or 0.0):.0f} ms"
        )


class Expected:
    """The other side of the equation: a program of its own that runs beside the demo."""

    def __init__(self, files: Sequence[str]) -> None:
        self._paths: IO[bytes] = tempfile.TemporaryFile()
        self._paths.write(b"".join(os.fsencode(path) + b"\0" for path in files))
        self._paths.seek(0)
        self._process = subprocess.Popen([sys.executable, "-I", str(EXPECTED)], stdin=self._paths, stdout=subprocess.PIPE)

    def total(self) -> int:
        """Wait for its answer."""
        answer, _ = self._process.communicate()
        if self._process.returncode:
            raise SupervisorError(f"{EXPECTED} ended with exit code {self._process.returncode}; its messages are above")
        return int(json.loads(answer)["total"])

    def __enter__(self) -> Expected:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._paths.close()
