"""A worker that the kernel kills for memory: no step is charged with it, for the kernel chooses the largest process and not the guilty one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import Client
from tests.apps import hungry
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.hungry"
LIMIT_BYTES = 384 << 20  # a parent and a worker of ours take 120 MB
EATEN_MB = 1024

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def own_group() -> tuple[Path, str]:
    """The memory group of this process, and the file that limits one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return V1 / path.lstrip("/"), "memory.limit_in_bytes"
    return V2 / path.lstrip("/"), "memory.max"  # the one line that there is then


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory group below this process's own, with a limit; skipped where none can be made."""
    above, limit = own_group()
    made = above / f"pgsupervisor-test-{uuid.uuid4().hex[:8]}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no memory group can be made below {above}: {error.strerror}")
    try:
        if not (made / limit).exists():
            pytest.skip(f"groups below {above} have no memory controller")
        (made / limit).write_text(str(LIMIT_BYTES))
        for name, value in (("memory.memsw.limit_in_bytes", str(LIMIT_BYTES)), ("memory.swap.max", "0")):  # else it would be swapped out, and not killed
            if (made / name).exists():
                (made / name).write_text(value)
        yield made
    finally:
        eventually(lambda: not (made / "cgroup.procs").read_text(), 30, f"{made} to be empty")
        made.rmdir()


@pytest.fixture
def host(group: Path, hosts: HostFactory) -> Iterator[Host]:
    """A host in that group, parent and workers."""
    enter = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
    host = hosts.start(APP, procs=1, before=enter).wait_up(1)
    yield host
    host.stop()


def killed_for_memory(group: Path) -> int:
    """By the kernel's own count."""
    for name in ("memory.oom_control", "memory.events"):
        if (group / name).exists():
            facts = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(facts["oom_kill"])
    raise AssertionError(f"{group} counts no kills")


def test_nobody_is_charged_with_a_death_for_want_of_memory(host: Host, group: Path, database: Database, effects: Effects) -> None:
    """Two execute, and both go on: what ate too much may have less beside it the next time."""
    with Client(database.dsn) as client:
        neighbour = client.start(hungry.beside_the_hungry)
        eventually(lambda: effects.count("beside"), 30)
        run = client.start(hungry.hungry, EATEN_MB, 1)
        eventually(lambda: killed_for_memory(group) == 1, 60, "the kernel to kill the worker")
        assert run.result(timeout=60) == EATEN_MB
        effects.open("enough")
        assert neighbour.result(timeout=60) == "done"
    assert effects.count("eat") == 2 and len({pid for _, pid in effects.lines("eat")}) == 2
    assert database.sql("select * from supervisor.attempt") == []
    assert host.pid in map(int, (group / "cgroup.procs").read_text().split()), "the parent was spared"


def test_the_only_one_that_executes_is_not_charged_either(host: Host, group: Path, database: Database, effects: Effects) -> None:
    """It would be with any other SIGKILL, and parked as poison after the third; the kernel has no opinion of who is to blame."""
    effects.path.write_text("nothing\n")
    with Client(database.dsn) as client:
        run = client.start(hungry.hungry, EATEN_MB, 4)
        assert run.result(timeout=120) == EATEN_MB
    assert killed_for_memory(group) == 4 == effects.count("eat") - 1
    assert database.sql("select * from supervisor.attempt") == []
