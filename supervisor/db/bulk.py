"""Many runs at once: slices of one short transaction each, so that nothing waits long for a bulk verb's locks, and it for nobody's.

What somebody else has locked is left and said. To end runs a client's role is enough, else it is an operator's.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import psycopg

from supervisor.core import awaited
from supervisor.db import refusals
from supervisor.db.client_calls import Question, Questions, Rows, carry
from supervisor.db.operator_calls import Deed, Done, operate_many
from supervisor.db.operator_calls import SLICE_RUNS as SLICE_RUNS
from supervisor.db.statements import Sql, ended_channel, signal_channel, wake_channel

OWNERS_MAX = 500  # in one notification; a number has at most 10 digits
KINDS_MAX = 50  # of woken runs in one notification; a name is at most 500 characters long, but most are short


def operate(conn: psycopg.Connection, schema: str, deed: Deed, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> list[Done]:
    """Do it to at most SLICE_RUNS *runs*, in one transaction, and tell of it; those that somebody has locked say so."""
    asked = operate_many(deed, runs, reason, actor)

    def rows(question: Question) -> Rows:
        block, values = question
        with refusals.told(conn, schema, deed.role):
            return psycopg.RawCursor(conn).execute(Sql(schema).get(str(block)).encode(), values).fetchall()

    try:
        done = carry(asked.talk(1), rows)
    except psycopg.DatabaseError as error:
        raise Questions(schema).refusal(error, asked.what, deed.role) from None
    _announce(conn, schema, _said(schema, [each for each in done if each.did]))
    return done


def _said(schema: str, done: Sequence[Done]) -> list[tuple[str, str]]:
    """Who is to be told: whoever waits for a run that has ended, the workers that have others, all of what was woken."""
    payloads = [(ended_channel(schema), text) for text in awaited.texts([each.run_id.bytes for each in done if each.ended])]
    if owners := sorted({each.owner for each in done if each.owner is not None}):
        payloads.append((signal_channel(schema), msgspec.json.encode(owners[:OWNERS_MAX]).decode()))
    if woken := Counter((each.workflow, each.queue) for each in done if each.workflow is not None):
        kinds = [(workflow, queue, n, 0.0) for (workflow, queue), n in woken.most_common(KINDS_MAX)]
        payloads.append((wake_channel(schema), msgspec.json.encode(kinds).decode()))
    return payloads


def _announce(conn: psycopg.Connection, schema: str, payloads: Sequence[tuple[str, str]]) -> None:
    """Tell who waits or has them, in a transaction of its own. Who is not told finds it by asking."""
    if payloads:
        with suppress(psycopg.Error):
            conn.execute(Sql(schema).get("announce_each").encode(), ([channel for channel, _ in payloads], [text for _, text in payloads]))
