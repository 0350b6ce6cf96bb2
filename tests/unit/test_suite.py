"""The command of the whole suite: what it takes for a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

# each counts how often it was executed, in a file beside it
COUNTED = """
from pathlib import Path

def nth(name):
    path = Path(__file__).with_name(name)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return len(path.read_text())

def test_passes():
    nth("passes")

"""
FLAKY = """
def test_flaky():
    assert nth("flaky") > 1
"""
BROKEN = """
def test_broken():
    nth("broken")
    assert False
"""
MANY = """
import pytest

@pytest.mark.parametrize("n", range(11))
def test_many(n):
    assert nth(f"many{n}") > 1
"""


def suite(folder: Path, text: str) -> tuple[int, str]:
    (folder / "test_counted.py").write_text(COUNTED + text)
    plain = ["-p", "no:supervisor", "-p", "no:hypothesispytest"]  # which takes a second of each process
    words = [sys.executable, "-m", "tests", str(folder), "--rootdir", str(folder), "-c", "/dev/null", *plain]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout


def times(folder: Path, name: str) -> int:
    return len((folder / name).read_text())


def test_what_fails_beside_others_is_judged_once_more_and_named(tmp_path: Path) -> None:
    code, said = suite(tmp_path, FLAKY)
    assert code == 0 and "passed by themselves:\n  test_counted.py::test_flaky\n" in said, said
    assert times(tmp_path, "flaky") == 2 and times(tmp_path, "passes") == 1


def test_what_fails_twice_fails(tmp_path: Path) -> None:
    code, said = suite(tmp_path, FLAKY + BROKEN)
    assert code == 1 and "by themselves" not in said and "FAILED in" in said, said
    assert times(tmp_path, "broken") == 2


def test_many_that_fail_are_no_accident(tmp_path: Path) -> None:
    code, said = suite(tmp_path, MANY)
    assert code == 1 and "by themselves" not in said, said
    assert times(tmp_path, "many0") == 1


def test_what_can_not_be_collected_fails(tmp_path: Path) -> None:
    code, said = suite(tmp_path, "import nothing_of_that_name\n")
    assert code not in (0, 5) and "by themselves" not in said, said
