"""`list`, `show`, `cancel` and `queues`: what they find, what they tell, what they refuse, and that nothing in it acts on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import Client, RunCancelled
from supervisor.dashboard.page import url
from tests.acceptance.terminal import drawn_until_q
from tests.acceptance.test_workers import command
from tests.acceptance.visits import Read, served
from tests.apps import reading
from tests.conformance.filling import MADE
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually

APP = "tests.apps.reading"
HOSTILE = 'e\x1b[2J\x07"\u202e;\n%s$1'


def listed(database: Database, *words: str, folder: Path) -> list[dict[str, Any]]:
    made = command(database, "list", "--json", *words, folder=folder)
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in made.stdout.splitlines()]


def registered(database: Database, *names: str) -> None:
    """Workflows as if a worker had registered them."""
    database.sql("insert into supervisor.queue (name) values ('reading') on conflict do nothing")
    for name in names:
        database.sql("insert into supervisor.workflow (name, queue) select %s, id from supervisor.queue where name = 'reading'", name)


def started(database: Database, workflow: str, **more: Any) -> str:
    extra = "".join(f", {name} => %s" for name in more)
    return str(database.one(f"select supervisor.start(%s{extra})", workflow, *more.values()))


# ── list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_what_a_filter_asks_for(database: Database, tmp_path: Path) -> None:
    """In words of the shell or as an option, with the short options beside it: all of them hold."""
    registered(database, "checkout", "report")
    mine = started(database, "checkout", key="order-1", attributes='{"tenant": "a"}', batch="nightly")
    started(database, "checkout", key="other-2", attributes='{"tenant": "b"}')
    started(database, "report", key="order-1")
    for words in (
        ["workflow = checkout AND key ^= order-"],
        ["workflow", "=", "checkout", "AND", "key", "^=", "order-"],
        ["--filter", 'attribute.tenant = "a"'],
        ["batch = nightly"],
        ["--workflow", "checkout", "--key", "order-1"],
        ["--workflow", "checkout", "key ~ ORDER"],
    ):
        (row,) = listed(database, *words, folder=tmp_path)
        assert row["run_id"] == mine, words
    assert (row["key"], row["workflow"], row["queue"], row["status"], row["wait"]) == ("order-1", "checkout", "reading", "ready", "no_worker")
    assert (row["attributes"], row["batch"], row["error"], row["ended_at"]) == ({"tenant": "a"}, "nightly", None, None)
    assert row["created_at"].endswith("Z") and "T" in row["created_at"]
    text = command(database, "list", "key ^= order- AND workflow = checkout", folder=tmp_path).stdout
    assert mine in text and ("now" in text or " ago" in text) and len(text.splitlines()) == 2
    nothing = command(database, "list", "status = failed", folder=tmp_path)
    assert (nothing.returncode, nothing.stdout) == (0, "") and "no runs that fit" in nothing.stderr


def test_pages_hold_every_run_once(database: Database, tmp_path: Path) -> None:
    """Newest first; what starts meanwhile is on no later page."""
    registered(database, "checkout")
    made = [started(database, "checkout") for _ in range(25)]
    seen: list[str] = []
    after: list[str] = []
    while page := listed(database, "--limit", "10", *after, "workflow = checkout", folder=tmp_path):
        seen += [row["run_id"] for row in page]
        after = ["--after", page[-1]["run_id"]]
        started(database, "checkout")
    assert seen == sorted(made, reverse=True)
    said = command(database, "list", "--limit", "10", folder=tmp_path)
    assert said.stderr == f"older ones: --after {said.stdout.splitlines()[-1].split()[0]}\n"


class Watching:
    """A command with --watch that goes on in the background, and what it has printed so far."""

    def __init__(self, database: Database, folder: Path, *words: str) -> None:
        self._told, self._talk = folder / "told", folder / "talk"
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
        with self._told.open("w") as out, self._talk.open("w") as err:
            self.process = subprocess.Popen([sys.executable, "-m", "supervisor", *words, "--watch", "--interval", "0.1"], cwd=folder, env=environ, stdout=out, stderr=err)

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        """^C ends it, and that is no failure."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0, self.talk()

    def text(self) -> str:
        return self._told.read_text()

    def talk(self) -> str:
        return self._talk.read_text()

    def rows(self) -> list[dict[str, Any]]:
        """With --json: its whole lines."""
        return [json.loads(line) for line in self.text().rpartition("\n")[0].splitlines()]


def test_where_many_keys_begin_so_what_was_found_in_time_is_shown_and_where_to_go_on(database: Database, tmp_path: Path) -> None:
    """Nothing of it is lost: page after page they are all found, by the command and in the browser, and none of them is said to be all."""
    registered(database, "filled")
    with database.connect() as conn:
        conn.execute(MADE, (40_000,))
        conn.execute("insert into supervisor.run (run_id, workflow, queue, prio, key, input) select id, 1, 1, 5, 'many-' || n, convert_to(json_build_object('n', n)::text, 'UTF8') from made")
        conn.execute("insert into supervisor.outcome (run_id, ended_at, worker, steps, status) select id, now(), 1, 3, 1 from made")
        wanted = [str(run) for (run,) in conn.execute("select id from made where n in (1, 20000, 40000) order by id desc").fetchall()]
    asked = "key ^= many- AND input.n in (1, 20000, 40000)"
    found, after, turns = list[str](), None, 0
    while turns == 0 or after:
        made = command(database, "list", asked, "--json", "--timeout", "0.4", *(["--after", after] if after else []), folder=tmp_path)
        assert made.returncode == 0, made.stderr
        found += [json.loads(line)["run_id"] for line in made.stdout.splitlines()]
        after, turns = (made.stderr.strip().rpartition("--after ")[2] if "not all was looked at" in made.stderr else None), turns + 1
    assert found == wanted and turns > 1
    with served(tmp_path / "dashboard", database.dsn, "--timeout", "0.4") as dashboard:
        ann = dashboard.visitor()
        page = ann.get(url("/runs", q=asked))
        text = Read.of(page.text).text
        assert page.status == 200 and "at least these: not all was looked at" in text
        found, path = [], url("/runs.json", q=asked)
        while path:
            got = ann.get(path).json()
            found, path = [*found, *(each["run_id"] for each in got["runs"])], got["next"]
            assert got["complete"] == (path is None)
        assert found == wanted


def test_watch_tells_what_changes(database: Database, tmp_path: Path) -> None:
    """With --json one line when a run is new and one each time that it is another; ^C ends it, and that is no failure."""
    registered(database, "checkout")
    first = started(database, "checkout")
    with Watching(database, tmp_path, "list", "--json") as watching:
        lines = lambda: [(row["run_id"], row["status"]) for row in watching.rows()]  # noqa: E731
        eventually(lambda: lines() == [(first, "ready")], 30)
        second = started(database, "checkout")
        eventually(lambda: lines()[1:] == [(second, "ready")], 30)
        database.sql("select supervisor.cancel(%s::uuid)", first)
        eventually(lambda: lines()[2:] == [(first, "cancelled")], 30)


def test_queues_are_watched(database: Database, tmp_path: Path) -> None:
    """A line for the queue that changed, and none for the other."""
    registered(database, "checkout")
    started(database, "checkout", queue="bulk")
    with Watching(database, tmp_path, "queues", "--json") as watching:
        lines = lambda: [(row["queue"], row["ready"]) for row in watching.rows()]  # noqa: E731
        eventually(lambda: lines() == [("bulk", 1), ("reading", 0)], 30)
        started(database, "checkout", queue="bulk")
        eventually(lambda: lines()[2:] == [("bulk", 2)], 30)


def test_workers_are_watched(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """Who comes, and how one died, beside whatever else runs on this host."""
    with Watching(database, tmp_path, "workers", "--json") as watching:
        host = hosts.start(APP, procs=1).wait_up(1)

        def workers() -> list[dict[str, Any]]:
            supervisors = [each for row in watching.rows() for place in row["hosts"] for each in place["supervisors"] if each["pid"] == host.pid]
            return [worker for each in supervisors for worker in each["workers"]]

        (pid,) = host.worker_pids()
        eventually(lambda: any(worker["pid"] == pid for worker in workers()), 30)
        host.kill_worker(pid)
        eventually(lambda: any((worker["last_crash"] or {}).get("pid") == pid for worker in workers()), 30)


def test_show_is_watched_until_the_run_has_ended(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Nothing can change any more then, so it ends by itself; the last line is how the run ended."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(reading.reads_gate.options(key="gated"), "open")
        with Watching(database, tmp_path, "show", "gated", "--json") as watching:
            eventually(lambda: any(row["executing"] for row in watching.rows()), 30)
            effects.open("open")
            assert watching.process.wait(30) == 0
        last = watching.rows()[-1]
        assert (last["run_id"], last["status"], last["result"]) == (str(run.id), "completed", "open")
        assert [row["status"] for row in watching.rows()].count("completed") == 1
    missing = command(database, "show", "nobody", "--watch", folder=tmp_path)
    assert missing.returncode == 1 and "'nobody'" in missing.stderr


def test_what_was_watched_stays_on_the_terminal(database: Database, tmp_path: Path) -> None:
    """The screen is given back when the run has ended, and how it ended stands below."""
    registered(database, "checkout")
    run = started(database, "checkout")
    database.sql("select supervisor.cancel(%s::uuid, 'not wanted')", run)
    drawn = drawn_until_q(database, tmp_path, "show", run, "--watch", "--interval", "0.1", wanted=b"not wanted", times=1)
    assert drawn.index(b"\x1b[?1049l") < drawn.index(b"RunCancelled: not wanted")


@pytest.mark.parametrize("words", [("queues",), ("workers",)], ids=lambda words: words[0])
def test_others_are_drawn_until_q(words: tuple[str, ...], hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """As `list` is: again and again, and nothing in it acts on the terminal."""
    hosts.start(APP, procs=1).wait_up(1)
    database.sql("insert into supervisor.queue (name) values (%s)", HOSTILE)
    wanted = b"reading" if words == ("queues",) else b"supervisor"
    drawn = drawn_until_q(database, tmp_path, *words, "--watch", "--interval", "0.1", wanted=wanted, times=3)
    assert b"\x07" not in drawn


def test_watch_goes_on_after_an_outage(own_server: Server, tmp_path: Path) -> None:
    """In a pipe one table after the other; while the database is away it says so and goes on trying."""
    database = own_server.database()
    registered(database, "checkout")
    run = started(database, "checkout")
    with Watching(database, tmp_path, "list") as watching:
        eventually(lambda: watching.text().count(run) >= 2, 30)
        own_server.embedded.stop("immediate")
        eventually(lambda: "trying again" in watching.talk(), 30)
        own_server.embedded.start()
        seen = watching.text().count(run)
        eventually(lambda: watching.text().count(run) > seen, 60)


def test_watch_on_a_terminal_ends_with_q(database: Database, tmp_path: Path) -> None:
    """It draws again and again, and leaves the terminal as it was."""
    registered(database, "checkout")
    started(database, "checkout", key=HOSTILE.replace("\n", ""))
    drawn = drawn_until_q(database, tmp_path, "list", "--watch", "--interval", "0.1", "status = ready", wanted=b"checkout", times=3)
    assert b"\x07" not in drawn and b"\x1b[2J\\x07" not in drawn and rb"\x1b[2J" in drawn


# ── who may, and what acts on a terminal ─────────────────────────────────────────────────────────────────────────


def as_role(database: Database, *roles: str) -> Database:
    """The database as a role that was granted *roles* sees it."""
    name = f"reader_{uuid.uuid4().hex[:8]}"
    database.sql(f"create role {name} login")
    for role in roles:
        database.sql(f"grant supervisor_{role} to {name}")
    return Database(database.server, database.name, psycopg.conninfo.make_conninfo(database.dsn, user=name))


MAY = [
    (("list",), ("viewer", "operator")),
    (("list", "wait = no_worker and key = k"), ("viewer", "operator")),
    (("list", "error ~ x or parent is null or batch = b or attribute.x = 1"), ("viewer", "operator")),
    (("show", "k"), ("viewer", "operator")),
    (("queues",), ("viewer", "operator")),
    (("workers",), ("viewer", "operator")),
    (("cancel", "k"), ("client", "operator")),
    (("cancel", "--filter", "key = k"), ("viewer", "operator")),
    (("cancel", "--filter", "key = k", "--yes"), ("operator",)),
]


@pytest.mark.parametrize(("words", "roles"), MAY, ids=lambda value: " ".join(value))
def test_who_may_and_who_is_told_what_is_missing(words: tuple[str, ...], roles: tuple[str, ...], database: Database, tmp_path: Path) -> None:
    """One role is enough; without it there are at most three lines, which name the grant, and exit code 77."""
    registered(database, "checkout")
    for role in ("client", "viewer", "operator"):
        started(database, "checkout", key="k", on_conflict="restart_failed")
        made = command(as_role(database, role), *words, folder=tmp_path)
        if role in roles:
            assert made.returncode == 0, f"{role}: {made.stderr}"
        else:
            assert made.returncode == 77, f"{role}: {made.stdout}{made.stderr}"
            assert len(made.stderr.splitlines()) <= 3 and 'GRANT "supervisor_' in made.stderr


def test_nothing_from_the_database_acts_on_a_terminal(database: Database, tmp_path: Path) -> None:
    """Names, keys, errors and inputs are whatever somebody sent."""
    registered(database, HOSTILE)
    database.sql("update supervisor.queue set name = %s", HOSTILE)
    run = started(database, HOSTILE, key=HOSTILE, attributes=json.dumps({"odd": HOSTILE}), batch=HOSTILE)  # a name of an attribute is refused where it can't be shown
    quoted = '"' + HOSTILE.replace('"', '\\"') + '"'
    (row,) = listed(database, f"key = {quoted} AND attribute.odd = {quoted} AND batch = {quoted}", folder=tmp_path)
    assert (row["run_id"], row["key"]) == (run, HOSTILE)
    said = [command(database, *words, folder=tmp_path) for words in (["list"], ["list", "--json"], ["queues"], ["queues", "--json"], ["show", HOSTILE], ["show", run, "--json"],
            ["cancel", "--filter", "age < 1h"], ["cancel", run, "--reason", HOSTILE], ["list"], ["show", run], ["list", HOSTILE], ["show", HOSTILE + "x"], ["cancel", HOSTILE + "x"])]  # fmt: skip
    for made in said:
        text = made.stdout + made.stderr
        assert text and not any(char != "\n" and not char.isprintable() for char in text), made.args


DEEP = b'{"a":' * 32 + b"[" * 32 + b"1" + b"]" * 32 + b"}" * 32
LARGE = b'"' + b"x" * (2 << 20) + b'"'
PAYLOADS = {  # what somebody may have stored: by a codec, by SQL, by a fault of the disk
    "controls": json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False).encode(), "deep": DEEP, "large": LARGE, "spaced": b'{ "a" :\n\t1\r\n}',
    "not UTF-8": b'"\xff\x1b[2J"', "not JSON": b"\x00\x1b[31m{", "cut off": b'{"a": [1, 2', "empty": b"", "too deep": b"[" * 5000 + b"]" * 5000,
    "no number": b"1e400", "NUL": b'"\\u0000"', "half a pair": b'"\\ud800"', "error": json.dumps({"type": "shop.Bad" + HOSTILE, "message": HOSTILE * 1000}).encode(),
    "odd error": b'{"type": {"x": 1}, "message": ["\xc2\x9b2J", null]}', "large error": b'{"type": "shop.Bad", "message": ' + LARGE + b', "args": [' + LARGE + b"]}",
}  # fmt: skip


def acts_on_a_terminal(text: str) -> list[str]:
    return [char for char in text if char != "\n" and (not char.isprintable() or unicodedata.category(char) == "Cf")]


@pytest.fixture(scope="module")
def hostile(server: Server) -> Iterator[Database]:
    """Runs whose every text and payload is hostile, two for each payload: one that completed with it and one that it ended."""
    database = server.database()
    registered(database, HOSTILE)
    database.sql("update supervisor.queue set name = %s", HOSTILE)
    for name, payload in PAYLOADS.items():
        for status in (1, 2):
            run = started(database, HOSTILE, key=f"{name} {status} {HOSTILE}", batch=HOSTILE)
            database.sql("update supervisor.run set input = %s, attributes = %s where run_id = %s", payload, payload, run)
            database.sql("insert into supervisor.step values (%s, now(), now(), 0, 0, 1, 1, %s, %s, %s)", run, status, HOSTILE, payload)
            database.sql("insert into supervisor.attempt values (%s, 1, 1, 1, now(), now(), now(), 1, %s, %s, %s)", run, HOSTILE, payload, HOSTILE)
            if name != "deep" or status == 1:
                database.sql("delete from supervisor.task where run_id = %s", run)
                database.sql("insert into supervisor.outcome values (%s, now(), 1, 1, %s, %s, %s, %s)", run, status, payload, HOSTILE, payload)
    # the one that lives: parked as poison, with a detail of the same kind
    detail = json.dumps({"crashes": 3, "signal": HOSTILE, "exit_code": None, "step": HOSTILE, "seq": 0, "worker": 1, "pid": 1, "host": HOSTILE, "log": [HOSTILE], "traceback": HOSTILE})
    database.sql("update supervisor.task set wait_kind = 21, ready_at = 'infinity', step = %s, seq = 0, wait_detail = %s", HOSTILE, detail)
    yield database
    database.drop()


def test_list_of_hostile_rows(hostile: Database, tmp_path: Path) -> None:
    """Every run has its line, whatever is in it; the lines stay short, and those of JSON are JSON."""
    made = command(hostile, "list", "--limit", "100", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert len(lines) == 1 + 2 * len(PAYLOADS) and max(map(len, lines)) < 500 and not acts_on_a_terminal(made.stdout + made.stderr)
    rows = listed(hostile, "--limit", "100", folder=tmp_path)
    assert len(rows) == 2 * len(PAYLOADS) and {row["workflow"] for row in rows} == {HOSTILE}
    by_key = {row["key"].removesuffix(f" {HOSTILE}"): row for row in rows}
    assert by_key["error 2"]["error"]["message"] == (HOSTILE * 1000)[:1000] and by_key["not JSON 2"]["error"] is None
    assert by_key["controls 1"]["attributes"] == {HOSTILE: HOSTILE} and by_key["not UTF-8 1"]["attributes"]["bytes"] == 7
    # and filters on what can't be read find what can
    found = listed(hostile, "--limit", "100", "error ~ shop.bad", folder=tmp_path)
    assert {row["key"].split()[0] for row in found} == {"error", "large"}
    quoted = '"' + HOSTILE.replace('"', '\\"') + '"'
    assert [row["key"].split()[0] for row in listed(hostile, f"attribute.{quoted} ~ e AND status = completed", folder=tmp_path)] == ["controls"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_show_of_hostile_rows(hostile: Database, tmp_path: Path, name: str) -> None:
    """In words a page, in JSON all of it."""
    for status in (1, 2):
        key = f"{name} {status} {HOSTILE}"
        made = command(hostile, "show", key, folder=tmp_path)
        assert made.returncode == 0, made.stderr
        assert not acts_on_a_terminal(made.stdout + made.stderr) and len(made.stdout) < 20_000
        told = command(hostile, "show", key, "--json", folder=tmp_path)
        assert told.returncode == 0, told.stderr
        found = json.loads(told.stdout)
        assert found["key"] == key and found["history"][0]["name"] == HOSTILE and told.stdout.isascii()


def test_queues_and_dry_runs_of_hostile_rows(hostile: Database, tmp_path: Path) -> None:
    for words in (("queues",), ("queues", "--json"), ("cancel", "--filter", "age < 1d"), ("cancel", "--filter", "age < 1d", "--json")):
        made = command(hostile, *words, folder=tmp_path)
        assert made.returncode == 0 and made.stdout and not acts_on_a_terminal(made.stdout + made.stderr)


def test_results_of_hostile_rows(hostile: Database, tmp_path: Path) -> None:
    """A line is a line and JSON, whatever is stored; what can't be read says so; on a terminal nothing of it acts."""
    made = command(hostile, "results", "--batch", HOSTILE, "--failed-too", "--output", "out.jsonl", folder=tmp_path)
    assert made.returncode == 1, "one has not ended"
    assert not acts_on_a_terminal(made.stdout + made.stderr)
    lines = (tmp_path / "out.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")
    assert len(lines) == 2 * len(PAYLOADS) - 1
    told = {}
    for line in lines:
        row = json.loads(line)
        name, status, _ = row["key"].rsplit(" ", 2)
        told[name, status] = row["result"] if status == "1" else row["error"]
    assert told["controls", "1"] == {HOSTILE: HOSTILE} and told["spaced", "2"] == {"a": 1} and len(told["large", "1"]) == 2 << 20
    assert json.dumps(told["deep", "1"], separators=(",", ":")).encode() == DEEP
    unreadable = {name for (name, _), value in told.items() if isinstance(value, dict) and "unreadable" in value}
    assert unreadable == {"not UTF-8", "not JSON", "cut off", "too deep", "half a pair", "empty"}
    here, there = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": hostile.dsn}
    process = subprocess.Popen([sys.executable, "-m", "supervisor", "results", "--batch", HOSTILE, "--failed-too"], env=environ, stdout=there, stderr=subprocess.DEVNULL)
    os.close(there)
    drawn = b""
    with suppress(OSError):  # EIO: the other end is closed
        while part := os.read(here, 65_536):
            drawn += part
    os.close(here)
    assert process.wait(60) == 1
    assert not acts_on_a_terminal(drawn.replace(b"\r\n", b"\n").decode()) and drawn.isascii()
    assert [json.loads(line) for line in drawn.splitlines()] == [json.loads(line) for line in lines]


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_says_what_a_run_does_now(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """What executes at this moment, for how long and where; the steps before it; in JSON the same with ISO times."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(reading.reads_gate.options(key="gated"), "open")
        eventually(lambda: effects.count("read_gate"), 30)
        text = command(database, "show", "gated", folder=tmp_path).stdout
        assert f"run {run.id} of reads_gate, key gated" in text and "running" in text
        assert "executes read_gate (seq 1, thread) for" in text and "what frees it: " in text
        found = json.loads(command(database, "show", str(run.id), "--json", folder=tmp_path).stdout)
        (executing,) = found["executing"]
        assert (executing["step"], executing["seq"]) == ("read_gate", 1) and executing["for_s"] > 0
        assert [(each["name"], each["status"], each["result"]) for each in found["history"]] == [("quick", "completed", 2)]
        assert found["history"][0]["started_at"].endswith("Z") and found["children"] == []
        effects.open("open")
        assert run.result(timeout=30) == "open"
    text = command(database, "show", "gated", folder=tmp_path).stdout
    assert "completed" in text and 'result "open"' in text and "read_gate" in text


def test_show_says_why_a_run_waits_and_what_frees_it(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """Since when, until when, and the error that it waits after."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        paying, sleeping = client.start(reading.pays, 7), client.start(reading.reading_sleeps, 7200)
        eventually(lambda: paying.status().wait == "step_backoff" and sleeping.status().wait == "timer", 30)
    text = command(database, "show", str(paying.id), folder=tmp_path).stdout
    assert "waiting at step unpaid (seq 0, attempt 2): a step failed and is retried later [step_backoff], since" in text
    assert "what frees it: in " in text and "its last error: ConnectionError: the payment service is down for 7" in text
    assert "not yet" in text
    text = command(database, "show", str(sleeping.id), folder=tmp_path).stdout
    assert "it sleeps [timer]" in text and "what frees it: in 1 h 59 min" in text
    found = json.loads(command(database, "show", str(sleeping.id), "--json", folder=tmp_path).stdout)
    assert found["why"]["code"] == "timer" and found["why"]["wake_at"].endswith("Z")


def test_show_lists_the_children(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """How many stand where; those that live and those that failed before the others; and `list` finds them all."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        parent = client.start(reading.read_parent, 30, "open")
        eventually(lambda: effects.count("read_gate"), 60)
        text = command(database, "show", str(parent.id), folder=tmp_path).stdout
        assert "it waits for child runs [child]" in text and "children: 29 completed, " in text and "1 running" in text and "1 failed" in text
        shown = [line.split() for line in text.partition("children: ")[2].splitlines()[2:]]
        assert [line[3] for line in shown[:3]] == ["running", "failed", "completed"] and len(shown) == 20 + 1
        assert f"list 'parent = {parent.id}'" in text
        found = json.loads(command(database, "show", str(parent.id), "--json", folder=tmp_path).stdout)
        rows = listed(database, f"parent = {parent.id}", "--limit", "100", folder=tmp_path)
        assert {each["run_id"] for each in found["children"]} == {row["run_id"] for row in rows} and len(rows) == 31
        (bad,) = listed(database, f"parent = {parent.id} AND status = failed", folder=tmp_path)
        assert bad["error"] == {"type": "builtins.LookupError", "message": "child 3 found nothing"}
        effects.open("open")
        parent.result(timeout=60)


def test_an_id_makes_a_good_key(database: Database, tmp_path: Path) -> None:
    """Orders have uuids. A run's own id goes first."""
    registered(database, "checkout")
    one = started(database, "checkout")
    order = str(uuid.uuid4())
    two, three = started(database, "checkout", key=order), started(database, "checkout", key=one)
    assert f"run {two}" in command(database, "show", order, folder=tmp_path).stdout
    assert f"run {one}" in command(database, "show", one, folder=tmp_path).stdout
    assert command(database, "cancel", order, folder=tmp_path).stdout == f"cancelled {two}\n"
    assert three
    missing = command(database, "show", str(uuid.uuid4()), folder=tmp_path)
    assert missing.returncode == 1 and len(missing.stderr.splitlines()) <= 3 and "there is no run" in missing.stderr


# ── cancel ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_ends_a_run_and_whoever_waits_is_told_why(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Also one whose step executes: that is told, and what it returns is recorded nowhere."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run, sleeping = client.start(reading.reads_gate.options(key="c"), "open"), client.start(reading.reading_sleeps, 3600)
        eventually(lambda: effects.count("read_gate"), 30)
        made = command(database, "cancel", "c", str(sleeping.id), "--reason", "not wanted any more", folder=tmp_path)
        assert made.returncode == 0 and re.fullmatch("".join(rf"(cancelled {each.id}|asked {each.id} to end: its code is told, and ends it)\n" for each in (run, sleeping)), made.stdout)
        for each in (run, sleeping):
            with pytest.raises(RunCancelled):
                each.result(timeout=10)
        (row,) = listed(database, "error ~ 'not wanted' AND key = c", folder=tmp_path)
        assert row["status"] == "cancelled"
        effects.open("open")
        assert client.start(reading.read_child, 5).result(timeout=30) == 6
        again = command(database, "cancel", "c", "--json", folder=tmp_path)
        assert again.returncode == 1 and json.loads(again.stdout) == {"run_id": str(run.id), "cancelled": False, "ended": True}
    assert database.one("select count(*) from supervisor.steps where run_id = %s and status = 'completed' and kind = 'step'", run.id) == 1


def test_a_parent_is_told_of_a_child_that_was_cancelled(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        parent = client.start(reading.waits_for_child, "never")
        eventually(lambda: effects.count("read_gate"), 30)
        made = command(database, "cancel", "--filter", f"parent = {parent.id}", "--yes", "--reason", "the child is not wanted", folder=tmp_path)
        assert (made.returncode, made.stdout) == (0, "asked 1 run to end\n")
        assert "the child is not wanted" in parent.result(timeout=30)
    effects.open("never")


def test_cancel_by_filter_counts_first(database: Database, tmp_path: Path) -> None:
    """Without --yes nothing is done; with it what fits and lives is ended, and nothing else."""
    registered(database, "checkout", "report")
    for n in range(30):
        started(database, "checkout", attributes=json.dumps({"n": n}))
    other = started(database, "report")
    live = "select count(*) from supervisor.task"
    words = ("cancel", "--filter", "workflow = checkout AND attribute.n >= 10")
    dry = command(database, *words, folder=tmp_path)
    assert dry.returncode == 0 and dry.stdout.splitlines()[0].split() == ["20", "ready", "checkout"] and "20 runs that would be asked to end, nothing was done" in dry.stderr
    for more in ((), ("--dry-run",)):
        counted = json.loads(command(database, *words, *more, "--json", folder=tmp_path).stdout)
        assert (counted["verb"], counted["would_do"], counted["counts"]) == ("cancel", 20, [{"workflow": "checkout", "status": "ready", "runs": 20}])
        newest = [row["run_id"] for row in listed(database, words[2], "--limit", "3", folder=tmp_path)]
        assert [row["run_id"] for row in counted["examples"]] == newest and all(each in dry.stdout for each in newest), "some are shown, the newest"
    assert database.one(live) == 31
    done = command(database, *words, "--yes", "--reason", "a test", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "asked 20 runs to end\n") and database.one(live) == 11
    assert len(listed(database, "status = cancelled AND error ~ 'a test'", "--limit", "100", folder=tmp_path)) == 20
    assert "no live run fits" in command(database, *words, folder=tmp_path).stderr
    assert listed(database, "workflow = report", folder=tmp_path)[0]["run_id"] == other


def test_cancel_by_filter_goes_by_slices(database: Database, tmp_path: Path) -> None:
    """1,200 runs are three transactions; with --json there is a line for each run."""
    registered(database, "checkout")
    database.sql("select supervisor.start_many('checkout', array(select '{}'::jsonb from generate_series(1, 1200)))")
    database.sql(f"alter database {database.name} set track_functions = 'all'")
    made = command(database, "cancel", "--filter", "workflow = checkout", "--yes", "--json", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    *told, summary = [json.loads(line) for line in made.stdout.splitlines()]
    assert len({row["run_id"] for row in told}) == len(told) == 1200 and all((row["done"], row["state"]) == (True, "cancelled") for row in told)
    assert {**summary, "seconds": 0} == {"verb": "cancel", "found": 1200, "done": 1200, "refused": 0, "locked": 0, "interrupted": False, "seconds": 0}
    assert database.one("select count(*) from supervisor.outcome where status = 3") == 1200 and database.one("select count(*) from supervisor.task") == 0
    calls = "select funcname, calls from pg_stat_user_functions where schemaname = 'supervisor' and funcname = 'cancel_many'"
    eventually(lambda: database.sql(calls) == [("cancel_many", 3)], 20)


def test_what_others_have_locked_is_said_and_the_rest_cancelled(database: Database, tmp_path: Path) -> None:
    """It waits for nobody's transaction; exit code 1 says that not all is done, and the same command does the rest."""
    registered(database, "checkout")
    runs = [started(database, "checkout") for _ in range(30)]
    words = ("cancel", "--filter", "workflow = checkout", "--yes")
    with database.connect() as other, other.transaction():
        other.execute("select from supervisor.task where run_id = %s for update", (runs[7],))
        made = command(database, *words, folder=tmp_path)
        assert (made.returncode, made.stdout) == (1, "asked 29 runs to end\n")
        assert "locked" in made.stderr and "1 run;" in made.stderr and len(made.stderr.splitlines()) <= 3
        told = command(database, *words, "--json", folder=tmp_path)
        locked, summary = map(json.loads, told.stdout.splitlines())
        assert (told.returncode, locked["run_id"], locked["done"], locked["state"]) == (1, runs[7], False, "locked")
        assert (summary["found"], summary["done"], summary["locked"]) == (1, 0, 1)
    assert command(database, *words, folder=tmp_path).stdout == "asked 1 run to end\n"


@pytest.mark.parametrize("words", [(), ("x", "--filter", "key = a")], ids=["nothing", "both"])
def test_cancel_wants_runs_or_a_filter(words: tuple[str, ...], database: Database, tmp_path: Path) -> None:
    """Nothing is cancelled by a slip."""
    made = command(database, "cancel", *words, folder=tmp_path)
    assert made.returncode == 2 and "name runs, or give a --filter" in made.stderr


def test_a_run_that_is_not_there_is_said_when_the_others_are_done(database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    run = started(database, "checkout")
    made = command(database, "cancel", "nobody", run, "neither", folder=tmp_path)
    assert (made.returncode, made.stdout) == (1, f"cancelled {run}\n")
    assert len(made.stderr.splitlines()) <= 3 and "'nobody'" in made.stderr and "'neither'" in made.stderr


# ── queues, and no schema ────────────────────────────────────────────────────────────────────────────────────────


def test_queues_shows_what_stands_where(database: Database, tmp_path: Path) -> None:
    assert "no queues yet" in command(database, "queues", folder=tmp_path).stderr
    registered(database, "checkout")
    for _ in range(3):
        started(database, "checkout")
    started(database, "checkout", delay="1 hour")
    started(database, "checkout", queue="bulk")
    rows = {row["queue"]: row for row in map(json.loads, command(database, "queues", "--json", folder=tmp_path).stdout.splitlines())}
    assert (rows["reading"]["ready"], rows["reading"]["waiting"], rows["bulk"]["ready"]) == (3, 1, 1)
    assert rows["reading"]["oldest_ready_at"].endswith("Z")
    text = command(database, "queues", folder=tmp_path).stdout
    assert text.splitlines()[0].split() == ["queue", "workers", "ready", "running", "waiting", "paused", "oldest", "ready"]
    assert any(line.split()[:6] == ["reading", "0", "3", "0", "1", "0"] for line in text.splitlines())


@pytest.mark.parametrize("words", [("list",), ("show", "x"), ("cancel", "x"), ("queues",)], ids=lambda words: words[0])
def test_without_a_schema_they_say_what_to_type(words: tuple[str, ...], database: Database, tmp_path: Path) -> None:
    made = command(database, *words, "--schema", "elsewhere", folder=tmp_path)
    assert made.returncode == 75 and len(made.stderr.splitlines()) <= 3 and "migrate --schema elsewhere" in made.stderr
