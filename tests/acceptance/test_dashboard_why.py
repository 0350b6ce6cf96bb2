"""A run that waits for each kind of thing there is, in a real browser: its page says first what, since when, what frees it and who can act, with the buttons that do.

A screenshot of each, on a desk and in the dark on a phone, is kept where PGSUPERVISOR_TEST_ARTEFACTS says, else beside the test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from supervisor import Client
from supervisor.dashboard.why import spoken
from tests import staged
from tests.acceptance.browser import Browser, browser, missing
from tests.acceptance.visits import served
from tests.apps import staged as app
from tests.harness import Database, Effects, Host, HostFactory, Server, eventually

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PHONE = 390
ALWAYS = {"pause", "fork", "update", "cancel", "terminate"}  # what any live run is offered
# code → a part of the sentence, what frees it at a press (None: nothing that one could press), what else is there
EXPECTED: dict[str, tuple[str, str | None, set[str]]] = {
    "queued": ("a worker with free capacity takes it", None, set()), "run_paused": ("Paused by ann: the warehouse is shut", "resume", set()),
    "queue_paused": ("Its queue staged_shut is paused by ann: the shelves are counted", "resume-queue", set()),
    "step_running": ("Step staged_slow (seq 0) is executing", None, {"skip"}), "step_backoff": ("Step staged_capture (seq 6) failed once; it is tried again", "retry", {"skip", "edit_retry"}),
    "timer": ("It sleeps", None, set()), "signal": ("It waits for the signal staged_approved", "signal", set()), "token": ("token", "complete", {"fail", "skip"}),
    "child": ("child", None, set()), "any_of": ("several", "signal", set()), "nondeterminism": ("parked until somebody acts", "retry", set()),
    "code_missing": ("parked until somebody acts", "retry", set()), "attempts_exhausted": ("ended its worker 3 times, the last one by SIGKILL", "retry", {"skip"}),
    "crash_loop": ("parked until somebody acts", "retry", set()), "commit_rejected": ("parked until somebody acts", "retry", set()),
    "update": ("update", "update", set()), **dict.fromkeys(("concurrency", "rate_limited", "fairness", "debounce", "batch"), ("", None, set())),
    "schedule_overlap": ("The previous run of its schedule has not ended", None, set()),
}  # fmt: skip
# what of the banner one sees without scrolling: its sentence, and by its terms what stands there
BANNER = """
const seen = (e) => { const box = e.getBoundingClientRect(); return box.width > 0 && box.height > 0 && box.top >= 0 && getComputedStyle(e).visibility === 'visible'; };
const why = document.querySelector('.why'), sentence = why.querySelector('.sentence');
const terms = [...why.querySelectorAll('dl div')].filter(seen).map(e => [e.querySelector('dt').innerText, e.querySelector('dd').innerText]);
const buttons = [...why.querySelectorAll('.action > summary')].filter(seen).map(e => [e.parentElement.id.slice(3), e.parentElement.classList.contains('first')]);
return {above: seen(sentence) && sentence.getBoundingClientRect().bottom < innerHeight, sentence: sentence.innerText, terms: Object.fromEntries(terms), buttons};
"""


@dataclass
class Scene:
    database: Database
    host: Host
    client: Client
    runs: dict[str, UUID]
    window: Browser
    url: str

    def open(self, run: Any) -> None:
        self.window.open(f"{self.url}runs/{run}")

    def press(self, code: str, verb: str, **fields: str) -> None:
        """The form of *verb* on the run of *code*, filled in and sent with a reason."""
        self.open(self.runs[code])
        self.window.click(f"#do-{verb} > summary")
        for name, text in fields.items():
            self.window.run("document.getElementById(arguments[0]).value = ''", f"{verb}-{name}")
            self.window.write(f"#{verb}-{name}", text)
        self.window.write(f"#{verb}-reason", f"{verb} for a test")
        self.window.click(f"#do-{verb} form button")

    def status(self, code: str) -> Any:
        return self.database.one("select status from supervisor.runs where run_id = %s", self.runs[code])

    def deeds(self, code: str) -> list[tuple[Any, ...]]:
        return self.database.sql("select verb, actor, reason from supervisor.audits where run_id = %s order by n", self.runs[code])


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("staged")
    database, effects = server.database(), Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    logs = ("--log-dir", str(folder / "logs"))
    try:
        host = hosts.start(staged.APP, procs=1, args=logs).wait_up(1)
        with Client(database.dsn) as client, served(folder / "dashboard", database.dsn, *logs) as dashboard, browser(folder) as window:
            runs = staged.stage(database, client, effects)
            window.open(dashboard.token_file.read_text().strip())
            window.until("h1", "Health", 60)
            yield Scene(database, host, client, runs, window, dashboard.url)
            assert window.complaints() == []
    finally:
        effects.open(staged.GATE)
        hosts.stop_all()
        database.drop()


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    return Path(os.environ.get("PGSUPERVISOR_TEST_ARTEFACTS") or tmp_path) / "why"


def photographed(window: Browser, path: Path) -> None:
    """In the light on a desk; in the dark on a phone, where nothing may be wider than it."""
    window.screenshot(path.with_suffix(".png"))
    window.devtools("Emulation.setDeviceMetricsOverride", width=PHONE, height=800, deviceScaleFactor=1, mobile=True)
    window.dark(True)
    wide = window.run("return document.documentElement.scrollWidth")
    window.screenshot(path.with_name(f"{path.name}-phone-dark.png"))
    window.devtools("Emulation.clearDeviceMetricsOverride")
    window.dark(False)
    assert wide <= PHONE


def answers(scene: Scene, code: str, run: Any, sentence: str, frees: str | None, others: set[str]) -> None:
    """The four questions, answered in the banner of the open page by what is stored."""
    freed_by, who = scene.database.sql("select freed_by, who from supervisor.waits where run_id = %s", run)[0]
    banner = scene.window.run(BANNER)
    assert banner["above"] and code in banner["sentence"] and sentence in banner["sentence"], banner
    assert "ago" in banner["terms"]["since"] or "now" in banner["terms"]["since"]
    assert (banner["terms"]["what frees it"], banner["terms"]["who can act"]) == (spoken(freed_by)[0], spoken(who)[0])
    commands = spoken(freed_by)[1] + spoken(who)[1]
    assert commands == (scene.window.run("const e = document.querySelector('#commands pre'); return e ? e.textContent : null") or "").splitlines()
    offered = dict(banner["buttons"])
    assert [verb for verb, first in offered.items() if first] == ([frees] if frees else [])
    assert others <= set(offered) and ALWAYS - set(offered) <= {"pause"} and ("pause" in offered) == (code != "run_paused")


@pytest.mark.parametrize("code", [*staged.ENGINE, *staged.WRITTEN])
def test_the_banner_says_what_since_when_what_frees_it_and_who_can_act(scene: Scene, artefacts: Path, code: str) -> None:
    """Without scrolling, and without knowing a code."""
    scene.open(scene.runs[code])
    scene.window.find(".why")
    answers(scene, code, scene.runs[code], *EXPECTED[code])
    photographed(scene.window, artefacts / code)


def test_each_thing_that_is_waited_for_has_its_lane(scene: Scene) -> None:
    """Of the first of a signal and a timer both are seen; of two children that are gathered each."""
    for code, says in (("any_of", ["it waits for the first of several things, for ", "waits for the timer"]), ("child", ["it waits for child runs, for ", "waits for the child, for "])):
        scene.open(scene.runs[code])
        shown = scene.window.run("return [...document.querySelectorAll('.entries li svg')].map(e => e.getAttribute('aria-label'))")
        assert len(shown) == 2 and all(label.startswith(words) for label, words in zip(shown, says, strict=True)), shown


def test_a_run_behind_another_one_of_its_schedule_leads_to_that(scene: Scene) -> None:
    """Where whoever may end it finds the button."""
    front = staged.in_front(scene.database)
    scene.open(scene.runs["schedule_overlap"])
    terms = scene.window.run(BANNER)["terms"]
    assert terms["its schedule"] == staged.SCHEDULE and terms["who can act"] == "nobody has to; operators can cancel or terminate the run that it is behind"
    assert str(front)[-12:-3] in terms["behind"]
    scene.window.click(f".why a[href='/runs/{front}']")
    scene.window.until(".why .sentence", "It sleeps")
    assert {"cancel", "terminate"} <= {verb for verb, _ in scene.window.run(BANNER)["buttons"]}


def test_every_reason_there_is_was_looked_at(scene: Scene) -> None:
    """Whoever adds one says here what its page has to say."""
    assert set(EXPECTED) == set(scene.runs) == set(staged.CODES) - {staged.NOBODY}


def test_how_far_it_is_is_learned_and_what_it_says_itself_is_exact(scene: Scene) -> None:
    scene.open(scene.runs["step_backoff"])
    assert scene.window.run(BANNER)["terms"]["how far"] == "step 7 of about 12 (median of 3 runs that completed); it says 6 of 12 (50%)"


def test_the_last_log_lines_of_a_run_stand_on_its_page(scene: Scene) -> None:
    scene.open(scene.runs["step_backoff"])
    scene.window.until(".log", "capturing order 7")
    assert "part 5 of the order" in scene.window.text(".log") and "capturing order 8" not in scene.window.text(".log")


# ── pressing them ────────────────────────────────────────────────────────────────────────────────────────────────

# verb → on which run, with what in its fields; what shows that it did
PRESSED: dict[str, tuple[str, dict[str, str], Callable[[Scene], Any]]] = {
    "resume": ("run_paused", {}, lambda scene: staged.code_of(scene.database, scene.runs["run_paused"]) == "signal"),
    "retry": ("step_backoff", {}, lambda scene: scene.database.one("select count(*) from supervisor.attempts where kind = 'failed' and run_id = %s", scene.runs["step_backoff"]) == 2),
    "edit_retry": ("step_backoff", {"max_attempts": "3", "next_in": "0.5"}, lambda scene: scene.status("step_backoff") == "failed"),
    "skip": ("attempts_exhausted", {"value": "null"}, lambda scene: scene.status("attempts_exhausted") == "completed"),
    "signal": ("signal", {"value": '"ann"'}, lambda scene: scene.client.result(scene.runs["signal"], 1) == "ann" if scene.status("signal") == "completed" else False),
    "complete": ("token", {"value": '"a letter came"'}, lambda scene: scene.client.result(scene.runs["token"], 1) == "a letter came" if scene.status("token") == "completed" else False),
    "update": ("any_of", {"name": "staged_nothing"}, lambda scene: scene.database.one("select stage from supervisor.updates where run_id = %s", scene.runs["any_of"]) == "rejected"),
    "pause": ("any_of", {}, lambda scene: staged.code_of(scene.database, scene.runs["any_of"]) == "run_paused"),
    "cancel": ("timer", {}, lambda scene: scene.status("timer") == "cancelled"),
    "terminate": ("child", {}, lambda scene: scene.status("child") == "terminated"),
}  # fmt: skip


@pytest.mark.parametrize("verb", PRESSED)
def test_a_button_does_what_it_says_and_who_pressed_it_and_why_is_kept(scene: Scene, verb: str) -> None:
    """By the form, as somebody would at two in the morning."""
    code, fields, came = PRESSED[verb]
    scene.press(code, verb, **fields)
    scene.window.until(".did", "You ")
    eventually(lambda: came(scene), 60, f"{verb}: {scene.database.sql('select status, wait, step from supervisor.runs where run_id = %s', scene.runs[code])}")
    kept = scene.deeds(code) + scene.database.sql("select case how when 'terminated' then 'terminate' else 'cancel' end, actor, reason from supervisor.cancellations where run_id = %s", scene.runs[code])
    assert (verb, "tester", f"{verb} for a test") in kept
    scene.window.until("main", f"{verb} for a test", 60)


def test_the_queue_of_a_run_is_resumed_on_the_page_of_the_run(scene: Scene) -> None:
    """Who looks at the one run sees that all of its queue go on, and is back at the run."""
    scene.press("queue_paused", "resume-queue")
    scene.window.until(".did", "You resumed its queue")
    assert scene.window.run("return location.pathname") == f"/runs/{scene.runs['queue_paused']}"
    eventually(lambda: staged.code_of(scene.database, scene.runs["queue_paused"]) == staged.NOBODY, 60, "no worker of the scene serves it")
    assert scene.database.sql("select actor, reason, queue from supervisor.audits where verb = 'queue_resume'") == [("tester", "resume-queue for a test", "staged_shut")]


# ── last, for it ends the host ───────────────────────────────────────────────────────────────────────────────────


def test_the_banner_says_that_nobody_can_take_it(scene: Scene, artefacts: Path) -> None:
    """With every process dead the pages are as true as ever."""
    scene.host.kill_all()
    run = scene.runs["queued"]
    eventually(lambda: staged.code_of(scene.database, run) == staged.NOBODY, 30, "sessions are gone")
    scene.open(run)
    scene.window.until(".why .sentence", "no live worker serves its queue")
    answers(scene, staged.NOBODY, run, "no live worker serves its queue", None, set())
    photographed(scene.window, artefacts / staged.NOBODY)
