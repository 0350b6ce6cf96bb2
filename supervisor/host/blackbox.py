"""The black box: shared memory in which each worker notes what it is executing, so that its parent can read it after a death.

One region, made by the parent before the forks, a page per worker number (layout.py says what stands where). Writers
never lock; a reader reads twice. It is a memfd: other processes of the same user reach it through the parent's
descriptor (boxes.py), and nothing is left of it when the last of its processes is gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from supervisor._fastpath.wire import SLOT_BYTES, Slot, clock_us, thread_id
from supervisor.host import layout
from supervisor.host.blame import Death, OomKills, inquest
from supervisor.host.layout import Executing
from supervisor.host.tallies import AREA_BYTES, Tallies
from supervisor.host.witness import watch

MEMFD_NAME = "pgsupervisor-blackbox"
PAGES_MIN = 256  # workers can be added while it runs; a page that nobody writes to costs no memory

__all__ = ["BlackBox", "Executing", "WorkerPage"]


class BlackBox:
    """The region of *workers* workers (or more: up to `pages`) with *threads* threads each, as its parent has it."""

    def __init__(self, workers: int, threads: int, supervisor: UUID | None = None, schema: str = "") -> None:
        self.threads, self.workers = threads, workers
        self.pages = max(workers, PAGES_MIN)
        self.generation = 1  # of the workers forked from now on
        self._page_bytes = layout.page_bytes(threads)
        self._tallies_at = layout.HEADER_BYTES + self._page_bytes * self.pages
        self._mapped = self._tallies_at + AREA_BYTES * self.pages
        self._oom = OomKills()
        self.fd = -1
        with contextlib.suppress(OSError):  # where the kernel has none, the parent alone can read it
            self.fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
            os.fchmod(self.fd, 0o600)
            os.ftruncate(self.fd, self._mapped + layout.LAST_WORDS_BYTES * self.pages)
        self.memory = mmap.mmap(self.fd, self._mapped)
        self.describe(supervisor or UUID(int=0), schema)

    def describe(self, supervisor: UUID, schema: str) -> None:
        """Say in the header whose it is. The magic comes last: before, it is no black box to anybody."""
        facts = (layout.VERSION, layout.HEADER_BYTES, self._page_bytes, self.pages, self.threads, os.getpid(), clock_us(), supervisor.bytes, 0.0, schema.encode()[:64])
        layout.region.pack_into(self.memory, 0, bytes(8), *facts)
        self.memory[: len(layout.MAGIC)] = layout.MAGIC

    def _offset(self, worker: int) -> int:
        if not 0 <= worker < self.pages:
            raise ValueError(f"there is no worker {worker} in a black box of {self.pages} pages")
        return layout.HEADER_BYTES + worker * self._page_bytes

    # ── for the worker itself ────────────────────────────────────────────────────────────────────────────────────

    def move_in(self, worker: int) -> WorkerPage:
        """Make the calling process that worker: its page, and all that explains its death (witness.py)."""
        page = self.page(worker)
        watch(page, self._last_words(worker, os.getppid()))
        return page

    def page(self, worker: int) -> WorkerPage:
        """That worker's page for writing, cleared of what its predecessor wrote, but for the last crash and what is counted."""
        self.clear(worker)
        return WorkerPage(self.memory, self._offset(worker), self.threads, self.generation, Tallies(self.memory, self._tallies_at + worker * AREA_BYTES))

    def _last_words(self, worker: int, parent: int) -> int:
        """A descriptor at the place for what the interpreter says of a fatal signal; -1 where there is none.

        The child has closed what it inherited, so it comes in through its parent.
        """
        try:
            fd = os.open(f"/proc/{parent}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return -1
        at = self._last_words_at(worker)
        os.pwrite(fd, b"\0", at)
        os.lseek(fd, at, os.SEEK_SET)
        return fd

    def _last_words_at(self, worker: int) -> int:
        return self._mapped + worker * layout.LAST_WORDS_BYTES

    def look_behind(self, now_s: float, every_s: float = 1.0) -> bool:
        """Whether it is this caller's turn to claim without marks: once a second on this host. A race costs one claim more."""
        last = layout.moment.unpack_from(self.memory, layout.LOOK_BEHIND_AT)[0]
        if 0 <= now_s - last < every_s:
            return False
        layout.moment.pack_into(self.memory, layout.LOOK_BEHIND_AT, now_s)
        return True

    # ── for the parent ───────────────────────────────────────────────────────────────────────────────────────────

    def clear(self, worker: int) -> None:
        """Forget what the last process of that number wrote, but not how it ended; what it has counted goes on from there."""
        at, memory = self._offset(worker), self.memory
        for start, end in ((layout.IDENTITY_AT, layout.COUNTERS_AT), (layout.PRESENT_AT, layout.LATENCY_AT), (layout.NOTE_AT, layout.BEFORE_AT), (layout.HELD_AT, self._page_bytes)):
            memory[at + start : at + end] = bytes(end - start)
        counted = memory[at + layout.COUNTERS_AT : at + layout.PRESENT_AT] + memory[at + layout.LATENCY_AT : at + layout.CRASH_AT]
        memory[at + layout.BEFORE_AT : at + layout.CARRIED_AT] = counted

    @contextlib.contextmanager
    def carrying(self, worker: int) -> Iterator[Callable[[float], None]]:
        """While a process of that number is reaped, whoever reads how much CPU the number has used waits; the block says how many seconds that one had."""
        at = self._offset(worker) + layout.CARRIED_AT
        turn, cpu_us = layout.carried_record.unpack_from(self.memory, at)
        used_s = [0.0]
        layout.number.pack_into(self.memory, at, turn + 1)
        try:
            yield used_s.append
        finally:
            layout.carried_record.pack_into(self.memory, at, turn + 1, cpu_us + int(1e6 * sum(used_s)))
            layout.number.pack_into(self.memory, at, turn + 2)

    def say(self, host: layout.Host) -> None:
        """What the parent says of itself."""
        state = layout.STOPPING if host.stopping else layout.SERVING
        facts = (host.ticked_us, host.term, host.log_dropped, host.charged, *host.restarts.values(), state, host.target, host.ready, host.generation)
        layout.host_record.pack_into(self.memory, layout.HOST_AT, *facts)

    def read(self, worker: int) -> layout.Page:
        """That worker as its page shows it now."""
        at = self._offset(worker)
        first = self.memory[at : at + self._page_bytes]
        return layout.read_page(worker, first, self.memory[at : at + self._page_bytes], self.threads, clock_us())

    def executing(self, worker: int) -> list[Executing]:
        """The steps that worker is executing now, or was when it died."""
        return [entry for entry in self.read(worker).executing if not entry.is_code]

    def code(self, worker: int, pid: int) -> tuple[bytes, bool] | None:
        """The mark of the workflow code that has that worker's loop, and whether it runs on the main thread; None where none has it. The same mark twice is the same turn of the code."""
        at = self._offset(worker)
        slot = self.memory[at + layout.SLOTS_AT : at + layout.SLOTS_AT + SLOT_BYTES]
        run_id, seq, *_, thread, _ = layout.slot_record.unpack(slot)
        if run_id == bytes(16) or seq != layout.CODE_SEQ or layout.small.unpack_from(self.memory, at)[0] != pid:
            return None
        return slot[: layout.MARK_BYTES], thread in (0, layout.present.unpack_from(self.memory, at + layout.PRESENT_AT)[1])

    def pulse(self, worker: int) -> int:
        """That worker's last sign that its loop turns; 0 where there was none yet."""
        last: int = layout.number.unpack_from(self.memory, self._offset(worker) + layout.PULSE_AT)[0]
        return last

    def hold(self, worker: int, mark: bytes, since_us: int, stack: list[str]) -> None:
        """Say for how long the code of that mark has had the loop, and where it is."""
        text = "\n".join(stack).encode()[: layout.held_record.size - layout.MARK_BYTES - 12]
        layout.held_record.pack_into(self.memory, self._offset(worker) + layout.HELD_AT, mark, since_us, len(text), text)

    def accuse(self, worker: int, mark: bytes, signum: int) -> None:
        """Note that the code of that mark is why the process is about to be ended by *signum*."""
        _accuse(self.memory, self._offset(worker), layout.BY_SIGNAL, signum, mark[:16], layout.CODE_SEQ)

    def executed(self, worker: int) -> int:
        """How many steps that worker has begun since it was born."""
        at = self._offset(worker) + layout.SLOTS_AT + 32
        return sum(layout.number.unpack_from(self.memory, at + slot * SLOT_BYTES)[0] for slot in range(2 + self.threads + layout.TASK_SLOTS))

    def inquest(self, worker: int, pid: int, code: int, ordered: bool) -> list[Executing]:
        """A child was reaped: what it was executing, and which of that is charged with its death; its page is then cleared.

        code      exit code, or -signal
        ordered   its parent killed it
        """
        page = self.read(worker)
        if page.pid != pid:  # it died before it moved in; the page is its predecessor's
            return []
        oom = self._oom.happened() and code == -9
        death = Death(code, ordered, oom, page.state == layout.ENDING, page.note, self._read_last_words(worker), page.log)
        found = inquest(page, death)
        if not ordered and page.state != layout.ENDING:
            self._remember(worker, page, code, found)
        self.clear(worker)
        return found

    def _read_last_words(self, worker: int) -> str:
        if self.fd < 0:
            return ""
        said = os.pread(self.fd, 1 << 16, self._last_words_at(worker))
        return said.partition(b"\0")[0].decode("utf-8", "replace")

    def _remember(self, worker: int, page: layout.Page, code: int, found: list[Executing]) -> None:
        """For `workers` and `top`: how the last process of this number died."""
        told = next((entry for entry in found if entry.crash), next((entry for entry in found if not entry.resting), None))
        name = told.step.encode()[:80] if told is not None else b""
        run_id, seq = (told.run_id.bytes, told.seq) if told is not None else (bytes(16), 0)
        deaths = (page.crash.deaths if page.crash is not None else 0) + 1
        layout.crash_record.pack_into(self.memory, self._offset(worker) + layout.CRASH_AT, code, page.pid, clock_us(), deaths, run_id, seq, len(name), name)


class WorkerPage:
    """A worker's own page: its slots, and what it says of itself, once per batch and never per step."""

    def __init__(self, memory: Any, at: int, threads: int, generation: int, tallies: Tallies) -> None:
        self._memory, self._at = memory, at
        self.tallies = tallies
        slots = [Slot(memory, at + layout.SLOTS_AT + index * SLOT_BYTES) for index in range(2 + threads + layout.TASK_SLOTS)]
        self.loop_slot, self.tx_slot = slots[:2]
        self.thread_slots, self.task_slots = slots[2 : 2 + threads], slots[2 + threads :]
        self.pid = os.getpid()
        self._thread = thread_id()
        self._latency = list(struct.unpack_from(f"@{layout.BUCKETS}q", memory, at + layout.LATENCY_AT))
        self._claimed, self._steps, self._ended, self._failures, self._commits, self._commits_us = layout.counters.unpack_from(memory, at + layout.COUNTERS_AT)
        self._lines = 0
        self._worker, self._generation = 0, generation
        self._started = clock_us()
        self.enter(layout.STARTING)

    def born(self, worker_id: int) -> None:
        """It has registered, under this number."""
        self._worker = worker_id
        self.enter(layout.STARTING)

    def enter(self, state: int) -> None:
        """Say which of layout.STATES it is in."""
        layout.identity.pack_into(self._memory, self._at, self.pid, self._worker, self._generation, state, self._started, clock_us())
        layout.number.pack_into(self._memory, self._at + layout.PRESENT_AT + 8, self._thread)

    def lost(self) -> None:
        """Its session is gone and it waits for the database."""
        self.enter(layout.AWAY)

    def ends(self) -> None:
        """It ends by itself: nothing that is executing is to blame."""
        self.enter(layout.ENDING)

    def batch(self, took_s: float, claimed: int, steps: int, ended: int, failures: int, live: int, draining: bool) -> None:
        """A batch was acknowledged *took_s* after it was sent. *steps*, *ended* and *failures* are durable totals of this process, *claimed* is this batch's."""
        took_us = max(0, int(took_s * 1e6))
        bucket = min(took_us.bit_length(), layout.BUCKETS - 1)
        self._latency[bucket] += 1
        layout.number.pack_into(self._memory, self._at + layout.LATENCY_AT + 8 * bucket, self._latency[bucket])
        self._claimed += claimed
        self._commits += 1
        self._commits_us += took_us
        figures = (self._claimed, self._steps + steps, self._ended + ended, self._failures + failures, self._commits, self._commits_us)
        layout.counters.pack_into(self._memory, self._at + layout.COUNTERS_AT, *figures)
        layout.present.pack_into(self._memory, self._at + layout.PRESENT_AT, live, self._thread)
        state = layout.DRAINING if draining else layout.BUSY if live else layout.IDLE
        layout.identity.pack_into(self._memory, self._at, self.pid, self._worker, self._generation, state, self._started, clock_us())

    def turned(self) -> None:
        """Its loop turns. Twice a second."""
        layout.number.pack_into(self._memory, self._at + layout.PULSE_AT, clock_us())

    def say(self, line: str) -> None:
        """Keep a line of the log; the last 64 outlive the process."""
        text = line.encode("utf-8", "backslashreplace")[: layout.LOG_LINE_BYTES - 2]
        layout.log_line.pack_into(self._memory, self._at + layout.LOG_AT + self._lines % layout.LOG_LINES * layout.LOG_LINE_BYTES, len(text), text)
        self._lines += 1
        layout.number.pack_into(self._memory, self._at + layout.LOG_NEXT_AT, self._lines)

    def accuse(self, how: int, value: int, run_id: bytes, seq: int) -> None:
        """The step (seq -1: workflow code) of this run is about to end the process by a signal or an exit code."""
        _accuse(self._memory, self._at, how, value, run_id, seq)


def _accuse(memory: Any, at: int, how: int, value: int, run_id: bytes, seq: int) -> None:
    layout.note_record.pack_into(memory, at + layout.NOTE_AT, 0, value, seq, 0, run_id)
    layout.small.pack_into(memory, at + layout.NOTE_AT, how)
