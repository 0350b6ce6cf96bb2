"""Schedules: which workflow is started when. Declared in code (`Schedule`), or made while all runs, by the verbs of both kinds of client.

Owns their words, what can be wrong with them and their stored form. What becomes of a tick stands in sql and in leader/schedules.py.
"""

from __future__ import annotations

import inspect
import itertools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_args

import msgspec

from supervisor.api.asked import Asked, encode_attributes
from supervisor.core import registry
from supervisor.core.errors import DefinitionError, InputInvalid, PayloadRefused, ScheduleInvalid, ScheduleUnknown
from supervisor.core.retry import seconds
from supervisor.core.schedules import EPOCH, EVERY_MAX_S, EVERY_MIN_S, Overlap, Timing

if TYPE_CHECKING:
    from typing import Unpack

    from supervisor.api.decorators import Workflow
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb

T = TypeVar("T")
FIRES_MAX = 1000
CATCHUP_MIN_S, JITTER_MAX_S, CRON_MAX = 10.0, 86_400.0, 200  # as the database has them
_LASTING = ("every", "catchup", "jitter")


class ScheduleTerms(TypedDict, total=False):
    """What may be said of a schedule.

    cron       five fields (minute hour day month weekday), six with seconds in front, or a name like "@hourly"; or
    every      seconds or timedelta, 0.1 s at least, counted from 1970-01-01 UTC
    timezone   IANA name of the time zone that cron is read in; "UTC" where none is said
    input      of its runs: a dict by parameter name
    overlap    while a run of it is live: "skip" the tick (the default), "allow" both, "buffer_one" or "buffer_all": the new run waits until the others have
               ended, "cancel_other": the other is cancelled and the new one waits for its end, "terminate_other": the other ends at once
    catchup    how late a tick may be and still be fired, when nobody was there at its time; an hour where none is said, 10 s at least
    jitter     within how many seconds after its tick a run is started; name and tick decide when
    pass_tick  parameter of the workflow that is given the tick: a datetime, or a text
    queue, priority, attributes  of its runs, as `options` has them
    starts_at, ends_at           no tick before, none after
    """

    cron: str
    every: float | timedelta
    timezone: str
    input: Mapping[str, Any] | None
    overlap: Overlap
    catchup: float | timedelta
    jitter: float | timedelta
    pass_tick: str | None
    queue: str | None
    priority: int
    attributes: Mapping[str, Any] | None
    starts_at: datetime | None
    ends_at: datetime | None


class ScheduleInfo(msgspec.Struct, frozen=True):
    """A schedule and how it stands; what each field says is said of the column of the view `schedules`."""

    name: str
    workflow: str
    cron: str | None
    every_s: float | None
    timezone: str
    state: str  # active, paused, failing, over
    next_at: datetime | None
    last_at: datetime | None
    last_run: uuid.UUID | None
    error: str | None
    fired: int
    skipped: int
    missed: int
    live: int
    held: int
    overlap: str
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    input: dict[str, Any]
    pass_tick: str | None
    queue: str | None
    priority: int
    attributes: dict[str, Any] | None
    catchup_s: float
    jitter_s: float
    starts_at: datetime | None
    ends_at: datetime | None
    backfills: int
    declared: bool
    created_at: datetime
    changed_at: datetime

    def timing(self) -> Timing:
        every_us = None if self.every_s is None else round(self.every_s * 1e6)
        return Timing(self.name, self.cron, every_us, self.timezone, self.starts_at, self.ends_at)


class ScheduleFire(msgspec.Struct, frozen=True):
    """What became of a tick."""

    tick_at: datetime
    fired_at: datetime
    kind: str  # tick, trigger, backfill
    state: str  # started, held, skipped, missed
    run_id: uuid.UUID | None
    status: str | None  # of the run
    ticks: int  # more than one: so many were missed, until until_at
    until_at: datetime | None


class Schedule:
    """A schedule that the app declares: `nightly = Schedule("nightly", report, cron="0 3 * * *", timezone="Europe/Berlin")`, at the level of a module.

    It is made when a worker starts, and changed when a worker starts whose declaration is another one than the last. What somebody changes or pauses
    while all runs stays so until then. Raises ScheduleInvalid.
    """

    def __init__(self, name: str, workflow: Workflow[..., Any], **terms: Unpack[ScheduleTerms]) -> None:
        self.name, self.workflow = name, workflow
        self._terms = terms
        if not hasattr(workflow, "encode_record"):
            raise ScheduleInvalid(str(name), f"{workflow!r} is no workflow", "give a function decorated with @workflow")
        self._said = said_of(name, terms)
        self._timing = timing_of(name, terms)
        self._declared: tuple[str, str, str] | None = None
        check_names(name, workflow, terms.get("input"), terms.get("pass_tick"))
        registry.register_schedule(self)

    def next(self, n: int = 5, after: datetime | None = None) -> list[datetime]:
        """Its next *n* ticks, in UTC, after a moment or from now on."""
        return list(itertools.islice(self._timing.after(after or datetime.now(UTC)), n))

    def settle(self) -> None:
        """Hold its input against the annotations of its workflow, which can be resolved once all is imported. Raises DefinitionError."""
        try:
            self.declaration()
        except (InputInvalid, PayloadRefused) as error:
            raise DefinitionError(f"schedule {self.name!r}: its input does not fit workflow {self.workflow.name}: {error.why}; mend its input=, or pass_tick=") from None

    def declaration(self) -> tuple[str, str, str]:
        """Name, what is said of it as JSON, and its hash. Raises InputInvalid, PayloadRefused for an input that does not fit the workflow."""
        if self._declared is None:
            said = {**self._said, "workflow": self.workflow.name, "input": input_of(self.workflow, self._terms.get("input"), self._terms.get("pass_tick"))}
            text = json.dumps(said, sort_keys=True)
            self._declared = self.name, text, sha256(text.encode()).hexdigest()
        return self._declared

    def __repr__(self) -> str:
        return f"<schedule {self.name}>"


# ── what is said, without I/O ────────────────────────────────────────────────────────────────────────────────────


def timing_of(name: str, terms: Mapping[str, Any]) -> Timing:
    """When it ticks. Raises ScheduleInvalid."""
    cron, every = terms.get("cron"), terms.get("every")
    if (cron is None) == (every is None):
        raise ScheduleInvalid(name, "it has " + ("neither cron= nor every=" if cron is None else "both cron= and every="), "give one of them", "cron")
    every_us = None if every is None else round(_seconds(name, "every", every) * 1e6)
    if every_us is not None and not EVERY_MIN_S * 1e6 <= every_us <= EVERY_MAX_S * 1e6:
        raise ScheduleInvalid(name, f"every={every!r} is not between {EVERY_MIN_S:g} s and {EVERY_MAX_S / 86_400:g} days", "give seconds or a timedelta", "every")
    return Timing(name, cron, every_us, terms.get("timezone") or "UTC", terms.get("starts_at"), terms.get("ends_at"))


def said_of(name: str, terms: Mapping[str, Any]) -> dict[str, Any]:
    """*terms* as they are sent, but for the input: JSON values, durations in seconds. Raises ScheduleInvalid, InputInvalid."""
    if not registry.is_name(name):
        raise ScheduleInvalid(str(name), f"its name must be a text of 1 to {registry.NAME_MAX} printable characters", term="name")
    unknown = [key for key in terms if key not in ScheduleTerms.__annotations__]
    if unknown:
        raise ScheduleInvalid(name, f"a schedule has no {unknown[0]}=", "it has " + ", ".join(ScheduleTerms.__annotations__))
    overlap = terms.get("overlap")
    if overlap is not None and overlap not in get_args(Overlap):
        raise ScheduleInvalid(name, f"overlap={overlap!r} is none of {', '.join(get_args(Overlap))}", term="overlap")
    priority = terms.get("priority")
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 9):
        raise ScheduleInvalid(name, f"priority={priority!r} is not between 0 (first) and 9 (last)", "give a whole number", "priority")
    said: dict[str, Any] = {key: value for key, value in terms.items() if key != "input"}
    for key in _LASTING:
        if said.get(key) is not None:
            said[key] = _seconds(name, key, said[key])
    for key in ("starts_at", "ends_at"):
        if said.get(key) is not None:
            said[key] = _moment(name, key, said[key])
    if said.get("attributes") is not None:
        said["attributes"] = json.loads(encode_attributes(said["attributes"]) or b"null")
    _check_bounds(name, said)
    return said


def _check_bounds(name: str, said: Mapping[str, Any]) -> None:
    """What the database would refuse, too, but for a declaration only when a worker starts."""
    catchup_s, jitter_s = said.get("catchup"), said.get("jitter")
    if catchup_s is not None and catchup_s < CATCHUP_MIN_S:
        raise ScheduleInvalid(name, f"catchup is {CATCHUP_MIN_S:g} s at least, not {catchup_s:g}: a leader that changes takes some of them", term="catchup")
    if jitter_s is not None and jitter_s > JITTER_MAX_S:
        raise ScheduleInvalid(name, f"jitter is between 0 and {JITTER_MAX_S:.0f} s, not {jitter_s:.15g}", term="jitter")
    queue, cron = said.get("queue"), said.get("cron")
    if queue is not None and not registry.is_queue_name(queue):
        raise ScheduleInvalid(name, f"the name of a queue has 1 to {registry.NAME_MAX} characters on one line, without control characters", term="queue")
    if cron is not None and not (isinstance(cron, str) and len(cron) <= CRON_MAX):
        raise ScheduleInvalid(name, f"cron has at most {CRON_MAX} characters", term="cron")
    since, until = (said.get(key) for key in ("starts_at", "ends_at"))
    if since is not None and until is not None and datetime.fromisoformat(until) <= datetime.fromisoformat(since):
        raise ScheduleInvalid(name, "it ends before it begins", term="ends_at")


def check_names(name: str, workflow: Any, given: Any, pass_tick: str | None) -> None:
    """Whether a workflow that is imported here takes what it is given, as far as names say so. Raises ScheduleInvalid."""
    if given is not None and not isinstance(given, Mapping):
        raise ScheduleInvalid(name, f"input= is a dict by parameter name, not {type(given).__name__}", term="input")
    parameters = inspect.signature(workflow.fn).parameters
    takes = f"workflow {workflow.name} takes {', '.join(parameters) or 'nothing'}"
    for one in given or {}:
        if one not in parameters or one == pass_tick:
            why = "is what pass_tick= gives" if one == pass_tick else f"is not one of its parameters: {takes}"
            raise ScheduleInvalid(name, f"input= has {one!r}, which {why}", term="input")
    if pass_tick is not None and pass_tick not in parameters:
        raise ScheduleInvalid(name, f"pass_tick={pass_tick!r} is not one of its parameters: {takes}", term="pass_tick")
    missing = [each.name for each in parameters.values() if each.default is each.empty and each.name not in (given or {}) and each.name != pass_tick]
    if missing:
        raise ScheduleInvalid(name, f"input= has no {missing[0]!r}, which has no default: {takes}", term="input")


def _seconds(name: str, key: str, value: Any) -> float:
    try:
        return seconds(value, f"{key}=")
    except DefinitionError as error:
        raise ScheduleInvalid(name, str(error), term=key) from None


def _moment(name: str, key: str, moment: datetime) -> str:
    if not isinstance(moment, datetime):
        raise ScheduleInvalid(name, f"{key}={moment!r} is no datetime", "give an aware datetime", key)
    if moment.tzinfo is None:
        raise ScheduleInvalid(name, f"{key}={moment!r} says no time zone", "give an aware datetime", key)
    return moment.astimezone(UTC).isoformat()


def input_of(workflow: Any, given: Any, pass_tick: str | None) -> Any:
    """The stored input of its runs, without the parameter that is given the tick. Raises InputInvalid, PayloadRefused."""
    by_name = _by_name(workflow.name, given)
    if pass_tick is None:
        return json.loads(workflow.encode_input((), by_name))
    whole = json.loads(workflow.encode_input((), {**by_name, pass_tick: EPOCH}))
    del whole[pass_tick]
    return whole


def _by_name(what: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InputInvalid(what, f"input= of a schedule is a dict by parameter name, not {type(given).__name__}")
    return dict(given or {})


def whole_of(name: str, workflow: Any, terms: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a new schedule. Its input is checked by the workflow; where that is not imported here, by the database."""
    from supervisor.core import codec

    asked = Asked.of(workflow)
    said = {**said_of(name, terms), "workflow": asked.name}
    timing_of(name, terms)
    given = terms.get("input")
    if asked.definition is not None:
        said["input"] = input_of(asked.definition, given, terms.get("pass_tick"))
    else:
        said["input"] = json.loads(codec.encode(_by_name(asked.name, given)))
    return said


# ── the verbs, without I/O ───────────────────────────────────────────────────────────────────────────────────────


def create(name: str, workflow: Any, terms: Mapping[str, Any], reason: str | None, actor: str | None) -> Verb[None]:
    from supervisor.db import schedule_calls

    yield from schedule_calls.put(name, whole_of(name, workflow, terms), "create", reason, actor)


def change(name: str, workflow: Any, terms: Mapping[str, Any], reason: str | None, actor: str | None) -> Verb[None]:
    from supervisor.core import codec
    from supervisor.db import schedule_calls

    said = said_of(name, terms)
    if workflow is not None:
        said["workflow"] = Asked.of(workflow).name
    if not said and "input" not in terms:
        raise ScheduleInvalid(name, "nothing to change", "give what is to be another")
    if terms.get("cron") is not None or terms.get("every") is not None:
        timing_of(name, terms)
    elif terms.get("timezone") is not None:
        Timing(name, "@daily", None, terms["timezone"])
    if "input" in terms:
        said["input"] = json.loads(codec.encode(_by_name(name, terms["input"])))
    yield from schedule_calls.put(name, said, "change", reason, actor)


def trigger(verbs: Verbs, name: str, overlap: str, reason: str | None, actor: str | None) -> Verb[uuid.UUID | None]:
    from supervisor.db import schedule_calls

    (made,) = yield from verbs.questions.run_ids(1)
    return (yield from schedule_calls.trigger(name, made, overlap, verbs.announces, reason, actor))


def backfill(verbs: Verbs, name: str, since: datetime, until: datetime, overlap: str, dry_run: bool, reason: str | None, actor: str | None) -> Verb[int]:
    from supervisor.db import schedule_calls

    for key, moment in (("since", since), ("until", until)):
        _moment(name, key, moment)
    found = yield from one(verbs, name)
    ticks = itertools.takewhile(lambda tick: tick <= until, found.timing().after(since - timedelta(microseconds=1)))
    n = sum(1 for _ in ticks)
    if not dry_run:
        yield from schedule_calls.backfill(name, since, until, overlap, reason, actor)
    return n


def some(name: str | None) -> Verb[list[ScheduleInfo]]:
    from supervisor.db import schedule_calls

    return [ScheduleInfo(*row) for row in (yield from schedule_calls.schedules(name))]


def one(verbs: Verbs, name: str) -> Verb[ScheduleInfo]:
    found = yield from some(name)
    if not found:
        raise ScheduleUnknown(name)
    return found[0]


def fires(name: str, limit: int) -> Verb[list[ScheduleFire]]:
    from supervisor.db import schedule_calls

    return [ScheduleFire(*row) for row in (yield from schedule_calls.fires(name, min(limit, FIRES_MAX)))]


def _switch(verb: str, name: str, reason: str | None, actor: str | None) -> Verb[Any]:
    from supervisor.db import schedule_calls

    return (yield from getattr(schedule_calls, verb)(name, reason, actor))


# ── for threads ──────────────────────────────────────────────────────────────────────────────────────────────────


class ScheduleVerbs:
    """The verbs of `Client` and `Within`. *reason* and *actor* are kept in the view audits, with the role of the session."""

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def create_schedule(
        self, name: str, workflow: Workflow[..., Any] | str, *, reason: str | None = None, actor: str | None = None, **terms: Unpack[ScheduleTerms]
    ) -> None:
        """Start *workflow* again and again from now on, as *terms* say (see ScheduleTerms).

        Raises ScheduleInvalid, ScheduleExists, UnknownWorkflow, InputInvalid, PayloadRefused.
        """
        self._carry(lambda verbs: create(name, workflow, terms, reason, actor))

    def change_schedule(
        self, name: str, *, workflow: Workflow[..., Any] | str | None = None, reason: str | None = None, actor: str | None = None, **terms: Unpack[ScheduleTerms]
    ) -> None:
        """Change what is given; with another cron, every, timezone, starts_at or ends_at it begins anew from now. Raises ScheduleUnknown, ScheduleInvalid, InputInvalid."""
        self._carry(lambda verbs: change(name, workflow, terms, reason, actor))

    def pause_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """ScheduleFire no tick of it until it is resumed; its live runs go on. False where it is paused. Raises ScheduleUnknown."""
        return bool(self._carry(lambda verbs: _switch("pause", name, reason, actor)))

    def resume_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """ScheduleFire it again from its next tick on; those of the pause are not made up for. False where it is not paused. Raises ScheduleUnknown."""
        return bool(self._carry(lambda verbs: _switch("resume", name, reason, actor)))

    def trigger_schedule(self, name: str, reason: str | None = None, *, overlap: Overlap = "allow", actor: str | None = None) -> uuid.UUID | None:
        """Start a run of it now, paused or not: the run's id, or None where *overlap* skips it. Raises ScheduleUnknown."""
        return self._carry(lambda verbs: trigger(verbs, name, overlap, reason, actor))

    def backfill_schedule(
        self, name: str, since: datetime, until: datetime, reason: str | None = None, *, overlap: Overlap = "allow", dry_run: bool = False, actor: str | None = None
    ) -> int:
        """Have a run started for each tick from *since* to *until* that has none; how many ticks that range has.

        The leader starts them, a hundred at a time. dry_run: only count. Raises ScheduleUnknown, ScheduleInvalid, InputInvalid for a range that is not over.
        """
        return self._carry(lambda verbs: backfill(verbs, name, since, until, overlap, dry_run, reason, actor))

    def delete_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> None:
        """Forget it: its live runs go on, those that wait behind them are cancelled. Raises ScheduleUnknown."""
        self._carry(lambda verbs: _switch("delete", name, reason, actor))

    def schedules(self) -> Sequence[ScheduleInfo]:
        """All schedules, by name. Reads the views (viewer, else PermissionMissing)."""
        return self._carry(lambda verbs: some(None))

    def schedule(self, name: str) -> ScheduleInfo:
        """One schedule. Reads the views. Raises ScheduleUnknown."""
        return self._carry(lambda verbs: one(verbs, name))

    def schedule_fires(self, name: str, limit: int = 10) -> Sequence[ScheduleFire]:
        """What became of its last ticks, the newest first, at most 1,000. Reads the views."""
        return self._carry(lambda verbs: fires(name, limit))


# ── for an event loop ────────────────────────────────────────────────────────────────────────────────────────────


class AsyncScheduleVerbs:
    """`ScheduleVerbs`, awaited."""

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    async def create_schedule(
        self, name: str, workflow: Workflow[..., Any] | str, *, reason: str | None = None, actor: str | None = None, **terms: Unpack[ScheduleTerms]
    ) -> None:
        """Start *workflow* again and again from now on; see `Client.create_schedule`."""
        await self._carry(lambda verbs: create(name, workflow, terms, reason, actor))

    async def change_schedule(
        self, name: str, *, workflow: Workflow[..., Any] | str | None = None, reason: str | None = None, actor: str | None = None, **terms: Unpack[ScheduleTerms]
    ) -> None:
        """Change what is given; see `Client.change_schedule`."""
        await self._carry(lambda verbs: change(name, workflow, terms, reason, actor))

    async def pause_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """ScheduleFire no tick of it until it is resumed; see `Client.pause_schedule`."""
        return bool(await self._carry(lambda verbs: _switch("pause", name, reason, actor)))

    async def resume_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """ScheduleFire it again from its next tick on; see `Client.resume_schedule`."""
        return bool(await self._carry(lambda verbs: _switch("resume", name, reason, actor)))

    async def trigger_schedule(self, name: str, reason: str | None = None, *, overlap: Overlap = "allow", actor: str | None = None) -> uuid.UUID | None:
        """Start a run of it now; see `Client.trigger_schedule`."""
        return await self._carry(lambda verbs: trigger(verbs, name, overlap, reason, actor))

    async def backfill_schedule(
        self, name: str, since: datetime, until: datetime, reason: str | None = None, *, overlap: Overlap = "allow", dry_run: bool = False, actor: str | None = None
    ) -> int:
        """Have a run started for each tick of a range that has none; see `Client.backfill_schedule`."""
        return await self._carry(lambda verbs: backfill(verbs, name, since, until, overlap, dry_run, reason, actor))

    async def delete_schedule(self, name: str, reason: str | None = None, *, actor: str | None = None) -> None:
        """Forget it; see `Client.delete_schedule`."""
        await self._carry(lambda verbs: _switch("delete", name, reason, actor))

    async def schedules(self) -> Sequence[ScheduleInfo]:
        """All schedules; see `Client.schedules`."""
        return await self._carry(lambda verbs: some(None))

    async def schedule(self, name: str) -> ScheduleInfo:
        """One schedule; see `Client.schedule`."""
        return await self._carry(lambda verbs: one(verbs, name))

    async def schedule_fires(self, name: str, limit: int = 10) -> Sequence[ScheduleFire]:
        """What became of its last ticks; see `Client.schedule_fires`."""
        return await self._carry(lambda verbs: fires(name, limit))
