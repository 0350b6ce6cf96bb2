"""The black boxes of this host's supervisors, read from another process of the same user: for `workers`, `top` and metrics.

A box is a memfd that its parent holds open, so it is found among the descriptors in /proc, and it is gone when its
supervisor is: there is no file to be left over. Reads only, and copies instead of mapping, so looking costs the workers nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

from supervisor._fastpath.wire import clock_us
from supervisor.core.errors import SupervisorError
from supervisor.host import layout, tallies
from supervisor.host.blackbox import MEMFD_NAME

_LINK = f"/memfd:{MEMFD_NAME} (deleted)"
LOOKS, LOOK_AGAIN_S = 50, 0.001
Tallied = dict[tallies.Name, tallies.Counted]
_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


class BoxRefused(SupervisorError):
    """A black box of another version of the program."""

    code = "blackbox_version"

    def __init__(self, pid: int, version: int) -> None:
        self.pid, self.version = pid, version
        newer = "a newer" if version > layout.VERSION else "an older"
        super().__init__(
            f"the supervisor with pid {pid} runs {newer} pgsupervisor: its black box has layout {version}, this program reads {layout.VERSION}; "
            f"{'use its program to look at it' if version > layout.VERSION else 'restart it with the new code'}"
        )


@dataclass(frozen=True)
class Memory:
    """What the kernel says of a process; zeros when it is gone."""

    resident_bytes: int = 0
    cpu_s: float = 0.0
    stopped: bool = False  # by SIGSTOP or a debugger


@dataclass(frozen=True)
class Process:
    """One worker: its page, and what the kernel says of it. Without a pid nothing but the last crash of that number is known."""

    page: layout.Page
    memory: Memory

    @property
    def state(self) -> str:
        """Which of layout.STATES it says it is in, unless it was stopped: then it can say nothing."""
        return "not running" if not self.page.pid else "stopped" if self.memory.stopped else layout.STATES[self.page.state]


@dataclass(frozen=True)
class Box:
    """One supervisor of this host and its workers, at one moment. totals: by worker number, of all that ever worked under it."""

    pid: int
    supervisor: UUID
    schema: str
    started_us: int
    workers: list[Process]
    at_us: int
    host: layout.Host
    totals: dict[int, Total]


@dataclass(frozen=True)
class Total:
    """What the processes of one worker number have done and used so far."""

    done: layout.Totals
    cpu_s: float


def look() -> tuple[list[Box], list[BoxRefused]]:
    """All black boxes that this user may read on this host, and those of other versions."""
    found, refused = [], []
    for pid, path in _paths():
        try:
            box = read(path, pid)
        except BoxRefused as error:
            refused.append(error)
        except OSError:  # it ended meanwhile
            continue
        else:
            found += [box] if box is not None else []
    return sorted(found, key=lambda box: box.started_us), refused


def read(path: str, pid: int) -> Box | None:
    """The box at *path*, held by *pid*; None for a process that only inherited it, or another container's. Raises BoxRefused, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_open(fd, pid)
    finally:
        os.close(fd)


def read_open(fd: int, pid: int) -> Box | None:
    """The box that *fd* is open on; as `read`."""
    data = os.pread(fd, layout.HEADER_BYTES, 0)
    header = layout.read_region(data)
    if header is None:
        return None
    if header.version != layout.VERSION:
        raise BoxRefused(pid, header.version)
    if header.pid != pid:
        return None
    known = [page for number in range(header.pages) if (page := _page(fd, header, number)) is not None]
    workers = [Process(page, memory(page.pid) if page.pid else Memory()) for page in known if page.pid or page.crash is not None]
    totals = {page.number: Total(page.totals, _cpu_s(fd, header, page.number)) for page in known}
    return Box(pid, header.supervisor, header.schema, header.started_us, workers, clock_us(), layout.read_host(data), totals)


def read_tallies(fd: int) -> tuple[Tallied, Tallied]:
    """What is counted by name, of workflows and of steps, in the box that *fd* is open on."""
    header = layout.read_region(os.pread(fd, layout.region.size, 0))
    if header is None or header.version != layout.VERSION:
        return {}, {}
    return tallies.read(partial(os.pread, fd), map(header.tallies_at, range(header.pages)))


def _page(fd: int, header: layout.Region, number: int) -> layout.Page | None:
    at = header.page_at(number)
    head = os.pread(fd, layout.LOG_AT, at)
    if not any(head):
        return None  # nobody ever was that worker
    first, second = (os.pread(fd, header.page_bytes, at) for _ in range(2))
    return layout.read_page(number, first, second, header.threads, clock_us())


def _cpu_s(fd: int, header: layout.Region, number: int) -> float:
    """CPU time of all processes of that number. While one of them is reaped it is looked at again: it would be counted twice, or not at all."""
    at, cpu_s = header.page_at(number), 0.0
    for _ in range(LOOKS):
        turn, carried_us = layout.carried_record.unpack(os.pread(fd, layout.carried_record.size, at + layout.CARRIED_AT))
        (pid,) = layout.small.unpack(os.pread(fd, layout.small.size, at + layout.IDENTITY_AT))
        cpu_s = carried_us / 1e6 + (memory(pid).cpu_s if pid else 0.0)
        if turn % 2 == 0 and (turn, carried_us) == layout.carried_record.unpack(os.pread(fd, layout.carried_record.size, at + layout.CARRIED_AT)):
            break
        time.sleep(LOOK_AGAIN_S)
    return cpu_s


def open_box(pid: int) -> int | None:
    """A descriptor of that supervisor's box, to be read again and again; None where it has none, or none that this user may read."""
    path = next((path for _, path in _of(pid)), None)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path is not None else None


def _paths() -> Iterator[tuple[int, str]]:
    """(pid, path) of the descriptors that are black boxes, each once per process that holds it (the mapping holds a second)."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield from _of(int(entry.name))


def _of(pid: int) -> Iterator[tuple[int, str]]:
    user = os.geteuid()
    with contextlib.suppress(OSError):
        if user != 0 and os.stat(f"/proc/{pid}").st_uid != user:
            return
        seen: set[int] = set()
        for link in os.scandir(f"/proc/{pid}/fd"):
            if os.readlink(link.path) == _LINK and (inode := os.stat(link.path).st_ino) not in seen:
                seen.add(inode)
                yield pid, link.path


def memory(pid: int) -> Memory:
    """Resident memory and CPU time of a process."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError, ValueError):
        return Memory()
    return Memory(resident, sum(map(int, facts[10:12])) / _TICKS, state in ("T", "t"))
