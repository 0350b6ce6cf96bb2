"""How long from the moment at which a signal is to be sent to its run being given it, and how many a second can one run be given?

python -m supervisor bench signal --rate 100 [--seconds 10] [--messages 10000] [--procs 2]

Four questions, by a sender in another process: to a run that waits in memory; to runs that wait out of it, one signal each; the same by SQL
that announces nothing, twice a second, so that hosts look every 20 ms; and as many as possible to one run, from the threads of one client, each one after the other. A time ends when the run's next
step begins, which is after the signal's consumption is durable. Sender, workers and server are on one machine with one clock.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from uuid import UUID

from supervisor.api.client import Client
from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

SENDERS = 16  # threads that send to one run
SILENT_RATE, SILENT_MAX = 2.0, 20
TIMEOUT_S = 120.0
SHOWN = ("memory_p50_ms", "memory_p99_ms", "parked_p50_ms", "parked_p99_ms", "silent_p50_ms", "silent_max_ms", "to_one_per_s")


@dataclass(frozen=True)
class Asked:
    rate: float
    seconds: float
    messages: int
    procs: int

    @property
    def signals(self) -> int:
        return max(1, round(self.rate * self.seconds))


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each on a database and workers of its own."""
    figures = []
    for n in range(repeats):
        with places.fresh() as place:
            figures.append(_once(place, asked))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(place: Place, asked: Asked) -> dict[str, float]:
    with harness.workers_of(place, asked.procs) as workers:
        workers.wait_ready()
        figures: dict[str, float] = workers.asked_by("supervisor.bench.signals", {"dsn": place.dsn, "schema": place.schema, **asdict(asked)})
        return figures


# ── the sender ───────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    told = json.load(sys.stdin)
    place = Place(told.pop("dsn"), told.pop("schema"))
    asked = Asked(**told)
    with Client(place.dsn, schema=place.schema) as client:
        figures = {
            **_figures("memory", _in_memory(client, place, asked)),
            **_figures("parked", parked(client, place, min(asked.signals, 500), asked.rate, announced=True)),
            **_figures("silent", parked(client, place, min(asked.signals, SILENT_MAX), SILENT_RATE, announced=False)),
            "to_one_per_s": _to_one(client, asked.messages),
        }
    json.dump(figures, sys.stdout)


def _figures(name: str, took_ms: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50_ms": harness.percentile(took_ms, 50),
        f"{name}_p99_ms": harness.percentile(took_ms, 99),
        f"{name}_max_ms": max(took_ms),
        f"{name}_signals": len(took_ms),
    }


def _in_memory(client: Client, place: Place, asked: Asked) -> list[float]:
    run = client.start(app.hearing, asked.signals)
    began = time.time() + 0.5
    for n in range(asked.signals):
        wait_until(began + n / asked.rate)
        run.signal(app.sent_at, began + n / asked.rate)
    return _took_ms(client, place, [run.id], asked.signals)


def parked(client: Client, place: Place, runs: int, rate: float, *, announced: bool) -> list[float]:
    """Milliseconds from each signal's moment to its use, by runs that wait out of memory."""
    batch = client.start_many(app.hearing, [1] * runs)
    with place.connect() as conn:
        waiting = f'select count(*) from "{place.schema}".task where run_id = any(%s) and owner is null and wait_kind = 11'
        give_up_at = time.monotonic() + TIMEOUT_S
        while harness.one(conn, waiting, batch.ids) < runs:
            if time.monotonic() > give_up_at:
                raise BenchInvalid("the runs do not wait")
            time.sleep(0.05)
        began = time.time() + 0.1
        for n, run in enumerate(batch):
            wait_until(began + n / rate)
            if announced:
                run.signal(app.sent_at, began + n / rate)
            else:
                conn.execute(f'select "{place.schema}".signal(%s, %s, to_jsonb(%s::float8))', (run.id, app.sent_at.name, began + n / rate))
    return _took_ms(client, place, batch.ids, runs)


def _took_ms(client: Client, place: Place, runs: list[UUID], signals: int) -> list[float]:
    """Milliseconds from each intended moment to the begin of the step that was given it."""
    for run_id in runs:
        client.get(run_id).result(timeout=TIMEOUT_S)
    with place.connect() as conn:
        rows = conn.execute(
            f'select 1000 * (extract(epoch from started_at)::float8 - result::text::float8) from "{place.schema}".steps '
            "where run_id = any(%s) and kind = 'step'", (runs,)
        ).fetchall()  # fmt: skip
        ends = harness.one(conn, f'select count(distinct n) from "{place.schema}".consumed where run_id = any(%s)', runs)
    if not len(rows) == ends == signals:
        raise BenchInvalid(f"{signals} signals were sent, {ends} consumed and {len(rows)} used; the measurement does not count")
    return [row[0] for row in rows]


def _to_one(client: Client, messages: int) -> float:
    """Signals per second, from the first that is sent to the result of the run that was given all of them."""
    run = client.start(app.adding, messages)

    def send(first: int) -> None:
        for n in range(first, messages, SENDERS):
            run.signal(app.numbers, n)

    began = time.monotonic()
    with ThreadPoolExecutor(SENDERS) as senders:
        list(senders.map(send, range(SENDERS)))
    if run.result(timeout=TIMEOUT_S) != sum(range(messages)):
        raise BenchInvalid("a signal was lost, or given twice; the measurement does not count")
    return messages / (time.monotonic() - began)


def wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


if __name__ == "__main__":
    main()
