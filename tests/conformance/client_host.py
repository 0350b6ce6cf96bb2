"""A host for the client's tests, shared by a file: what a client does is the same on both builds of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from supervisor import Client
from tests.harness import Database, Effects, Host, HostFactory, Server


@dataclass
class Hosted:
    """A database with a host of the file's APP, else of tests.apps.asked, and a client."""

    database: Database
    effects: Effects
    host: Host
    client: Client

    def runs(self, where: str = "true") -> int:
        count: int = self.database.one(f"select count(*) from supervisor.runs where {where}")
        return count


@pytest.fixture(scope="module")
def hosted(server: Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    folder = tmp_path_factory.mktemp("hosted")
    database = server.database()
    effects = Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        with Client(database.dsn) as client, hosts(getattr(request.module, "APP", "tests.apps.asked")) as host:
            yield Hosted(database, effects, host, client)
    finally:
        hosts.stop_all()
        database.drop()


def register(database: Database, *names: str, parameters: str = '[{"name": "n", "required": true}]') -> None:
    """What a worker registers, without one: so nothing that a test starts is ever claimed."""
    for name in names:
        database.sql(
            "insert into supervisor.workflow (name, queue, parameters) "
            "values (%s, supervisor.queue_id('default'), convert_to(%s, 'UTF8'))", name, parameters
        )  # fmt: skip


def backends(database: Database, name: str) -> list[Any]:
    return database.sql("select pid from pg_stat_activity where datname = current_database() and application_name = %s", f"pgsupervisor: {name}")
