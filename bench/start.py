"""How many runs per second does one client start?

python -m supervisor bench start --runs 200000 [--keys] [--pooled]
python -m supervisor bench start --within [--runs 10000] [--keys] [--pooled]
python -m supervisor bench start --threads 16 [--runs 20000] [--keys] [--pooled]

`Client.start_many` over an iterable, no worker alive. The clock runs from before the call to after its return,
when every run is durable, by the database's clock.

--keys    each run has a key of its own
--pooled  through a pgbouncer in transaction mode
--within  each run is started by itself in a transaction of the application, beside a row of its own: commits per second
--threads so many threads of one client start them one by one, each when its last one is durable
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from supervisor.api.client import Client
from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say
from supervisor.bench.pooler import pooled

WARM_RUNS_MAX = 20_000
SHOWN = ("runs_per_s", "client_cpu_us_per_run", "wal_bytes_per_run")


@dataclass(frozen=True)
class Asked:
    runs: int
    keys: bool = False
    within: bool = False
    pooled: bool = False
    threads: int = 0


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each in a place of its own; a first, smaller one warms up."""
    say("warming up")
    _once(places, asked, min(asked.runs, WARM_RUNS_MAX))
    figures = []
    for n in range(repeats):
        figures.append(_once(places, asked, asked.runs))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(places: Places, asked: Asked, runs: int) -> dict[str, float]:
    with places.fresh() as place, place.connect() as conn, _way(place, asked) as dsn, Client(dsn, schema=place.schema) as client:
        client.parameters(app.job.name)  # opens the session
        if asked.within:
            conn.execute("CREATE TABLE booked (run_id uuid PRIMARY KEY)")
        harness.settle(conn, place, ("task", "run"))
        moment = "SELECT extract(epoch FROM clock_timestamp())::float8, pg_current_wal_insert_lsn()"
        before, wal = conn.execute(moment).fetchone()  # type: ignore[misc]
        cpu = time.process_time()
        if asked.within:
            _start_within(client, dsn, runs, _key if asked.keys else None)
        elif asked.threads:
            _start_apart(client, asked.threads, runs, _key if asked.keys else None)
        else:
            client.start_many(app.job, range(runs), key=_key if asked.keys else None)
        cpu = time.process_time() - cpu
        after, last_wal = conn.execute(moment).fetchone()  # type: ignore[misc]
        _check(conn, place, runs, asked)
        wal_bytes = int(conn.execute("SELECT pg_wal_lsn_diff(%s, %s)", (last_wal, wal)).fetchone()[0])  # type: ignore[index]
    return {
        "runs_per_s": runs / (after - before),
        "client_cpu_us_per_run": cpu / runs * 1e6,
        "wal_bytes_per_run": wal_bytes / runs,
        "seconds": after - before,
        "wal_bytes": wal_bytes,
    }


@contextmanager
def _way(place: Place, asked: Asked) -> Iterator[str]:
    if asked.pooled:
        with pooled(place.dsn) as dsn:
            yield dsn
    else:
        yield place.dsn


def _key(number: int) -> str:
    return f"job-{number}"


def _start_within(client: Client, dsn: str, runs: int, key: Callable[[int], str] | None) -> None:
    """What an application does for each order: its row and its run, and a commit."""
    with psycopg.connect(dsn, prepare_threshold=None) as conn:
        for number in range(runs):
            what = app.job if key is None else app.job.options(key=key(number))
            run = client.within(conn).start(what, number)
            conn.execute("INSERT INTO booked VALUES (%s)", (run.id,))
            conn.commit()


def _start_apart(client: Client, threads: int, runs: int, key: Callable[[int], str] | None) -> None:
    def some(first: int) -> None:
        for number in range(first, runs, threads):
            client.start(app.job if key is None else app.job.options(key=key(number)), number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def _check(conn: psycopg.Connection, place: Place, runs: int, asked: Asked) -> None:
    """Every run is there once, with its own number, and waits; with its key, and its row."""
    statement = sql.SQL(
        "SELECT count(*), count(t.run_id), sum((convert_from(r.input, 'UTF8')::json ->> 'number')::int8), count(DISTINCT r.key) "
        "FROM {} r LEFT JOIN {} t USING (run_id)"
    )
    found = conn.execute(statement.format(place.table("run"), place.table("task"))).fetchone()
    wanted = (runs, runs, runs * (runs - 1) // 2, runs if asked.keys else 0)
    if found is None or tuple(found) != wanted:
        raise BenchInvalid(f"runs, tasks, the sum of inputs and keys are {found}, not {wanted}; the measurement does not count")
    if asked.within:
        booked = harness.one(conn, sql.SQL("SELECT count(*) FROM booked JOIN {} USING (run_id)").format(place.table("run")))
        if booked != runs:
            raise BenchInvalid(f"{booked} rows have their run, not {runs}; the measurement does not count")
