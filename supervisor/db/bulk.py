"""Many runs at once: slices of one short transaction each, so that nothing waits long for a bulk verb's locks, and it for nobody's.

What somebody else has locked is left and said. A client's role is enough.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import psycopg

from supervisor.core import awaited
from supervisor.db import refusals
from supervisor.db.client_calls import Question, Questions, Rows, carry
from supervisor.db.operator_calls import IN_THE_WAY, WAY_TRIES, Deed, Done, operate_many
from supervisor.db.operator_calls import SLICE_RUNS as SLICE_RUNS
from supervisor.db.statements import Sql, ended_channel, signal_channel, wake_channel

OWNERS_MAX = 500  # in one notification; a number has at most 10 digits
KINDS_MAX = 50  # of woken runs in one notification; a name is at most 500 characters long, but most are short


def cancel(
    conn: psycopg.Connection, schema: str, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None = None
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """Cancel those of at most SLICE_RUNS *runs* that live; which were, and which are left because somebody has them locked."""
    rows = _slice(conn, schema, "client_cancel_many", runs, reason, actor)
    if rows is None:
        return [], list(runs)
    told = [row for row in rows if row[1]]
    payloads = [(ended_channel(schema), text) for text in awaited.texts([row[0].bytes for row in told if row[2]])]
    if owners := sorted({row[3] for row in told if row[3] is not None}):
        payloads.append((signal_channel(schema), msgspec.json.encode(owners).decode()))
    woken = Counter((row[4], row[5]) for row in told if row[3] is None and not row[2])
    if woken:
        kinds = [(workflow, queue, n, 0.0) for (workflow, queue), n in woken.most_common(KINDS_MAX)]
        payloads.append((wake_channel(schema), msgspec.json.encode(kinds).decode()))
    _announce(conn, schema, payloads)
    return [row[0] for row in told], [row[0] for row in rows if not row[1]]


def terminate(
    conn: psycopg.Connection, schema: str, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None = None
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """End those of at most SLICE_RUNS *runs* that live, without their code; which were, and which are left because somebody has them locked."""
    rows = _slice(conn, schema, "client_terminate_many", runs, reason, actor)
    if rows is None:
        return [], list(runs)
    ended = [run_id for run_id, done in rows if done]
    _announce(conn, schema, [(ended_channel(schema), text) for text in awaited.texts([run_id.bytes for run_id in ended])])
    return ended, [run_id for run_id, done in rows if not done]


def _slice(conn: psycopg.Connection, schema: str, block: str, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> list[Any] | None:
    """The rows of one transaction; None where somebody was in the way again and again."""
    text = Sql(schema).get(block).encode()
    for _ in range(WAY_TRIES):
        try:
            with refusals.told(conn, schema, "client"):
                return psycopg.RawCursor(conn).execute(text, (list(runs), reason, actor)).fetchall()
        except IN_THE_WAY:
            continue
    return None


def operate(conn: psycopg.Connection, schema: str, deed: Deed, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> list[Done]:
    """Do it to at most SLICE_RUNS *runs*, in one transaction; those that somebody has locked say so."""
    asked = operate_many(deed, runs, reason, actor)

    def rows(question: Question) -> Rows:
        block, values = question
        with refusals.told(conn, schema, "operator"):
            return psycopg.RawCursor(conn).execute(Sql(schema).get(str(block)).encode(), values).fetchall()

    try:
        done = carry(asked.talk(1), rows)
    except psycopg.DatabaseError as error:
        raise Questions(schema).refusal(error, asked.what, "operator") from None
    owners = sorted({each.owner for each in done if each.did and each.owner is not None})
    if owners:
        _announce(conn, schema, [(signal_channel(schema), json.dumps(owners[:OWNERS_MAX]))])
    return done


def _announce(conn: psycopg.Connection, schema: str, payloads: Sequence[tuple[str, str]]) -> None:
    """Tell who waits or has them, in a transaction of its own. Who is not told finds it by asking."""
    if payloads:
        with suppress(psycopg.Error):
            conn.execute(Sql(schema).get("announce_each").encode(), ([channel for channel, _ in payloads], [text for _, text in payloads]))
