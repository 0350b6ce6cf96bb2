"""How many rows of `step` does this server take per second at best?

Binary COPY of the very rows that a measured run wrote, in the order in which they lie, into a logged clone of `step`
with the same indexes: one plain table, which costs less than the partitioned one that the engine writes to. One
transaction per chunk of the engine's mean batch, as many sessions, each in a process of its own, as there were workers.
Rows are read into memory before the clock; the clock runs from the first session's first byte to the last one's
last commit.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from psycopg import pq, sql

from supervisor.bench.harness import BenchInvalid, Place, checkpoint

CLONE = "step_clone"
TOGETHER_S = 300.0
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER = _SIGNATURE + bytes(8)  # no flags, no extension
_TRAILER = b"\xff\xff"


def copy_rows_per_s(place: Place, chunk_rows: int, sessions: int) -> float:
    """Copy the rows of `step` into a clone that is dropped afterwards; returns rows per second."""
    with place.connect() as conn:
        clone = place.table(CLONE)
        conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(clone, place.table("step")))
        checkpoint(conn, place)
        seconds = _copy_together(place, chunk_rows, sessions)
        copied, asked = (
            conn.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()[0]  # type: ignore[index]
            for table in (clone, place.table("step"))
        )
        conn.execute(sql.SQL("DROP TABLE {}").format(clone))
    if copied != asked:
        raise BenchInvalid(f"the ceiling's clone holds {copied} rows of {asked}; it does not count")
    return float(copied / seconds)


def _copy_together(place: Place, chunk_rows: int, sessions: int) -> float:
    """Seconds from the first session's start to the last one's end."""
    forking = multiprocessing.get_context("fork")
    together = forking.Barrier(sessions)
    pipes = [forking.Pipe(duplex=False) for _ in range(sessions)]
    children = [
        forking.Process(target=_session, args=(place, chunk_rows, at, sessions, together, pipes[at][1]), daemon=True)
        for at in range(sessions)
    ]
    for child in children:
        child.start()
    for _, writing in pipes:
        writing.close()
    try:
        moments = [reading.recv() for reading, _ in pipes]
    except EOFError:
        raise BenchInvalid("a session of the ceiling ended early; see its words above") from None
    finally:
        for child in children:
            child.join()
    return float(max(ended for _, ended in moments) - min(started for started, _ in moments))


def _session(place: Place, chunk_rows: int, at: int, sessions: int, together: Barrier, answer: Connection) -> None:
    """One session: take every `sessions`-th chunk, wait for the others, copy, report when it began and ended."""
    with place.connect() as conn:
        conn.execute("SET synchronous_commit = on")
        conn.execute("SET synchronize_seqscans = off")
        chunks = _chunks(conn, place, chunk_rows, at, sessions)
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(place.table(CLONE)).as_string(conn).encode()
        together.wait(TOGETHER_S)
        started = time.monotonic()
        for chunk in chunks:
            _copy(conn.pgconn, statement, chunk)
        answer.send((started, time.monotonic()))


def _chunks(conn: Any, place: Place, chunk_rows: int, at: int, sessions: int) -> list[bytes]:
    """This session's share of the rows, as complete COPY streams of *chunk_rows* rows each."""
    chunks: list[bytes] = []
    rows: list[bytes] = []
    number = 0
    statement = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(place.table("step"))
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for message in copy:
            row = bytes(message).removeprefix(_HEADER)
            if row != _TRAILER and number // chunk_rows % sessions == at:
                rows.append(row)
            number += 1
            if rows and (row == _TRAILER or number % chunk_rows == 0):
                chunks.append(b"".join((_HEADER, *rows, _TRAILER)))
                rows.clear()
    return chunks


def _copy(pgconn: pq.abc.PGconn, statement: bytes, chunk: bytes) -> None:
    """One COPY, one transaction, straight through libpq."""
    if pgconn.exec_(statement).status != pq.ExecStatus.COPY_IN:
        raise BenchInvalid(f"COPY was refused: {pgconn.error_message.decode()}")
    pgconn.put_copy_data(chunk)
    pgconn.put_copy_end()
    while (result := pgconn.get_result()) is not None:
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise BenchInvalid(f"COPY failed: {result.error_message.decode()}")
