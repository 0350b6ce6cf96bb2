"""What the lists of the dashboard say: every row once, however many were written at the same moment, and of each what the database has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra [dashboard] is not installed")

from tests.acceptance.test_workers import command
from tests.acceptance.visits import Served, Visitor, served, tables
from tests.harness import Database, Server

# 260 rows at three moments, none of them alone at the edge of a page
_AT = "'2026-11-30 10:00:00.123456+00'::timestamptz - n / 97 * interval '1 s'"
_FILL = (
    "insert into supervisor.queue (name) values ('q')",
    "insert into supervisor.workflow (name, queue) values ('order', 1)",
    f"insert into supervisor.audit (run_id, at, verb, login, actor, reason, details) select supervisor.new_id(), {_AT}, case when n % 2 = 0 then 'pause' else 'retry' end, 'x', 'ann', 'deed ' || n, '{{}}' from generate_series(0, 199) n",
    f"insert into supervisor.cancellation (run_id, how, asked_at, actor, reason) select supervisor.new_id(), 3, {_AT}, 'ann', 'deed ' || n from generate_series(200, 259) n",
    f"insert into supervisor.audit (run_id, at, verb, login, details) select supervisor.new_id(), {_AT}, 'schedule_pause', 'deed ' || n, '{{\"schedule\": \"nightly\"}}' from generate_series(300, 559) n",
    f"insert into supervisor.batch (name, created_at) select 'batch ' || n, {_AT} from generate_series(0, 259) n",
    "insert into supervisor.schedule (name, workflow, every_us) select 's' || n, 'order', 1000000 from generate_series(0, 119) n",
    # every tick was missed, and fired by a backfill
    "insert into supervisor.schedule_fire (schedule, tick_at, id, kind, state) select 's1', '2026-11-30'::timestamptz + n * interval '1 s', supervisor.new_id(), 3, 3 from generate_series(0, 150) n",
    "insert into supervisor.schedule_miss (schedule, from_at, until_at, ticks) select 's1', '2026-11-30'::timestamptz + n * interval '1 s', '2026-11-30', 1 from generate_series(0, 150) n",
)


@dataclass
class Scene:
    database: Database
    dashboard: Served
    ann: Visitor


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = server.database()
    for statement in _FILL:
        database.sql(statement)
    with served(tmp_path_factory.mktemp("lists"), database.dsn) as dashboard:
        yield Scene(database, dashboard, dashboard.visitor())
    database.drop()


def pages(visitor: Visitor, path: str) -> Iterator[str]:
    """A list from its beginning to its end, as somebody goes through it."""
    following: str | None = path
    while following:
        answer = visitor.get(following)
        assert answer.status == 200, answer.text
        yield answer.text
        link = re.search(r'<a rel="next" href="([^"]*)"', answer.text)
        following = unescape(link[1]) if link else None


@pytest.mark.parametrize(("path", "title", "column", "word", "numbers"), [
    ("/audit?verb=cancel", "Audit", "why", "deed ", range(200, 260)), ("/audit?verb=pause", "Audit", "why", "deed ", range(0, 200, 2)), ("/audit?verb=schedule_pause", "Audit", "role", "deed ", range(300, 560)),
    ("/batches", "Batches", "batch", "batch ", range(260)), ("/schedules", "Schedules", "schedule", "s", range(120)),
])  # fmt: skip
def test_rows_of_one_moment_are_on_one_page_each(scene: Scene, path: str, title: str, column: str, word: str, numbers: range) -> None:
    """A verb on many runs writes a page and more at once: at the edge of a page none of them is left out or shown again."""
    seen = [row[column][0] for page in pages(scene.ann, path) for row in tables(page)[title].rows]
    assert sorted(seen) == sorted(f"{word}{n}" for n in numbers)


def test_deeds_of_all_kinds_are_on_one_page_each(scene: Scene) -> None:
    """Those that are kept in two tables, too; and programs go on as people do."""
    shown = [row["why"][0] + row["role"][0] for page in pages(scene.ann, "/audit") for row in tables(page)["Audit"].rows]
    found: list[dict[str, Any]] = []
    path: str | None = "/audit.json"
    while path:
        page = scene.ann.get(path).json()
        found, path = found + page["audit"], page["next"]
    assert len(found) == len(shown) == 520 and len(set(shown)) == 520
    assert len({(each["run_id"], each["n"], each["verb"]) for each in found}) == 520
    assert [each["at"] for each in found] == sorted((each["at"] for each in found), reverse=True)
    assert len(scene.ann.get("/audit.json?before=2026-11-30T09:59:58Z").json()["audit"]) == 100 and scene.ann.get("/audit.json?before=2026-11-30T09:59:54.123456Z").json()["audit"] == []


def test_a_tick_that_has_two_rows_is_on_one_page(scene: Scene) -> None:
    fires = [(row["that is"][0], row["became"][0]) for page in pages(scene.ann, "/schedule?name=s1") for row in tables(page)["What became of its ticks"].rows]
    assert len(fires) == len(set(fires)) == 302


@pytest.mark.parametrize(("words", "deeds"), [((), 520), (("--schedule", "nightly"), 260), (("--verb", "cancel"), 60)], ids=["all", "of_a_schedule", "of_a_verb"])
def test_the_command_line_goes_on_as_it_says(scene: Scene, tmp_path: Path, words: tuple[str, ...], deeds: int) -> None:
    """Its pages end at any row, and the next one begins behind that."""
    found: list[str] = []
    more: tuple[str, ...] = ()
    for _ in range(10):
        made = command(scene.database, "audit", "--json", "--limit", "90", *words, *more, folder=tmp_path)
        assert made.returncode == 0, made.stderr
        found += made.stdout.splitlines()
        told = re.search(r"older ones: (--before) (\S+)", made.stderr)
        if told is None:
            break
        more = (told[1], told[2])
    assert len(found) == len(set(found)) == deeds


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-11-30/1", "2026-11-30/x/y/z", f"2026-11-30/{10**30}/01a00000-0000-7000-8000-000000000000/pause"])
def test_what_is_no_place_in_the_audit_is_refused(scene: Scene, tmp_path: Path, text: str) -> None:
    made = command(scene.database, "audit", "--before", text, folder=tmp_path)
    assert made.returncode == 2 and "is no time" in made.stderr
    assert scene.ann.get(f"/audit?before={text}").status == 200
