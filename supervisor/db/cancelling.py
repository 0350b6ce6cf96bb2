"""Cancel runs: one transaction each, so that no lock of one run waits for the next.

The function cancel sees to the lock order, to whoever has the run, and to its parent; a client's role is enough.
"""

from __future__ import annotations

import uuid

import psycopg
from psycopg.rows import dict_row

from supervisor.core.errors import RunUnknown
from supervisor.db import history, refusals
from supervisor.db.statements import Sql

TRIES = 5  # a deadlock or a lock that is not had in time changes nothing and is tried again


def cancel(conn: psycopg.Connection, schema: str, run_id: uuid.UUID, reason: str | None) -> bool:
    """End a live run as cancelled; False when it had ended already. Raises RunUnknown."""
    text = Sql(schema).get("client_cancel").encode()
    for left in reversed(range(TRIES)):
        try:
            with refusals.told(conn, schema, "client"):
                row = psycopg.RawCursor(conn).execute(text, (run_id, reason)).fetchone()
                return bool(row and row[0])
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable):
            if not left:
                raise
        except psycopg.Error as error:
            if error.sqlstate == "SV006":
                raise RunUnknown(run_id) from None
            raise
    raise AssertionError("not reached")


def named_by(conn: psycopg.Connection, schema: str, key: str) -> uuid.UUID:
    """The only run that *key* names. Raises RunUnknown, or an error that lists them."""
    cursor = psycopg.RawCursor(conn, row_factory=dict_row)
    with refusals.told(conn, schema, "client"):
        named = cursor.execute(Sql(schema).get("client_find").encode(), (None, key, None, None, None, 10)).fetchall()
    return history.one_of(key, named)
