"""Metrics, from outside: what is counted is what happened, nothing that was counted goes back, and no end of anything takes the rest with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor import Client
from supervisor.metrics.catalogue import METRICS, PREFIX
from supervisor.metrics.serve import CONNECTIONS_MAX
from tests.acceptance.scraping import Meter, Scraped, metered
from tests.acceptance.test_dashboard_beside import gone
from tests.apps import metered as app
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


@dataclass
class Shared:
    """One host for all tests that leave it as it was."""

    meter: Meter
    client: Client
    database: Database
    effects: Effects


@pytest.fixture(scope="module")
def shared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder, database = tmp_path_factory.mktemp("metered"), server.database()
    effects = Effects(folder / "effects")
    factory = HostFactory(database, effects, folder)
    try:
        with metered(factory) as meter, Client(database.dsn) as client:
            yield Shared(meter, client, database, effects)
    finally:
        factory.stop_all()
        database.drop()


def fallen(before: Scraped, now: Scraped) -> dict[object, tuple[float, float | None]]:
    """Counters that went back, or are gone."""
    later = now.samples
    return {key: (value, later.get(key)) for key, value in before.counters().items() if later.get(key, -1.0) < value}


# ── what is counted ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_counted_is_what_happened(hosts: HostFactory, client: Client, build: str) -> None:
    """Runs by outcome, tries by result, durations: for each way in which a step may run, under names that have to be escaped."""
    with metered(hosts, build=build) as meter:
        for count in (1, 10):
            assert client.start(app.metered_counts, count).result(timeout=30) == count
        for workflow in (app.metered_slow, app.metered_odd):
            client.start(workflow).result(timeout=30)
        client.start(app.metered_fails)
        found = eventually(lambda: (scraped := meter.scrape()).get("runs_ended_total") == 5 and scraped, 30, "five runs that ended")
        assert found.get("runs_finished_total", workflow="metered_counts", outcome="completed") == 2
        assert found.get("runs_finished_total", workflow="metered_fails", outcome="failed") == 1
        assert found.get("runs_finished_total", workflow=app.ODD, outcome="completed") == 1
        tried = {"metered_add": ("metered_counts", 11, 0), "metered_fail": ("metered_fails", 0, 2), "metered_sleep": ("metered_slow", 1, 0), "metered_rest": ("metered_slow", 1, 0)}
        for step, (workflow, completed, failed) in {**tried, app.ODD: (app.ODD, 1, 0)}.items():
            assert found.get("step_attempts_total", workflow=workflow, step=step, outcome="completed") == completed, step
            assert found.get("step_attempts_total", workflow=workflow, step=step, outcome="failed") == failed, step
            assert found.get("step_duration_seconds_count", workflow=workflow, step=step) == completed + failed
        assert found.get("step_duration_seconds_bucket", workflow="metered_slow", step="metered_sleep", le="0.025") == 0
        assert 0.03 <= found.get("step_duration_seconds_sum", workflow="metered_slow", step="metered_sleep") < 3  # type: ignore[operator]
        assert found.get("step_failures_total") == 2 and found.get("steps_recorded_total") == 11 + 1 + 2 + 1
        assert found.get("commit_duration_seconds_count") == found.get("commits_total")
        assert dict(next(iter(found.all("build_info"))))["loop"] == build


def test_the_catalogue_is_what_is_exposed(shared: Shared) -> None:
    """Who reads the reference finds everything that there is; the library's parser reads it all, in both formats, and nothing is asked in vain."""
    meter = shared.meter
    shared.client.start(app.metered_counts, 3).result(timeout=30)
    found = eventually(lambda: (scraped := meter.scrape()).get("leader") and scraped.get("database_up") and scraped.all("step_attempts_total") and scraped, 60, "all")
    told = {PREFIX + (name.removesuffix("_total") if each.kind == "counter" else name): "gauge" if each.kind == "info" else each.kind for name, each in METRICS.items()}
    assert {name: family.type for name, family in found.families.items()} == told
    assert set(found.all("database_answered").values()) == {1.0}
    _, text, headers = meter.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0", **{"Accept-Encoding": "identity"})
    assert "openmetrics-text" in headers["Content-Type"] and text.endswith("# EOF\n") and "# UNIT pgsupervisor_step_duration_seconds seconds" in text
    _, text, _ = meter.ask("/metrics?name[]=pgsupervisor_alive")
    assert Scraped(text).samples == {("pgsupervisor_alive", frozenset()): 1.0}


def test_what_stands_in_the_database_is_told(shared: Shared) -> None:
    """Queues, waits and parked runs: what needs somebody at night is not in any worker's memory."""
    meter, client, effects = shared.meter, shared.client, shared.effects
    waiting = client.start(app.metered_waits)
    poison = client.start(app.metered_poison)
    found = eventually(lambda: (scraped := meter.scrape()).get("parked_runs", wait="attempts_exhausted") == 1 and scraped.get("waiting_runs", wait="signal") == 1 and scraped, 90, "both")
    assert found.get("worker_crashes_charged_total") == 3 == found.get("worker_restarts_total", reason="signal")
    assert found.get("queue_ready_runs", queue="metered") == 0
    assert found.get("database_leaders") == 1 and found.get("database_leader_age_seconds") < 30  # type: ignore[operator]
    assert found.get("table_partitions", table="step") > 1 and found.get("table_bytes", table="task") > 0  # type: ignore[operator]
    assert 0 < found.get("database_connections") <= found.get("database_connections_limit") == 200  # type: ignore[operator]
    client.signal(waiting.id, app.metered_word, "go")
    assert waiting.result(timeout=30) == "go" and effects.count("dies") == 3 and client.get(poison.id).status().status == "waiting"


def test_names_beyond_the_cap_are_counted_together(hosts: HostFactory, client: Client, tmp_path: Path) -> None:
    """300 workflows of 20 steps: a scrape has room for 256 and 512 names, whatever the app has, and no run is lost from the sums."""
    (tmp_path / "many_names.py").write_text(
        "from supervisor import step, workflow\n"
        "def made(n):\n"
        "    @step(name=f'many_step_{n}')\n    def one() -> int: return n\n"
        "    return one\n"
        "STEPS = [made(n) for n in range(20)]\n"
        "def flow(n):\n"
        "    @workflow(name=f'many_{n:03}')\n    async def many() -> int:\n        return sum([await one.aio() for one in STEPS])\n"
        "    return many\n"
        "FLOWS = [flow(n) for n in range(300)]\n"
    )
    with metered(hosts, "many_names", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as meter:
        runs = [client.start(f"many_{n:03}") for n in range(300)]
        for run in runs:
            assert run.result(timeout=60) == 190
        found = eventually(lambda: (scraped := meter.scrape()).sum("runs_finished_total") == 300 and scraped, 30)
        assert len({dict(labels)["workflow"] for labels in found.all("runs_finished_total")}) == 256
        assert len(found.all("step_duration_seconds_count")) == 512
        assert found.get("runs_finished_total", workflow="(other)", outcome="completed") == 300 - 255
        assert found.sum("step_duration_seconds_count") == found.sum("step_attempts_total") == 6000


# ── nothing goes back ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_counter_goes_back_whoever_dies(hosts: HostFactory, client: Client) -> None:
    """A counter that falls is a reset to Prometheus, and a rate without end. Workers are killed under load, one more and one fewer wanted, all replaced."""
    with metered(hosts) as meter:
        runs = [client.start(app.metered_counts, 50) for _ in range(20)]
        before = eventually(lambda: (scraped := meter.scrape()).get("steps_recorded_total") and scraped, 30)
        acts = (
            meter.kill_worker, lambda: meter.host.process.send_signal(signal.SIGTTIN), meter.kill_worker, lambda: meter.host.process.send_signal(signal.SIGTTOU),
            lambda: meter.host.process.send_signal(signal.SIGTTOU), lambda: meter.host.process.send_signal(signal.SIGHUP), meter.kill_worker,
        )  # fmt: skip
        wanted = [2, 3, 3, 2, 1, 1, 1]
        for act, target in zip(acts, wanted, strict=True):
            runs += [client.start(app.metered_counts, 50) for _ in range(10)]
            act()

            def settled(target: int = target) -> Scraped | None:
                nonlocal before
                now = meter.scrape()
                assert not fallen(before, now)
                before = now
                return now if now.get("workers_wanted") == target == now.get("workers_ready") == now.sum("workers") else None

            eventually(settled, 60, f"{target} workers after {act}")
        for run in runs:
            assert run.result(timeout=60) == 50
        last = eventually(lambda: (scraped := meter.scrape()).get("workers_ready") == 1 and scraped, 30)
        assert not fallen(before, last) and last.get("worker_restarts_total", reason="signal") == 3
        assert 0 < last.sum("worker_cpu_seconds_total") < 600


def test_the_process_that_serves_may_die_and_counts_go_on(shared: Shared) -> None:
    """kill -9 of it: runs go on, and another one tells the same numbers on the same port; who asks meanwhile waits for it and is not refused."""
    meter = shared.meter
    shared.client.start(app.metered_counts, 20).result(timeout=30)
    before = eventually(lambda: (scraped := meter.scrape()).get("runs_ended_total") and scraped, 30)
    first = meter.exporter()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: gone(first), 20)
    assert shared.client.start(app.metered_counts, 1).result(timeout=30) == 1
    ended = before.get("runs_ended_total") or 0
    now = eventually(lambda: (scraped := meter.scrape()).get("runs_ended_total") == ended + 1 and scraped, 60, "another one's numbers")
    assert not fallen(before, now) and meter.exporter() != first
    assert "the process for metrics" in meter.host.log()


def test_the_process_that_serves_dies_with_its_host(hosts: HostFactory) -> None:
    """kill -9 of the host, while what serves is stopped: nothing holds the port for a host that is not there."""
    with metered(hosts, procs=1) as meter:
        served_by = meter.exporter()
        os.kill(served_by, signal.SIGSTOP)
        meter.host.process.kill()
        meter.host.process.wait()
        eventually(lambda: gone(served_by), 20)
        eventually(lambda: _refuses(meter.port), 20)


def _refuses(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_live_is_the_host_and_ready_is_all_it_needs(hosts: HostFactory, own_server: object, effects: Effects, tmp_path: Path) -> None:
    """A database that is away must not have hosts restarted, and must have them sent nothing; metrics tell what they can, at once."""
    database: Database = own_server.database()  # type: ignore[attr-defined]
    factory = HostFactory(database, effects, tmp_path)
    try:
        with metered(factory, procs=1) as meter, Client(database.dsn) as client:
            client.start(app.metered_counts, 2).result(timeout=30)
            eventually(lambda: meter.ask("/readyz")[0] == 200, 10)  # its parent hears of a worker a little later than the worker of its first run
            assert [meter.ask(path)[:2] for path in ("/livez", "/readyz", "/startupz")] == [(200, "ok\n")] * 3
            own_server.embedded.stop("immediate")  # type: ignore[attr-defined]
            status, text, _ = eventually(lambda: (told := meter.ask("/readyz"))[0] == 503 and told, 30)
            assert "the database can't be reached\n" in text and database.dsn not in text
            found = eventually(lambda: not (scraped := meter.scrape()).get("database_up") and scraped, 30)
            assert found.get("runs_ended_total") == 1 and found.get("alive") == 1 and not found.all("table_bytes")
            assert meter.ask("/livez")[0] == 200
            eventually(lambda: meter.scrape().get("workers", state="database_away") == 1, 60)
            own_server.embedded.start()  # type: ignore[attr-defined]
            eventually(lambda: meter.ask("/readyz")[0] == 200 and meter.scrape().get("database_up") == 1, 90, "ready again")
    finally:
        factory.stop_all()


def test_a_host_that_is_stopped_is_not_alive(shared: Shared) -> None:
    """SIGSTOP looks from outside like a loop that hangs; whoever restarts hosts is told why, and counters stay readable."""
    meter = shared.meter
    meter.host.process.send_signal(signal.SIGSTOP)
    try:
        status, text, _ = eventually(lambda: (told := meter.ask("/livez"))[0] == 503 and told, 60)
        assert "has not turned for" in text and meter.scrape().get("alive") == 0
        assert meter.ask("/readyz")[0] == 503
    finally:
        meter.host.process.send_signal(signal.SIGCONT)
    eventually(lambda: meter.ask("/livez")[0] == 200, 20)


def test_a_host_that_drains_is_alive_and_not_ready(hosts: HostFactory, client: Client, effects: Effects) -> None:
    """So that nobody kills it, and nobody waits for it. What serves ends with it, though it was stopped."""
    with metered(hosts, procs=1) as meter:
        client.start(app.metered_holds, "drained")
        eventually(lambda: effects.count("held"), 30)
        meter.host.process.send_signal(signal.SIGTERM)
        eventually(lambda: "the host is draining" in meter.ask("/readyz")[1], 20)  # its only worker may have said so before
        assert meter.ask("/readyz")[0] == 503 and meter.ask("/livez")[0] == 200 and meter.scrape().get("draining") == 1
        served_by = meter.exporter()
        os.kill(served_by, signal.SIGSTOP)
        effects.open("drained")
        assert meter.host.process.wait(60) == 0 and gone(served_by)


def test_a_schema_of_another_version_is_not_ready(shared: Shared) -> None:
    """A rollout that forgot to migrate is stopped by its probe, with the command that is missing."""
    meter, database = shared.meter, shared.database
    database.sql("create table kept as select * from supervisor.migration where number = (select max(number) from supervisor.migration)")
    database.sql("delete from supervisor.migration where number in (select number from kept)")
    try:
        _, text, _ = eventually(lambda: (told := meter.ask("/readyz"))[0] == 503 and told, 30)
        assert text == "the schema is older than this program: python -m supervisor migrate\n"
        eventually(lambda: (scraped := meter.scrape()).get("database_schema_version") == (scraped.get("schema_version") or 0) - 1, 30)
    finally:
        database.sql("insert into supervisor.migration select * from kept")
    eventually(lambda: meter.ask("/readyz")[0] == 200, 30)


# ── who asks badly ───────────────────────────────────────────────────────────────────────────────────────────────


def test_garbage_is_answered_or_ended_and_nobody_else_notices(shared: Shared) -> None:
    """Whoever scans a network sends such things."""
    meter = shared.meter
    for said in (b"\r\n\r\n", b"GET", b"\x16\x03\x01\x02\x00", b"GET /metrics HTTP/9.9\r\n\r\n", b"X" * 70_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", meter.port), 20) as one:
            try:
                one.sendall(said)
                one.shutdown(socket.SHUT_WR)
                while one.recv(65536):
                    pass
            except OSError:
                pass
    assert meter.ask("/nothing")[:2] == (404, "here are /metrics, /livez, /readyz and /startupz\n")
    assert meter.ask("/metrics/../../etc/passwd")[0] == 404
    with socket.create_connection(("127.0.0.1", meter.port), 20) as one:
        one.sendall(b"DELETE /livez HTTP/1.0\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.0 405 ")
    log = meter.host.log()
    assert meter.ask("/livez")[0] == 200 and "Traceback" not in log and "Exception" not in log


def test_silent_and_slow_visitors_hold_nobody_up(shared: Shared) -> None:
    """More connections than there is room for, which say nothing, or half of something: a probe is answered all the same."""
    meter = shared.meter
    idle = [socket.create_connection(("127.0.0.1", meter.port), 20) for _ in range(2 * CONNECTIONS_MAX)]
    try:
        for number, one in enumerate(idle):
            try:
                one.sendall(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"G")
            except OSError:  # it had to give way
                pass
        began = time.monotonic()
        assert meter.ask("/livez")[0] == 200 and time.monotonic() - began < 5
        with ThreadPoolExecutor(16) as pool:
            assert {status for status, *_ in pool.map(lambda _: meter.ask("/metrics"), range(32))} == {200}
        eventually(lambda: all(_ended(one) for one in idle), 60, "the end of all of them")
    finally:
        for one in idle:
            one.close()
    threads = Path(f"/proc/{meter.exporter()}/task")
    eventually(lambda: len(list(threads.iterdir())) < 8, 30, "threads that end with their connections")


def _ended(one: socket.socket) -> bool:
    one.settimeout(0.01)
    try:
        return one.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_database_that_hangs_costs_a_probe_its_patience_and_no_more(hosts: HostFactory, own_server: Server, effects: Effects, tmp_path: Path) -> None:
    """Stopped, it takes connections and statements and answers none: worse than one that is away. The host is not restarted for it, and tells what is in its memory."""
    database = own_server.database()
    factory = HostFactory(database, effects, tmp_path)
    stopped: list[int] = []
    try:
        with metered(factory, procs=1) as meter, Client(database.dsn) as client:
            assert client.start(app.metered_counts, 7).result(timeout=30) == 7
            before = eventually(lambda: (scraped := meter.scrape()).get("runs_ended_total") == 1 and scraped.get("database_up") and scraped, 30)
            workers = meter.workers()
            stopped = stop(own_server)
            for _ in range(3):  # the questions that are asked already, then those that come while they hang
                took_s, status, text = asked(meter, "/readyz")
                assert (status, took_s < 5) == (503, True) and "the database does not answer in time\n" in text, (took_s, status, text)
                took_s, status, _ = asked(meter, "/livez")
                assert (status, took_s < 2) == (200, True)
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(lambda _: asked(meter, "/metrics"), range(8)))
                assert {status for _, status, _ in answers} == {200} and max(took_s for took_s, *_ in answers) < 6
                last = Scraped(answers[-1][2])
                assert last.get("alive") == 1 and last.get("runs_ended_total") == 1 and not fallen(hosts_own(before), last)
            eventually(lambda: meter.scrape().get("database_up") == 0, 30, "what was known to be too old")
            assert meter.host.process.poll() is None
            cont(stopped)
            stopped = []
            eventually(lambda: meter.ask("/readyz")[0] == 200 and meter.scrape().get("database_up") == 1, 90, "ready again")
            assert client.start(app.metered_counts, 3).result(timeout=60) == 3 and meter.workers() == workers
    finally:
        cont(stopped)
        factory.stop_all()
        database.drop()


def asked(meter: Meter, path: str) -> tuple[float, int, str]:
    began = time.monotonic()
    status, text, _ = meter.ask(path)
    return time.monotonic() - began, status, text


def hosts_own(scraped: Scraped) -> Scraped:
    """Without what only the database knows."""
    scraped.samples = {key: value for key, value in scraped.samples.items() if "database" not in key[0] and "table" not in key[0] and "queue" not in key[0]}
    return scraped


def stop(server: Server) -> list[int]:
    """Stop the postmaster, then its backends: it forks no more of them."""
    postmaster = int((server.embedded.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)
    backends = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    return [*backends, postmaster]


def cont(stopped: list[int]) -> None:
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# ── how it is asked for ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_address_is_a_setting_and_one_that_is_taken_is_an_error(hosts: HostFactory) -> None:
    """By the environment as by the flag; a port that is somebody's ends the start with what to do, and leaves nothing behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        host = hosts.start("tests.apps.metered", env={"PGSUPERVISOR_METRICS": f"localhost:{port}"})
        assert host.process.wait(60) == 78
        assert f"metrics can't be served on localhost port {port}" in host.log() and "port 0 for a free one" in host.log()
    host = hosts.start("tests.apps.metered", args=("--metrics", "nowhere"))
    assert host.process.wait(60) == 78 and "'nowhere' is no address" in host.log()
    with hosts("tests.apps.metered", env={"PGSUPERVISOR_METRICS": "127.0.0.1:0"}) as up:
        assert Meter(up).ask("/livez")[0] in (200, 503)


def test_without_the_extra_the_error_says_what_to_install(database: Database, tmp_path: Path) -> None:
    """And a host without metrics needs none of it."""
    code = (
        "import importlib.util as u, sys\nfound = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'prometheus_client' else found(name, *a)\n"
        "from supervisor.cli.main import main\nmain(['run', '--app', 'tests.apps.metered', '--metrics', '0'])"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "pip install 'pgsupervisor[metrics]'" in done.stderr
