"""The dashboard from outside: a real process on a real database, visited by HTTP. Who is let in, what a GET changes (nothing), what verbs write."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor import Client
from supervisor.core.version import VERSION
from tests.acceptance.visits import Read, Served, Visitor, filled, served
from tests.apps import dashed
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually

PAGES = ("health", "runs", "queues", "schedules", "schedules/new", "workers", "batches", "errors", "versions", "audit", "storage")
VERBS = ("cancel", "terminate", "pause", "resume", "retry", "skip", "fork", "signal", "update", "complete", "fail", "edit_retry")


class Scene:
    """A database with runs of each kind, made by a host that has gone: no worker is alive."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        hosts = HostFactory(database, Effects(folder / "effects"), folder)
        with hosts("tests.apps.dashed", procs=1), Client(database.dsn) as client:
            self.waits = [client.start(dashed.dashed_waits.options(key=f"order-{n}", batch="nightly"), f"w{n}") for n in range(8)]
            self.fails = [client.start(dashed.dashed_fails, f"f{n}") for n in range(3)]
            self.counts = client.start(dashed.dashed_counts, 250)
            assert self.counts.result(timeout=30) == 250
            waiting = "select count(*) from supervisor.waits where code in ('signal', 'step_backoff')"
            eventually(lambda: database.one(waiting) == 11, 30)
        assert database.one("select count(*) from supervisor.workers where state = 'alive'") == 0


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = server.database()
    try:
        yield Scene(database, tmp_path_factory.mktemp("scene"))
    finally:
        database.drop()


@pytest.fixture(scope="module")
def dashboard(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("dashboard"), scene.database.dsn) as made:
        yield made


@pytest.fixture(scope="module")
def ann(dashboard: Served) -> Visitor:
    return dashboard.visitor("ann")


def everything(database: Database) -> list[tuple[Any, ...]]:
    """What every table of the engine holds, as one number each; the leader and the workers have gone."""
    tables = [name for (name,) in database.sql("select relname from pg_class where relnamespace = 'supervisor'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1")]
    return [(name, *database.sql(f"select count(*), sum(hashtext(t::text)::int8) from supervisor.{name} t")[0]) for name in tables]


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_exchanged_once_for_a_cookie_that_scripts_cannot_read(dashboard: Served) -> None:
    """A URL that stays in a history, or in somebody's scrollback, lets nobody in a second time."""
    assert stat.S_IMODE(dashboard.token_file.stat().st_mode) == 0o600
    token, stranger = dashboard.token(), Visitor(dashboard.port)
    answer = stranger.post("/login", {"token": token, "name": "first"})
    cookie = answer.cookies[0].lower()
    assert answer.status == 303 and "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    again = stranger.post("/login", {"token": token})
    assert again.status == 403 and not again.cookies
    assert dashboard.token() not in ("", token)
    signed_in = Visitor(dashboard.port, cookie=answer.cookies[0].partition(";")[0])
    assert signed_in.get("/whoami").status == 204
    for wrong in ("", "x", token[:-1], dashboard.token() + "x"):
        assert stranger.post("/login", {"token": wrong}).status == 403


def test_whoever_has_no_token_is_told_nothing(dashboard: Served, scene: Scene, ann: Visitor) -> None:
    """The page that asks for it is everybody's: it names no database, user, host or schema, and no version."""
    stranger = Visitor(dashboard.port)
    database, signed_in = scene.database.one("select current_database()"), Read.of(ann.get("/queues").text).text
    assert database in signed_in and f"pgsupervisor {VERSION}" in signed_in
    for answer in (stranger.get("/login"), stranger.post("/login", {"token": "x"}), stranger.get("/login", **{"HX-Request": "true"})):
        assert "Your name, for the audit" in answer.text
        assert not [word for word in (database, VERSION, "schema", "postgres", "role ") if word in answer.text] and "/tmp/" not in answer.text


def test_signing_out_ends_the_session(dashboard: Served) -> None:
    somebody = dashboard.visitor("short")
    assert somebody.post("/logout", {}).status == 303
    assert somebody.get("/whoami").status == 401


def test_the_token_is_in_no_log(dashboard: Served, ann: Visitor) -> None:
    """Standard error of a service is read by more people than may act on runs."""
    assert ann.get("/runs").status == 200
    log, urls = dashboard.log.read_text(), dashboard.token_file.read_text()
    assert dashboard.url in log and "#" not in log
    assert dashboard.token() in urls and dashboard.token() not in log
    assert ann.cookie.partition("=")[2] not in log and ann.csrf not in log


@pytest.mark.parametrize("path", [f"/{name}{suffix}" for name in PAGES for suffix in ("", ".json")] + ["/live", "/whoami", "/runs/x", "/nowhere"])
def test_without_a_cookie_nothing_is_seen(dashboard: Served, path: str) -> None:
    answer = Visitor(dashboard.port).get(path)
    assert answer.status in (303, 401)
    if answer.status == 303:
        assert answer.headers["location"].startswith("/login") and answer.body == b""
    other = Visitor(dashboard.port, cookie=f"pgsupervisor-{dashboard.port}=x").get(path)
    assert other.status == answer.status


def test_a_program_reads_with_the_token_of_the_file_and_does_nothing_with_it(dashboard: Served, scene: Scene) -> None:
    stranger, bearer = Visitor(dashboard.port), f"Bearer {dashboard.token()}"
    assert len(stranger.get("/runs.json", Authorization=bearer).json()["runs"]) == 12
    assert stranger.get("/runs.json", Authorization=f"{bearer}x").status == 401
    assert stranger.post(f"/runs/{scene.waits[0].id}/cancel", {"reason": "x"}, Authorization=bearer).status == 401


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "evil.example:{port}"}, 421),
        ("GET", {"Host": "127.0.0.1"}, 421),
        ("GET", {"Host": "evil.example"}, 421),
        ("GET", {"Origin": "http://evil.example"}, 403),
        ("GET", {"Origin": "null"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("HEAD", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "https://127.0.0.1:{port}"}, 403),
        ("POST", {}, 403),
        ("PUT", {"Origin": "http://127.0.0.1:{port}"}, 405),
        ("DELETE", {"Origin": "http://127.0.0.1:{port}"}, 405),
        ("OPTIONS", {"Origin": "http://evil.example"}, 405),
        ("TRACE", {}, 405),
    ],
)
def test_other_hosts_origins_and_methods_are_refused(dashboard: Served, ann: Visitor, method: str, headers: dict[str, str], status: int) -> None:
    """A name that was rebound to this machine, a page of another site with the user's cookie: neither gets through, whatever it asks."""
    given = {name: value.format(port=dashboard.port) for name, value in headers.items()}
    for path in ("/runs", "/runs.json", "/login", "/live") if status != 200 else ("/runs",):
        answer = ann.ask(method, path, b"" if method in ("POST", "PUT") else None, given)
        assert answer.status == status, (path, answer.text)
        assert "access-control-allow-origin" not in answer.headers


def test_a_form_needs_its_own_secret(dashboard: Served, ann: Visitor, scene: Scene) -> None:
    """Another browser's does not do, nor none, nor another encoding."""
    bob, path = dashboard.visitor("bob"), f"/runs/{scene.waits[0].id}/cancel"
    for csrf in ("", "x", bob.csrf, ann.csrf[:-1]):
        assert ann.post(path, {"reason": "x", "csrf": csrf}).status == 403
    for encoding in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        assert ann.post(path, {"reason": "x"}, Content_Type=encoding).status == 415
    assert ann.post("/runs/do", {"reason": "x", "csrf": "", "verb": "cancel"}).status == 403
    assert ann.ask("POST", path, b"x" * (4 << 20), {"Origin": f"http://127.0.0.1:{dashboard.port}"}).status == 413
    assert scene.database.one("select count(*) from supervisor.cancellations") == 0


def test_every_answer_has_its_headers_and_no_page_has_code_in_it(dashboard: Served, ann: Visitor, scene: Scene) -> None:
    """The policy lets no script or style run but the dashboard's own files; pages must do without any in them, or be broken."""
    html = ann.get("/runs").text
    files = [path for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', html)]
    assert len(files) == 6
    for path in [*(f"/{name}" for name in PAGES), f"/runs/{scene.counts.id}", f"/runs/{scene.fails[0].id}", f"/runs/{scene.counts.id}/steps/3", "/nowhere", "/login", "/runs?q=x", "/runs.json", *files]:
        answer = ann.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "same-origin"
        if answer.headers["content-type"].startswith("text/html"):
            assert answer.headers["cache-control"] == "no-store"
            assert inline(Read.of(answer.text)) == [], path
    assert ann.get(files[0].replace("static/", "static/0")).status == 404
    assert ann.get("/static/../app.py").status == 404


def inline(read: Read) -> list[str]:
    """Code and styles that stand in a page, and what it takes from elsewhere."""
    found = [f"{tag} {name}" for tag, attributes in read.tags for name in attributes if name.startswith("on") or name == "style" or name.startswith("hx-on")]
    found += [tag for tag, attributes in read.tags if tag in ("style", "iframe", "object", "embed", "base") or (tag == "script" and not attributes.get("src"))]
    links = [*read.attributes("a", "href"), *read.attributes("script", "src"), *read.attributes("link", "href"), *read.attributes("form", "action"), *read.attributes("img", "src")]
    return found + [link for link in links if not re.match(r"/(?![/\\])|#", link)]


def test_no_get_changes_anything(scene: Scene, ann: Visitor) -> None:
    """Crawlers, prefetching and curious people follow every link. All of them, and the paths of all verbs."""
    before = everything(scene.database)
    seen: set[str] = set()
    todo = [f"/{name}" for name in PAGES] + [f"/runs/{scene.waits[0].id}", f"/runs/{scene.fails[0].id}"]
    while todo and len(seen) < 150:
        path = todo.pop(0)
        if path in seen or path.startswith("/static"):
            continue
        seen.add(path)
        answer = ann.get(path)
        assert answer.status == (303 if path == "/" else 200), (path, answer.text)
        if answer.headers.get("content-type", "").startswith("text/html"):
            todo += [link.partition("#")[0] for link in Read.of(answer.text).attributes("a", "href") if link.startswith("/")]
    assert len(seen) > 60
    for verb in VERBS:
        assert ann.get(f"/runs/{scene.waits[0].id}/{verb}?reason=x").status in (404, 405)
    assert ann.get("/runs/do?verb=cancel&sure=yes&reason=x").status in (404, 405) and ann.get("/views/save?name=x&q=age+%3E+1h").status in (404, 405)
    assert ann.get("/logout").status in (404, 405) and ann.get("/whoami").status == 204
    assert everything(scene.database) == before


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_are_true_while_no_worker_is_alive(scene: Scene, ann: Visitor) -> None:
    """Why is order-3 stuck must be answered when everything has gone, which is when it is asked."""
    health = ann.get("/health.json").json()
    assert any(text.startswith("no worker is alive") for text in health["findings"])
    groups = {(row["code"], row["workflow"], row["step"]): row["runs"] for row in health["stuck"]}
    assert groups == {("signal", "dashed_waits", "dashed_go"): 8, ("step_backoff", "dashed_fails", "dashed_failing"): 3}
    assert [(row["queue"], row["waiting"]) for row in health["queues"] if row["queue"] == "dashed"] == [("dashed", 11)]
    run = ann.get("/runs/order-3")
    shown = Read.of(run.text).text
    assert run.status == 200 and "It waits for the signal dashed_go" in shown and "whoever may send signals" in shown
    failing = Read.of(ann.get(f"/runs/{scene.fails[0].id}").text).text
    for words in ("Step dashed_failing (seq 0) failed once; it is tried again", "the time of the next attempt comes", "ValueError: the gateway does not like f0", "Retry now", "in dashed_failing"):
        assert words in failing


def test_the_json_of_a_run_has_what_its_page_shows(scene: Scene, ann: Visitor) -> None:
    found = ann.get(f"/runs/{scene.waits[2].id}.json").json()
    assert found["key"] == "order-2" and found["why"]["code"] == "signal" and found["batch"] == "nightly" if "batch" in found else found["why"]["code"] == "signal"
    assert [each["name"] for each in found["history"]] == ["dashed_said"] and found["history"][0]["payload"] == "said w2"
    assert [(each["key"], each["value"]) for each in found["published"]] == [("word", "w2")]


def test_a_long_history_is_shown_in_windows(scene: Scene, ann: Visitor) -> None:
    """250 steps and a sleep: the last hundred first, each once, whichever way one goes."""
    path, seen = f"/runs/{scene.counts.id}", []
    page: str | None = path
    while page:
        read = Read.of(ann.get(page).text)
        window = [int(each[4:]) for each in read.attributes("details", "id") if each.startswith("seq-")]
        assert 0 < len(window) <= 100 and window == sorted(window)
        seen += window
        page = next((link for link in read.attributes("a", "href") if link.startswith(f"{path}?before=")), None)
    assert sorted(seen) == list(range(251)) and len(set(seen)) == len(seen)
    forward = Read.of(ann.get(f"{path}?from=0").text)
    assert "seq-0" in forward.attributes("details", "id") and f"{path}?from=100" in forward.attributes("a", "href")
    assert len([tag for tag, _ in forward.tags if tag == "svg"]) == 100


def test_a_large_payload_is_shown_by_its_beginning(scene: Scene, ann: Visitor) -> None:
    """Two megabytes in each of a hundred rows would be nobody's page."""
    run, text = scene.waits[1].id, "word " * 300_000
    with Client(scene.database.dsn) as client:
        for _ in range(3):
            client.signal(run, "dashed_large", text)
    scene.database.sql("insert into supervisor.step select run_id, started_at, ended_at, 90, 90, worker, kind, status, 'large', convert_to(to_json(%s::text)::text, 'UTF8') from supervisor.step where run_id = %s limit 1", text, run)
    page = ann.get(f"/runs/{run}")
    assert len(page.body) < 100_000 and Read.of(page.text).text.count("of 1.5 MB") == 4
    assert "1,480,002 characters more" in Read.of(ann.get(f"/runs/{run}/steps/90").text).text
    assert ann.get(f"/runs/{run}/steps/90.json").json()["step"]["result"] == text


def test_a_password_is_on_no_page_and_in_no_log(scene: Scene, tmp_path: Path) -> None:
    """Screenshots of pages are pasted into tickets, and logs are read by many."""
    canary = "canary-8Wx-not-to-be-seen"
    with served(tmp_path, psycopg.conninfo.make_conninfo(scene.database.dsn, password=canary)) as made:
        visitor = made.visitor()
        for path in (*(f"/{name}" for name in PAGES), f"/runs/{scene.waits[1].id}", "/runs?q=x", "/nowhere", "/login"):
            assert canary not in visitor.get(path).text and canary not in visitor.get(f"{path}.json").text
        assert canary not in made.log.read_text() and canary.encode() not in Path(f"/proc/{made.process.pid}/cmdline").read_bytes()
    assert canary not in command(dsn=f"host=/nonexistent password={canary}").stderr


def test_a_list_goes_on_where_its_page_ends(server: Server, tmp_path: Path) -> None:
    """By key, not by number: each run once, with 120 of them."""
    database = server.database()
    try:
        database.sql("insert into supervisor.queue (name) values ('q'); insert into supervisor.workflow (name, queue) select 'w', id from supervisor.queue where name = 'q'")
        database.sql("select supervisor.start_many('w', array(select jsonb_build_object() from generate_series(1, 120)))")
        with served(tmp_path, database.dsn) as made:
            visitor, seen, page = made.visitor(), list[str](), "/runs.json"
            while page:
                found = visitor.get(page).json()
                seen += [row["run_id"] for row in found["runs"]]
                page = found["next"]
            assert len(seen) == 120 and seen == sorted(seen, reverse=True) and len(set(seen)) == 120
            first = Read.of(visitor.get("/runs").text)
            assert len([value for value in first.attributes("input", "name") if value == "run"]) == 50
    finally:
        database.drop()


def test_a_filter_that_cannot_be_read_says_where(ann: Visitor) -> None:
    answer = ann.get("/runs?q=workfow+%3D+x")
    assert answer.status == 400 and "did you mean 'workflow'?" in Read.of(answer.text).text and 'value="workfow = x"' in answer.text
    assert ann.get("/runs.json?q=(((").json()["error"]["code"] == "filter_invalid"
    assert ann.get("/runs?after=x").status == 400
    assert ann.get("/runs/nothing-of-that-key").status == 404 and ann.get(f"/runs/{UUID(int=5)}.json").json()["error"]["code"] == "run_unknown"
    for odd in ("%00", "%ff%fe", "%ED%A0%80", "a" * 5000, "..%2f..%2fetc"):
        assert ann.get(f"/runs/{odd}").status in (303, 404, 414), odd
        assert ann.get(f"/runs?q={odd}").status in (200, 400)
        assert ann.get(f"/batch?name={odd}").status == 404


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verbs_want_a_reason_and_write_it_down_with_who(scene: Scene, ann: Visitor) -> None:
    """The same rows as the client's and the command line's, in the verb's own transaction."""
    sql = scene.database.sql
    run = scene.waits[0].id
    for reason in ("", "   ", "x" * 1001):
        refused = ann.do(run, "cancel", reason)
        assert refused.status == 400 and "reason" in refused.text
    assert sql("select count(*) from supervisor.cancellations") == [(0,)]

    assert ann.do(run, "pause", "lunch").headers["location"] == f"/runs/{run}?did=pause"
    assert "Paused by ann: lunch" in Read.of(ann.get(f"/runs/{run}?did=pause").text).text
    assert ann.do(run, "resume", "back").status == 303
    assert ann.do(run, "signal", "it is time", name="dashed_go", value='"go"').status == 303
    failing = scene.fails[1].id
    assert ann.do(failing, "retry", "it is back").status == 303
    assert ann.do(failing, "skip", "by hand", seq="0", value='"done by hand"').status == 303
    forked = ann.do(scene.counts.id, "fork", "what if", seq="100").headers["location"].rpartition("/")[2]
    assert sql("select forked_from, forked_seq from supervisor.runs where run_id = %s", UUID(forked)) == [(scene.counts.id, 100)]
    assert ann.do(scene.fails[2].id, "terminate", "never mind").status == 303
    assert ann.do(run, "cancel", "done with it").status == 303

    deeds = sql("select verb, run_id, actor, reason from supervisor.audits order by at")
    assert deeds == [("pause", run, "ann", "lunch"), ("resume", run, "ann", "back"), ("signal", run, "ann", "it is time"), ("retry", failing, "ann", "it is back"), ("skip", failing, "ann", "by hand"), ("fork", scene.counts.id, "ann", "what if"),
                     ("terminate", scene.fails[2].id, "ann", "never mind"), ("cancel", run, "ann", "done with it")]  # fmt: skip
    ends = sql("select run_id, how, actor, reason from supervisor.cancellations order by asked_at")
    assert ends == [(scene.fails[2].id, "terminated", "ann", "never mind"), (run, "cancelled", "ann", "done with it")]
    assert sql("select name, payload from supervisor.signals where run_id = %s", run) == [("dashed_go", "go")]
    page = Read.of(ann.get(f"/runs/{run}").text).text
    assert "done with it" in page and "lunch" in page
    assert "what if" in Read.of(ann.get("/audit").text).text


def test_what_does_not_fit_is_refused_in_words(scene: Scene, ann: Visitor) -> None:
    ended = scene.counts.id
    again = ann.do(ended, "pause")
    assert again.status == 409 and "completed" in Read.of(again.text).text and f'href="/runs/{ended}"' in again.text
    assert ann.do(UUID(int=7), "cancel").status == 404
    assert ann.do("no-id", "cancel").status == 404
    assert ann.do(scene.waits[1].id, "explode").status == 400
    bad = ann.do(scene.waits[1].id, "signal", name="dashed_go", value="{no json")
    assert bad.status == 400 and "is no JSON" in Read.of(bad.text).text
    assert ann.do(scene.waits[1].id, "skip", seq="-1", value="1").status == 400


def test_many_runs_are_counted_before_anything_is_done(scene: Scene, ann: Visitor) -> None:
    """A filter that finds more than was meant is seen before, not after."""
    form = {"verb": "cancel", "q": "key ^= order- AND key in (order-4, order-5, order-6)", "reason": "tidy up"}
    dry = ann.post("/runs/do", form)
    assert dry.status == 200 and "3 runs" in Read.of(dry.text).text and "Nothing was done yet" in dry.text
    cancelled = "select count(*) from supervisor.cancellations where reason = 'tidy up'"
    assert scene.database.one(cancelled) == 0
    assert ann.post("/runs/do", {**form, "sure": "yes", "reason": ""}).status == 400
    done = ann.post("/runs/do", {**form, "sure": "yes"})
    assert "done for 3 runs" in Read.of(done.text).text and scene.database.one(cancelled) == 3
    assert scene.database.one("select count(distinct actor) from supervisor.cancellations where reason = 'tidy up' and actor = 'ann'") == 1
    picked = [("run", str(scene.waits[7].id)), ("verb", "pause"), ("reason", "picked"), ("sure", "yes"), ("q", "")]
    assert "done for 1 runs" in Read.of(ann.post("/runs/do", picked).text).text
    assert scene.database.sql("select run_id from supervisor.audits where reason = 'picked'") == [(scene.waits[7].id,)]
    assert ann.post("/runs/do", {**form, "verb": "explode"}).status == 400
    assert ann.post("/runs/do", {**form, "q": "((("}).status == 400


@pytest.mark.parametrize(("role", "sees", "lacks"), [("viewer", (), VERBS), ("operator", ("cancel", "skip"), ())])
def test_a_role_sees_the_buttons_of_what_it_may(scene: Scene, tmp_path: Path, role: str, sees: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    """And where it asks all the same, the database refuses: buttons are manners, rights are the lock."""
    login = f"dashed_{role}_{os.getpid()}"
    scene.database.sql(f"create role {login} login; grant supervisor_{role} to {login}")
    try:
        with served(tmp_path, psycopg.conninfo.make_conninfo(scene.database.dsn, user=login)) as made:
            visitor = made.visitor()
            html = visitor.get(f"/runs/{scene.fails[0].id}").text
            assert all(f'id="do-{verb}"' in html for verb in sees) and not any(f'id="do-{verb}"' in html for verb in lacks)
            assert ('id="bulk"' in visitor.get("/runs").text) == bool(sees)
            assert all(visitor.get(f"/{name}").status == (200 if sees or name != "schedules/new" else 403) for name in PAGES)
            assert f"role {login}: {'operator' if sees else 'shows only'}" in Read.of(html).text
            done = visitor.do(scene.fails[0].id, "pause")
            assert done.status == (303 if sees else 403)
            if lacks:
                assert "GRANT" in done.text and visitor.post("/runs/do", {"verb": "cancel", "reason": "x", "sure": "yes", "q": ""}).status == 403
    finally:
        scene.database.sql(f"drop owned by {login}; drop role {login}")


def heard(events: Iterator[str], wanted: str, within_s: float = 60.0) -> list[str]:
    """What is told until *wanted* is; read on a thread, for a stream that says nothing is read for ever."""
    found: list[str] = []

    def read() -> None:
        for event in events:
            found.append(event)
            if event == wanted:
                return

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(within_s)
    assert wanted in found, found
    return found


# ── live, and when things are gone ───────────────────────────────────────────────────────────────────────────────


def test_pages_hear_that_something_changed(scene: Scene, ann: Visitor) -> None:
    """One listener for all of them; and what an event says is nothing but that."""
    with ann.events() as events, Client(scene.database.dsn) as client:
        for _ in range(2):
            client.start("dashed_counts", 1)
            assert set(heard(events, "changed")) == {"changed"}
    listeners = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgsupervisor: dashboard live'"
    assert scene.database.one(listeners) == 1


def test_a_database_that_is_gone_is_said_and_found_again(own_server: Server, tmp_path: Path) -> None:
    """Nobody restarts a dashboard after an outage."""
    database = own_server.database()
    with served(tmp_path, database.dsn) as made:
        visitor = made.visitor()
        assert visitor.get("/health").status == 200
        database.sql("insert into supervisor.schedule (name, workflow, every_us) values ('here', 'w', 3600000000)")
        path = "/schedule/change?name=here"
        form = filled(visitor, path, every="7200", reason="typed at length", do="save")
        with visitor.events() as events:
            own_server.embedded.stop("immediate")
            assert "lost" in heard(events, "lost")
            kept = visitor.post(path, form)
            assert kept.status == 503 and "Change schedule here" in Read.of(kept.text).text and f'action="{path}"' in kept.text
            assert 'value="7200"' in kept.text and 'value="typed at length"' in kept.text and 'value="w" selected' in kept.text
            gone = visitor.get("/runs")
            assert gone.status == 503 and "The database does not answer" in gone.text and 'http-equiv="refresh"' in gone.text and gone.headers["retry-after"]
            assert visitor.get("/health.json").json()["error"]["code"] == "database_unavailable"
            own_server.embedded.start()
            assert "back" in heard(events, "back")
        eventually(lambda: visitor.get("/runs").status == 200, 60)
        assert visitor.get("/health").status == 200
        assert "Traceback" not in made.log.read_text()


@pytest.fixture(scope="module")
def strict(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dashboard that only shows, and is given little time."""
    with served(tmp_path_factory.mktemp("strict"), scene.database.dsn, "--read-only", "--timeout", "0.5") as made:
        yield made


def test_read_only_shows_no_verbs_and_does_none(scene: Scene, strict: Served) -> None:
    visitor, run = strict.visitor(), scene.waits[1].id
    assert 'class="action' not in visitor.get(f"/runs/{run}").text
    assert visitor.do(run, "cancel").status == 403 and visitor.post("/runs/do", {"verb": "cancel", "reason": "x", "sure": "yes", "q": ""}).status == 403
    assert scene.database.one("select status from supervisor.runs where run_id = %s", run) == "waiting"


def test_a_page_that_takes_too_long_says_so(scene: Scene, strict: Served) -> None:
    """A lock that somebody holds, a filter over everything: a page ends, and so does its statement."""
    visitor = strict.visitor()
    with scene.database.connect() as conn, conn.transaction():
        conn.execute("lock table supervisor.task in access exclusive mode")
        answer = visitor.get("/runs")
        assert answer.status == 503 and "longer than 0.5 s" in Read.of(answer.text).text
        health = visitor.get("/health.json").json()
        assert "took longer" in health["queues"]["error"] and health["leader"] is not None
    assert eventually(lambda: visitor.get("/runs").status == 200, 20)


def test_a_dashboard_that_is_killed_leaves_nothing_and_another_one_serves(scene: Scene, tmp_path: Path) -> None:
    """kill -9 in the middle of a page's stream: no session stays, nothing was written."""
    before = everything(scene.database)
    with served(tmp_path, scene.database.dsn) as made:
        visitor = made.visitor()
        with visitor.events() as events:
            heard(events, "changed")
            os.kill(made.process.pid, signal.SIGKILL)
            made.process.wait(20)
    with served(tmp_path, scene.database.dsn) as made:
        assert made.visitor().get("/runs").status == 200
    assert everything(scene.database) == before


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────


def command(*words: str, dsn: str = "host=/nonexistent") -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "supervisor", "dashboard", "--dsn", dsn, *words], env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--host", "0.0.0.0"), 78, "--tls-cert"),
        (("--host", "192.0.2.1"), 78, "--plain-http"),
        (("--tls-cert", __file__), 78, "belong together"),
        ((), 69, "no session with the database"),
        (("--port", "70000"), 2, "70000"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(words: tuple[str, ...], code: int, says: str) -> None:
    made = command(*words)
    assert made.returncode == code and says in made.stderr and "Traceback" not in made.stderr


def test_without_the_extra_it_says_what_to_install(scene: Scene, tmp_path: Path) -> None:
    """The other commands need none of it."""
    program = "import sys; sys.modules['starlette'] = None; sys.modules['jinja2'] = None; from supervisor.cli.main import main; main(sys.argv[1:])"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run([sys.executable, "-c", program, "dashboard", "--dsn", scene.database.dsn], env=environ, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert made.returncode == 78 and "pip install 'pgsupervisor[dashboard]'" in made.stderr
    listed = subprocess.run([sys.executable, "-c", program, "queues", "--dsn", scene.database.dsn], env=environ, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert listed.returncode == 0 and "dashed" in listed.stdout


def test_with_tls_the_cookie_goes_over_tls_alone(scene: Scene, tmp_path: Path) -> None:
    """On an address that others reach: by the machine's own name, with a certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: it makes the test's certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
    with served(tmp_path, scene.database.dsn, "--host", "0.0.0.0", "--tls-cert", str(cert), "--tls-key", str(key), "--allow-host", "desk.example", scheme="https") as made:
        visitor = Visitor(made.port, scheme="https", host="desk.example", named_port=False)
        answer = visitor.post("/login", {"token": made.token()})
        cookie = answer.cookies[0].lower()
        assert answer.status == 303 and cookie.startswith("__host-") and "secure" in cookie and "httponly" in cookie
        assert visitor.post("/login", {"token": made.token()}, Origin="http://desk.example").status == 403
        assert Visitor(made.port, scheme="https", host="other.example", named_port=False).get("/login").status == 421
