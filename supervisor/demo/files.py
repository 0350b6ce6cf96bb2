"""Which files the demo works through. Lists and never opens: what a file holds is the steps' business."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

OTHERS = ("site-packages", "dist-packages")  # inside the standard library's folder: packages of whom it belongs to


def python_files(folder: Path | None = None, limit: int | None = None) -> list[str]:
    """Every readable .py file below *folder*, sorted; without a folder those of this interpreter's library and packages.

    A link to a folder is not followed; a path that is not UTF-8 is left out, since a run's input is JSON.
    """
    found = sorted({path for root in _roots(folder) for path in _below(*root) if _usable(path)})
    return found[:limit]


def _roots(folder: Path | None) -> list[tuple[str, tuple[str, ...]]]:
    """(folder, names of folders not to enter) of all that is asked for, no folder twice."""
    if folder is not None:
        return [(os.path.realpath(folder), ())]
    paths = sysconfig.get_paths()
    packages = dict.fromkeys(os.path.realpath(paths[name]) for name in ("purelib", "platlib"))
    return [(os.path.realpath(paths["stdlib"]), OTHERS), *((path, ()) for path in packages)]


def _below(root: str, closed: tuple[str, ...]) -> Iterator[str]:
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in closed]
        yield from (os.path.join(folder, name) for name in names if name.endswith(".py"))


def _usable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return os.path.isfile(path) and os.access(path, os.R_OK)
