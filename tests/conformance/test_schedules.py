"""Schedules on a running host: each tick starts one run, in its time; what becomes of it while a run is live; what operators do."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import psycopg
import pytest

from supervisor import AsyncClient, InputInvalid, ScheduleExists, ScheduleInvalid, ScheduleUnknown, UnknownWorkflow
from supervisor.core.schedules import Overlap
from tests.apps import scheduled
from tests.conformance.conftest import Live

APP = "tests.apps.scheduled"
SOON_S = 10.0  # ten times the second that a tick may take
HOUR = timedelta(hours=1)


def fires(live: Live, name: str) -> list[tuple[Any, ...]]:
    return live.database.sql("select tick_at, state, run_id, fired_at, kind from supervisor.schedule_fires where schedule = %s order by tick_at", name)


def states(live: Live, name: str) -> list[str]:
    return [state for _, state, *_ in fires(live, name)]


def statuses(live: Live, name: str) -> list[tuple[str | None, str | None]]:
    found = live.database.sql("select r.status, r.wait from supervisor.schedule_fires f left join supervisor.runs r on r.run_id = f.run_id where f.schedule = %s order by f.tick_at", name)
    return [tuple(row) for row in found]


def was_away(live: Live, name: str, for_: timedelta) -> None:
    """As if nobody had led for that long: what ticked meanwhile is due now."""
    live.database.sql(
        "update supervisor.schedule set after_at = now() - %s, next_at = null, due_at = now(), version = version + 1, paused_at = null where name = %s", for_, name
    )


def behind(live: Live, name: str, ticks: int, **terms: Any) -> None:
    """A schedule of `scheduled_long` with so many ticks that are due at once."""
    live.client.create_schedule(name, scheduled.scheduled_long, every=HOUR, input={"word": name}, catchup=100 * HOUR, **terms)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    was_away(live, name, datetime.now(UTC) - hour + (ticks - 1) * HOUR + timedelta(seconds=1))


# ── ticks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_tick_starts_one_run_in_its_time_and_tells_it_which(live: Live) -> None:
    """Whoever asks for every half second gets a run for every half second, with its tick in its input and in its key; none early, none late."""
    live.client.create_schedule("each", "scheduled_tick", every=0.5, pass_tick="at", input={"word": "each"}, overlap="allow")
    live.until(lambda: len(fires(live, "each")) >= 6)
    live.client.delete_schedule("each")
    found = fires(live, "each")
    assert {later[0] - tick[0] for tick, later in zip(found, found[1:], strict=False)} == {timedelta(seconds=0.5)}
    assert all(timedelta(0) <= fired_at - tick < timedelta(seconds=SOON_S) for tick, *_, fired_at, _ in found)
    live.until(lambda: live.effects.count("each") == len(found))
    assert {line[1] for line in live.effects.lines("each")} == {tick.isoformat() for tick, *_ in found}
    keys = live.database.sql("select key from supervisor.runs where run_id = any (%s)", [run_id for _, _, run_id, *_ in found])
    assert len(keys) == len({key for (key,) in keys}) == len(found) and all(key.startswith("each@2") and key.endswith("Z") for (key,) in keys)


def test_cron_ticks_too(live: Live) -> None:
    live.client.create_schedule("cron", scheduled.scheduled_plain, cron="* * * * * *", timezone="Asia/Kolkata", overlap="allow")
    live.until(lambda: len(fires(live, "cron")) >= 2)
    assert all(tick.microsecond == 0 for tick, *_ in fires(live, "cron"))
    live.client.delete_schedule("cron")


def test_jitter_puts_a_start_off_and_not_its_tick(live: Live) -> None:
    """Ten schedules of the same minute must not all start in its first second."""
    live.client.create_schedule("jitter", "scheduled_tick", every=0.5, jitter=0.4, pass_tick="at", input={"word": "jitter"}, overlap="allow")
    live.until(lambda: len(fires(live, "jitter")) >= 3)
    live.client.delete_schedule("jitter")
    from supervisor.core.schedules import jitter_of

    assert all(fired_at - tick >= jitter_of("jitter", tick, 0.4) for tick, *_, fired_at, _ in fires(live, "jitter"))


def test_what_was_missed_is_made_up_for_as_far_as_catchup_goes(live: Live) -> None:
    """A host that was down over night runs what is worth running and says what it left."""
    live.client.create_schedule("missed", scheduled.scheduled_plain, every=HOUR, catchup=3 * HOUR, overlap="allow")
    was_away(live, "missed", 10 * HOUR)
    live.until(lambda: live.client.schedule("missed").missed)
    found = live.client.schedule("missed")
    assert found.fired + found.missed == 10 and found.fired == 3
    (row,) = [each for each in live.client.schedule_fires("missed", 20) if each.state == "missed"]
    assert row.ticks == 7 and row.until_at is not None and row.until_at - row.tick_at == 6 * HOUR and row.run_id is None
    live.client.delete_schedule("missed")


def test_bounds_end_it(live: Live) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    live.client.create_schedule("bounds", scheduled.scheduled_plain, every=HOUR, overlap="allow", catchup=99 * HOUR, starts_at=hour - 3 * HOUR, ends_at=hour - HOUR)
    was_away(live, "bounds", 9 * HOUR)
    live.until(lambda: live.client.schedule("bounds").state == "over")
    assert [tick for tick, *_ in fires(live, "bounds")] == [hour - 3 * HOUR, hour - 2 * HOUR, hour - HOUR]
    live.client.delete_schedule("bounds")


# ── while a run is live ──────────────────────────────────────────────────────────────────────────────────────────

THREE: dict[Overlap, list[str]] = {  # what becomes of three ticks that are due one after the other, where runs last for an hour
    "skip": ["started", "skipped", "skipped"],
    "allow": ["started", "started", "started"],
    "buffer_one": ["started", "held", "skipped"],
    "buffer_all": ["started", "held", "held"],
    "cancel_other": ["started", "started", "skipped"],  # the first ends at once, for it had not begun; so the second goes
    "terminate_other": ["started", "started", "started"],
}


def test_every_policy_is_in_the_table() -> None:
    assert set(THREE) == set(get_args(Overlap))


@pytest.mark.parametrize("overlap", THREE)
def test_what_becomes_of_ticks_while_a_run_is_live(live: Live, overlap: Overlap) -> None:
    name = f"policy {overlap}"
    behind(live, name, 3, overlap=overlap)
    live.until(lambda: states(live, name) == THREE[overlap], SOON_S)
    ended = {"cancel_other": [0], "terminate_other": [0, 1]}.get(overlap, [])
    expected = {0: {"cancel_other": "cancelled"}.get(overlap, "terminated"), 1: "terminated"}
    for at in ended:
        live.until(lambda at=at: statuses(live, name)[at][0] == expected[at])  # type: ignore[misc]
    found = live.client.schedule(name)
    assert (found.fired, found.skipped) == (3 - THREE[overlap].count("skipped"), THREE[overlap].count("skipped"))
    live.client.delete_schedule(name)


def test_a_held_run_says_why_and_goes_when_the_one_before_it_has_ended(live: Live) -> None:
    """Whoever asks why a run does not move finds the run that it waits for; its timeout begins when it may."""
    behind(live, "held", 2, overlap="buffer_one")
    live.until(lambda: states(live, "held") == ["started", "held"], SOON_S)
    (_, _, first, *_), (_, _, second, *_) = fires(live, "held")
    ((status, code, detail, timeout_at),) = live.database.sql(
        "select w.status, w.code, w.detail::jsonb, t.cancel_at from supervisor.waits w join supervisor.task t using (run_id) where run_id = %s", second
    )
    assert (status, code, detail, timeout_at) == ("waiting", "schedule_overlap", {"schedule": "held", "behind": str(first)}, None)
    live.client.terminate(first, "its time is over")
    live.until(lambda: live.effects.count("held", "began") == 2, SOON_S)
    assert live.database.one("select cancel_at > now() from supervisor.task where run_id = %s", second)
    assert live.client.schedule("held").held == 0
    live.client.delete_schedule("held")


def test_a_held_run_that_was_paused_goes_when_it_is_resumed(live: Live) -> None:
    behind(live, "held-paused", 2, overlap="buffer_one")
    live.until(lambda: states(live, "held-paused") == ["started", "held"], SOON_S)
    (_, _, first, *_), (_, _, second, *_) = fires(live, "held-paused")
    live.client.pause(second)
    live.client.terminate(first)
    live.until(lambda: live.client.schedule("held-paused").live == 0)
    live.client.resume(second)
    live.until(lambda: live.effects.count("held-paused", "began") == 2, SOON_S)
    live.client.delete_schedule("held-paused")


def test_cancel_other_waits_for_the_end_of_what_it_cancels(live: Live) -> None:
    """Two runs of it are never at work at once, also while the first undoes what it did."""
    behind(live, "other", 1, overlap="cancel_other")
    live.until(lambda: live.effects.count("other", "began") == 1, SOON_S)
    was_away(live, "other", HOUR)
    second = live.client.trigger_schedule("other", overlap="cancel_other")
    live.until(lambda: live.effects.count("other", "began") == 2, SOON_S)
    assert statuses(live, "other")[0][0] == "cancelled" and second is not None
    assert live.database.sql("select actor, reason from supervisor.cancellations where run_id = %s", fires(live, "other")[0][2]) == [
        ("schedule other", "the next run of its schedule is due")
    ]
    live.client.delete_schedule("other")


def test_a_run_that_continues_as_new_ones_is_live(live: Live) -> None:
    """A chain that goes on for a week is one run of its schedule."""
    live.client.create_schedule("chain", scheduled.scheduled_chain, every=HOUR, input={"left": 2}, catchup=9 * HOUR)
    run_id = live.client.trigger_schedule("chain", "now")
    assert run_id is not None
    live.until(lambda: live.client.status(run_id).wait == "timer", SOON_S)
    was_away(live, "chain", HOUR)
    live.until(lambda: states(live, "chain") == ["skipped", "started"], SOON_S)
    live.client.delete_schedule("chain")


# ── what operators do ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_deed_is_kept_with_who_and_why(live: Live) -> None:
    """A schedule that somebody stopped must say so a month later."""
    c = live.client
    c.create_schedule("deeds", scheduled.scheduled_plain, cron="@yearly", reason="r1", actor="ann")
    assert c.pause_schedule("deeds", "r2", actor="ann") and not c.pause_schedule("deeds", "again")
    paused = c.schedule("deeds")
    assert (paused.state, paused.paused_by, paused.paused_reason, paused.next_at) == ("paused", "ann", "r2", None) and paused.paused_at is not None
    assert c.resume_schedule("deeds", "r3") and not c.resume_schedule("deeds", "again")
    c.change_schedule("deeds", cron="@daily", input={"n": 7}, reason="r4")
    live.until(lambda: c.schedule("deeds").next_at)
    run_id = c.trigger_schedule("deeds", "r5")
    assert run_id is not None and c.result(run_id, timeout=20) == 7
    assert (c.schedule("deeds").last_run, c.schedule("deeds").fired) == (run_id, 1)
    now = datetime.now(UTC)
    assert c.backfill_schedule("deeds", now - timedelta(days=3), now, "r6") == 3
    live.until(lambda: states(live, "deeds") == ["started"] * 4, SOON_S)
    c.delete_schedule("deeds", "r7")
    found = live.database.sql("select verb, reason, actor, login from supervisor.audits where schedule = 'deeds' order by n")
    assert [row[:2] for row in found] == [(f"schedule_{verb}", f"r{n}") for n, verb in enumerate("create pause resume change trigger backfill delete".split(), 1)]
    assert {row[2] for row in found} == {"ann", None} and {row[3] for row in found} == {"postgres"}
    assert len(fires(live, "deeds")) == 4, "what it fired stays"


def test_what_is_paused_is_not_made_up_for_and_what_is_paused_can_be_triggered(live: Live) -> None:
    live.client.create_schedule("paused", scheduled.scheduled_plain, every=0.2, overlap="allow")
    live.until(lambda: fires(live, "paused"))
    live.client.pause_schedule("paused")
    before = len(fires(live, "paused"))
    assert live.client.trigger_schedule("paused") is not None
    live.database.sql("update supervisor.schedule set after_at = after_at - interval '1 h' where name = 'paused'")
    live.client.resume_schedule("paused")
    live.until(lambda: len(fires(live, "paused")) > before + 2)
    assert live.client.schedule("paused").missed == 0 and len(fires(live, "paused")) < before + 100
    live.client.delete_schedule("paused")


def test_a_backfill_starts_what_was_skipped_and_nothing_twice(live: Live) -> None:
    behind(live, "backfill", 3, overlap="skip")
    live.until(lambda: states(live, "backfill") == THREE["skip"], SOON_S)
    first = fires(live, "backfill")[0][2]
    now = datetime.now(UTC)
    assert live.client.backfill_schedule("backfill", now - 5 * HOUR, now, dry_run=True) == 5
    assert live.client.schedule("backfill").backfills == 0
    for _ in range(2):
        assert live.client.backfill_schedule("backfill", now - 5 * HOUR, now) == 5
        live.until(lambda: states(live, "backfill") == ["started"] * 5 and not live.client.schedule("backfill").backfills, SOON_S)
    assert fires(live, "backfill")[2][2] == first, "what was fired is not fired again"
    assert [kind for *_, kind in fires(live, "backfill")] == ["backfill", "backfill", "tick", "backfill", "backfill"]
    assert live.client.schedule("backfill").fired == 5
    live.client.delete_schedule("backfill")


def test_deleting_it_cancels_what_is_held_and_nothing_else(live: Live) -> None:
    behind(live, "deleted", 2, overlap="buffer_one")
    live.until(lambda: states(live, "deleted") == ["started", "held"], SOON_S)
    live.client.delete_schedule("deleted", "no more")
    assert [status for status, _ in statuses(live, "deleted")][1] == "cancelled"
    assert statuses(live, "deleted")[0][0] in ("ready", "running", "waiting")


def test_in_a_transaction_that_rolls_back_nothing_was_done(live: Live) -> None:
    live.client.create_schedule("kept", scheduled.scheduled_plain, cron="@yearly")
    with psycopg.connect(live.database.dsn) as conn:
        within = live.client.within(conn)
        within.create_schedule("rolled back", scheduled.scheduled_plain, every=1)
        assert within.pause_schedule("kept", "never") and within.schedule("kept").state == "paused"
        assert within.trigger_schedule("kept") is not None
        conn.rollback()
    assert [each.name for each in live.client.schedules() if each.name in ("kept", "rolled back")] == ["kept"]
    assert live.client.schedule("kept").state == "active" and fires(live, "kept") == []
    assert live.database.sql("select verb from supervisor.audits where schedule in ('kept', 'rolled back')") == [("schedule_create",)]
    live.client.delete_schedule("kept")


def test_a_schedule_that_somebody_has_locked_holds_no_other_up(live: Live) -> None:
    """An operator's open transaction must not stop the cron jobs of a company."""
    for name in ("locked", "free"):
        live.client.create_schedule(name, scheduled.scheduled_plain, every=0.2, overlap="allow")
    with psycopg.connect(live.database.dsn) as conn:
        live.client.within(conn).pause_schedule("locked")
        before = len(fires(live, "free"))
        live.until(lambda: len(fires(live, "free")) > before + 3, SOON_S)
        conn.rollback()
    before = len(fires(live, "locked"))
    live.until(lambda: len(fires(live, "locked")) > before, SOON_S)
    for name in ("locked", "free"):
        live.client.delete_schedule(name)


def test_everything_can_be_done_in_sql(live: Live) -> None:
    sql = live.database.sql
    sql("select supervisor.create_schedule('psql', 'scheduled_plain', '{\"n\": 3}', every => '1 h', catchup => '9 h', overlap => 'allow', reason => 'by hand')")
    (run_id,) = sql("select supervisor.trigger_schedule('psql', notify => true)")[0]
    assert live.client.result(run_id, timeout=20) == 3
    assert sql("select supervisor.pause_schedule('psql', 'why', 'me'), supervisor.resume_schedule('psql'), supervisor.resume_schedule('psql')") == [(True, True, False)]
    sql("select supervisor.change_schedule('psql', '{\"every\": null, \"cron\": \"@daily\", \"jitter\": \"5 min\"}')")
    assert sql("select cron, every_s, jitter_s, overlap from supervisor.schedules where name = 'psql'") == [("@daily", None, 300.0, "allow")]
    sql("select supervisor.backfill_schedule('psql', now() - interval '1 d', now())")
    live.until(lambda: states(live, "psql") == ["started", "started"], SOON_S)
    sql("select supervisor.delete_schedule('psql')")


def test_what_sql_says_and_nobody_can_read_is_told_and_stops_nobody(live: Live) -> None:
    """PostgreSQL reads no cron: the leader does, and a typo in one schedule must not stop the others."""
    live.database.sql("select supervisor.create_schedule('typo', 'scheduled_plain', cron => '61 * * * *')")
    live.database.sql("select supervisor.create_schedule('zone', 'scheduled_plain', cron => '@daily', timezone => 'Mars')")
    live.client.create_schedule("beside", scheduled.scheduled_plain, every=0.2, overlap="allow")
    live.until(lambda: fires(live, "beside") and live.client.schedule("typo").state == live.client.schedule("zone").state == "failing", SOON_S)
    assert "cron '61 * * * *' can't be read: Bad minute" in (live.client.schedule("typo").error or "")
    assert "no time zone 'Mars'" in (live.client.schedule("zone").error or "")
    live.client.change_schedule("typo", cron="1 * * * *")
    live.until(lambda: live.client.schedule("typo").next_at, SOON_S)
    assert live.client.schedule("typo").error is None
    for name in ("typo", "zone", "beside"):
        live.client.delete_schedule(name)


def test_a_workflow_that_nobody_has_any_more_is_started_all_the_same(live: Live) -> None:
    """Its run waits for its code, where everybody sees it, and is not lost."""
    live.database.sql("insert into supervisor.workflow (name, queue) select 'scheduled_gone', queue from supervisor.workflow where name = 'scheduled_plain'")
    live.client.create_schedule("gone", "scheduled_gone", cron="@yearly")
    live.client.trigger_schedule("gone")
    live.until(lambda: statuses(live, "gone") == [("waiting", "code_missing")], SOON_S)
    live.client.delete_schedule("gone")


def test_what_the_database_refuses_is_told_and_tried_again(live: Live) -> None:
    """A start that fails holds up neither its neighbours nor, when it is mended, its own ticks."""
    behind(live, "refused", 1)
    live.database.sql("update supervisor.schedule set workflow = 'nobody has it' where name = 'refused'")
    was_away(live, "refused", HOUR)
    live.until(lambda: live.client.schedule("refused").state == "failing", SOON_S)
    assert "nobody has it" in (live.client.schedule("refused").error or "")
    before = len(fires(live, "refused"))
    live.client.change_schedule("refused", workflow="scheduled_long", overlap="allow")
    live.until(lambda: len(fires(live, "refused")) == before + 1, SOON_S)
    live.client.delete_schedule("refused")


def test_bad_terms_are_refused_where_they_are_said(live: Live) -> None:
    c, plain = live.client, scheduled.scheduled_plain
    with pytest.raises(ScheduleInvalid, match="neither cron= nor every="):
        c.create_schedule("bad", plain)
    with pytest.raises(ScheduleInvalid, match="a schedule has no evry="):
        c.create_schedule("bad", plain, evry=3)  # type: ignore[call-arg]
    with pytest.raises(ScheduleInvalid, match="catchup is 10 s at least, not 1"):
        c.create_schedule("bad", plain, every=5, catchup=1)
    with pytest.raises(ScheduleInvalid, match="says no time zone"):
        c.create_schedule("bad", plain, every=5, ends_at=datetime(2030, 1, 1))
    with pytest.raises(InputInvalid, match="^schedule 'bad': workflow \"scheduled_plain\": m: no parameter of it"):
        c.create_schedule("bad", "scheduled_plain", every=5, input={"m": 1})
    with pytest.raises(InputInvalid):
        c.create_schedule("bad", scheduled.scheduled_tick, every=5)
    with pytest.raises(UnknownWorkflow):
        c.create_schedule("bad", "no such workflow", every=5)
    for verb in (c.pause_schedule, c.resume_schedule, c.trigger_schedule, c.delete_schedule, c.schedule):
        with pytest.raises(ScheduleUnknown, match="there is no schedule 'bad'"):
            verb("bad")
    with pytest.raises(ScheduleUnknown):
        c.change_schedule("bad", every=5)
    c.create_schedule("bad", plain, every=3600)
    with pytest.raises(ScheduleExists, match="there is a schedule 'bad' already"):
        c.create_schedule("bad", plain, every=5)
    with pytest.raises(InputInvalid, match="a later one that is over"):
        c.backfill_schedule("bad", datetime.now(UTC), datetime.now(UTC) + HOUR)
    c.delete_schedule("bad")


def test_an_event_loop_has_the_same_verbs(live: Live) -> None:
    async def all_of_them() -> None:
        async with AsyncClient(live.database.dsn) as c:
            await c.create_schedule("async", scheduled.scheduled_plain, every=HOUR, input={"n": 5}, overlap="allow")
            await c.change_schedule("async", catchup=HOUR)
            assert await c.pause_schedule("async", "why") and await c.resume_schedule("async")
            run_id = await c.trigger_schedule("async")
            assert run_id is not None and await c.result(run_id, timeout=20) == 5
            now = datetime.now(UTC)
            assert await c.backfill_schedule("async", now - 2 * HOUR, now) == 2
            found = await c.schedule("async")
            assert found.input == {"n": 5} and found in await c.schedules() and (await c.schedule_fires("async"))[-1].kind in ("trigger", "backfill")
            await c.delete_schedule("async")

    asyncio.run(all_of_them())


# ── what code declares ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_app_declares_is_there_and_stays_as_operators_left_it(live: Live) -> None:
    """A worker that starts again must not undo what somebody did at night; another declaration is taken over."""
    name = "scheduled.yearly"
    found = live.client.schedule(name)
    assert found.declared and (found.cron, found.timezone, found.input, found.pass_tick) == ("0 3 1 1 *", "Europe/Berlin", {"word": "yearly"}, "at")
    live.client.change_schedule(name, cron="0 4 1 1 *", reason="too early")
    live.client.pause_schedule(name, "not now")
    live.kill()
    assert (live.client.schedule(name).cron, live.client.schedule(name).state) == ("0 4 1 1 *", "paused")
    live.database.sql("update supervisor.schedule set declared = 'what an older version declared' where name = %s", name)
    live.kill()
    live.until(lambda: live.client.schedule(name).cron == "0 3 1 1 *", SOON_S)
    assert live.client.schedule(name).state == "paused", "whether it is paused is no code's affair"
    live.client.resume_schedule(name)
