"""Many runs at once: slices of one short transaction each, so that nothing waits long for a bulk verb's locks, and it for nobody's.

What somebody else has locked is left and said. A client's role is enough.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress

import psycopg

from supervisor.core import awaited
from supervisor.db import refusals
from supervisor.db.statements import Sql, ended_channel

SLICE_RUNS = 500
TRIES = 5  # a deadlock or a lock that is not had in time changes nothing and is tried again


def cancel(conn: psycopg.Connection, schema: str, runs: Sequence[uuid.UUID], reason: str | None) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """End those of at most SLICE_RUNS *runs* that live, as cancelled; which were, and which are left because somebody has them locked."""
    text = Sql(schema).get("client_cancel_many").encode()
    for _ in range(TRIES):
        try:
            with refusals.told(conn, schema, "client"):
                rows = psycopg.RawCursor(conn).execute(text, (list(runs), reason)).fetchall()
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable):
            continue
        ended = [run_id for run_id, cancelled in rows if cancelled]
        _announce(conn, schema, ended)
        return ended, [run_id for run_id, cancelled in rows if not cancelled]
    return [], list(runs)


def _announce(conn: psycopg.Connection, schema: str, ended: Sequence[uuid.UUID]) -> None:
    """Tell who waits for them, in a transaction of its own. Who is not told finds it by asking."""
    payloads = awaited.texts([run_id.bytes for run_id in ended])
    if payloads:
        with suppress(psycopg.Error):
            conn.execute(Sql(schema).get("announce_each").encode(), ([ended_channel(schema)] * len(payloads), payloads))
