"""A process that awaits thousands of runs at once, a thread for each; says on standard output what it saw.

python -m tests.conformance.awaiting DSN RUNS SECONDS: starts them, prints `waiting` when all are awaited, then one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from supervisor import Client
from tests.apps import awaited
from tests.harness import eventually

TIMEOUT_S = 120.0


def main(dsn: str, runs: int, seconds: float) -> None:
    threading.stack_size(256 * 1024)
    asked: list[float] = []
    ended: list[float] = []
    wrong: list[str] = []
    with Client(dsn) as client:
        ask = client._waiter._ask

        def counted(ids: Sequence[bytes], patience_s: float) -> Any:
            asked.append(time.monotonic())
            return ask(ids, patience_s)

        client._waiter._ask = counted

        batch = client.start_many(awaited.awaited_sleep, ({"n": n, "seconds": seconds} for n in range(runs)))

        def wait(n: int) -> None:
            try:
                if batch[n].result(timeout=TIMEOUT_S) != n:
                    wrong.append(f"{n}: another result")
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{n}: {error}")
            ended.append(time.monotonic())

        threads = [threading.Thread(target=wait, args=(n,)) for n in range(runs)]
        for thread in threads:  # one after the other: thousands that wake together would all want the interpreter's lock, and each asks for it every 5 ms
            thread.start()
        eventually(lambda: len(client._waiter._places) == runs, 60, "all wait")
        waiting_at = time.monotonic()
        print("waiting", flush=True)
        for thread in threads:
            thread.join()
        waiter = client._waiter
        left = len(waiter._places) + len(waiter._ear.awaited if waiter._ear is not None else ())
    say(waiting_at, asked, ended, wrong, left)


def say(waiting_at: float, asked: Sequence[float], ended: Sequence[float], wrong: Sequence[str], left: int) -> None:
    """The line of JSON, of moments by time.monotonic(); *left*: what is still waited for when all have ended."""
    first_s, last_s = min(ended) - waiting_at, max(ended) - waiting_at
    print(json.dumps({
        "wrong": wrong[:5], "left": left, "threads": threading.active_count(), "first_s": first_s, "last_s": last_s,
        "questions_waiting": sum(1 for at in asked if waiting_at < at < min(ended)),
        "questions_ending": sum(1 for at in asked if min(ended) <= at),
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
