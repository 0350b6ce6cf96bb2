"""The form by which a schedule is made or changed: what is typed, as terms of the client's verbs and back again, and what is wrong with it, at its field.

Owns the fields alone. What may be said of a schedule is judged by the client's own code and by the database: a preview does what saving does and rolls it back,
so that what it shows is what would be there. Nothing that was typed is ever lost: whatever is refused comes back in its field.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec

from supervisor.api.asked import encode_attributes
from supervisor.core.errors import InputInvalid, PayloadRefused, PermissionMissing, ScheduleExists, ScheduleInvalid, ScheduleUnknown, SupervisorError, UnknownWorkflow
from supervisor.core.schedules import OVERLAPS
from supervisor.core.shown import plain
from supervisor.dashboard.page import Asked, Cell, Form, Input, Page, Table, url
from supervisor.dashboard.schedules import ticks_of, ticks_table
from supervisor.dashboard.verbs import name_of, reason_of
from supervisor.db.pages import Look

if TYPE_CHECKING:
    from supervisor.api.schedules import ScheduleInfo
    from supervisor.api.within import Within

Row = dict[str, Any]

WORKFLOWS_LISTED = 1000
TIMING = ("cron", "every", "timezone", "starts_at", "ends_at")
WHOLE = ""  # in place of a field: what is wrong with all of it
_OVERLAPS = dict(zip(OVERLAPS, ("no other run of it: the tick is skipped", "one more run, beside it", "one that waits for it; where one waits already the tick is skipped", "one that waits behind all that wait",
                                "that one is asked to cancel, the new one waits for its end", "that one ends at once, without its code"), strict=True))  # fmt: skip


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(typed: str) -> str | None:
    return typed or None


def _number(typed: str) -> float:
    try:
        number = float(typed)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{typed[:40]!r} is no number of seconds; give one like 90 or 0.5")
    return number


def _whole(typed: str) -> int:
    if not (typed.isascii() and typed.lstrip("-").isdigit() and len(typed) < 10):
        raise ValueError(f"{typed[:40]!r} is no whole number; give one from 0 (first) to 9 (last)")
    return int(typed)


def _moment(typed: str) -> datetime:
    try:
        given = datetime.fromisoformat(typed)
    except ValueError:
        raise ValueError(f"{typed[:40]!r} is no moment; give one like 2026-12-01T08:30, which is UTC, or 2026-12-01T08:30+01:00") from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def _object(typed: str) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(typed.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({str(error)[:200]}); give an object by name: {{\"order_id\": 42}}") from None
    if not isinstance(given, dict):
        raise ValueError(f"it is {type(given).__name__} and no object; give one by name: {{\"order_id\": 42}}")
    return given


def _attributes(typed: str) -> dict[str, Any]:
    given = _object(typed)
    encode_attributes(given)  # what the client would refuse, it refuses here, where the field is known
    return given


class Term(NamedTuple):
    """A field: its label, how it is read, what an empty one is, how it is drawn."""

    label: str
    read: Callable[[str], Any]
    empty: Any = None
    kind: str = "text"
    help: str = ""


TERMS: dict[str, Term] = {
    "input": Term("Input of its runs, as JSON by parameter", _object, {}, "area", "An object: {\"order_id\": 42}. Empty: no parameter is given."),
    "pass_tick": Term("Parameter that is given the tick", _text, help="Empty: none is."),
    "cron": Term("Cron", _text, help="minute hour day month weekday, seconds in front where there are six; or a name like @hourly. Or leave it empty, and:"),
    "every": Term("Every so many seconds", _number, kind="decimal", help="Counted from 1970-01-01 UTC: 3600 is on the hour."),
    "timezone": Term("Time zone that cron is read in", _text, "UTC", "zone", "Like Europe/Berlin. Empty: UTC."),
    "starts_at": Term("No tick before", _moment, help="Like 2026-12-01T08:30, UTC where it says no offset."),
    "ends_at": Term("No tick after", _moment),
    "overlap": Term("While a run of it is live, a tick starts", _text, "skip", "select"),
    "catchup": Term("Seconds that a tick may be late and still be fired", _number, 3600.0, "decimal", "Empty: 3600."),
    "jitter": Term("Seconds within which a run is started after its tick", _number, 0.0, "decimal", "Empty: 0."),
    "queue": Term("Queue of its runs", _text, help="Empty: the workflow's."),
    "priority": Term("Priority of its runs, 0 (first) to 9 (last)", _whole, 5, "numeric", "Empty: 5."),
    "attributes": Term("Attributes of its runs, as JSON by name", _attributes, None, "area", "Empty: none."),
}  # fmt: skip
_GROUPS = (("What", ("name", "workflow", "input", "pass_tick")), ("When", TIMING), ("How", ("overlap", "catchup", "jitter", "queue", "priority", "attributes")), ("Why", ("reason",)))
_FIELDS = ("name", "workflow", *TERMS, "reason")
_COLUMNS = {"every": "every_s", "catchup": "catchup_s", "jitter": "jitter_s"}  # of the view, where they are called otherwise


def _shown(value: Any) -> str:
    """A stored term as one would type it."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, indent=1) if value else "{}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _stored(row: Row) -> dict[str, str]:
    """A schedule as its form has it."""
    return {"workflow": row["workflow"], **{name: _shown(row[_COLUMNS.get(name, name)]) for name in TERMS}}


def _seen(text: str) -> str:
    """A text as a page shows it: what nobody has touched comes back so."""
    return "\n".join(plain(line.expandtabs(4)) for line in text.split("\n")).strip()


_NEW = {**dict.fromkeys(TERMS, ""), "overlap": str(TERMS["overlap"].empty)}


# ── a draft ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Draft:
    """What is typed, and what is known about it.

    changes  name of the schedule that is to be changed; None for a new one
    of       which state of it that is: when it was changed last
    was      how it stands; None also where the database does not say
    seen     the timing whose ticks were looked at
    wrong    by field, or WHOLE
    """

    typed: dict[str, str]
    changes: str | None = None
    of: str = ""
    was: Row | None = None
    workflows: Sequence[Row] = ()
    seen: str = ""
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.typed["name"] if self.changes is None else self.changes

    @property
    def timing(self) -> str:
        """What of it decides when it ticks, to be compared with what was looked at."""
        return sha256("\0".join(self.typed[name] for name in TIMING).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def changed(self) -> list[str]:
        """Fields that are another than what is stored."""
        before = _stored(self.was) if self.was is not None else {}
        return [name for name in ("workflow", *TERMS) if name in before and _seen(self.typed[name]) != _seen(before[name])]


def drafted(form: Mapping[str, str], is_new: bool, workflows: Sequence[Row] = (), was: Row | None = None) -> Draft:
    """What a form says, as it was typed. Of a schedule that somebody has changed since the form was opened it says so."""
    typed = {name: form.get(name, "").replace("\r\n", "\n").replace("\0", "\ufffd").strip() for name in _FIELDS}
    made = Draft(typed, None if is_new else name_of(form, "schedule"), form.get("of", ""), was, workflows, form.get("seen", ""))
    if was is not None and made.of != (stands := was["changed_at"].isoformat()):
        made.of = stands
        others = ", ".join(made.changed) or "nothing"
        made.wrong[WHOLE] = f"somebody has changed it since this form was opened; what you typed is all here, and of it is another than what now stands: {others}. Look at its next ticks again, then save it"
    return made


def _read(draft: Draft) -> dict[str, Any]:
    """Its terms, as the client takes them: of a schedule that is changed those that are another. What can't be read is told at its field."""
    terms: dict[str, Any] = {}
    names = draft.changed if draft.was is not None else list(TERMS)
    if draft.was is not None and {"cron", "every"} & set(names):
        names = [*names, "cron", "every"]  # one takes the other's place
    for name in dict.fromkeys(names):
        if name not in TERMS:
            continue
        try:
            value = TERMS[name].read(draft.typed[name]) if draft.typed[name] else TERMS[name].empty
        except (ValueError, InputInvalid, PayloadRefused) as error:
            draft.wrong[name] = str(error)
            continue
        if value is not None or draft.was is not None:
            terms[name] = value
    return terms


def put(client: Within, draft: Draft, reason: str, actor: str) -> ScheduleInfo | None:
    """Make or change it in the caller's transaction: how it then is. None where it is refused, which `draft.wrong` says."""
    terms = _read(draft)
    if not draft.typed["workflow"]:
        draft.wrong["workflow"] = "it starts nothing; choose a workflow that a worker has registered"
    if draft.wrong:
        return None
    try:
        if draft.was is None:
            client.create_schedule(draft.name, draft.typed["workflow"], reason=reason, actor=actor, **terms)
        else:
            another = draft.typed["workflow"] if "workflow" in draft.changed else None
            client.change_schedule(draft.name, workflow=another, reason=reason, actor=actor, **terms)
        return client.schedule(draft.name)
    except (ScheduleInvalid, ScheduleExists, UnknownWorkflow, InputInvalid, PayloadRefused) as error:
        draft.wrong[_place(error)] = str(error)
        return None


def _place(error: SupervisorError) -> str:
    """The field that the client's refusal is about."""
    if isinstance(error, ScheduleInvalid):
        return error.term if error.term in _FIELDS else WHOLE
    return {ScheduleExists: "name", UnknownWorkflow: "workflow"}.get(type(error), "input")


def reason_for(draft: Draft) -> str:
    """Why it is saved; what is wrong with that is told at its field."""
    try:
        return reason_of(draft.typed)
    except InputInvalid as error:
        draft.wrong["reason"] = error.why
        return ""


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def new(look: Look, asked: Asked) -> Page:
    """Of a schedule that is not there yet."""
    _may(asked)
    return page_of(Draft({**dict.fromkeys(_FIELDS, ""), **_NEW}, workflows=registered(look)), look)


def change(look: Look, asked: Asked) -> Page:
    _may(asked)
    was = stored(look, asked.get("name"))
    return page_of(Draft({**dict.fromkeys(_FIELDS, ""), **_stored(was)}, was["name"], was["changed_at"].isoformat(), was, registered(look)), look)


def typed(look: Look, asked: Asked, form: Mapping[str, str], is_new: bool) -> Draft:
    """What somebody has sent. Raises PermissionMissing, ScheduleUnknown."""
    _may(asked)
    return drafted(form, is_new, registered(look), None if is_new else stored(look, name_of(form, "schedule")))


def _may(asked: Asked) -> None:
    if not asked.may_operate:
        raise PermissionMissing("a schedule is made and changed here by operators, and this dashboard's role is none, or it only shows (--read-only); start one whose role has the engine's role operator, or use: python -m supervisor schedules create")


def registered(look: Look) -> list[Row]:
    return look.rows("page_workflows", WORKFLOWS_LISTED)


def stored(look: Look, name: str) -> Row:
    found = look.first("client_schedules", name)
    if found is None:
        raise ScheduleUnknown(name)
    return found


def page_of(draft: Draft, look: Look | None = None, found: ScheduleInfo | None = None) -> Page:
    """The form as it is typed, what is wrong at its place. *found*: how it would be, whose next ticks are shown, and may be saved."""
    is_new = draft.changes is None
    lead = "New schedule" if is_new else f"Change schedule {draft.name}"
    panels: list[Any] = []
    if found is not None:
        paused = " once it is resumed" if found.paused_at is not None else ""
        panels.append(ticks_table(ticks_of(found), f"Its next ticks{paused}", "it would never tick"))
        if draft.was is not None:
            panels.append(_changes(draft))
    buttons = [("preview", "Look at its next ticks")] + [("save", "Create it" if is_new else "Change it")] * (found is not None)
    hidden = {"seen": draft.timing if found is not None else "", **({} if is_new else {"of": draft.of, "schedule": quote(draft.name, safe="")})}
    groups = [(title, [_input(draft, name) for name in names if is_new or name != "name"]) for title, names in _GROUPS]
    labels = {each.name: each.label for _, inputs in groups for each in inputs}
    wrong = [(labels.get(name, ""), name, words) for name, words in draft.wrong.items()]
    form = Form("/schedules/new" if is_new else url("/schedule/change", name=draft.name), groups, hidden, buttons, wrong)
    data = {"typed": draft.typed, "wrong": draft.wrong, "next": ticks_of(found) if found is not None else None, "workflows": draft.workflows}
    back = "/schedules" if is_new else url("/schedule", name=draft.name)
    return Page(lead, "schedules", data, template="form", lead=lead, panels=panels, form=form, back=back, said=look.said if look is not None else (), status=400 if draft.wrong else 200)


def _changes(draft: Draft) -> Table:
    before = _stored(draft.was) if draft.was is not None else {}
    rows: list[Sequence[Cell]] = [[name.replace("_", " "), before[name] or None, draft.typed[name] or None] for name in draft.changed]
    return Table("What is changed", ("term", "is", "becomes"), rows)


def _input(draft: Draft, name: str) -> Input:
    value, wrong = draft.typed[name], draft.wrong.get(name, "")
    if name == "name":
        return Input(name, "Name", value, wrong=wrong)
    if name == "reason":
        return Input(name, "Reason, kept in the audit", value, wrong=wrong)
    if name == "workflow":
        known = {row["workflow"]: f"{row['workflow']}({', '.join(_parameters(row))})" for row in draft.workflows}
        options = [("", "choose one")] * (not value) + [(value, value)] * (bool(value) and value not in known) + list(known.items())
        return Input(name, "Workflow", value, "select", options=options, wrong=wrong)
    term = TERMS[name]
    options = [(each, f"{each}: {words}") for each, words in _OVERLAPS.items()] if name == "overlap" else [(each, each) for each in zones()] if term.kind == "zone" else []
    if name == "overlap" and value not in _OVERLAPS:
        options.insert(0, (value, value))
    return Input(name, term.label, value, term.kind, False, help=term.help, wrong=wrong, options=options)


def _parameters(row: Row) -> list[str]:
    found = row["parameters"]
    return [str(each.get("name")) + ("" if each.get("required") else "?") for each in found if isinstance(each, dict)] if isinstance(found, list) else []


@functools.cache
def zones() -> list[str]:
    """Names that this machine has, for completion; the database's host may know others."""
    from zoneinfo import available_timezones

    return sorted(available_timezones())
