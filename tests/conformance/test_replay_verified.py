"""`replay` compares recorded histories with the code that is here: it executes nothing, writes nothing, and names the first place where they part."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import Client, Run
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually

SAME, NEW = "tests.apps.replayed", "tests.apps.replayed_new"


@dataclass
class Recorded:
    """Runs of every kind with their histories, and no host any more."""

    database: Database
    effects: Effects
    folder: Path
    ended: dict[str, list[Run[Any]]]
    live: dict[str, Run[Any]]

    def command(self, *words: str, dsn: str | None = "", code: str = "", timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """The program; without a database where *dsn* is None, with *code* executed before it."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PGSUPERVISOR", "PG", "DATABASE_URL"))}
        environ |= {"PYTHONPATH": str(ROOT), "TEST_EFFECTS": str(self.effects.path)}
        if dsn is not None:
            environ["PGSUPERVISOR_DATABASE_URL"] = dsn or self.database.dsn
        start = ["-c", f"{code}\nfrom supervisor.cli.main import main\nmain({list(words)!r})"] if code else ["-m", "supervisor", *words]
        return subprocess.run([sys.executable, *start], capture_output=True, text=True, env=environ, cwd=self.folder, timeout=timeout_s)

    def replay(self, app: str, *words: str, **how: Any) -> tuple[int, list[dict[str, Any]], dict[str, int]]:
        """Exit code, divergences, and the sum."""
        done = self.command("replay", "--json", "--app", app, *words, **how)
        assert done.stdout, done.stderr
        *parted, total = map(json.loads, done.stdout.splitlines())
        return done.returncode, parted, total

    def everything(self) -> list[str]:
        return [word for run in (*(run for runs in self.ended.values() for run in runs), *self.live.values()) for word in ("--run", str(run.id))]

    def tables(self) -> dict[str, str]:
        """Every row of every table that the engine has, and of what the catalogue says of writing."""
        names = "select oid::regclass::text from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'r' and not relispartition or relkind = 'p'"
        return {
            name: self.database.one(f"select md5(coalesce(string_agg(t::text, ',' order by t::text), '')) from {name} t")
            for (name,) in self.database.sql(names)
            if name not in ("supervisor.leader", "supervisor.worker") and name.startswith("supervisor.")
        }


@pytest.fixture(scope="module")
def recorded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("replayed")
    database = server.database()
    effects = Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        with Client(database.dsn) as client, hosts(SAME):
            ended: dict[str, list[Run[Any]]] = {
                "replayed_rich": [client.start("replayed_rich", n) for n in range(3)], "replayed_plain": [client.start("replayed_plain", 1)],
                "replayed_raises": [client.start("replayed_raises")], "replayed_spins": [client.start("replayed_spins")],
                "replayed_returns": [client.start("replayed_returns", word) for word in ("even", "odd", "odd", "odd", "odd")],
                "replayed_returns_plain": [client.start("replayed_returns_plain")],
            }  # fmt: skip
            updated = client.start("replayed_updated")
            ended["replayed_updated"] = [updated]
            assert [client.update(updated, "replayed_add", word) for word in ("one", "two")] == ["one", "two"]
            ended["replayed_undone"], ended["replayed_goes_on"] = [client.start("replayed_undone")], [client.start("replayed_goes_on", 1)]
            cancelled = client.start("replayed_cancelled")
            ended["replayed_cancelled"] = [cancelled]
            eventually(lambda: cancelled.status().wait == "signal", 20)
            assert client.cancel(cancelled)
            live = {name: client.start(name) for name in ("replayed_sleeps", "replayed_parent", "replayed_listens")}
            parked = "select count(*) from supervisor.task where owner is null and wait_kind in (10, 11, 14, 15)"
            eventually(lambda: database.one(parked) == 9, 60, "three rich, one plain, one updated, three live ones and a child wait")
            assert {run.status().wait for run in ended["replayed_rich"]} == {"signal"}
            client.signal(updated, "replayed_go", "went")
            for run in (*ended["replayed_rich"], *ended["replayed_plain"]):
                client.signal(run, "replayed_go", "went")
                client.signal(run, "replayed_go", "again")
            for runs in ended.values():
                for run in runs:
                    eventually(lambda run=run: run.status().ended_at, 30)  # type: ignore[misc]
        yield Recorded(database, effects, folder, ended, live)
    finally:
        hosts.stop_all()
        database.drop()


def line_of(mark: str) -> int:
    """The line of the new app that says so."""
    (found,) = [n for n, text in enumerate((ROOT / "tests/apps/replayed_new.py").read_text().splitlines(), 1) if text.endswith(mark)]
    return found


# ── equal ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_histories_of_every_kind_are_equal_to_their_own_code(recorded: Recorded) -> None:
    """Timers, signals, updates, cancellations, compensations, children, branches that lost, failures, patches; async and def; ended and live. Nothing is executed or written."""
    noted, stored = len(recorded.effects.lines()), recorded.tables()
    code, parted, total = recorded.replay(SAME, *recorded.everything())
    assert (code, parted, total) == (0, [], {"replayed": 19, "equal": 19, "parted": 0, "left_out": 0})
    assert len(recorded.effects.lines()) == noted and recorded.tables() == stored


# ── parted ───────────────────────────────────────────────────────────────────────────────────────────────────────

# workflow → seq, what was recorded, what the code does now, the end of the line where it does it, the function there
PARTED = {
    "replayed_rich": (0, "patch 'replayed-a'", "step 'replayed_did'", "# parts here: the patch is gone", "replayed_rich"),
    "replayed_plain": (2, "step 'replayed_did'", "step 'replayed_other'", "# replayed_plain parts here", "helper"),
    "replayed_raises": (1, "an error that ends it", "return", "# replayed_raises parts here", "replayed_raises"),
    "replayed_sleeps": (1, "timer 'sleep'", "step 'replayed_other'", "# replayed_sleeps parts here", "replayed_sleeps"),
    "replayed_parent": (0, "start of a child run 'replayed_sleeps'", "start of a child run 'replayed_kid'", "# replayed_parent parts here", "replayed_parent"),
    "replayed_returns_plain": (1, "step 'replayed_did'", "raise KeyError: 'new'", "# replayed_returns_plain parts here", "replayed_returns_plain"),
    "replayed_listens": (1, "wait for 'replayed_go'", "timer 'sleep'", "# replayed_listens parts here", "replayed_listens"),
}  # fmt: skip


@pytest.fixture(scope="module")
def parted(recorded: Recorded) -> dict[str, dict[str, Any]]:
    """What the new code does with one history of each workflow."""
    runs = {name: runs[0] for name, runs in recorded.ended.items() if name in PARTED} | {name: run for name, run in recorded.live.items() if name in PARTED}
    noted, stored = len(recorded.effects.lines()), recorded.tables()
    code, found, total = recorded.replay(NEW, *[word for run in runs.values() for word in ("--run", str(run.id))])
    assert (code, total["parted"]) == (1, len(PARTED))
    assert len(recorded.effects.lines()) == noted and recorded.tables() == stored and recorded.effects.count("forbidden") == 0
    return {each["workflow"]: each for each in found}


@pytest.mark.parametrize("name", PARTED)
def test_the_first_place_where_they_part_is_named_with_file_and_line(parted: dict[str, dict[str, Any]], name: str) -> None:
    """What was recorded, what the code now does, at which line of the app: for coroutines and greenlets, commands, ends and errors."""
    seq, expected, found, mark, function = PARTED[name]
    told = parted[name]
    assert (told["seq"], told["recorded"], told["now"], told["function"]) == (seq, expected, found, function)
    assert (told["file"], told["line"]) == (str(ROOT / "tests/apps/replayed_new.py"), line_of(mark))


def test_the_same_difference_of_many_runs_is_shown_once(recorded: Recorded) -> None:
    done = recorded.command("replay", "--app", NEW, "--workflow", "replayed_returns", "--since", "1h")
    assert done.returncode == 1
    where = f"4 × replayed_returns at {ROOT}/tests/apps/replayed_new.py:{line_of('# replayed_returns parts here')} in replayed_returns"
    shown = done.stdout.splitlines()
    assert shown[:3] == [where, "  recorded: step 'replayed_did'", "  now:      return"]
    assert re.fullmatch(r"  runs:     (\S+ at seq 1(, )?){3} and 1 more", shown[3])
    assert shown[4] == "5 histories replayed: 1 equal, 4 part from this code"


def test_code_that_never_comes_to_an_end_is_given_up(recorded: Recorded) -> None:
    """In CI nobody is there to press ^C."""
    (run,) = recorded.ended["replayed_spins"]
    _, (told,), _ = recorded.replay(NEW, "--run", str(run.id), code="import supervisor.engine.verify as v; v.REPLAY_MAX_S = 0.5")
    assert (told["now"], told["workflow"]) == ("something that takes longer than 0.5 s", "replayed_spins")
    assert abs(told["line"] - line_of("# replayed_spins parts here")) <= 1


# ── which ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_is_the_newest_and_some_of_every_time(recorded: Recorded) -> None:
    ids = lambda most, since="1 h": [id for (id,) in recorded.database.sql("select supervisor.history_sample('replayed_returns', now() - %s::interval, %s)", since, most)]  # noqa: E731
    all_of_it = {run.id for run in recorded.ended["replayed_returns"]}
    assert set(ids(500)) == all_of_it and ids(500, "0 s") == []
    assert len(ids(2)) == 2 and set(ids(2)) <= all_of_it
    code, _, total = recorded.replay(SAME, "--workflow", "replayed_returns", "--sample", "3")
    assert (code, total["replayed"]) == (0, 3)


def test_the_runs_that_a_move_would_move_are_compared_before_it(recorded: Recorded) -> None:
    version = recorded.database.one("select version from supervisor.task where run_id = %s", recorded.live["replayed_sleeps"].id)
    for app, equal in ((SAME, 2), (NEW, 0)):  # itself, and the child of replayed_parent
        code, _, total = recorded.replay(app, "--workflow", "replayed_sleeps", "--version", version)
        assert (code, total["replayed"], total["equal"]) == (int(not equal), 2, equal)


def test_what_can_not_be_compared_is_no_success(recorded: Recorded) -> None:
    """A check that checked nothing must not be green."""
    none = recorded.command("replay", "--app", SAME, "--workflow", "replayed_returns", "--since", "1ms")
    assert (none.returncode, none.stdout) == (1, "") and "nothing was compared" in none.stderr
    code, (told,), _ = recorded.replay("tests.apps.basic", "--run", str(recorded.ended["replayed_raises"][0].id))
    assert code == 1 and told["now"] == "nothing: the app has no such workflow" and told["file"] is None
    short = "import supervisor.db.histories as h; h.STEPS_MAX = 1"
    long = recorded.command("replay", "--app", SAME, "--workflow", "replayed_returns", code=short)
    assert long.returncode == 1 and long.stderr.count("left out: run") == 5
    assert recorded.command("replay", "--app", SAME, "--workflow", "nobody").returncode == 1
    assert recorded.command("replay", "--app", SAME, "--run", "nobody").returncode == 1
    assert recorded.command("replay", "--app", SAME).returncode == 2
    assert recorded.command("replay", "--workflow", "replayed_returns").returncode == 78


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_exported_histories_replay_the_same_without_a_database(recorded: Recorded, parted: dict[str, dict[str, Any]]) -> None:
    """In CI: the file says what the database says, byte for byte, and no database is asked for."""
    words = [word for word in recorded.everything() if word != "--run"]
    done = recorded.command("export", *words)
    assert done.returncode == 0, done.stderr
    path = recorded.folder / "all.json"
    path.write_text(done.stdout)
    assert recorded.replay(SAME, "--file", str(path), dsn=None) == (0, [], {"replayed": 19, "equal": 19, "parted": 0, "left_out": 0})
    _, found, total = recorded.replay(NEW, "--file", str(path), dsn=None, code="import supervisor.engine.verify as v; v.REPLAY_MAX_S = 0.5")
    assert {each["workflow"]: each for each in reversed(found) if each["workflow"] in PARTED} == parted and total["parted"] == 18
    # the same as one document over several lines, and several files
    (one,) = [json.loads(line) for line in done.stdout.splitlines() if json.loads(line)["workflow"] == "replayed_plain"]
    assert (one["format"], one["format_version"], one["status"], one["input"]) == ("pgsupervisor.history", 1, "completed", {"n": 1})
    pretty = recorded.folder / "one.json"
    pretty.write_text(json.dumps(one, indent=2))
    assert recorded.replay(SAME, "--file", str(pretty), "--file", str(path), dsn=None)[2]["replayed"] == 20


def test_results_keep_the_order_of_their_keys(recorded: Recorded) -> None:
    """jsonb would sort them, and code that walks over a dict would do something else."""
    (line,) = recorded.command("export", str(recorded.ended["replayed_rich"][0].id)).stdout.splitlines()
    assert '"result":{"zebra":1,"ant":2}' in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no exported history"), ("[1]", "no exported history"), ("{}", "no exported history"),
        ('{"format":"x","format_version":1,"run_id":"01a20372-5082-702e-8dae-5c638c476000","workflow":"w","version":null,"key":null,"status":"ready","input":{},"records":[],"pending":[]}', "'x' 1"),
        ('{"format":"pgsupervisor.history","format_version":3,"run_id":"01a20372-5082-702e-8dae-5c638c476000","workflow":"w","version":null,"key":null,"status":"ready","input":{},"records":[],"pending":[]}', "up to 2"),
        ('{"format":"pgsupervisor.history","format_version":1,"run_id":"01a20372-5082-702e-8dae-5c638c476000","workflow":"w","version":null,"key":null,"status":"ready","input":{},"records":[{"seq":0,"kind":"wish","status":"completed","name":"a","ended_at":"2026-01-01T00:00:00Z"}],"pending":[]}', "'wish'"),
    ],
)  # fmt: skip
def test_a_file_with_something_else_in_it_is_refused_with_its_line(recorded: Recorded, text: str, why: str) -> None:
    path = recorded.folder / "bad.json"
    path.write_text(text)
    done = recorded.command("replay", "--app", SAME, "--file", str(path), dsn=None)
    assert done.returncode == 2 and why in done.stderr and f"{path}, line 1" in done.stderr


# ── who, and what it may ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_viewer_may_compare_and_export_and_the_session_can_not_write(recorded: Recorded) -> None:
    recorded.database.sql("drop role if exists replayed_viewer; create role replayed_viewer login in role supervisor_viewer")
    try:
        dsn = psycopg.conninfo.make_conninfo(recorded.database.dsn, user="replayed_viewer")
        assert recorded.replay(SAME, *recorded.everything(), dsn=dsn)[0] == 0
        assert recorded.command("export", "--workflow", "replayed_returns", dsn=dsn).stdout.count("\n") == 5
        from supervisor.db.histories import reading

        with reading(recorded.database.dsn, "supervisor") as histories, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            histories._conn.execute("delete from supervisor.task")
    finally:
        recorded.database.sql("drop role replayed_viewer")


def test_a_replay_that_is_killed_leaves_nothing_behind(recorded: Recorded) -> None:
    """kill -9 while it stands in the code of a workflow: no lock, no row, no session stays."""
    stored = recorded.tables()
    (run,) = recorded.ended["replayed_spins"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": recorded.database.dsn, "TEST_EFFECTS": str(recorded.effects.path)}
    process = subprocess.Popen([sys.executable, "-m", "supervisor", "replay", "--app", NEW, "--run", str(run.id)], env=environ, stdout=subprocess.DEVNULL)
    sessions = "select count(*) from pg_stat_activity where application_name = 'pgsupervisor: histories' and datname = current_database()"
    eventually(lambda: recorded.database.one(sessions) == 1, 30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    eventually(lambda: recorded.database.one(sessions) == 0, 30)
    assert recorded.tables() == stored
