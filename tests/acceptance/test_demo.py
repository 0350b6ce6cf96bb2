"""`demo` from outside: real processes killed, the JSON compared with what SQL says, and everything that must make it fail."""

from __future__ import annotations

import ast
import email
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.demo import expected
from tests.harness import ROOT, Database, eventually

KEYS = "files runs steps retries kills killed_in_step reclaimed_ms_max booked expected equal seconds".split()
SUM = "select coalesce(sum(lines + functions + complexity + imports), 0)::int8 from public.pgsupervisor_demo"
ODD = {
    "broken.py": b"def f(:\n    pass\n",
    "empty.py": b"",
    "latin.py": b"# -*- coding: latin-1 -*-\nname = '\xe9'\n",
    "mac.py": b"import os\rimport re\r",
    "not_text.py": b"\xff\xfe\x00import os\n",
    "nul.py": b"x = 1\0\n",
    "unended.py": b"import os",
    "unknown_coding.py": b"# coding: klingon\nimport os\n",
}
KNOWN = b"""import os
from re import compile

async def one(a):
    for each in a:
        if each and a or os:
            return [b for b in a if b]

def two():
    try:
        assert one
    except ValueError:
        pass
"""  # lines 13, functions 2, imports 2, complexity 2 + for, if, and, or, comprehension, assert, except


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some forty files: ordinary ones, and one of every odd kind."""
    made = tmp_path / "files"
    shutil.copytree(Path(email.__file__).parent, made, ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in ODD.items():
        (made / name).write_bytes(source)
    (made / "known.py").write_bytes(KNOWN)
    (made / "folder.py").mkdir()
    return made


def environment(database: Database) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}


def demo(database: Database, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "supervisor", "demo", "--path", str(folder), "--procs", "2", *more]
    return subprocess.run(words, cwd=folder, env=environment(database), capture_output=True, text=True, timeout=120)


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout.count("\n") == 1, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_demo_kills_three_workers_inside_steps_and_books_every_file_once(database: Database, folder: Path) -> None:
    """The main job, and each figure of it counted again from outside."""
    done = demo(database, folder, "--json")
    found = figures(done)
    files = [path for path in folder.rglob("*.py") if path.is_file()]
    assert done.returncode == 0, (found, done.stderr[-2000:])
    assert list(found) == KEYS
    assert found["files"] == len(files) and found["runs"] == len(files) + 1 and found["steps"] == 5 * len(files)
    assert found["kills"] == found["killed_in_step"] == 3
    assert found["equal"] is True and found["booked"] == found["expected"] == database.one(SUM)
    # the table has each file once, and the history agrees
    assert database.sql("select path from public.pgsupervisor_demo order by path") == [(str(path),) for path in sorted(files, key=str)]
    assert database.one("select count(*) from supervisor.runs where status = 'completed'") == found["runs"]
    assert database.one("select count(*) from supervisor.steps where kind = 'step'") == found["steps"]
    assert database.one("select count(*) from supervisor.attempts where kind = 'failed'") == found["retries"] > 0
    # three processes died of SIGKILL, and a run of each was finished by another
    assert database.one("select count(*) from supervisor.workers where death like '%%signal 9%%'") == 3
    assert 0 < found["reclaimed_ms_max"] < 10_000
    # the rules, by hand
    columns = "lines, functions, complexity, imports"
    assert database.sql(f"select {columns} from public.pgsupervisor_demo where path like '%%/known.py'") == [(13, 2, 9, 2)]
    assert database.sql(f"select {columns} from public.pgsupervisor_demo where path like '%%/broken.py'") == [(2, 0, 0, 0)]


def test_second_demo_clears_its_own_table_and_no_history(database: Database, folder: Path) -> None:
    """What one demo did stays to be looked at; what it booked does not add up with the next."""
    first = figures(demo(database, folder, "--json", "--limit", "12"))
    second = figures(demo(database, folder, "--json", "--limit", "1"))
    assert first["equal"] and second["equal"]
    assert second["killed_in_step"] == 3, "one file alone is enough work for three kills"
    assert database.one("select count(*) from public.pgsupervisor_demo") == 1
    assert database.one("select count(*) from supervisor.runs") == first["runs"] + second["runs"]


def test_runs_of_an_interrupted_demo_do_not_book_into_the_next(database: Database, folder: Path) -> None:
    """^C leaves runs behind. The next demo's workers meet them and must not count them."""
    words = [sys.executable, "-m", "supervisor", "demo", "--path", str(folder), "--procs", "2", "--json"]
    (folder / "zz_slow.py").write_bytes(b"x = [" + b"1 + 1, " * 60_000 + b"]\n")
    made = "select to_regclass('public.pgsupervisor_demo') is not null"
    with subprocess.Popen(words, env=environment(database), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: database.one(made) and database.one(SUM), 60, "a first booking")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert database.one("select count(*) from supervisor.runs where ended_at is null") > 0
    done = demo(database, folder, "--json", "--limit", "20")
    assert done.returncode == 0 and figures(done)["equal"], done.stdout
    assert database.one("select count(*) from public.pgsupervisor_demo") == 20


def test_demo_fails_when_the_sums_differ(database: Database, folder: Path) -> None:
    """The proof is one only if it can fail: here a trigger books one line too many."""
    assert demo(database, folder, "--json", "--limit", "3").returncode == 0
    database.sql(
        "create function public.lie() returns trigger language plpgsql as $$ begin new.lines := new.lines + 1; return new; end $$;"
        "create trigger lie before insert on public.pgsupervisor_demo for each row execute function public.lie()"
    )
    done = demo(database, folder, "--json", "--limit", "3")
    assert done.returncode == 1
    assert figures(done)["equal"] is False and figures(done)["booked"] == figures(done)["expected"] + 3


def test_demo_says_little_and_what_to_type_next(database: Database, folder: Path) -> None:
    """At most 15 lines besides the progress; the lines under `next` work as they stand."""
    done = demo(database, folder, "--limit", "10")
    lines = [line for line in (done.stderr + done.stdout).splitlines() if not re.search(r"of .* files, .*/s", line)]
    assert done.returncode == 0 and len(lines) <= 15, lines
    at = lines.index("exactly once")
    assert lines[at + 1].split()[0] == "expected" and lines[at + 2].split()[0] == "booked" and lines[at + 2].endswith("equal")
    commands = [line.removeprefix("next:").strip() for line in lines[at + 3 :]]
    assert len(commands) == 5
    show, listing, psql = commands[:3]
    shown = subprocess.run(["/bin/sh", "-c", show], env=environment(database), capture_output=True, text=True)
    assert shown.returncode == 0 and "measure_file" in shown.stdout
    listed = subprocess.run(["/bin/sh", "-c", listing], env=environment(database), capture_output=True, text=True)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) >= 5
    query = re.search(r'-c "(.*)"$', psql)
    assert query is not None and len(database.sql(query[1])) == 9


def test_demo_never_migrates_a_database_that_is_not_embedded(database: Database, folder: Path) -> None:
    """Somebody's database is changed by the command that says so."""
    database.sql("drop schema supervisor cascade")
    done = demo(database, folder, "--limit", "1")
    assert done.returncode == 75
    assert "python -m supervisor migrate" in done.stderr
    assert database.one("select to_regnamespace('supervisor') is null")


def test_demo_leaves_a_table_alone_that_it_did_not_make(database: Database, folder: Path) -> None:
    """It clears its table, so it must know that it is its own."""
    database.sql("create table public.pgsupervisor_demo as select 1 as mine")
    done = demo(database, folder, "--limit", "1")
    assert done.returncode == 1 and "was not made by the demo" in done.stderr
    assert database.one("select mine from public.pgsupervisor_demo") == 1


def test_expected_is_computed_without_the_engine() -> None:
    """Nothing that could be wrong in the engine or in the app can be wrong in the same way in what it is compared with."""
    source = Path(expected.__file__).read_text()
    imported = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names and not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(source)))
    assert expected.measured(KNOWN) == (13, 2, 9, 2)
