"""Fixtures for pytest: `pytest_plugins = ["supervisor.testing.plugin"]` in conftest.py. Nothing is loaded for who does not ask.

All environments of one session have one seed, which is shown in the header and with every failure; --workflow-seed repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from supervisor.testing.database import DatabaseEnvironment
    from supervisor.testing.driving import Driven
    from supervisor.testing.environment import TestEnvironment

SEED_VARIABLE = "PGSUPERVISOR_TEST_SEED"
_environments = pytest.StashKey["list[Driven]"]()
_passed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pgsupervisor")
    group.addoption("--workflow-seed", type=int, help=f"seed of the test environments of workflows; else {SEED_VARIABLE}, else a new one")
    group.addoption("--workflow-dsn", help="database for the fixture workflow_database; else a private server")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "workflow_env(**options): options of the environment, as TestEnvironment takes them, and verify=False")


def pytest_report_header(config: pytest.Config) -> str:
    return f"pgsupervisor: seed {_seed(config)} (--workflow-seed)"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure tells how to repeat it and how its runs stand."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[_passed] = report.passed
    for env in item.stash.get(_environments, []) if report.failed else []:
        live = "".join(f"\n{each}" for each in env.waiting())
        report.sections.append(("workflow environment", f"seed {env.seed}, repeat with --workflow-seed={env.seed}; its time {env.now.isoformat()}{live}"))


@pytest.fixture
def workflow_env(request: pytest.FixtureRequest) -> Iterator[TestEnvironment]:
    """A TestEnvironment. What a test has recorded in it is replayed at the end, unless the test has failed."""
    from supervisor.testing.environment import TestEnvironment

    yield from _lent(request, TestEnvironment)


@pytest.fixture
def workflow_database(request: pytest.FixtureRequest) -> Iterator[DatabaseEnvironment]:
    """A DatabaseEnvironment with a schema of its own, on a private server or on --workflow-dsn."""
    from supervisor.testing.database import DatabaseEnvironment

    dsn = request.config.getoption("--workflow-dsn")
    yield from _lent(request, lambda **options: DatabaseEnvironment(dsn, **options))


def _lent(request: pytest.FixtureRequest, make: Any) -> Iterator[Any]:
    marker = request.node.get_closest_marker("workflow_env")
    options = {"seed": _seed(request.config), **(marker.kwargs if marker is not None else {})}
    verify = options.pop("verify", True)
    with make(**options) as env:
        request.node.stash.setdefault(_environments, []).append(env)
        yield env
        if verify and request.node.stash.get(_passed, False):
            env.verify()


_made: dict[int, int] = {}  # by configuration: the seed that was made for it


def _seed(config: pytest.Config) -> int:
    given = config.getoption("--workflow-seed")
    told = given if given is not None else os.environ.get(SEED_VARIABLE)
    if told is not None and told != "":
        return int(told)
    return _made.setdefault(id(config), SystemRandom().getrandbits(32))
