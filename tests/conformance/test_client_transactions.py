"""Ten thousand random transactions, processes and sessions killed among them: orders and runs are there together or not at all."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time

from tests.conformance.client_host import register
from tests.harness import ROOT, Database, eventually

TRANSACTIONS = 10_000
PROGRAMS = 4
WITHIN_S = 300.0  # takes about 30 on two cores


class Programs:
    """Processes that do transactions, and how many they have done."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._seed = 0
        self.running: list[subprocess.Popen[bytes]] = []
        self.done = self.cut = self.killed = self.ended = 0

    def keep(self) -> None:
        """Start those that are missing."""
        while len(self.running) < PROGRAMS:
            self._seed += 1
            words = [sys.executable, "-m", "tests.conformance.transactions", self._dsn, str(self._seed)]
            self.running.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    def read(self, timeout_s: float) -> None:
        for stream in select.select([each.stdout for each in self.running], [], [], timeout_s)[0]:
            self._count(os.read(stream.fileno(), 65_536))
        for each in self.running:
            assert each.poll() is None, each.stderr.read().decode()  # type: ignore[union-attr]

    def _count(self, seen: bytes) -> None:
        self.done += seen.count(b".")
        self.cut += seen.count(b"x")

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        one.kill()
        self._count(one.communicate()[0])
        self.running.remove(one)
        self.killed += 1


def test_orders_and_runs_are_there_together_or_not_at_all(database: Database) -> None:
    """The promise for which runs are started in the application's own transaction: no order without its run, no run without its order."""
    register(database, "ordered")
    database.sql("create table orders (id int8 generated always as identity, run_id uuid primary key, cancelled int not null default 0)")
    draw = random.Random(7)
    programs = Programs(database.dsn)
    give_up_at = time.monotonic() + WITHIN_S
    try:
        while programs.done < TRANSACTIONS:
            assert time.monotonic() < give_up_at, f"{programs.done} transactions in {WITHIN_S:g} s"
            programs.keep()
            programs.read(0.05)
            kind = draw.random()
            if programs.done > 100 * programs.killed and kind < 0.5:
                programs.kill(draw.choice(programs.running))
            elif programs.done > 50 * programs.ended and kind < 0.55:  # as often on a slow machine as on a quick one
                programs.ended += 1
                database.sql(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid() order by random() limit 1"
                )
        assert programs.killed >= 20 and programs.cut >= 5, (programs.killed, programs.cut)
    finally:
        for one in list(programs.running):
            one.send_signal(signal.SIGKILL)
            one.communicate()
    eventually(lambda: database.one("select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()") == 0, 20)
    # then neither is without the other, in both directions
    both = "from orders o full join supervisor.run r on r.run_id = o.run_id"
    assert database.one(f"select count(*) {both} where o.run_id is null or r.run_id is null") == 0
    # every run is either to be done or ended, and it was ended exactly where its order says so, once
    assert database.one("select count(*) from supervisor.run r left join supervisor.task t using (run_id) left join supervisor.outcome e using (run_id) "
                        "where (t.run_id is null) = (e.run_id is null)") == 0  # fmt: skip
    assert database.one("select count(*) from orders o left join supervisor.outcome e using (run_id) where o.cancelled <> (e.run_id is not null)::int") == 0
    # a key names one run, which carries it
    assert database.one("select count(*) from supervisor.run_key k full join (select * from supervisor.run where key is not null) r using (run_id) "
                        "where k.key is distinct from r.key") == 0  # fmt: skip
    committed, ended = database.sql("select count(*), sum(cancelled) from orders")[0]
    assert committed > TRANSACTIONS / 3 and ended > 100
