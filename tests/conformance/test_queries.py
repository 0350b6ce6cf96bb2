"""Queries: answered by a replay on any worker that has the code, read-only, for live, dead and ended runs, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from supervisor import (
    AsyncClient,
    Client,
    DefinitionError,
    InputInvalid,
    OutsideWorkflow,
    Query,
    QueryFailed,
    QueryReadOnly,
    QueryTooLong,
    QueryUnknown,
    RunUnknown,
)
from tests.apps import queried as app
from tests.conformance.conftest import Live

APP = "tests.apps.queried"
PROCS = 2


def open_queries(live: Live) -> int:
    count: int = live.database.one("select count(*) from supervisor.query")
    return count


def standing(live: Live, run: Any) -> list[tuple[Any, ...]]:
    """All that the database holds of a live run: nothing of it may change because somebody asked."""
    return live.database.sql("select t.*, t.xmin::text from supervisor.task t where run_id = %s", run.id) + live.database.sql(
        "select s.*, s.xmin::text from supervisor.step s where run_id = %s order by pos", run.id
    )


def at_gate(live: Live, run: Any, records: int) -> None:
    live.until(lambda: live.rows(run) == records, 20)


def keepers(live: Live) -> list[int]:
    """Processes that wait for hints, and those that answer: children of workers, and theirs."""
    found = []
    for worker in live.host.worker_pids():
        for keeper in children_of(worker):
            found += [keeper, *children_of(keeper)]
    return found


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as listed:
            return [int(each) for each in listed.read().split()]
    except FileNotFoundError:
        return []


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workflow", [app.answers, app.answers_def], ids=["async", "def"])
def test_a_live_run_answers_what_it_holds_and_does_not_notice(live: Live, workflow: Any) -> None:
    """Its steps are not executed again, its rows are the same by the same transactions, and its worker has it still."""
    gate = uuid.uuid4().hex
    run = live.start(workflow, gate, 3)
    at_gate(live, run, 3)
    live.until(lambda: run.status().status == "running", 20)
    live.until(lambda: run.status().wait == "step_running", 20)  # the last change that a worker makes to it by itself
    before, executed = standing(live, run), live.effects.count("queried_step")
    assert run.query(app.progress) == app.Progress([0, 1, 2], 3)
    assert live.client.query(str(run.id), "progress") == {"done": [0, 1, 2], "of": 3}
    assert (standing(live, run), live.effects.count("queried_step")) == (before, executed)
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=20) == "returned"
    assert run.query(app.progress) == app.Progress([0, 1, 2, -1], 3), "an ended run answers from where it ended"
    assert open_queries(live) == 0


def test_a_query_takes_an_argument(live: Live) -> None:
    gate = uuid.uuid4().hex
    run = live.start(app.answers, gate, 3)
    at_gate(live, run, 3)
    assert [run.query(app.item, at) for at in (0, 2)] == [0, 2]
    assert live.client.query(run.id, "item", 1) == 1
    with pytest.raises(QueryFailed) as caught:
        run.query(app.item, 7)
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(QueryFailed, match="int"):
        live.client.query(run.id, "item", "no number")
    with pytest.raises(QueryFailed, match="takes no argument"):
        live.client.query(run.id, "plain", 1)
    for wrong in (lambda: live.client.query(run, app.item), lambda: live.client.query(run, app.plain, 1), lambda: live.client.query(run, "item", 1, 2)):
        with pytest.raises(InputInvalid):
            wrong()
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")


def test_every_kind_of_record_is_replayed(live: Live) -> None:
    """Steps, transactions, timers, children, branches, failures, random numbers and the run's time: what it holds live is what it answers."""
    gate = uuid.uuid4().hex
    run = live.start(app.answers_of_every_kind, gate)
    run.signal(app.heard, 8)
    live.until(lambda: run.published("trace") is not None, 20)
    live.until(lambda: run.status().step == "queried_gate" and run.status().wait == "step_running", 20)
    told = run.query(app.seen)
    live.effects.open(f"{gate}.middle")
    assert [*told, "over"] == run.result(timeout=20)
    assert run.query(app.seen) == [*told, "over"]


def test_a_run_that_nobody_has_claimed_answers_from_its_beginning(live: Live) -> None:
    """It has no history: its code runs up to its first command."""
    run = live.client.start(app.answers.options(delay=3600), "nowhere", 2)
    assert run.query(app.progress) == app.Progress([], 2)
    assert run.status().status == "waiting" and live.rows(run) == 0
    run.cancel("it is over")
    assert run.query(app.progress) == app.Progress([], 2)


def test_an_async_client_asks_too(live: Live) -> None:
    run = live.start(app.answers_of_every_kind, "answers-async")
    run.signal(app.heard, 9)
    live.effects.open("answers-async.middle")
    trace = run.result(timeout=20)

    async def ask() -> list[Any]:
        async with AsyncClient(live.database.dsn) as client:
            handle = await client.get(run.id)
            return await asyncio.gather(handle.query(app.seen), client.query(run.id, "seen"), client.query(run.id, app.seen, timeout=5))

    assert asyncio.run(ask()) == [trace] * 3


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────


def wrongly(live: Live, what: str, **options: Any) -> QueryFailed:
    gate = uuid.uuid4().hex
    run = live.start(app.answers_wrongly, gate, what)
    with pytest.raises(QueryFailed) as caught:
        run.query(app.wrong, **options)
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=20) is None, "the run goes on whatever its handler did"
    assert open_queries(live) == 0
    return caught.value


@pytest.mark.parametrize("what", ["step", "step aio", "async step", "sleep", "signal", "gather", "child", "start", "publish"])
def test_a_handler_can_record_nothing(live: Live, what: str) -> None:
    """A query must not change the run; an attempt is an error that says so, at its line."""
    executed = live.effects.count("queried_step")
    error = wrongly(live, what)
    assert isinstance(error.__cause__, QueryReadOnly) and "query's handler" in str(error), error
    assert live.effects.count("queried_step") == executed, "the step's body was executed"


@pytest.mark.parametrize(("what", "words"), [("raises", "KeyError"), ("type", "int"), ("nan", "null"), ("client", "client")])
def test_what_a_handler_raises_or_returns_wrongly_is_told(live: Live, what: str, words: str) -> None:
    assert words in str(wrongly(live, what))


@pytest.mark.parametrize("what", ["exits", "killed"])
def test_a_handler_that_ends_its_process_is_told_of_and_harms_nobody(live: Live, what: str) -> None:
    """The worker lives on, and so does who asks next."""
    before = live.host.worker_pids()
    assert "died" in str(wrongly(live, what, timeout=30))
    assert live.host.worker_pids() == before
    gate = uuid.uuid4().hex
    run = live.start(app.answers, gate, 1)
    at_gate(live, run, 1)
    assert run.query(app.progress).done == [0]
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")


def test_a_handler_that_does_not_return_is_given_up(live: Live) -> None:
    """Bounded in time: the process is ended, and whoever asks is told why."""
    error = wrongly(live, "stuck", timeout=60)
    assert isinstance(error.__cause__, QueryTooLong) and "10 s" in str(error)


def test_unknown_runs_and_names_are_errors_that_say_what_there_is(live: Live) -> None:
    gate = uuid.uuid4().hex
    run = live.start(app.answers, gate, 1)
    at_gate(live, run, 1)
    with pytest.raises(QueryUnknown, match="item, plain, progress") as caught:
        run.query("nothing of that name")
    assert caught.value.known == ["item", "plain", "progress"]
    with pytest.raises(QueryUnknown, match="none"):
        live.start(app.without_handlers).query(app.plain)
    with pytest.raises(RunUnknown):
        live.client.query(uuid.uuid4(), app.plain)
    for wrong in ({"timeout": 0}, {"timeout": 3601}):
        with pytest.raises(InputInvalid):
            run.query(app.plain, **wrong)
    with pytest.raises(InputInvalid):
        run.query("")
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")
    assert open_queries(live) == 0


def test_handlers_are_checked_where_they_are_named(live: Live) -> None:
    """A handler that could never answer is an error of the run, not a surprise for who asks later."""
    for what in ("async", "argument", "nothing"):
        assert isinstance(live.error(app.handles_wrongly, what), DefinitionError)
    with pytest.raises(OutsideWorkflow):
        app.plain.handler(lambda: 1)
    for name in ("", "x" * 201, "a\nb", 3):
        with pytest.raises(DefinitionError):
            Query(name)  # type: ignore[call-overload]


def test_a_long_history_is_bounded_and_says_so(live: Live) -> None:
    """10,000 steps are answered in a second; more than a query may replay is refused by its size, before it is read."""
    run = live.start(app.answers_long, "answers-long", 10_000)
    live.until(lambda: live.rows(run) >= 10_000, 60)
    assert live.client.query(run, app.plain) == sum(range(10_000))
    live.effects.open("answers-long.end")
    run.result(timeout=20)
    live.database.sql(
        "insert into supervisor.step select run_id, now(), now(), seq, seq, 1, 1, 1, 'queried_quick', '1' from generate_series(20001, 60001) as seq, "
        "(select %s::uuid as run_id) as r", run.id,
    )  # fmt: skip
    with pytest.raises(QueryFailed) as caught:
        run.query(app.plain)
    assert isinstance(caught.value.__cause__, QueryTooLong) and "50,002" in str(caught.value)


def test_a_history_that_the_code_does_not_fit_is_told(live: Live) -> None:
    """The error of the replay, with its position: the same that would park the run."""
    gate = uuid.uuid4().hex
    run = live.start(app.answers, gate, 2)
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")
    run.result(timeout=20)
    live.database.sql("update supervisor.step set name = 'another' where run_id = %s and seq = 1", run.id)
    with pytest.raises(QueryFailed, match="another"):
        run.query(app.progress)


# ── many, and things that die ────────────────────────────────────────────────────────────────────────────────────


def asked_at_once(live: Live, run: Any, count: int, ask: Callable[[Client], Any]) -> list[Any]:
    """What *count* clients are told that ask in the same moment, on threads."""
    told: list[Any] = []

    def one() -> None:
        with Client(live.database.dsn) as client:
            told.append(ask(client))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return told


def test_many_queries_to_one_run_are_answered_by_few_replays(live: Live) -> None:
    """Those that come while an answer is being looked for wait for one replay together, not for one each."""
    run = live.start(app.answers_slowly, "answers-many", 20.0)
    live.until(lambda: live.effects.count("replayed", "answers-many") == 1, 20)
    blocked = [threading.Thread(target=asked_at_once, args=(live, run, 1, lambda client: client.query(run.id, app.plain, timeout=60))) for _ in range(PROCS)]
    for n, each in enumerate(blocked):  # one after the other, or one replay would take them all: every answerer is at work then
        each.start()
        live.until(lambda n=n: live.effects.count("asked", "answers-many") == n + 1, 20)
    others = threading.Thread(target=lambda: told.extend(asked_at_once(live, run, 20, lambda client: client.query(run.id, app.plain, timeout=60))))
    told: list[Any] = []
    others.start()
    live.until(lambda: open_queries(live) == 20 + PROCS, 20)
    live.effects.open("answers-many.answer")
    others.join(60)
    assert told == ["answered"] * 20
    for each in blocked:
        each.join(60)
    assert live.effects.count("replayed", "answers-many") <= 1 + 2 * PROCS + 1
    live.effects.open("answers-many.end")
    assert run.result(timeout=20) is None


@pytest.mark.parametrize("whom", ["answerer", "worker"])
def test_kill_in_the_middle_of_an_answer(live: Live, whom: str) -> None:
    """Whoever dies while it looks for the answer, another one finds it; the run is not charged with anything."""
    gate = uuid.uuid4().hex
    run = live.start(app.answers_slowly, gate, 20.0)
    live.until(lambda: live.effects.count("replayed", gate) == 1, 20)
    told: list[Any] = []
    asking = threading.Thread(target=lambda: told.extend(asked_at_once(live, run, 1, lambda client: client.query(run.id, app.plain, timeout=60))))
    asking.start()
    live.until(lambda: live.effects.count("asked", gate) == 1, 20)
    answerer = int(live.effects.lines("asked")[-1][2])
    if whom == "worker":
        live.kill()
        live.until(lambda: not _alive(answerer), 20, "the answerer ends with its worker")
    else:
        os.kill(answerer, signal.SIGKILL)
    live.until(lambda: live.effects.count("asked", gate) == 2, 30, "another process looks for the answer")
    live.effects.open(f"{gate}.answer")
    asking.join(60)
    assert told == ["answered"]
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=40) is None
    assert live.database.one("select count(*) from supervisor.attempt where run_id = %s", run.id) == 0
    live.until(lambda: open_queries(live) == 0, 20)


def test_a_requester_that_goes_away_leaves_nothing(live: Live) -> None:
    """What nobody waits for any more is not answered, and is removed by whoever comes by."""
    run = live.start(app.without_handlers)
    run.result(timeout=20)
    gone = "select supervisor.ask_query(%s, %s, 'x', null, 0.001)"
    for _ in range(50):
        live.database.sql(gone, uuid.uuid4(), run.id)
    with pytest.raises(QueryUnknown):
        run.query("x")
    live.until(lambda: open_queries(live) == 0, 20)


def test_a_worker_that_can_not_answer_is_named(live: Live) -> None:
    """Nobody has the code: the wait ends at its time, with what to look at."""
    live.database.sql("insert into supervisor.workflow (name, queue) select 'of another app', id from supervisor.queue limit 1")
    run_id = live.database.one("select supervisor.start('of another app', delay => '1 hour')")
    with pytest.raises(TimeoutError, match="of another app took it"):
        live.client.query(run_id, app.plain, timeout=0.3)
    assert open_queries(live) == 0


def test_who_may_start_runs_may_ask_them(live: Live) -> None:
    """By functions alone; the table is nobody's to read."""
    run = live.start(app.without_handlers)
    run.result(timeout=20)
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute("set local role supervisor_client")
        asked = uuid.uuid4()
        assert conn.execute("select supervisor.ask_query(%s, %s, 'x')", (asked, run.id)).fetchone() == ("without_handlers",)
        assert conn.execute("select status, taken from supervisor.query_answer(%s)", (asked,)).fetchone() == (None, False)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("select from supervisor.query")


def test_nobody_who_answers_outlives_its_worker(live: Live) -> None:
    """kill -9 of the workers ends the processes beside them: nothing is left that could answer from old code."""
    run = live.start(app.without_handlers)
    run.result(timeout=20)
    with pytest.raises(QueryUnknown):
        run.query("x")
    beside = keepers(live)
    assert len(beside) >= PROCS
    live.kill()
    live.until(lambda: not any(_alive(pid) for pid in beside), 20)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
