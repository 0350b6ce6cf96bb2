"""Imports point down only, and the driver has one door."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.source import Import, imports, python_files, shown

# a package may import itself and what has a smaller number
LAYERS = {
    "core": 0, "sql": 0,
    "_fastpath": 1,
    "db": 2,
    "api": 3,
    "sync": 4, "files": 4, "engine": 4, "leader": 4, "telemetry": 4, "tracing": 4,
    "host": 5,
    "demo": 6, "bench": 6, "profile": 6, "testing": 6, "dashboard": 6, "metrics": 6, "example": 6,
    "cli": 7,
    "__main__": 8,
}  # fmt: skip
PRODUCT = [path for path in python_files("supervisor", "_fastpath", "bench", "sql") if shown(path) != "supervisor/__init__.py"]


def part_of(path: Path) -> str:
    """The package that a file belongs to: supervisor/db/connect.py is of db, bench/app.py of bench."""
    parts = Path(shown(path)).with_suffix("").parts
    return parts[1] if parts[0] == "supervisor" else parts[0]


def target_of(found: Import) -> list[str]:
    """The packages of ours that an import means; `from supervisor import workflow` means api."""
    first, *rest = found.module.split(".")
    if first in ("_fastpath", "bench", "sql"):
        return [f"{first} by its folder's name; write supervisor.{first}"]
    if first != "supervisor":
        return []
    if rest:
        return [rest[0]]
    return [name if name in LAYERS else "api" for name in found.names] or ["api"]


def test_every_package_has_its_layer():
    """A new package has to say where it stands."""
    assert not {part_of(path) for path in PRODUCT} - set(LAYERS)


@pytest.mark.parametrize("path", PRODUCT, ids=shown)
def test_imports_point_down_only(path):
    """cli → demo, bench, testing → host → engine → api → db → core. _fastpath knows core alone: no driver. Imports for types count."""
    mine = part_of(path)
    wrong = [
        f"{found} ({mine} → {target})"
        for found in imports(path)
        for target in target_of(found)
        if target != mine and LAYERS.get(target, 99) >= LAYERS[mine]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PRODUCT, ids=shown)
def test_only_db_imports_the_driver(path):
    """One door to the database: profiles, words of errors and the hiding of passwords stand there and nowhere else.

    Names for type checkers load nothing and are free. A benchmark's ceilings measure the server past the engine: bench is free.
    """
    if part_of(path) in ("db", "bench"):
        return
    wrong = [str(found) for found in imports(path) if found.module.split(".")[0].startswith("psycopg") and not found.types_only]
    assert not wrong, "\n".join(wrong)
