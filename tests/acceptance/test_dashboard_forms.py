"""What a run's page and its forms do beside what is shown of any run: parts of a history, what a fork differs in, messages and tokens with their reasons, verbs behind a lock, filters that are kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor import Client, Run
from tests.acceptance.visits import Read, Served, Visitor, filled, served
from tests.apps import dashed
from tests.harness import Database, Effects, HostFactory, Server, eventually

PATIENCE_S = 1.0


@dataclass
class Desk:
    database: Database
    client: Client
    served: Served
    ann: Visitor

    def kept(self, run: Run[Any]) -> list[tuple[Any, ...]]:
        return self.database.sql("select verb, actor, reason, details from supervisor.audits where run_id = %s order by n", run.id)

    def waiting(self, workflow: Any, code: str, *values: Any) -> Run[Any]:
        run = self.client.start(workflow, *values)
        eventually(lambda: self.database.sql("select 1 from supervisor.waits where run_id = %s and code = %s", run.id, code), 30, f"{run.id} waits for {code}")
        return run

    def page(self, path: str) -> Any:
        return self.ann.get(path.replace("?", ".json?") if "?" in path else f"{path}.json").json()


@pytest.fixture(scope="module")
def desk(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    database, folder = server.database(), tmp_path_factory.mktemp("desk")
    try:
        with HostFactory(database, Effects(folder / "effects"), folder)("tests.apps.dashed", procs=1), Client(database.dsn) as client:
            with served(folder / "dashboard", database.dsn, "--timeout", str(PATIENCE_S)) as dashboard:
                yield Desk(database, client, dashboard, dashboard.visitor("ann"))
    finally:
        database.drop()


# ── parts of a history, and what a fork differs in ───────────────────────────────────────────────────────────────


def test_a_part_of_a_history_has_an_address(desk: Desk) -> None:
    """By positions or by time, as one would send it to somebody; what is no part is all of it."""
    run = desk.client.start(dashed.dashed_counts, 40)
    assert run.result(timeout=30) == 40
    path = f"/runs/{run.id}"

    def seqs(query: str) -> list[int]:
        return [each["seq"] for each in desk.page(path + query)["history"]]

    assert seqs("") == list(range(41)) and seqs("?from=5&to=9") == [5, 6, 7, 8, 9] and seqs("?to=2") == [0, 1, 2]
    began, ended = desk.database.sql(
        "select extract(epoch from a.started_at - r.created_at)::float8, extract(epoch from b.ended_at - r.created_at)::float8 from supervisor.runs r, supervisor.steps a, supervisor.steps b"
        " where r.run_id = %s and a.run_id = r.run_id and b.run_id = r.run_id and a.seq = 20 and b.seq = 22", run.id,
    )[0]  # fmt: skip
    found = seqs(f"?during={began:.6f},{ended:.6f}")
    assert {20, 21, 22} <= set(found) and len(found) < 41
    for wrong in ("x", "5,1", "nan,1", "0,1e300", "inf,1", ","):
        assert seqs(f"?during={wrong}") == list(range(41))
    html = Read.of(desk.ann.get(f"{path}?during={began:.6f},{ended:.6f}").text)
    keys = {attributes["data-key"]: attributes["href"] for _, attributes in html.tags if "data-key" in attributes}
    assert set(keys) == {"+", "-", "[", "]", "0"} and keys["0"] == f"{path}#journal" and all(str(href).startswith(path) for href in keys.values())
    assert desk.ann.get(f"{path}?during=100000,100001").status == 200


def lanes(html: str) -> dict[int, str]:
    """Status of each lane of the history."""
    return {int(seq): status for seq, status in re.findall(r'<details id="seq-(\d+)">.*?class="pip s-([a-z-]+)"', html, re.DOTALL)}


def test_what_is_not_shown_of_a_history_is_not_taken_for_unfinished(desk: Desk) -> None:
    """Failed tries of a step that is on another page make no lane: it would say "not yet" of what has completed long ago."""
    run = desk.waiting(dashed.dashed_stumbles, "step_backoff", 250, False)
    path, span = f"/runs/{run.id}", "during=-1,100000"

    def seen(query: str) -> tuple[list[int], Any, str]:
        html = desk.ann.get(f"{path}?{query}").text
        found = lanes(html)
        assert {seq: status for seq, status in found.items() if status != "completed"} in ({}, {250: "waiting"}), query
        return list(found), desk.page(f"{path}?{query}"), Read.of(html).text

    first, data, text = seen(span)
    assert first == list(range(100)) and data["complete"]["history"] is False and "the first 100 of 250" in text
    assert {each["seq"] for each in data["attempts"]} == {*range(0, 100, 10), 250}
    assert data["next"] == f"{path}.json?during=-1%2C100000&from=100" and f"{path}?during=-1%2C100000&from=100" in unescape(desk.ann.get(f"{path}?{span}").text)
    second, data, text = seen(f"{span}&from=100")
    assert second == list(range(100, 200)) and "the first 100 of 150 from 100 on" in text and data["complete"]["history"] is False
    third, data, text = seen(f"{span}&from=200")
    assert third == list(range(200, 251)) and data["complete"]["history"] is True and data["next"] is None and "the first" not in text
    for query, window in (("from=5&to=9", [5, 6, 7, 8, 9]), ("from=200", [*range(200, 251)]), ("before=20", [*range(20)]), ("", [*range(150, 251)])):
        assert seen(query)[0] == window, query
        assert "failed once; it is tried again" in desk.ann.get(f"{path}?{query}").text, "the banner is of the run, whatever part one looks at"
    assert seen("from=9000")[0] == [250], "what it waits for is after all that there is"
    began = desk.database.one("select extract(epoch from s.started_at - r.created_at)::float8 from supervisor.runs r join supervisor.steps s on s.run_id = r.run_id and s.seq = 50 where r.run_id = %s", run.id)
    assert 250 not in seen(f"during=-1,{began:.6f}")[0], "it had not begun then"


def test_what_is_cut_short_says_so_and_where_all_of_it_is(desk: Desk) -> None:
    """Fifty of a thousand signals without a word are taken for all."""
    asked, outside, failing = desk.waiting(dashed.dashed_answers, "signal"), desk.waiting(dashed.dashed_many_outside, "token", 60), desk.waiting(dashed.dashed_fails, "step_backoff", "cut")
    before = {name: desk.page(f"/runs/{run.id}")["complete"] for name, run in (("asked", asked), ("failing", failing))}
    assert all(all(each.values()) for each in before.values())
    for n in range(60):
        desk.client.signal(outside.id, dashed.DASHED_GO, str(n))
        desk.client.update(asked.id, dashed.DASHED_ASKED, n)
    desk.database.sql("insert into supervisor.audit (run_id, verb, login, details) select %s, 'pause', 'x', '{}' from generate_series(1, 101)", failing.id)
    desk.database.sql(
        "insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)"
        " select run_id, seq, g, kind, started_at + g * interval '1 us', ended_at + g * interval '1 us', worker, name, error, fingerprint from supervisor.attempt, generate_series(2, 1001) g where run_id = %s", failing.id,
    )  # fmt: skip

    def seen(run: Run[Any], *parts: str) -> tuple[Any, str]:
        data, text = desk.page(f"/runs/{run.id}"), Read.of(desk.ann.get(f"/runs/{run.id}").text).text
        assert {name for name, complete in data["complete"].items() if not complete} == set(parts)
        return data, text

    data, text = seen(outside, "signals", "tokens")
    assert [each["payload"] for each in data["signals"]] == [str(n) for n in range(59, 9, -1)] and len(data["tokens"]) == 50
    assert f"the newest 50; all: SELECT * FROM \"supervisor\".signals WHERE run_id = '{outside.id}'" in text and f"the last 50; all: SELECT * FROM \"supervisor\".tokens WHERE run_id = '{outside.id}'" in text
    data, text = seen(asked, "updates")
    assert [each["payload"] for each in data["updates"]] == [*range(59, 9, -1)] and "the newest 50; all: SELECT * FROM \"supervisor\".updates" in text
    data, text = seen(failing, "attempts", "audit")
    assert [each["n"] for each in data["attempts"]] == [*range(2, 1002)] and len(data["audit"]) == 100
    assert "tries: the last 1,000; all: SELECT * FROM \"supervisor\".attempts" in text and "the newest 100; all: SELECT * FROM \"supervisor\".audits" in text
    assert desk.page(f"/runs/{failing.id}/steps/0")["complete"] is False and "the last 1,000; all: SELECT" in Read.of(desk.ann.get(f"/runs/{failing.id}/steps/0").text).text
    assert len(desk.database.sql(f"SELECT * FROM \"supervisor\".attempts WHERE run_id = '{failing.id}' AND seq = 0")) == 1001


def test_a_fork_says_what_it_differs_in(desk: Desk) -> None:
    """From which run, before which result; another input, and the first entries that are others."""
    origin = desk.client.start(dashed.dashed_counts, 6)
    assert origin.result(timeout=30) == 6
    fork = desk.client.fork(origin.id, 3, input=8)
    assert fork.result(timeout=30) == 8
    found = desk.page(f"/runs/{fork.id}")["fork"]
    assert (found["forked_from"], found["seq"]) == (str(origin.id), 3)
    assert found["facts"] == {"input": {"here": {"steps": 8}, "there": {"steps": 6}}}
    assert [(row["seq"], row["name"], row["other_name"]) for row in found["differences"]] == [(6, "dashed_said", "sleep"), (7, "dashed_said", None), (8, "sleep", None)]
    text = Read.of(desk.ann.get(f"/runs/{fork.id}").text).text
    assert "before the result of seq 3" in text and "no such entry" in text and "6 dashed_said / sleep" in text
    assert [each["seq"] for each in desk.page(f"/runs/{fork.id}?during=-86400,0")["history"]] == [0, 1, 2], "what it was given happened before it"
    same = desk.client.fork(origin.id, None)
    assert same.result(timeout=30) == 6
    text = Read.of(desk.ann.get(f"/runs/{same.id}").text).text
    assert "with all of its history" in text and "nothing differs" in text


def test_a_run_leads_to_the_one_that_goes_on_with_it_and_back(desk: Desk) -> None:
    """A continuation, and what was made of a failed run: on the page, in its JSON, in `show`."""
    run = desk.client.start(dashed.dashed_chain.options(key="chain"), 2)
    eventually(lambda: desk.database.one("select status from supervisor.runs where run_id = supervisor.newest(%s)", run.id) == "waiting", 30)
    chain = [run.id]
    while (following := desk.database.one("select result #>> '{}' from supervisor.runs where run_id = %s", chain[-1])) is not None:
        chain.append(UUID(following))
    failed = desk.client.start(dashed.dashed_ends_badly)
    eventually(lambda: desk.client.status(failed.id).status == "failed", 30)
    made = desk.client.retry(failed.id)
    eventually(lambda: desk.client.status(made.id).status == "failed", 30)

    def beside(run_id: UUID) -> list[tuple[str, str]]:
        data = desk.page(f"/runs/{run_id}")["goes_on"]
        html = desk.ann.get(f"/runs/{run_id}").text
        shown = subprocess.run([sys.executable, "-m", "supervisor", "show", str(run_id), "--dsn", desk.database.dsn], capture_output=True, text=True, check=True, timeout=60).stdout
        for each in data:
            assert re.search(rf"<dt>{each['how']}</dt><dd><a href=\"/runs/{each['run_id']}\">.*{each['status']}", html)
            assert f"{each['how']} {each['run_id']} ({each['status']})" in shown.splitlines()
        return [(each["how"], each["run_id"]) for each in data]

    first, second, third = map(str, chain)
    assert beside(chain[0]) == [("continued as", second)]
    assert beside(chain[1]) == [("continued as", third), ("goes on from", first)]
    assert beside(chain[2]) == [("goes on from", second)]
    assert beside(failed.id) == [("retried as", str(made.id))] and beside(made.id) == [("goes on from", str(failed.id))]


# ── messages, tokens, terms ──────────────────────────────────────────────────────────────────────────────────────


def test_who_sent_a_message_and_why_is_kept_with_it(desk: Desk) -> None:
    """A form asks for the reason; so it is there afterwards, or nothing was sent."""
    run = desk.waiting(dashed.dashed_answers, "signal")
    assert desk.ann.do(run.id, "update", "how much", name="dashed_asked", value="21").status == 303
    eventually(lambda: desk.database.sql("select result from supervisor.updates where run_id = %s", run.id) == [(42,)], 30)
    assert desk.ann.do(run.id, "signal", "it may go", name="dashed_go", value='"now"').headers["location"] == f"/runs/{run.id}?did=signal"
    assert run.result(timeout=30) == 0
    assert [(verb, actor, reason, details["name"]) for verb, actor, reason, details in desk.kept(run)] == [("update", "ann", "how much", "dashed_asked"), ("signal", "ann", "it may go", "dashed_go")]
    late = desk.ann.do(run.id, "signal", "too late", name="dashed_go", value="1")
    assert late.status == 409 and "has ended" in Read.of(late.text).text and len(desk.kept(run)) == 2
    other = desk.waiting(dashed.dashed_answers, "signal")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        desk.database.sql("select supervisor.send_because('signal', %s, 'dashed_go', '1', null, repeat('x', 5000), 'ann')", other.id)
    assert desk.database.sql("select 1 from supervisor.signals where run_id = %s", other.id) == [] and desk.kept(other) == []


def test_an_operator_answers_for_who_holds_a_token(desk: Desk) -> None:
    """Who holds it may be gone, and with them the token; the audit says who did it instead."""
    given, failed = (desk.waiting(dashed.dashed_outside, "token") for _ in range(2))
    assert desk.ann.do(given.id, "complete", "they called", seq="0", value='"yes"').status == 303
    assert given.result(timeout=30) == "yes"
    assert desk.ann.do(failed.id, "fail", "they never will", seq="0", error="nobody is there").status == 303
    eventually(lambda: desk.client.status(failed.id).status == "failed", 30)
    assert "nobody is there" in desk.page(f"/runs/{failed.id}")["error"]["message"]
    assert desk.kept(given) == [("complete", "ann", "they called", {"seq": 0, "attempt": 1})] and desk.kept(failed)[0][:3] == ("fail", "ann", "they never will")
    run = desk.waiting(dashed.dashed_answers, "signal")
    refused = desk.ann.do(run.id, "complete", seq="0", value="1")
    assert refused.status == 409 and "no try of step 0 waits for a token" in Read.of(refused.text).text
    assert desk.ann.do(given.id, "complete", seq="0", value="1").status == 409


def test_a_step_is_given_other_terms(desk: Desk) -> None:
    run = desk.waiting(dashed.dashed_fails, "step_backoff", "f")
    for fields in ({}, {"max_attempts": "many"}, {"factor": "-1"}):
        assert desk.ann.do(run.id, "edit_retry", seq="0", **fields).status == 400
    assert desk.kept(run) == []
    assert desk.ann.do(run.id, "edit_retry", "twice is enough", seq="0", max_attempts="2", next_in="0").status == 303
    eventually(lambda: desk.client.status(run.id).status == "failed", 30)
    ((verb, actor, reason, _),) = desk.kept(run)
    assert (verb, actor, reason) == ("edit_retry", "ann", "twice is enough")


# ── behind a lock ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("verb", "fields"), [("pause", {}), ("cancel", {}), ("terminate", {}), ("signal", {"name": "dashed_go", "value": "1"}), ("update", {"name": "dashed_asked", "value": "1"})])
def test_a_verb_behind_a_lock_is_given_up_and_says_so(desk: Desk, verb: str, fields: dict[str, str]) -> None:
    """Somebody's open transaction must not hold a page for ever; what was given up has done nothing."""
    run = desk.waiting(dashed.dashed_answers, "signal")
    assert f"given up after {PATIENCE_S:g} s" in Read.of(desk.ann.get(f"/runs/{run.id}").text).text
    with desk.database.connect() as conn, conn.transaction():
        conn.execute("select from supervisor.task where run_id = %s for update", (run.id,))
        answer = desk.ann.do(run.id, verb, **fields)
    text = Read.of(answer.text).text
    assert answer.status == 409 and "Somebody has it locked" in text and f"given up after {PATIENCE_S:g} s" in text
    assert desk.kept(run) == [] and desk.database.sql("select 1 from supervisor.cancellations where run_id = %s", run.id) == []
    assert desk.ann.do(run.id, verb, **fields).status == 303


def test_a_dashboard_that_dies_behind_a_lock_has_done_nothing(desk: Desk, tmp_path: Any) -> None:
    """kill -9 while its verb waits: neither the deed nor its row of audit comes later."""
    run = desk.waiting(dashed.dashed_answers, "signal")
    with served(tmp_path, desk.database.dsn, "--timeout", "60") as made:
        visitor = made.visitor("bob")
        with desk.database.connect() as conn, conn.transaction():
            conn.execute("select from supervisor.task where run_id = %s for update", (run.id,))
            asking = threading.Thread(target=lambda: _quietly(lambda: visitor.do(run.id, "signal", "gone", name="dashed_go", value='"x"')), daemon=True)
            asking.start()
            waiting = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%%send_because%%'"
            (pid,) = eventually(lambda: desk.database.sql(waiting), 30)[0]
            os.kill(made.process.pid, signal.SIGKILL)
            made.process.wait()
            desk.database.sql("select pg_terminate_backend(%s)", pid)  # it would notice by itself when it next looks at its socket
        asking.join(30)
    assert desk.kept(run) == [] and desk.database.sql("select 1 from supervisor.signals where run_id = %s", run.id) == []


def _quietly(do: Any) -> None:
    try:
        do()
    except OSError:
        pass


# ── filters that are kept ────────────────────────────────────────────────────────────────────────────────────────


def test_a_filter_is_kept_for_all_and_forgotten(desk: Desk) -> None:
    """What one operator looks for every morning is a link for everybody."""
    asked = 'workflow = dashed_fails AND status = "failed"'
    assert desk.ann.post("/views/save", {"name": "bank is down", "q": asked}).headers["location"].startswith("/runs?q=")
    page = desk.ann.get("/runs")
    assert "bank is down" in Read.of(page.text).text
    (href,) = [link for link in Read.of(page.text).attributes("a", "href") if "dashed_fails" in link and "failed" in link]
    assert desk.ann.get(href).status == 200
    assert [(each["name"], each["filter"], each["saved_by"]) for each in desk.page("/runs")["saved"]] == [("bank is down", asked, "ann")]
    desk.served.visitor("bob").post("/views/save", {"name": "bank is down", "q": "workflow = dashed_fails"})
    assert [(each["filter"], each["saved_by"]) for each in desk.page("/runs")["saved"]] == [("workflow = dashed_fails", "bob")]
    for form in ({"name": "bad", "q": "oops"}, {"name": "", "q": asked}, {"name": "x" * 61, "q": asked}, {"name": "a\tb", "q": asked}, {"name": "nothing", "q": ""}):
        assert desk.ann.post("/views/save", form).status == 400, form
    assert desk.ann.post("/views/explode", {"name": "x", "q": asked}).status == 400
    assert desk.ann.post("/views/forget", {"name": "bank is down", "q": ""}).headers["location"] == "/runs"
    assert desk.page("/runs")["saved"] == []


def test_a_viewer_uses_what_is_kept_and_keeps_nothing(desk: Desk, tmp_path: Any) -> None:
    login = f"dashed_views_{os.getpid()}"
    desk.database.sql(f"create role {login} login; grant supervisor_viewer to {login}")
    assert desk.ann.post("/views/save", {"name": "mornings", "q": "age < 1d"}).status == 303
    try:
        with served(tmp_path, psycopg.conninfo.make_conninfo(desk.database.dsn, user=login)) as made:
            visitor = made.visitor()
            html = visitor.get("/runs").text
            assert "mornings" in html and "/views/" not in html
            for verb in ("save", "forget"):
                assert visitor.post(f"/views/{verb}", {"name": "mornings", "q": "age < 2d"}).status == 403
    finally:
        desk.database.sql(f"drop owned by {login}; drop role {login}")
    assert desk.database.sql("select filter from supervisor.saved_views") == [("age < 1d",)]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="200 views"):
        desk.database.sql("select supervisor.save_view('v' || n, 'age < 1d') from generate_series(1, 201) n")


# ── queues and schedules ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_queue_is_paused_and_resumed_from_its_row(desk: Desk) -> None:
    """By a form with a reason, whose row of audit is in its transaction; what was so already is not done again."""
    sql = desk.database.sql
    hidden = [attributes["value"] for _, attributes in Read.of(desk.ann.get("/queues").text).tags if attributes.get("name") == "name"]
    assert hidden == ["dashed"]
    assert desk.ann.post("/queues/pause", {"name": "dashed", "reason": " "}).status == 400
    assert desk.ann.post("/queues/pause", {"name": "dashed", "reason": "stocktaking", "csrf": "wrong"}).status == 403
    assert desk.ann.post("/queues/pause", {"name": "dashed", "reason": "stocktaking"}, Origin="http://evil.example").status == 403
    assert sql("select paused_at from supervisor.queues where queue = 'dashed'") == [(None,)]
    assert desk.ann.post("/queues/pause", {"name": "dashed", "reason": "stocktaking"}).headers["location"] == "/queues?did=pause"
    assert desk.ann.post("/queues/pause", {"name": "dashed", "reason": "again"}).headers["location"] == "/queues?did=unchanged"
    run = desk.client.start(dashed.dashed_counts, 1)
    text = Read.of(desk.ann.get("/queues?did=pause").text).text
    assert "You paused it" in text and "stocktaking" in text and "Resume" in text
    assert desk.page("/queues")["queues"][0]["paused_by"] == "ann" and "queue dashed is paused" in Read.of(desk.ann.get("/health").text).text
    text = Read.of(desk.ann.get(f"/runs/{run.id}").text).text
    assert "Its queue dashed is paused by ann: stocktaking" in text
    assert desk.ann.post("/queues/resume", {"name": "dashed", "reason": "counted"}).headers["location"] == "/queues?did=resume"
    assert run.result(timeout=30) == 1
    assert sql("select verb, actor, reason from supervisor.audits where queue = 'dashed' order by n") == [("queue_pause", "ann", "stocktaking"), ("queue_resume", "ann", "counted")]
    assert desk.ann.post("/queues/pause", {"name": "typo", "reason": "x"}).status == 404 and desk.ann.post("/queues/explode", {"name": "dashed", "reason": "x"}).status == 400
    with desk.database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute("select supervisor.pause_queue('dashed')")
        behind = desk.ann.post("/queues/pause", {"name": "dashed", "reason": "behind a lock"})
    assert behind.status == 409 and "Somebody has it locked" in Read.of(behind.text).text
    assert sql("select paused_at from supervisor.queues where queue = 'dashed'") == [(None,)]


def test_schedules_are_listed_looked_at_and_acted_on(desk: Desk) -> None:
    """A page for each: how it stands, its next ticks, what became of the last ones; and the verbs, each with its reason in the audit."""
    desk.client.create_schedule("every hour/1", dashed.dashed_counts, every=3600, input={"steps": 1}, reason="for the test", actor="bob")
    here = "/schedule?name=every+hour%2F1"
    (listed,) = desk.page("/schedules")["schedules"]
    assert (listed["name"], listed["state"], listed["workflow"], listed["every_s"]) == ("every hour/1", "active", "dashed_counts", 3600.0)
    assert here in Read.of(desk.ann.get("/schedules").text).attributes("a", "href")

    def do(verb: str, **form: str) -> Any:
        return desk.ann.post(f"/schedules/{verb}", {"name": "every%20hour%2F1", "reason": f"{verb} it", **form})

    assert do("pause").headers["location"] == f"{here}&did=pause" and do("pause").headers["location"] == f"{here}&did=unchanged"
    text = Read.of(desk.ann.get(here).text).text
    assert "Paused by ann: pause it" in text and "none while it is paused" in text and "Resume" in text
    assert do("resume").headers["location"] == f"{here}&did=resume"
    assert do("trigger").headers["location"] == f"{here}&did=trigger"
    found = desk.page(here)
    (fire,) = found["fires"]
    assert (fire["kind"], fire["state"]) == ("trigger", "started") and len(found["next"]) == 5 and [each["verb"] for each in found["audit"]][-1] == "schedule_create"
    assert do("backfill", **{"from": "2026-01-01T00:00", "until": "2026-01-01T01:30"}).headers["location"] == f"{here}&did=backfill"
    eventually(lambda: [each["kind"] for each in desk.page(here)["fires"]] == ["trigger", "backfill", "backfill"], 30)
    for wrong in ({"from": "x", "until": "2026-01-01T01:30"}, {"from": "2026-01-01T00:00", "until": "2999-01-01T00:00"}, {}):
        assert do("backfill", **wrong).status == 400, wrong
    run = desk.page(f"/runs/{fire['run_id']}")
    assert run["schedule"]["schedule"] == "every hour/1" and run["schedule"]["kind"] == "trigger"
    assert here in Read.of(desk.ann.get(f"/runs/{fire['run_id']}").text).attributes("a", "href")
    (its_runs,) = {href for href in Read.of(desk.ann.get(here).text).attributes("a", "href") if href.startswith("/runs?q=schedule")}
    started = {each["run_id"] for each in desk.page(here)["fires"]}
    assert {each["run_id"] for each in desk.page(its_runs)["runs"]} == started == {str(each.run_id) for each in desk.client.list(filter='schedule = "every hour/1"')} and len(started) == 3
    assert do("delete").headers["location"] == "/schedules?did=delete" and do("delete").status == 404 and desk.ann.get(here).status == 404
    assert desk.ann.get("/schedule.json?name=gone").json()["error"]["code"] == "schedule_unknown"
    assert do("explode").status == 400 and desk.ann.post("/schedules/pause", {"name": "x", "reason": "x", "csrf": ""}).status == 403
    kept = desk.database.sql("select verb, actor, reason from supervisor.audits where schedule = 'every hour/1' order by n")
    assert kept == [("schedule_create", "bob", "for the test"), *((f"schedule_{verb}", "ann", f"{verb} it") for verb in ("pause", "resume", "trigger", "backfill", "delete"))]


def wrong_of(answer: Any) -> dict[str, str]:
    """What a form says is wrong, by field."""
    return {name: unescape(words).strip() for name, words in re.findall(r'<p id="f-(\w+)-wrong" class="wrong"><span aria-hidden="true">▲</span> (.*?)</p>', answer.text)}


def test_a_schedule_is_made_in_the_browser_after_its_ticks_were_looked_at(desk: Desk) -> None:
    """What is previewed is what is made: the same in the same transaction, rolled back; what is typed otherwise afterwards is looked at again first."""
    assert "/schedules/new" in Read.of(desk.ann.get("/schedules").text).attributes("a", "href")
    form = filled(desk.ann, "/schedules/new", name="nightly/ä", workflow="dashed_counts", cron="30 3 * * *", timezone="Europe/Berlin", input='{"steps": 2}', overlap="buffer_one", priority="7", queue="dashed", attributes='{"team": "x"}')
    looked = desk.ann.post("/schedules/new", {**form, "do": "preview", "reason": ""})
    assert looked.status == 200 and wrong_of(looked) == {} and desk.client.schedules() == []
    text = Read.of(looked.text).text
    assert "Nothing was saved yet" in text and text.count("T03:30:00+0") == 5 and "Create it" in text
    again = {**form, "seen": re.search(r'name="seen" value="(\w+)"', looked.text)[1], "do": "save"}  # type: ignore[index]
    assert wrong_of(desk.ann.post("/schedules/new", {**again, "reason": " "})) == {"reason": "it is empty; say why: it is kept in the audit"}
    assert "T04:30:00+0" in Read.of(desk.ann.post("/schedules/new", {**again, "cron": "30 4 * * *", "reason": "unseen"}).text).text and desk.client.schedules() == []
    assert desk.ann.post("/schedules/new", {**again, "reason": "for the accounts"}).headers["location"] == "/schedule?name=nightly%2F%C3%A4&did=create"
    (made,) = desk.client.schedules()
    assert (made.name, made.workflow, made.cron, made.timezone, made.overlap, made.priority, made.queue) == ("nightly/ä", "dashed_counts", "30 3 * * *", "Europe/Berlin", "buffer_one", 7, "dashed")
    assert (made.input, made.attributes, made.catchup_s, made.jitter_s) == ({"steps": 2}, {"team": "x"}, 3600.0, 0.0)
    assert desk.database.sql("select verb, actor, reason from supervisor.audits where schedule = 'nightly/ä'") == [("schedule_create", "ann", "for the accounts")]
    twice = desk.ann.post("/schedules/new", {**again, "reason": "again"})
    assert twice.status == 400 and "there is a schedule 'nightly/ä' already" in wrong_of(twice)["name"]
    assert "You created it" in Read.of(desk.ann.get("/schedule?name=nightly%2F%C3%A4&did=create").text).text
    desk.client.delete_schedule("nightly/ä")


WRONG = [
    ({"name": ""}, {"name": "its name must be a text of 1 to 200"}),
    ({"workflow": ""}, {"workflow": "choose a workflow"}),
    ({"workflow": "typo"}, {"workflow": "no worker has ever registered a workflow named 'typo'"}),
    ({"cron": "61 * * * *"}, {"cron": "cron '61 * * * *' can't be read: Bad minute; give five fields"}),
    ({"cron": ""}, {"cron": "neither cron= nor every="}),
    ({"every": "60"}, {"cron": "both cron= and every="}),
    ({"cron": "", "every": "0.01"}, {"every": "not between 0.1 s and 366 days"}),
    ({"cron": "", "every": "1e300"}, {"every": "seconds"}),
    ({"timezone": "Europe/Atlantis"}, {"timezone": "there is no time zone 'Europe/Atlantis'; give a name like"}),
    ({"input": "{"}, {"input": "it is no JSON"}),
    ({"input": "[1]"}, {"input": "it is list and no object"}),
    ({"input": '{"stepz": 1}'}, {"input": "stepz: no parameter of it; it takes steps"}),
    ({"input": '{"steps": "\\u0000"}'}, {"input": ""}),
    ({"pass_tick": "tick"}, {"input": "tick: no parameter of it"}),
    ({"overlap": "often"}, {"overlap": "none of skip, allow"}),
    ({"catchup": "1"}, {"catchup": "catchup is 10 s at least, not 1"}),
    ({"jitter": "90000"}, {"jitter": "between 0 and 86400"}),
    ({"jitter": "-1"}, {"jitter": "give seconds (0 or more"}),
    ({"priority": "11"}, {"priority": "not between 0 (first) and 9 (last)"}),
    ({"queue": "q" * 201}, {"queue": "1 to 200 characters"}),
    ({"attributes": '{"": 1}'}, {"attributes": "'' is no name"}),
    ({"starts_at": "tomorrow"}, {"starts_at": "'tomorrow' is no moment; give one like"}),
    ({"starts_at": "2026-12-02", "ends_at": "2026-12-01T00:00Z"}, {"ends_at": "it ends before it begins"}),
    ({"every": "soon", "jitter": "a while", "attributes": "no", "ends_at": "never"}, {"every": "no number", "jitter": "no number", "attributes": "no JSON", "ends_at": "no moment"}),
]


@pytest.mark.parametrize(("typed", "told"), WRONG, ids=[" ".join(f"{name}={value[:20]}" for name, value in typed.items()) for typed, _ in WRONG])
def test_what_is_wrong_is_told_at_its_field_and_nothing_that_was_typed_is_lost(desk: Desk, typed: dict[str, str], told: dict[str, str]) -> None:
    form = {"name": "x", "workflow": "dashed_counts", "cron": "@hourly", "input": '{"steps": 1}', "overlap": "skip", "reason": "typed at length", "do": "preview"} | typed
    answer = desk.ann.post("/schedules/new", form)
    found = wrong_of(answer)
    assert answer.status == 400 and set(found) == set(told), found
    assert all(words in found[name] for name, words in told.items()), found
    read = Read.of(answer.text)
    kept = {attributes["name"]: attributes.get("value") for tag, attributes in read.tags if tag == "input" and "name" in attributes}
    areas = {name: unescape(text) for name, text in re.findall(r'<textarea[^>]* name="([^"]*)"[^>]*>\n?(.*?)</textarea>', answer.text, re.DOTALL)}
    chosen = {attributes["value"] for tag, attributes in read.tags if tag == "option" and "selected" in attributes}
    assert all(value in (kept.get(name), areas.get(name)) or name in ("do", "workflow", "overlap") and (name == "do" or not value or value in chosen) for name, value in form.items())
    marked = {attributes["name"] for _, attributes in read.tags if attributes.get("aria-invalid") == "true"}
    assert marked == set(told) and desk.client.schedules() == []


def test_a_schedule_is_changed_in_the_browser_by_what_is_typed_otherwise(desk: Desk) -> None:
    """And by nothing else: a change that somebody else has made meanwhile is not undone by a form that was opened before."""
    desk.client.create_schedule("changing", dashed.dashed_counts, every=3600, input={"steps": 1}, queue="dashed", attributes={"a": 1.0}, starts_at=datetime(2026, 1, 1, tzinfo=UTC))
    here = "/schedule/change?name=changing"
    assert here in Read.of(desk.ann.get("/schedule?name=changing").text).attributes("a", "href")
    form = filled(desk.ann, here)
    assert (form["every"], form["starts_at"], form["queue"], form["cron"], form["workflow"]) == ("3600", "2026-01-01T00:00:00", "dashed", "", "dashed_counts") and "name" not in form
    nothing = desk.ann.post(here, {**form, "do": "preview"})
    assert nothing.status == 400 and "nothing to change" in Read.of(nothing.text).text
    typed = {**form, "every": "", "cron": "@daily", "queue": "", "reason": "once a day will do"}
    looked = desk.ann.post(here, {**typed, "do": "preview"})
    text = Read.of(looked.text).text
    assert text.count("T00:00:00+00:00") == 5 and "What is changed" in text and desk.client.schedule("changing").every_s == 3600
    seen = re.search(r'name="seen" value="(\w+)"', looked.text)[1]  # type: ignore[index]
    desk.client.change_schedule("changing", jitter=30, actor="bob")
    met = desk.ann.post(here, {**typed, "seen": seen, "do": "save"})
    assert met.status == 400 and "somebody has changed it since this form was opened" in Read.of(met.text).text and "jitter" in Read.of(met.text).text and "once a day will do" in met.text
    assert desk.client.schedule("changing").cron is None
    of = re.search(r'name="of" value="([^"]+)"', met.text)[1]  # type: ignore[index]
    answer = desk.ann.post(here, {**typed, "jitter": "30", "of": unescape(of), "seen": seen, "do": "save"})
    assert answer.headers["location"] == "/schedule?name=changing&did=change"
    found = desk.client.schedule("changing")
    assert (found.cron, found.every_s, found.queue, found.jitter_s, found.attributes, found.input) == ("@daily", None, None, 30.0, {"a": 1.0}, {"steps": 1})
    verb, actor, reason, details = desk.database.sql("select verb, actor, reason, details from supervisor.audits where schedule = 'changing' order by n desc limit 1")[0]
    assert (verb, actor, reason, set(details)) == ("schedule_change", "ann", "once a day will do", {"schedule", "cron"}), "what is no more is left out of an audit"
    desk.client.delete_schedule("changing")
    assert desk.ann.post(here, {**typed, "do": "save"}).status == 404 and desk.ann.get(here).status == 404


def test_a_form_for_a_schedule_behind_a_lock_keeps_what_was_typed(desk: Desk) -> None:
    desk.client.create_schedule("locked", dashed.dashed_counts, every=3600, input={"steps": 1})
    form = filled(desk.ann, "/schedule/change?name=locked", every="1800", reason="twice as often", do="preview")
    with desk.database.connect() as conn, conn.transaction():
        conn.execute("select from supervisor.schedule for update")
        answer = desk.ann.post("/schedule/change?name=locked", form)
    assert answer.status == 409 and f"given up after {PATIENCE_S:g} s" in Read.of(answer.text).text and 'value="twice as often"' in answer.text and 'value="1800"' in answer.text
    for path in ("/schedules/new", "/schedule/change?name=locked"):
        assert desk.ann.post(path, {**form, "csrf": "wrong"}).status == 403 and desk.ann.post(path, form, Origin="http://evil.example").status == 403
        assert desk.ann.ask("POST", path, b"x=1", {"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://127.0.0.1"}).status == 403
    desk.client.delete_schedule("locked")


def test_long_lists_of_schedules_and_of_fires_go_on_by_key(desk: Desk) -> None:
    """A schedule of a year has thousands of ticks; none is left out between two pages, one that was missed and fired afterwards neither."""
    sql = desk.database.sql
    sql("insert into supervisor.schedule (name, workflow, every_us, due_at) select 'many-' || lpad(n::text, 4, '0'), 'dashed_counts', 3600000000, 'infinity' from generate_series(1, 150) n")
    sql("insert into supervisor.schedule_fire (schedule, tick_at, id, kind, state) select 'many-0001', timestamptz '2026-01-01Z' + n * interval '1 h', supervisor.new_id(), 1, 3 from generate_series(1, 250) n")
    sql("insert into supervisor.schedule_miss (schedule, from_at, until_at, ticks) select 'many-0001', timestamptz '2026-01-01Z' + 151 * interval '1 h', timestamptz '2026-01-01Z' + 151 * interval '1 h', 1")

    def walked(path: str, key: str) -> list[Any]:
        found = []
        while path:
            page = desk.page(path)
            found += page[key]
            path = next((href for href in Read.of(desk.ann.get(path).text).attributes("a", "href") if ".json" not in href and ("after=" in href or "before=" in href)), "")
        return found

    assert [each["name"] for each in walked("/schedules", "schedules")] == [f"many-{n:04}" for n in range(1, 151)]
    fires = walked("/schedule?name=many-0001", "fires")
    assert len(fires) == 251 and len({(each["tick_at"], each["state"]) for each in fires}) == 251
    sql("delete from supervisor.schedule")


def test_a_viewer_pauses_no_queue_and_no_schedule(desk: Desk, tmp_path: Any) -> None:
    login = f"dashed_switches_{os.getpid()}"
    desk.database.sql(f"create role {login} login; grant supervisor_viewer to {login}")
    desk.client.create_schedule("seen", dashed.dashed_counts, every=3600, input={"steps": 1})
    try:
        with served(tmp_path, psycopg.conninfo.make_conninfo(desk.database.dsn, user=login)) as made:
            visitor = made.visitor()
            for path in ("/queues", "/schedules", "/schedule?name=seen"):
                answer = visitor.get(path)
                assert answer.status == 200 and 'action="/queues/' not in answer.text and 'action="/schedules/' not in answer.text
                assert "/schedules/new" not in answer.text and "/schedule/change" not in answer.text
            for path in ("/schedules/new", "/schedule/change?name=seen"):
                assert visitor.get(path).status == 403
                for do in ("preview", "save"):
                    assert visitor.post(path, {"name": "mine", "schedule": "seen", "workflow": "dashed_counts", "cron": "@hourly", "input": '{"steps": 1}', "reason": "x", "do": do}).status == 403
            assert visitor.post("/queues/pause", {"name": "dashed", "reason": "x"}).status == 403
            for verb in ("pause", "resume", "trigger", "delete"):
                assert visitor.post(f"/schedules/{verb}", {"name": "seen", "reason": "x"}).status == 403
    finally:
        desk.database.sql(f"drop owned by {login}; drop role {login}")
    assert desk.client.schedule("seen").state == "active" and desk.database.sql("select from supervisor.audits where actor = 'x' or reason = 'x'") == []
    desk.client.delete_schedule("seen")
