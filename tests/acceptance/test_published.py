"""Published state and queries on the command line: what is shown, what is asked, what is refused, and that nothing of it acts on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from tests.acceptance.test_reading import HOSTILE, as_role, registered, started
from tests.acceptance.test_workers import command
from tests.apps import queried
from tests.harness import Database, Effects, HostFactory, eventually

PUBLISH = "insert into supervisor.publication (run_id, key, pos, value, published_at) values (%s, %s, %s, %s, now())"


def published(database: Database, run: str, key: str, value: Any, pos: int = 0) -> None:
    """As if a worker had recorded it."""
    database.sql(PUBLISH, run, key, pos, json.dumps(value).encode())


def test_show_has_what_a_run_published(database: Database, tmp_path: Path) -> None:
    """Cut beside all else, whole with --state; in JSON both."""
    registered(database, "checkout")
    run = started(database, "checkout", key="order-1")
    assert "published" not in command(database, "show", "order-1", folder=tmp_path).stdout
    nothing = command(database, "show", run, "--state", folder=tmp_path)
    assert (nothing.returncode, nothing.stdout) == (0, "") and "published nothing" in nothing.stderr
    assert command(database, "show", run, "--state", "--json", folder=tmp_path).stdout == "{}\n"
    long = "x" * 10_000
    for pos, stage in enumerate(["begun", "packed"]):
        published(database, run, "stage", stage, pos)
    published(database, run, "long", {"text": long})
    text = command(database, "show", "order-1", folder=tmp_path).stdout
    assert '"packed"' in text and "begun" not in text and long not in text
    assert json.loads(command(database, "show", run, "--json", folder=tmp_path).stdout)["published"][1]["value"] == "packed"
    assert long in command(database, "show", "order-1", "--state", folder=tmp_path).stdout
    whole = json.loads(command(database, "show", "order-1", "--state", "--json", folder=tmp_path).stdout)
    assert whole == {"long": {"text": long}, "stage": "packed"}


def test_nothing_that_was_published_acts_on_a_terminal(database: Database, tmp_path: Path) -> None:
    """Keys and values are whatever somebody's workflow said; one that is no JSON does not hide the others."""
    registered(database, "checkout")
    run = started(database, "checkout")
    published(database, run, HOSTILE, {HOSTILE: [HOSTILE]})
    database.sql(PUBLISH, run, "broken", 0, b"\xff no JSON")
    for words in (["show", run], ["show", run, "--json"], ["show", run, "--state"], ["show", run, "--state", "--json"]):
        made = command(database, *words, folder=tmp_path)
        assert made.returncode == 0 and "unreadable" in made.stdout, made.stderr
        assert not any(char != "\n" and not char.isprintable() for char in made.stdout + made.stderr), words


def test_a_viewer_may_look_at_the_state(database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    run = started(database, "checkout")
    published(database, run, "stage", "begun")
    made = command(as_role(database, "viewer"), "show", run, "--state", folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, 'stage = "begun"\n'), made.stderr
    refused = command(as_role(database), "show", run, "--state", folder=tmp_path)
    assert refused.returncode != 0 and "viewer" in refused.stderr


@pytest.fixture
def asked(hosts: HostFactory, database: Database, effects: Effects) -> Database:
    """A host, and a run with the key `night` that stands at a gate with three steps done."""
    hosts.start("tests.apps.queried", procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(queried.answers.options(key="night"), "night", 3)
        eventually(lambda: database.one("select count(*) from supervisor.step where run_id = %s", run.id) == 3, 30)
    return database


def test_query_asks_a_run_by_id_or_key(asked: Database, tmp_path: Path) -> None:
    """The answer on stdout, as JSON; errors by their exit codes."""
    run = str(asked.one("select run_id from supervisor.runs where key = 'night'"))
    for which in ("night", run):
        made = command(asked, "query", which, "progress", folder=tmp_path)
        assert (made.returncode, json.loads(made.stdout)) == (0, {"done": [0, 1, 2], "of": 3}), made.stderr
    assert command(asked, "query", run, "item", "--json-value", "2", "--json", folder=tmp_path).stdout == "2\n"
    for words, code, told in (
        (["query", run, "nothing"], 1, "item, plain, progress"),
        (["query", run, "item", "--json-value", "7"], 1, "IndexError"),
        (["query", run, "item", "--json-value", "{"], 2, "no JSON"),
        (["query", "no such key", "progress"], 1, "no such key"),
        (["query", "00000000-0000-0000-0000-000000000000", "progress"], 1, "there is no run"),
    ):
        made = command(asked, *words, folder=tmp_path)
        assert made.returncode == code and told in made.stderr and not made.stdout, made.stderr
    assert asked.one("select count(*) from supervisor.query") == 0


def test_query_that_nobody_answers_ends_at_its_time(database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    run = started(database, "checkout")
    made = command(database, "query", run, "progress", "--timeout", "0.3", folder=tmp_path)
    assert made.returncode == 124 and "checkout took it" in made.stderr, made.stderr
    assert database.one("select count(*) from supervisor.query") == 0
