"""Partitions: make sure that the history's tables have room for the days ahead.

Owns nothing but the question of how far ahead; `make_partitions` in the database does the work, by CREATE and
ATTACH, and may be asked by anybody at any time. Never called by a worker: DDL waits, and a worker must not.
"""

from __future__ import annotations

import psycopg

from supervisor.db.statements import Sql

DAYS_AHEAD = 7  # a week-end and a holiday without any supervisor running


def ensure(conn: psycopg.Connection, sql: Sql, days_ahead: int = DAYS_AHEAD) -> int:
    """Make every partition that is missing up to *days_ahead* days, or one partition's width if that is more.

    Returns how many tables were made; 0 is the usual answer. Raises psycopg's LockNotAvailable where the session's
    lock_timeout passes first; asking again is harmless.
    """
    row = conn.execute(sql.get("make_partitions").encode(), (days_ahead,)).fetchone()
    assert row is not None
    return int(row[0])
