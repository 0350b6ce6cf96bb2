"""Load for the fault tests, the moments of the faults, and the judgement afterwards."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from uuid import UUID

from supervisor import Client, DatabaseUnavailable
from tests.faults import apps_load
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.faults.apps_load"
CHUNK = 25
RUNS_IN_MEMORY = 64  # per worker (--in-flight): bounds what one death can make run again
ARGS = ("--in-flight", str(RUNS_IN_MEMORY), "--log-level", "info")

# one transactional step each at seq 1 and seq 4, of every run that was acknowledged and of no other
_WRONG_BOOKINGS = """
with wanted as (select r.run_id, s.seq from unnest(%s::uuid[]) as r (run_id), (values (1), (4)) as s (seq)),
     found as (select run_id, seq, count(*) as n from ledger group by 1, 2)
select run_id, seq, coalesce(found.n, 0) as times, wanted.run_id is not null as asked_for
from wanted full join found using (run_id, seq)
where wanted.run_id is null or found.n is distinct from 1
"""
_LEDGER_AGAINST_HISTORY = """
select (select count(*) from ledger l
        where not exists (select from supervisor.step s where (s.run_id, s.seq, s.name) = (l.run_id, l.seq, 'book'))),
       (select count(*) from supervisor.step s
        where s.name = 'book' and not exists (select from ledger l where (l.run_id, l.seq) = (s.run_id, s.seq)))
"""


def dice() -> random.Random:
    """Random choices that can be repeated: the seed is printed and is taken from TEST_SEED where that is set."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed: TEST_SEED={seed}")
    return random.Random(seed)


def age_s(pid: int) -> float:
    """For how long a process has lived; 0 when it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


class Load:
    """Starts runs without pause in a thread of its own until told to stop; `started` holds what was acknowledged."""

    def __init__(self, database: Database, hosts: HostFactory, effects: Effects) -> None:
        database.sql("create table ledger (run_id uuid not null, seq int not null, amount int not null)")
        database.sql("create table account (id int primary key, balance int8 not null) with (fillfactor = 50)")
        database.sql("insert into account select i, 0 from generate_series(0, %s) as i", apps_load.HOT_ROWS - 1)
        self.database, self.hosts, self.effects = database, hosts, effects
        self.started: dict[UUID, int] = {}
        self.others: list[UUID] = []  # runs that the test itself started
        self.ended_pids: set[int] = set()  # processes of workers that the test's faults ended
        self.asked_again = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._error: BaseException | None = None

    def host(self, build: str, procs: int = 2, app: str = APP) -> Host:
        return self.hosts.start(app, procs=procs, build=build, args=ARGS)

    # ── the feeder ───────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _feed(self) -> None:
        number = 0
        try:
            with Client(self.database.dsn) as client:
                while not self._stop.is_set():
                    # enough to do already: few more, so that a fault may hit a start too, but the end does not move away
                    enough = len(self.started) - self._outcomes_about() > 400
                    numbers = range(number, number + (1 if enough else CHUNK))
                    self._start(client, numbers)
                    number = numbers.stop
                    if enough:
                        time.sleep(0.02)
        except BaseException as error:  # noqa: BLE001 - raised in the test by `finish`
            self._error = error

    def _start(self, client: Client, numbers: range) -> None:
        """Until it is acknowledged: keys make the second try give the first one's runs."""
        while not self._stop.is_set():
            try:
                batch = client.start_many(apps_load.order, numbers, key=lambda number: f"order-{number}")
            except DatabaseUnavailable:
                self.asked_again += 1
                time.sleep(0.05)
                continue
            self.started.update(zip(batch.ids, numbers, strict=True))
            return

    def _outcomes_about(self) -> int:
        """Runs that have come to their last steps, by the effects file: asks no database that may be down."""
        return len(self.notes()) // 3

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────

    def notes(self) -> list[list[str]]:
        return self.effects.lines("begun")

    def after_more(self, bodies: int, within_s: float = 60.0) -> None:
        """Come back when that many more bodies have begun."""
        before = len(self.notes())
        eventually(lambda: len(self.notes()) >= before + bodies or self._error, within_s, f"{bodies} more bodies after {before}")
        self._raise()

    def victim(self, host: Host, chance: random.Random, youngest_s: float) -> int:
        """Any worker of *host* that has lived for so long."""
        return chance.choice(
            eventually(lambda: [pid for pid in host.worker_pids() if age_s(pid) >= youngest_s], 20, f"a worker {youngest_s} s old")
        )

    def note_ended(self, *pids: int) -> None:
        self.ended_pids.update(pids)

    def _raise(self) -> None:
        if self._error is not None:
            raise AssertionError("the feeder failed") from self._error

    # ── judgement ────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, within_s: float) -> None:
        """Stop starting and wait until every acknowledged run has ended."""
        self._stop.set()
        self._thread.join(30)
        self._raise()
        ids = list(self.started)
        missing = (
            "select count(*) from unnest(%s::uuid[]) as r (run_id) left join supervisor.outcome o using (run_id) where o.run_id is null"
        )
        try:
            eventually(lambda: self.database.one(missing, ids) == 0, within_s, f"all {len(ids)} runs ended")
        except AssertionError as error:
            waits = self.database.sql("select run_id, status, code, detail, worker, step, claims from supervisor.waits limit 5")
            error.add_note(str(waits))
            raise
        eventually(lambda: self.database.one("select count(*) from supervisor.task") == 0, 10, "the task table is empty")

    def judge(self, deaths: int) -> dict[str, int]:
        """No run lost, transactional effects exactly once, other bodies repeated only where a death hit them. Returns counts."""
        self._judge_outcomes()
        self._judge_bookings()
        repeated = self._judge_repeats(deaths)
        counts = {
            "runs": len(self.started),
            "deaths": deaths,
            "bodies": len(self.notes()),
            "repeated": repeated,
            "starts_asked_again": self.asked_again,
        }
        print(counts)
        return counts

    def _judge_outcomes(self) -> None:
        outcomes = "select run_id, status, convert_from(result, 'utf8') from supervisor.outcome where run_id <> all (%s::uuid[])"
        rows = self.database.sql(outcomes, self.others)
        assert {run_id for run_id, _, _ in rows} == set(self.started), "outcomes of other runs than were acknowledged"
        assert len(rows) == len(self.started)
        wrong = [row for row in rows if row[1] != 1 or int(row[2]) != 3 * self.started[row[0]] + 6]
        assert not wrong, f"{len(wrong)} runs ended wrongly: {wrong[0][1:]}; {self._story(wrong[0][0])}"

    def _story(self, run_id: UUID) -> str:
        """All that is recorded of one run."""
        steps = self.database.sql("select seq, pos, name, status, worker from supervisor.step where run_id = %s order by pos", run_id)
        tries = self.database.sql(
            "select seq, n, kind, worker, ended_at, next_retry_at from supervisor.attempt where run_id = %s order by seq, n", run_id
        )
        number = str(self.started[run_id])
        return f"steps {steps}; tries {tries}; bodies {[note for note in self.notes() if str(run_id) in note or note[1] == number]}"

    def _judge_bookings(self) -> None:
        wrong = self.database.sql(_WRONG_BOOKINGS, list(self.started))
        assert not wrong, f"{len(wrong)} bookings are not there exactly once: {wrong[:5]}"
        assert self.database.sql(_LEDGER_AGAINST_HISTORY) == [(0, 0)], "(booked without a checkpoint, checkpoint without a booking)"
        balances = defaultdict(int)
        for number in self.started.values():
            balances[number % apps_load.HOT_ROWS] += 2 * number
        assert dict(self.database.sql("select id, balance from account where balance <> 0")) == {
            id: sum for id, sum in balances.items() if sum
        }

    def _judge_repeats(self, deaths: int) -> int:
        """Every body that began twice (same run, seq and attempt) began before in a process that the test ended, and was told so."""
        begun: dict[tuple[int, int, int], list[tuple[int, int]]] = defaultdict(list)
        run_of = {number: run_id for run_id, number in self.started.items()}
        for _, number, seq, attempt, pid, redelivered, run_id, engines_seq in self.notes():
            assert (UUID(run_id), engines_seq) == (run_of[int(number)], seq), (
                f"order {number} seq {seq}: current() names run {run_id} seq {engines_seq}"
            )
            begun[int(number), int(seq), int(attempt)].append((int(pid), int(redelivered)))
        assert {(number, seq) for number, seq, _ in begun} == {(number, seq) for number in run_of for seq in (0, 2, 3)}
        repeated = {which: times for which, times in begun.items() if len(times) > 1}
        for which, times in repeated.items():
            earlier = [pid for pid, _ in times[:-1]]
            assert set(earlier) <= self.ended_pids, (
                f"{which} ran again though process {set(earlier) - self.ended_pids} was not ended: {times}"
            )
            assert len(set(pid for pid, _ in times)) == len(times), f"{which} ran twice in one process: {times}"
            assert all(redelivered for _, redelivered in times[1:]), (
                f"{which} ran again and was not told that it may have run before: {times}"
            )
        again = sum(len(times) - 1 for times in repeated.values())
        # a step begins after the one before it is durable, so a run in memory has one body at most that can run again
        assert again <= 2 * RUNS_IN_MEMORY * deaths, (
            f"{again} bodies ran again after {deaths} deaths of workers with {RUNS_IN_MEMORY} runs in memory each"
        )
        return again
