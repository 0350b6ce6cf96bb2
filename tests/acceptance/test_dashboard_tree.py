"""The tree that a run is in: the same on its page, in its JSON and in a terminal, as far as it is read, and it says where there is more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

pytest.importorskip("starlette", reason="the extra [dashboard] is not installed")

from supervisor.db.history import TREE
from supervisor.db.statements import Sql
from tests.acceptance.test_workers import command
from tests.acceptance.visits import Served, Visitor, served, tables
from tests.harness import Database, Server

PAGE_S = 0.03  # of what a usual run's tree may take the database


@dataclass
class Scene:
    database: Database
    dashboard: Served
    ann: Visitor

    def run(self, key: str, parent: UUID | None = None, seq: int = 0, *, ended: bool = True) -> UUID:
        """A run as the engine stores it, that ended or waits; started by *parent* where there is one."""
        one, sql = self.database.one, self.database.sql
        run: UUID = one("insert into supervisor.run (run_id, workflow, queue, prio, key, input, parent_id, parent_seq) values (supervisor.new_id(), 1, 1, 5, %s, '{}', %s, %s) returning run_id", key, parent, seq if parent else None)
        if ended:
            sql("insert into supervisor.outcome (run_id, ended_at, worker, steps, status) values (%s, now(), 1, 1, 1)", run)
        else:
            sql("insert into supervisor.task (run_id, ready_at, queue, workflow, wait_kind, step, seq) values (%s, 'infinity', 1, 1, 11, 'go', 3)", run)
        if parent:
            sql("insert into supervisor.child (parent_id, seq, run_id) values (%s, %s, %s)", parent, seq, run)
        return run

    def shown(self, run: UUID) -> list[tuple[str, str | None, str, str]]:
        """The lines of the tree on a run's page: text and link of the run, its status, its key."""
        return [(row["run"][0], row["run"][1], row["status"][0], row["key"][0]) for row in tables(self.ann.get(f"/runs/{run}").text)["Tree"].rows]


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = server.database()
    database.sql("insert into supervisor.queue (name) values ('q')")
    database.sql("insert into supervisor.workflow (name, queue) values ('order', 1)")
    with served(tmp_path_factory.mktemp("tree"), database.dsn) as dashboard:
        yield Scene(database, dashboard, dashboard.visitor())
    database.drop()


def test_all_above_and_below_is_one_tree(scene: Scene, tmp_path: Path) -> None:
    """Whoever looks at the run in the middle sees what waits for it, and the grandchild that all of them wait for."""
    root = scene.run("root", ended=False)
    parent = scene.run("parent", root, 1, ended=False)
    run = scene.run("itself", parent, 2, ended=False)
    first, second = scene.run("first", run, 3), scene.run("second", run, 4, ended=False)
    grandchild = scene.run("grandchild", second, 0, ended=False)
    scene.run("aunt", root, 2)
    lines = scene.shown(run)
    assert [(href, key) for _, href, _, key in lines] == [(f"/runs/{root}", "root"), (f"/runs/{parent}", "parent"), (None, "itself"), (f"/runs/{first}", "first"), (f"/runs/{second}", "second"), (f"/runs/{grandchild}", "grandchild")]
    assert [status.split()[1:] for _, _, status, _ in lines] == [["waiting", "signal"]] * 3 + [["completed"]] + [["waiting", "signal"]] * 2
    tree = scene.ann.get(f"/runs/{run}.json").json()["tree"]
    assert [(each["level"], each["run_id"], each["parent_id"], each["key"], each["status"], each["wait"], each["children"]) for each in tree] == [
        (-2, str(root), None, "root", "waiting", "signal", None), (-1, str(parent), str(root), "parent", "waiting", "signal", None), (0, str(run), str(parent), "itself", "waiting", "signal", 2),
        (1, str(first), str(run), "first", "completed", None, 0), (1, str(second), str(run), "second", "waiting", "signal", 1), (2, str(grandchild), str(second), "grandchild", "waiting", "signal", 0)]  # fmt: skip
    assert json.loads(command(scene.database, "show", str(run), "--json", folder=tmp_path).stdout)["tree"] == tree
    page = command(scene.database, "show", str(run), folder=tmp_path).stdout
    told = page.partition("\ntree\n")[2].splitlines()
    assert [line.split("  ")[-3 if line.endswith("this run") else -2].strip() for line in told] == [each["run_id"] for each in tree]
    assert [each["run_id"] for each in scene.ann.get(f"/runs/{root}.json").json()["tree"]][:2] == [str(root), str(parent)]


def test_children_alone_make_no_tree(scene: Scene) -> None:
    """They are listed anyway; the JSON has them."""
    run = scene.run("alone", ended=False)
    scene.run("only child", run, 1)
    html = scene.ann.get(f"/runs/{run}").text
    assert "Tree" not in tables(html) and [row["key"][0] for row in tables(html)["Children"].rows] == ["only child"]
    assert [each["level"] for each in scene.ann.get(f"/runs/{run}.json").json()["tree"]] == [0, 1]


def test_a_child_that_went_on_is_shown_as_what_it_is_now(scene: Scene) -> None:
    """"continued" would send whoever looks through the whole chain to find the run that waits."""
    run = scene.run("parent of a chain", ended=False)
    child = scene.run("chain", run, 1)
    links = [scene.run(f"chain, {n}", ended=n == 1) for n in (1, 2)]
    for n, link in enumerate(links, 1):
        scene.database.sql("insert into supervisor.child_continued (parent_id, seq, n, run_id) values (%s, 1, %s, %s)", run, n, link)
    scene.run("below the chain", links[1], 0)
    assert [line[1:] for line in scene.shown(run)][1:] == [(f"/runs/{links[1]}", "◷ waiting signal", "chain, 2"), (f"/runs/{scene.database.one('select run_id from supervisor.run where key = %s', 'below the chain')}", "✓ completed", "below the chain")]
    assert scene.shown(run)[1][0].endswith("continued")
    row = scene.ann.get(f"/runs/{run}.json").json()["tree"][1]
    assert (row["run_id"], row["started_id"]) == (str(links[1]), str(child))


def test_where_reading_ends_it_says_how_much_more_there_is(scene: Scene) -> None:
    """Each place with more leads to all of it: children of one run, levels, runs in all."""
    _, levels, of_each, _ = TREE
    run = scene.run("with many", ended=False)
    children = [scene.run(f"many {n}", run, n) for n in range(of_each + 5)]
    scene.run("below the last of many", children[-1], 0)
    lines = scene.shown(run)
    assert [line[3] for line in lines] == ["with many", *(f"many {n}" for n in range(5, of_each + 5)), "below the last of many", ""]
    assert lines[-1][0].endswith("and 5 more") and lines[-1][1] == f"/runs?q=parent+%3D+%22{run}%22"
    found = scene.ann.get(lines[-1][1].replace("/runs?", "/runs.json?")).json()["runs"]
    assert len(found) == of_each + 5

    chain = [scene.run("deep 0")]
    for n in range(1, 2 * levels + 4):
        chain.append(scene.run(f"deep {n}", chain[-1], 0))
    page = tables(scene.ann.get(f"/runs/{chain[levels + 2]}").text)["Tree"]
    assert [row["key"][0] for row in page.rows] == [*(f"deep {n}" for n in range(2, 2 * levels + 3)), ""] and page.rows[-1]["run"][0].endswith("and 1 more")
    assert f'<a href="/runs/{chain[1]}">the run above the first one</a>' in scene.ann.get(f"/runs/{chain[levels + 2]}").text

    wide = scene.run("wide", ended=False)
    for n in range(of_each):
        child = scene.run(f"wide {n}", wide, n)
        for m in range(of_each):
            scene.run(f"wide {n}.{m}", child, m)
    tree = scene.ann.get(f"/runs/{wide}.json").json()["tree"]
    assert len(tree) == TREE[0] and sum(each["children"] for each in tree) == of_each + of_each**2
    said = [line[0] for line in scene.shown(wide) if " more" in line[0]]
    assert sum(int(text.split()[-2]) for text in said) == of_each + of_each**2 + 1 - TREE[0]


@pytest.mark.alone
def test_a_usual_tree_costs_a_page_little(scene: Scene) -> None:
    """Three above, five below with five each: of a page that is drawn twice a second while somebody looks."""
    above = [scene.run("top", ended=False)]
    for n in range(3):
        above.append(scene.run(f"down {n}", above[-1], 1, ended=False))
    for n in range(5):
        child = scene.run(f"beneath {n}", above[-1], n, ended=n < 4)
        for m in range(5):
            scene.run(f"beneath {n}.{m}", child, m)
    took = []
    with scene.database.connect() as conn, conn.transaction():
        cursor = psycopg.RawCursor(conn)
        cursor.execute(Sql().get("page_settings").encode(), ("5000",))
        for _ in range(7):
            began = time.perf_counter()
            rows = cursor.execute(Sql().get("show_above").encode(), (above[-1], TREE[1]), prepare=True).fetchall() + cursor.execute(Sql().get("show_below").encode(), (above[-1], *TREE), prepare=True).fetchall()
            took.append(time.perf_counter() - began)
            assert len(rows) == 3 + 31
    assert sorted(took)[3] < PAGE_S, took
