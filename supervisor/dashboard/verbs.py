"""The verbs that pages offer, and what they do: the client's own verbs, each with a reason, by whoever is signed in.

What is offered follows from the stored facts; the database decides whether it is done, and refuses what has changed meanwhile or may not be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote
from uuid import UUID

from supervisor.api.signals import message_of
from supervisor.api.updates import update_message
from supervisor.core import codec
from supervisor.core.errors import CompletionFailed, InputInvalid
from supervisor.core.filters import LIVE, UNSUCCESSFUL, Compare, Filter, both, parse, parse_list
from supervisor.core.shown import detail_of
from supervisor.dashboard.page import Action, Asked, Input
from supervisor.dashboard.why import PARKED
from supervisor.db import bulk, forms, look
from supervisor.db.operator_calls import Deed

if TYPE_CHECKING:
    import psycopg

    from supervisor.api.within import Within

Row = dict[str, Any]

REASON_MAX = 1000
BULK_S = 10.0  # one request works as long; then it says how far it came
LOCKED_SHOWN = 20
DONE = {"cancel": "asked to cancel it", "terminate": "terminated it", "pause": "paused it", "resume": "resumed it", "retry": "asked to try again", "skip": "gave the step its result", "signal": "sent the signal",
        "update": "sent the update", "complete": "completed its token", "fail": "failed its token", "edit_retry": "changed how the step is retried",
        "resume_queue": "resumed its queue", "unchanged": "found it so already", "trigger": "started a run of it", "skipped": "started no run, for one of it is live", "backfill": "asked for runs of that time, which the leader starts", "delete": "deleted the schedule", "create": "created it", "change": "changed it"}  # fmt: skip
POLICY = (("max_attempts", "Tries in all"), ("initial", "Seconds before the second try"), ("factor", "Each wait is so many times the one before"), ("maximum", "Seconds that no wait exceeds"),
          ("next_in", "Seconds from now to the next try"))  # fmt: skip
BULK = (("cancel", "Cancel"), ("pause", "Pause"), ("resume", "Resume"), ("retry", "Retry"), ("terminate", "Terminate"))
# the states in which a verb can do anything
STATES: dict[str, Sequence[str]] = {"cancel": LIVE, "terminate": LIVE, "pause": LIVE, "resume": ("paused",), "retry": (*LIVE, *UNSUCCESSFUL)}


# ── what is offered ──────────────────────────────────────────────────────────────────────────────────────────────


def offered(run: Row, wait: Row | None, attempts: Sequence[Row], tokens: Sequence[Row], asked: Asked) -> list[Action]:
    """What can be done to a run as it stands, what frees it first."""
    if not asked.may_act:
        return []
    made = _ended(run, asked) if wait is None else _live(run, wait, attempts, tokens, asked)
    return sorted(made, key=lambda action: (not action.first, action.harsh))


def _live(run: Row, wait: Row, attempts: Sequence[Row], tokens: Sequence[Row], asked: Asked) -> list[Action]:
    act, code = _Maker(run), wait["code"]
    made = _that_free(act, wait, code)
    if asked.may_operate:
        made += [*_of_its_queue(run, wait), *_of_steps(act, wait, attempts, tokens)]
    if wait["status"] != "paused":
        made.append(act("pause", "Pause", "Steps that execute end first; timers and signals are kept."))
    if code != "update":
        made.append(_update(act))
    made.append(_fork(act, run))
    made.append(act("cancel", "Cancel", "Its code is told at what it awaits, may clean up, and ends it; so do all runs below it.", harsh=True))
    made.append(act("terminate", "Terminate", "It ends now, without its code. What a step is doing is given up.", harsh=True))
    return made


def _that_free(act: _Maker, wait: Row, code: str | None) -> list[Action]:
    """What the banner says that frees it."""
    if wait["status"] == "paused":
        return [act("resume", "Resume", "It goes on where it was; what came meanwhile is there.", first=True)]
    if code in ("step_backoff", *PARKED):
        return [act("retry", "Retry now", "Its next try begins at once.", first=True)]
    if code in ("signal", "any_of"):
        names = (detail_of(wait["detail"])[0] or {}).get("signals") or []
        fields = (Input("name", "Signal", str(names[0]) if names else ""), Input("value", "Value, as JSON", "null", "area"))
        return [act("signal", "Send signal", "The run is given it, in the order of arrival.", fields, first=bool(names))]
    return [_update(act, first=True)] if code == "update" else []


def _of_its_queue(run: Row, wait: Row) -> list[Action]:
    if wait["code"] != "queue_paused":
        return []
    says, back = "Workers claim from it again, at once: this run, and all others in it.", Input("run", "", str(run["run_id"]), "hidden")
    return [named("resume", "Resume its queue", "queue", run["queue"], says, (back,), key="-queue", first=True)]


def _update(act: _Maker, first: bool = False) -> Action:
    says = "Its handler judges and answers it; what came of it stands among its updates."
    return act("update", "Send update", says, (Input("name", "Update", ""), Input("value", "Argument, as JSON", "null", "area")), first=first)


def _of_steps(act: _Maker, wait: Row, attempts: Sequence[Row], tokens: Sequence[Row]) -> list[Action]:
    """What operators alone do: decide about a step that has no result yet."""
    made = []
    open_token = next((each for each in tokens if each["state"] == "waiting"), None)
    if open_token is not None:
        seq = Input("seq", "Step", str(open_token["seq"]), "number")
        made.append(act("complete", "Complete token", "The step is given this result, as by whoever holds its token.", (seq, Input("value", "Result, as JSON", "null", "area")), first=True))
        again = Input("again", "Try again, where its policy allows another try", "yes", "check", needed=False)
        made.append(act("fail", "Fail token", "This try fails, as by whoever holds its token.", (seq, Input("error", "What went wrong"), again)))
    if wait["seq"] is None or wait["seq"] < 0:
        return made
    seq = Input("seq", "Step", str(wait["seq"]), "number")
    if _can_skip(wait, attempts):
        made.append(act("skip", f"Skip step {wait['seq']}", "The step is given this result and not executed again.", (seq, Input("value", "Result, as JSON", "null", "area"))))
    if wait["code"] == "step_backoff":
        fields = [Input(name, label, "", "decimal", needed=False) for name, label in POLICY]
        made.append(act("edit_retry", "Edit retries", "Other terms for this step of this run alone; what is left empty stays as it is.", (seq, *fields)))
    return made


def _can_skip(wait: Row, attempts: Sequence[Row]) -> bool:
    failed = any(each["seq"] == wait["seq"] and each["kind"] in ("failed", "crashed") for each in attempts)
    return wait["code"] in ("step_backoff", "attempts_exhausted", "step_running", "token") or failed


def _ended(run: Row, asked: Asked) -> list[Action]:
    act = _Maker(run)
    made = [_fork(act, run)] if run["status"] != "lost" else []
    if run["status"] in UNSUCCESSFUL:
        made.append(act("retry", "Retry", "A new run goes on from the step that failed, under the same key.", first=True))
    return made


def _fork(act: _Maker, run: Row) -> Action:
    return act("fork", "Fork", "A new run is given what this one was before the result of that step, and goes on from there. This one stays as it is.",
               (Input("seq", "From step (empty: all of its history)", "", "number", needed=False),))  # fmt: skip


class _Maker:
    def __init__(self, run: Row) -> None:
        self._path = f"/runs/{run['run_id']}"

    def __call__(self, verb: str, label: str, says: str, inputs: Sequence[Input] = (), *, first: bool = False, harsh: bool = False) -> Action:
        return Action(verb, label, f"{self._path}/{verb}", says, inputs, first, harsh)


# ── what is done ─────────────────────────────────────────────────────────────────────────────────────────────────


def reason_of(form: Mapping[str, str]) -> str:
    reason = form.get("reason", "").strip()
    if not reason:
        raise InputInvalid("reason", "it is empty; say why: it is kept in the audit")
    if len(reason) > REASON_MAX:
        raise InputInvalid("reason", f"it has {len(reason):,} characters and {REASON_MAX:,} are the most")
    return reason


class Told(NamedTuple):
    """What a form says, of which run, by whom, and the transaction in which it is done."""

    conn: psycopg.Connection[Any]
    schema: str
    run_id: UUID
    form: Mapping[str, str]
    reason: str
    actor: str


def do(client: Within, told: Told, verb: str) -> UUID:
    """Do *verb* to one run; the run that goes on. Raises what the client's verb raises."""
    run_id, form, reason, actor = told.run_id, told.form, told.reason, told.actor
    if verb in ("cancel", "terminate", "pause", "resume"):
        getattr(client, verb)(run_id, reason, actor=actor)
    elif verb == "retry":
        return client.retry(run_id, reason, actor=actor).id
    elif verb == "fork":
        return client.fork(run_id, _seq(form, False), reason=reason, actor=actor).id
    elif verb == "skip":
        client.skip(run_id, _needed_seq(form), _json(form), reason, actor=actor)
    elif verb == "edit_retry":
        client.edit_retry(run_id, _needed_seq(form), **_policy(form), reason=reason, actor=actor)
    elif verb in ("signal", "update"):
        _send(told, verb)
    elif verb in ("complete", "fail"):
        _finish(told, verb)
    else:
        raise InputInvalid("verb", f"there is no verb {verb!r}")
    return run_id


def _send(told: Told, what: Any) -> None:
    """A message and its row of audit."""
    if what == "signal":
        signal = message_of(told.form.get("name", ""), _json(told.form), None)
        name, payload, message_id = signal.name, signal.payload, signal.id
    else:
        update = update_message(told.form.get("name", ""), (_json(told.form),), None)
        name, payload, message_id = update.name, update.payload, update.id
    forms.send(told.conn, told.schema, what, told.run_id, name, payload, message_id, told.reason, told.actor)


def _finish(told: Told, verb: str) -> None:
    seq = _needed_seq(told.form)
    if verb == "complete":
        forms.complete(told.conn, told.schema, told.run_id, seq, codec.encode(_json(told.form)), told.reason, told.actor)
    else:
        error = codec.encode_error(CompletionFailed(told.form.get("error", "").strip() or "it was failed by an operator"))
        forms.fail(told.conn, told.schema, told.run_id, seq, error, told.form.get("again") == "yes", told.reason, told.actor)


def _policy(form: Mapping[str, str]) -> dict[str, Any]:
    """What of a retry policy a form gives."""
    found: dict[str, Any] = {}
    for name, label in POLICY:
        if text := form.get(name, "").strip():
            try:
                found[name] = int(text) if name == "max_attempts" else float(text)
            except ValueError:
                raise InputInvalid(name, f"{text[:40]!r} is no number ({label.lower()})") from None
    return found


def keep(conn: psycopg.Connection[Any], schema: str, verb: str, name: str, text: str, actor: str) -> None:
    """Keep a filter of runs by a name for all who use the dashboard, or forget it. Raises FilterInvalid for one that nobody could read back."""
    if verb == "save":
        parse_list(text)
        forms.save_view(conn, schema, name, text, actor)
    elif verb == "forget":
        forms.forget_view(conn, schema, name)
    else:
        raise InputInvalid("verb", f"there is nothing called {verb!r} that could be done to a saved view")


def _needed_seq(form: Mapping[str, str]) -> int:
    return _seq(form, True) or 0


def _seq(form: Mapping[str, str], needed: bool) -> int | None:
    text = form.get("seq", "").strip()
    if not text and not needed:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputInvalid("seq", f"{text[:40]!r} is no position of a step; the journal shows them")
    return int(text)


def _json(form: Mapping[str, str]) -> Any:
    import msgspec

    text = form.get("value", "")
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except msgspec.DecodeError as error:
        raise InputInvalid("value", f"{text[:80]!r} is no JSON ({error}); text wants quotes of its own: \"yes\"") from None


# ── queues and schedules ─────────────────────────────────────────────────────────────────────────────────────────


def named(verb: str, label: str, of: str, name: str, says: str, inputs: Sequence[Input] = (), key: str = "", **more: bool) -> Action:
    """A verb on a queue or a schedule. Its name goes in a field, as ASCII, whatever is in it."""
    key = key or f"-{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"  # a form that is being written stays with its row when others come
    return Action(verb, label, f"/{of}s/{verb}", says, (Input("name", "", quote(name, safe=""), "hidden"), *inputs), key=key, what=f"the {of}", **more)


def of_queue(row: Row, asked: Asked) -> Action | None:
    """Pause or resume."""
    if not asked.may_operate:
        return None
    if row["paused_at"]:
        return named("resume", "Resume", "queue", row["queue"], "Workers claim from it again, at once.")
    return named("pause", "Pause", "queue", row["queue"], "Nothing more is claimed from it until it is resumed; what workers have goes on.", harsh=True)


def of_schedule(row: Row, asked: Asked) -> list[Action]:
    if not asked.may_act:
        return []
    name = row["name"]
    made = [named("trigger", "Trigger now", "schedule", name, "A run of it is started now, paused or not, beside its ticks.")]
    if row["paused_at"]:
        made.insert(0, named("resume", "Resume", "schedule", name, "It is fired again from its next tick on; those of the pause are not made up for, unless a backfill does.", first=True))
    else:
        made.insert(0, named("pause", "Pause", "schedule", name, "No tick of it is fired until it is resumed; its live runs go on."))
    span = (Input("from", "From (UTC)", "", "datetime-local"), Input("until", "Until (UTC), a moment that is over", "", "datetime-local"))
    made.append(named("backfill", "Backfill", "schedule", name, "A run is started for each tick of that time that has none, a hundred at a time.", span))
    again = " It is declared in code: a worker that starts makes it again." if row["declared"] else ""
    made.append(named("delete", "Delete", "schedule", name, f"Its live runs go on, those that wait behind them are cancelled; what it fired stays in the history.{again}", harsh=True))
    return made


def do_queue(client: Within, verb: str, name: str, reason: str, actor: str) -> str:
    """What was done: a word of DONE."""
    if verb not in ("pause", "resume"):
        raise InputInvalid("verb", f"there is no verb {verb!r} for queues")
    return verb if getattr(client, f"{verb}_queue")(name, reason, actor=actor) else "unchanged"


def do_schedule(client: Within, verb: str, name: str, form: Mapping[str, str], reason: str, actor: str) -> str:
    """What was done: a word of DONE."""
    if verb in ("pause", "resume"):
        return verb if getattr(client, f"{verb}_schedule")(name, reason, actor=actor) else "unchanged"
    if verb == "trigger":
        return "skipped" if client.trigger_schedule(name, reason, actor=actor) is None else "trigger"
    if verb == "backfill":
        client.backfill_schedule(name, _utc(form, "from"), _utc(form, "until"), reason, actor=actor)
    elif verb == "delete":
        client.delete_schedule(name, reason, actor=actor)
    else:
        raise InputInvalid("verb", f"there is no verb {verb!r} for schedules")
    return verb


def run_of(form: Mapping[str, str]) -> UUID | None:
    """The run on whose page a form stands that does something else than to the run."""
    try:
        return UUID(form["run"])
    except (KeyError, ValueError):
        return None


def name_of(form: Mapping[str, str], field: str = "name") -> str:
    """Of the queue or the schedule that a form is about."""
    return unquote(form.get(field, ""), errors="surrogateescape").replace("\0", "")


def _utc(form: Mapping[str, str], field: str) -> datetime:
    try:
        given = datetime.fromisoformat(form.get(field, "").strip())
    except ValueError:
        raise InputInvalid(field, f"{form.get(field, '')[:40]!r} is no moment: 2026-11-22T08:30, UTC") from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


# ── many runs ────────────────────────────────────────────────────────────────────────────────────────────────────


class Many(NamedTuple):
    """What a bulk verb is asked of: runs that were picked, or all that a filter finds, of those that come after one."""

    verb: str
    picked: Sequence[UUID]
    filter: str
    after: UUID | None

    @property
    def asked(self) -> Filter | None:
        mine = Compare("run", "in", tuple(self.picked)) if self.picked else parse(self.filter) if self.filter.strip() else None
        return both(mine, Compare("status", "in", tuple(STATES[self.verb])))


class Came(NamedTuple):
    """How far it came. `after`: where to go on; None when it is through."""

    done: int
    left: int
    refused: Sequence[tuple[UUID, str]]
    locked: Sequence[UUID]
    after: UUID | None


def do_many(conn: psycopg.Connection[Any], schema: str, many: Many, reason: str, actor: str, patience_s: float) -> Came:
    """Slice by slice, newest first, each in a transaction of its own, until all are done or BULK_S are over."""
    until = time.monotonic() + BULK_S
    done = left = 0
    refused: list[tuple[UUID, str]] = []
    locked: list[UUID] = []
    after = many.after
    while page := look.ids(conn, schema, many.asked, after=after, limit=bulk.SLICE_RUNS, patience_s=patience_s):
        for each in bulk.operate(conn, schema, Deed(many.verb), page, reason, actor):
            done += each.did
            if each.state == "locked":
                locked.append(each.run_id)
            elif not each.did:
                left += 1
                refused.append((each.run_id, each.state + (f" ({each.why})" if each.why else "")))
        after = page[-1]
        if time.monotonic() > until:
            return Came(done, left, refused, locked, after)
    return Came(done, left, refused, locked, None)
