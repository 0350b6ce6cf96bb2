"""What metrics are made of: counters that go on from one process to the next, addresses, questions that are not waited for, and the files for Grafana and Prometheus."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from importlib.resources import files
from typing import Any

import pytest

from supervisor.core.errors import ConfigInvalid, DatabaseUnavailable
from supervisor.engine.counting import count_durable
from supervisor.host import boxes, layout, tallies
from supervisor.host.blackbox import BlackBox
from supervisor.host.tallies import OTHER, STEPS_MAX, WORKFLOWS_MAX, Tallies
from supervisor.metrics.address import parse
from supervisor.metrics.catalogue import METRICS, PREFIX
from supervisor.metrics.collect import of_facts, of_names
from supervisor.metrics.stored import NAMES_MAX, Facts, Question, _bound, of_waits
from tests.harness import ROOT, eventually
from tests.unit.test_blackbox import wire  # noqa: F401 - both builds of the leaves

GRAFANA = json.loads((files("supervisor.metrics") / "grafana.json").read_text())
RULES = (files("supervisor.metrics") / "rules.yml").read_text()


# ── counters in the black box ────────────────────────────────────────────────────────────────────────────────────


def test_a_tally_counts_tries_by_how_long_they_took(wire: Any) -> None:  # noqa: F811
    """Both builds write the same bytes. A bucket holds what took at most so long, as `le` means it; a clock that was set back costs nothing."""
    memory = bytearray(wire.TALLY_BYTES + 16)
    tally = wire.Tally(memory, 8)
    for took_us in (-7, 0, 500, 501, 1000, 60_000_000, 60_000_001):
        tally.add(took_us)
    tally.fail(2_000)
    assert not any(memory)  # nothing of them is durable yet
    tries = tally.take()
    tally.add(7)
    for _ in range(2):
        tally.book(tries)
        tries = bytes(wire.TALLY_BYTES)
    failed, took_us, *buckets = memoryview(memory)[8 : 8 + wire.TALLY_BYTES].cast("q")
    assert (failed, took_us) == (1, 500 + 501 + 1000 + 60_000_000 + 60_000_001 + 2000)
    assert buckets == [3, 2, 1] + [0] * 12 + [1, 1] and len(buckets) == len(wire.TALLY_BOUNDS_US) + 1
    assert memory[:8] == memory[-8:] == bytes(8)
    with pytest.raises(ValueError, match="outside"):
        wire.Tally(memory, 24)


def test_what_waits_for_its_batch_is_not_counted_with_what_is_durable_already() -> None:
    """A transactional step is durable at once; a try of the same step that failed is not before its batch, which may be refused and counted from its rows."""
    memory = bytearray(tallies.AREA_BYTES)
    tally = Tallies(memory, 0).of_step("order", "pay")

    def seen() -> tuple[int, int]:
        counted = tallies.read(lambda size, at: bytes(memory[at : at + size]), [0])[1]["order", "pay"]
        return counted.failed, sum(count for _, count in counted.buckets)

    tally.waits = True
    tally.fail(3_000)
    count_durable(tally, 10)
    assert seen() == (0, 1) and tally.waits
    tally.book(tally.take())
    assert seen() == (1, 2)


def test_a_successor_goes_on_with_the_counters_it_finds() -> None:
    """A counter that begins again is a reset to whoever watches it."""
    memory = bytearray(tallies.AREA_BYTES)
    for _ in range(2):
        mine = Tallies(memory, 0)
        count_durable(mine.of_step("order", "pay"), 10)
        count_durable(mine.of_step("order", "ship"), 10)
        mine.of_workflow("order").count(1)
        mine.of_workflow("order").count(5)
    workflows, steps = tallies.read(lambda size, at: bytes(memory[at : at + size]), [0])
    assert workflows["order", ""].ends == {"completed": 2, "failed": 0, "cancelled": 0, "terminated": 0, "timed_out": 2, "continued": 0}
    assert [sum(count for _, count in steps["order", step].buckets) for step in ("pay", "ship")] == [2, 2]


def test_names_beyond_the_room_are_counted_together() -> None:
    """And workers that met other names first do not have more of them together: who reads it keeps the first, for good."""
    memory = bytearray(2 * tallies.AREA_BYTES)
    for at, order in ((0, 1), (tallies.AREA_BYTES, -1)):
        mine = Tallies(memory, at)
        for n in range(WORKFLOWS_MAX + 44)[::order]:
            mine.of_workflow(f"w{n}").count(1)
            count_durable(mine.of_step(f"w{n}", "a"), 1)
            count_durable(mine.of_step(f"w{n}", "b"), 1)

    def read() -> tuple[boxes.Tallied, boxes.Tallied]:
        return tallies.read(lambda size, at: bytes(memory[at : at + size]), (0, tallies.AREA_BYTES))

    workflows, steps = read()
    assert len(workflows) == WORKFLOWS_MAX and len(steps) == STEPS_MAX
    assert sum(each.ends["completed"] for each in workflows.values()) == 2 * (WORKFLOWS_MAX + 44)
    assert sum(sum(each.numbers[2:]) for each in steps.values()) == 4 * (WORKFLOWS_MAX + 44)
    assert workflows[OTHER, ""].ends["completed"] > 0
    Tallies(memory, 0).of_workflow("w0").count(1)
    assert set(read()[0]) == set(workflows)


def test_names_that_are_cut_to_the_same_are_one() -> None:
    """Two series of the same labels make a whole scrape invalid."""
    memory = bytearray(tallies.AREA_BYTES)
    mine = Tallies(memory, 0)
    for end in ("a", "b"):
        mine.of_workflow("ü" * 63 + "x" + "ü" + end).count(1)
        mine.of_workflow("n" * 200 + end).count(1)
    workflows, _ = tallies.read(lambda size, at: bytes(memory[at : at + size]), [0])
    assert [each.ends["completed"] for name, each in workflows.items() if name != (OTHER, "")] == [2, 2]
    finished = list(of_names(workflows, {}))[0]
    assert len({tuple(sorted(sample.labels.items())) for sample in finished.samples}) == len(finished.samples) == 12


def test_what_a_number_has_done_goes_on_and_what_its_process_has_done_begins_anew() -> None:
    """`workers` shows a process, metrics a number."""
    box = BlackBox(2, 3)
    page = box.page(0)
    page.batch(0.001, claimed=3, steps=10, ended=2, failures=1, live=1, draining=False)
    with box.carrying(0) as carry:
        carry(1.5)
        box.clear(0)
    box.page(0).batch(0.002, claimed=1, steps=4, ended=1, failures=0, live=0, draining=False)
    read = box.read(0)
    assert (read.claimed, read.steps, read.ended, read.failures, read.commits, sum(read.latency)) == (1, 4, 1, 0, 1, 1)
    done = read.totals
    assert (done.claimed, done.steps, done.ended, done.failures, done.commits, done.commits_us, sum(done.latency)) == (4, 14, 3, 1, 2, 3000, 2)
    found = boxes.read_open(box.fd, os.getpid())
    assert found is not None and found.totals[0].cpu_s >= 1.5 and found.totals[0].done == done
    box.clear(0)
    found = boxes.read_open(box.fd, os.getpid())
    assert found is not None and found.workers == [] and found.totals[0].cpu_s == 1.5


def test_the_parent_says_how_it_is() -> None:
    box = BlackBox(2, 3)
    said = layout.Host(5, 7, 3, 2, dict(zip(layout.REASONS, range(5), strict=True)), True, 4, 3, 2)
    box.say(said)
    assert layout.read_host(bytes(box.memory[: layout.HEADER_BYTES])) == said


# ── addresses, questions ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "host", "port"), [("9464", "127.0.0.1", 9464), ("0.0.0.0:0", "0.0.0.0", 0), ("[::1]:9464", "::1", 9464), ("metrics.local:1", "metrics.local", 1)])
def test_an_address_is_a_port_of_this_machine_or_names_another(text: str, host: str, port: int) -> None:
    assert parse(text, "--metrics") == (host, port)


@pytest.mark.parametrize("text", ["", "x", "1:x", "65536", "-1", "::1:9464", "٣", "localhost:"])
def test_what_is_no_address_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"PGSUPERVISOR_METRICS: .* is no address; give a port of this machine, or HOST:PORT"):
        parse(text, "PGSUPERVISOR_METRICS")


def test_an_answer_is_told_again_for_a_while_and_not_waited_for_longer_than_that() -> None:
    """Many scrapers ask the database no more than one; a database that hangs costs each its patience at most, and those that come later nothing."""
    asked: list[int] = []
    free = threading.Event()

    def ask() -> int:
        asked.append(1)
        if len(asked) > 1:
            free.wait(30)
        return len(asked)

    question = Question(ask, fresh_s=0.2, patience_s=0.3)
    assert [question.answer() for _ in range(5)] == [1] * 5 and len(asked) == 1
    eventually(lambda: question.answer() is None, 10)
    began = time.monotonic()
    assert question.answer() is None and time.monotonic() - began < 0.2 and len(asked) == 2
    free.set()
    eventually(lambda: (question.answer() or 0) >= 2, 10)


def test_a_refusal_is_no_answer() -> None:
    def ask() -> int:
        raise DatabaseUnavailable("it is away")

    assert Question(ask).answer() is None


def test_queues_beyond_the_bound_are_told_together() -> None:
    """A name of a queue may be made by whoever may start runs."""
    values = of_waits([{"code": "queued", "queue": f"q{n}", "runs": n, "age_s": float(n)} for n in range(NAMES_MAX + 50)])
    _bound(values)
    assert len(values["queue_ready_runs"]) == NAMES_MAX + 1 and sum(values["queue_ready_runs"].values()) == sum(range(NAMES_MAX + 50))
    assert values["queue_oldest_ready_seconds"][(OTHER,)] == 49.0


def test_a_reason_to_wait_that_is_new_is_told_too() -> None:
    values = of_waits([{"code": "moonphase", "queue": "q", "runs": 3, "age_s": 1.0}])
    assert values["waiting_runs"][("moonphase",)] == 3 and values["queue_ready_runs"] == {}
    assert [family.name for family in of_facts(Facts({"runs": True}, values))]


# ── for Grafana and Prometheus ───────────────────────────────────────────────────────────────────────────────────


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = GRAFANA["panels"]
    return found


def test_panels_have_their_own_ids_and_places() -> None:
    """Grafana draws what overlaps over one another, and mixes up panels of the same id."""
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_the_data_source_is_a_variable_everywhere() -> None:
    """A uid of somebody's Grafana would be nobody else's."""
    variables = GRAFANA["templating"]["list"]
    assert [each["type"] for each in variables if each["name"] == "datasource"] == ["datasource"]
    assert set(re.findall(r'"uid": "([^"]*)"', json.dumps(GRAFANA))) == {"${datasource}", "pgsupervisor"}
    for panel in panels():
        assert panel["type"] == "row" or (panel["datasource"]["uid"] == "${datasource}" and panel["targets"] and panel["description"] or panel["title"])
        assert len({target["refId"] for target in panel.get("targets", [])}) == len(panel.get("targets", []))


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bpgsupervisor_\w+", expression))


def exposed() -> set[str]:
    found = set()
    for name, metric in METRICS.items():
        found |= {PREFIX + name + end for end in ("_bucket", "_sum", "_count")} if metric.kind == "histogram" else {PREFIX + name}
    return found


def test_panels_and_alerts_ask_for_what_there_is() -> None:
    """A misspelt metric is an empty panel and an alert that never comes. And each metric is asked for somewhere, or says nothing that is watched."""
    expressions = [target["expr"] for panel in panels() for target in panel.get("targets", [])] + [each["definition"] for each in GRAFANA["templating"]["list"] if "definition" in each]
    asked = {name for expression in expressions for name in names_in(expression)} | names_in(RULES)
    assert asked <= exposed(), asked - exposed()
    never = {PREFIX + name for name, metric in METRICS.items() if metric.kind != "histogram"} - asked
    assert never == {PREFIX + name for name in ("build_info", "draining", "leader_term", "runs_ended_total", "step_failures_total", "database_answered", "database_workers")}


def test_every_alert_says_what_and_what_to_do() -> None:
    for alert in re.split(r"(?m)^      - alert: ", RULES)[1:]:
        name = alert.split("\n", 1)[0]
        assert re.fullmatch(r"Pgsupervisor[A-Z]\w+", name)
        assert re.search(r"(?m)^        labels: \{severity: (critical|warning)\}$", alert), name
        assert all(len(re.search(rf"(?m)^          {what}: (.+)$", alert)[1]) > 20 for what in ("summary", "description")), name  # type: ignore[index]




def test_the_page_lists_what_there_is() -> None:
    """docs/metrics.md is the reference: each metric with its type, labels and meaning, and nothing else."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = {line for line in page.splitlines() if line.startswith(f"| `{PREFIX}")}
    assert listed == {f"| `{PREFIX}{name}` | {each.kind} | {', '.join(each.labels)} | {each.meaning} |" for name, each in METRICS.items()}
