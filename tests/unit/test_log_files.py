"""The end of a folder of logs, read backwards: the last lines of one run cost a part of it, and no line is cut or met twice."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from supervisor.core.errors import ConfigInvalid
from supervisor.host import log_files
from supervisor.host.log_lines import Line, as_json

FILES = ("supervisor.log.2", "supervisor.log.1", "supervisor.log")


@pytest.fixture(params=[100, 1000, 1 << 20])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """150 lines in three files, each third of run b; chunks smaller than a line, than a file, and larger."""
    monkeypatch.setattr(log_files, "CHUNK_BYTES", request.param)
    for number, name in enumerate(FILES):
        lines = [Line(datetime.now(timezone.utc), "INFO", "x", f"{n} " + "é" * (n * 37 % 300), "host", 1, run="b" if n % 3 == 0 else "a") for n in range(50 * number, 50 * number + 50)]
        (tmp_path / name).write_bytes(b"".join(map(as_json, lines)))
    return tmp_path


def last(folder: Path, lines: int, size: int = 1 << 30) -> tuple[list[int], bool]:
    found, all_read = log_files.last(folder, b'"run":"b"', lines, size)
    return [int(line.message.split()[0]) for line in found], all_read


def test_the_last_lines_come_in_their_order(folder: Path) -> None:
    assert last(folder, 1000) == (list(range(0, 150, 3)), True)
    assert last(folder, 5) == ([135, 138, 141, 144, 147], False)


def test_only_so_much_is_read(folder: Path) -> None:
    """Half a gigabyte of logs must not be read for a page; what is found in its end is whole."""
    sizes = [(folder / name).stat().st_size for name in FILES]
    half, all_read = last(folder, 1000, sum(sizes) // 2)
    assert not all_read and 0 < len(half) < 50 and half == list(range(0, 150, 3))[-len(half) :]
    assert last(folder, 1000, sum(sizes)) == (list(range(0, 150, 3)), True)


def test_what_a_killed_writer_left_is_passed_over(folder: Path) -> None:
    with (folder / FILES[-1]).open("ab") as file:
        file.write(b'{"ts": broken, "run":"b"}\n{"run":"b", "half a li')
    assert last(folder, 2) == ([144, 147], False)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="--log-dir"):
        log_files.last(tmp_path / "nowhere", b"", 1, 1)
