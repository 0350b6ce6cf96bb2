"""A program that does random transactions of an application until it is killed: business rows, and runs that belong to them.

python -m tests.conformance.transactions DSN SEED

Each transaction writes one byte to stdout when it is over. It starts runs for orders, cancels others, uses savepoints,
rolls back, and reads, under any isolation level; 40001 and 40P01 make it try that transaction again, as applications do.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from typing import Any

import psycopg
from psycopg import IsolationLevel, errors

from supervisor import Client, SupervisorError
from supervisor.api.asked import Named

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
KEYS = 200  # so that transactions meet at them


class Undone(Exception):
    """Takes a savepoint back."""


def main() -> None:
    dsn, draw = sys.argv[1], random.Random(int(sys.argv[2]))
    client = Client(dsn)
    mine: list[uuid.UUID] = []
    while True:
        try:
            with psycopg.connect(dsn) as conn:
                while True:
                    conn.isolation_level = draw.choice(LEVELS)
                    mine += transact(conn, client.within(conn), draw, mine)
                    os.write(1, b".")
        except psycopg.OperationalError:  # terminated: so was its transaction
            os.write(1, b"x")


def transact(conn: psycopg.Connection[Any], within: Any, draw: random.Random, mine: list[uuid.UUID]) -> list[uuid.UUID]:
    """One transaction; the orders that it left."""
    made: list[uuid.UUID] = []
    try:
        for _ in range(draw.randint(1, 3)):
            try:
                with conn.transaction() if draw.random() < 0.4 else _nothing():
                    one = act(conn, within, draw, mine)
                    if draw.random() < 0.15:
                        raise Undone
                    made += one
            except Undone:
                made = [] if conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE else made
        if draw.random() < 0.3:
            conn.rollback()
            return []
        conn.commit()
        return made
    except (errors.SerializationFailure, errors.DeadlockDetected, SupervisorError):
        conn.rollback()
        return []


class _nothing:
    """Where there is no savepoint, what is undone is the whole transaction's."""

    def __enter__(self) -> None: ...
    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is Undone:
            raise SupervisorError("the transaction is rolled back as a whole")


def act(conn: psycopg.Connection[Any], within: Any, draw: random.Random, mine: list[uuid.UUID]) -> list[uuid.UUID]:
    what = draw.random()
    if what < 0.2 and mine:
        run = draw.choice(mine)
        if within.cancel(run, "by a transaction"):
            conn.execute("update orders set cancelled = cancelled + 1 where run_id = %s", (run,))
        return []
    if what < 0.3 and mine:
        within.status(draw.choice(mine))
        return []
    if what < 0.4:
        batch = within.start_many(Named(workflow="ordered"), range(draw.randint(1, 8)))
        conn.cursor().executemany("insert into orders (run_id) values (%s)", [(each,) for each in batch.ids])
        return list(batch.ids)
    if what < 0.7:
        run = within.start(Named(workflow="ordered", key=f"k{draw.randrange(KEYS)}"), 1)
        if run.created:
            conn.execute("insert into orders (run_id) values (%s)", (run.id,))
        return [run.id]
    run = within.start("ordered", draw.randrange(10**6))
    conn.execute("insert into orders (run_id) values (%s)", (run.id,))
    return [run.id]


if __name__ == "__main__":
    main()
