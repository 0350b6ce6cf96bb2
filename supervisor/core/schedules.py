"""When schedules tick, and what is to be done about it now. Pure: moments in, moments out.

Cron is read by cronsim and time zones by zoneinfo; nothing here parses either. A tick is a moment in UTC. Invariant: the ticks
after a moment are later than it, ascend, and are the same whoever asks and whenever: so what was fired is never fired again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from supervisor.core.errors import ScheduleInvalid

Overlap = Literal["skip", "allow", "buffer_one", "buffer_all", "cancel_other", "terminate_other"]
OVERLAPS: tuple[Overlap, ...] = ("skip", "allow", "buffer_one", "buffer_all", "cancel_other", "terminate_other")
NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
EVERY_MIN_S, EVERY_MAX_S = 0.1, 366 * 86_400.0  # as the database has them
TICKS_MAX = 100  # of one schedule in one turn: what they start is one transaction
LOOKED_MAX = 500  # ticks that are looked at in one turn, missed ones too: 10 ms
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)


class Timing:
    """When a schedule ticks. Raises ScheduleInvalid for a cron or a time zone that can't be read.

    cron      five fields, or six with seconds in front, or a name like @hourly; or
    every_us  so many microseconds, counted from 1970-01-01 UTC
    zone      IANA name of the time zone that cron is read in
    """

    def __init__(
        self, schedule: str, cron: str | None, every_us: int | None, zone: str = "UTC", starts_at: datetime | None = None, ends_at: datetime | None = None
    ) -> None:
        self.schedule = schedule
        self.every_us = every_us
        self.starts_at, self.ends_at = starts_at, ends_at
        self.cron = None if cron is None else NICKNAMES.get(cron.strip().lower(), cron)
        self.zone = _zone(schedule, zone)
        if self.cron is not None:
            self._simulated(EPOCH)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Its ticks later than *moment*, without end but for `ends_at`, or where none comes for 50 years."""
        if self.starts_at is not None and self.starts_at > moment:
            moment = self.starts_at - US
        for tick in self._intervals(moment) if self.every_us is not None else self._crons(moment):
            if self.ends_at is not None and tick > self.ends_at:
                return
            yield tick

    def _intervals(self, moment: datetime) -> Iterator[datetime]:
        every = timedelta(microseconds=self.every_us or 0)
        tick = EPOCH + ((moment - EPOCH) // every) * every
        while True:
            tick += every
            yield tick

    def _crons(self, moment: datetime) -> Iterator[datetime]:
        last = moment
        for local in self._simulated(moment.astimezone(self.zone)):
            tick = local.astimezone(UTC)
            if tick > last:  # it goes by the clock on the wall, which an hour in autumn shows twice
                last = tick
                yield tick

    def _simulated(self, moment: datetime) -> Iterator[datetime]:
        from cronsim import CronSim, CronSimError

        assert self.cron is not None
        try:
            return CronSim(self.cron, moment)
        except CronSimError as error:
            why = f"it knows no such name; there are {', '.join(NICKNAMES)}" if self.cron.lstrip().startswith("@") else str(error)
            raise ScheduleInvalid(
                self.schedule, f"cron {self.cron!r} can't be read: {why}",
                'give five fields, minute hour day month weekday: cron="0 3 * * *", or a name like "@hourly"', "cron",
            ) from None  # fmt: skip


def _zone(schedule: str, name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    if name in ("UTC", "Etc/UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ScheduleInvalid(schedule, f"there is no time zone {name!r}", 'give a name like "Europe/Berlin"; where the system has none, pip install tzdata', "timezone") from None


def jitter_of(schedule: str, tick: datetime, jitter_s: float) -> timedelta:
    """How long after its tick a run is started: the same whoever computes it."""
    if jitter_s <= 0:
        return timedelta(0)
    share = int.from_bytes(sha256(f"{schedule}@{tick.isoformat()}".encode()).digest()[:8]) / 2**64
    return timedelta(seconds=share * jitter_s)


class Due(NamedTuple):
    """A schedule that is to be looked at, or the rest of a backfill of it, as the block schedules_due has it."""

    name: str
    version: int
    cron: str | None
    every_us: int | None
    timezone: str
    jitter_s: float
    catchup_s: float
    after_at: datetime
    starts_at: datetime | None
    ends_at: datetime | None
    now: datetime
    backfill: int | None = None


@dataclass
class Planned:
    """What is to be done with it: which ticks are fired, which were missed, and when it is looked at again; None: never."""

    ticks: list[datetime]
    missed: list[datetime]
    after_at: datetime
    next_at: datetime | None
    due_at: datetime | None
    error: str | None = None

    def as_json(self, due: Due) -> dict[str, Any]:
        """As the function fire_schedules takes it."""
        missed = {"from": _text(self.missed[0]), "until": _text(self.missed[-1]), "n": len(self.missed)} if self.missed else None
        return {
            "name": due.name, "version": due.version, "was": _text(due.after_at), "after": _text(self.after_at), "next": self.next_at and _text(self.next_at),
            "due": _text(self.due_at) if self.due_at is not None else "infinity", "error": self.error, "ticks": [_text(tick) for tick in self.ticks],
            "missed": missed, "backfill": due.backfill,
        }  # fmt: skip


def _text(moment: datetime) -> str:
    return moment.isoformat()


def plan(due: Due) -> Planned:
    """What is to be done with *due* now: at most TICKS_MAX ticks, the oldest first; what is left is due at once again."""
    ticks: list[datetime] = []
    missed: list[datetime] = []
    at = due.after_at
    try:
        timing = Timing(due.name, due.cron, due.every_us, due.timezone, due.starts_at, due.ends_at)
    except ScheduleInvalid as error:
        return Planned([], [], at, None, None, str(error))
    for tick in timing.after(at):
        fires_at = tick + jitter_of(due.name, tick, due.jitter_s)
        if fires_at > due.now:
            return Planned(ticks, missed, at, tick, fires_at)
        late = (due.now - fires_at).total_seconds() > due.catchup_s
        if len(ticks) == TICKS_MAX or len(ticks) + len(missed) == LOOKED_MAX:
            return Planned(ticks, missed, at, tick, due.now)
        (missed if late else ticks).append(tick)
        at = tick
    return Planned(ticks, missed, at, None, None)


def backfill_of(row: Due) -> Due:
    """The rest of a backfill: no tick is too late, and none is put off."""
    return row._replace(jitter_s=0.0, catchup_s=math.inf)
