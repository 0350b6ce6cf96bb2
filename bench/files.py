"""How many records of a file per second become durable runs?

python -m supervisor bench start --input /tmp/orders.jsonl --runs 200000

The parts of `start --input`, in this process, and no worker alive. The clock runs from the first byte read to the last chunk
acknowledged, by the database's clock. A file that is not there is made: orders of about 150 bytes.
Nothing counts unless the inputs in the database, by run id, are the records of the file in their order.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from supervisor.api.asked import Named
from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say
from supervisor.db.client_calls import ClientCalls
from supervisor.db.connect import resolve_dsn
from supervisor.files.record import Rules
from supervisor.files.rejects import Rejects
from supervisor.files.source import Source, format_of
from supervisor.files.starting import Starter

SHOWN = ("records_per_s", "client_cpu_us_per_record", "wal_bytes_per_record")
FETCHED = 5_000


@dataclass(frozen=True)
class Asked:
    path: str
    runs: int
    key_field: str | None
    typed: bool


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each in a place of its own; a first one warms up."""
    if not os.path.exists(asked.path):
        say(f"making {asked.path}")
        _make(asked.path, asked.runs)
    say("warming up")
    _once(places, asked)
    figures = []
    for n in range(repeats):
        figures.append(_once(places, asked))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _make(path: str, runs: int) -> None:
    chance = random.Random(1)
    with open(path, "w") as file:
        for at in range(runs):
            line = {"sku": f"sku-{chance.randrange(10_000):05}", "quantity": chance.randrange(1, 9), "price": chance.randrange(100, 9999) / 100}
            order = {"id": at, "customer": f"customer-{chance.randrange(1_000_000):07}", "lines": [{**line, "gift": False, "note": None}], "note": "b"}
            file.write(json.dumps(order) + "\n")


def _once(places: Places, asked: Asked) -> dict[str, float]:
    how = Named(workflow=app.taking.name)
    rules = Rules(app.taking.name, app.taking.input.describe(), app.taking if asked.typed else None, asked.key_field)
    with places.fresh() as place, place.connect() as conn:
        calls = ClientCalls(resolve_dsn(place.dsn), place.schema, "bench")
        rejects, source = Rejects(), Source(asked.path)
        try:
            calls.parameters(app.taking.name)  # opens the session
            starter = Starter(calls, how, rules, rejects, keyed=asked.key_field is not None)
            harness.settle(conn, place, ("task", "run"))
            moment = "SELECT extract(epoch FROM clock_timestamp())::float8, pg_current_wal_insert_lsn()"
            before, wal = conn.execute(moment).fetchone()  # type: ignore[misc]
            cpu = time.process_time()
            starter.start(source, format_of(asked.path) or "jsonl", lambda: None)
            cpu = time.process_time() - cpu
            after, last_wal = conn.execute(moment).fetchone()  # type: ignore[misc]
            size = source.total or source.position
        finally:
            source.close()
            calls.close()
        records = starter.tally.records
        if rejects.count or starter.tally.created != records:
            raise BenchInvalid(f"{rejects.count:,} records were refused, the first one: {rejects.first[:1]}; the measurement does not count")
        _check(conn, place, asked.path, records)
        wal_bytes = int(conn.execute("SELECT pg_wal_lsn_diff(%s, %s)", (last_wal, wal)).fetchone()[0])  # type: ignore[index]
    return {
        "records_per_s": records / (after - before),
        "mb_per_s": size / (after - before) / 1e6,
        "client_cpu_us_per_record": cpu / records * 1e6,
        "wal_bytes_per_record": wal_bytes / records,
        "records": records,
        "seconds": after - before,
    }


def _check(conn: psycopg.Connection, place: Place, path: str, records: int) -> None:
    """Every record is there once, in its order, and waits."""
    counts = conn.execute(sql.SQL("SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {})").format(place.table("run"), place.table("task"))).fetchone()
    if counts != (records, records):
        raise BenchInvalid(f"runs and tasks are {counts}, not {records:,} each; the measurement does not count")
    if (format_of(path) or "jsonl") != "jsonl":
        return
    source = Source(path)
    try:
        for (line, text), stored in zip(source.jsonl(), _inputs(conn, place), strict=True):
            if not isinstance(text, bytes) or json.loads(text) != stored["order"]:
                raise BenchInvalid(f"line {line} is {text!r} and the run in its place has {stored!r}; the measurement does not count")
    finally:
        source.close()


def _inputs(conn: psycopg.Connection, place: Place) -> Iterator[Any]:
    with conn.transaction(), conn.cursor("inputs") as cursor:
        cursor.itersize = FETCHED
        for (stored,) in cursor.execute(sql.SQL("SELECT input FROM {} ORDER BY run_id").format(place.table("run"))):
            yield json.loads(stored)
