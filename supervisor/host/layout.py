"""The layout of the black box: where in its bytes what stands, and how a page of it is read.

Pure: from bytes to facts. A region is a header with what the parent says of itself, then one page per worker number, then counters by name
(tallies.py). A page is what its worker says of itself, the last crash of that number and how long workflow code has held its loop (both written by the
parent), a ring of log lines, and slots:
the loop's, the transactions', one per thread, 64 for tasks. Counters of a number go on from one process to the next. All numbers are in the
machine's own order and aligned, so a reader sees each old or new, never half.
Whoever changes anything here raises VERSION: readers of another version refuse in words.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from uuid import UUID

from supervisor._fastpath.wire import EPOCH_2000_US, SLOT_BYTES
from supervisor.host.tallies import AREA_BYTES

MAGIC, VERSION = b"PGSVBOX\0", 3
HEADER_BYTES = 4096
TASK_SLOTS = 64
LOG_LINES, LOG_LINE_BYTES = 64, 200
BUCKETS = 40  # of batch latencies: bucket n counts those of less than 2^n us
LAST_WORDS_BYTES = 1 << 20  # per worker, behind the pages: what faulthandler wrote; sparse, so it costs what is written

# the region's header: magic, version, bytes of the header, of a page, pages, threads, pid of the parent; started, supervisor, look-behind, schema
region = struct.Struct("@8sIIIIIiq16sd64s")
LOOK_BEHIND_AT = 56
HOST_AT = 256
# what the parent says of itself: its last turn by the monotonic clock in us, term (0: another host leads), log records dropped, deaths charged to a step,
# restarts by REASONS; state, workers wanted, workers ready, generation
host_record = struct.Struct("@qqqq5qiiii")
SERVING, STOPPING = 1, 2
REASONS = ("signal", "exit", "told", "database", "unfit")  # why a worker was replaced: a signal, an exit code, told to end from outside, no database, too many threads lost
# in a page
IDENTITY_AT, COUNTERS_AT, LATENCY_AT, CRASH_AT, NOTE_AT, LOG_NEXT_AT, BEFORE_AT, CARRIED_AT, HELD_AT, LOG_AT = 0, 32, 96, 416, 544, 592, 608, 976, 1024, 4096
PULSE_AT = LOG_NEXT_AT + 8  # of the loop, twice a second: a number that is another one each time
SLOTS_AT = LOG_AT + LOG_LINES * LOG_LINE_BYTES
identity = struct.Struct("@iiiiqq")  # pid, worker, generation, state, started, progress
counters = struct.Struct("@6Q")  # claimed, steps, ended, failures, commits, us that these took: of all processes of this number, like the latencies
PRESENT_AT = COUNTERS_AT + counters.size
present = struct.Struct("@2Q")  # live runs, thread of the loop
TOTALS_BYTES = CRASH_AT - COUNTERS_AT - present.size  # counters and latencies; BEFORE_AT has what they were when this process began
carried_record = struct.Struct("@qq")  # odd while it is written; us of CPU of the processes of this number that have ended
crash_record = struct.Struct("@iiqq16sii80s")  # code, pid, at, deaths, run, seq, length of the name, name
note_record = struct.Struct("@iiiixxxxxxxx16s")  # how, value, seq, pad, run
log_line = struct.Struct("@H198s")
MARK_BYTES = 40  # of a slot: whose code, and which turn of it; equal in two looks, it is the same turn
held_record = struct.Struct("@40sqi3020s")  # the mark of the loop's slot, since when, where it is: length of the text, text
slot_record = struct.Struct("@16siH?xqqQ80s")
number = struct.Struct("@q")
small = struct.Struct("@i")
moment = struct.Struct("@d")

NEVER, STARTING, IDLE, BUSY, DRAINING, AWAY, ENDING = range(7)
STATES = ("never started", "starting", "idle", "busy", "draining", "database away", "ending")
BY_SIGNAL, BY_EXIT = 1, 2  # note_record.how
CODE_SEQ = -1
FUTURE_US = 1 << 62
CODE_NAME = "(workflow code)"


def page_bytes(threads: int) -> int:
    """Size of one page: whole pages of memory, so that no two workers write to the same."""
    return -(-(SLOTS_AT + SLOT_BYTES * (2 + threads + TASK_SLOTS)) // 4096) * 4096


@dataclass(frozen=True)
class Executing:
    """One step that is executing: whose, since when, where (loop, transaction, thread or task).

    resting   it is a task that waits for something; another has the thread
    workflow  of workflow code: its name
    stack     of workflow code that holds the loop: where its parent found it, the innermost place of the app's first
    suspect   it may have been what ended its worker: nobody knows which of several was
    crash     JSON of the crash that it is charged with; None when it is not
    """

    run_id: UUID
    seq: int
    for_s: float
    step: str = ""
    place: str = "thread"
    resting: bool = False
    thread: int = 0
    workflow: str = ""
    stack: tuple[str, ...] = ()
    suspect: bool = False
    crash: bytes | None = None

    @property
    def is_code(self) -> bool:
        """Whether it is workflow code."""
        return self.seq == CODE_SEQ


@dataclass(frozen=True)
class Note:
    """What a worker noted when one of its steps was about to end the whole process: a signal or an exit code, and whose step."""

    code: int
    run_id: UUID
    seq: int


@dataclass(frozen=True)
class LastCrash:
    """The last death of a worker number that was not ordered: exit code or -signal, when, who was charged or was executing."""

    code: int
    pid: int
    at_us: int
    deaths: int
    run_id: UUID | None
    seq: int
    step: str


@dataclass(frozen=True)
class Page:
    """One worker as its page of the black box shows it."""

    number: int
    pid: int
    worker: int
    generation: int
    state: int
    started_us: int
    progress_us: int
    claimed: int = 0
    steps: int = 0
    ended: int = 0
    failures: int = 0
    commits: int = 0
    live: int = 0
    latency: tuple[int, ...] = ()
    executing: list[Executing] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    crash: LastCrash | None = None
    note: Note | None = None
    totals: Totals = field(default_factory=lambda: Totals(0, 0, 0, 0, 0, 0, (0,) * BUCKETS))


@dataclass(frozen=True)
class Totals:
    """What all processes of one worker number have done since their supervisor began: these only grow."""

    claimed: int
    steps: int
    ended: int
    failures: int
    commits: int
    commits_us: int
    latency: tuple[int, ...]


def read_page(number_: int, first: bytes, second: bytes, threads: int, now_us: int) -> Page:
    """Read a page from two copies taken one after the other: a slot that is not equal in both changed meanwhile and is left out."""
    pid, worker, generation, state, started, progress = identity.unpack_from(second, IDENTITY_AT)
    live, loop_thread = present.unpack_from(second, PRESENT_AT)
    executing = _slots(first, second, threads, loop_thread, now_us)
    holds = any(entry.is_code and entry.for_s for entry in executing)  # then its worker can't say so itself
    state, live = BUSY if holds and state == IDLE else state, max(live, int(holds))
    totals, before = _totals(second, COUNTERS_AT, LATENCY_AT), _totals(second, BEFORE_AT, BEFORE_AT + counters.size)
    claimed, steps, ended, failures, commits = (getattr(totals, name) - getattr(before, name) for name in ("claimed", "steps", "ended", "failures", "commits"))
    return Page(
        number_, pid, worker, generation, state, started, progress, claimed, steps, ended, failures, commits, live,
        latency=tuple(now - then for now, then in zip(totals.latency, before.latency, strict=True)),
        executing=executing,
        log=_log(second),
        crash=_crash(second),
        note=_note(second),
        totals=totals,
    )  # fmt: skip


def _totals(data: bytes, counters_at: int, latency_at: int) -> Totals:
    facts = (*counters.unpack_from(data, counters_at), struct.unpack_from(f"@{BUCKETS}q", data, latency_at))
    return Totals(*facts)


def _slots(first: bytes, second: bytes, threads: int, loop_thread: int, now_us: int) -> list[Executing]:
    found = []
    for index in range(2 + threads + TASK_SLOTS):
        at = SLOTS_AT + index * SLOT_BYTES
        record = second[at : at + SLOT_BYTES]
        if record[:16] == bytes(16) or record != first[at : at + SLOT_BYTES]:
            continue
        run_id, seq, size, resting, started, _count, thread, name = slot_record.unpack(record)
        place = "loop" if index == 0 else "transaction" if index == 1 else "thread" if index < 2 + threads else "task"
        told = name[:size].decode("utf-8", "replace")
        if seq == CODE_SEQ:
            since, stack = _held(second, record) if index == 0 else (now_us, ())
            entry = Executing(UUID(bytes=run_id), seq, max(0.0, (now_us - since) / 1e6), CODE_NAME, place, False, thread or loop_thread, told, stack)
        else:
            entry = Executing(UUID(bytes=run_id), seq, max(0.0, (now_us - started) / 1e6), told, place, bool(resting), thread or loop_thread)
        found.append(entry)
    return found


def _held(data: bytes, slot: bytes) -> tuple[int, tuple[str, ...]]:
    """Since when the code in the loop's slot has had it, by the parent's looks, and where it was found; now, where the parent has not seen it twice."""
    mark, since, size, text = held_record.unpack_from(data, HELD_AT)
    if mark != slot[:MARK_BYTES]:
        return FUTURE_US, ()
    return since, tuple(text[:size].decode("utf-8", "replace").splitlines())


def _log(data: bytes) -> list[str]:
    (written,) = number.unpack_from(data, LOG_NEXT_AT)
    lines = []
    for index in range(max(0, written - LOG_LINES), written):
        size, text = log_line.unpack_from(data, LOG_AT + index % LOG_LINES * LOG_LINE_BYTES)
        lines.append(text[:size].decode("utf-8", "replace"))
    return lines


def _crash(data: bytes) -> LastCrash | None:
    code, pid, at_us, deaths, run_id, seq, size, name = crash_record.unpack_from(data, CRASH_AT)
    if deaths == 0:
        return None
    return LastCrash(code, pid, at_us, deaths, UUID(bytes=run_id) if run_id != bytes(16) else None, seq, name[:size].decode("utf-8", "replace"))


def _note(data: bytes) -> Note | None:
    how, value, seq, _, run_id = note_record.unpack_from(data, NOTE_AT)
    return Note(-value if how == BY_SIGNAL else value, UUID(bytes=run_id), seq) if how else None


@dataclass(frozen=True)
class Region:
    """The header of a region: which parent, how many pages of what size."""

    version: int
    page_bytes: int
    pages: int
    threads: int
    pid: int
    started_us: int
    supervisor: UUID
    schema: str

    def page_at(self, number_: int) -> int:
        return HEADER_BYTES + number_ * self.page_bytes

    def tallies_at(self, number_: int) -> int:
        return HEADER_BYTES + self.pages * self.page_bytes + number_ * AREA_BYTES


def read_region(data: bytes) -> Region | None:
    """The header; None for bytes that are no black box. Only `version` is to be believed where it is not VERSION."""
    if len(data) < region.size or not data.startswith(MAGIC):
        return None
    _, version, _, size, pages, threads, pid, started, supervisor, _, schema = region.unpack_from(data)
    return Region(version, size, pages, threads, pid, started, UUID(bytes=supervisor), schema.rstrip(b"\0").decode("utf-8", "replace"))


@dataclass(frozen=True)
class Host:
    """What a parent says of itself, twice a second. ticked_us: when, by the monotonic clock; 0 where it never did."""

    ticked_us: int
    term: int
    log_dropped: int
    charged: int
    restarts: dict[str, int]
    stopping: bool
    target: int
    ready: int
    generation: int


def read_host(header: bytes) -> Host:
    ticked, term, dropped, charged, *rest = host_record.unpack_from(header, HOST_AT)
    restarts, (state, target, ready, generation) = rest[: len(REASONS)], rest[len(REASONS) :]
    return Host(ticked, term, dropped, charged, dict(zip(REASONS, restarts, strict=True)), state == STOPPING, target, ready, generation)


def us_to_unix_s(us: int) -> float:
    """A moment of the black box, in seconds since 1970."""
    return (us + EPOCH_2000_US) / 1e6
