"""A real Prometheus: it loads the rules, scrapes a real host, and evaluates every expression of every panel and alert."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from tests.acceptance.scraping import metered
from tests.apps import metered as app
from tests.harness import Effects, HostFactory, Server, eventually

GRAFANA = json.loads((files("supervisor.metrics") / "grafana.json").read_text())
TOOL, SERVER = shutil.which("promtool"), shutil.which("prometheus")
needs_tool = pytest.mark.skipif(TOOL is None, reason="promtool is not installed: apt-get install prometheus")
# panels that may have nothing to show on a host that is well
MAY_BE_EMPTY = {"Waiting runs"}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "pgsupervisor.yml"
    path.write_text((files("supervisor.metrics") / "rules.yml").read_text())
    return path


class Prometheus:
    """One on this machine, with one host to scrape."""

    def __init__(self, folder: Path, rules: Path, target: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{rules}']\n"
            f"scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
        )
        words = [str(SERVER), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"]
        self._log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(words, cwd=folder, stdout=self._log, stderr=self._log)

    def ask(self, path: str, **values: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(values)}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise AssertionError(f"{values}: {error.read().decode()}") from None
        except urllib.error.URLError:
            pass
        return None  # it does not listen yet

    def value(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def prometheus(server: Server, rules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped a host that works, for a few seconds."""
    if SERVER is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    folder, database = tmp_path_factory.mktemp("prometheus"), server.database()
    factory = HostFactory(database, Effects(folder / "effects"), folder)
    try:
        with metered(factory) as meter, Client(database.dsn) as client:
            made = Prometheus(folder, rules, meter.port)
            try:
                for _ in range(3):
                    for workflow in (app.metered_slow, app.metered_fails, app.metered_odd):
                        client.start(workflow)
                    began = time.time()
                    eventually(lambda: made.ask("query", query="pgsupervisor_alive") is not None, 60, "Prometheus")
                    eventually(lambda: any(float(each["value"][1]) > began for each in made.value("timestamp(pgsupervisor_alive)")), 60, "a further scrape")  # noqa: B023
                yield made
            finally:
                made.stop()
    finally:
        factory.stop_all()
        database.drop()


@needs_tool
def test_the_rules_are_rules(rules: Path) -> None:
    done = subprocess.run([str(TOOL), "check", "rules", str(rules)], capture_output=True, text=True)
    assert done.returncode == 0 and "SUCCESS: 15 rules found" in done.stdout, done.stdout + done.stderr


def filled(expression: str) -> str:
    """As Grafana asks it, with All in every variable."""
    for name, value in {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*", "$workflow": ".*"}.items():
        expression = expression.replace(name, value)
    return expression


def test_every_panel_has_something_to_show(prometheus: Prometheus) -> None:
    """A panel that asks wrongly is found at night."""
    for panel in GRAFANA["panels"]:
        for target in panel.get("targets", []):
            found = eventually(lambda: prometheus.value(filled(target["expr"])) or panel["title"] in MAY_BE_EMPTY, 30, f"{panel['title']}: {target['expr']}")  # noqa: B023
            assert found is True or all(each["value"][1] != "" for each in found)


def test_the_variables_find_their_values(prometheus: Prometheus) -> None:
    for variable, value in (("job", "shop"), ("workflow", app.ODD)):
        asked = next(each["definition"] for each in GRAFANA["templating"]["list"] if each["name"] == variable)
        selector = filled(asked.removeprefix("label_values(").rpartition(",")[0])
        found = eventually(lambda: [each[variable] for each in prometheus.ask("series", **{"match[]": selector})], 30)  # noqa: B023
        assert value in found


def test_every_alert_is_loaded_and_none_is_false(prometheus: Prometheus) -> None:
    """A host that is well has no alerts, and each expression is one that Prometheus can evaluate."""

    def evaluated() -> list[Any] | None:
        groups = prometheus.ask("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else None

    found = eventually(evaluated, 60, "an evaluation of all")
    assert len(found) == 15
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in found if rule["state"] != "inactive"} <= {"PgsupervisorStepsFail"}, "one step of this app always fails"


@needs_tool
def test_alerts_come_when_they_should_and_name_whom(rules: Path, tmp_path: Path) -> None:
    """Each by the facts that it is for: after its time, not before, once per job where every host says the same."""
    two = [("a", 'job="shop", instance="a"'), ("b", 'job="shop", instance="b"')]

    def series(name: str, values: str, labels: str = "") -> list[dict[str, str]]:
        return [{"series": f"pgsupervisor_{name}{{{each}{labels and ', ' + labels}}}", "values": values} for _, each in two]

    cases: list[tuple[str, list[dict[str, str]], int]] = [
        ("PgsupervisorAbsent", [], 1),
        ("PgsupervisorHostStuck", series("alive", "0x60"), 2),
        ("PgsupervisorNoWorkerReady", series("workers_ready", "0x60"), 1),
        ("PgsupervisorNoLeader", series("database_leaders", "0x60"), 1),
        ("PgsupervisorNoLeader", series("database_leader_age_seconds", "31x60"), 1),
        ("PgsupervisorReadyRunsWait", series("queue_oldest_ready_seconds", "301+60x60", 'queue="q"'), 1),
        ("PgsupervisorWorkersCrash", series("worker_restarts_total", "0+1x60", 'reason="signal"'), 2),
        ("PgsupervisorStepEndsWorkers", series("worker_crashes_charged_total", "0+1x60"), 2),
        ("PgsupervisorParkedRunsGrow", series("parked_runs", "0+1x60", 'wait="crash_loop"'), 1),
        ("PgsupervisorStepsFail", series("step_attempts_total", "0+9x60", 'workflow="w", step="s", outcome="failed"') + series("step_attempts_total", "0+1x60", 'workflow="w", step="s", outcome="completed"'), 1),
        ("PgsupervisorLogRecordsDropped", series("log_records_dropped_total", "0+5x60"), 2),
        ("PgsupervisorDatabaseDown", series("database_up", "0x60"), 2),
        ("PgsupervisorSchemaDoesNotFit", series("schema_version", "36x60") + series("database_schema_version", "35x60"), 2),
        ("PgsupervisorDeadRows", series("table_dead_rows", "200000x60", 'table="task"') + series("table_live_rows", "1000x60", 'table="task"'), 1),
        ("PgsupervisorOldTransaction", series("database_oldest_transaction_seconds", "3601+60x60"), 1),
        ("PgsupervisorTransactionIdsRunOut", series("database_xid_age", "1000000001x60"), 1),
    ]
    well = [
        ("alive", "1x60", ""), ("workers_ready", "4x60", ""), ("database_leaders", "1x60", ""), ("database_leader_age_seconds", "0.4x60", ""), ("queue_oldest_ready_seconds", "1x60", 'queue="q"'),
        ("worker_restarts_total", "3x60", 'reason="signal"'), ("worker_crashes_charged_total", "2x60", ""), ("parked_runs", "7x60", 'wait="crash_loop"'), ("log_records_dropped_total", "9x60", ""),
        ("database_up", "1x60", ""), ("schema_version", "36x60", ""), ("database_schema_version", "36x60", ""), ("table_dead_rows", "2000x60", 'table="task"'), ("table_live_rows", "1000x60", 'table="task"'),
        ("database_oldest_transaction_seconds", "2x60", ""), ("database_xid_age", "200000000x60", ""), ("step_attempts_total", "0+9x60", 'workflow="w", step="s", outcome="completed"'),
    ]  # fmt: skip
    tests = [
        {"interval": "1m", "input_series": facts, "promql_expr_test": [{"expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": "50m", "exp_samples": [{"labels": "{}", "value": count}]}]}
        for alert, facts, count in cases
    ]
    healthy = [each for name, values, labels in well for each in series(name, values, labels)]
    tests.append({"interval": "1m", "input_series": healthy, "promql_expr_test": [{"expr": "count(ALERTS)", "eval_time": "50m", "exp_samples": []}]})
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))  # JSON is YAML
    done = subprocess.run([str(TOOL), "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {alert for alert, *_ in cases} == {line.split()[2] for line in rules.read_text().splitlines() if "- alert:" in line}


