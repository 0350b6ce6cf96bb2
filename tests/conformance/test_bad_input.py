"""Bad input gets a clear error and loses nothing, wherever it comes in: the call, a result, an error, a row."""

from __future__ import annotations

import re
from typing import Any

import pytest

from supervisor import Client, InputInvalid, KeyMismatch, PayloadRefused, RunFailed, RunUnknown, UnknownWorkflow, workflow
from supervisor.api.asked import Named
from supervisor.core.errors import DefinitionError
from tests.apps import odd
from tests.conformance.conftest import Live

APP = "tests.apps.odd"
SETUP = ("create table booked (what text)",)
FINE = odd.Order(1, 999)


def _runs(live: Live) -> int:
    count: int = live.database.one("select count(*) from supervisor.run")
    return count


# ── the call ─────────────────────────────────────────────────────────────────────────────────────────────────────

CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "unknown": ("no_such_workflow", (), {}, UnknownWorkflow, "no_such_workflow"),
    "unknown_nul": ("a\x00b", (), {}, UnknownWorkflow, "a"),
    "no_workflow": (42, (), {}, InputInvalid, "42"),
    "queue_empty": (Named(workflow="takes", queue=""), (FINE,), {}, InputInvalid, "queue ''"),
    "queue_long": (Named(workflow="takes", queue="x" * 300), (FINE,), {}, InputInvalid, "1 to 200 characters"),
    "queue_lines": (Named(workflow="takes", queue="a\nb"), (FINE,), {}, InputInvalid, "on one line"),
    "queue_surrogate": (Named(workflow="takes", queue="a\ud800"), (FINE,), {}, InputInvalid, "queue"),
    "delay_nan": (Named(workflow="takes", delay_s=float("nan")), (FINE,), {}, InputInvalid, "delay of nan s"),
    "delay_far": (Named(workflow="takes", delay_s=1e12), (FINE,), {}, InputInvalid, "less than 1e+10"),
    "delay_past": (Named(workflow="takes", delay_s=-1.0), (FINE,), {}, InputInvalid, "delay of -1.0 s"),
    "missing": (odd.takes, (), {}, InputInvalid, "order"),
    "too_many": (odd.takes_nothing, (1,), {}, InputInvalid, "takes_nothing"),
    "unexpected": (odd.takes, (FINE,), {"colour": "red"}, InputInvalid, "colour"),
    "twice": (odd.takes, (FINE,), {"order": FINE}, InputInvalid, "order"),
    "wrong_type": (odd.takes, ("text",), {}, InputInvalid, "order"),
    "wrong_field": (odd.takes, ({"id": 1, "total": "9.99"},), {}, InputInvalid, "total"),
    "lacks_field": (odd.takes, (FINE,), {"address": {}}, InputInvalid, "street"),
    "wrong_key": (odd.takes_typed, ({"a": "b"},), {}, InputInvalid, "numbers"),
    "by_name_missing": ("takes", (), {}, InputInvalid, "order"),
    "by_name_unexpected": ("takes", (FINE,), {"colour": 1}, InputInvalid, "colour"),
    "by_name_too_many": ("takes_nothing", (1, 2), {}, InputInvalid, "takes_nothing"),
    "too_large": (odd.takes_anything, ("x" * 3_000_000,), {}, PayloadRefused, "2,097,152"),
    "too_large_altogether": (odd.takes, (FINE, "x" * 2_097_120), {}, InputInvalid, "2,097,152"),
    "too_deep": (odd.takes_anything, (odd.deep(65),), {}, PayloadRefused, "64"),
    "endless": (odd.takes_anything, (odd._endless(),), {}, PayloadRefused, "64"),
    "nan": (odd.takes_anything, ([float("nan")],), {}, PayloadRefused, "[0]"),
    "int_keys": (odd.takes_anything, ({"a": {1: 2}},), {}, PayloadRefused, "['a'][1]"),
    "nul": (odd.takes, (FINE, "a\x00b"), {}, PayloadRefused, "NUL"),
    "surrogate": (odd.takes, (FINE, "a\ud800b"), {}, PayloadRefused, "surrogate"),
    "object": (odd.takes_anything, (object(),), {}, PayloadRefused, "object"),
    "exploding": (odd.takes_anything, (odd.Exploding(),), {}, PayloadRefused, "$"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_call_is_refused_before_anything_is_stored(live: Live, case: str) -> None:
    """The caller is told what, which and why; no run is left behind that fails later."""
    workflow, args, kwargs, kind, word = CALLS[case]
    before = _runs(live)
    with pytest.raises(kind, match=re.escape(word)):
        live.start(workflow, *args, **kwargs)
    assert _runs(live) == before
    assert live.run(odd.takes, FINE) == 999, "the client goes on"


@pytest.mark.parametrize("queue", ["", "x" * 201, "a\nb", "\x7f", "\u2028", "\ud800"])
def test_one_rule_says_what_a_queue_may_be_called(live: Live, queue: str) -> None:
    """A name that one place takes and another refuses is found out when runs are in it already."""
    with pytest.raises(InputInvalid, match="queue"):
        odd.takes.options(queue=queue)
    with pytest.raises(DefinitionError, match="queue"):
        workflow(queue=queue)(_takes_any)
    if queue != "\ud800":  # which no database has
        assert not live.database.one("select supervisor.is_queue_name(%s)", queue)
    fine = live.start(odd.takes.options(queue="Größe 'ok' \u200b"), FINE)
    assert fine.cancel()


async def _takes_any() -> None:
    """To be decorated."""


def test_bad_keys_and_ids_are_refused(live: Live) -> None:
    """Keys are text; a key that names another input is a mismatch, not a second run."""
    for key in ("", "x" * 501, "a\x00", "\ud800", 7):
        with pytest.raises(Exception, match="key"):
            live.start(odd.takes.options(key=key), FINE)  # type: ignore[arg-type]
    first = live.start(odd.takes.options(key="k"), FINE)
    again = live.start(odd.takes.options(key="k"), FINE)
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(KeyMismatch):
        live.start(odd.takes.options(key="k"), odd.Order(1, 1))
    for unknown in ("nonsense", "01977e6e-0000-7000-8000-000000000000", "", "\x00"):
        with pytest.raises(RunUnknown):
            live.client.status(unknown)


def test_bad_item_of_many_loses_nothing_that_was_started(live: Live) -> None:
    """12,000 items with a bad one near the end: the error says how many stay started."""
    before = _runs(live)
    items: list[Any] = [n for n in range(12_000)]
    items[11_000] = {1: 1}
    with pytest.raises(PayloadRefused) as caught:
        live.client.start_many(odd.takes_anything, iter(items))
    [said] = re.findall(r"([\d,]+) runs of 'takes_anything' were started before this", "".join(caught.value.__notes__))
    stayed = int(said.replace(",", ""))
    assert 5_000 <= stayed <= 10_000
    assert _runs(live) == before + stayed
    live.until(lambda: live.database.one("select count(*) = 0 from supervisor.task"), 60)


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", odd.RESULTS)
def test_result_that_can_not_be_stored_is_an_error_at_its_step(live: Live, kind: str) -> None:
    """Silently changed or lost would be worse: the step fails, with the path, and what it wrote is rolled back."""
    told = live.run(odd.gives, kind)
    word = odd.RESULTS[kind][1]
    assert [name for name, _ in told] == ["PayloadRefused"] * 5, told
    assert all(word in message for _, message in told), told
    assert live.database.one("select count(*) from booked where what = %s", kind) == 0


def test_result_of_the_wrong_type_is_an_error_at_its_step(live: Live) -> None:
    """An annotation is a promise to whoever reads the result."""
    told = live.run(odd.wrong_types)
    assert told[0].startswith("ResultInvalid: step wrong_type returned") and "int" in told[0]
    assert told[1].startswith("ResultInvalid: step lacks_a_field returned") and "total" in told[1]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", odd.ERRORS)
def test_error_that_can_not_be_described_fails_its_run_and_nothing_else(live: Live, kind: str) -> None:
    """The failure path itself never fails: no worker dies of a text, and history and views stay readable."""
    up = live.host.log().count(" is up as ")
    told = live.run(odd.errors, kind)
    assert len(told) == 3 and told[2] == "RunFailed", told
    with pytest.raises(RunFailed):
        live.run(odd.raises_itself, kind)
    assert live.database.one("select count(*) from supervisor.runs where error is null and status = 'failed'") == 0
    assert live.host.log().count(" is up as ") == up, live.about()


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse(live: Live, table: str, condition: str) -> None:
    """Let the database refuse some rows of *table*, as a full disk quota, a bad index or a policy might."""
    [partition] = live.database.sql(
        "select i.inhrelid::regclass::text from pg_inherits i where i.inhparent = %s::regclass order by 1 limit 1", f"supervisor.{table}"
    ) or [(f"supervisor.{table}",)]
    live.database.sql(f"alter table {partition[0]} add constraint poison check (not coalesce({condition}, false)) not valid")


def _allow(live: Live, table: str) -> None:
    partitions = live.database.sql("select conrelid::regclass::text from pg_constraint where conname = 'poison' and conparentid = 0")
    for (partition,) in partitions:
        live.database.sql(f"alter table {partition} drop constraint poison")


def test_one_refused_row_among_thousands_parks_its_run_alone(live: Live) -> None:
    """A batch is one transaction: were the culprit not found, it would hold up everybody, for ever."""
    _refuse(live, "step", "encode(result, 'escape') like '%%poison%%'")
    items = [{"n": n, "poison": "poison" if n == 2500 else ""} for n in range(3000)]
    batch = live.client.start_many(odd.stores_two, items)
    left = "select count(*) from supervisor.task where owner is not null or wait_kind is distinct from 23"
    live.until(lambda: live.database.one(left) == 0, 60)
    # then 2,999 ended, one is parked and says why
    assert [run_id for (run_id,) in live.database.sql("select run_id from supervisor.task")] == [batch[2500].id]
    code, detail = live.parked(batch[2500]) or ("", {})
    assert code == "commit_rejected"
    assert detail["sqlstate"] == "23514" and "poison" in detail["error"] and detail["statement"] in ("insert_steps", "insert_mixed_steps")
    assert batch[2999].result(timeout=20) == ["fine 2999", "fine 2999"]
    sizes = [int(n) for n in re.findall(r"batch of (\d+) runs refused", live.host.log())]
    assert max(sizes) >= 100, f"it was never refused among many: {sizes}"
    # and nothing is lost: once the database takes it, it goes on where it was
    assert live.rows(batch[2500]) == 1
    _allow(live, "step")
    live.database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1 where wait_kind = 23")
    assert batch[2500].result(timeout=20) == ["fine 2500", "poison"]


@pytest.mark.parametrize(
    ("table", "condition", "workflow", "poisoned", "fine"),
    [
        ("outcome", "encode(result, 'escape') like '%%poison%%'", odd.stores_outcome, "poison", ""),
        ("attempt", "encode(error, 'escape') like '%%\"message\":\"poison\"%%'", odd.stores_attempt, "poison", ""),
        ("timer", "due_at > clock_timestamp() + interval '1 hour'", odd.stores_timer, 7200.0, 0.01),
        ("child", "seq = 0 and parent_id in (null)", odd.stores_child, "", ""),
        ("run", "encode(input, 'escape') = '{\"poison\":\"poison\"}' and parent_id is not null", odd.stores_child, "poison", ""),
    ],
)
def test_refused_row_of_every_kind_parks_its_run_alone(
    live: Live, table: str, condition: str, workflow: Any, poisoned: Any, fine: Any
) -> None:
    """Whichever table refuses: outcomes, failed attempts, timers, children."""
    if table == "child":
        condition = "run_id is null"  # refuses nothing: a constraint of the user's own is no harm by itself
    _refuse(live, table, condition)
    try:
        culprit = live.start(workflow, poisoned)
        neighbours = [live.start(workflow, fine) for _ in range(20)]
        for run in neighbours:
            run.result(timeout=20)
        if table == "child":
            culprit.result(timeout=20)
        else:
            live.until(lambda: live.parked(culprit), 20)
            assert (live.parked(culprit) or ("",))[0] == "commit_rejected"
    finally:
        _allow(live, table)
    if table not in ("child", "timer"):
        live.database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1 where wait_kind = 23")
        culprit.result(timeout=20)
    live.database.sql("delete from supervisor.task")


def test_refused_checkpoint_of_a_transactional_step_harms_no_neighbour(live: Live) -> None:
    """Its transaction is rolled back with it; those that shared it are booked once each."""
    _refuse(live, "step", "encode(result, 'escape') like '%%poison%%'")
    try:
        runs = [live.start(odd.stores_checkpoint, n, "poison" if n == 15 else "") for n in range(30)]
        for n, run in enumerate(runs):
            if n != 15:
                assert run.result(timeout=20) == "fine"
        live.until(lambda: live.parked(runs[15]) or runs[15].status().status == "failed", 20)
        booked = live.database.sql("select what, count(*) from booked where what like 'tx %%' group by 1")
        assert sorted(booked) == sorted((f"tx {n}", 1) for n in range(30) if n != 15)
    finally:
        _allow(live, "step")


def test_nobody_died_of_all_this(live: Live) -> None:
    """The worker that read, ran and refused all of the above is the one that began."""
    assert live.host.log().count(" is up as ") == 1, live.about()
    with Client(live.database.dsn) as other:
        assert other.start(odd.takes, FINE).result(timeout=20) == 999
