"""Two hundred hostile strings in every field, in a real browser: they are seen as text, and nothing else happens.

What would count as something: a dialog, a call of what `alert(1)` calls, a violation of the page's policy (which is what an injection would come to that the
policy stops), an element or an attribute that no template has, a title or an address that changed, a request to anywhere but the dashboard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from supervisor.core.shown import plain
from tests.acceptance.browser import Browser, browser, missing
from tests.acceptance.hostile import DENSE, HOSTILE, Hostile
from tests.acceptance.test_dashboard import PAGES
from tests.acceptance.test_dashboard_hostile import NAMES, TAGS
from tests.acceptance.visits import Served, served
from tests.harness import Server, eventually

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# before anything of a page: whatever a payload would call, or the policy refuses, is noted
WATCH = """
window.effects = [];
for (const name of ['alert', 'confirm', 'prompt', 'print', 'open', 'eval'])
  window[name] = (...given) => { window.effects.push(name + '(' + given.join() + ')'); };
document.addEventListener('securitypolicyviolation', (event) => window.effects.push('refused ' + event.effectiveDirective + ' ' + event.blockedURI));
addEventListener('error', (event) => window.effects.push('error ' + event.message), true);
"""
# elements and attributes that the templates, or the files that they name, do not make
STRANGE = """
const [tags, names, origin] = [new Set(arguments[0]), new Set(arguments[1]), location.origin];
const found = [...window.effects];
for (const each of document.querySelectorAll('*')) {
  const drawn = each.closest('.plot');  // by uPlot, from numbers
  if (!tags.has(each.localName) && !drawn) found.push('<' + each.localName + '>');
  for (const name of each.getAttributeNames()) {  // a form has its field of that name as `attributes`
    const value = each.getAttribute(name);
    if (!names.has(name.toLowerCase()) && !drawn) found.push('<' + each.localName + ' ' + name + '=' + value + '>');
    if (['href', 'src', 'action'].includes(name) && new URL(value, location).origin !== origin) found.push(name + '=' + value);
  }
}
return found.concat([...document.scripts].filter(each => !each.src || each.textContent).map(each => 'script ' + each.textContent));
"""
MADE = {"data-htmx-powered", "data-state"}  # attributes that htmx and app.js add


class Watched:
    """A window in which nothing may happen."""

    def __init__(self, window: Browser, url: str) -> None:
        self.window, self.url = window, url

    def open(self, path: str) -> None:
        self.window.open(self.url + path)
        assert self.window.url == self.url + path
        self.still()

    def still(self) -> None:
        """Nothing has happened."""
        strange = self.window.run(STRANGE, sorted(TAGS), sorted(NAMES | MADE), self.url)
        assert strange == [], (self.window.url, strange)

    def texts(self, css: str) -> list[str]:
        found: list[str] = self.window.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", css)
        return found


@pytest.fixture(scope="module")
def hostile(server: Server) -> Iterator[Hostile]:
    database = server.database()
    try:
        yield Hostile(database)
    finally:
        database.drop()


@pytest.fixture(scope="module")
def dashboard(hostile: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    with served(folder, hostile.database.dsn, "--timeout", "30", "--log-dir", str(hostile.log(folder / "logs"))) as made:
        yield made


@pytest.fixture(scope="module")
def watched(dashboard: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with browser(tmp_path_factory.mktemp("browser"), network=True) as made:
        made.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        made.open(dashboard.token_file.read_text().strip())
        made.until("h1", "Health", 60)
        made.asked()
        yield Watched(made, dashboard.url)
        assert made.complaints() == []
        elsewhere = {url for url in made.asked() if not url.startswith(dashboard.url)}
        assert not elsewhere, elsewhere


def seen(text: str) -> str:
    """As a browser gives an element's text that stands alone: without blanks around it."""
    return plain(text).strip()


def test_runs_show_hostile_strings_as_text(hostile: Hostile, watched: Watched) -> None:
    """Names, payloads, tracebacks, messages, people, ten of each on a page: it is what it would be with harmless ones."""
    for first in range(0, len(HOSTILE), DENSE):
        some = HOSTILE[first : first + DENSE]
        watched.open(f"runs/{hostile.runs[some[0]]}")
        title, lead, names, tables, terms, pres, log = watched.window.run(
            "const all = (css, part = e => e.textContent) => [...document.querySelectorAll(css)].map(e => part(e).trim());"
            "return [document.title, all('h1', e => e.firstChild.data)[0], all('.row .name', e => e.firstChild.data), all('td'), all('dt'), all('pre'), all('.log')[0]]"
        )
        assert title == " ".join(f"{plain(some[0])} {plain(some[0])} · pgsupervisor".split()) and lead == seen(some[0])
        for text in map(seen, some):
            assert text in names and tables.count(text) >= 6 and any(text in pre for pre in pres), text
            assert plain(text.strip()[:40]).split("\\")[0].strip() in log, text
            assert any(term.startswith("published") and text[:100] in term for term in terms), text


def test_a_page_that_moves_shows_hostile_strings_as_text(hostile: Hostile, watched: Watched) -> None:
    """Put into the open page as its own refresh does: by htmx, which looks at attributes and morphs what is there. Runs that are called otherwise than those above."""
    watched.open("runs/" + next(iter(hostile.runs.values())))
    others = HOSTILE[2::5]
    for first in range(0, len(others), 8):
        some = others[first : first + 8]
        leads = watched.window.run_async(
            "const leads = [];"
            "for (const run of arguments[0]) { await htmx.ajax('GET', '/runs/' + run, {target: '#main', swap: 'outerMorph'}); leads.push(document.querySelector('h1').firstChild.data.trim()); }"
            "return leads",
            [hostile.runs[text] for text in some],
        )
        assert leads == list(map(seen, some))
        watched.still()


def test_lists_show_hostile_strings_as_text(hostile: Hostile, watched: Watched) -> None:
    """In every cell of every list, page by page; and on a page of its own."""
    cells: dict[str, set[str]] = {}
    for name in PAGES:
        watched.open(name)
        cells[name] = set(watched.texts("td"))
        for _ in range(3 if name in ("runs", "batches") else 0):
            watched.open(watched.window.run("return (document.querySelector('a[rel=next]') || {pathname: '/health', search: ''}).search.replace(/^/, arguments[0])", name))
            cells[name] |= set(watched.texts("td"))
    wanted = set(map(seen, HOSTILE))
    for name in ("runs", "queues", "workers", "batches", "versions"):
        assert wanted <= cells[name], (name, wanted - cells[name])
    for name in ("errors", "audit"):
        assert len(wanted & cells[name]) >= 90, name
    for text, run in list(hostile.runs.items())[::40]:
        for path in (f"batch?{urlencode({'name': text})}", f"runs/{run}/steps/1", f"runs?{urlencode({'q': text})}", f"audit?{urlencode({'verb': text, 'before': text})}"):
            watched.open(path)


def test_an_injection_would_be_seen(watched: Watched) -> None:
    """What this file says is only worth something if it notices what it looks for."""
    watched.open("queues")
    watched.window.run("document.querySelector('main').insertAdjacentHTML('beforeend', arguments[0])", '<b onclick="alert(1)" style="color:red"><img src="x" onerror="alert(1)"></b><a href="//evil.example/">x</a>')
    watched.window.run("alert(1)")
    injected = ("alert(1)", "refused style-src-attr", "refused script-src-attr", "<b>", "<b onclick=", "<img onerror=", "href=//evil.example/")

    def missed() -> list[str]:
        found = watched.window.run(STRANGE, sorted(TAGS), sorted(NAMES | MADE), watched.url)
        return [what for what in injected if not any(each.startswith(what) for each in found)]

    # a handler is refused when its event comes: once the image's address has been asked for
    eventually(lambda: missed() == [], 30, "all of it is noticed")
    assert any("content security policy" in said.lower() for said in watched.window.complaints())
