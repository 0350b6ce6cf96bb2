"""Log lines: whole, bounded, fit for terminals and for readers of JSON lines, whatever a record holds."""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core import context
from supervisor.core.errors import ConfigInvalid
from supervisor.host import log_lines
from supervisor.cli.logs import Wanted
from supervisor.host.log_files import NAME, LogFile, Reader
from supervisor.host.log_lines import LINE_BYTES_MAX, PlaceOfRecord, as_json, as_text, line_of
from supervisor.host.logs import Terminal, in_worker

RUN = "01a20372-5082-702e-8dae-5c638c476000"
log = logging.getLogger("app.orders")


def record(message: Any = "charged", *args: Any, level: int = logging.INFO, **options: Any) -> logging.LogRecord:
    made = log.makeRecord(log.name, level, __file__, 1, message, args, options.pop("exc_info", None), **options)
    made.created = datetime(2026, 3, 1, 12, 30, 5, 123456, UTC).timestamp()
    return made


def command(run_id: str = RUN, history: Any = None, attempt: int = 2, anew: bool = False) -> Any:
    run = SimpleNamespace(id=UUID(run_id).bytes, workflow=SimpleNamespace(name="checkout"), history=history, past=SimpleNamespace(anew=anew))
    return SimpleNamespace(run=run, step=SimpleNamespace(name="charge"), seq=1, attempt=attempt)


@pytest.fixture
def inside():
    """Set what the calling code belongs to."""
    tokens = []
    yield lambda found: tokens.append(context.executing.set(found))
    for token in reversed(tokens):
        context.executing.reset(token)


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


class BadEqual(str):
    def __eq__(self, other: object) -> bool:
        raise ValueError("no")

    __hash__ = str.__hash__


# ── what a line holds ────────────────────────────────────────────────────────────────────────────────────────────


def test_text_is_time_level_logger_message_run_and_step(inside):
    inside(command())
    made = record("charged %d cents", 42)
    assert PlaceOfRecord().filter(made)
    assert as_text(line_of(made)) == (
        f"2026-03-01 12:30:05.123Z I app.orders: charged 42 cents [run {RUN} step charge seq 1 attempt 2]\n".encode()
    )


def test_json_has_a_name_for_everything(inside, monkeypatch):
    monkeypatch.setattr(log_lines, "worker_number", 3)
    inside(command())
    made = record("charged", extra={"order": 17})
    assert PlaceOfRecord().filter(made)
    told = json.loads(as_json(line_of(made)))
    assert isinstance(told.pop("host"), str)
    assert told == {
        "ts": "2026-03-01T12:30:05.123456Z", "level": "INFO", "logger": "app.orders", "message": "charged", "pid": os.getpid(), "worker": 3,
        "run": RUN, "workflow": "checkout", "step": "charge", "seq": 1, "attempt": 2, "extra": {"order": 17},
    }  # fmt: skip


def test_workflow_code_has_a_run_and_no_step(inside):
    inside(command().run)
    made = record()
    assert PlaceOfRecord().filter(made)
    line = line_of(made)
    assert (line.run, line.workflow, line.step, line.seq, line.attempt) == (RUN, "checkout", None, None, None)
    assert as_text(line).endswith(f" [run {RUN} workflow checkout]\n".encode())


def test_outside_of_a_run_there_is_none():
    made = record()
    assert PlaceOfRecord().filter(made)
    assert made.run is None and "run" not in json.loads(as_json(line_of(made)))


def test_what_current_logger_adds_is_not_told_twice(inside):
    inside(command())
    made = record(extra={"run_id": RUN, "workflow": "checkout", "step": "charge", "seq": 1, "attempt": 2})
    assert PlaceOfRecord().filter(made)
    assert line_of(made).extra is None


def test_what_a_caller_calls_step_is_kept_beside_ours(inside):
    """Names in `extra=` are the caller's; the line's own fields are the engine's."""
    inside(command())
    made = record(extra={"step": "mine", "attempt": 9})
    assert PlaceOfRecord().filter(made)
    line = line_of(made)
    assert (line.step, line.attempt, line.extra) == ("charge", 2, {"step": "mine", "attempt": 9})


def test_replayed_workflow_code_is_refused_and_steps_never_are(inside):
    inside(command(history={}).run)
    assert not PlaceOfRecord().filter(record())
    inside(command(history={}))
    assert PlaceOfRecord().filter(record())
    inside(command(history={}, anew=True).run)  # behind a sleep that has just ended
    assert PlaceOfRecord().filter(record())


def test_an_exception_has_type_message_and_traceback():
    try:
        raise LookupError("no such\norder")
    except LookupError as error:
        made = record("failed", level=logging.ERROR, exc_info=(type(error), error, error.__traceback__))
    told = json.loads(as_json(line_of(made)))["exception"]
    assert (told["type"], told["message"]) == ("LookupError", "no such\norder")
    assert told["traceback"].startswith("Traceback (most recent call last)") and "test_an_exception" in told["traceback"]
    first, *rest = as_text(line_of(made)).decode().splitlines()
    assert first.endswith("E app.orders: failed") and rest and all(line.startswith("    ") for line in rest)


# ── hostile text ─────────────────────────────────────────────────────────────────────────────────────────────────

FORGED = "x\n2026-03-01 12:30:05.123Z E root: forged\r\x1b[2J\x9b1m\u202e\u2028\x00\x7f"


def test_no_text_can_pass_for_a_line_of_its_own_or_steer_a_terminal():
    class Fails(Exception):
        pass

    try:
        raise Fails(FORGED)
    except Fails as error:
        made = record(FORGED, exc_info=(type(error), error, error.__traceback__), extra={FORGED: FORGED})
    made.name = FORGED
    text = as_text(line_of(made)).decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert sum(not line.startswith("    ") for line in text[:-1].split("\n")) == 1
    raw = as_json(line_of(made))
    assert raw.count(b"\n") == 1 and not any(char in raw.decode() for char in "\r\x1b\x9b\u202e\u2028\x00\x7f")
    assert json.loads(raw)["message"].startswith("x\n2026")


@pytest.mark.parametrize(
    ("message", "args", "wanted"),
    [
        ("%d", ("x",), "'%d' with arguments ('x',) (no message can be made of it: TypeError)"),
        ("%s", (Unprintable(),), "'%s' with arguments (tuple that can't be shown: ValueError) (no message can be made of it: ValueError)"),
        (Unprintable(), (), "(Unprintable that can't be shown: ValueError) (no message can be made of it: ValueError)"),
        ("\ud800", (), "\\ud800"),
        (b"\xff", (), "b'\\xff'"),
        (None, (), "None"),
    ],
)
def test_what_can_not_be_a_message_has_a_line_too(message, args, wanted):
    assert line_of(record(message, *args)).message == wanted


def test_hostile_exceptions_and_extras_have_a_line_too():
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("never")

    made = record("x", exc_info=(Silent, Silent(), None), extra={"a": Unprintable(), "b": float("nan"), "c": 1 << 9999, "step": BadEqual("x"), "\ud800": "\ud800"})
    told = json.loads(as_json(line_of(made)))
    assert told["exception"]["message"] == "(its message can't be shown: RuntimeError)"
    assert told["extra"]["a"] == "(Unprintable that can't be shown: ValueError)"
    as_text(line_of(made))
    for created in (float("nan"), 1e300, None):
        made.created = created
        assert json.loads(as_json(line_of(made)))["ts"]


@given(st.text(), st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=9000), st.dictionaries(st.text(min_size=1), st.text()))
def test_any_text_makes_one_bounded_line(name, message, extra):
    made = record("%s", message)
    made.name = name
    made.__dict__.update({key: value for key, value in extra.items() if key not in made.__dict__})
    raw = as_json(line_of(made))
    assert len(raw) <= LINE_BYTES_MAX and raw.count(b"\n") == 1 and json.loads(raw)
    assert len(as_text(line_of(made))) <= LINE_BYTES_MAX


@pytest.mark.parametrize("size", [3000, 4000, 5000, 100_000, 10_000_000])
@pytest.mark.parametrize("char", ["x", "\n", "\x01", "é", "😀", "\ud800"])
def test_long_lines_are_cut_in_their_middle(size, char):
    """4,096 bytes are what a pipe takes in one piece."""
    made = record("begin " + char * size + " end", exc_info=(ValueError, ValueError(char * size), None))
    for raw in (as_json(line_of(made)), as_text(line_of(made))):
        assert len(raw) <= LINE_BYTES_MAX
    told = json.loads(as_json(line_of(made)))
    assert told["message"].startswith("begin ") and told["message"].endswith(" end")


def test_a_terminal_that_is_gone_costs_the_line_only(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("supervisor.host.logs.STDERR", writing)
    Terminal().handle(record())
    os.close(writing)
    Terminal().handle(record())


def test_no_handler_of_ours_has_a_lock_or_a_thread():
    """What nobody holds, nobody can die with."""
    from supervisor.host.log_process import PipeHandler

    threads = threading.active_count()
    assert Terminal().lock is None and PipeHandler(None).lock is None  # type: ignore[arg-type]
    assert threading.active_count() == threads


def test_handlers_of_the_app_learn_where_a_record_comes_from(inside, monkeypatch, capsys):
    """`%(run)s` in the app's own format works in every record, and what a replay repeats it does not get either."""
    monkeypatch.setattr(log_lines, "worker_number", None)
    handler = logging.StreamHandler(stream := __import__("io").StringIO())
    handler.setFormatter(logging.Formatter("%(message)s %(run)s %(step)s"))
    log.addHandler(handler)
    try:
        in_worker(0, None)
        log.warning("outside")
        inside(command())
        log.warning("inside")
        inside(command(history={}).run)
        log.warning("replayed")
    finally:
        log.removeHandler(handler)
    assert stream.getvalue().splitlines() == ["outside None None", f"inside {RUN} charge"]


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────


def line(number: int, run: str | None = RUN, message: str = "") -> bytes:
    made = record(message or f"line {number}")
    made.place = (run, "checkout", "charge", number, 1) if run else None
    return as_json(line_of(made))


def messages(folder: Path, run: str = RUN) -> list[str]:
    wanted = Wanted(run)
    return [each.message for each in Reader(folder).turn(wanted.having()) if wanted.fits(each)]


def test_rotation_keeps_the_newest_files(tmp_path):
    file = LogFile(tmp_path, 1000, 3)
    for number in range(100):
        file.write(line(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, f"{NAME}.1", f"{NAME}.2", f"{NAME}.lock"]
    assert all(path.stat().st_size <= 1000 and path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    found = messages(tmp_path)
    assert found == [f"line {number}" for number in range(100 - len(found), 100)] and len(found) > 5


def test_two_writers_of_one_folder_lose_nothing(tmp_path):
    """Two supervisors with one folder: each goes on in the file that bears the name."""
    files = [LogFile(tmp_path, 2000, 100) for _ in range(2)]
    for number in range(200):
        files[number % 2].write(line(number))
    assert messages(tmp_path) == [f"line {number}" for number in range(200)]


def test_a_file_that_was_moved_or_removed_is_made_again(tmp_path):
    """logrotate needs to tell nobody."""
    file = LogFile(tmp_path / "a" / "b", 1 << 20, 3)
    file.write(line(1))
    file.path.rename(file.path.with_suffix(".old"))
    file.write(line(2))
    assert messages(tmp_path / "a" / "b") == ["line 2"]
    for path in list(file.path.parent.iterdir()):
        path.unlink()
    file.path.parent.rmdir()
    file.write(line(3))
    assert messages(tmp_path / "a" / "b") == ["line 3"]


def test_what_a_killed_writer_left_does_not_spoil_the_next_line(tmp_path):
    (tmp_path / NAME).write_bytes(line(1) + line(2)[:-20])
    LogFile(tmp_path, 1 << 20, 3).write(line(3))
    assert messages(tmp_path) == ["line 1", "line 3"]


def test_lines_of_a_run_are_its_own_and_what_the_engine_says_of_it(tmp_path):
    other = "01a20372-5082-702e-8dae-5c638c476001"
    LogFile(tmp_path, 1 << 20, 3).write(
        line(1) + line(2, other) + line(3, None, f"run {RUN} is parked") + line(4, other, f"I pretend to be run {RUN}") + b"no json " + RUN.encode() + b"\n"
    )
    assert messages(tmp_path) == ["line 1", f"run {RUN} is parked"]


def test_reading_while_files_rotate_misses_nothing(tmp_path, monkeypatch):
    """A rotation between the listing of the folder and the opening of its files."""
    file = LogFile(tmp_path, 500, 50)
    for number in range(20):
        file.write(line(number))
    listdir = os.listdir

    def then_rotate(path):
        found = listdir(path)
        for number in range(20, 24):
            file.write(line(number))
        return found

    monkeypatch.setattr("supervisor.host.log_files.os.listdir", then_rotate)
    found = messages(tmp_path)
    assert found[:20] == [f"line {number}" for number in range(20)] and found == sorted(set(found), key=found.index)


def test_each_line_is_read_once_through_rotations(tmp_path):
    """What `logs --follow` prints: what came since, also where the file was moved on several times, emptied, or is in the middle of a line."""
    file, reader = LogFile(tmp_path, 500, 50), Reader(tmp_path)
    seen: list[str] = []
    for number in range(60):
        file.write(line(number))
        if number % 7 == 3:
            seen += [each.message for each in reader.turn()]
    with file.path.open("ab") as half:
        half.write(line(60)[:-30])
        half.flush()
        seen += [each.message for each in reader.turn()]
        assert seen == [f"line {number}" for number in range(60)] and len(list(tmp_path.iterdir())) > 10
        half.write(line(60)[-30:])
    assert [each.message for each in reader.turn()] == ["line 60"] and list(reader.turn()) == []
    os.truncate(file.path, 0)
    file.write(line(61))
    assert [each.message for each in reader.turn()] == ["line 61"]


@pytest.mark.parametrize(
    ("wanted", "fit"),
    [
        (Wanted(), [1, 2, 3, 4]), (Wanted(run=RUN), [1, 2, 4]), (Wanted(step="charge"), [1, 2, 3]), (Wanted(level="INFO"), [1, 2, 3, 4]), (Wanted(level="ERROR"), []),
        (Wanted(worker=7), []), (Wanted(worker=os.getpid()), [1, 2, 3, 4]), (Wanted(run=RUN, step="charge"), [1, 2]), (Wanted(step="ship"), []),
    ],
)  # fmt: skip
def test_filters_of_lines_hold_together(tmp_path, wanted, fit):
    other = "01a20372-5082-702e-8dae-5c638c476001"
    LogFile(tmp_path, 1 << 20, 3).write(line(1) + line(2) + line(3, other) + line(4, None, f"run {RUN} is parked"))
    expected = [f"run {RUN} is parked" if n == 4 else f"line {n}" for n in fit]
    assert [each.message for each in Reader(tmp_path).turn(wanted.having()) if wanted.fits(each)] == expected


def test_a_folder_that_can_not_be_used_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="can't write logs into .*name another folder"):
        LogFile(tmp_path / "file", 1000, 3).prepare()
    with pytest.raises(ConfigInvalid, match="can't read the logs in .*on the host whose workers wrote them"):
        messages(tmp_path / "nowhere")
