"""Versions of workflows on tables in memory: which there are, and giving runs of one to another. As the view and the function of sql/migrations/0024 and 0050."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from supervisor.core.errors import UnknownWorkflow, VersionUnknown
from supervisor.core.histories import moment
from supervisor.testing.ids import EPOCH_2000_US
from supervisor.testing.operators import check_said
from supervisor.testing.tables import ACTOR, CODE_MISSING, FRESH, NONDETERMINISM, Tables, Task

SLICE_RUNS = 500
HOUR_US = 3_600_000_000
KNOWN_MAX = 10
Which = tuple[int, str | None]


class Versions:
    def __init__(self, tables: Tables) -> None:
        self._t = tables

    def rows(self, workflow: str | None) -> list[tuple[Any, ...]]:
        """Of one workflow, or of all: rows of the view versions, the newest first."""
        t, names = self._t, self._t.catalogue
        live: dict[Which, list[Task]] = {}
        for task in t.tasks.values():
            live.setdefault((task.workflow, t.run_version(task.id)), []).append(task)
        ended = Counter((t.runs[run].workflow, t.ended_version(run)) for run in t.outcomes if uuid.UUID(bytes=run).int >> 80 >= (t.now() + EPOCH_2000_US - HOUR_US) // 1000)
        here = names.served.get(max(names.served, default=0), {})
        made: list[tuple[Any, ...]] = []
        for which in {*names.known, *live, *ended}:
            number, version = which
            mine, seen, workers = live.get(which, []), names.known.get((number, version or "")), int(here.get(number) == version)
            missing = [task for task in mine if task.wait_kind == CODE_MISSING]
            since = min((task.since for task in missing), default=None)
            made.append((
                names.name_of(number), version, workers, [ACTOR] * workers, len(mine), sum(task.owner is not None for task in mine), len(missing),
                None if since is None else moment(since), ended[which], *((seen.source, moment(seen.first[0]), moment(seen.last[0])) if seen is not None else (None, None, None)),
            ))  # fmt: skip
        return sorted((row for row in made if workflow in (None, row[0])), key=lambda row: (row[0], *self._newest_first(names.workflows[row[0]], row[1])))

    def _newest_first(self, workflow: int, version: str | None) -> tuple[Any, ...]:
        """What no worker has had is first; of one moment, in which the environment stands, what a later worker has had."""
        seen = self._t.catalogue.known.get((workflow, version or ""))
        turns = () if seen is None else (*(-each for each in seen.last), *(-each for each in seen.first))
        return seen is not None, turns, version is None, version or ""

    def move(
        self, workflow: str, from_version: str | None, to_version: str, after: uuid.UUID | None, dry_run: bool, reason: str | None, actor: str | None
    ) -> tuple[int, int, uuid.UUID | None]:
        """One slice: how many were moved, how many a worker has, the last run of it; None: that was all."""
        number = self._t.catalogue.workflows.get(workflow)
        if number is None:
            raise UnknownWorkflow(workflow)
        known = self._t.catalogue.known
        if (number, to_version) not in known:
            theirs = sorted((version for of, version in known if of == number), key=lambda version: self._newest_first(number, version))
            raise VersionUnknown(workflow, to_version, theirs[:KNOWN_MAX])
        found = [task for task in self._of(number, from_version) if after is None or task.id > after.bytes][:SLICE_RUNS]
        free = [task for task in found if task.owner is None and task.version == from_version]
        if free and not dry_run:
            check_said(reason, actor)
        for task in () if dry_run else free:
            self._give(task, from_version, to_version)
        if not dry_run:
            self._t.wake()
        return len(free), len(found) - len(free), uuid.UUID(bytes=found[-1].id) if found else None

    def _of(self, workflow: int, version: str | None) -> Iterator[Task]:
        for task in sorted(self._t.tasks.values(), key=lambda task: task.id):
            none = version is None and task.version is None and task.owner is None and task.resumed > FRESH
            held = task.version is None and task.owner is not None and self._t.run_version(task.id) == version
            if task.workflow == workflow and (none or held or version is not None and task.version == version):
                yield task

    def _give(self, task: Task, was: str | None, version: str) -> None:
        """What is parked for its code stays so under its new version, and a worker that has that takes it from there."""
        task.version = version
        if task.wait_kind in (NONDETERMINISM, CODE_MISSING):
            task.detail = msgspec.json.encode({"wants": version, "moved_from": was}).decode()
        if task.wait_kind == NONDETERMINISM:
            task.wait_kind, task.since = CODE_MISSING, self._t.now()


__all__ = ["Versions"]
