"""Files: a run of every record, from the command line; bad records are told, a repeated file starts nothing twice, results come back in order."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from supervisor import Client
from supervisor.cli.progress import Progress
from tests.harness import ROOT, Database, Effects, HostFactory, Server, eventually

APP = "tests.apps.records"


class Program:
    """The command line on one database, in a folder of its own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn, "TEST_EFFECTS": str(folder / "effects")}

    def begin(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "supervisor", *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def __call__(self, *words: str, given: bytes = b"", code: int = 0) -> tuple[str, str]:
        process = self.begin(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(given, timeout=120)
        assert process.returncode == code, f"{words}: exit code {process.returncode}\n{out.decode()}\n{err.decode()}"
        return out.decode(), err.decode()

    def json(self, *words: str, given: bytes = b"", code: int = 0) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self(*words, "--json", given=given, code=code)[0])
        return facts

    def write(self, name: str, records: Iterable[Any]) -> str:
        lines = b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in records)
        (self.folder / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        return name

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def program(database: Database, hosts: HostFactory, tmp_path: Path) -> Program:
    """With the workflows of the app registered by a host that is gone again."""
    with hosts(APP):
        pass
    return Program(database, tmp_path)


def inputs(database: Database) -> list[Any]:
    """Inputs of all runs, in the order of their ids."""
    return [json.loads(bytes(stored)) for (stored,) in database.sql("select input from supervisor.run order by run_id")]


def sales(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"id": at, "cents": at + 100} for at in range(first, first + n)]


# ── what a record becomes ────────────────────────────────────────────────────────────────────────────────────────


def test_json_lines_start_a_run_each_in_order(program: Program, database: Database) -> None:
    """12,000 records take three chunks; their runs lie in the order of the file, however the records are written."""
    records = sales(12_000)
    path = program.write("sales.jsonl", [b"\xef\xbb\xbf", b'{ "id" : 0,\t"cents":100 }\r\n', b"\n", *records[1:-1], json.dumps(records[-1]).encode()])
    facts = program.json("start", "sell", "--input", path)
    assert (facts["records"], facts["created"], facts["rejected"], facts["line"]) == (12_000, 12_000, 0, 12_001)
    assert inputs(database) == [{"sale": each} for each in records]
    assert database.one("select count(*) from supervisor.task") == 12_000


@pytest.mark.parametrize("name, extra", [("sales.ndjson", []), ("sales.jsonl.gz", []), ("sales.data", ["--format", "jsonl"]), ("-", [])])
def test_a_file_comes_in_any_dress(program: Program, database: Database, name: str, extra: list[str]) -> None:
    given = b""
    if name == "-":
        given = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in sales(7)))  # packed is seen by its first bytes
    else:
        program.write(name, sales(7))
    assert "7 records" in program("start", "sell", "--input", name, *extra, given=given)[0]
    assert inputs(database) == [{"sale": each} for each in sales(7)]


def test_an_unknown_suffix_is_asked_about(program: Program, database: Database) -> None:
    program.write("sales.data", sales(1))
    assert "--format jsonl or --format csv" in program("start", "sell", "--input", "sales.data", code=2)[1]
    assert "--input-json" in program("start", "sell", "--input", '{"id": 1}', code=2)[1]
    assert inputs(database) == []


def test_numbers_keep_their_digits_and_members_their_order(program: Program, database: Database) -> None:
    """A record goes through as it is written: nothing is rounded on the way. Members of several parameters come in one order, so that a key's hash is one."""
    path = program.write("words.jsonl", [b'{"word": "a", "id": "1"}\n', b'{"times": 12345678901234567890123, "id": "2", "word": "b"}\n', b'{"times": 0.10000000000000000555, "id": "3", "word": "c"}\n'])
    program("start", "stamp", "--input", path)
    stored = [bytes(each) for (each,) in database.sql("select input from supervisor.run order by run_id")]
    assert stored == [b'{"id":"1","word":"a"}', b'{"id":"2","word":"b","times":12345678901234567890123}', b'{"id":"3","word":"c","times":0.10000000000000000555}']


def test_csv_by_names_and_by_types(program: Program, database: Database) -> None:
    """Without the app a cell is JSON where it can be read so, unless its parameter takes text alone; with it, what the parameter's type says. Empty cells are left out."""
    path = program.write("words.csv", [b"\xef\xbb\xbfid,word,times\r\n", b'"007","two\r\nlines, ""x""",\r\n', b"8,true,3\r\n", b"12345678901234567890,x,1\r\n"])
    program("start", "stamp", "--input", path)
    program("start", "stamp", "--input", path, "--app", APP)
    told = [{"id": "007", "word": 'two\r\nlines, "x"'}, {"id": "8", "word": "true", "times": 3}, {"id": "12345678901234567890", "word": "x", "times": 1}]
    assert inputs(database) == told * 2


def test_records_that_name_the_only_parameter_are_by_name_where_its_value_is_no_object(program: Program, database: Database) -> None:
    """Half the world writes {"word": "hi"}; before, each of them was a run that failed."""
    path = program.write("words.jsonl", [{"word": "hi"}, "ho", {"word": 5}, {"wrod": "hi"}])
    told, said = program("start", "repeat_word", "--input", path, code=1)
    assert "2 created, 2 rejected" in told and 'as {"word": …}, were read by name' in said
    assert "line 3, $.word: expected text, got a number" in said and "line 4, $: expected text, got an object" in said
    program.write("typed.jsonl", [{"word": "hi"}, {"word": 5}])
    assert "line 2, $.word: Expected `str`, got `int`" in program("start", "repeat_word", "--input", "typed.jsonl", "--app", APP, code=1)[1]
    program("start", "repeat_word", "--input-json", '{"word": "hi"}')
    program("start", "repeat_word", "word=5")
    assert "parameter 'word': expected text, got a number" in program("start", "repeat_word", "--input-json", "5", code=2)[1]
    assert inputs(database) == [{"word": "hi"}, {"word": "ho"}, {"word": "hi"}, {"word": "hi"}, {"word": "5"}]
    path = program.write("sales.jsonl", [{"sale": {"id": 1, "cents": 2}}, {"id": 1, "cents": 3}, {"sale": {"id": 1}}])
    assert "line 3, $.sale: 'cents' is required but not given" in program("start", "sell", "--input", path, code=1)[1]
    assert inputs(database)[5:] == [{"sale": {"id": 1, "cents": 2}}, {"sale": {"id": 1, "cents": 3}}]


def test_csv_of_a_single_parameter(program: Program, database: Database) -> None:
    """Its columns are the fields of the record; one column of the parameter's name is its value; an array stands in a cell as JSON."""
    program.write("sales.csv", [b"id,cents,positions,day\n", b'1,5,"[{""sku"":""a"",""quantity"":2}]",2026-11-22\n', b"2,6,,\n"])
    program.write("one.csv", [b"word\n", b"12\n"])
    program("start", "sell", "--input", "sales.csv", "--app", APP)
    program("start", "repeat_word", "--input", "one.csv", "--app", APP)
    first, second, word = inputs(database)
    assert first == {"sale": {"id": 1, "cents": 5, "positions": [{"sku": "a", "quantity": 2}], "day": "2026-11-22"}}
    assert (second["sale"]["id"], second["sale"]["cents"], word) == (2, 6, {"word": "12"})


def test_who_waits_is_told_why_it_takes_so_long(program: Program, database: Database) -> None:
    """Without a worker it would be silence for ever; the reason is said once, in the words of `show`, and again when it is another."""
    out, said = program("start", "repeat_word", "word=a", "--wait", "--timeout", "8", code=124)
    assert said.count("no worker of this schema is alive") == 1 and "what frees it: " in said and "who can act: " in said and "within 8 s" in said, said
    with Client(database.dsn) as client:
        client.pause_queue("default", "not now")
    assert "python -m supervisor queues resume default" in program("start", "repeat_word", "word=b", "--wait", "--timeout", "7", code=124)[1]
    assert "--timeout belongs to --wait" in program("start", "repeat_word", "word=c", "--timeout", "4", code=2)[1]
    assert len(inputs(database)) == 2


def test_a_misspelt_workflow_is_told_the_nearest_that_is_known(program: Program) -> None:
    program.write("words.jsonl", ["a"])
    for words in (["word=a"], ["--input", "words.jsonl"]):
        assert "did you mean 'repeat_word'?" in program("start", "repeat_wrod", *words, code=1)[1]


# ── what is wrong with records ───────────────────────────────────────────────────────────────────────────────────

BAD = [  # what stands on a line, path, a word of the reason
    (b'{"id": 1, "word": "a"', "$", "not JSON"),
    (b'{"id": 1, "word": "\xff"}', "$", "utf-8"),
    (b"[1, 2]", "$", "an object with the parameters id, word, times"),
    (b'{"id": "1"}', "$.word", "required"),
    (b'{"id": "1", "word": "a", "wrod": 1}', "$.wrod", "not one of the parameters"),
    (b'{"id": "1", "word": "a\\u0000"}', "$['word']", "NUL"),
    (b'{"id": "1", "word": ' + b"[" * 80 + b"]" * 80 + b"}", "$['word'][0]", "deeper"),
    (b'{"id": "1", "word": 1e999}', "$", "range"),
    (b'{"id": "1", "word": "' + b"x" * (2 << 20) + b'"}', "$", "more than"),
    (b'{"id": "1", "word": "' + b"x" * (5 << 20) + b'"}', "$", "longer than"),
    (b'{"id": null, "word": "a"}', "$.id", "expected text, got null"),
    (b'{"id": "1", "word": "a", "times": "\x1b[31m"}', "$", "not JSON"),
]  # fmt: skip


def test_bad_records_are_told_by_line_and_path_and_the_others_go_on(program: Program, database: Database) -> None:
    """One bad line in a million must not stop the night's load, nor be lost among the rest."""
    good = [json.dumps({"id": str(at), "word": "w"}).encode() for at in range(len(BAD) + 1)]
    path = program.write("words.jsonl", [b"\n".join([good[0], *(line for bad, after in zip(BAD, good[1:], strict=True) for line in (bad[0], after))]), b"\n"])
    facts = program.json("start", "stamp", "--input", path, "--key-field", "id", "--rejects", "bad.jsonl", code=1)
    assert (facts["created"], facts["rejected"], facts["rejects"]) == (len(BAD) + 1, len(BAD), "bad.jsonl")
    assert [each["id"] for each in inputs(database)] == [str(at) for at in range(len(BAD) + 1)]
    for at, (reject, (line, where, why)) in enumerate(zip(program.lines("bad.jsonl"), BAD, strict=True)):
        assert reject["line"] == 2 * at + 2, reject["error"]
        assert reject["path"].startswith(where) and why.lower() in reject["error"].lower(), (reject["path"], reject["error"])
        assert json.dumps(reject["record"]) if at in (2, 3, 4) else reject["record"], line


def test_types_are_checked_where_the_app_is_imported(program: Program, database: Database) -> None:
    """The path is one into the record, and a terminal is never given what stands in the file."""
    path = program.write("sales.jsonl", [*sales(1), {"id": 1, "cents": "x"}, {"id": 2, "cents": 1, "positions": [{"sku": "a"}, {"sku": 5}]}, {"cents": 1}])
    said = program("start", "sell", "--input", path, "--app", APP, code=1)[1]
    assert "line 2, $.cents: Expected `int`, got `str`" in said and "line 3, $.positions[1].sku:" in said and "line 4, $: Object missing" in said
    assert len(inputs(database)) == 1
    program.write("odd.jsonl", [{"id": 1, "cents": 1, "\x1b[31mred": 1}])
    program.write("odd.csv", [b"id,cents\n1,2\n3\n4,\xff\n5,6,7\n"])
    said = program("start", "sell", "--input", "odd.csv", "--rejects", "bad.jsonl", code=1)[1]
    assert "line 3, $: 1 cells below 2 columns" in said and "line 4, $.cents: bytes that are not UTF-8" in said
    assert [each["record"] for each in program.lines("bad.jsonl")] == [{"id": "3"}, {"id": "4", "cents": "\\udcff"}, {"id": "5", "cents": "6", "column 3": "7"}]
    assert "\x1b" not in program("start", "stamp", "--input", "odd.jsonl", code=1)[1]


def test_a_head_that_does_not_fit_ends_it_at_once(program: Program, database: Database) -> None:
    for head, why in ((b"id,wrod", "$.wrod"), (b"id", "$.word"), (b"id,word,id", "twice"), (b"id,,word", "no name")):
        program.write("words.csv", [head + b"\n1,a\n"])
        assert why in program("start", "stamp", "--input", "words.csv", code=2)[1]
    assert inputs(database) == []


def test_strict_ends_at_the_first_bad_record(program: Program, database: Database) -> None:
    """All before it are started, none after it; the error names the line."""
    path = program.write("sales.jsonl", [*sales(6_000), b"nonsense\n", *sales(6_000, 6_000)])
    out, err = program("start", "sell", "--input", path, "--strict", "--json", code=2)
    assert "sales.jsonl, line 6001, $: not JSON" in err
    facts = json.loads(out)
    assert (facts["created"], facts["line"], facts["error"]["code"]) == (6_000, 6_001, "record_refused")
    assert inputs(database) == [{"sale": each} for each in sales(6_000)]


def test_a_damaged_file_is_read_as_far_as_it_goes(program: Program, database: Database) -> None:
    whole = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in sales(20_000)))
    (program.folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    out, err = program("start", "sell", "--input", "cut.jsonl.gz", "--json", code=2)
    facts = json.loads(out)
    assert facts["error"]["code"] == "file_damaged" and "can't be read after line" in err
    assert 0 < facts["created"] == facts["line"] == len(inputs(database)) < 20_000


def test_what_the_server_refuses_is_an_error_and_not_a_success(program: Program, database: Database) -> None:
    """Also when it was the only chunk: a load that stored nothing must never end with exit code 0."""
    for many in (3, 12_000):
        path = program.write("sales.jsonl", sales(many))
        out, err = program("start", "sell", "--input", path, "--batch", "b" * 600, "--json", code=2)
        facts = json.loads(out)
        assert (facts["created"], facts["line"], facts["error"]["code"]) == (0, 0, "input_invalid") and "batch" in err
    assert inputs(database) == []


def test_rejects_never_overwrite_the_input(program: Program) -> None:
    path = program.write("sales.jsonl", sales(1))
    os.link(program.folder / path, program.folder / "same.jsonl")
    assert "names the input" in program("start", "sell", "--input", path, "--rejects", "same.jsonl", code=2)[1]
    assert program.lines(path) == sales(1)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeated_file_starts_nothing_twice(program: Program, database: Database) -> None:
    """Created, existing and mismatched are counted; a record with another input under its key is a reject with its reason."""
    path = program.write("sales.jsonl", sales(6_000))
    assert program.json("start", "sell", "--input", path, "--key-field", "id")["created"] == 6_000
    # when it is repeated with three more records, written otherwise, one changed and one twice
    again = [b'{"cents" : 5, "id":7}\n', *(b'{"id":%d,  "cents":%d}\n' % (each["id"], each["cents"]) for each in sales(6_003) if each["id"] != 7)]
    path = program.write("again.jsonl", [*again, {"id": 6_002, "cents": 6_102}])
    facts = program.json("start", "sell", "--input", path, "--key-field", "id", "--rejects", "bad.jsonl", code=1)
    assert (facts["created"], facts["existing"], facts["mismatched"], facts["rejected"]) == (3, 6_000, 1, 0)
    [reject] = program.lines("bad.jsonl")
    assert (reject["line"], reject["code"], reject["record"]) == (1, "key_mismatch", {"cents": 5, "id": 7})
    assert sorted(each["sale"]["id"] for each in inputs(database)) == list(range(6_003))


def test_on_conflict(program: Program, database: Database) -> None:
    """reject refuses the records one by one; replace ends the old run and starts another."""
    path = program.write("sales.jsonl", sales(3))
    program("start", "sell", "--input", path, "--key-field", "id")
    path = program.write("sales.jsonl", sales(5))
    facts = program.json("start", "sell", "--input", path, "--key-field", "id", "--on-conflict", "reject", "--rejects", "bad.jsonl", code=1)
    assert (facts["created"], facts["rejected"]) == (2, 3)
    assert [each["code"] for each in program.lines("bad.jsonl")] == ["key_exists"] * 3
    facts = program.json("start", "sell", "--input", path, "--key-field", "id", "--on-conflict", "replace")
    assert (facts["created"], facts["existing"]) == (5, 0)
    assert database.sql("select status, count(*) from supervisor.runs group by 1 order by 1") == [("ready", 5), ("terminated", 5)]


def statuses(database: Database) -> dict[str, list[str]]:
    """Of every key the statuses of its runs, in the order of their starts; the last is the one that the key names."""
    named = dict(database.sql("select key, run_id from supervisor.keys"))
    found: dict[str, list[tuple[Any, str]]] = {}
    for key, run_id, status in database.sql("select key, run_id, status from supervisor.runs order by run_id"):
        found.setdefault(key, []).append((run_id, status))
    assert {key: runs[-1][0] for key, runs in found.items()} == named
    return {key: [status for _, status in runs] for key, runs in found.items()}


def test_what_failed_is_started_again_when_its_record_was_mended(program: Program, hosts: HostFactory, database: Database, effects: Effects) -> None:
    """The night's load, the morning after: the whole file again, with what was wrong put right; what completed is not executed again."""
    records = sales(40)
    records[3]["cents"], records[30]["cents"] = -1, 13
    with hosts(APP):
        path = program.write("sales.jsonl", records)
        words = ("start", "sell", "--key-field", "id", "--batch", "monday", "--wait", "--input", path)
        facts = program.json(*words, code=1)
        assert facts["by_status"] == {"completed": 38, "failed": 2}
        # the same again does not help, and changes nothing
        facts = program.json(*words, code=1)
        assert (facts["created"], facts["existing"], facts["by_status"]) == (0, 40, {"completed": 38, "failed": 2})
        # mended, but the policy is to return what there is: another input of a key is a reject
        records[3]["cents"], records[30]["cents"] = 5, 6
        program.write(path, records)
        facts = program.json(*words, code=1)
        assert (facts["existing"], facts["mismatched"], facts["by_status"]) == (38, 2, {"completed": 38})
        # restart_failed starts the two again, with their new inputs
        facts = program.json(*words, "--on-conflict", "restart_failed")
        assert (facts["created"], facts["existing"], facts["mismatched"], facts["by_status"]) == (2, 38, 0, {"completed": 40})
        # and nothing when all is well
        facts = program.json(*words, "--on-conflict", "restart_failed")
        assert (facts["created"], facts["existing"]) == (0, 40)
    found = statuses(database)
    assert found.pop("3") == found.pop("30") == ["failed", "completed"] and set(map(tuple, found.values())) == {("completed",)}
    assert effects.count("charge_sale", 3) == effects.count("charge_sale", 30) == 2 and len(effects.lines("charge_sale")) == 42
    # the batch has all that were started in it: the mended ones at the end
    assert [each["key"] for each in map(json.loads, program("results", "--batch", "monday")[0].splitlines())][-2:] == ["3", "30"]


def test_restart_failed_of_what_was_ended_from_outside_and_what_lives(program: Program, database: Database) -> None:
    """Cancelled and terminated count as failed; a run that lives is the answer, and another input of it a mismatch."""
    path = program.write("sales.jsonl", sales(4))
    words = ("start", "sell", "--key-field", "id", "--input", path)
    program(*words)
    program("cancel", "1")
    program(*words, "--on-conflict", "replace")  # 0, 2 and 3 lived and are terminated
    program("cancel", "3")
    records = sales(4)
    records[2]["cents"] = 7
    program.write(path, records)
    facts = program.json(*words, "--on-conflict", "restart_failed", "--rejects", "bad.jsonl", code=1)
    assert (facts["created"], facts["existing"], facts["mismatched"]) == (1, 2, 1)
    assert [(each["line"], each["code"]) for each in program.lines("bad.jsonl")] == [(3, "key_mismatch")]
    assert statuses(database) == {"0": ["terminated", "ready"], "1": ["cancelled", "ready"], "2": ["terminated", "ready"], "3": ["terminated", "cancelled", "ready"]}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_key_that_is_twice_in_one_file(program: Program, database: Database, form: str) -> None:
    """In one chunk: with the same input it is one run, with another the second is a mismatch; replace starts both and ends the first."""
    lines = {"jsonl": [{"id": 1, "cents": 5}, {"id": 2, "cents": 6}, {"id": 1, "cents": 5}], "csv": [b"id,cents\n1,5\n2,6\n1,5\n"]}[form]
    path = program.write(f"sales.{form}", lines)
    words = ("start", "sell", "--key-field", "id", "--input", path)
    facts = program.json(*words)
    assert (facts["created"], facts["existing"]) == (2, 1)
    facts = program.json(*words, "--on-conflict", "reject", "--rejects", "bad.jsonl", code=1)
    assert (facts["created"], facts["rejected"]) == (0, 3)
    facts = program.json(*words, "--on-conflict", "replace")
    assert facts["created"] + facts["existing"] == 3
    assert database.one("select count(*) from supervisor.task") == 2, "never two live runs of one key"


def test_one_start_says_what_became_of_its_key(program: Program, hosts: HostFactory, database: Database) -> None:
    """The same policies for a single start: return, reject, replace, restart_failed, in JSON and in words."""
    words = ("start", "sell", "id=1", "--key", "k")
    first = program.json(*words, "cents=-1")
    assert first["created"] is True
    again = program.json(*words, "cents=-1")
    assert (again["run_id"], again["created"]) == (first["run_id"], False)
    assert "named this run already" in program(*words, "cents=-1")[1]
    said = program(*words, "cents=-1", "--on-conflict", "reject", code=1)[1]
    assert first["run_id"] in said and len(said.splitlines()) <= 3
    said = program(*words, "cents=5", code=1)[1]
    assert "another input" in said and len(said.splitlines()) <= 3
    with hosts(APP):
        assert "cents" in program(*words, "cents=-1", "--wait", code=1)[1]
        restarted = program.json(*words, "cents=5", "--on-conflict", "restart_failed", "--wait")
        assert restarted["created"] is True and restarted["result"] == 10
        kept = program.json(*words, "cents=5", "--on-conflict", "restart_failed", "--wait")
        assert (kept["run_id"], kept["created"], kept["result"]) == (restarted["run_id"], False, 10)
        replaced = program.json(*words, "cents=6", "--on-conflict", "replace", "--wait")
        assert replaced["created"] is True and replaced["result"] == 12
    assert statuses(database) == {"k": ["failed", "completed", "completed"]}


def test_a_killed_load_is_repeated_without_a_second_run(program: Program, database: Database) -> None:
    """kill -9 in the middle of a file, then the same command: exactly one run of each record, and nothing to clean up."""
    path = program.write("sales.jsonl", sales(80_000))
    process = program.begin("start", "sell", "--input", path, "--key-field", "id")
    eventually(lambda: database.one("select exists (select from supervisor.run)"), 60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed = database.one("select count(*) from supervisor.run")
    assert 0 < killed < 80_000, "the load was over before the kill"
    facts = program.json("start", "sell", "--input", path, "--key-field", "id")
    # a chunk that was on its way may have been stored after the look
    assert facts["existing"] >= killed and facts["created"] + facts["existing"] == 80_000
    assert database.sql("select count(*), count(distinct key) from supervisor.run") == [(80_000, 80_000)]


def test_an_interrupted_load_says_how_far_it_came(program: Program, database: Database) -> None:
    read, write = os.pipe()
    process = program.begin("start", "sell", "--input", "-", "--json", stdin=read)
    os.close(read)
    with os.fdopen(write, "wb") as feed:
        feed.write(b"".join(json.dumps(each).encode() + b"\n" for each in sales(10_001)))
        feed.flush()
        eventually(lambda: database.one("select count(*) >= 5000 from supervisor.run"), 60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    facts = json.loads(out)
    assert process.returncode == 130 and "stay" in err.decode()
    assert facts["created"] == facts["line"] == database.one("select count(*) from supervisor.run")


# ── waiting and results ──────────────────────────────────────────────────────────────────────────────────────────


def test_wait_tells_failures_by_fingerprint_and_results_come_in_order(program: Program, hosts: HostFactory) -> None:
    records = sales(300)
    for at in (5, 50, 60):
        records[at]["cents"] = -1
    records[7]["cents"] = 13
    path = program.write("sales.jsonl", records)
    with hosts(APP, procs=2):
        facts = program.json("start", "sell", "--input", path, "--key-field", "id", "--batch", "monday", "--wait", code=1)
        assert (facts["ended"], facts["by_status"]) == (300, {"completed": 296, "failed": 4})
        failures = sorted((each["runs"], each["error"]) for each in facts["failures"])
        assert [runs for runs, _ in failures] == [1, 3] and "LookupError: nobody sells 7" in failures[0][1] and failures[1][1].startswith("ValueError: sale ")
        out = program("start", "sell", "--input", path, "--key-field", "id", "--batch", "monday", "--wait", code=1)[0]
        assert "300 runs: 296 completed, 4 failed" in out and "ValueError" in out
        program.write("fine.jsonl", sales(10, 1_000))
        assert "10 completed" in program("start", "sell", "--input", "fine.jsonl", "--wait")[0]
    # then the batch's results are those of its records, in their order
    written = program.json("results", "--batch", "monday", "--output", "out.jsonl")
    assert (written["runs"], written["completed"], written["failed"], written["live"], written["lines"]) == (300, 296, 4, 0, 296)
    good = [each for each in records if each["cents"] not in (-1, 13)]
    assert [(each["key"], each["status"], each["result"]) for each in program.lines("out.jsonl")] == [(str(g["id"]), "completed", g["cents"] * 2) for g in good]
    out = program("results", "--batch", "monday", "--failed-too")[0]
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["key"] for each in told] == [str(each["id"]) for each in records]
    assert told[7]["error"]["message"] == "nobody sells 7 for that" and "result" not in told[7]


def test_results_of_a_batch_that_is_not_over(program: Program, database: Database) -> None:
    """What is not there yet is said, and no half file is left; a batch that nobody made is an error."""
    program.write("sales.jsonl", sales(3))
    program("start", "sell", "--input", "sales.jsonl", "--batch", "later")
    written = program.json("results", "--batch", "later", "--output", "out.jsonl.gz", code=1)
    assert (written["live"], written["lines"]) == (3, 0)
    assert gzip.decompress((program.folder / "out.jsonl.gz").read_bytes()) == b""
    assert "nobody" in program("results", "--batch", "nobody", "--output", "other.jsonl", code=1)[1]
    assert sorted(each.name for each in program.folder.glob("o*")) == ["out.jsonl.gz"]
    assert database.one("select runs from supervisor.batches where batch = 'later'") == 3
    facts = program.json("start", "sell", "--input", "sales.jsonl", "--wait", "--timeout", "0.5", code=124)
    assert facts["ended"] == 0 and facts["created"] == 3


def test_memory_is_bounded(program: Program, database: Database) -> None:
    """A file of 200 MB in records of 100 kB takes no more memory than one of 20 MB: chunks end by bytes too."""
    record = json.dumps({"id": 1, "cents": 2, "positions": [{"sku": "s" * 100_000}]}).encode() + b"\n"
    peaks = []
    for many in (200, 2_000):
        process = program.begin("start", "sell", "--input", "-", stdin=subprocess.PIPE)
        assert process.stdin is not None
        for _ in range(many):
            process.stdin.write(record)
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, process.stderr.read() if process.stderr else ""
        peaks.append(usage.ru_maxrss / 1024)
    assert peaks[1] < peaks[0] + 30, f"{peaks} MB"
    assert database.one("select count(*) from supervisor.run") == 2_200


def test_bench_of_a_file_counts_its_records(server: Server, tmp_path: Path) -> None:
    """It compares every input in the database with the file; no figure is judged here."""
    words = ["bench", "start", "--input", str(tmp_path / "made.jsonl"), "--runs", "200", "--repeat", "1", "--key-field", "id", "--typed", "--unsafe"]
    made = subprocess.run([sys.executable, "-m", "supervisor", *words, "--json", "--dsn", server.dsn], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert (facts["command"], facts["records"], facts["records_per_s"] > 0) == ("start_file", 200, True)
    assert len((tmp_path / "made.jsonl").read_text().splitlines()) == 200


def test_a_server_that_crashes_under_a_load_costs_nothing_but_time(own_server: Server, effects: Effects, tmp_path: Path) -> None:
    """Without any key: a chunk whose acknowledgement was lost is sent again under its ids, and no record has two runs or none."""
    database = own_server.database()
    hosts = HostFactory(database, effects, tmp_path)
    with hosts(APP):
        pass
    program = Program(database, tmp_path)
    path = program.write("sales.jsonl", sales(150_000))
    process = program.begin("start", "sell", "--input", path, "--json")
    for least in (5_000, 40_000):
        eventually(lambda least=least: database.one("select count(*) from supervisor.run") >= least, 60)  # type: ignore[misc]
        own_server.embedded.restart("immediate")
    assert process.poll() is None, "the load was over before the last crash"
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    facts = json.loads(out)
    assert (facts["created"], facts["line"]) == (150_000, 150_000)
    assert [each["sale"]["id"] for each in inputs(database)] == list(range(150_000))
    database.drop()


def test_a_role_that_may_only_start_loads_files(program: Program, database: Database) -> None:
    """Whoever loads files needs the client's role and no right on any table."""
    name = f"loader_{os.getpid()}"
    database.sql(f"create role {name} login")
    try:
        database.sql(f"grant supervisor_client to {name}")
        path = program.write("sales.jsonl", sales(5))
        dsn = make_conninfo(database.dsn, user=name)
        facts = program.json("start", "sell", "--input", path, "--key-field", "id", "--batch", "b", "--wait", "--timeout", "0", "--dsn", dsn, code=124)
        assert facts["created"] == 5
        assert program.json("results", "--batch", "b", "--output", "out.jsonl", "--dsn", dsn, code=1)["live"] == 5
    finally:
        database.sql(f"drop owned by {name}")
        database.sql(f"drop role {name}")


def test_progress_goes_to_a_terminal_as_a_bar(program: Program) -> None:
    """And nothing of it stays there: the counts are the last line."""
    program.write("sales.jsonl", sales(20_000))
    terminal, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor", "start", "sell", "--input", "sales.jsonl"],
        cwd=program.folder, env={**program.environ, "TERM": "xterm", "COLUMNS": "120"}, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # EIO: the other end is closed
        while part := os.read(terminal, 65_536):
            seen += part
    os.close(terminal)
    assert process.wait(60) == 0
    assert b"records" in seen and b"eta" in seen and seen.rstrip().decode().splitlines()[-1].endswith("20,000 created")


def test_progress_elsewhere_is_a_line_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("records", 1_000)
    shown._began -= 10
    shown._next = 0.0
    shown.show(50_000, 250, "3 refused")
    shown.show(50_001, 251)  # too soon for another
    assert re.fullmatch(r"50,000 records, (5,000|4,\d{3})/s, 3 refused, 25%, 30 s left\n", capsys.readouterr().err)
