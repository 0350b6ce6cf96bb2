"""How many transactional steps per second, each with one UPDATE of its own?

python -m supervisor bench tx --runs 20000 --procs 2 [--hot 100]

The step's UPDATE and its checkpoint commit together. Steps share transactions, so with few rows they wait for one
another's; with --hot only that many of the 100,000 rows are used, and the same workload with every step in a transaction
of its own is measured too, alternating: sharing must not be slower.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Load, Places, Say
from supervisor.engine import transactional

ACCOUNTS = 100_000
WARM_RUNS_MAX = 2_000
SHOWN = ("tx_per_s", "one_by_one_tx_per_s", "ratio_to_one_by_one", "worker_cpu_us_per_tx", "wal_bytes_per_tx", "commits_per_tx")


@dataclass(frozen=True)
class Asked:
    runs: int
    procs: int
    hot: int | None = None


def load(asked: Asked, runs: int) -> Load:
    """Runs that each add one to an account drawn at random, always the same ones."""
    draw = random.Random(20_000)
    accounts = [draw.randrange(asked.hot or ACCOUNTS) for _ in range(runs)]
    return Load(app.booking, runs, 1, lambda: accounts, sum(accounts), prepare=_make_accounts, check=lambda conn: _check(conn, runs))


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat; a first, smaller one warms up."""
    say("warming up")
    _once(places, asked, min(asked.runs, WARM_RUNS_MAX))
    figures = []
    for n in range(repeats):
        alone = _once(places, asked, asked.runs, _one_by_one) if asked.hot else None
        measured = _once(places, asked, asked.runs)
        found = {
            "tx_per_s": measured.runs / measured.seconds,
            "worker_cpu_us_per_tx": measured.worker_cpu_s / measured.runs * 1e6,
            "wal_bytes_per_tx": measured.wal_bytes / measured.runs,
            "commits_per_tx": measured.commits / measured.runs,
        }
        if alone is not None:
            found["one_by_one_tx_per_s"] = alone.runs / alone.seconds
            found["ratio_to_one_by_one"] = found["tx_per_s"] / found["one_by_one_tx_per_s"]
        figures.append(found | harness.raw(measured))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(places: Places, asked: Asked, runs: int, patch: Any = None) -> harness.Measured:
    with places.fresh() as place:
        return harness.run(place, load(asked, runs), asked.procs, patch)


def _one_by_one() -> None:
    """In a worker: no two steps share a transaction."""
    transactional.SHARED_MAX = 1


def _make_accounts(conn: Connection[Any]) -> None:
    conn.execute("CREATE TABLE account (id int4 PRIMARY KEY, balance int8 NOT NULL)")
    conn.execute("INSERT INTO account SELECT n, 0 FROM generate_series(0, %s - 1) AS n", (ACCOUNTS,))
    conn.execute("VACUUM (ANALYZE) account")


def _check(conn: Connection[Any], runs: int) -> None:
    """Exactly once: the sum of the balances is the number of runs."""
    booked = conn.execute("SELECT sum(balance)::int8 FROM account").fetchone()
    if booked is None or booked[0] != runs:
        raise BenchInvalid(f"{booked} was booked by {runs} runs; the measurement does not count")
