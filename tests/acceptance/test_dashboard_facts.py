"""Every page says the same three times: for people, as JSON, and as SQL that a viewer may type into psql. Real runs, staged batches, deeds and versions."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest

pytest.importorskip("starlette", reason="the extra [dashboard] is not installed")

from supervisor import Client
from supervisor.dashboard.app import PAGES
from tests.acceptance.visits import Read, Served, Shown, Visitor, served, tables
from tests.apps import dashed
from tests.harness import Database, Effects, HostFactory, Server, eventually

LOGIN = f"facts_viewer_{os.getpid()}"
NIGHTLY, FAILING = 5, 3  # runs of the batch, runs that fail at a step
Facts = dict[str, str]


@dataclass
class Scene:
    server: Server
    database: Database
    dashboard: Served
    ann: Visitor
    nightly: list[UUID]
    failing: list[UUID]
    version: str

    def facts(self, path: str) -> Any:
        answer = self.ann.get(json_of(path))
        assert answer.status == 200 and answer.headers["content-type"] == "application/json", answer.text
        return answer.json()

    def page(self, path: str) -> str:
        """The page, with moments as they are stored in place of "5 min ago"."""
        answer = self.ann.get(path)
        assert answer.status == 200, answer.text
        return re.sub(r'<time datetime="([^"]*)"[^>]*>[^<]*</time>', r"\1", answer.text)


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database, folder = server.database(), tmp_path_factory.mktemp("facts")
    hosts = HostFactory(database, Effects(folder / "effects"), folder)
    database.sql(f"create role {LOGIN} login; grant supervisor_viewer to {LOGIN}")
    try:
        with hosts("tests.apps.dashed", procs=1), Client(database.dsn) as client, served(folder / "pages", database.dsn) as dashboard:
            nightly = [client.start(dashed.dashed_waits.options(key=f"order-{n}", batch="nightly"), f"w{n}") for n in range(NIGHTLY)]
            client.start(dashed.dashed_counts.options(batch="weekly"), 3).result(timeout=60)
            failing = [client.start(dashed.dashed_fails, f"f{n}") for n in range(FAILING)]
            ended = client.start(dashed.dashed_ends_badly)
            eventually(lambda: database.one("select count(*) from supervisor.waits where code in ('signal', 'step_backoff')") == NIGHTLY + FAILING, 60)
            eventually(lambda: database.one("select status from supervisor.runs where run_id = %s", ended.id) == "failed", 60)
            client.signal(nightly[0], dashed.DASHED_GO, "well")
            assert nightly[0].result(timeout=60) == "well"
            client.terminate(nightly[1].id, reason="not needed", actor="bob")
            client.pause(nightly[2].id, reason="lunch", actor="ann")
            client.pause_queue("dashed", "the shelves are counted", actor="cid")
            client.create_schedule("tidy", "dashed_counts", every=3600.0, input={"steps": 1})
            client.pause_schedule("tidy", "not yet", actor="ann")
            version = database.one("select version from supervisor.versions where workflow = 'dashed_waits'")
            yield Scene(server, database, dashboard, dashboard.visitor(), [run.id for run in nightly], [run.id for run in failing], version)
    finally:
        database.sql(f"drop owned by {LOGIN}; drop role {LOGIN}")
        database.drop()


def json_of(path: str) -> str:
    head, mark, query = path.partition("?")
    return f"{head}.json{mark}{query}"


def facts_of(html: str) -> Facts:
    """What stands in a page's lists of facts, by name."""
    found = re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", html, re.DOTALL)
    return {unescape(name): " ".join(unescape(re.sub(r"<[^>]*>", " ", value)).split()) for name, value in found}


def moment(text: str | None) -> str:
    """A moment of JSON as pages have it; none is a dash."""
    if text is None:
        return "–"
    at = datetime.fromisoformat(text).astimezone(timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def word(value: object) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def bare(status: str) -> str:
    """A status without the sign before it."""
    return status.partition(" ")[2]


# ── for people and as JSON ───────────────────────────────────────────────────────────────────────────────────────

Row = dict[str, Any]
Cells = dict[str, Callable[[Row], str]]
QUEUES: Cells = {"queue": lambda r: r["queue"], "workers": lambda r: word(r["workers"]), **{name: lambda r, name=name: word(r[name]) for name in ("ready", "running", "waiting", "paused")}, "oldest ready": lambda r: moment(r["oldest_ready_at"]), "queue is paused": lambda r: moment(r["paused_at"]), "by": lambda r: word(r["paused_by"]), "why": lambda r: word(r["paused_reason"])}  # fmt: skip
# page → its table, where its rows stand in the JSON, and how each is shown
LISTS: dict[str, tuple[str, Callable[[Any], list[Row]], Cells]] = {
    "/health": ("What live runs wait for", lambda f: f["stuck"], {"runs": lambda r: word(r["runs"]), "workflow": lambda r: r["workflow"], "step": lambda r: word(r["step"]), "meaning": lambda r: r["meaning"], "since": lambda r: moment(r["since"]), "next": lambda r: moment(r["wake_at"])}),
    "/runs": ("Runs", lambda f: f["runs"], {"workflow": lambda r: r["workflow"], "key": lambda r: word(r["key"]), "started": lambda r: moment(r["created_at"])}),
    "/queues": ("Queues", lambda f: f["queues"], QUEUES),
    "/schedules": ("Schedules", lambda f: f["schedules"], {"schedule": lambda r: r["name"], "workflow": lambda r: r["workflow"], "zone": lambda r: r["timezone"], "next tick": lambda r: moment(r["next_at"]), "last tick": lambda r: moment(r["last_at"]), "fired": lambda r: word(r["fired"]), "skipped": lambda r: word(r["skipped"]), "missed": lambda r: word(r["missed"]), "paused by": lambda r: word(r["paused_by"]), "why": lambda r: word(r["paused_reason"])}),
    "/schedule?name=tidy": ("What people did to it", lambda f: f["audit"], {"when": lambda r: moment(r["at"]), "verb": lambda r: r["verb"], "who": lambda r: r["actor"] or r["login"], "why": lambda r: word(r["reason"])}),
    "/batches": ("Batches", lambda f: f["batches"], {"batch": lambda r: r["batch"], "runs": lambda r: word(r["runs"]), "live": lambda r: str(r["ready"] + r["running"] + r["waiting"] + r["paused"]), **{name: lambda r, name=name: str(r[name]) for name in ("completed", "failed", "cancelled")}, "made": lambda r: moment(r["created_at"]), "last end": lambda r: moment(r["last_ended_at"])}),
    "/errors": ("Errors", lambda f: f["errors"], {**{name: lambda r, name=name: word(r[name]) for name in ("failures", "runs", "live", "ended", "workflow", "step", "message")}, "error": lambda r: r["type"].rpartition(".")[2], "first": lambda r: moment(r["first_at"]), "last": lambda r: moment(r["last_at"]), "fingerprint": lambda r: word(r["fingerprint"])}),
    "/versions": ("Versions", lambda f: f["versions"], {**{name: lambda r, name=name: word(r[name]) for name in ("workflow", "version", "workers", "live", "running", "source")}, "code missing": lambda r: word(r["code_missing"]), "last seen": lambda r: moment(r["last_seen_at"])}),
    "/audit": ("Audit", lambda f: f["audit"], {"when": lambda r: moment(r["at"]), "verb": lambda r: r["verb"], "workflow": lambda r: word(r["workflow"]), "who": lambda r: word(r["actor"]), "role": lambda r: word(r["login"]), "why": lambda r: word(r["reason"])}),
    "/storage": ("Storage", lambda f: f["tables"], {"table": lambda r: r["name"], "partitions": lambda r: word(r["partitions"] or None), "rows": lambda r: word(r["rows"]), "dead rows": lambda r: word(r["dead"]), "last vacuum": lambda r: moment(r["vacuumed_at"])}),
    "/workers": ("Processes of supervisor", lambda f: f["hosts"][0]["supervisors"][0]["workers"], {"worker": lambda r: word(r["worker"]), "process": lambda r: str(r["pid"]), "queues": lambda r: ", ".join(r["queues"]), "runs": lambda r: word(r["runs"])}),
}  # fmt: skip


def titled(found: dict[str, Shown], title: str) -> Shown:
    (shown,) = [each for name, each in found.items() if name.startswith(title)]
    return shown


@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_the_same_for_people_and_for_programs(scene: Scene, path: str) -> None:
    title, rows_of, cells = LISTS[path]

    def both() -> tuple[list[Facts], list[Facts]]:
        html, rows = scene.page(path), rows_of(scene.facts(path))
        return [{name: row[name][0] for name in cells} for row in titled(tables(html), title).rows], [{name: shown(row) for name, shown in cells.items()} for row in rows]

    shown, found = eventually(lambda: (lambda pair: pair if pair[0] == pair[1] and pair[0] else None)(both()), 20, f"the same twice: {both()}")
    assert shown == found


def test_one_run_is_the_same_for_people_and_for_programs(scene: Scene) -> None:
    """Its banner, its history, the tries of its step, what it published, what people did."""
    run = scene.nightly[2]
    html, found = scene.page(f"/runs/{run}"), scene.facts(f"/runs/{run}")
    text, shown = Read.of(html).text, tables(html)
    assert (found["run_id"], found["key"], found["status"], found["why"]["code"], found["pause"]["reason"]) == (str(run), "order-2", "paused", "run_paused", "lunch") and "Paused by ann: lunch" in text
    assert re.findall(r'id="seq-(\d+)"', html) == [*(str(each["seq"]) for each in found["history"]), str(found["why"]["seq"])] == ["0", "1"]
    assert found["history"][0]["payload"] == "said w2" and "said w2" in text
    assert facts_of(html)["published word"] == json.dumps(found["published"][0]["value"]) == '"w2"'
    assert [(row["verb"][0], row["who"][0], row["why"][0], row["when"][0]) for row in shown["Done by people"].rows] == [(each["verb"], each["actor"], each["reason"], moment(each["at"])) for each in found["audit"]] and len(found["audit"]) == 1
    failing = scene.failing[0]
    html, found = scene.page(f"/runs/{failing}"), scene.facts(f"/runs/{failing}")
    (attempt,) = found["attempts"]
    assert attempt["error"]["message"] in Read.of(html).text and facts_of(html)["failed tries"] == "1" and moment(found["why"]["wake_at"]) in Read.of(html).text


def test_health_is_the_same_for_people_and_for_programs(scene: Scene) -> None:
    """What needs attention, word by word; who leads; what stands where; the database."""
    eventually(lambda: scene.facts("/health")["leader"], 60)
    html, found = scene.page("/health"), scene.facts("/health")
    shown = facts_of(html)
    listed = [" ".join(text.split()) for text in re.findall(r"<li><span[^>]*>▲</span> (.*?)</li>", html, re.DOTALL)]
    paused = "queue dashed is paused since"
    assert [unescape(text).partition(paused)[1] for text in listed] == [text.partition(paused)[1] for text in found["findings"]] == [paused]
    (leader,), database = found["leader"], found["database"]
    assert shown["leader"] == f"process {leader['pid']} on {leader['host']}" and shown["alive"] == str(sum(each["state"] == "alive" for each in found["workers"])) == "1"
    assert (shown["database"], shown["PostgreSQL"], shown["migration"]) == (database["database"], database["version"], str(database["migration"])) and shown["partitions until"] == moment(found["horizon"]["until_at"])
    assert [row["queue"][0] for row in tables(html)["Queues"].rows] == [row["queue"] for row in found["queues"]]
    assert sum(row["started"] for row in found["rates"]) == NIGHTLY + FAILING + 2 and sum(row["failed"] for row in found["rates"]) == 1


def test_one_entry_is_the_same_for_people_and_for_programs(scene: Scene) -> None:
    path = f"/runs/{scene.failing[0]}/steps/0"
    (row,), (attempt,) = tables(scene.page(path))["Tries and what else is recorded"].rows, scene.facts(path)["attempts"]
    assert [row[name][0] for name in ("n", "what", "began", "ended", "next", "fingerprint")] == ["1", attempt["kind"], moment(attempt["started_at"]), moment(attempt["ended_at"]), moment(attempt["next_retry_at"]), attempt["fingerprint"]]


def test_one_batch_is_the_same_for_people_and_for_programs(scene: Scene) -> None:
    """And each of its numbers leads to exactly so many runs."""
    html, found = scene.page("/batch?name=nightly"), scene.facts("/batch?name=nightly")
    shown = facts_of(html)
    assert {name: found[name] for name in ("batch", "runs", "complete", "waiting", "paused", "completed", "terminated", "failed")} == {"batch": "nightly", "runs": NIGHTLY, "complete": True, "waiting": NIGHTLY - 3, "paused": 1, "completed": 1, "terminated": 1, "failed": 0}
    assert shown == {**{name: str(found[name]) for name in ("waiting", "paused", "completed", "terminated", "runs")}, "made": moment(found["created_at"]), "last start": moment(found["last_started_at"]), "last end": moment(found["last_ended_at"])}
    for name in ("waiting", "paused", "completed", "terminated", "runs"):
        (href,) = re.findall(rf'<dt>{name}</dt><dd><a class="num" href="([^"]*)"', html)
        assert len(scene.facts(unescape(href))["runs"]) == found[name], name


def test_the_runs_of_one_error_are_the_same_for_people_and_for_programs(scene: Scene) -> None:
    (group,) = [each for each in scene.facts("/errors")["errors"] if each["step"] == "dashed_failing"]
    path = f"/runs?q={quote(group['filter'])}"
    rows = tables(scene.page(path))["Runs"].rows
    assert {row["run"][1] for row in rows} == {f"/runs/{each['run_id']}" for each in scene.facts(path)["runs"]} == {f"/runs/{run}" for run in scene.failing}


def test_every_page_is_looked_at_here() -> None:
    """But the forms, which are for people alone."""
    looked_at = {path.partition("?")[0].lstrip("/").replace("steps/0", "steps/{seq}") for path in SAID}
    assert looked_at == {path for path in PAGES if path not in ("schedules/new", "schedule/change")}


# ── what the lists say ───────────────────────────────────────────────────────────────────────────────────────────


def test_batches_say_what_became_of_their_runs(scene: Scene) -> None:
    rows = {row["batch"][0]: row for row in tables(scene.page("/batches"))["Batches"].rows}
    assert list(rows) == ["weekly", "nightly"], "the newest first"
    assert [rows["nightly"][name][0] for name in ("runs", "live", "completed", "failed", "cancelled")] == [str(NIGHTLY), str(NIGHTLY - 2), "1", "0", "0"]
    assert [rows["weekly"][name][0] for name in ("runs", "live", "completed")] == ["1", "0", "1"]
    assert rows["nightly"]["batch"][1] == "/batch?name=nightly" and rows["nightly"]["runs"][1] == "/runs?q=batch+%3D+nightly"
    (made, ended), = scene.database.sql("select b.created_at, max(o.ended_at) from supervisor.batch b join supervisor.run r on r.batch = b.id join supervisor.outcome o on o.run_id = r.run_id where b.name = 'nightly' group by 1")
    assert [rows["nightly"][name][0] for name in ("made", "last end")] == [moment(made.isoformat()), moment(ended.isoformat())]


def test_versions_say_who_has_the_code_and_what_is_of_it(scene: Scene) -> None:
    rows = {row["workflow"][0]: row for row in tables(scene.page("/versions"))["Versions"].rows}
    waits = rows["dashed_waits"]
    assert [waits[name][0] for name in ("version", "workers", "live", "running", "code missing", "since")] == [scene.version, "1", str(NIGHTLY - 2), "0", "0", "–"]
    assert waits["workflow"][1] == "/runs?q=workflow+%3D+dashed_waits" and (rows["dashed_fails"]["live"][0], rows["dashed_counts"]["live"][0]) == (str(FAILING), "0")
    seen = scene.database.one("select v.last_seen_at from supervisor.workflow_version v join supervisor.workflow w on w.id = v.workflow where w.name = 'dashed_waits'")
    assert waits["last seen"][0] == moment(seen.isoformat())


def test_storage_says_how_large_the_tables_are(scene: Scene) -> None:
    found = {row["name"]: row for row in scene.facts("/storage")["tables"]}
    names = {name for (name,) in scene.database.sql("select relname from pg_class where relnamespace = 'supervisor'::regnamespace and relkind in ('r', 'p') and not relispartition")}
    assert set(found) == names
    parts = scene.database.one("select count(*) from pg_inherits where inhparent = 'supervisor.step'::regclass")
    size, indexes = scene.database.sql("select sum(pg_total_relation_size(inhrelid))::int8, sum(pg_indexes_size(inhrelid))::int8 from pg_inherits where inhparent = 'supervisor.step'::regclass")[0]
    assert (found["step"]["partitions"], found["step"]["bytes"], found["step"]["index_bytes"]) == (parts, size, indexes) and found["queue"]["partitions"] == 0
    html = scene.page("/storage")
    assert f"{sum(row['bytes'] for row in found.values()) / 1e6:,.1f} MB in all" in Read.of(html).text
    bytes_ = [row["bytes"] for row in scene.facts("/storage")["tables"]]
    assert bytes_ == sorted(bytes_, reverse=True)


def test_the_audit_says_who_did_what_to_what_and_why(scene: Scene) -> None:
    """The newest first: a schedule, a queue, a run, and the run that somebody ended."""
    rows = tables(scene.page("/audit"))["Audit"].rows
    told = [[row[name][0] for name in ("verb", "workflow", "who", "why")] for row in rows]
    assert told[0] == ["schedule_pause", "–", "ann", "not yet"] and told[1][0] == "schedule_create"
    assert told[2:] == [["queue_pause", "–", "cid", "the shelves are counted"], ["pause", "dashed_waits", "ann", "lunch"], ["terminate", "dashed_waits", "bob", "not needed"]]
    assert [row["done to"][1] for row in rows] == ["/schedule?name=tidy", "/schedule?name=tidy", "/queues", f"/runs/{scene.nightly[2]}", f"/runs/{scene.nightly[1]}"]
    assert [row["done to"][0] for row in rows[:3]] == ["tidy", "tidy", "dashed"]
    at = scene.database.sql("select at from supervisor.audits order by at desc")
    assert [row["when"][0] for row in rows] == [moment(each.isoformat()) for (each,) in at]
    only = tables(scene.page("/audit?verb=pause"))["Audit"].rows
    assert [row["why"][0] for row in only] == ["lunch"]


# ── as SQL ───────────────────────────────────────────────────────────────────────────────────────────────────────

# page → the statement that gives its rows, and where those stand in the JSON
SAID: dict[str, tuple[tuple[str, Callable[[Any], list[Row]]], ...]] = {
    "/health": (("page_queues", lambda f: f["queues"]), ("page_workers", lambda f: f["workers"]), ("page_leader", lambda f: f["leader"])),
    "/runs": (("list_runs", lambda f: f["runs"]), ("page_saved", lambda f: f["saved"])),
    "/runs?q=fingerprint.dashed_failing+is+null+AND+key+%5E%3D+order-+OR+wait+=+signal": (("list_runs", lambda f: f["runs"]),),
    "/runs/{run}": (("show_run", lambda f: [f]), ("show_below", lambda f: f["tree"]), ("show_audit", lambda f: f["audit"]), ("page_steps_before", lambda f: f["history"]), ("show_wait", lambda f: [f["why"]]), ("show_published", lambda f: f["published"])),
    "/runs/{run}/steps/0": (("page_step", lambda f: [f["step"]]),),
    "/queues": (("page_queues", lambda f: f["queues"]),),
    "/schedules": (("page_schedules", lambda f: f["schedules"]),),
    "/schedule?name=tidy": (("client_schedules", lambda f: [f]), ("show_schedule_audit", lambda f: f["audit"]), ("page_schedule_fires", lambda f: f["fires"])),
    "/workers": (("page_workers", lambda f: f["hosts"][0]["supervisors"][0]["workers"]),),
    "/batches": (("page_batches", lambda f: f["batches"]),),
    "/batch?name=nightly": (("page_batch", lambda f: [f]),),
    "/errors": (("page_errors", lambda f: f["errors"]),),
    "/versions": (("page_versions", lambda f: f["versions"]),),
    "/audit": (("show_audit", lambda f: f["audit"]),),
    "/audit?verb=pause&before=2100-01-01": (("show_audit", lambda f: f["audit"]),),
    "/storage": (("page_storage", lambda f: f["tables"]),),
}  # fmt: skip
OTHERWISE = re.compile(r"^(rows|dead|bytes|index_bytes|state|at|since|value|payload|result|input|counted_from|.*_at)$")  # moves between two looks, or psql writes it otherwise


def said(html: str) -> list[tuple[str, str]]:
    """The statements of a page with their names, as they stand there to be copied."""
    section = html.partition('<section class="asked">')[2].partition("</section>")[0]
    texts = [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", section, re.DOTALL)]
    return [(text.split("\n", 1)[0].removeprefix("-- "), text) for text in texts]


def typed(scene: Scene, text: str, folder: Path) -> list[Facts]:
    """What psql says to it, as somebody with a viewer's role."""
    program = shutil.which("psql") or str(scene.server.embedded.binaries.program("psql") or "")
    if not program:
        pytest.skip("psql is not installed")
    dsn = psycopg.conninfo.make_conninfo(scene.database.dsn, user=LOGIN)
    (folder / "typed.sql").write_text(text)
    made = subprocess.run([program, "-X", "--csv", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", str(folder / "typed.sql")], capture_output=True, text=True, timeout=60, env={**os.environ, "PGOPTIONS": "-c timezone=UTC"})
    assert made.returncode == 0, f"{made.stderr}\n{text}"
    return list(csv.DictReader(io.StringIO(made.stdout)))


@pytest.mark.parametrize("path", SAID)
def test_what_a_page_says_in_sql_can_be_typed_by_a_viewer(scene: Scene, tmp_path: Path, path: str) -> None:
    """All statements of the page are taken by psql, and those that give its rows give the same."""
    statements, path = SAID[path], path.format(run=scene.nightly[2])
    html, found = scene.page(path), scene.facts(path)
    answers = {name: typed(scene, text, tmp_path) for name, text in said(html)}
    for name, rows_of in statements:
        rows = rows_of(found)
        assert len(answers[name]) == len(rows), name
        for answer, row in zip(answers[name], rows, strict=True):
            same = {column: str(value) for column, value in row.items() if column in answer and not OTHERWISE.search(column) and isinstance(value, (str, int)) and not isinstance(value, bool)}
            assert len(same) > 0 and {column: answer[column] for column in same} == same, name
