"""The engine lives in its own schema: beside namesakes of its tables, under a hostile path, by an odd name, twice in one database."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from supervisor import Client, RunFailed
from supervisor.db import migrations
from tests.apps import clashing
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually

NAMESAKES = (
    "run", "step", "task", "queue", "message", "schedule", "worker", "audit", "outcome", "attempt", "timer", "workflow", "child", "cell",
    "migration", "runs",
)  # fmt: skip
WEIRD = 'We"ird'


@pytest.fixture
def crowded(server: Server) -> Iterator[Database]:
    """A database whose public schema has tables of the same names, and whose sessions find nothing by themselves."""
    database = server.database()
    try:
        for name in NAMESAKES:
            database.sql(f"create table public.{name} (id text default 'theirs', run_id text, seq int)")
            database.sql(f"insert into public.{name} default values")
        database.sql("create function public.new_id() returns text language sql return 'theirs'")
        database.sql("create function public.start_runs(text) returns text language sql return 'theirs'")
        database.sql("create table public.ledger (n int)")
        with database.connect() as conn:
            migrations.migrate(conn, WEIRD)
        database.sql(f"alter database {database.name} set search_path = ''")
        yield database
    finally:
        database.drop()


def test_two_cells_beside_namesakes_with_an_empty_path(crowded: Database, effects: Effects, tmp_path: Path, build: str) -> None:
    """Whatever the application has called its tables and set on its sessions, both engines do their own work and touch nothing else."""
    weird = dataclasses.replace(crowded, schema=WEIRD, _conn=None)
    factories = [HostFactory(database, effects, tmp_path) for database in (crowded, weird)]
    try:
        # given a host for each of two cells in one database
        hosts = [factory.start("tests.apps.clashing", build=build) for factory in factories]
        for host in hosts:
            host.wait_up(1)
        with Client(crowded.dsn) as one, Client(crowded.dsn, schema=WEIRD) as other:
            # when both are given the same keys
            ours = [one.start(clashing.everything.options(key=f"k{n}"), n) for n in range(20)]
            theirs = [other.start(clashing.everything.options(key=f"k{n}"), 100 + n) for n in range(20)]
            assert not {run.id for run in ours} & {run.id for run in theirs}
            hosts[1].kill_worker()  # the death of one cell's worker is no business of the other's
            # then each works through its own
            assert [run.result(timeout=30) for run in ours] == [[2 * n, 2 * n, n] for n in range(20)]
            assert [run.result(timeout=30) for run in theirs] == [[2 * n, 2 * n, n] for n in range(100, 120)]
            assert hosts[0].log().count(" is up as ") == 1
            assert sorted(n for (n,) in crowded.sql("select n from public.ledger")) == [*range(20), *range(100, 120)]
            # and every word of the client finds its own
            again = other.start(clashing.everything.options(key="k7"), 107)
            assert (again.id, again.created) == (theirs[7].id, False)
            assert one.get(ours[3].id).status().status == "completed"
            assert {info.run_id for info in other.list(workflow="everything")} == {run.id for run in theirs}
            assert {info.key for info in one.list(status="completed", key="k5")} == {"k5"}
            assert [each["name"] for each in other.parameters("everything")] == ["n", "fails"]
            batch = other.start_many(clashing.twin, range(50))
            assert [run.result(timeout=30) for run in batch] == [2 * n for n in range(50)]
            assert one.start("twin", n=4).result(timeout=30) == 8
            with pytest.raises(RunFailed, match="asked to fail 9"):
                other.start(clashing.everything, 9, fails=True).result(timeout=30)
    finally:
        for factory in factories:
            factory.stop_all()
    for name in NAMESAKES:
        assert crowded.sql(f"select id, run_id, seq from public.{name}") == [("theirs", None, None)], name


def test_client_on_a_session_with_namesakes_of_its_own(crowded: Database, effects: Effects, tmp_path: Path) -> None:
    """A path that puts the namesakes first, set by the connection string; and the command line on a schema that needs quotes."""
    weird = dataclasses.replace(crowded, schema=WEIRD, _conn=None)
    factory = HostFactory(weird, effects, tmp_path)
    dsn = psycopg.conninfo.make_conninfo(crowded.dsn, options="-csearch_path=public,pg_temp,pg_catalog")
    try:
        factory.start("tests.apps.clashing").wait_up(1)
        with Client(dsn, schema=WEIRD) as client:
            assert client.start(clashing.everything, 3).result(timeout=30) == [6, 6, 3]

        def command(*words: str) -> str:
            environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": dsn, "PGSUPERVISOR_SCHEMA": WEIRD}
            program = [sys.executable, "-m", "supervisor", *words]
            done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        listed = [json.loads(line) for line in command("list", "--json").splitlines()]
        found = listed[0] if isinstance(listed[0], list) else listed
        assert {each["workflow"] for each in found} == {"everything", "twin"}
        assert "completed" in command("show", str(found[0]["run_id"]))
    finally:
        factory.stop_all()


def test_reaper_of_one_cell_leaves_the_workers_of_another(crowded: Database, effects: Effects, tmp_path: Path) -> None:
    """Workers are numbered per cell; a sign of life is a lock in the class of its cell, so equal numbers are not confused."""
    weird = dataclasses.replace(crowded, schema=WEIRD, _conn=None)
    factories = [HostFactory(database, effects, tmp_path) for database in (crowded, weird)]
    try:
        hosts = [factory.start("tests.apps.clashing").wait_up(1) for factory in factories]
        ids = [crowded.one(f'select max(id) from "{schema}".worker where dead_at is null') for schema in ("supervisor", 'We""ird')]
        assert ids[0] == ids[1], "both cells have a worker of the same number"
        hosts[0].kill_all()
        with Client(crowded.dsn, schema=WEIRD) as client:
            assert client.start(clashing.everything, 1).result(timeout=30) == [2, 2, 1]
            restarted = factories[0].start("tests.apps.clashing").wait_up(1)
            eventually(lambda: crowded.one("select count(*) from supervisor.worker where dead_at is not null") == 1, 30, restarted.log())
            assert client.start(clashing.everything, 2).result(timeout=30) == [4, 4, 2]
        assert crowded.one('select count(*) from "We""ird".worker where dead_at is not null') == 0
        assert hosts[1].log().count(" is up as ") == 1
    finally:
        for factory in factories:
            factory.stop_all()
