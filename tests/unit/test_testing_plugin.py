"""The fixtures: what a user's conftest asks for, a seed that is told, and histories that are replayed when a test has passed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import BUILDS, ROOT

CONFTEST = 'pytest_plugins = ["supervisor.testing.plugin"]\n'
TESTS = """
import pytest
from tests.apps.kit_shop import KitOrder, kit_approved, kit_changes_its_mind, kit_charge, kit_checkout, kit_pack, kit_month, kit_sums

def test_passes(workflow_env):
    workflow_env.mock(kit_charge, returns="p")
    run = workflow_env.start(kit_checkout, KitOrder(1, 2))
    run.signal(kit_approved, "ann")
    assert run.result().by == "ann"

def test_fails(workflow_env):
    workflow_env.start(kit_sums)
    assert workflow_env.seed == 0, "on purpose"

@pytest.mark.workflow_env(strict=True, seed=9)
def test_options(workflow_env):
    workflow_env.mock(kit_pack, returns="x")
    assert workflow_env.seed == 9 and workflow_env._mocks.strict

def test_is_not_deterministic(workflow_env):
    workflow_env.start(kit_changes_its_mind).result()

@pytest.mark.workflow_env(verify=False)
def test_is_not_verified(workflow_env):
    workflow_env.start(kit_changes_its_mind).result()
"""


def pytest_in(folder: Path, *words: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_shop.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("PGSUPERVISOR_TEST_SEED", None)
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_the_fixtures(tmp_path):
    """One session: a seed in the header and with each failure, options by a marker, verified at the end."""
    said = pytest_in(tmp_path)
    seed = re.search(r"pgsupervisor: seed (\d+)", said)
    assert seed is not None, said
    assert "1 failed, 4 passed, 1 error" in said, said
    assert f"seed {seed[1]}, repeat with --workflow-seed={seed[1]}" in said
    assert "of kit_sums: " in said  # the runs of the test that failed
    assert "ERROR test_shop.py::test_is_not_deterministic" in said and "ReplayMismatch" in said
    assert "pgsupervisor: seed 4711 " in pytest_in(tmp_path, "--workflow-seed=4711", "-k", "passes")


def test_who_does_not_ask_gets_nothing():
    """No entry point: pytest of somebody who has the package for something else loads nothing of it."""
    from importlib.metadata import entry_points

    assert not [each for each in entry_points(group="pytest11") if each.value.startswith("supervisor")]
    code = "import sys, supervisor.testing, supervisor.testing.plugin; print([name for name in sys.modules if name.startswith(('supervisor.engine', 'psycopg'))])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("build", BUILDS)
def test_the_kit_runs_on_both_builds_of_the_loop(build):
    """Which one a process has is decided when it begins."""
    environ = {**os.environ, "PGSUPERVISOR_LOOP": build}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_testing.py"]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
