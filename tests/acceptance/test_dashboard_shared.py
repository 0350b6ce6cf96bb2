"""Open pages are made once for all who look at the same, and nothing that is one visitor's reaches another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

pytest.importorskip("starlette", reason="the extra [dashboard] is not installed")

from supervisor.dashboard import serve
from tests.acceptance.visits import Answer, Served, Visitor, served
from tests.harness import Database, Server, eventually

BLOCKED = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'pgsupervisor: dashboard' and wait_event_type = 'Lock'"


@dataclass
class Scene:
    database: Database
    dashboard: Served
    run: str


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = server.database()
    database.sql("insert into supervisor.queue (name) values ('q')")
    database.sql("insert into supervisor.workflow (name, queue) values ('order', 1)")
    (run,) = database.sql("insert into supervisor.run (run_id, workflow, queue, prio, input) values (supervisor.new_id(), 1, 1, 5, '{}') returning run_id")
    database.sql("insert into supervisor.task (run_id, ready_at, queue, workflow, wait_kind, wait_signals) select run_id, 'infinity', 1, 1, 11, array['go'] from supervisor.run")
    with served(tmp_path_factory.mktemp("shared"), database.dsn) as dashboard:
        yield Scene(database, dashboard, str(run[0]))
    database.drop()


def fragment(visitor: Visitor, path: str) -> Answer:
    """What the page asks for when it has heard that something changed."""
    return visitor.get(path, HX_Request="true")


def secrets_of(page: str) -> set[str]:
    return set(re.findall(r'name="csrf" value="([^"]*)"', page))


def test_visitors_are_given_the_same_page_and_each_its_own_secret(scene: Scene) -> None:
    """Whoever had another's could send forms as that one. Names stand in no shared page at all."""
    ann, bob = scene.dashboard.visitor("ann-the-first"), scene.dashboard.visitor("bob-the-second")
    assert ann.csrf != bob.csrf

    def given(path: str) -> tuple[Answer, Answer] | None:
        hers, his = fragment(ann, path), fragment(bob, path)
        return (hers, his) if hers.text.replace(ann.csrf, "") == his.text.replace(bob.csrf, "") else None

    for path in (f"/runs/{scene.run}", "/runs?q=status+=+waiting"):
        hers, his = eventually(lambda path=path: given(path), 20, "the same page for both, who ask within a second")  # type: ignore[misc]
        assert (hers.status, secrets_of(hers.text), secrets_of(his.text)) == (200, {ann.csrf}, {bob.csrf})
        assert not any(name in text for name in ("ann-the-first", "bob-the-second") for text in (hers.text, his.text))
        whole = bob.get(path).text
        assert "bob-the-second" in whole and secrets_of(whole) == {bob.csrf} and ann.csrf not in whole


def test_who_has_signed_out_is_given_no_shared_page(scene: Scene) -> None:
    ann, bob = scene.dashboard.visitor("ann"), scene.dashboard.visitor("bob")
    assert fragment(ann, "/runs").status == 200
    bob.post("/logout", {})
    assert fragment(bob, "/runs").status == 303
    assert fragment(Visitor(scene.dashboard.port), "/runs").status == 303


def test_a_reader_without_a_cookie_gets_no_secret(scene: Scene) -> None:
    ann = scene.dashboard.visitor("ann")
    path = f"/runs/{scene.run}"
    fragment(ann, path)
    read = Visitor(scene.dashboard.port).get(path, HX_Request="true", Authorization=f"Bearer {scene.dashboard.token()}")
    assert (read.status, secrets_of(read.text)) == (200, {""})


def test_a_page_that_many_ask_for_is_made_once(scene: Scene) -> None:
    """Twelve open pages whose question is held up by a lock: one session of the dashboard waits for it, and all twelve are answered."""
    visitors = [scene.dashboard.visitor(f"v{n}") for n in range(12)]
    with ThreadPoolExecutor(14) as threads, scene.database.connect() as holder:
        with holder.transaction():
            holder.execute("lock table supervisor.saved_view in access exclusive mode")
            asked = [threads.submit(fragment, visitor, "/runs?q=age+<+1d") for visitor in visitors]
            eventually(lambda: scene.database.one(BLOCKED) == 1, 20)
            loaded = threads.submit(visitors[0].get, "/queues")  # more sessions are free
            assert loaded.result(20).status == 200 and scene.database.one(BLOCKED) == 1
        answers = [each.result(20) for each in asked]
    assert [each.status for each in answers] == [200] * 12
    assert [secrets_of(each.text) for each in answers] == [{visitor.csrf} for visitor in visitors]


def test_what_somebody_does_is_on_everybodys_next_page(scene: Scene) -> None:
    """A page that was made before a form was sent is given to nobody after it."""
    ann, bob = scene.dashboard.visitor("ann"), scene.dashboard.visitor("bob")
    path = f"/runs/{scene.run}"
    for verb, paused in (("pause", True), ("resume", False)):
        assert ("Paused by ann" in fragment(bob, path).text) is not paused
        assert ann.do(scene.run, verb).status == 303
        assert ("Paused by ann" in fragment(bob, path).text) is paused


def test_a_page_that_is_loaded_is_always_made_anew(scene: Scene) -> None:
    """Whoever loads one, or reads JSON, sees what is there now."""
    ann = scene.dashboard.visitor("ann")
    count = lambda: scene.database.one("select count(*) from supervisor.saved_view")  # noqa: E731
    for n in range(3):
        scene.database.sql("insert into supervisor.saved_view (name, filter, login) values (%s, 'age < 1d', 'postgres')", f"view {n}")
        assert ann.get("/runs").text.count("view ") >= 1 and len(ann.get("/runs.json").json()["saved"]) == count() == n + 1
    scene.database.sql("delete from supervisor.saved_view")


def test_the_dashboard_gives_way_to_whoever_works(scene: Scene) -> None:
    assert os.getpriority(os.PRIO_PROCESS, scene.dashboard.process.pid) >= serve.NICE


def test_an_error_is_shared_as_a_page_is(scene: Scene) -> None:
    ann, bob = scene.dashboard.visitor("ann"), scene.dashboard.visitor("bob")
    path = "/runs/01a00000-0000-7000-8000-000000000000"
    assert [fragment(each, path).status for each in (ann, bob)] == [404, 404]


