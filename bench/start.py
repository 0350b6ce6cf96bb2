"""How many runs per second does one client start in bulk?

python -m supervisor bench start --runs 200000

`Client.start_many` over an iterable, no key, no worker alive. The clock runs from before the call to after its return,
when every run is durable, by the database's clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg
from psycopg import sql

from supervisor.api.client import Client
from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

WARM_RUNS_MAX = 20_000
SHOWN = ("runs_per_s", "client_cpu_us_per_run", "wal_bytes_per_run")


@dataclass(frozen=True)
class Asked:
    runs: int


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each in a place of its own; a first, smaller one warms up."""
    say("warming up")
    _once(places, min(asked.runs, WARM_RUNS_MAX))
    figures = []
    for n in range(repeats):
        figures.append(_once(places, asked.runs))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(places: Places, runs: int) -> dict[str, float]:
    with places.fresh() as place, place.connect() as conn, Client(place.dsn, schema=place.schema) as client:
        client.parameters(app.job.name)  # opens the session
        harness.settle(conn, place, ("task", "run"))
        moment = "SELECT extract(epoch FROM clock_timestamp())::float8, pg_current_wal_insert_lsn()"
        before, wal = conn.execute(moment).fetchone()  # type: ignore[misc]
        cpu = time.process_time()
        client.start_many(app.job, range(runs))
        cpu = time.process_time() - cpu
        after, last_wal = conn.execute(moment).fetchone()  # type: ignore[misc]
        _check(conn, place, runs)
        wal_bytes = int(conn.execute("SELECT pg_wal_lsn_diff(%s, %s)", (last_wal, wal)).fetchone()[0])  # type: ignore[index]
    return {
        "runs_per_s": runs / (after - before),
        "client_cpu_us_per_run": cpu / runs * 1e6,
        "wal_bytes_per_run": wal_bytes / runs,
        "seconds": after - before,
        "wal_bytes": wal_bytes,
    }


def _check(conn: psycopg.Connection, place: Place, runs: int) -> None:
    """Every run is there once, with its own number, and waits."""
    statement = sql.SQL(
        "SELECT count(*), count(t.run_id), sum((convert_from(r.input, 'UTF8')::json ->> 'number')::int8) "
        "FROM {} r LEFT JOIN {} t USING (run_id)"
    )
    found = conn.execute(statement.format(place.table("run"), place.table("task"))).fetchone()
    wanted = (runs, runs, runs * (runs - 1) // 2)
    if found is None or tuple(found) != wanted:
        raise BenchInvalid(f"runs, tasks and the sum of inputs are {found}, not {wanted}; the measurement does not count")
