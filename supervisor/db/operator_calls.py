"""What operators ask of one run, and holders of tokens of one step: their statements, and how the answers are read.

Generators' questions, as those of client_calls.py; who carries them, and what refusals mean, stands there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from supervisor.db.client_calls import Ask, Question, Rows, Sent, Talk

REFUSED = "SV030"
COMPLETED, FAILED = 1, 2  # completion.kind
SLICE_RUNS = 500  # of one transaction
WAY_TRIES = 5  # a deadlock, or a lock that is not had in time, has changed nothing and is tried again
IN_THE_WAY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)
INTERVENE = ("skip", "edit_retry")  # what an operator's role may alone
ENDING = ("cancel", "terminate")  # many at once have functions of their own, which a client's role may call


class Operated(NamedTuple):
    """What has come of a verb. `owner`: worker that is to look; `workflow` and `queue`: of a run that is ready now."""

    did: bool
    state: str
    made: uuid.UUID | None
    owner: int | None
    workflow: str | None
    queue: str | None


class Done(NamedTuple):
    """What has come of it for one run. `state`: also ended, unknown, refused, locked; `why`: of a refusal, or how it ended.

    Whom to tell: `owner`, the worker that is to look; `ended`: all who wait for it; else `workflow` and `queue` of a run that was woken.
    """

    run_id: uuid.UUID
    did: bool
    state: str
    why: str | None = None
    made: uuid.UUID | None = None
    owner: int | None = None
    ended: bool = False
    workflow: str | None = None
    queue: str | None = None


class Deed(NamedTuple):
    """A verb with what it takes."""

    verb: str
    seq: int | None = None
    payload: bytes | None = None
    options: dict[str, Any] | None = None

    @property
    def role(self) -> str:
        """Which a session needs that does it to many."""
        return "client" if self.verb in ENDING else "operator"

    def question(self, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> Question:
        """What does it to many."""
        if self.verb in ENDING:
            return f"client_{self.verb}_many", (list(runs), reason, actor)
        return "client_operate_many", (self.verb, list(runs), self.seq, self.payload, json.dumps(self.options or {}), reason, actor)

    def read(self, runs: Sequence[uuid.UUID], rows: Rows) -> list[Done]:
        """What the answer says of each of *runs*."""
        if self.verb not in ENDING:
            return [Done(*row) for row in rows]
        done = [_cancelled(*row) if self.verb == "cancel" else _terminated(*row) for row in rows]
        passed = set(runs) - {each.run_id for each in done}
        return done + [Done(run_id, False, "passed", BEFORE[self.verb]) for run_id in sorted(passed)]


BEFORE = {"cancel": "it had ended, or was asked to end before", "terminate": "it had ended before"}


def _cancelled(run_id: uuid.UUID, did: bool, ended: bool, owner: int | None, workflow: str | None, queue: str | None) -> Done:
    state = "locked" if not did else "cancelled" if ended else "asked"
    return Done(run_id, did, state, owner=owner, ended=ended, workflow=None if ended or owner is not None else workflow, queue=queue)


def _terminated(run_id: uuid.UUID, did: bool) -> Done:
    return Done(run_id, did, "terminated" if did else "locked", ended=did)


def operate_many(deed: Deed, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> Ask[list[Done]]:
    """Do it to at most SLICE_RUNS *runs*, in one transaction; those that somebody has locked say so, all of them where somebody was in the way again and again.

    Repeated when the session was lost in between: what the first try did is then told as it is found.
    """
    question = deed.question(runs, reason, actor)

    def talk(tries: int) -> Talk[list[Done]]:
        in_the_way: psycopg.Error | None = None
        for _ in range(WAY_TRIES):
            try:
                return deed.read(runs, (yield question))
            except IN_THE_WAY as error:
                in_the_way = error
            except psycopg.errors.InFailedSqlTransaction as error:
                raise in_the_way or error from None  # the transaction is a caller's, and nothing can be tried again in it
        return [Done(run_id, False, "locked") for run_id in runs]

    return Ask(talk, f"{deed.verb} of {len(runs)} runs", writes=True, role=deed.role)


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
