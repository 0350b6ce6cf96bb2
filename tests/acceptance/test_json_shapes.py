"""What `--json` prints, command by command, is what docs/reading.md says: who pipes it into a program reads lines, an object or an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from supervisor.cli.main import cli
from tests.acceptance.test_docs import rows, section
from tests.acceptance.test_workers import command
from tests.apps import operated
from tests.conformance.conftest import Live, living
from tests.harness import ROOT, Server

APP = "tests.apps.operated"
LINES, OBJECT, ARRAY, VALUE = "a line for each", "one object", "one array", "one value"

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the tests run apart from the clone")


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with living(server, tmp_path_factory.mktemp("shapes"), APP) as made:
        yield made


def told() -> dict[str, str]:
    """Command → shape, as the page has it."""
    found = {}
    for shape, commands in rows(section("reading.md", "## What --json prints")):
        for name in re.findall(r"`([^`]+)`", commands):
            assert name not in found, f"{name} stands there twice"
            found[name] = next(word for word in (LINES, OBJECT, ARRAY, VALUE) if shape.startswith(word))
    return found


def with_json(group: click.Group, name: str = "") -> Iterator[str]:
    """The commands below *group* that take --json; those of `bench` as one."""
    context = click.Context(group)
    for each in group.list_commands(context):
        made, path = group.get_command(context, each), f"{name} {each}".strip()
        if path == "bench":
            yield "bench …"
            continue
        if made is not None and any("--json" in parameter.opts for parameter in made.params):
            yield path
        if isinstance(made, click.Group):
            yield from with_json(made, path)


def test_the_page_has_every_command_that_takes_json() -> None:
    assert set(told()) == set(with_json(cli))  # type: ignore[arg-type]


def shape(text: str) -> str:
    found = [json.loads(line) for line in text.splitlines()]
    if len(found) == 1:
        return {dict: OBJECT, list: ARRAY}.get(type(found[0]), VALUE)
    assert len(found) > 1 and all(isinstance(each, dict) for each in found)
    return LINES


def test_each_prints_what_the_page_says(live: Live, tmp_path: Path) -> None:
    """Two of everything, so that what is printed for each is printed twice."""
    for n in (1, 2):
        run = live.start(operated.operated_asleep.options(key=f"shape-{n}", queue=f"shapes-{n}"), 3000.0)
        assert run.created
    pages, wrong = told(), []
    asleep = "operated_asleep"
    for words in (
        ["list"], ["queues"], ["versions"], ["pause", "shape-1", "shape-2", "--reason", "x"], ["audit"], ["resume", "shape-1", "shape-2"],
        ["schedules", "create", "s1", "--workflow", asleep, "--every", "3600", "--input-json", '{"seconds": 3000}'], ["schedules", "create", "s2", "--workflow", asleep, "--every", "3600", "--input-json", '{"seconds": 3000}'],
        ["schedules"], ["schedules", "list"], ["schedules", "next", "--every", "60"], ["schedules", "show", "s1"], ["schedules", "pause", "s1"], ["schedules", "resume", "s1"], ["schedules", "delete", "s1"],
        ["queues", "pause", "shapes-1", "--reason", "x"], ["queues", "resume", "shapes-1"], ["show", "shape-1"], ["start", asleep, "--input-json", "3000"], ["signal", "shape-1", "hello", "--json-value", "1"],
        ["workers"], ["top", "--once"], ["migrate", "--dry-run"], ["stacks"], ["metrics", "list"], ["export", "shape-1", "shape-2"], ["cancel", "shape-1", "shape-2"],
        ["terminate", "shape-1", "shape-2"],
    ):  # fmt: skip
        made = command(live.database, *words, "--json", folder=tmp_path)
        name = " ".join(words) if " ".join(words) in pages else " ".join(words[:2]) if " ".join(words[:2]) in pages else words[0]
        if (found := shape(made.stdout) if made.stdout else made.stderr) != pages[name]:
            wrong.append(f"{' '.join(words)}: {found}, and the page says {pages[name]}")
    assert not wrong, "\n".join(wrong)
