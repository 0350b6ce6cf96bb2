"""Sizes, READMEs, headers of SQL, names and words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisor.db.statements import blocks
from tests.house.source import ROOT, files, functions, python_files, shown

FILE_LINES_MAX = 650
LONGER = {
    "_fastpath/loop.py": 1015,  # its classes share C-level state, which Cython keeps within one module
    "supervisor/engine/worker.py": 700,  # it puts the parts together
    "supervisor/engine/commands.py": 700,  # one place for what becomes of each kind of command
    "supervisor/db/client_calls.py": 800,  # every question of a client, one after the other
    "supervisor/core/errors.py": 750,  # every error of users', one after the other
}
FUNCTION_LINES_MAX = 70
README_LINES_MAX = 120

# supervisord's module names: whoever installs both gets a mixture of the two packages' files in one folder
SUPERVISORD = set(
    "childutils compat confecho datatypes dispatchers events http http_client loggers medusa options pidproxy poller process rpcinterface "
    "scripts skel socket_manager states supervisorctl supervisord templating tests ui version.txt web xmlrpc".split()
)

# written in two halves, so that this file may look at itself
FORBIDDEN = {
    "where a text was written": r"\bsit" + r"tings?\b",
    "a path of one machine": r"/wor" + r"k/(?:main|shared|scratch|venv)|/root/\.pyenv|/home/[a-z]+/",
    "the number of a task": r"\bissue" + r" #?\d|\bpart \d of" + r" \d|(?<![\w&/\"'])#\d{1,4}\b(?![0-9a-f])",
    "a package registry's host": r"pypi\.o"
    + r"rg/simple|files\.pythonhos"
    + r"ted|registry\.npm"
    + r"js|proxy\.gol"
    + r"ang|artifac"
    + r"tory",
}
CODE = [path for path in files() if path.suffix in (".py", ".pyx", ".pxd", ".sql")]


@pytest.mark.parametrize("path", CODE, ids=shown)
def test_no_file_is_too_long(path):
    """A file holds one role; one of 6,600 lines holds none."""
    lines = len(path.read_text().splitlines())
    most = LONGER.get(shown(path), FILE_LINES_MAX)
    assert lines <= most, f"{shown(path)} has {lines} lines, {most} are the most"


@pytest.mark.parametrize("path", python_files("supervisor", "_fastpath", "bench", "sql", "tests"), ids=shown)
def test_no_function_is_too_long(path):
    """What does not fit a screen is not seen whole."""
    long = {function.name: function.end_lineno - function.lineno + 1 for function in functions(path)}  # type: ignore[operator]
    too_long = {name: lines for name, lines in long.items() if lines > FUNCTION_LINES_MAX}
    assert not too_long, f"{shown(path)}: {too_long}"


def source_folders() -> list[Path]:
    packages = {path.parent for path in python_files("supervisor", "_fastpath", "bench", "sql") if path.name != "__init__.py"}
    return sorted(packages | {ROOT / "sql", ROOT / "tests"})


@pytest.mark.parametrize("folder", source_folders(), ids=lambda folder: shown(folder) or ".")
def test_every_folder_says_what_it_is(folder):
    """Purpose, invariants, flow, in a README that is read to its end."""
    if folder == ROOT / "supervisor":
        folder = ROOT  # the package's own files are the front door; the README is the project's
    readme = folder / "README.md"
    assert readme.exists(), f"{shown(folder)} has no README.md"
    lines = len(readme.read_text().splitlines())
    most = 560 if folder == ROOT else README_LINES_MAX
    assert 3 <= lines <= most, f"{shown(readme)} has {lines} lines, {most} are the most"


@pytest.mark.parametrize("name", sorted(blocks()))
def test_every_statement_says_what_it_does_locks_and_uses(name):
    """Whoever changes a statement needs to know what it may lock and which index must serve it; plans are compared with it."""
    block = blocks()[name]
    assert len(block.header.get("what", "")) > 10, f"{block.file}: {name} does not say what it does"
    assert block.header.get("locks"), f"{block.file}: {name} has no `Locks:` (none is an answer)"
    reads_a_table = re.search(r"\{schema\}\.[a-z_]+(?!\()\b(?!\()", block.text)
    if reads_a_table:
        assert block.header.get("index"), f"{block.file}: {name} has no `Index:` (none is an answer)"


def test_names_of_supervisord_are_not_used():
    """Its package is called `supervisor` too."""
    used = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / "supervisor").iterdir()}
    assert not used & SUPERVISORD, f"supervisor/ has {sorted(used & SUPERVISORD)}, which supervisord has too"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what):
    """The project is read by people who were not there when it was written."""
    pattern = re.compile(FORBIDDEN[what], re.IGNORECASE)
    found = []
    for path in files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{shown(path)}:{number}: {line.strip()[:100]}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)
        ]
    assert not found, "\n".join(found[:20])
