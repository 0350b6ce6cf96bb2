"""What operators ask of one run, and holders of tokens of one step: their statements, and how the answers are read.

Generators' questions, as those of client_calls.py; who carries them, and what refusals mean, stands there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from supervisor.db.client_calls import Ask, Sent, Talk

REFUSED = "SV030"
COMPLETED, FAILED = 1, 2  # completion.kind
SLICE_RUNS = 500  # of one transaction
WAY_TRIES = 5  # a deadlock, or a lock that is not had in time, has changed nothing and is tried again
IN_THE_WAY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)
INTERVENE = ("skip", "edit_retry")  # what an operator's role may alone


class Operated(NamedTuple):
    """What has come of a verb. `owner`: worker that is to look; `workflow` and `queue`: of a run that is ready now."""

    did: bool
    state: str
    made: uuid.UUID | None
    owner: int | None
    workflow: str | None
    queue: str | None


class Deed(NamedTuple):
    """A verb with what it takes."""

    verb: str
    seq: int | None = None
    payload: bytes | None = None
    options: dict[str, Any] | None = None

    def values(self, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> tuple[object, ...]:
        """The parameters of client_operate_many."""
        return (self.verb, list(runs), self.seq, self.payload, json.dumps(self.options or {}), reason, actor)


class Done(NamedTuple):
    """What has come of it for one run. `state`: also ended, unknown, refused, locked; `why`: of a refusal, or how it ended."""

    run_id: uuid.UUID
    did: bool
    state: str
    why: str | None
    made: uuid.UUID | None
    owner: int | None


def operate_many(deed: Deed, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> Ask[list[Done]]:
    """Do it to at most SLICE_RUNS *runs*, in one transaction; those that somebody has locked say so, all of them where somebody was in the way again and again.

    Repeated when the session was lost in between: what the first try did is then told as it is found.
    """
    values = deed.values(runs, reason, actor)

    def talk(tries: int) -> Talk[list[Done]]:
        in_the_way: psycopg.Error | None = None
        for _ in range(WAY_TRIES):
            try:
                return [Done(*row) for row in (yield "client_operate_many", values)]
            except IN_THE_WAY as error:
                in_the_way = error
            except psycopg.errors.InFailedSqlTransaction as error:
                raise in_the_way or error from None  # the transaction is a caller's, and nothing can be tried again in it
        return [Done(run_id, False, "locked", None, None, None) for run_id in runs]

    return Ask(talk, f"{deed.verb} of {len(runs)} runs", writes=True, role="operator")


def operate(
    verb: str,
    run_id: uuid.UUID,
    made_id: bytes | None = None,
    seq: int | None = None,
    payload: bytes | None = None,
    options: dict[str, Any] | None = None,
    reason: str | None = None,
    actor: str | None = None,
) -> Ask[Operated]:
    """Do *verb*. Raises RunUnknown, RunEnded, OperationRefused.

    Repeated when the session was lost in between, under the same id of what is made: a refusal then says that the first try had arrived.
    """
    made = None if made_id is None else uuid.UUID(bytes=made_id)
    values = (verb, run_id, made, seq, payload, json.dumps(options or {}), reason, actor)
    block = "client_intervene" if verb in INTERVENE else "client_operate"

    def talk(tries: int) -> Talk[Operated]:
        try:
            rows = yield block, values
        except psycopg.Error as error:
            if tries == 1 or error.sqlstate != REFUSED or verb == "pause":  # asked twice that is no refusal, so it is to end
                raise
            return Operated(True, "", run_id, None, None, None)
        return Operated(*rows[0])

    return Ask(talk, f"{verb} of run {run_id}", writes=True, role="operator" if verb in INTERVENE else "client")


def finish_token(token: str, kind: int, payload: bytes, retry: bool = True) -> Ask[Sent]:
    """Complete (1) or fail (2) the try that a token is of. Raises TokenUnknown, TokenClosed. Said again it is the same, so a lost answer is repeated."""

    def talk(tries: int) -> Talk[Sent]:
        rows = yield "client_finish_token", (token, kind, payload, retry)
        sent = Sent(*rows[0])
        return sent._replace(stored=True) if tries > 1 else sent

    return Ask(talk, "completion of a token" if kind == COMPLETED else "failure of a token", writes=True)


def beat_token(token: str, details: bytes | None) -> Ask[None]:
    """A sign of life of who holds a token. Raises TokenUnknown, TokenClosed."""

    def talk(tries: int) -> Talk[None]:
        yield "client_beat_token", (token, details)

    return Ask(talk, "heartbeat of a token", writes=True)


def step_of(run_id: uuid.UUID, seq: int) -> Ask[str | None]:
    """Name of the step at *seq* that has no result; None where that is not known."""

    def talk(tries: int) -> Talk[str | None]:
        rows = yield "client_step_of", (run_id, seq)
        return rows[0][0]  # type: ignore[no-any-return]

    return Ask(talk, f"skip in run {run_id}", role="operator")
