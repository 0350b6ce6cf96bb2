"""The project's own files, read once: what the house tests look at."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# made by tools, or somebody else's
NOT_OURS = {
    ".git",
    ".venv",
    "build",
    "dist",
    "__pycache__",
    ".hypothesis",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "results",
    "node_modules",
    "vendor",
}
GENERATED = {".c", ".so", ".html", ".pyc", ".o"}


@dataclass(frozen=True)
class Import:
    """One import of one module, wherever in a file it stands; types_only: under `if TYPE_CHECKING`."""

    file: str
    line: int
    module: str
    names: tuple[str, ...]
    types_only: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


@cache
def files() -> tuple[Path, ...]:
    """Every text file of the project, links not followed."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(".egg-info")]
        found += [Path(folder, name) for name in names if name not in NOT_OURS and Path(name).suffix not in GENERATED]
    return tuple(sorted(path for path in found if path.is_file() and not path.is_symlink()))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_files(*tops: str) -> list[Path]:
    """Python files below the folders *tops*."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in tops]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file, relative ones resolved against its package `supervisor.…`."""
    yield from _imports(path, tree(path), False)


def _imports(path: Path, node: ast.AST, types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(shown(path), child.lineno, alias.name, (), types_only)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{shown(path)}:{child.lineno}: a relative import"
            yield Import(shown(path), child.lineno, child.module or "", tuple(alias.name for alias in child.names), types_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for each in child.body:
                yield from _imports(path, ast.Module([each], []), True)
            for each in child.orelse:
                yield from _imports(path, ast.Module([each], []), types_only)
        else:
            yield from _imports(path, child, types_only)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
