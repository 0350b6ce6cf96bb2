"""`show`: a run that waits for each kind of thing says what, since when, what frees it and who can act; its journey, its bars, its family, its lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner

from supervisor import Client
from supervisor.cli.main import cli
from supervisor.db.statements import Sql
from tests import staged
from tests.acceptance.terminal import drawn_until_q
from tests.apps import staged as app
from tests.harness import ROOT, Database, Effects, Host, HostFactory, Server, eventually


@dataclass
class Stage:
    """A host whose runs wait for everything, and its folder of logs."""

    database: Database
    host: Host
    client: Client
    effects: Effects
    runs: dict[str, UUID]
    logs: Path

    def say(self, *words: str, columns: int = 120) -> str:
        """What a command prints, executed in this process: starting one for each of twenty runs would take most of a minute."""
        made = CliRunner().invoke(cli, [*words, *(() if words[0] == "logs" and "--run" not in words else ("--dsn", self.database.dsn))], env={"COLUMNS": str(columns)})
        assert made.exit_code == 0, (made.output, made.exception)
        return made.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.say(*words, "--json"))


@pytest.fixture(scope="module")
def stage(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("staged")
    database, effects = server.database(), Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        host = hosts.start(staged.APP, procs=1, args=("--log-dir", str(folder / "logs"))).wait_up(1)
        with Client(database.dsn) as client:
            yield Stage(database, host, client, effects, staged.stage(database, client, effects), folder / "logs")
    finally:
        effects.open(staged.GATE)
        hosts.stop_all()
        database.drop()


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# code → what is said of it, besides the reason's own words; RUN stands for the run
SAID: dict[str, tuple[str, ...]] = {
    "queued": ("ready: ready; a worker with free capacity takes it [queued]",),
    "queue_paused": ("ready: its queue is paused", "  by: ann", "  reason: the shelves are counted", "python -m supervisor queues resume staged_shut"),
    "run_paused": ("paused: somebody paused it", "  by: ann", "  reason: the warehouse is shut", "python -m supervisor resume RUN"),
    "step_running": ("running at step staged_slow (seq 0, attempt 1)", "  executes staged_slow (seq 0, thread) for", "process", "skip RUN --seq 0, or cancel RUN"),
    "step_backoff": (
        "waiting at step staged_capture (seq 6, attempt 2)", "  step 7 of about 12 (median of 3 runs that completed); it says 6 of 12 (50%)", "  it waits for retry of staged_capture at seq 6",
        "  what frees it: in ", "  its last error: ConnectionError: the payment gateway answers 503", "in staged_capture", "python -m supervisor retry RUN, or skip RUN --seq 6",
    ),
    "timer": ("waiting at step sleep", "  it waits for timer sleep at seq 0", "  what frees it: in 23 h", "cancel RUN"),
    "signal": ("  it waits for signal staged_approved at seq 0", "python -m supervisor signal RUN 'staged_approved' --json-value …, or the wait's timeout expires", "clients, operators"),
    "token": ("waiting at step staged_ask (seq 0, attempt 1)", "  it waits for token of staged_ask at seq 0", "complete TOKEN, or fail TOKEN; operators: skip RUN --seq 0"),
    "child": ("  it waits for child run staged_sleep at seq 0, child run staged_middle at seq 1", "  1 of 2 ended", "children: 1 completed, 1 waiting"),
    "any_of": ("  it waits for signal staged_approved at seq 0, timer sleep at seq 1", "signal RUN 'staged_approved'", "whoever can make one of them happen"),
    "nondeterminism": ("  expected: step 'staged_other'", "  found: step 'staged_part'", "staged.py:", "the same version,", "what frees it: make that code do the same each time, or bring back", "who deploys its code; then operators: python -m supervisor retry RUN"),
    "code_missing": ("  this worker knows: staged_approval", "versions move --help"),
    "attempts_exhausted": ("step staged_fatal (seq 0) has ended its worker 3 times, the last one by SIGKILL", "  the worker's last log lines:", "skip RUN --seq 0", "0 + 3 crashes"),
    "crash_loop": ("  claims: 12", "python -m supervisor retry RUN"),
    "commit_rejected": ("  sqlstate: 23514", "  statement: insert_steps", "who wrote the step, or runs the database"),
    "schedule_overlap": (f"  schedule: {staged.SCHEDULE}", "  behind: FRONT", "  to end that one: python -m supervisor cancel FRONT", "operators can cancel or terminate the run that it is behind"),
    **dict.fromkeys(staged.WRITTEN, ("  who can act: ",)),
}  # fmt: skip


@pytest.mark.parametrize("code", [*staged.ENGINE, *staged.WRITTEN])
def test_a_run_says_why_it_waits_what_frees_it_and_who_can_act(stage: Stage, code: str) -> None:
    """At two in the morning nobody wants to look a code up: each reason there is, brought about by the engine where it writes it."""
    run = str(stage.runs[code])
    meaning, freed_by, who = stage.database.sql("select meaning, freed_by, who from supervisor.wait_kind where code = %s", code)[0]
    page = stage.say("show", run)
    first = page.splitlines()[1]
    assert f"{meaning} [{code}], since " in first and re.search(r"since (now|[\d.]+ (µs|ms|s|min).* ago)$", first)
    (frees,) = re.findall(r"^  what frees it: (.*)$", page, re.MULTILINE)
    (acts,) = re.findall(r"^  who can act: (.*)$", page, re.MULTILINE)
    assert freed_by.replace("(see detail)", "(see above)").split(":")[0].replace("RUN", run).split(",")[0] in frees or code in ("signal", "any_of")
    assert acts.startswith(re.split("RUN|QUEUE", who)[0]) and not re.search("SEQ|RUN|QUEUE", acts)
    for words in SAID[code]:
        assert words.replace("RUN", run).replace("FRONT", str(staged.in_front(stage.database))) in page, f"{words!r} is not said:\n{page}"
    why = stage.json("show", run)["why"]
    assert (why["code"], why["meaning"]) == (code, meaning) and why["who"] in acts and why["since"].endswith("Z")


def test_every_reason_there_is_was_staged(stage: Stage) -> None:
    """Whoever adds one stages it too."""
    assert {code for (code,) in stage.database.sql("select code from supervisor.wait_kind")} == set(staged.CODES)
    assert set(SAID) == set(stage.runs) == set(staged.CODES) - {staged.NOBODY}


def test_a_run_that_nobody_can_take_says_so(database: Database) -> None:
    """With no worker alive, in any host."""
    run = staged.stage_without_workers(database)
    made = CliRunner().invoke(cli, ["show", str(run), "--dsn", database.dsn])
    assert "ready: ready, but no live worker serves its queue [no_worker], since" in made.output
    assert "what frees it: start a worker that serves its queue" in made.output and "who can act: who runs the workers" in made.output


def test_the_same_error_of_other_runs_is_counted(stage: Stage) -> None:
    """One order that fails is a customer; four hundred are an outage."""
    others = [stage.client.start(app.staged_order, 100 + n, True) for n in range(3)]
    eventually(lambda: all(staged.code_of(stage.database, run.id) == "step_backoff" for run in others), 30)
    assert "  the same error: 3 other runs within the hour [" in stage.say("show", "step_backoff")
    (group,) = [row for row in stage.database.sql("select runs, live, step, message from supervisor.error_groups('1 hour') where step = 'staged_capture'")]
    assert group == (4, 4, "staged_capture", app.GATEWAY)


# ── journey, bars, family ────────────────────────────────────────────────────────────────────────────────────────


def test_the_journey_says_what_happened_when_and_where_the_time_went(stage: Stage) -> None:
    page = stage.say("show", "step_backoff")
    assert re.search(r"Z  \+\S+ \S+ +started, in queue staged$", page, re.MULTILINE)
    assert "its first step began: staged_part" in page and "staged_capture (seq 6) failed" in page and "now: waiting, step_backoff for" in page
    assert re.search(r"^where the time went: .*backoff", page, re.MULTILINE)
    spent = stage.json("show", "step_backoff")["time_in"]
    assert set(spent) <= {"backoff", "queue", "between", "steps", "failed tries"} and spent["steps"] > 0
    assert stage.json("show", "timer") == stage.json("show", "timer"), "--watch --json has a line for what changes"
    assert "pause by ann" in stage.say("show", "run_paused")


def bars(page: str) -> list[str]:
    return re.findall(r"^ *\d+  \S+ +[│|](.*)[│|]", page, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 100, 180])
def test_steps_are_bars_as_wide_as_the_page(stage: Stage, columns: int) -> None:
    """Every try has its bar, however short; what waits goes on to the present."""
    page = stage.say("show", "step_backoff", columns=columns)
    drawn = bars(page)
    assert len(drawn) == 7 and len({len(bar) for bar in drawn}) == 1 and max(len(line) for line in page.splitlines() if "│" in line) <= columns
    assert all("█" in bar for bar in drawn[:6]) and "▓" in drawn[6] and drawn[6].rstrip().endswith("▶") and "░" in drawn[6]
    assert [bar.index("█") for bar in drawn[:6]] == sorted(bar.index("█") for bar in drawn[:6])


def test_of_a_long_history_the_first_and_the_last_steps_are_shown(stage: Stage) -> None:
    whole = stage.say("show", "step_backoff")
    assert _seqs(whole) == list("0123456") and "…" not in _seqs(whole)
    some = stage.say("show", "step_backoff", "--steps", "4")
    assert _seqs(some) == ["0", "…", "4", "5", "6"] and "3 more; all: --steps 7" in some
    assert _seqs(stage.say("show", "step_backoff", "--steps", "2")) == ["0", "…", "6"]
    assert _seqs(stage.say("show", "step_backoff", "--steps", "7")) == _seqs(whole)
    assert len(stage.json("show", "step_backoff", "--steps", "2")["history"]) == 6, "a program has all"


def _seqs(text: str) -> list[str]:
    """The first column of the table of steps."""
    (table,) = re.findall(r"^seq +step +status.*\n((?:.+\n)+)", text, re.MULTILINE)
    return [line.split()[0] for line in table.splitlines()]


def test_what_is_not_utf8_is_drawn_in_ascii(stage: Stage, tmp_path: Path) -> None:
    """A serial console shows it too; in its columns."""
    for encoding, ascii_only in (("ascii", True), ("utf-8", False)):
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
        words = [sys.executable, "-m", "supervisor", "show", "step_backoff", "--dsn", stage.database.dsn]
        made = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, timeout=60)
        assert made.returncode == 0 and made.stdout.isascii() == ascii_only, made.stderr
    page = made.stdout.decode()
    assert "x executes" not in page and bars(page)


def test_ascii_bars_keep_their_columns(stage: Stage, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1", "COLUMNS": "100"}
    made = subprocess.run([sys.executable, "-m", "supervisor", "show", "child", "--dsn", stage.database.dsn], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    (bar,) = [each for each in bars(made.stdout) if ">" in each]
    assert set(bar) == {"-", ">"} and "# executes  x failed  . until its retry  - waits" in made.stdout
    assert "`- staged_middle" in made.stdout


def test_the_family_of_a_run_is_a_tree(stage: Stage) -> None:
    """From the root down to grandchildren, from wherever one looks."""
    page = stage.say("show", "child")
    assert re.search(r"^staged_parent child  .*<- this run\n(.*\n)*└─ staged_middle .*waiting \(child\) at staged_sleep\n   └─ staged_sleep .*waiting \(timer\)", page, re.MULTILINE)
    (leaf,) = stage.database.sql(
        "select c.run_id from supervisor.children c join supervisor.runs p on p.run_id = c.parent_id where p.workflow = 'staged_middle'"
    )[0]
    page = stage.say("show", str(leaf))
    assert re.search(r"^staged_parent child .*\n└─ staged_middle .*\n   └─ staged_sleep .*<- this run$", page, re.MULTILINE)
    levels = [each["level"] for each in stage.json("show", str(leaf))["tree"]]
    assert levels == [-2, -1, 0]


def test_signals_are_shown_until_somebody_waits_for_them(stage: Stage) -> None:
    stage.client.signal(stage.runs["timer"], app.staged_approved, "bob", id="click-1")
    page = stage.say("show", "timer")
    assert re.search(r"staged_approved  click-1 .*nobody yet  \"bob\"", page) and "signal staged_approved came in" in page
    assert [each["seq"] for each in stage.json("show", "timer")["signals"]] == [None]


def test_how_far_it_is_is_learned_from_runs_of_its_version(stage: Stage) -> None:
    """A workflow that has another step now says nothing of how long the old one's runs are."""
    assert stage.json("show", "step_backoff")["place"] == {"step": 7, "of_about": 12, "runs": 3, "done": 6, "total": 12}
    with stage.database.connect() as conn:
        rows = psycopg.RawCursor(conn).execute(Sql().get("show_usual").encode(), ("staged_order", 2000, "another version")).fetchall()
    assert rows == [(None, 0)]


def test_who_asked_that_it_be_ended_is_said_in_words(stage: Stage) -> None:
    """Of its end, and in its history; not as the JSON that is stored."""
    run = stage.client.start(app.staged_approval.options(key="unwanted"))
    eventually(lambda: staged.code_of(stage.database, run.id) == "signal", 30)
    stage.client.cancel(run, "the customer has left", actor="ann")
    eventually(lambda: stage.client.status(run).status == "cancelled", 30)
    page = stage.say("show", "unwanted")
    assert "cancelled by ann: the customer has left, asked for " in page and '"reason"' not in page
    assert re.search(r"completed .* by ann: the customer has left$", page, re.MULTILINE), page
    assert [(each["how"], each["actor"], each["reason"]) for each in stage.json("show", "unwanted")["cancellations"]] == [("cancelled", "ann", "the customer has left")]


# ── top, logs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_top_shows_what_is_stuck_now(stage: Stage, tmp_path: Path) -> None:
    """Grouped by reason, workflow and step; live until q."""
    waits = {(row["code"], row["workflow"], row["step"]): row for row in stage.json("top", "--once")["waits"]}
    assert waits["step_backoff", "staged_order", "staged_capture"]["complete"] is True
    assert {code for code, _, _ in waits} == set(staged.CODES) - {staged.NOBODY}
    drawn = drawn_until_q(stage.database, tmp_path, "top", "--interval", "0.2", wanted=b"commit_rejected", times=2)
    assert b"waits for" in drawn and b"staged_capture" in drawn


def lines(stage: Stage, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stage.say("logs", "--log-dir", str(stage.logs), *words, "--json").splitlines()]


def test_logs_of_a_run_a_step_a_level_a_worker(stage: Stage) -> None:
    """By key or id; all filters together; the same lines as show --logs has."""
    run = str(stage.runs["step_backoff"])
    eventually(lambda: any(line.get("run") == run and line.get("step") == "staged_capture" for line in lines(stage)), 20)
    of_run = lines(stage, "--run", "step_backoff")
    assert of_run == lines(stage, "--run", run) == [json.loads(line) for line in stage.say("show", run, "--logs", "--log-dir", str(stage.logs), "--json").splitlines()]
    assert {line["step"] for line in of_run if "step" in line} == {"staged_part", "staged_capture"}
    captures = lines(stage, "--step", "staged_capture")
    assert len(captures) > len(lines(stage, "--run", run, "--step", "staged_capture")) == 1
    assert {line["level"] for line in lines(stage, "--level", "warning")} <= {"WARNING", "ERROR", "CRITICAL"} and captures[0] in lines(stage, "--level", "warning")
    pid = captures[-1]["pid"]
    assert {line["pid"] for line in lines(stage, "--worker", str(pid))} == {pid}
    assert lines(stage, "--tail", "2") == lines(stage)[-2:] and lines(stage, "--worker", "999999999") == []
    assert "capturing order 7 [run " in stage.say("logs", "--log-dir", str(stage.logs), "--run", run)
    made = CliRunner().invoke(cli, ["logs", "--log-dir", str(stage.logs), "--run", run, "--json", "--dsn", "host=/nowhere"])
    assert len(made.stdout.splitlines()) == len(of_run), "an id needs no database"


def test_logs_follow(stage: Stage, tmp_path: Path) -> None:
    """Lines as they come, of what was asked for alone, until it is interrupted."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_LOG_DIR": str(stage.logs)}
    words = [sys.executable, "-m", "supervisor", "logs", "--follow", "--tail", "0", "--step", "staged_capture", "--json"]
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=environ, stdout=out, stderr=subprocess.STDOUT)
    try:
        orders = iter(range(500, 100_000))

        def followed() -> bool:
            stage.client.start(app.staged_order, next(orders), False).result(timeout=30)
            return b"capturing order" in (tmp_path / "out").read_bytes()

        eventually(followed, 60)
        process.send_signal(2)
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert {json.loads(line)["step"] for line in (tmp_path / "out").read_text().splitlines()} == {"staged_capture"}


# ── last, for it ends the host ───────────────────────────────────────────────────────────────────────────────────


def test_what_is_said_is_true_when_every_process_is_dead(stage: Stage) -> None:
    """kill -9 of parent and workers: what waited waits for the same; what a worker had says that the worker is gone, and who releases it."""
    before = stage.json("show", "step_backoff")["why"]
    stage.host.kill_all()
    eventually(lambda: staged.code_of(stage.database, stage.runs["queued"]) == staged.NOBODY, 30, "sessions are gone")
    page = stage.say("show", "step_running")
    assert "running at step staged_slow (seq 0, attempt 1): its worker is gone and has not been released yet [step_running], since" in page
    assert "what frees it: a running supervisor releases it by itself" in page and "who can act: who runs the workers" in page and "executes" not in page.split("█")[0]
    assert stage.json("show", "step_backoff")["why"] == before
    assert "step 7 of about 12" in stage.say("show", "step_backoff") and "no_worker" in stage.say("top", "--once")
