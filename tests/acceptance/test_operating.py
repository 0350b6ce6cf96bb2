"""`pause`, `resume`, `retry`, `fork`, `skip`, `edit-retry`, `audit`: by id, by key, by filter; what they tell, what they refuse, what they leave in the audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor.core import tokens
from tests.acceptance.test_workers import command
from tests.apps import operated
from tests.conformance.conftest import Live, living
from tests.harness import Server

APP = "tests.apps.operated"


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with living(server, tmp_path_factory.mktemp("operating"), APP) as made:
        yield made


def typed(live: Live, folder: Path, *words: str, code: int = 0) -> Any:
    """A command with --json: its objects."""
    made = command(live.database, *words, "--json", folder=folder)
    assert made.returncode == code, made.stderr
    return [json.loads(line) for line in made.stdout.splitlines()]


def waits(live: Live, run: Any) -> str | None:
    found: str | None = live.database.one("select wait from supervisor.runs where run_id = %s", run.id)
    return found


def test_pause_and_resume_by_id_and_key(live: Live, tmp_path: Path) -> None:
    """What they print, who did it, and that show and audit tell of it."""
    run, other = live.start(operated.operated_asleep.options(key="till"), 3000.0), live.start(operated.operated_asleep, 3000.0)
    live.until(lambda: waits(live, run) == waits(live, other) == "timer")
    made = command(live.database, "pause", "till", str(other.id), "--reason", "stocktaking", "--actor", "ann", folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, f"paused {run.id}\npaused {other.id}\n"), made.stderr
    shown = command(live.database, "show", "till", folder=tmp_path).stdout
    assert "paused at step sleep (seq 0, attempt 1): somebody paused it [run_paused]" in shown and "  reason: stocktaking" in shown
    assert "python -m supervisor resume" in shown and "stocktaking" in shown.split("done by operators")[1]
    assert typed(live, tmp_path, "resume", "till")[0] == {"run_id": str(run.id), "verb": "resume", "done": True, "state": "resumed", "made": None, "why": None}
    again = command(live.database, "resume", "till", folder=tmp_path)
    assert (again.returncode, again.stdout) == (1, f"not paused {run.id}\n")
    rows = typed(live, tmp_path, "audit", "till")
    assert [(row["verb"], row["reason"], row["key"]) for row in rows] == [("resume", None, "till"), ("pause", "stocktaking", "till")]
    assert rows[1]["actor"] == "ann" and "@" in rows[0]["actor"], "who it was is the account's name unless something else was said"
    listed = command(live.database, "audit", "--verb", "pause", folder=tmp_path).stdout
    assert listed.count("stocktaking") == 2 and "ann (" in listed
    for each in (run, other):
        each.terminate()
    ended = command(live.database, "pause", "till", folder=tmp_path)
    assert ended.returncode == 1 and "has ended (terminated)" in ended.stderr


def test_by_filter_it_counts_first_and_goes_by_slices(live: Live, tmp_path: Path) -> None:
    """1,100 runs in three transactions, a row of audit for each; what another transaction has locked is left and said."""
    batch = live.client.start_many(operated.operated_asleep.options(batch="many", delay=3000.0), (1.0 for _ in range(1100)))
    ids = [run.id for run in batch]
    words = ("--filter", "batch = many")
    dry = command(live.database, "pause", *words, "--dry-run", folder=tmp_path)
    assert dry.returncode == 0 and "1,100 runs that pause would be asked of, nothing was done" in dry.stderr
    assert typed(live, tmp_path, "pause", *words)[0]["would_do"] == 1100
    with live.database.connect() as conn, conn.transaction():
        conn.execute("select from supervisor.task where run_id = %s for update", (ids[5],))
        made = command(live.database, "pause", *words, "--yes", "--reason", "all", folder=tmp_path)
    assert (made.returncode, made.stdout) == (1, "pause: 1,099 runs\n") and "left, for transactions of others have them locked: 1 run" in made.stderr
    assert command(live.database, "pause", *words, "--yes", folder=tmp_path).stdout == "pause: 1 run, 1,099 as they were\n"
    paused = "select count(*), count(distinct a.run_id), count(distinct a.at) from supervisor.audits a where verb = 'pause' and a.run_id = any(%s)"
    assert live.database.sql(paused, ids)[0][:2] == (1100, 1100)
    assert live.database.one("select count(distinct xmin::text) from supervisor.audit where verb = 'pause' and run_id = any(%s)", ids) == 4
    *told, summary = typed(live, tmp_path, "resume", *words, "--yes")
    assert len({row["run_id"] for row in told if row["done"]}) == summary["done"] == 1100
    live.database.sql("select run_id from supervisor.cancel_many(%s)", ids[:500])
    live.database.sql("select run_id from supervisor.cancel_many(%s)", ids[500:1000])
    live.database.sql("select run_id from supervisor.cancel_many(%s)", ids[1000:])


def test_retry_skip_and_edit_retry(live: Live, tmp_path: Path) -> None:
    kinds = [live.start(operated.operated_retrying.options(key=f"c-{at}"), f"c-{at}", f"c-{at}-open") for at in range(4)]
    live.until(lambda: all(waits(live, run) == "step_backoff" for run in kinds))
    live.effects.open("c-0-open")
    assert command(live.database, "retry", "c-0", folder=tmp_path).stdout == f"ready {kinds[0].id}\n"
    assert kinds[0].result(timeout=20) == 2
    assert typed(live, tmp_path, "skip", "c-1", "--seq", "0", "--json-value", "8", "--app", APP)[0]["state"] == "skipped"
    assert kinds[1].result(timeout=20) == 8
    shown = command(live.database, "show", "c-1", folder=tmp_path).stdout
    assert "skipped" in shown and "edited" not in shown
    wrong = command(live.database, "skip", "c-2", "--seq", "0", "--json-value", '"x"', "--app", APP, folder=tmp_path)
    assert wrong.returncode == 1 and "does not fit its return annotation" in wrong.stderr
    assert command(live.database, "edit-retry", "--filter", "key in (c-2, c-3)", "--seq", "0", "--max-attempts", "1", "--yes", folder=tmp_path).stdout == "edit_retry: 2 runs\n"
    assert command(live.database, "retry", "--filter", "key in (c-2, c-3)", "--yes", folder=tmp_path).stdout == "retry: 2 runs\n"
    for run in kinds[2:]:
        live.until(lambda run=run: live.client.status(run).status == "failed")
    assert "nothing to change" in command(live.database, "edit-retry", "c-2", "--seq", "0", folder=tmp_path).stderr


def test_failed_runs_are_retried_by_filter_once(live: Live, tmp_path: Path) -> None:
    """They stay failed for ever, for history never changes: typed again, nothing is done."""
    runs = [live.start(operated.operated_own_error.options(batch="wrong"), f"w-{at}", "w-open") for at in range(3)]
    live.until(lambda: all(live.client.status(run).status == "failed" for run in runs))
    live.effects.open("w-open")
    words = ("retry", "--filter", "batch = wrong AND status = failed", "--yes")
    *told, summary = typed(live, tmp_path, *words, "--reason", "mended")
    assert (summary["found"], summary["done"]) == (3, 3)
    assert all(row["done"] and row["state"] == "forked" for row in told) and len(told) == 3
    for row in told:
        assert str(live.client.get(row["made"]).result(timeout=20)).startswith("after w-")
    assert command(live.database, *words, folder=tmp_path).stdout == "retry: 0 runs, 3 as they were\n"


def test_fork_from_the_command_line(live: Live, tmp_path: Path) -> None:
    run = live.start(operated.operated_sum.options(key="sum"), [1, 2])
    run.result(timeout=20)
    made = command(live.database, "fork", "sum", "--seq", "1", "--input-json", '{"numbers": [1, 20]}', "--reason", "what if", folder=tmp_path)
    again = made.stdout.split()[-1]
    assert made.stdout == f"forked {run.id} as {again}\n", made.stderr
    assert live.client.get(again).result(timeout=20) == 21
    assert f"forked from {run.id}, before the result of seq 1" in command(live.database, "show", again, folder=tmp_path).stdout
    bad = command(live.database, "fork", "sum", "--seq", "1", "--input-json", '{"nobody": 1}', folder=tmp_path)
    assert bad.returncode == 2 and "no parameter of it" in bad.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pause",), "name runs, or give a --filter"),
        (("pause", "a", "--filter", "age < 1d"), "name runs, or give a --filter"),
        (("pause", "--filter", "age < 1d", "--yes", "--dry-run"), "--dry-run counts"),
        (("skip", "a"), "Missing option '--seq'"),
        (("skip", "a", "--seq", "0", "--json-value", "x"), "is no JSON"),
        (("fork", "a", "--seq", "0", "--input-json", "[1]"), "wants an object by parameter name"),
    ],
)
def test_slips_do_nothing(words: tuple[str, ...], said: str, live: Live, tmp_path: Path) -> None:
    made = command(live.database, *words, folder=tmp_path)
    assert made.returncode == 2 and said in made.stderr


def test_who_may_what(live: Live) -> None:
    """A client pauses, resumes, retries and forks; what a step comes to is for operators; a viewer reads the audit."""
    run = live.start(operated.operated_asleep, 3000.0)
    asks = {
        "select supervisor.pause(%s)": ("client", "operator", "worker"), "select supervisor.resume(%s)": ("client", "operator", "worker"),
        "select supervisor.skip(%s, 0)": ("operator",), "select supervisor.edit_retry(%s, 0, 3)": ("operator",),
        "select * from supervisor.operate_many('skip', array[%s::uuid], 0, '1')": ("operator",),
        "select from supervisor.audits where run_id = %s": ("viewer", "operator", "worker"), "select from supervisor.audit where run_id = %s": (),
    }  # fmt: skip
    with live.database.connect() as conn:
        for ask, may in asks.items():
            for role in ("client", "viewer", "operator", "worker"):
                refused = None
                with conn.transaction(force_rollback=True):
                    conn.execute(f"set local role supervisor_{role}")
                    try:
                        conn.execute(ask, (run.id,))
                    except psycopg.errors.InsufficientPrivilege as error:
                        refused = str(error)
                    except psycopg.DatabaseError as error:
                        assert (error.sqlstate or "").startswith("SV"), error
                assert (refused is None) == (role in may), (ask, role, refused)
    run.cancel()


def test_tokens_from_the_command_line(live: Live, tmp_path: Path) -> None:
    """complete, fail and heartbeat, as whoever holds a token types them; what is closed or no token is refused with its reason."""
    key = live.database.one("select token_key from supervisor.cell")
    run, other = live.start(operated.operated_handed.options(key="handed"), "cli"), live.start(operated.operated_handed, "cli-2")
    live.until(lambda: waits(live, run) == waits(live, other) == "token")
    made, second = (tokens.make(key, each.id.bytes, 0, 1) for each in (run, other))
    assert command(live.database, "heartbeat", made, "--json-value", '{"n": 1}', folder=tmp_path).stdout == "noted\n"
    assert "token of operated_hand_out" in command(live.database, "show", "handed", folder=tmp_path).stdout
    assert typed(live, tmp_path, "complete", made, "--json-value", "4") == [{"verb": "complete", "stored": True}]
    assert run.result(timeout=20) == 4
    assert typed(live, tmp_path, "complete", made, "--json-value", "4", code=1) == [{"verb": "complete", "stored": False}]
    closed = command(live.database, "complete", made, "--json-value", "5", folder=tmp_path)
    assert closed.returncode == 1 and "is closed: it was completed already" in closed.stderr
    wrong = command(live.database, "complete", "pgst_x", folder=tmp_path)
    assert wrong.returncode == 2 and "this is no token that was given out here" in wrong.stderr
    assert command(live.database, "fail", second, "--error", "no such account", "--no-retry", folder=tmp_path).stdout == "failed\n"
    live.until(lambda: live.client.status(other).status == "failed")
    assert "CompletionFailed: no such account" in command(live.database, "show", str(other.id), folder=tmp_path).stdout


def test_queues_are_paused_and_resumed_from_the_command_line(live: Live, tmp_path: Path) -> None:
    """What it prints, what it exits with, how the list shows it, and what the audit keeps."""
    made = command(live.database, "queues", "pause", "default", "--reason", "stocktaking", "--actor", "ann", folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, "paused default\n"), made.stderr
    again = command(live.database, "queues", "pause", "default", folder=tmp_path)
    assert (again.returncode, again.stdout) == (1, "paused already default\n")
    listed = command(live.database, "queues", folder=tmp_path).stdout
    assert "queue is paused" in listed and "by ann: stocktaking" in listed
    (row,) = [each for each in typed(live, tmp_path, "queues") if each["queue"] == "default"]
    assert (row["paused_by"], row["paused_reason"]) == ("ann", "stocktaking") and row["paused_at"].endswith("Z")
    run = live.start(operated.operated_asleep.options(key="shut"), 0.0)
    shown = command(live.database, "show", "shut", folder=tmp_path).stdout
    assert "ready: its queue is paused [queue_paused], since" in shown and "who can act: operators: python -m supervisor queues resume default" in shown
    assert typed(live, tmp_path, "queues", "resume", "default", "--reason", "counted") == [{"queue": "default", "done": True, "state": "resumed"}]
    run.result(timeout=20)
    assert command(live.database, "queues", "resume", "default", folder=tmp_path).returncode == 1
    assert "queue is paused" not in command(live.database, "queues", folder=tmp_path).stdout
    wrong = command(live.database, "queues", "pause", "defualt", folder=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (1, "error: there is no queue 'defualt'\n  those that there are: 'default'\n")
    rows = typed(live, tmp_path, "audit", "--verb", "queue_pause")
    assert [(each["queue"], each["actor"], each["reason"]) for each in rows] == [("default", "ann", "stocktaking")]
    assert "queue default" in command(live.database, "audit", "--verb", "queue_resume", folder=tmp_path).stdout


def test_the_audit_of_one_schedule(live: Live, tmp_path: Path) -> None:
    for name in ("audited", "another"):
        live.client.create_schedule(name, operated.operated_asleep, every=86_400, input={"seconds": 0.0}, reason=f"for {name}")
    live.client.pause_schedule("audited", "not now")
    rows = typed(live, tmp_path, "audit", "--schedule", "audited")
    assert [(each["verb"], each["reason"], each["schedule"]) for each in rows] == [("schedule_pause", "not now", "audited"), ("schedule_create", "for audited", "audited")]
    assert [each["verb"] for each in typed(live, tmp_path, "audit", "--schedule", "audited", "--verb", "schedule_create")] == ["schedule_create"]
    assert "schedule audited" in command(live.database, "audit", folder=tmp_path).stdout
    assert command(live.database, "audit", "a-run", "--schedule", "audited", folder=tmp_path).returncode == 2
    run = live.client.trigger_schedule("audited")
    assert f"started by schedule audited, for its trigger of {live.client.schedule_fires('audited')[0].tick_at.isoformat()}" in command(live.database, "show", str(run), folder=tmp_path).stdout
    assert typed(live, tmp_path, "show", str(run))[0]["schedule"]["schedule"] == "audited"
    for name in ("audited", "another"):
        live.client.delete_schedule(name)
