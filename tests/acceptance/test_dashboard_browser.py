"""The dashboard in a real browser: signing in, Runs → a run → cancel with a reason, pages that move by themselves, and that nothing is refused by its own policy.

Screenshots are kept where PGSUPERVISOR_TEST_ARTEFACTS says, else beside the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import Client
from tests.acceptance.browser import ENTER, Browser, browser, missing
from tests.acceptance.test_dashboard import PAGES
from tests.acceptance.visits import Served, served
from tests.apps import dashed
from tests.harness import Database, Effects, HostFactory, Server, eventually

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PHONE = 390


@pytest.fixture(scope="module")
def database(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """With a host, so that what is cancelled ends."""
    made, folder = server.database(), tmp_path_factory.mktemp("host")
    try:
        with HostFactory(made, Effects(folder / "effects"), folder)("tests.apps.dashed", procs=1), Client(made.dsn) as client:
            for n in range(3):
                client.start(dashed.dashed_waits.options(key=f"order-{n}"), f"w{n}")
            client.start(dashed.dashed_fails.options(key="failing"), "f")
            client.start(dashed.dashed_counts.options(key="long"), 120)
            eventually(lambda: made.one("select count(*) from supervisor.waits where code in ('signal', 'step_backoff')") == 4, 60)
            yield made
    finally:
        made.drop()


@pytest.fixture(scope="module")
def dashboard(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("dashboard"), database.dsn) as made:
        yield made


@pytest.fixture(scope="module")
def window(dashboard: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that has signed in by the URL of the file."""
    with browser(tmp_path_factory.mktemp("browser")) as made:
        made.open(dashboard.token_file.read_text().strip())
        made.until("h1", "Health", 60)
        yield made


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    return Path(os.environ.get("PGSUPERVISOR_TEST_ARTEFACTS") or tmp_path) / "dashboard"


def test_the_token_stays_in_no_address_and_no_script_reads_the_cookie(dashboard: Served, window: Browser) -> None:
    assert window.url == f"{dashboard.url}health"
    assert window.run("return document.cookie") == "" and window.run("return performance.getEntriesByType('navigation')[0].name").find("#") == -1
    window.run("history.back()")
    window.open(f"{dashboard.url}runs")
    assert "#" not in window.url


def test_a_run_is_found_looked_at_and_cancelled_with_a_reason(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    """The page shows the end without being asked again: its stream tells it."""
    window.open(f"{dashboard.url}health")
    window.click('nav a[href="/runs"]')
    window.until("h1", "Runs")
    window.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true, cancelable: true}))")
    assert window.run("return document.activeElement.id") == "q"
    window.write("#q", "key = order-1" + ENTER)
    window.until("main", "order-1")
    window.click('td a[href^="/runs/0"]')
    window.until(".why .sentence", "It waits for the signal dashed_go")
    window.click("#do-cancel > summary")
    window.write("#cancel-reason", "the customer has left")
    window.screenshot(artefacts / "cancel.png")
    window.click("#do-cancel form button")
    window.until(".did", "You asked to cancel it")
    window.until("h1 .pip", "cancelled", 60)
    window.until("main", "the customer has left")
    assert database.sql("select actor, reason from supervisor.cancellations") == [("tester", "the customer has left")]
    window.screenshot(artefacts / "cancelled.png")
    assert window.complaints() == []


def test_a_page_moves_by_itself_and_leaves_alone_what_is_open(database: Database, dashboard: Served, window: Browser) -> None:
    """A form half written, a payload unfolded: a refresh takes neither away."""
    run = database.one("select run_id from supervisor.runs where key = 'order-2'")
    window.open(f"{dashboard.url}runs/{run}")
    window.until("#seq-0", "dashed_said")
    window.click("#seq-0 > summary")
    window.click("#do-signal > summary")
    window.write("#signal-reason", "half a rea")
    with Client(database.dsn) as client:
        client.signal(run, "dashed_other", "x")
        window.until("main", "dashed_other", 60)
        assert window.run("return document.getElementById('seq-0').open && document.getElementById('do-signal').open")
        assert window.run("return document.getElementById('signal-reason').value") == "half a rea"
        client.signal(run, dashed.DASHED_GO, "now")
        window.until("h1 .pip", "completed", 60)
    assert not window.has("#do-signal") and window.run("return document.getElementById('seq-0').open")
    window.open(f"{dashboard.url}runs")
    with Client(database.dsn) as client:
        client.start(dashed.dashed_counts.options(key="started-meanwhile"), 1)
        window.until("main", "started-meanwhile", 60)
    assert window.complaints() == []


def test_a_span_of_time_is_drawn_over_the_bars_and_looked_at_larger(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    """By mouse, by keyboard, by a link of each entry; the address says what is looked at, and goes back."""
    run = database.one("select run_id from supervisor.runs where key = 'long'")
    path = f"{dashboard.url}runs/{run}"
    lanes = "return document.querySelectorAll('.entries > li').length"
    window.open(path)
    whole = window.run(lanes)
    window.run("document.querySelector('.entries').scrollIntoView()")
    window.drag(".entries > li:nth-child(3) .lane svg", 0.4, 0.6)
    eventually(lambda: "?during=" in window.url, 30)
    window.until("#journal", "those from +")
    assert 0 < window.run(lanes) < whole and not window.has(".entries details[open]")
    window.screenshot(artefacts / "zoomed.png")
    drawn = window.url
    for key, fewer in (("+", True), ("-", False)):
        before, shown = window.url, window.run(lanes)
        window.press(key)
        eventually(lambda: window.url != before, 30)  # noqa: B023 - asked at once
        window.find("#journal")
        assert (window.run(lanes) <= shown) if fewer else (window.run(lanes) >= shown)
    window.open(drawn)
    assert 0 < window.run(lanes) < whole
    window.press("0")
    eventually(lambda: window.url == f"{path}#journal", 30)
    window.click(".entries > li:nth-child(5) summary")
    window.click(".entries > li:nth-child(5) .entry > p:last-child a")
    eventually(lambda: "?during=" in window.url, 30)
    assert 0 < window.run(lanes) < 12
    window.open(path)
    for field, value in (("from", "30"), ("to", "33")):
        window.run("document.getElementById(arguments[0]).value = arguments[1]", f"span-{field}", value)
    window.click("#span button")
    window.until(".entries > li:nth-child(4) .seq", "33")
    assert window.run(lanes) == 4 and window.url == f"{path}?from=30&to=33" and window.complaints() == []


def test_a_filter_is_kept_and_used_by_a_click(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    window.open(f"{dashboard.url}runs?q=key+%3D+failing")
    window.click(".keep > summary")
    window.write("#keep-name", "the failing one")
    window.click(".keep form button")
    window.click('.saved > a[aria-current="true"]')
    window.until(".saved > a[aria-current]", "the failing one")
    window.until("main table", "step_backoff")
    window.click(".keep > summary")
    window.screenshot(artefacts / "kept.png")
    window.click(".keep li button")
    eventually(lambda: database.sql("select 1 from supervisor.saved_views") == [], 30)


def test_a_queue_is_paused_and_resumed_by_the_button_of_its_row(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    """With a reason that somebody types; the form stays open while the page moves."""
    window.open(f"{dashboard.url}queues")
    for verb, says in (("pause", "You paused it"), ("resume", "You resumed it")):
        window.click(f'details[id^="do-{verb}-"] > summary')
        window.write(f'[id^="{verb}-"][id$="-reason"]', f"{verb} by a button")
        window.screenshot(artefacts / f"queue-{verb}.png")
        window.click(f'details[id^="do-{verb}-"] form button')
        window.until(".did", says)
    window.until("main table", "Pause…")
    found = database.sql("select verb, queue, actor, reason from supervisor.audits where queue is not null order by n")
    assert found == [("queue_pause", "dashed", "tester", "pause by a button"), ("queue_resume", "dashed", "tester", "resume by a button")]
    assert window.complaints() == []


def test_a_schedule_is_made_and_changed_by_keyboard_on_a_phone(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    """Enter looks at its next ticks, and saves nothing; what was refused stands at its field and is gone to from the top."""
    window.devtools("Emulation.setDeviceMetricsOverride", width=PHONE, height=800, deviceScaleFactor=1, mobile=True)
    window.open(f"{dashboard.url}schedules")
    window.click('.links a[href="/schedules/new"]')
    window.until("h1", "New schedule")
    window.write("#f-name", "by hand")
    window.write("#f-workflow", "dashed_counts")
    window.write("#f-cron", "61 3 * * *")
    window.write("#f-timezone", "Europe/Berlin" + ENTER)
    window.until('[role="alert"]', "Bad minute")
    assert window.run("return document.documentElement.scrollWidth") <= PHONE
    window.screenshot(artefacts / "schedule-refused.png")
    window.click('[role="alert"] a[href="#f-cron"]')
    assert window.run("return document.getElementById('f-name').value + document.getElementById('f-workflow').value") == "by handdashed_counts"
    window.run("document.getElementById('f-cron').value = ''")
    window.write("#f-input", '{"steps": 1}')
    window.write("#f-cron", "30 3 * * *" + ENTER)
    window.until(".terms table", "T03:30:00+0")
    assert database.sql("select from supervisor.schedules") == []
    window.screenshot(artefacts / "schedule-looked-at.png")
    window.write("#f-reason", "the accounts want it")
    window.run("document.querySelector('button[value=save]').focus()")
    window.press(ENTER)
    window.until(".did", "You created it")
    window.click('.links a[href^="/schedule/change"]')
    window.until("h1", "Change schedule by hand")
    window.run("document.getElementById('f-cron').value = ''")
    window.write("#f-every", "7200" + ENTER)
    window.until(".terms", "What is changed")
    window.write("#f-reason", "more often")
    window.screenshot(artefacts / "schedule-change.png")
    window.click('button[value="save"]')
    window.until(".did", "You changed it")
    window.devtools("Emulation.clearDeviceMetricsOverride")
    assert database.sql("select every_s, cron, timezone from supervisor.schedules") == [(7200.0, None, "Europe/Berlin")]
    found = database.sql("select verb, actor, reason from supervisor.audits where schedule = 'by hand' order by n")
    assert found == [("schedule_create", "tester", "the accounts want it"), ("schedule_change", "tester", "more often")]
    assert [said for said in window.complaints() if "400 (Bad Request)" not in said] == []


def test_every_page_fits_a_phone_and_is_reached_by_keyboard(database: Database, dashboard: Served, window: Browser, artefacts: Path) -> None:
    """In light and dark, without a bar to scroll sideways, and nothing to click that Tab does not reach."""
    run, failing = (database.one("select run_id from supervisor.runs where key = %s", key) for key in ("long", "failing"))
    paths = {**{name: name for name in PAGES}, "run-failing": f"runs/{failing}", "run-long": f"runs/{run}", "step": f"runs/{run}/steps/3", "filter-wrong": "runs?q=oops"}
    wide = []
    for name, path in paths.items():
        window.open(f"{dashboard.url}{path}")
        window.find("main h1")
        assert window.run("return [...document.querySelectorAll('a, button, input:not([type=hidden]), select, summary')].filter(e => e.tabIndex < 0).length") == 0
        assert window.run("return [...document.querySelectorAll('input:not([type=hidden]), select, textarea')].filter(e => !e.labels.length && !e.ariaLabel).length") == 0
        window.screenshot(artefacts / f"{name.replace('/', '-')}.png")
        window.devtools("Emulation.setDeviceMetricsOverride", width=PHONE, height=800, deviceScaleFactor=1, mobile=True)
        window.dark(True)
        wide += [path] * (window.run("return document.documentElement.scrollWidth") > PHONE)
        window.screenshot(artefacts / f"{name.replace('/', '-')}-phone-dark.png")
        window.devtools("Emulation.clearDeviceMetricsOverride")
        window.dark(False)
    assert not wide
    assert [said for said in window.complaints() if "400 (Bad Request)" not in said] == []
    assert len(list(artefacts.glob("*.png"))) >= 2 * len(paths)
