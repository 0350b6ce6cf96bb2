"""Two hundred hostile strings in every field that a page shows: what is stored by others is text to a browser, and nothing else."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.shown import plain
from tests.acceptance.test_dashboard import PAGES, inline
from tests.acceptance.visits import Read, Visitor, served
from tests.harness import Database, Server

_MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "<iframe src=//evil.example></iframe>", "<style>*{display:none}</style>", "<!-- ", "-->",
    "]]>", "</textarea><script>alert(1)</script>", "</pre><b>", "</title><script>alert(1)</script>", "</option></select><b>", "<a href=javascript:alert(1)>x</a>", "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0>", "<form action=//evil.example>", "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>", "<div hx-get=/logout hx-trigger=load>", "<template>",
    "<object data=//evil.example>",
]  # fmt: skip
_ATTRIBUTES = ['" onmouseover="alert(1)', "' onmouseover='alert(1)", "\" autofocus onfocus=alert(1) x=\"", "` onx=`", "\"><script>alert(1)</script>", "'><img src=x onerror=alert(1)>", '" style="position:fixed', "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "//evil.example/", "/\\evil.example"]
_TEMPLATES = ["{{ 7*7 }}", "{% include '/etc/passwd' %}", "{{ self.__init__.__globals__ }}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "{{'a'|safe}}", "%s%s%n", "%00", "{0.__class__}", "$1 $2", ":'p1'", "\\set x", "'; drop table supervisor.task; --", "\\'; select 1", "$$ || $$"]
_INVISIBLE = ["a\u202eb", "a\u2066b\u2069", "\u200b\u200d", "\ufeff", "\u2028line", "\u2029", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x07\x08\x0b\x0c", "\x7f", "\x80\x9b", "tab\there", "line\nbreak", "\r\nSet-Cookie: a=b", "\ufff9x\ufffa", "\U000e0041\U000e0042", "\u00ad", "\u061c", "\x01\x02\x03"]
_ODD = ["", " ", "0", "null", "true", "NaN", "../../etc/passwd", "?q=1&x=2#y", "a&amp;b", "&lt;b&gt;", "&#x3c;script&#x3e;", "ﷺ" * 20, "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢", "🧨" * 30, "x" * 180, "שלום", "مرحبا", "ＡＢＣ", "con", "order by started", "constructor", "__proto__", "toString"]
_BASE = [*_MARKUP, *_ATTRIBUTES, *_TEMPLATES, *_INVISIBLE, *_ODD]
# and combinations of them, so that there are two hundred; all differ, none is too long for a key, none is empty
HOSTILE = list(dict.fromkeys([*_BASE, *(f"{a}{b}"[:190] for a, b in itertools.product(_ATTRIBUTES, [*_INVISIBLE, *_MARKUP])), *(f"{a}{b}" for a, b in itertools.product(_MARKUP, _INVISIBLE))]))
HOSTILE = [text for text in HOSTILE if text.strip() and not text[-1].isspace()][:200]

TAGS = set(
    "html head meta title link script body a header nav span form input button main h1 h2 h3 section dl dt dd div details summary pre code p ul ol li table thead tbody tr th td time small select option label "
    "footer figure svg rect strong i textarea".split()
)
NAMES = set(
    "lang charset name content rel href src defer class id tabindex aria-label aria-labelledby aria-current aria-hidden aria-invalid aria-describedby role title method action type value for placeholder autocomplete spellcheck required "
    "maxlength rows open datetime scope form viewbox preserveaspectratio x y width height hx-get hx-trigger hx-swap hx-morph-skip data-label data-all data-chart checked selected".split()
)


class Hostile:
    """Runs, steps, errors, messages, people and workers that are called like that."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs: dict[str, str] = {}
        with database.connect() as conn:
            for n, text in enumerate(HOSTILE):
                self.runs[text] = str(self._fill(conn, n, text))
            conn.execute("insert into supervisor.queue (name) select distinct left(x, 200) from unnest(%s::text[]) x on conflict do nothing", (HOSTILE,))

    def _fill(self, conn: Any, n: int, text: str) -> Any:
        def one(query: str, *values: object) -> Any:
            return conn.execute(query, values).fetchone()[0]

        payload, error = json.dumps({"value": text, text: [text]}), json.dumps({"type": text, "message": text, "traceback": f"  File {text}\n", "args": [text]}).encode()
        queue = one("insert into supervisor.queue (name) values (%s) returning id", text)
        one("insert into supervisor.workflow (name, queue) values (%s, %s) returning id", text, queue)
        run = one("select supervisor.start(%s, key => %s, attributes => jsonb_build_object('said', %s::text), batch => %s)", text, text, text, text)
        conn.execute("update supervisor.run set input = %s where run_id = %s", (payload.encode(), run))
        conn.execute("insert into supervisor.worker (boot, host, pid, supervisor, dead_at, death) values (gen_random_uuid(), %s, 1, gen_random_uuid(), now(), %s)", (text, text))
        for seq, kind, status, result in ((0, 1, 1, payload.encode()), (1, 1, 2, error), (2, 2, 1, None)):
            conn.execute("insert into supervisor.step values (%s, now(), now() + interval '2 s', %s, %s, 1, %s, %s, %s, %s)", (run, seq, seq, kind, status, text, result))
        conn.execute("insert into supervisor.attempt values (%s, 1, 1, 1, now(), now(), now(), 1, %s, %s, %s), (%s, 3, 1, 1, now(), now(), now() + interval '1 h', 1, %s, %s, %s)", (run, text, error, text) * 2)
        conn.execute("insert into supervisor.publication values (%s, now(), 1, %s, %s)", (run, text[:200], payload.encode()))
        controls = any(unicodedata.category(char) == "Cc" for char in text)  # which the name of a signal may not have
        one("select supervisor.signal(%s, %s, %s::jsonb, %s)", run, f"s{n}" if controls else text, payload, f"s{n}" if controls else text)
        if n % 3 == 0:
            one("select supervisor.pause(%s, %s, %s)", run, text, text)
        elif n % 3 == 1:
            one("select supervisor.cancel(%s, %s, actor => %s)", run, text, text)
        else:
            detail = json.dumps({"signals": [text], "waits_for": [text]}) if n % 2 else text
            conn.execute("update supervisor.task set wait_kind = 11, ready_at = 'infinity', wait_detail = %s, step = %s, seq = 4, version = %s where run_id = %s", (detail, text, text, run))
        return run


@pytest.fixture(scope="module")
def hostile(server: Server) -> Iterator[Hostile]:
    database = server.database()
    try:
        yield Hostile(database)
    finally:
        database.drop()


@pytest.fixture(scope="module")
def visitor(hostile: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with served(tmp_path_factory.mktemp("hostile"), hostile.database.dsn, "--timeout", "30") as made:
        yield made.visitor(HOSTILE[0])


def harmless(html: str) -> Read:
    """The page, if it has nothing in it but what the templates say."""
    read = Read.of(html)
    assert {tag for tag, _ in read.tags} <= TAGS
    assert {name for _, attributes in read.tags for name in attributes} <= NAMES
    assert inline(read) == []
    odd = {char for char in html if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")}
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
