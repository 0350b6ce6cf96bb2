"""Saved files: a part of the parent's loop that looks at the app's own files and says when one of them is another one.

The parent imports nothing of the app, so its workers say where its modules lie (`reporting`), also those of an import that
failed: below the current folder, or in the app's package. Looked at are the .py files of these folders, four times a second with a
stat each, so a file that is new is seen too. A save is often several writes: nothing is done until a look finds no further one. A
file that breaks while a reload is under way leaves workers of both generations until it is mended.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger("pgsupervisor.parent")

LOOK_S = 0.25
SETTLE_S = 0.05
READ_BYTES = 65_536
NAMED_MAX = 3
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OTHERS = ("site-packages", "dist-packages", "__pycache__")

Facts = tuple[int, int, int]  # of a file: what is another when it was saved


class Saved:
    """Looks; calls *changed* when files were saved.

    fd   is to be kept open in the workers, and given to `reporting`
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._reading, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        self._heard = b""
        self._seen: dict[str, dict[str, Facts]] = {}  # by folder: by file
        self._saved: set[str] = set()
        self._look_at = float("inf")

    def sockets(self) -> tuple[list[int], list[int]]:
        return [self._reading], []

    def due(self) -> float:
        return self._look_at

    def act(self, readable: set[int], writable: set[int]) -> None:
        if self._reading in readable:
            self._hear()
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self.fd)

    def _hear(self) -> None:
        """Where modules lie, and when their import began: what was saved since then was perhaps not what was imported."""
        *lines, self._heard = (self._heard + os.read(self._reading, READ_BYTES)).split(b"\n")
        for line in lines:
            began_ns, _, folder = os.fsdecode(line).partition(" ")
            if folder in self._seen:
                continue
            if not self._seen:
                log.info("what is saved is loaded: looking at the .py files in %s, and where else the app's modules lie", folder)
                self._look_at = time.monotonic()
            self._seen[folder] = found = _files(folder)
            self._saved.update(path for path, facts in found.items() if facts[0] > int(began_ns))

    def _look(self, now: float) -> None:
        saved: set[str] = set()
        for folder, before in self._seen.items():
            found = _files(folder)
            saved.update(path for path in found.keys() | before.keys() if found.get(path) != before.get(path))
            self._seen[folder] = found
        self._saved |= saved
        if self._saved and not saved:
            names = sorted(os.path.relpath(path) for path in self._saved)
            log.info("saved: %s%s", ", ".join(names[:NAMED_MAX]), f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
            self._saved.clear()
            self._changed()
        self._look_at = now + (SETTLE_S if saved else LOOK_S)


def _files(folder: str) -> dict[str, Facts]:
    """The .py files in a folder. One that goes meanwhile, or a folder that does, is not there."""
    found: dict[str, Facts] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    try:
                        facts = entry.stat()
                    except OSError:
                        continue
                    found[entry.path] = facts.st_mtime_ns, facts.st_size, facts.st_ino
    except OSError:
        pass
    return found


# ── in the worker ────────────────────────────────────────────────────────────────────────────────────────────────


def reporting(load: Callable[[], Any], app: str, fd: int) -> Callable[[], Any]:
    """*load*, which imports *app*, and says to the parent's `Saved.fd` where the app's own modules lie, also if it fails."""

    def loaded() -> Any:
        sys.dont_write_bytecode = True  # two saves of one length within a second have one stamp in it, and the first one's code would be found
        began_ns = time.time_ns()
        try:
            made = load()
        except BaseException as error:
            _report(fd, began_ns, app, _of_error(error))
            raise
        _report(fd, began_ns, app, [])
        return made

    return loaded


def _report(fd: int, began_ns: int, app: str, more: list[str]) -> None:
    for folder in sorted(own_folders(app, more)):
        line = os.fsencode(f"{began_ns} {folder}\n")
        if len(line) <= 4096 and line.count(b"\n") == 1:  # one write each, whole
            os.write(fd, line)


def own_folders(app: str, more: list[str]) -> set[str]:
    """The folders of all modules, and of the files *more*, that lie below the current folder or belong to the app's package, and are nobody else's."""
    here = os.getcwd()
    top = _file_of(sys.modules.get(app.partition(".")[0]))
    roots = [here, *([os.path.dirname(top)] if top.endswith("__init__.py") else [])]
    paths = [path for path in map(_file_of, list(sys.modules.values())) if path] + more
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths if path.endswith(".py")} | {here}
    return {folder for folder in folders if any(_below(folder, root) for root in roots) and not _is_others(folder)}


def _file_of(module: object) -> str:
    path = getattr(module, "__file__", None)
    return path if isinstance(path, str) else ""


def _below(folder: str, root: str) -> bool:
    return folder == root or folder.startswith(root.rstrip(os.sep) + os.sep)


def _is_others(folder: str) -> bool:
    return any(name in _OTHERS for name in folder.split(os.sep)) or _below(folder, _PACKAGE) or _below(folder, sysconfig.get_path("stdlib"))


def _of_error(error: BaseException) -> list[str]:
    """The files that an import failed in, which are no modules any more, or never were."""
    return list(_files_of(error))


def _files_of(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename:
            yield error.filename
        yield from (frame.filename for frame in traceback.extract_tb(error.__traceback__, limit=-50))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
