"""Every example in README.md and docs/ is executed, and what the reference pages list is what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import ROOT, Database
from tests.pages import RUN, Pages, blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
SHORT = {"timestamp with time zone": "timestamptz", "double precision": "float8", "smallint": "int2", "integer": "int4", "bigint": "int8"}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the tests run apart from the clone")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_a_page_do_what_it_shows(page: Path, database: Database) -> None:
    """A reader types what stands there, from top to bottom, and sees what stands there."""
    if any(block.language in RUN for block in blocks(page)):
        Pages(database.dsn).run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


# ── the reference pages list what is there ───────────────────────────────────────────────────────────────────────


def section(page: str, heading: str) -> str:
    """The text of docs/*page* below *heading*, up to the next heading of its rank or a higher one."""
    text = (ROOT / "docs" / page).read_text()
    rank = len(heading) - len(heading.lstrip("#"))
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.search(rf"^#{{1,{rank}}} ", text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in *text*, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {at for at, line in enumerate(lines[1:]) if re.fullmatch(r"[|-]+", line)}
    return [[cell.strip() for cell in line.strip("|").split("|")] for at, line in enumerate(lines) if at not in heads and not re.fullmatch(r"[|-]+", line)]


def test_sql_reference_lists_the_views(database: Database) -> None:
    """Every view that a viewer may read, every column, its type and what its comment says."""
    views = database.sql(
        "select relname, obj_description(oid) from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'v' "
        "and has_table_privilege('supervisor_viewer', oid, 'select')"
    )
    assert {name for name, _ in views} == set(re.findall(r"^### (\w+)$", section("reference-sql.md", "## Views"), re.MULTILINE))
    for name, comment in views:
        told = section("reference-sql.md", f"### {name}")
        assert comment in told
        columns = database.sql(
            "select attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum) from pg_attribute "
            "where attrelid = ('supervisor.' || %s)::regclass and attnum > 0 order by attnum", name
        )  # fmt: skip
        assert rows(told) == [[column, SHORT.get(kind, kind), meaning] for column, kind, meaning in columns], name


def test_sql_reference_lists_the_reasons_for_waiting(database: Database) -> None:
    kinds = database.sql("select code, meaning, freed_by, who from supervisor.wait_kind order by id")
    assert rows(section("reference-sql.md", "## Reasons for waiting")) == [list(kind) for kind in kinds]


def test_sql_reference_lists_the_functions(database: Database) -> None:
    """Those that a client, viewer or operator may call, with what their comments say."""
    functions = database.sql(
        "select proname, obj_description(oid) from pg_proc where pronamespace = 'supervisor'::regnamespace "
        "and (has_function_privilege('supervisor_client', oid, 'execute') or has_function_privilege('supervisor_operator', oid, 'execute'))"
    )
    told = {signature.partition("(")[0]: what for signature, what in rows(section("reference-sql.md", "## Functions"))}
    assert told == dict(functions)


def test_api_reference_names_everything() -> None:
    """Every name that a user can import is on the page, in code or in a heading."""
    import supervisor.api
    import supervisor.sync

    told = set(re.findall(r"\w+", (ROOT / "docs" / "reference-api.md").read_text()))
    assert set(vars(supervisor.api)["__all__"]) | set(vars(supervisor.sync)["__all__"]) <= told


def test_api_reference_lists_the_errors_and_their_codes() -> None:
    import supervisor.api

    classes = [getattr(supervisor.api, name) for name in vars(supervisor.api)["__all__"]]
    errors = {one.__name__: one.code for one in classes if isinstance(one, type) and issubclass(one, (supervisor.api.SupervisorError, supervisor.api.Cancelled))}
    del errors["SupervisorError"]
    assert {name: code for name, code, _ in rows(section("reference-api.md", "## Errors"))} == errors


def test_operations_lists_the_exit_codes() -> None:
    from supervisor.cli.main import EXIT_CODES

    assert rows(section("operations.md", "## Exit codes")) == [list(pair) for pair in re.findall(r"^ +(\d+) +(.+)$", EXIT_CODES, re.MULTILINE)]


def test_operations_lists_the_options_of_run() -> None:
    from supervisor.cli.run import run

    told = {cells[0].strip("`").split()[0] for cells in rows(section("operations.md", "## Running workers")) if cells[0].startswith("`--")}
    assert told == {option for parameter in run.params for option in parameter.opts} - {"--dsn", "--schema"}


def test_limits_are_those_of_the_code() -> None:
    """A limit in the docs that the code does not have is worse than none."""
    from supervisor.api import asked
    from supervisor.core import codec
    from supervisor.core.settings import Settings
    from supervisor.db import connect, partitions, step_session
    from supervisor.engine import taking, transactional

    told = dict(rows(section("operations.md", "## Sizes and limits")))
    assert told["one payload (input, result)"] == f"{codec.PAYLOAD_MAX_BYTES >> 20} MiB of JSON, {codec.DEPTH_MAX} levels"
    assert told["an error as it is stored"] == f"{codec.ERROR_MAX_BYTES >> 10} KiB, {codec.CAUSES_MAX} causes"
    assert told["a key"].startswith(f"{asked.KEY_MAX} characters")
    assert told["`start_many`"].startswith(f"{asked.CHUNK_RUNS:,} runs")
    assert told["runs in memory"].startswith(f"{Settings().in_flight:,} per worker")
    assert told["transactional steps that share a transaction"].startswith(f"{transactional.SHARED_MAX}; each statement waits {step_session.LOCK_TIMEOUT[:-2]} ms")
    assert told["a statement of a transactional step"].startswith(f"{int(connect._PROFILES['tx']['statement_timeout']) // 60_000} minutes")
    assert partitions.DAYS_AHEAD == 7 and "a week ahead" in told["partitions"]
    assert taking.CLAIMS_MAX == 10 and "ten times without getting one step further" in (ROOT / "docs" / "operations.md").read_text()


def test_readme_is_short_and_has_a_place_for_the_figures() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 560
    assert text.count("<!-- figures -->") == 1
