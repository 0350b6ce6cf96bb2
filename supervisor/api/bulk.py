"""Operators' verbs on all runs that a filter finds: in slices of 500, one transaction each, a row of audit for each run. Said once, for both kinds of client.

Finds runs newest first and passes each once, so what starts meanwhile is left alone. What somebody else has locked is told, not waited for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from supervisor.api.asked import Asked
from supervisor.core import codec
from supervisor.core.errors import InputInvalid

if TYPE_CHECKING:
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb
    from supervisor.db.operator_calls import Deed

T = TypeVar("T")
BulkVerb = Literal["cancel", "terminate", "pause", "resume", "retry", "fork", "skip", "edit_retry"]
TAKES = {
    "cancel": (), "terminate": (), "pause": (), "resume": (), "retry": (), "fork": ("seq", "input", "workflow"), "skip": ("seq", "result"),
    "edit_retry": ("seq", "policy"),
}  # fmt: skip
COUNT_RUNS = 10_000
MISSING: Any = object()


class Each(msgspec.Struct, frozen=True):
    """What came of a verb for one run. `state`: what it is now, or ended, passed, unknown, refused, locked; `why`: of a refusal; `made`: the run that goes on."""

    run_id: uuid.UUID
    did: bool
    state: str
    why: str | None
    made: uuid.UUID | None


class Bulk(msgspec.Struct, frozen=True):
    """What came of it for all: runs that were found, that were changed, that were as they were or refused; and those that others have locked, to be asked again."""

    found: int
    done: int
    refused: int
    locked: tuple[uuid.UUID, ...] = ()


def wanted(verb: str, **given: Any) -> Deed:
    """Raises InputInvalid for what *verb* does not take, or lacks."""
    from supervisor.db.operator_calls import Deed

    if verb not in TAKES:
        raise InputInvalid("operate_all", f"there is no verb {verb!r}; it is one of {', '.join(TAKES)}")
    told = {name for name, value in given.items() if value is not MISSING and not (name == "policy" and not value)}
    if odd := sorted(told - set(TAKES[verb])):
        raise InputInvalid("operate_all", f"{verb} takes no {odd[0]}=")
    lacks = [name for name in TAKES[verb] if name not in told and name in ("seq", "result", "policy")]
    if lacks:
        raise InputInvalid("operate_all", f"{verb} wants {lacks[0] if lacks[0] != 'policy' else 'max_attempts, initial, factor, maximum or next_in'}=")
    payload = given["input"] if verb == "fork" else given["result"] if verb == "skip" else MISSING
    options: dict[str, Any] = given["policy"] if verb == "edit_retry" else {}
    if verb == "fork":
        options = {"workflow": None if given["workflow"] is MISSING else Asked.of(given["workflow"]).name}
    return Deed(verb, given["seq"] if "seq" in told else None, None if payload is MISSING else codec.encode(payload), options)


def operate_all(
    verbs: Verbs, what: Deed, filter: str, dry_run: bool, timeout_s: float, each: Callable[[Each], object] | None, reason: str | None, actor: str | None
) -> Verb[Bulk]:
    from supervisor.core.filters import open_to, parse
    from supervisor.db import operator_calls

    asked = open_to(what.verb, parse(filter))
    found = done = refused = 0
    locked: list[uuid.UUID] = []
    before: uuid.UUID | None = None
    while page := (yield from verbs.questions.filtered(asked, before, COUNT_RUNS if dry_run else operator_calls.SLICE_RUNS, timeout_s)):
        before = page[-1].run_id
        found += len(page)
        if dry_run:
            continue
        came = yield from operator_calls.operate_many(what, [one.run_id for one in page], reason, actor)
        verbs.tell_slice([one for one in came if one.did])
        for one in came:
            done += one.did
            if one.state == "locked":
                locked.append(one.run_id)
            else:
                refused += not one.did
            if each is not None:
                each(Each(one.run_id, one.did, one.state, one.why, one.made))
    return Bulk(found, done, refused, tuple(locked))


# ── for threads ──────────────────────────────────────────────────────────────────────────────────────────────────


class BulkVerbs:
    """`operate_all` of `Client` and `Within`."""

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def operate_all(
        self, verb: BulkVerb, filter: str, *, seq: int | None = MISSING, input: Any = MISSING, workflow: Any = MISSING, result: Any = MISSING,
        policy: dict[str, Any] | None = None, dry_run: bool = False, each: Callable[[Each], object] | None = None, timeout: float = 30.0,
        reason: str | None = None, actor: str | None = None,
    ) -> Bulk:  # fmt: skip
        """Do a verb of operators to all runs that *filter* finds, as the command with --filter: in slices of 500, each in one transaction.

        seq       of `fork`, `skip`, `edit_retry`: the step
        input, workflow   of `fork`: other ones. result: of `skip`; it is not checked against an annotation here
        policy    of `edit_retry`: {"max_attempts": 9, "initial": 1.0, "factor": 2.0, "maximum": 60.0, "next_in": 0.0}, what is to change
        dry_run   only count: `found` says how many runs would be asked
        each      called with what came of it for each run, slice by slice: progress
        timeout   seconds that looking for a slice may take (ReadTimeout)
        Needs an operator's right, for `cancel` and `terminate` a client's and a viewer's. Raises FilterInvalid, InputInvalid, PermissionMissing.
        """
        what = wanted(verb, seq=seq, input=input, workflow=workflow, result=result, policy=_policy(policy))
        return self._carry(lambda verbs: operate_all(verbs, what, filter, dry_run, timeout, each, reason, actor))


class AsyncBulkVerbs:
    """`BulkVerbs`, awaited."""

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    async def operate_all(
        self, verb: BulkVerb, filter: str, *, seq: int | None = MISSING, input: Any = MISSING, workflow: Any = MISSING, result: Any = MISSING,
        policy: dict[str, Any] | None = None, dry_run: bool = False, each: Callable[[Each], object] | None = None, timeout: float = 30.0,
        reason: str | None = None, actor: str | None = None,
    ) -> Bulk:  # fmt: skip
        """Do a verb of operators to all runs that *filter* finds; see `Client.operate_all`."""
        what = wanted(verb, seq=seq, input=input, workflow=workflow, result=result, policy=_policy(policy))
        return await self._carry(lambda verbs: operate_all(verbs, what, filter, dry_run, timeout, each, reason, actor))


def _policy(given: dict[str, Any] | None) -> dict[str, Any]:
    from supervisor.api.operators import terms

    if not given:
        return {}
    if odd := sorted(set(given) - {"max_attempts", "initial", "factor", "maximum", "next_in"}):
        raise InputInvalid("operate_all", f"a policy has no {odd[0]!r}; it has max_attempts, initial, factor, maximum, next_in")
    return terms({name: value for name, value in given.items() if name != "next_in"}, given.get("next_in"))
