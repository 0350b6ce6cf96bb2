"""The folder of logs: `supervisor.log` and its rotations, JSON lines, written by log processes and read by `logs` and `show --logs`.

Lines are appended whole. Several log processes may write into one folder: each notices that the file was moved away,
by another or by logrotate, and opens the new one. Rotating takes a lock that nobody waits for.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

import msgspec

from supervisor.core.errors import ConfigInvalid
from supervisor.host.log_lines import LINE_BYTES_MAX, Line, decode

NAME = "supervisor.log"
CHUNK_BYTES = 256 << 10
_ROTATION = re.compile(re.escape(NAME) + r"(?:\.(\d+))?")


class LogFile:
    """The file that is written. bytes_max: its size when it is rotated; files: how many there are, itself included."""

    def __init__(self, folder: Path, bytes_max: int, files: int) -> None:
        self.path = folder.absolute() / NAME
        self._lock_path = self.path.with_name(f"{NAME}.lock")
        self._bytes_max, self._files = bytes_max, files
        self._fd = -1
        self._size = 0

    def prepare(self) -> None:
        """Make the folder and the file, before anything depends on them. Raises ConfigInvalid."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.reopen()
        except OSError as error:
            raise ConfigInvalid(f"can't write logs into {self.path.parent}: {error.strerror}; name another folder (--log-dir), or give this account the permission") from error
        self.close()

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raises OSError; a part of *lines* may have been written then."""
        self._follow()
        if self._size and self._size + len(lines) > self._bytes_max:
            self._rotate()
        while lines:
            written = os.write(self._fd, lines)
            self._size += written
            lines = lines[written:]

    def reopen(self) -> None:
        """Open the file that bears the name now. What a killed writer left unfinished ends there, not in the next line."""
        self.close()
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            os.write(self._fd, b"\n")
            self._size += 1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self) -> None:
        """Go on in the file that bears the name: it may have been rotated, or removed."""
        try:
            there, mine = os.stat(self.path), os.fstat(self._fd)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                self._size = mine.st_size  # others may append too, or have emptied it
                return
        except OSError:
            pass
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reopen()

    def _rotate(self) -> None:
        with self._sole_rotator() as sole:
            if not sole:
                return
            self._follow()  # another may have done it since
            if self._size < self._bytes_max // 2:
                return
            for number in range(self._files - 2, -1, -1):
                with suppress(FileNotFoundError):
                    self._rotated(number).rename(self._rotated(number + 1))
            if self._files == 1:
                self.path.unlink()
            self.reopen()

    def _rotated(self, number: int) -> Path:
        return self.path.with_name(f"{NAME}.{number}") if number else self.path

    @contextmanager
    def _sole_rotator(self) -> Iterator[bool]:
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(fd)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """The lines of a folder, each once: those that are there, and at each further turn those that came since, through rotations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[tuple[int, int], int] = {}  # device and inode → bytes

    def turn(self, having: bytes = b"") -> Iterator[Line]:
        """Oldest file first, a line at a time: what is there when its file's turn comes. *having*: only lines with these bytes in them. Raises ConfigInvalid."""
        with ExitStack() as stack:
            files = {_identity(file): file for file in _open_all(self._folder, stack)}
            self._read = {name: read for name, read in self._read.items() if name in files}
            for name, file in files.items():
                yield from self._rest(name, file, having)

    def _rest(self, name: tuple[int, int], file: BinaryIO, having: bytes) -> Iterator[Line]:
        size = os.fstat(file.fileno()).st_size
        at = self._read.get(name, 0)
        at = at if at <= size else 0  # it was emptied
        file.seek(at)
        while at < size and (raw := file.readline(LINE_BYTES_MAX)):
            if at + len(raw) >= size and not raw.endswith(b"\n"):
                break  # somebody is writing it
            at += len(raw)
            self._read[name] = at
            if having in raw:
                with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # a line that a killed writer left
                    yield decode(raw)


def last(folder: Path, having: bytes, lines_max: int, bytes_max: int) -> tuple[list[Line], bool]:
    """The last lines of a folder with these bytes in them, oldest first, and whether all of its files were looked at: at most *bytes_max* are. Raises ConfigInvalid."""
    found: list[Line] = []
    with ExitStack() as stack:
        for file in reversed(_open_all(folder, stack)):
            for raw in _backwards(file, min(bytes_max, end := os.fstat(file.fileno()).st_size)):
                if having in raw and raw.endswith(b"\n"):
                    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                        found.append(decode(raw))
                if len(found) == lines_max:
                    return found[::-1], False
            bytes_max -= end
            if bytes_max < 0:
                return found[::-1], False
    return found[::-1], True


def _backwards(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """The lines of a file's end, the last one first."""
    end = os.fstat(file.fileno()).st_size
    begin, rest = end - bytes_max, b""
    while end > begin:
        at = max(begin, end - CHUNK_BYTES)
        file.seek(at)
        lines = (file.read(end - at) + rest).splitlines(keepends=True)
        end, rest = at, lines[0] if at > begin else b""
        yield from reversed(lines[1:] if at > begin or begin else lines)


def _open_all(folder: Path, stack: ExitStack) -> list[BinaryIO]:
    """The log and its rotations, oldest first. Opened newest first: a file that is moved on meanwhile is met again, not missed."""
    try:
        numbers = {int(match[1] or 0) for match in map(_ROTATION.fullmatch, os.listdir(folder)) if match}
    except OSError as error:
        raise ConfigInvalid(f"can't read the logs in {folder}: {error.strerror}; run this on the host whose workers wrote them, or name the folder with --log-dir") from error
    found: dict[tuple[int, int], BinaryIO] = {}
    beyond = max(numbers, default=-1) + 1
    for number in chain(sorted(numbers), count(beyond)):
        try:
            file = stack.enter_context(open(folder / (f"{NAME}.{number}" if number else NAME), "rb"))
        except FileNotFoundError:
            if number >= beyond:
                break
            continue
        found.setdefault(_identity(file), file)
    return list(found.values())[::-1]


def _identity(file: BinaryIO) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino
