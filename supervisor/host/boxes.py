"""The black boxes of this host's supervisors, read from another process of the same user: for `workers` and `top`.

A box is a memfd that its parent holds open, so it is found among the descriptors in /proc, and it is gone when its
supervisor is: there is no file to be left over. Reads only, and copies instead of mapping, so looking costs the workers nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from supervisor._fastpath.wire import clock_us
from supervisor.core.errors import SupervisorError
from supervisor.host import layout
from supervisor.host.blackbox import MEMFD_NAME

_LINK = f"/memfd:{MEMFD_NAME} (deleted)"
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


@dataclass(frozen=True)
class Process:
    """One worker: its page, and what the kernel says of it. Without a pid nothing but the last crash of that number is known."""

    page: layout.Page
    memory: Memory


@dataclass(frozen=True)
class Box:
    """One supervisor of this host and its workers, at one moment."""

    pid: int
    supervisor: UUID
    schema: str
    started_us: int
    workers: list[Process]
    at_us: int


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
        header = layout.read_region(os.pread(fd, layout.region.size, 0))
        if header is None:
            return None
        if header.version != layout.VERSION:
            raise BoxRefused(pid, header.version)
        if header.pid != pid:
            return None
        pages = [_page(fd, header, number) for number in range(header.pages)]
    finally:
        os.close(fd)
    known = [page for page in pages if page is not None]
    workers = [Process(page, memory(page.pid) if page.pid else Memory()) for page in known]
    return Box(pid, header.supervisor, header.schema, header.started_us, workers, clock_us())


def _page(fd: int, header: layout.Region, number: int) -> layout.Page | None:
    at = header.page_at(number)
    head = os.pread(fd, layout.LOG_AT, at)
    if layout.identity.unpack_from(head, layout.IDENTITY_AT)[0] == 0 and layout.crash_record.unpack_from(head, layout.CRASH_AT)[3] == 0:
        return None  # nobody ever was that worker
    first, second = (os.pread(fd, header.page_bytes, at) for _ in range(2))
    return layout.read_page(number, first, second, header.threads, clock_us())


def _paths() -> Iterator[tuple[int, str]]:
    """(pid, path) of the descriptors that are black boxes, each once per process that holds it (the mapping holds a second)."""
    user = os.geteuid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if user != 0 and entry.stat().st_uid != user:
                continue
            seen: set[int] = set()
            for link in os.scandir(f"/proc/{entry.name}/fd"):
                if os.readlink(link.path) == _LINK and (inode := os.stat(link.path).st_ino) not in seen:
                    seen.add(inode)
                    yield int(entry.name), link.path


def memory(pid: int) -> Memory:
    """Resident memory and CPU time of a process."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, IndexError):
        return Memory()
    return Memory(resident, sum(map(int, times)) / _TICKS)
