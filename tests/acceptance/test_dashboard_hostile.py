"""Two hundred hostile strings in every field that a page shows: what is stored by others is text to a browser, and nothing else."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.core.registry import is_name
from supervisor.core.shown import plain
from tests.acceptance.hostile import HOSTILE, Hostile
from tests.acceptance.test_dashboard import PAGES, inline
from tests.acceptance.visits import Read, Visitor, filled, served
from tests.harness import Server

TAGS = set(
    "html head meta title link script body a header nav span form input button main h1 h2 h3 section dl dt dd div details summary pre code p ul ol li table thead tbody tr th td time small select option label "
    "footer figure svg rect strong i textarea fieldset legend datalist".split()
)
NAMES = set(
    "lang charset name content rel href src defer class id tabindex aria-label aria-labelledby aria-current aria-hidden aria-invalid aria-describedby role title method action type value for placeholder autocomplete spellcheck required "
    "maxlength rows open datetime scope form viewbox preserveaspectratio x y width height hx-get hx-trigger hx-swap hx-morph-skip data-label data-all data-chart data-pieces data-begin data-key step min checked selected list inputmode formnovalidate".split()
)


@pytest.fixture(scope="module")
def hostile(server: Server) -> Iterator[Hostile]:
    database = server.database()
    try:
        yield Hostile(database)
    finally:
        database.drop()


@pytest.fixture(scope="module")
def visitor(hostile: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    folder = tmp_path_factory.mktemp("hostile")
    with served(folder, hostile.database.dsn, "--timeout", "30", "--log-dir", str(hostile.log(folder / "logs"))) as made:
        yield made.visitor(HOSTILE[0])


def harmless(html: str) -> Read:
    """The page, if it has nothing in it but what the templates say."""
    read = Read.of(html)
    assert {tag for tag, _ in read.tags} <= TAGS
    assert {name for _, attributes in read.tags for name in attributes} <= NAMES
    assert inline(read) == []
    odd = {char for char in set(html) if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")}
    assert not odd, odd
    return read


def test_there_are_two_hundred(hostile: Hostile) -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == len(hostile.runs) == 200


def test_lists_show_hostile_strings_as_text(hostile: Hostile, visitor: Visitor) -> None:
    """In every cell, every link, every form field, and the SQL below."""
    for name in PAGES:
        answer = visitor.get(f"/{name}")
        assert answer.status == 200, answer.text
        harmless(answer.text)
        assert visitor.get(f"/{name}.json").body.isascii()
    text, page, links = "", "/runs", 0
    while page:
        read = harmless(visitor.get(page).text)
        text += read.text
        page = next((link for link in read.attributes("a", "href") if link.startswith("/runs?") and "after=" in link), "")
        links += 1
    assert links == 4
    assert [key for key in HOSTILE if plain(key) not in text] == []


def test_runs_show_hostile_strings_as_text(hostile: Hostile, visitor: Visitor) -> None:
    """Input, steps, results, tracebacks, signals, published values, who did what and why: all of it, for each."""
    for text, run in hostile.runs.items():
        answer = visitor.get(f"/runs/{run}")
        assert answer.status == 200, (text, answer.text)
        assert plain(text) in harmless(answer.text).text
    for text, run in list(hostile.runs.items())[::20]:
        assert plain(text) in harmless(visitor.get(f"/runs/{run}/steps/1").text).text


def test_schedules_show_hostile_strings_as_text(hostile: Hostile, visitor: Visitor) -> None:
    """By pages, and each on its own: names, inputs, errors, who paused them and why."""
    text, page = "", "/schedules"
    while page:
        read = harmless(visitor.get(page).text)
        text += read.text
        page = next((link for link in read.attributes("a", "href") if link.startswith("/schedules?") and "after=" in link), "")
    assert [name for name in HOSTILE if plain(name) not in text] == []
    for name in HOSTILE[::3]:
        answer = visitor.get(f"/schedule?name={_quoted(name)}")
        assert answer.status == 200, (name, answer.text)
        assert plain(name) in harmless(answer.text).text
        assert visitor.get(f"/schedule.json?name={_quoted(name)}").json()["name"] == name


def test_a_form_that_nobody_has_touched_changes_nothing_of_a_schedule_that_is_called_like_that(hostile: Hostile, visitor: Visitor) -> None:
    """What a page shows of a text is not always that text: what comes back as it was shown is no change. Names that only SQL takes are refused as the client refuses them."""
    for name in HOSTILE[::4]:
        path = f"/schedule/change?name={_quoted(name)}"
        harmless(visitor.get(path).text)
        answer = visitor.post(path, filled(visitor, path, do="preview"))
        read = harmless(answer.text)
        assert answer.status == 400 and ("nothing to change" if is_name(name) else "printable characters") in read.text, read.text


def test_a_verb_reaches_the_queue_and_the_schedule_that_are_called_like_that(hostile: Hostile, visitor: Visitor) -> None:
    """A name is not a part of an address, and comes back from its field as it is stored."""
    for name in HOSTILE[::12]:
        was = hostile.database.one("select paused_at is not null from supervisor.queues where queue = %s", name)
        assert visitor.post(f"/queues/{'resume' if was else 'pause'}", {"name": _quoted(name), "reason": name}).status == 303
        assert hostile.database.one("select paused_at is not null from supervisor.queues where queue = %s", name) is not was
        assert visitor.post("/schedules/delete", {"name": _quoted(name), "reason": "no more"}).status == 303
        assert hostile.database.sql("select from supervisor.schedules where name = %s", name) == []
    fields = {attributes["value"] for _, attributes in Read.of(visitor.get("/queues").text).tags if attributes.get("name") == "name"}
    assert fields >= set(map(_quoted, HOSTILE))


def test_json_gives_hostile_strings_as_they_are(hostile: Hostile, visitor: Visitor) -> None:
    """In ASCII; and nothing that sniffs takes it for a page."""
    for text, run in list(hostile.runs.items())[::4]:
        answer = visitor.get(f"/runs/{run}.json")
        assert answer.body.isascii() and answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
        found = answer.json()
        assert (found["key"], found["workflow"], found["input"]["value"], found["history"][0]["name"]) == (text, text, text, text)


def test_what_a_visitor_sends_comes_back_as_text(hostile: Hostile, visitor: Visitor) -> None:
    """In the filter, in the address, in a reason, in a name."""
    run = next(iter(hostile.runs.values()))
    for text in HOSTILE:
        answer = visitor.ask("GET", f"/runs?q={_quoted(text)}")
        assert answer.status in (200, 400), answer.text
        harmless(answer.text)
    for text in HOSTILE[::8]:
        harmless(visitor.ask("GET", f"/batch?name={_quoted(text)}").text)
        harmless(visitor.ask("GET", f"/audit?verb={_quoted(text)}&before={_quoted(text)}").text)
        harmless(visitor.post("/runs/do", {"verb": "cancel", "q": f"key = {json.dumps(text)}" if text.isascii() and text.isprintable() else "priority = 1", "reason": text}).text)
        harmless(visitor.do(run, "signal", text, name=text, value=text).text or "<p></p>")
        redirected = visitor.ask("GET", f"/login?next={_quoted(text)}").text
        assert all(value.startswith("/") and not value.startswith(("//", "/\\")) for value in [a["value"] or "" for _, a in Read.of(redirected).tags if a.get("name") == "next"])


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def test_no_template_marks_anything_as_safe() -> None:
    """Escaping is on for all of them, and none turns it off."""
    folder = Path(__file__).parents[2] / "supervisor" / "dashboard"
    templates = list((folder / "templates").iterdir())
    assert len(templates) >= 7
    for path in templates:
        words = path.read_text()
        assert "|safe" not in words.replace(" ", "") and "autoescape" not in words and "Markup" not in words
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    assert sources.count("Markup(") == 0 and "autoescape=True" in sources
