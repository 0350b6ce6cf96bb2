"""Times that no calendar of a program has: what is typed is refused, and what is stored all the same fails nobody who looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor import Client
from tests.acceptance.test_reading import registered, started
from tests.acceptance.test_workers import command
from tests.acceptance.visits import served
from tests.harness import Database

STORED = ("infinity", "-infinity", "42000-01-01", "4000-01-01 BC", "0001-01-01 00:00:00+00", "9999-12-31 23:59:59+00")
READING = (("list",), ("list", "--json"), ("top", "--once"), ("top", "--once", "--json"), ("queues",), ("queues", "--json"), ("audit",), ("schedules",))
PAGES = ("health", "runs", "queues", "schedules", "audit", "storage", "errors", "batches")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--delay", "1e12"), "delay of 1000000000000.0 s: give 0 or more, and less than 1e+10"),
        (("--delay", "nan"), "delay of nan s"),
        (("--queue", ""), "queue '': give a name of 1 to 200 characters"),
        (("--queue", "x" * 300), "give a name of 1 to 200 characters"),
        (("--attribute", 'foo={"a":1}'), "foo is dict\n  a str, int (of 64 bits), float, bool, datetime or list of str can be searched for"),
    ],
    ids=["far", "nan", "no_queue", "long_queue", "attribute"],
)
def test_a_start_that_can_not_be_is_wrong_usage(words: tuple[str, ...], said: str, database: Database, tmp_path: Path) -> None:
    """Exit code 69 would say that the database can't be reached, and whoever types it would try again for ever."""
    registered(database, "echo")
    made = command(database, "start", "echo", *words, folder=tmp_path)
    assert made.returncode == 2 and said in made.stderr, made.stderr
    assert database.one("select count(*) from supervisor.run") == 0


def test_what_is_stored_all_the_same_fails_nobody_who_looks(database: Database, tmp_path: Path) -> None:
    """One row that nobody can read would hide all others from those who are called at night."""
    registered(database, "echo")
    runs = {moment: started(database, "echo", key=moment) for moment in STORED}
    for moment, run in runs.items():
        database.sql("update supervisor.task set ready_at = %s, wait_since = %s where run_id = %s", moment, moment, run)
        database.sql("update supervisor.run set created_at = %s where run_id = %s", moment, run)
    for words in READING:
        made = command(database, *words, folder=tmp_path)
        assert made.returncode == 0, f"{words}: {made.stderr}"
    for run in runs.values():
        assert command(database, "show", run, folder=tmp_path).returncode == 0
        assert json.loads(command(database, "show", run, "--json", folder=tmp_path).stdout)["run_id"] == run
    with Client(database.dsn) as client:
        assert {str(each.run_id) for each in client.list(100)} == set(runs.values())
    with served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        for path in (*PAGES, *(f"runs/{run}" for run in runs.values())):
            for form in ("", ".json"):
                got = ann.get(f"/{path}{form}")
                assert got.status == 200, f"{path}{form}: {got.text}\n{dashboard.log.read_text()[-3000:]}"
