"""What runs in the test kit is what runs on a host: the same programs end alike, with the same history, in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client, Run
from supervisor.db.histories import reading
from supervisor.testing import DatabaseEnvironment, TestEnvironment
from tests.conformance.kit_programs import PROGRAMS, Stage, seen
from tests.harness import Effects, HostFactory, Server, eventually


@pytest.fixture(scope="module")
def host(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What every program did on a real host: all are played at once."""
    folder = tmp_path_factory.mktemp("kitted")
    database = server.database()
    effects = Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        with Client(database.dsn) as client, hosts("tests.apps.kitted"), reading(database.dsn, "supervisor") as histories:

            def rest(run: Run[Any]) -> None:
                eventually(lambda: client.status(run).status in ("waiting", "paused"), 30)

            stage = Stage(client, rest, histories.read, effects)
            played = {name: program(stage) for name, program in PROGRAMS.items()}
            yield {name: [seen(stage, run) for run in runs] for name, runs in played.items()}
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
        stage = Stage(env, lambda run: _rest(env, run), env.history, notes)
        here = [seen(stage, run) for run in PROGRAMS[name](stage)]
        env.verify()
    _same(here, host[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_the_same_in_an_environment_with_a_database(host, name, on_database, notes):
    """There it is the engine on PostgreSQL; what is the kit's own are the skipped time and the order of steps."""
    stage = Stage(on_database, lambda run: _rest(on_database, run), on_database.history, notes)
    _same([seen(stage, run) for run in PROGRAMS[name](stage)], host[name])


def _same(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(here, there, strict=True):
        for fact in theirs:
            assert mine[fact] == theirs[fact], fact


def _rest(env: TestEnvironment | DatabaseEnvironment, run: Run[Any]) -> None:
    while run.status().status not in ("waiting", "paused", "failed"):
        env.advance(0.1)
