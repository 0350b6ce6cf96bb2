"""Random programs come to the end that the model predicts: results, errors, histories, effects, whatever is executed beside them and dies meanwhile."""

from __future__ import annotations

import json
import os
import pprint
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from supervisor import Client
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually
from tests.model import programs as drawn
from tests.model.driver import TABLES, Driver, kill_times
from tests.model.verdict import judge

PROGRAMS = int(os.environ.get("PGSUPERVISOR_PROGRAMS", "500")) // 2  # on each build of the loop
SEED = int(os.environ.get("PGSUPERVISOR_PROGRAMS_SEED", "20261129"))
AT_ONCE = 64
KILLS_IN = 2  # every so many batches
TOLD_MAX = 10
SHRINK_WITHIN_S = 20.0  # a program alone
_UNWANTED = ["loses", "async", [["start", "request_cancel", "def", [["never", "sleep"]]], ["never", "signal"]]]
# programs that had failed once, and some that are rarely drawn
REGRESSIONS: list[dict[str, Any]] = [
    {"style": "async", "body": [["first", [["never", "sleep"], ["branch", [["step", "tx task", 0, "", [None]]]]]]]},
    {"style": "async", "body": [["first", [["never", "signal"], ["branch", []], ["cleans", "sleep", [["step", "tx", 1, "after", 1]]]]]]},
    {"style": "def", "body": [["patched"], ["cancelled", ["never", "sleep"]]], "then": ["retry"]},
    {"style": "async", "body": [["shield", 60.0, ["signal", "a", 1, "before"]], ["patched"], ["cancelled", ["never", "signal"]]], "then": ["fork", 4]},
    {"style": "def", "body": [["attempt", [["shield", 0.016, ["never", "signal"]]], []]]},
    *({"style": style, "body": [["patched"], ["patched"], ["patched"]], "then": ["fork", row]} for style in ("async", "def") for row in range(3)),
    *({"style": style, "body": [["drawn"], ["sleep", 1], ["drawn"]], "then": ["fork", row]} for style in ("async", "def") for row in range(4)),
    {"style": "async", "body": [["drawn"], ["step", "gated", 0, "", None], ["drawn"]], "then": ["retry"]},
    *({"style": style, "body": [["attempt", [["shield", 0.02, _UNWANTED]], []], ["sleep", 20]]} for style in ("async", "def")),
    *({"style": style, "body": [["attempt", [["gather", [_UNWANTED, ["step", "plain", 1, "for good", None]]]], []]]} for style in ("async", "def")),
    *({"style": style, "body": [["first", [_UNWANTED, ["child", "def", [["sleep", 20]]], _UNWANTED]], ["sleep", 1]]} for style in ("async", "def")),
    {"style": "async", "body": [["first", [_UNWANTED, ["branch", []], _UNWANTED]]]},
]


def age_s(pid: int) -> float:
    """Since the birth of *pid*; 0 for one that is gone."""
    try:
        return time.time() - Path(f"/proc/{pid}").stat().st_mtime
    except FileNotFoundError:
        return 0.0


class Refuted(AssertionError):
    """A program did not end as predicted."""


def draw(count: int, number: int) -> list[dict[str, Any]]:
    """*count* programs, the same for the same number."""
    found: list[dict[str, Any]] = []

    @seed(number)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(drawn.programs)
    def collect(program: dict[str, Any]) -> None:
        found.append(program)

    collect()
    return found


def shrink(driver: Driver, count: int, number: int, failing: list[dict[str, Any]]) -> str:
    """The smallest program that fails alone as one of *failing* does, as Python."""
    last: dict[str, Any] = {}
    driver.ended_within_s = SHRINK_WITHIN_S

    @seed(number)
    @settings(max_examples=count, phases=[Phase.generate, Phase.shrink], database=None, deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    @given(drawn.programs)
    def again(program: dict[str, Any]) -> None:
        if not last and program not in failing:
            return
        for played in driver.play([program]):
            if wrong := judge(played):
                last.update(program=program, wrong=wrong[0])
                raise Refuted

    try:
        again()
    except Refuted:
        return f"{pprint.pformat(last['program'], width=150)}\n" + "\n".join(last["wrong"])
    return f"none of them fails alone; with others it was\n{pprint.pformat(failing[0], width=150)}"


def killer(host: Host, chance: random.Random) -> Callable[[], int]:
    """Kills one worker or both, when both are up; their parent forks others."""

    def kill() -> int:
        eventually(lambda: len(host.worker_pids()) == 2 and all(age_s(pid) > 1.1 for pid in host.worker_pids()), 60, "two workers that are no newborns")
        pids = chance.sample(host.worker_pids(), chance.choice([1, 2]))
        for pid in pids:
            host.kill_worker(pid)
        return len(pids)

    return kill


def replayed(database: Database) -> dict[str, int]:
    """What the program `replay` finds in the histories of both workflows, of some thousands at most."""
    words = [sys.executable, "-m", "supervisor", "replay", "--json", "--dsn", database.dsn, "--app", "tests.apps.modelled", "--sample", "2000"]
    found = {"replayed": 0, "parted": 0, "left_out": 0}
    for workflow in ("modelled", "modelled_def"):
        done = subprocess.run([*words, "--workflow", workflow], cwd=ROOT, capture_output=True, text=True, check=False)
        total = json.loads((done.stdout.splitlines() or ["{}"])[-1])
        assert done.returncode in (0, 1) and total, done.stderr
        found = {name: count + total[name] for name, count in found.items()}
    return found


def told(failing: list[tuple[dict[str, Any], list[str]]]) -> str:
    return "\n".join(f"{pprint.pformat(program, width=150)}\n  " + "\n  ".join(wrong) for program, wrong in failing[:TOLD_MAX])


def test_programs_end_as_predicted(build: str, database: Database, hosts: HostFactory, effects: Effects, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run does, however its commands are combined, is what the promises say; with workers dying, too."""
    number = SEED + (build == "python")
    with capsys.disabled():
        print(f"\n{PROGRAMS} programs, {build} loop, PGSUPERVISOR_PROGRAMS_SEED={SEED}", end=" ", flush=True)
    programs, chance = draw(PROGRAMS, number), random.Random(number)
    for statement in TABLES:
        database.sql(statement)
    failing: list[tuple[dict[str, Any], list[str]]] = []
    killed = went_on = 0
    with Client(database.dsn) as client, hosts("tests.apps.modelled", procs=2, build=build) as host:
        driver = Driver(client, database, effects.path.parent, killer(host, chance))
        for n, at in enumerate(range(0, len(programs), AT_ONCE)):
            kills = kill_times(chance) if n % KILLS_IN == 1 else []
            for played in driver.play([*REGRESSIONS, *programs[at : at + AT_ONCE]], kills):
                killed, went_on = killed + played.killed, went_on + len(played.expected) * played.name.endswith("f")
                failing += [(played.programs[which], wrong) for which, wrong in judge(played).items()]
        if failing:
            shrunk = shrink(driver, len(programs), number, [program for program, _ in failing])
            pytest.fail(f"{len(failing)} programs, seed {number}:\n{told(failing)}\n\nshrunk:\n{shrunk}\n\n{host.log()[-3000:]}", pytrace=False)
    assert killed and went_on > PROGRAMS // 10 or PROGRAMS <= AT_ONCE
    assert database.one("select count(*) from supervisor.timer") == 0
    found = replayed(database)
    assert found["replayed"] >= min(PROGRAMS, 2000) and found["parted"] == found["left_out"] == 0
