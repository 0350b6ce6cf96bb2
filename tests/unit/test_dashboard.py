"""The dashboard's pure parts: the banner's words, the scale of a timeline, who has a key, what an address may be, what comes onto a screen."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.errors import ConfigInvalid, MissingExtra
from supervisor.core.filters import WAITS, parse

pytest.importorskip("jinja2", reason="the extra [dashboard] is not installed")

from supervisor.core.shown import place_of, place_words
from supervisor.dashboard import ANY_PORT, PORT, beside, draw, keys, page, serve, timeline, verbs, why
from supervisor.db.connect import Dsn
from supervisor.db.pages import Said

NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


# ── the banner ───────────────────────────────────────────────────────────────────────────────────────────────────


def wait(code: str | None, detail: str | None = None, **more: Any) -> dict[str, Any]:
    return {"status": "waiting", "code": code, "meaning": "it waits", "detail": detail, "since": at(-60), "wake_at": None, "step": "charge", "seq": 7, "attempt": 4, "freed_by": "the clock", "who": "nobody has to", **more}


FAILED = {"seq": 7, "n": 1, "kind": "failed", "error": {"type": "builtins.ValueError", "message": "503"}}


@pytest.mark.parametrize(
    ("given", "attempts", "says"),
    [
        (wait("step_backoff"), [FAILED] * 4, "Step charge (seq 7) failed 4 times; it is tried again"),
        (wait("step_backoff"), [FAILED], "Step charge (seq 7) failed once; it is tried again"),
        (wait("step_running", status="running"), [], "Step charge (seq 7) is executing, try 4"),
        (wait("signal", '{"signals": ["approved"], "until": null}'), [], "It waits for the signal approved"),
        (wait("run_paused", '{"by": "ann", "reason": "lunch"}', step=None, seq=None), [], "Paused by ann: lunch"),
        (wait("attempts_exhausted", '{"crashes": 3, "signal": "SIGKILL", "worker": 4, "pid": 1, "host": "h", "log": [], "traceback": ""}'), [], "Step charge (seq 7) ended its worker 3 times, the last one by SIGKILL: parked until somebody acts"),
        (wait("nondeterminism", meaning="parked: the code no longer does what the history says it did"), [], "The code no longer does what the history says it did: parked until somebody acts"),
        (wait(None, meaning="it moves: a worker is executing it"), [], "A worker is executing it"),
        (wait("child", '{"waits_for": ["child"], "of": 1}; 0 of 1 ended', meaning="it waits for child runs"), [], "It waits for child runs"),
        (wait("signal", "{broken"), [], "It waits"),
    ],
    ids=lambda value: value["code"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_the_banner_says_in_a_sentence_what_it_waits_for(given: dict[str, Any], attempts: list[dict[str, Any]], says: str) -> None:
    made = why.waiting(given, attempts, None, [])
    assert (made.sentence, made.code, made.since, made.freed_by, made.who) == (says, given["code"], at(-60), "the clock", "nobody has to")
    assert (("last error", page.Failure(FAILED["error"])) in made.notes) == bool(attempts)


def test_what_is_parked_are_reasons_to_wait() -> None:
    assert set(why.PARKED) < set(WAITS)


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────

RUN = {"run_id": "r", "status": "waiting"}


@pytest.mark.parametrize(
    ("given", "first", "lacks"),
    [
        (wait("step_backoff"), "retry", {"resume", "signal"}),
        (wait("run_paused", status="paused", seq=None), "resume", {"pause", "retry", "skip"}),
        (wait("signal", '{"signals": ["go"]}'), "signal", {"retry", "skip"}),
        (wait("code_missing", seq=None), "retry", {"skip"}),
        (wait("timer"), None, {"retry", "resume", "signal", "skip", "complete", "edit_retry"}),
        (wait("update", seq=None), "update", {"signal", "retry"}),
        (wait("any_of", '{"signals": ["go"]}'), "signal", {"retry"}),
        (wait("any_of", '{"waits_for": ["timer"]}'), None, {"retry"}),
    ],
)
def test_what_frees_a_run_is_offered_first_and_what_does_nothing_is_not(given: dict[str, Any], first: str | None, lacks: set[str]) -> None:
    offered = verbs.offered(RUN, given, [], [], page.Asked(may_act=True, may_operate=True))
    assert [action.verb for action in offered if action.first] == ([first] if first else []) and (first is None or offered[0].verb == first)
    assert not lacks & {action.verb for action in offered} and [action.verb for action in offered][-2:] == ["cancel", "terminate"]
    assert "skip" not in {action.verb for action in verbs.offered(RUN, given, [], [], page.Asked(may_act=True))}
    assert verbs.offered(RUN, given, [], [], page.Asked()) == []


def test_a_token_that_waits_is_answered_by_operators() -> None:
    """Of several the newest that is open; of none that is closed, and by nobody else."""
    tokens = [{"seq": 4, "state": "completed"}, {"seq": 3, "state": "waiting"}, {"seq": 1, "state": "waiting"}]
    operator = page.Asked(may_act=True, may_operate=True)
    complete, fail = [action for action in verbs.offered(RUN, wait("token", seq=3), [], tokens, operator) if action.verb in ("complete", "fail")]
    assert complete.first and not fail.first and complete.inputs[0].value == fail.inputs[0].value == "3"
    for given, asked in ((tokens[:1], operator), (tokens, page.Asked(may_act=True))):
        assert not {"complete", "fail"} & {action.verb for action in verbs.offered(RUN, wait("token", seq=3), [], given, asked)}


@pytest.mark.parametrize(
    ("entries", "usual", "said", "words"),
    [
        (6, {"steps": 12, "runs": 3}, None, "step 7 of about 12 (median of 3 runs that completed)"),
        (20, {"steps": 12, "runs": 1}, None, "step 21 of about 21 (median of 1 run that completed)"),
        (6, {"steps": None, "runs": 0}, {"done": 6, "total": 12}, "it says 6 of 12 (50%)"),
        (6, {"steps": 1, "runs": 9}, None, ""),
        (0, None, None, ""),
    ],
)
def test_how_far_it_is(entries: int, usual: Any, said: Any, words: str) -> None:
    """Learned where nothing is said, said where it is; nothing where nobody knows."""
    assert place_words(place_of(entries, usual, said)) == words


@pytest.mark.parametrize(
    ("stored", "words", "commands"),
    [
        ("nobody has to; operators, at once: python -m supervisor retry ID, or skip ID --seq 6", "nobody has to; operators, at once: retry, or skip", ["retry ID", "skip ID --seq 6"]),
        ("python -m supervisor signal ID 'go' --json-value …, or the wait's timeout expires", "signal 'go', or the wait's timeout expires", ["signal ID 'go' --json-value …"]),
        ("who holds the token: python -m supervisor complete TOKEN, or fail TOKEN", "who holds the token: complete, or fail", ["complete TOKEN", "fail TOKEN"]),
        ("start a worker that serves its queue", "start a worker that serves its queue", []),
    ],
)
def test_commands_are_said_in_a_word_and_stand_whole_apart(stored: str, words: str, commands: list[str]) -> None:
    """Beside buttons an id of 36 characters, three times in a line, hides what is said."""
    run = "01a22ab8-0715-7e59-84be-a9ba6cc65000"
    assert why.spoken(stored.replace("ID", run)) == (words, [f"python -m supervisor {each.replace('ID', run)}" for each in commands])


# ── the timeline ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scale_draws_long_rests_short_and_keeps_the_order() -> None:
    """Two seconds of work around three days of sleep: both are seen."""
    made = timeline.scale([(at(0), at(1)), (at(259_200), at(259_201))], at(0), at(259_201))
    assert made.x(at(0)) == 0 and made.x(at(259_201)) == timeline.WIDTH
    assert made.x(at(1)) - made.x(at(0)) > 400 and made.x(at(259_201)) - made.x(at(259_200)) > 400
    assert len(made.gaps) == 1 and "nothing executes for 2 d 23 h" in made.gaps[0][2] or "3 d" in made.gaps[0][2]
    places = [made.x(at(seconds)) for seconds in (0, 0.5, 1, 1000, 100_000, 259_200, 259_200.5, 259_201)]
    assert places == sorted(places) and len(set(places)) == len(places)
    for x in (0.0, 250.0, 500.0, 999.0):
        assert made.x(at(made.moment(x))) == pytest.approx(x, abs=0.5)


@pytest.mark.parametrize("spans", [[], [(0, 0)], [(0, 1)], [(n, n + 0.5) for n in range(0, 3000, 3)], [(5, 3)], [(-10, 900)]])
def test_any_history_has_a_scale(spans: list[tuple[float, float]]) -> None:
    """No rests, a thousand of them, clocks that stepped back: places stay within the width and ascend."""
    made = timeline.scale([(at(a), at(b)) for a, b in spans], at(0), at(3000))
    places = [made.x(at(seconds)) for seconds in range(-5, 3010, 7)]
    assert places == sorted(places) and 0 <= places[0] and places[-1] <= timeline.WIDTH and len(made.ticks(at(0))) == timeline.TICKS + 1


def test_a_lane_shows_tries_backoff_and_what_is_now() -> None:
    step = {"seq": 0, "pos": 0, "name": "s", "kind": "step", "status": "completed", "started_at": at(10), "ended_at": at(11), "duration_ms": 1000.0, "worker": 1, "payload": 1, "cut": None}
    tries = [{"seq": 0, "n": 1, "name": "s", "kind": "failed", "started_at": at(0), "ended_at": at(1), "next_retry_at": at(10), "worker": 1, "error": None, "fingerprint": None}]
    made = timeline.drawn([step], tries, wait("signal", seq=1, step="go", since=at(11)), at(0), at(20))
    assert [(lane.seq, lane.kind, lane.status, lane.tries) for lane in made.lanes] == [(0, "step", "completed", 2), (1, "signal", "waiting", 0)]
    assert [bar.kind for bar in made.lanes[0].bars] == ["failed", "backoff", "work"] and [bar.kind for bar in made.lanes[1].bars] == ["signal"]
    assert all(0 <= bar.x and bar.x + bar.width <= timeline.WIDTH + 0.1 and bar.width >= timeline.BAR_MIN for lane in made.lanes for bar in lane.bars)
    assert timeline.drawn([], [], None, at(0), at(1)).lanes == []


def test_each_of_several_things_that_are_waited_for_has_a_lane() -> None:
    """A signal, a timer, a child side by side: only the first one's beginning is in the wait, a child has its own; no other is made up."""
    detail = '{"waits_for": ["signal go at seq 1", "timer sleep at seq 2", "child run a at seq 7 at seq 3", "token of s at seq 4", 7], "of": 9}; 0 of 1 ended'
    made = timeline.drawn([], [], wait("any_of", detail, seq=1, step="go", since=at(5)), at(0), at(20), children={3: {"created_at": at(10), "ended_at": None}})
    assert [(lane.seq, lane.name, lane.kind, lane.status) for lane in made.lanes] == [(1, "go", "signal", "waiting"), (2, "sleep", "timer", "waiting"), (3, "a at seq 7", "child", "waiting")]
    assert [(lane.bars[0].kind, lane.bars[0].x, lane.bars[0].width) for lane in made.lanes] == [("signal", 0, 1000), ("timer", 997, 3), ("child", pytest.approx(333.3), pytest.approx(666.7))]
    ended = timeline.drawn([], [], wait("any_of", detail, seq=1, step="go", since=at(5)), at(0), at(20), children={3: {"created_at": at(10), "ended_at": at(11)}})
    assert ended.lanes[2].bars[0].says == "the child has ended, after 1.0 s"
    part = timeline.drawn([], [], wait("any_of", detail, seq=1, step="go", since=at(5)), at(0), at(20), has=lambda seq: seq < 3)
    assert [lane.seq for lane in part.lanes] == [1, 2], "the third is on another page"
    assert made.lanes[2].bars[0].says == "waits for the child, for 10 s"


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_opens_once_and_the_next_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    path = tmp_path / "deep" / "url"
    made = keys.Keys(path, "http://x/login", told.append, "somebody")
    token = told[0].partition("#")[2]
    assert path.read_text() == told[0] + "\n" and stat.S_IMODE(path.stat().st_mode) == 0o600 and len(token) > 40
    assert made.exchange("", "x") is None and made.exchange(token + "x", "x") is None
    came = made.exchange(token, "  ann ")
    assert came is not None and came[1].name == "ann" and made.visitor(came[0]) is came[1]
    assert made.exchange(token, "x") is None and len(told) == 2 and path.read_text() == told[1] + "\n"
    assert made.reads(told[1].partition("#")[2]) and not made.reads(token) and made.visitor("x") is None
    monkeypatch.setattr(keys, "IDLE_S", -1.0)
    assert made.visitor(came[0]) is None
    made.close()
    assert not path.exists()


def test_a_link_in_the_way_of_the_token_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Somebody who may write into the folder must not be given the token, nor have a file of ours overwritten."""
    victim, path = tmp_path / "victim", tmp_path / "url"
    victim.write_text("mine")
    path.symlink_to(victim)
    keys.write_private(path, "secret")
    assert victim.read_text() == "mine" and not path.is_symlink() and path.read_text() == "secret"


# ── where it listens ─────────────────────────────────────────────────────────────────────────────────────────────


def serving(**how: Any) -> serve.Serving:
    return serve.Serving(Dsn("", ""), "supervisor", lambda url: None, lambda url, path, listens: None, "x", **how)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"])
def test_this_machine_needs_no_tls(host: str) -> None:
    serve.check_address(serving(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org", ""])
def test_any_other_address_wants_tls_or_a_word(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="--tls-cert"):
        serve.check_address(serving(host=host))
    serve.check_address(serving(host=host, plain_http=True))
    serve.check_address(serving(host=host, tls_cert="a", tls_key="b"))


def test_names_that_a_browser_may_use() -> None:
    assert serve.hosts_of(serving(), 8577, "http") == ["127.0.0.1:8577", "127.0.0.1:8577", "localhost:8577", "[::1]:8577"]
    assert serve.hosts_of(serving(host="0.0.0.0", allow_hosts=("x.example",)), 443, "https") == ["x.example"]
    assert "10.0.0.1" in serve.hosts_of(serving(host="10.0.0.1"), 80, "http")


# ── what a screen is given ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("given", "shown"), [("<b>", "&lt;b&gt;"), ("a\u202eb", "a\\u202eb"), ("\x1b[31m", "\\x1b[31m"), ("a\nb", "a\\nb"), ('"', "&#34;"), (draw.Lines("a\n<b>\x07"), "a\n&lt;b&gt;\\x07")])
def test_text_is_escaped_for_html_and_for_eyes(given: str, shown: str) -> None:
    assert draw.environment().from_string("{{ x }}").render(x=given) == shown


def test_json_has_no_tag_in_it() -> None:
    assert draw.as_document({"a": "</script>", "b": "é"}) == b'{"a":"\\u003c/script>","b":"\\u00e9"}'


def test_sql_is_shown_as_it_can_be_typed() -> None:
    said = Said("x", "SELECT $1, $2 WHERE $1 = $10;", ("it's", None, *[0] * 7, "ten"))
    assert draw._sql(said).splitlines()[0] == "-- x" and draw._sql(said).endswith("SELECT :'p1', NULL WHERE :'p1' = :'p10';") and "\\set p1 'it''s'" in draw._sql(said)


@pytest.mark.parametrize("value", ["plain", "two words", 'quo"te', "back\\slash", "", "a.b", "OR", "ünï"])
def test_a_value_in_a_link_is_read_back_by_the_filter(value: str) -> None:
    tree: Any = parse(f"key = {page.quoted(value)}")
    assert tree.values == (value,)


def test_the_token_is_kept_where_nobody_else_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in /tmp with a name that can be guessed would be somebody else's to make first."""
    mine, shared = tmp_path / "mine", tmp_path / "shared"
    mine.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine))
    assert serve.default_token_file(1) == mine / "pgsupervisor" / "dashboard-1.url"
    for other in (str(shared), str(tmp_path / "nowhere"), ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        found = serve.default_token_file(1)
        assert not str(found).startswith(("/tmp/runtime", str(shared))) and found.name == "dashboard-1.url"


def test_where_a_dashboard_is_served_beside_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was asked for, or is the default and can be; the demo's default is whether somebody is at a terminal."""
    for by_default, asked, port in ((True, None, ANY_PORT), (False, None, None), (False, True, ANY_PORT), (True, False, None)):
        assert beside.port_beside(asked, by_default) == port
    assert beside.port_beside(None, True, port=0) == 0 and beside.port_beside(True, False, port=ANY_PORT) == ANY_PORT
    with serve.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert beside.port_beside(False, True, port=port) is None, "nobody wants it"
        with pytest.raises(ConfigInvalid, match=f"can't listen on 127.0.0.1 port {port} \\(Address already in use\\); give another port, or 0"):
            beside.port_beside(None, True, port=port)
    assert beside.port_beside(None, True, port=port) == port

    def missing() -> None:
        raise MissingExtra("the dashboard", "dashboard", "uvicorn")

    monkeypatch.setattr(serve, "check_installed", missing)
    assert beside.port_beside(None, True) is None
    with pytest.raises(MissingExtra):
        beside.port_beside(True, True)
