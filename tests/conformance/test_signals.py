"""Signals: ordered per run, kept until somebody waits, stored once per id, given once, replayed at the same place; never silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from supervisor import Client, DefinitionError, InputInvalid, OutsideWorkflow, PayloadRefused, Run, RunClosed, RunUnknown, Signal
from supervisor.engine import signals
from tests.apps import letters
from tests.conformance.conftest import Live
from tests.harness import ROOT, eventually

APP = "tests.apps.letters"
PROCS = 2


def parked(live: Live, run: Run[Any], wait: str = "signal") -> None:
    """Until *run* has left memory and waits."""
    live.until(lambda: live.database.sql(
        "select 1 from supervisor.task t join supervisor.wait_kind k on k.id = t.wait_kind where run_id = %s and owner is null and k.code = %s", run.id, wait
    ), 20, f"{run} parked as {wait}")  # fmt: skip


def waits(live: Live, run: Run[Any]) -> None:
    """Until *run* is claimed and has begun, and has nothing recorded yet: it waits, in memory or out of it."""
    live.until(lambda: live.database.sql("select 1 from supervisor.task where run_id = %s and (owner is not null or resumed > 0)", run.id), 20)


def kinds(live: Live, run: Run[Any]) -> list[tuple[str, str, str]]:
    return live.database.sql("select kind, name, status from supervisor.steps where run_id = %s order by pos", run.id)  # type: ignore[return-value]


# ── given, in order, once ────────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_reaches_a_run_that_waits_in_memory_and_one_that_left_it(live: Live) -> None:
    """With its type on both sides."""
    for leave in (False, True):
        run = live.start(letters.approval)
        (parked if leave else waits)(live, run)
        assert run.signal(letters.approved, letters.Approval("ann", 7)) is True
        assert run.result(timeout=20) == "ann 7"
        assert kinds(live, run) == [("signal", "approved", "completed")]


def test_messages_that_come_before_the_wait_are_kept_in_order(live: Live, build: str) -> None:
    """Before it waits, and before it starts: its queue has nobody at first."""
    run = live.start(letters.starts_late, f"opens_{build}")
    run.signal(letters.numbers, 5)
    run.signal(letters.numbers, 6)
    live.effects.open(f"opens_{build}")
    assert run.result(timeout=20) == 5
    delayed = live.start(letters.collects.options(delay=0.5), 3)
    for n in (3, 1, 2):
        delayed.signal(letters.numbers, n)
    assert delayed.result(timeout=20) == [3, 1, 2]


@pytest.mark.parametrize("name", ["collects", "collects_def", "collects_with_steps", "collects_with_steps_def"])
def test_many_messages_are_given_in_order_each_to_one_wait(live: Live, name: str) -> None:
    """Sent while the run reads them, in both kinds of workflow."""
    run = live.start(getattr(letters, name), 300)
    for n in range(300):
        run.signal(letters.numbers, n)
    assert run.result(timeout=30) == list(range(300))
    assert live.database.one("select count(*) from supervisor.signals where run_id = %s and seq is not null", run.id) == 300
    assert live.database.one("select array_agg(n order by n) = array_agg(n order by seq) from supervisor.signals where run_id = %s", run.id)


def test_one_transaction_keeps_its_order_and_other_names_do_not_interfere(live: Live) -> None:
    run = live.start(letters.both)
    with psycopg.connect(live.database.dsn) as conn:
        tx = live.client.within(conn)
        tx.signal(run, letters.numbers, 1)
        tx.signal(run, letters.others, "a")
        tx.signal(run, letters.numbers, 2)
        conn.commit()
    assert run.result(timeout=20) == [1, "a", 2]


def test_as_many_branches_as_there_are_messages_go_on(live: Live) -> None:
    """In the order in which they asked."""
    run = live.start(letters.branches, 5)
    parked(live, run)
    for n in range(5):
        run.signal(letters.numbers, n)
        live.until(lambda n=n: live.rows(run) >= 2 * (n + 1), 20)  # type: ignore[misc]
    assert run.result(timeout=20) == [0, 2, 4, 6, 8]


def test_an_id_is_stored_once_per_run_and_name(live: Live) -> None:
    """A sender that repeats itself changes nothing, also after the run has ended; another name's ids are its own."""
    run = live.start(letters.both)
    assert run.signal(letters.numbers, 1, id="e1") is True
    assert run.signal(letters.numbers, 1, id="e1") is False
    assert run.signal(letters.others, "x", id="e1") is True
    assert run.signal(letters.numbers, 2, id="e2") is True
    assert run.result(timeout=20) == [1, "x", 2]
    assert run.signal(letters.numbers, 2, id="e2") is False
    with pytest.raises(RunClosed):
        run.signal(letters.numbers, 2, id="e3")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_is_raised_by_the_databases_clock_and_replayed(live: Live) -> None:
    """In memory and out of it; what comes later goes to the next wait."""
    assert live.run(letters.approval, 0.05).startswith("late: signal approved did not come within 0.05 s")
    run = live.start(letters.approval, 3)
    parked(live, run)
    wake_at = live.database.one("select wake_at from supervisor.waits where run_id = %s", run.id)
    assert wake_at is not None
    assert run.result(timeout=20).startswith("late")
    assert kinds(live, run) == [("signal", "approved", "failed")]
    ended, created = live.database.sql("select ended_at, created_at from supervisor.runs where run_id = %s", run.id)[0]
    assert (ended - created).total_seconds() >= 3
    patient = live.start(letters.patient, 3)
    live.until(lambda: live.rows(patient) >= 3, 20)
    live.kill()
    patient.signal(letters.numbers, 9)
    assert patient.result(timeout=20) == ["late", "late", "late", "9"]
    assert live.database.one("select count(*) from supervisor.timer where run_id = any(%s)", [run.id, patient.id]) == 0


def test_a_message_that_came_in_time_is_given_although_nobody_worked_then(live: Live) -> None:
    """The timeout was over before any worker looked again; the message had come before that, so it counts."""
    run = live.start(letters.approval, 3)
    parked(live, run)
    os.kill(live.host.pid, 19)  # SIGSTOP: it forks no successors
    stopped = live.host.worker_pids()
    try:
        for pid in stopped:
            os.kill(pid, 19)
        run.signal(letters.approved, letters.Approval("in time"))
        due = "select clock_timestamp() > created_at + interval '4 s' from supervisor.runs where run_id = %s"
        eventually(lambda: live.database.one(due, run.id), 30)
    finally:
        for pid in [*stopped, live.host.pid]:
            os.kill(pid, 18)
    assert run.result(timeout=30) == "in time 0"


# ── beside other things ──────────────────────────────────────────────────────────────────────────────────────────


def test_first_of_a_signal_and_a_timer(live: Live) -> None:
    for workflow in (letters.either, letters.either_def):
        run = live.start(workflow, 60)
        waits(live, run)
        run.signal(letters.numbers, 4)
        assert run.result(timeout=20) == ["number", 4]
        assert live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 0
    assert live.run(letters.either, 0.05) == ["late", None]
    parked_run = live.start(letters.either, 60)
    parked(live, parked_run, "any_of")
    parked_run.signal(letters.numbers, 5)
    assert parked_run.result(timeout=20) == ["number", 5]


def test_a_wait_that_lost_has_taken_nothing(live: Live) -> None:
    """Its message goes to the next wait for that name."""
    run = live.start(letters.loser_keeps_nothing)
    run.signal(letters.numbers, 1)
    live.until(lambda: live.rows(run) >= 2, 20)
    run.signal(letters.others, "text")
    run.signal(letters.numbers, 2)
    assert run.result(timeout=20) == ["number", 1, "text", 2]
    assert ("signal", "others", "cancelled") in kinds(live, run)


def test_first_of_a_signal_and_a_step_that_executes(live: Live, build: str) -> None:
    """The run stays in memory with its step, and hears of the signal there."""
    run = live.start(letters.beside_a_step, f"never_{build}")
    waits(live, run)
    run.signal(letters.numbers, 3)
    try:
        assert run.result(timeout=20) == ["number", 3]
    finally:
        live.effects.open(f"never_{build}")


def test_a_run_in_memory_finds_what_nobody_announced(live: Live, build: str) -> None:
    """Sent by SQL: within half a second, also while a step of the run executes."""
    run = live.start(letters.beside_a_step, f"silent_{build}")
    waits(live, run)
    live.database.sql("select supervisor.signal(%s, 'numbers', '3')", run.id)
    try:
        assert run.result(timeout=10 * signals.LOOK_S + 2.5) == ["number", 3]
    finally:
        live.effects.open(f"silent_{build}")


def test_first_of_a_signal_and_a_child(live: Live, build: str) -> None:
    """Parked on both at once: whichever comes wakes it."""
    run = live.start(letters.beside_a_child, f"kid_a_{build}")
    parked(live, run, "any_of")
    run.signal(letters.numbers, 8)
    assert run.result(timeout=20) == ["number", 8]
    live.effects.open(f"kid_a_{build}")
    run = live.start(letters.beside_a_child, f"kid_b_{build}")
    parked(live, run, "any_of")
    live.effects.open(f"kid_b_{build}")
    assert run.result(timeout=20) == ["kid", f"kid_b_{build}"]


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["collects_with_steps", "collects_with_steps_def"])
def test_killed_workers_lose_no_message_and_give_none_twice(live: Live, name: str) -> None:
    """20 runs of 40 messages each, workers killed again and again while they come."""
    runs = [live.start(getattr(letters, name), 40) for _ in range(20)]
    for at in range(40):
        for n, run in enumerate(runs):
            run.signal(letters.numbers, 1000 * n + at)
        if at in (8, 20, 32):
            live.kill()
    for n, run in enumerate(runs):
        assert run.result(timeout=90) == [1000 * n + at for at in range(40)]
    doubled = "select count(*), count(distinct n) from supervisor.consumed where run_id = any(%s)"
    assert live.database.sql(doubled, [run.id for run in runs]) == [(800, 800)]


def test_a_signal_that_does_not_fit_its_type_is_an_error_at_the_waits_line(live: Live) -> None:
    """SQL may send anything; the run is told, and the next message is read."""
    run = live.start(letters.forgives)
    for payload in ("1", '"text"', "3"):
        live.database.sql("select supervisor.signal(%s, 'numbers', %s)", run.id, payload)
    assert run.result(timeout=20) == ["number 1", "InputInvalid signal numbers", "number 3"]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_run_and_an_unknown_one_are_told_apart_and_nothing_is_stored(live: Live) -> None:
    run = live.start(letters.lettered_step, 1)
    run.result(timeout=20)
    with pytest.raises(RunClosed, match="completed") as closed:
        run.signal(letters.approved, letters.Approval("x"))
    assert (closed.value.run_id, closed.value.status, closed.value.signal) == (run.id, "completed", "approved")
    cancelled = live.start(letters.approval)
    cancelled.terminate()
    with pytest.raises(RunClosed, match="terminated"):
        cancelled.signal("approved")
    with pytest.raises(RunUnknown):
        live.client.signal(uuid4(), letters.numbers, 1)
    assert live.database.one("select count(*) from supervisor.message where run_id = any(%s)", [run.id, cancelled.id]) == 0


def test_what_does_not_fit_is_refused_before_it_is_sent(live: Live) -> None:
    run = live.start(letters.collects, 1)
    with pytest.raises(InputInvalid, match="signal numbers"):
        run.signal(letters.numbers, "text")  # type: ignore[arg-type]
    with pytest.raises(PayloadRefused):
        run.signal(letters.anything, float("nan"))
    with pytest.raises(InputInvalid, match="none: give a Signal"):
        run.signal("no\nname", 1)
    with pytest.raises(InputInvalid, match="id"):
        run.signal(letters.numbers, 1, id="")
    with pytest.raises(DefinitionError):
        Signal("")
    with pytest.raises(OutsideWorkflow):
        letters.numbers.wait()
    error = live.error(letters.misplaced)
    assert isinstance(error, DefinitionError) and "supervisor.sync.Signal" in str(error)
    deep: Any = 1
    for _ in range(65):
        deep = [deep]
    refused = (
        ("numbers", json.dumps(deep), None, "deeper than 64"), ("", "1", None, "1 to 200"), ("a\tb", "1", None, "control"),
        ("numbers", "1", "", "1 to 500"), ("numbers", json.dumps("x" * 2_097_152), None, "more than 2097152"),
    )  # fmt: skip
    for name, payload, message_id, why in refused:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=why):
            live.database.sql("select supervisor.signal(%s, %s, %s, %s)", run.id, name, payload, message_id)
    run.signal("numbers", 5)
    assert run.result(timeout=20) == [5]


def test_hostile_values_come_back_as_they_were_sent(live: Live) -> None:
    values = ["\u2028\x1f'\"\\", {"a": {"b": [None, True, -1, 1.5e300, "ä€😀"]}}, "x" * 1_500_000, [[[]]] * 50]
    run = live.start(letters.reads_anything, len(values))
    for value in values:
        run.signal(letters.anything, value)
    assert run.result(timeout=30) == values


# ── started with a signal ────────────────────────────────────────────────────────────────────────────────────────


def test_signal_with_start_does_both_or_neither(live: Live, build: str) -> None:
    """The first starts the run, the second finds it by its key, one with another id or none is another message."""
    key = f"both-{build}"
    runs = [
        live.client.signal_with_start(letters.numbers.message(n, id=f"m{n}"), letters.collects.options(key=key), 3)
        for n in (1, 1, 2, 3)
    ]  # fmt: skip
    assert [run.created for run in runs] == [True, False, False, False]
    assert len({run.id for run in runs}) == 1
    assert runs[0].result(timeout=20) == [1, 2, 3]
    with pytest.raises(RunClosed):
        live.client.signal_with_start(letters.numbers.message(4), letters.collects.options(key=key), 3)
    before = live.database.one("select count(*) from supervisor.run")
    with pytest.raises(InputInvalid):
        live.client.signal_with_start(letters.numbers.message(1, id="x" * 501), letters.collects, 1)
    assert live.database.one("select count(*) from supervisor.run") == before
    again = live.client.signal_with_start(letters.numbers.message(9), letters.collects, 1)
    assert again.result(timeout=20) == [9]


def test_signal_with_start_by_sql_and_by_name(live: Live, build: str) -> None:
    key = f"sql-{build}"
    ids = {
        live.database.one("select supervisor.signal_with_start('collects', 'numbers', %s, input => '{\"n\": 2}', key => %s, notify => true)", payload, key)
        for payload in ("1", "2")
    }
    (run_id,) = ids
    assert live.client.get(run_id).result(timeout=20) == [1, 2]
    with pytest.raises(psycopg.errors.DatabaseError, match="has ended"):
        live.database.one("select supervisor.signal_with_start('collects', 'numbers', '1', input => '{\"n\": 2}', key => %s)", key)


# ── what people see ──────────────────────────────────────────────────────────────────────────────────────────────


def cli(live: Live, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": live.database.dsn}
    return subprocess.run([sys.executable, "-m", "supervisor", *words], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_show_names_the_command_that_frees_the_run_and_it_does(live: Live, build: str) -> None:
    """What it waits for, since when, until when, and what to type."""
    run = live.start(letters.approval.options(key=f"shown-{build}"), 3600)
    parked(live, run)
    wait = live.database.sql("select code, detail, since, wake_at, freed_by from supervisor.waits where run_id = %s", run.id)[0]
    detail = json.loads(wait[1])
    assert (wait[0], detail["signals"], wait[2] is not None, wait[3] is not None) == ("signal", ["approved"], True, True)
    assert abs(datetime.fromisoformat(detail["until"]) - wait[3]) < timedelta(seconds=1)
    assert wait[4] == f"python -m supervisor signal {run.id} 'approved' --json-value …, or the wait's timeout expires"
    shown = cli(live, "show", str(run.id))
    assert f"python -m supervisor signal {run.id} 'approved'" in shown.stdout
    refused = cli(live, "signal", str(run.id), "approved", "--json-value", "yes")
    assert refused.returncode == 2 and "is no JSON" in refused.stderr
    sent = cli(live, "signal", f"shown-{build}", "approved", "--json-value", '{"by": "cli"}', "--id", "1", "--json")
    assert sent.returncode == 0 and json.loads(sent.stdout) == {"run_id": str(run.id), "signal": "approved", "id": "1", "stored": True}
    assert run.result(timeout=20) == "cli 0"
    assert cli(live, "signal", str(run.id), "approved", "--id", "1").returncode == 1  # stored before
    closed = cli(live, "signal", str(run.id), "approved")
    assert closed.returncode == 1 and "has ended (completed)" in closed.stderr
    assert cli(live, "signal", str(uuid4()), "approved").returncode == 1
    assert "signal" in cli(live, "show", str(run.id)).stdout


def test_signals_nobody_waited_for_can_be_seen(live: Live) -> None:
    run = live.start(letters.collects, 1)
    run.signal(letters.others, "unread", id="u")
    run.signal(letters.numbers, 1)  # with which it ends
    run.result(timeout=20)
    rows = live.database.sql("select name, id, payload, seq from supervisor.signals where run_id = %s and name = 'others'", run.id)
    assert rows == [("others", "u", "unread", None)]


# ── sent in a transaction ────────────────────────────────────────────────────────────────────────────────────────


def test_a_trigger_signals_with_its_row_or_not_at_all(live: Live, build: str) -> None:
    """Rolled back: nothing was sent; committed: the run is woken, wherever it is."""
    table = f"payments_{build}"
    live.database.sql(f"create table {table} (run uuid, amount int)")
    live.database.sql(f"""
        create function {table}_paid() returns trigger language plpgsql as $$
        begin
            perform supervisor.signal(new.run, 'numbers', to_jsonb(new.amount), id => new.amount::text, notify => true);
            return new;
        end $$""")
    live.database.sql(f"create trigger paid after insert on {table} for each row execute function {table}_paid()")
    run = live.start(letters.collects, 2)
    parked(live, run)
    with psycopg.connect(live.database.dsn) as conn:
        conn.execute(f"insert into {table} values (%s, 1)", (run.id,))
        conn.rollback()
        assert live.database.one("select count(*) from supervisor.message where run_id = %s", run.id) == 0
        conn.execute(f"insert into {table} values (%s, 2)", (run.id,))
        conn.execute(f"insert into {table} values (%s, 3)", (run.id,))
        conn.commit()
    assert run.result(timeout=20) == [2, 3]


def test_within_a_transaction_nothing_is_sent_before_the_commit(live: Live) -> None:
    run = live.start(letters.collects, 1)
    parked(live, run)
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).signal(run, letters.numbers, 1) is True
        conn.rollback()
    with psycopg.connect(live.database.dsn) as conn, pytest.raises(RunUnknown), conn.transaction():
        live.client.within(conn).signal(UUID(int=0), letters.numbers, 1)
    with psycopg.connect(live.database.dsn) as conn, conn.transaction():
        live.client.within(conn).signal(run, letters.numbers, 2)
    assert run.result(timeout=20) == [2]


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel))
def test_every_isolation_level_wakes_a_parked_run(live: Live, isolation: psycopg.IsolationLevel) -> None:
    """The snapshot of a transaction may be older than the parking: then it is refused (40001), and repeated it wakes."""
    run = live.start(letters.collects, 1)
    with psycopg.connect(live.database.dsn) as conn:
        conn.isolation_level = isolation
        conn.execute("select count(*) from supervisor.task")
        parked(live, run)
        try:
            live.client.within(conn).signal(run, letters.numbers, 1)
            conn.commit()
        except psycopg.errors.SerializationFailure:
            conn.rollback()
            assert isolation not in (psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.READ_UNCOMMITTED)
            live.client.within(conn).signal(run, letters.numbers, 1)
            conn.commit()
    assert run.result(timeout=20) == [1]


def test_a_client_of_its_own_process_signals(live: Live) -> None:
    """Two clients, one after the other: the session of each ends, what it sent stays."""
    run = live.start(letters.collects, 2)
    for n in (1, 2):
        with Client(live.database.dsn) as client:
            client.signal(str(run.id), "numbers", n)
    assert run.result(timeout=20) == [1, 2]
