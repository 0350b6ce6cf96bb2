"""What runs in the test kit is what runs on a host: the same programs end alike, with the same history, in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from supervisor.db.histories import reading
from supervisor.testing import DatabaseEnvironment, TestEnvironment
from tests.conformance.kit_filtered import FILTERED
from tests.conformance.kit_operated import OPERATED
from tests.conformance.kit_programs import PROGRAMS as OF_RUNS
from tests.conformance.kit_programs import Stage, seen
from tests.harness import Effects, HostFactory, Server, eventually

PROGRAMS = {**OF_RUNS, **OPERATED, **FILTERED}
OF_A_QUEUE = ("queue_paused", "queue_paused_meanwhile")  # which runs of the others are in


@pytest.fixture(scope="module")
def host(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What every program did on a real host. They wait most of the time, so eight are played at once."""
    folder = tmp_path_factory.mktemp("kitted")
    database = server.database()
    effects = Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        with Client(database.dsn) as client, hosts("tests.apps.kitted"), reading(database.dsn, "supervisor") as histories:
            stages = {name: Stage(client, lambda fact: eventually(fact, 30), histories.read, effects) for name in PROGRAMS}
            with ThreadPoolExecutor(8) as players:
                playing = {name: players.submit(program, stages[name]) for name, program in PROGRAMS.items() if name not in OF_A_QUEUE}
            played = {name: playing[name].result() if name in playing else program(stages[name]) for name, program in PROGRAMS.items()}
            yield {name: (stages[name].said, [seen(stages[name], run) for run in runs]) for name, runs in played.items()}
    finally:
        hosts.stop_all()
        database.drop()


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Effects:
    monkeypatch.setenv("TEST_EFFECTS", str(tmp_path / "effects"))
    return Effects(tmp_path / "effects")


@pytest.fixture(scope="module")
def on_database(server: Server) -> Iterator[DatabaseEnvironment]:
    database = server.database()
    with DatabaseEnvironment(database.dsn, schema="supervisor") as env:
        yield env
    database.drop()


@pytest.mark.parametrize("replay", [False, True], ids=["stays", "replays"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_the_same_in_memory_as_on_a_host(host, name, replay, notes):
    """DESIGN's promises are kept by the engine; that the kit keeps them too is shown by its doing the same, with replays at every commit too."""
    with TestEnvironment(seed=1, replay=replay) as env:
        here = _played(env, name, notes)
        env.verify()
    _same(*here, *host[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_the_same_in_an_environment_with_a_database(host, name, on_database, notes):
    """There it is the engine on PostgreSQL; what is the kit's own are the skipped time and the order of steps."""
    _same(*_played(on_database, name, notes), *host[name])


@pytest.mark.parametrize("name", [name for name in OPERATED if name != "forked_everywhere"])  # a step of that one tells whether it was begun before
def test_what_operators_do_holds_wherever_the_worker_dies(host, name, notes):
    """After each commit: what was asked for is honoured by the next worker, and comes to the same."""
    with TestEnvironment(seed=1) as whole:
        _played(whole, name, notes)
    folder = notes.path.parent
    for after in range(1, whole.commits + 1):
        notes = Effects(folder / str(after) / "effects")
        notes.path.parent.mkdir()
        with pytest.MonkeyPatch.context() as there, TestEnvironment(seed=1) as env:
            there.setenv("TEST_EFFECTS", str(notes.path))
            env.crash(after=after)
            _same(*_played(env, name, notes), *host[name])


def _played(env: TestEnvironment | DatabaseEnvironment, name: str, notes: Effects) -> tuple[list[Any], list[dict[str, Any]]]:
    stage = Stage(env, lambda fact: _wait(env, fact), env.history, notes)
    runs = PROGRAMS[name](stage)
    return stage.said, [seen(stage, run) for run in runs]


def _same(said: list[Any], here: list[dict[str, Any]], said_there: list[Any], there: list[dict[str, Any]]) -> None:
    differ = [(n, mine, theirs) for n, (mine, theirs) in enumerate(zip(said, said_there, strict=True)) if mine != theirs]
    assert not differ, [(said[n - 1 : n], mine, theirs) for n, mine, theirs in differ]
    for mine, theirs in zip(here, there, strict=True):
        for fact in theirs:
            assert mine[fact] == theirs[fact], fact


def _wait(env: TestEnvironment | DatabaseEnvironment, fact: Callable[[], bool]) -> None:
    for _ in range(600):
        if fact():
            return
        env.advance(0.1)
    raise AssertionError(env.waiting())
