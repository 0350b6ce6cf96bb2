"""Verbs by filter on thousands of runs: counted first, asked for on a terminal, told while they work; killed in the middle they leave nothing by halves."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.acceptance.test_reading import registered
from tests.acceptance.test_workers import command
from tests.harness import ROOT, Database, Server, eventually

RUNS, HELD_AT = 2600, 1200  # six slices; in the third one stands still whoever works through them
MINE = "workflow = checkout"


class Case(NamedTuple):
    """`done` finds the runs that the verb was done to."""

    words: tuple[str, ...]
    done: str
    given: str | None = None  # what the runs are before, each
    table: str = "audit"


CASES = {
    "pause": Case(("pause",), "select run_id from supervisor.runs where status = 'paused'"),
    "resume": Case(("resume",), "select run_id from supervisor.runs where status = 'ready'", "select supervisor.pause(run_id) from supervisor.task"),
    "cancel": Case(("cancel",), "select run_id from supervisor.runs where status = 'cancelled'", table="cancellation"),
    "terminate": Case(("terminate",), "select run_id from supervisor.runs where status = 'terminated'", table="cancellation"),
    "retry": Case(("retry",), "select run_id from supervisor.retried", "select supervisor.terminate(run_id) from supervisor.task"),
    "skip": Case(("skip", "--seq", "0", "--json-value", "7"), "select run_id from supervisor.steps where seq = 0",
                 "insert into supervisor.attempt (run_id, seq, n, kind, started_at, worker, name) select run_id, 0, 1, 1, clock_timestamp(), 0, 'pay' from supervisor.task"),
}  # fmt: skip


@pytest.fixture
def many(database: Database) -> Database:
    return filled(database)


def filled(database: Database) -> Database:
    registered(database, "checkout")
    for _ in range(2):
        database.sql("select supervisor.start_many('checkout', array(select '{}'::jsonb from generate_series(1, %s)))", RUNS // 2)
    return database


@contextmanager
def holding(database: Database, table: str, at: int) -> Iterator[psycopg.Connection[Any]]:
    """Who writes row *at* of *table* waits, in its transaction, until the session that is given unlocks 4711."""
    database.sql("create sequence public.passed")
    database.sql(
        f"create function public.hold() returns trigger language plpgsql as $$ begin if nextval('public.passed') = {at} then "
        "perform pg_advisory_xact_lock(4711); end if; return new; end $$"
    )
    database.sql(f"create trigger hold before insert on supervisor.{table} for each row execute function public.hold()")
    with database.connect() as holder:
        holder.execute("select pg_advisory_lock(4711)")
        yield holder
    database.sql(f"drop trigger hold on supervisor.{table}")


HELD = "select pid from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())"


def begun(database: Database, folder: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    environ |= {"PGSUPERVISOR_DATABASE_URL": database.dsn, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    return subprocess.Popen([sys.executable, "-m", "supervisor", *words], cwd=folder, env=environ, text=True, **{"stdout": subprocess.PIPE, **more})


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("verb", "session"), [(verb, ("goes on", "ends too")[at % 2]) for at, verb in enumerate(CASES)])
def test_a_verb_that_is_killed_in_the_middle_is_finished_by_the_next(many: Database, verb: str, session: str, tmp_path: Path) -> None:
    """What was done has its row of audit with who and why, what has one was done; typed again the rest is done, and nothing twice."""
    case = CASES[verb]
    if case.given:
        many.sql(case.given)
    before = many.one("select count(*) from supervisor.audits")
    words = (*case.words, "--filter", MINE, "--yes", "--actor", "ann")

    def whole(said: dict[str, int]) -> None:
        rows = many.sql("select run_id, reason from supervisor.audits where verb = %s and actor = 'ann'", verb)
        assert sorted(run_id for run_id, _ in rows) == sorted(run_id for (run_id,) in many.sql(case.done)), "as many rows as runs that it was done to"
        assert {reason: sum(each == reason for _, each in rows) for reason in said} == said

    # given a command that stands still in the middle of its third transaction
    with holding(many, case.table, HELD_AT) as holder:
        process = begun(many, tmp_path, *words, "--reason", "year end", stderr=subprocess.DEVNULL)
        try:
            ((backend,),) = eventually(lambda: many.sql(HELD), 60)
        finally:
            # when it is killed; its session finishes what it was sent, or notices that nobody reads the answer
            process.send_signal(signal.SIGKILL)
            process.wait()
        whole({"year end": 1000})
        if session == "ends too":
            many.sql("select pg_terminate_backend(%s)", backend)
        else:
            holder.execute("select pg_advisory_unlock(4711)")
        eventually(lambda: not many.sql("select from pg_stat_activity where pid = %s", backend), 60)
    # then its slices are whole
    first = many.one("select count(*) from supervisor.audits where actor = 'ann'")
    assert first in ((1000,) if session == "ends too" else (1000, 1500))
    whole({"year end": first})
    # and the same command does the rest, and then nothing
    made = command(many, *words, "--reason", "the rest", "--json", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout.splitlines()[-1])["done"] == RUNS - first
    whole({"year end": first, "the rest": RUNS - first})
    made = command(many, *words, "--reason", "once more", "--json", folder=tmp_path)
    assert (made.returncode, json.loads(made.stdout.splitlines()[-1])["done"]) == (0, 0)
    assert many.one("select count(*) from supervisor.audits") == before + RUNS
    if verb == "retry":
        assert many.one("select count(*) from supervisor.task") == many.one("select count(distinct made_id) from supervisor.retried") == RUNS, "none goes on twice"


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────────────────────


class Terminal:
    """One that a command has for its questions and its talk."""

    def __init__(self, database: Database, folder: Path, *words: str) -> None:
        self.shown = ""
        self._ours, theirs = pty.openpty()
        self.process = begun(database, folder, *words, stdin=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def reads(self, text: str) -> bool:
        """Whether *text* was shown by now."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self.shown += os.read(self._ours, 65_536).decode(errors="replace")
            except OSError:  # who had it has ended
                break
        return text in self.shown

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def ended(self) -> tuple[int, str]:
        """Exit code and standard output."""
        out, _ = self.process.communicate(timeout=60)
        self.reads("")
        os.close(self._ours)
        return self.process.returncode, out


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("\x04", 130)], ids=["no", "nothing", "end of file"])
def test_on_a_terminal_it_asks_and_without_a_yes_does_nothing(many: Database, answer: str, code: int, tmp_path: Path) -> None:
    """Nobody cancels two thousand runs by a slip."""
    terminal = Terminal(many, tmp_path, "cancel", "--filter", MINE)
    eventually(lambda: terminal.reads(f"cancel {RUNS:,} runs? [y/N]: "), 60)
    terminal.type(answer)
    came, out = terminal.ended()
    assert came == code and out.split()[:3] == [f"{RUNS:,}", "ready", "checkout"] and "to do it: --yes" not in terminal.shown
    assert ("nothing was done" in terminal.shown) == (code == 1)
    assert many.one("select count(*) from supervisor.task where cancel_to is null") == RUNS


def test_on_a_terminal_a_yes_is_enough_and_it_is_told_how_far_it_is(many: Database, tmp_path: Path) -> None:
    """How many of how many, how many a second, how long it will take."""
    terminal = Terminal(many, tmp_path, "terminate", "--filter", MINE, "--reason", "over")
    eventually(lambda: terminal.reads("[y/N]: "), 60)
    with holding(many, "cancellation", HELD_AT) as holder:
        terminal.type("y\n")
        long = f"select from pg_stat_activity where pid in ({HELD}) and clock_timestamp() - query_start > '0.2 s'"
        eventually(lambda: many.sql(long), 60)  # so that there is time for the bar to be drawn
        holder.execute("select pg_advisory_unlock(4711)")
        code, out = terminal.ended()
    assert (code, out.splitlines()[-1]) == (0, f"terminated {RUNS:,} runs"), terminal.shown
    assert f"of {RUNS:,} runs, " in terminal.shown and "/s" in terminal.shown and "eta" in terminal.shown
    assert many.one("select count(*) from supervisor.task") == 0


@pytest.mark.parametrize("words", [("--dry-run",), ("--json",), ("--yes",)], ids=lambda words: words[0])
def test_on_a_terminal_it_does_not_ask_who_said_what_they_want(many: Database, words: tuple[str, ...], tmp_path: Path) -> None:
    terminal = Terminal(many, tmp_path, "pause", "--filter", MINE, *words)
    code, out = terminal.ended()
    assert code == 0 and "[y/N]" not in terminal.shown
    paused = many.one("select count(*) from supervisor.runs where status = 'paused'")
    if words == ("--json",):
        found = json.loads(out)
        assert (found["verb"], found["would_do"], len(found["examples"])) == ("pause", RUNS, 3)
    assert paused == (RUNS if words == ("--yes",) else 0)


@pytest.mark.parametrize("verb", ["cancel", "terminate", "pause", "resume", "retry", "fork", "skip", "edit-retry"])
def test_every_verb_counts_alike_and_takes_a_filter_that_finds_nothing(many: Database, verb: str, tmp_path: Path) -> None:
    """Counted, nothing is done to any; none found is no error."""
    own = {"fork": ("--seq", "0"), "skip": ("--seq", "0"), "edit-retry": ("--seq", "0", "--max-attempts", "3")}.get(verb, ())
    made = command(many, verb, *own, "--filter", MINE, "--dry-run", folder=tmp_path)
    count, head, *examples = made.stdout.splitlines()
    assert made.returncode == 0 and count.split() == [f"{RUNS:,}", "ready", "checkout"] and head.startswith("for example") and len(examples) == 3
    assert f"{RUNS:,} runs that " in made.stderr and "nothing was done; to do it: --yes" in made.stderr
    for more in ((), ("--yes",)):
        none = command(many, verb, *own, "--filter", "workflow = nobody", *more, folder=tmp_path)
        assert none.returncode == 0 and ("0 runs" in none.stdout if more == ("--yes",) else "run fits" in none.stderr), none
    assert many.one("select count(*) from supervisor.audits") == 0 and many.one("select count(*) from supervisor.runs") == RUNS


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["cancel", "terminate", "pause"])
def test_what_can_not_be_kept_in_the_audit_is_refused_before_anything_is_done(many: Database, verb: str, tmp_path: Path) -> None:
    """A reason of a book's length would stand in two thousand rows; bytes that are no text can't be stored at all."""
    for words, code, said in (
        (("--reason", "x" * 5000), 2, "characters"), (("--actor", "x" * 201), 2, "characters"), (("--reason", b"\xff\xfe"), 2, "UTF-8"), (("--actor", b"\xff"), 2, "UTF-8"),
    ):  # fmt: skip
        made = command(many, verb, "--filter", MINE, "--yes", *words, folder=tmp_path)  # type: ignore[arg-type]
        assert made.returncode == code and said in made.stderr and "Traceback" not in made.stderr, made
    assert many.sql("select count(*), count(*) filter (where status = 'ready') from supervisor.runs") == [(RUNS, RUNS)]
    assert many.one("select count(*) from supervisor.audits") == 0


def test_two_bulk_verbs_over_the_same_runs_at_once_do_each_run_once(many: Database, tmp_path: Path) -> None:
    """Two operators have the same idea: what one has, the other leaves and asks again; each run has one row."""
    words = ("terminate", "--filter", MINE, "--yes", "--json")
    both = [begun(many, tmp_path, *words, "--actor", who, stderr=subprocess.PIPE) for who in ("ann", "bob")]
    done = {}
    for who, process in zip(("ann", "bob"), both, strict=True):
        out, told = process.communicate(timeout=120)
        assert process.returncode in (0, 1), told
        done[who] = json.loads(out.splitlines()[-1])["done"]
    assert sum(done.values()) == RUNS == many.one("select count(*) from supervisor.audits where verb = 'terminate'")
    assert {who: many.one("select count(*) from supervisor.audits where actor = %s", who) for who in done} == done


def test_a_server_that_is_restarted_in_the_middle_leaves_whole_slices_and_the_command_says_how_many(own_server: Server, tmp_path: Path) -> None:
    """Exit code 69; typed again when the server is back the rest is done."""
    database = filled(own_server.database())
    words = ("pause", "--filter", MINE, "--yes", "--actor", "ann")
    with holding(database, "audit", HELD_AT):
        process = begun(database, tmp_path, *words, stderr=subprocess.PIPE)
        eventually(lambda: database.sql(HELD), 60)
        own_server.embedded.restart("immediate")
        out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (69, "pause: 1,000 runs\n") and "Traceback" not in told and len(told.splitlines()) <= 4, told
    rows = "select count(*), count(distinct run_id) from supervisor.audits where actor = 'ann'"
    assert database.sql(rows) == [(1000, 1000)] and database.one(f"select count(*) from ({CASES['pause'].done}) as paused") == 1000
    made = command(database, *words, folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, f"pause: {RUNS - 1000:,} runs, 1,000 as they were\n"), made.stderr
    assert database.sql(rows) == [(RUNS, RUNS)]


def test_a_role_that_may_not_is_told_and_words_of_others_act_on_no_terminal(many: Database, tmp_path: Path) -> None:
    """A viewer counts and changes nothing: exit code 77. What a reason holds is shown without its control characters."""
    many.sql("create role viewing login in role supervisor_viewer")
    try:
        viewing = Database(many.server, many.name, psycopg.conninfo.make_conninfo(many.dsn, user="viewing"))
        assert f"{RUNS:,} runs" in command(viewing, "pause", "--filter", MINE, "--dry-run", folder=tmp_path).stderr
        for verb in ("pause", "cancel", "terminate", "retry"):
            made = command(viewing, verb, "--filter", MINE, "--yes", folder=tmp_path)
            assert made.returncode == 77 and "GRANT" in made.stderr and len(made.stderr.splitlines()) <= 3, made
        for filter in ("workflow is checkout", "colour = red", "status = gone", "(", "x" * 30_000, "key = \x1b[2J"):
            made = command(many, "cancel", "--filter", filter, "--yes", folder=tmp_path)
            assert made.returncode in (0, 2) and "\x1b" not in made.stdout + made.stderr and "Traceback" not in made.stderr, made
        assert many.one("select count(*) from supervisor.audits") == 0
        run = str(many.one("select run_id from supervisor.task limit 1"))
        command(many, "pause", "--filter", f"run = {run}", "--yes", "--reason", "red \x1b[31m\x07 and\nmore", folder=tmp_path)
        for words in (("audit", run), ("show", run)):
            shown = command(many, *words, folder=tmp_path).stdout
            assert "red " in shown and "\x1b" not in shown and "\x07" not in shown
    finally:
        many.sql("drop role viewing")
