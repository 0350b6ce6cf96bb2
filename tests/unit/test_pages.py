"""The comparison of documentation pages with what really comes out: loose where it may be, and no further."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import Comparison, blocks, check_machine_command, plain

ONE, TWO, OTHER = (f"01a20372-5082-702e-8dae-5c638c47{n:04d}" for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("shown", "actual"),
    [
        ("started 8.3 s ago, queue default", "started 2 min 10 s ago, queue default"),
        ("since now", "since 17 µs ago"),
        ("freed at 2026-11-22 13:29:10", "freed at 2030-01-01T00:00:00.123456Z"),
        ("a   b", "a b    "),
        ("-----+---", "----------------+---------"),
        ("worker … is up", "worker 1 (pid 32072) is up"),
        (f"run {ONE} of checkout", f"run {OTHER} of checkout"),
    ],
)
def test_what_differs_from_run_to_run_may_differ(shown: str, actual: str) -> None:
    assert Comparison().shows([shown], [actual])


@pytest.mark.parametrize(
    ("shown", "actual"),
    [
        (["completed"], ["failed"]),
        (["3"], ["4"]),
        (["42"], ["142"]),
        (["completed"], ["completed with errors"]),
        (["second", "first"], ["first", "second"]),
        (["one", "one"], ["one"]),
        (["one"], []),
        ([f"run {ONE}"], ["run -"]),
    ],
)
def test_what_was_said_must_be_said(shown: list[str], actual: list[str]) -> None:
    assert not Comparison().shows(shown, actual)


def test_lines_may_stand_between_those_that_are_shown() -> None:
    assert Comparison().shows(["first", "…", "last"], ["noise", "first", "second", "last", "noise"])


def test_a_run_id_stands_for_the_same_run_from_then_on() -> None:
    same = Comparison()
    assert same.shows([ONE], [OTHER])
    assert same.real(f"show {ONE}") == f"show {OTHER}"
    assert same.shows([f"run {ONE}"], [f"run {OTHER}"])
    assert not same.shows([f"run {ONE}"], [f"run {TWO}"])


def test_nothing_is_learnt_from_lines_that_did_not_fit() -> None:
    same = Comparison()
    assert not same.shows([ONE, "the end"], [OTHER])
    assert not same.ids


def test_tables_of_psql_and_ours_compare() -> None:
    assert plain("   key    | step | seq ") == plain("key | step | seq")


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_of_a_page(tmp_path: Path) -> None:
    found = blocks(page(tmp_path, "a\n```python file=shop.py\nx = 1\n```\n<!--\n```sql\nselect 1\n```\n-->\n"))
    assert [(block.language, block.file, block.text, block.line) for block in found] == [("python", "shop.py", "x = 1", 2), ("sql", "", "select 1", 6)]


@pytest.mark.parametrize("text", ["```python skip\nx\n```", "```python\nx", "````\nx\n````"])
def test_a_block_that_would_not_be_run_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(AssertionError):
        blocks(page(tmp_path, text))


@pytest.mark.parametrize("line", ["make nothing", "pip install 'pgsupervisor[nothing]'", "rm -rf x", "python -m supervisor run"])
def test_a_machine_command_that_is_not_there_is_refused(line: str) -> None:
    with pytest.raises(AssertionError):
        check_machine_command(line)


@pytest.mark.parametrize("line", ["make demo   # twice", "pip install '.[binary,embedded]'", 'make bench ARGS="steps --runs 5"', ""])
def test_a_machine_command_that_is_there_is_accepted(line: str) -> None:
    check_machine_command(line)
