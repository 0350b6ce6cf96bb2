"""Documentation pages as programs: their fenced blocks are written, run and compared, top to bottom (docs/README.md says how).

Owns the reading of a page and the comparison of what it shows with what came out. One page is one folder, one shell, one database.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psycopg

from tests.harness import ROOT, server_folder

RUN = ("python", "sql", "console", "sh", "toml")
ASK_AGAIN = re.compile(r"^(cat|grep|tail|head|python -m supervisor (show|list|queues$))\b")
ASK_AGAIN_S = 30.0
COMMAND_S = 90.0
JSONB = 3802  # its type oid
EXTRA = re.compile(r"(?:pgsupervisor|\.)\[([a-z,]+)\]")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Block:
    """One fenced block: its language, the file that it is (or ""), its text, the line of its first ```."""

    language: str
    file: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of *page*, those inside of HTML comments too."""
    found: list[Block] = []
    body: list[str] = []
    open_at, language, file = 0, "", ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not open_at and (fence := re.match(r"```(\S*)(?: file=(\S+))?$", line)):
            open_at, language, file, body = number, fence[1], fence[2] or "", []
        elif open_at and line == "```":
            found.append(Block(language, file, "\n".join(body), open_at))
            open_at = 0
        elif open_at:
            body.append(line)
        else:
            assert not line.startswith("```"), f"{page.name}:{number}: {line!r} is no fence that this convention knows"
    assert not open_at, f"{page.name}:{open_at}: the block is not closed"
    return found


def begins_with(page: Path) -> str:
    """What the page says it begins with: "nothing", or "a migrated database"."""
    match = re.search(r"<!-- begins with: (.+) -->", page.read_text())
    return match[1] if match else "nothing"


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_WILD = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([.,]\d+)?(\+00(:00)?|Z)?"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)? (µs|ms|s|min|h|d)\b( \d+ (s|min|h)\b)?( ago)?|\bnow\b"), "<duration>"),
)


def plain(line: str) -> str:
    """*line* with one spelling for what differs from run to run: moments, durations, the width of columns."""
    for pattern, word in _WILD:
        line = pattern.sub(word, line)
    line = re.sub(r"in <duration>", "<duration>", line)
    return re.sub(r"-{3,}[-+ ]*", "---", re.sub(r"\s+", " ", line)).strip()


@dataclass
class Comparison:
    """Compares shown lines with real ones; a run id that is shown stands for the same real one from then on."""

    ids: dict[str, str] = field(default_factory=dict)

    def real(self, text: str) -> str:
        """*text* with the shown ids replaced by the real ones that they stand for."""
        return re.sub(_UUID, lambda match: self.ids.get(match[0], match[0]), text)

    def shows(self, shown: list[str], actual: list[str]) -> bool:
        """Whether the shown lines are among the actual ones, in their order. `…` stands for anything."""
        learnt: dict[str, str] = {}
        rest = iter(actual)
        for line in shown:
            if plain(line) == "…":
                continue
            for candidate in rest:
                ids = self._match(line, candidate, learnt)
                if ids is not None:
                    learnt.update(ids)
                    break
            else:
                return False
        self.ids.update(learnt)
        return True

    def _match(self, shown: str, actual: str, learnt: dict[str, str]) -> dict[str, str] | None:
        pattern, names = "", []
        for part in re.split(f"(…|{_UUID})", plain(shown)):
            if part == "…":
                pattern += ".*"
            elif re.fullmatch(_UUID, part):
                known = learnt.get(part) or self.ids.get(part)
                pattern += re.escape(known) if known else f"({_UUID})"
                names += [] if known else [part]
            else:
                pattern += re.escape(part)
        match = re.fullmatch(pattern, plain(actual))
        return dict(zip(names, match.groups(), strict=True)) if match else None


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Shell:
    """One bash for a page, as a person has one: jobs, exports and `cd` last."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.run("set -m")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def run(self, command: str) -> tuple[int, list[str]]:
        """Exit code and output lines of *command*."""
        mark = f"__done_{time.monotonic_ns()}__"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\nprintf '\\n{mark} %s\\n' $?\n")
        self._process.stdin.flush()
        lines: list[str] = []
        deadline = time.monotonic() + COMMAND_S
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except Empty:
                raise AssertionError(f"not done within {COMMAND_S:g} s: {command}\n" + "\n".join(lines)) from None
            if line.startswith(mark):
                return int(line.split()[1]), [each for each in lines if each]
            lines.append(line)

    def close(self) -> None:
        """Kill what the page left behind, and the shell: all processes of its session."""
        while others := [pid for pid in _session(self._process.pid) if pid != self._process.pid]:
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.kill()
        self._process.wait()


def _session(sid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == sid and state != "Z":
                found.append(int(path.parent.name))
    return found


@dataclass
class Pages:
    """Runs pages. *dsn* is a migrated database for pages that begin with one."""

    dsn: str

    def run(self, page: Path) -> None:
        """Do what *page* says, in a folder of its own. Raises AssertionError that names the line."""
        home = server_folder("pgs-page-")
        os.chmod(home, 0o755)  # as root the embedded server runs as another account, which must be able to enter
        folder = home / "work"
        folder.mkdir()
        environ = self._environment(home)
        shell = Shell(folder, environ)
        try:
            if begins_with(page) == "a migrated database":
                shell.run(f"export PGSUPERVISOR_DATABASE_URL='{self.dsn}'")
            _Page(page, folder, shell).run()
        finally:
            shell.close()
            if (home / "pg").exists():
                subprocess.run([home / "bin" / "pgsupervisor", "db", "stop"], env=environ, capture_output=True, timeout=COMMAND_S)
            shutil.rmtree(home, ignore_errors=True)

    def _environment(self, home: Path) -> dict[str, str]:
        programs = home / "bin"
        programs.mkdir()
        for name, words in (("python", ""), ("pgsupervisor", "-m supervisor")):
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            path.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
        binaries = {name: os.environ[name] for name in ("PGSUPERVISOR_PG_BIN",) if name in os.environ}
        return {
            **kept, **binaries, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
            "PGSUPERVISOR_DATA_DIR": str(home / "pg"),
        }  # fmt: skip


class _Page:
    """One page while it is run."""

    def __init__(self, page: Path, folder: Path, shell: Shell) -> None:
        self.page, self.folder, self.shell = page, folder, shell
        self.same = Comparison()
        self._conn: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        found = blocks(self.page)
        for at, block in enumerate(found):
            expected = found[at + 1] if at + 1 < len(found) and found[at + 1].language == "text" else None
            try:
                self._do(block, expected)
            except Exception as error:
                logs = "".join(f"\n{path.name} ends with:\n" + path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log"))
                raise AssertionError(f"{self.page.name}:{block.line}: {error}{logs}") from error
        if self._conn is not None:
            self._conn.close()

    def _do(self, block: Block, expected: Block | None) -> None:
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n")
        elif block.language == "python":
            (self.folder / "example.py").write_text(block.text + "\n")
            code, said = self.shell.run("python example.py")
            assert code == 0, "\n".join(said)
        elif block.language == "console":
            self._console(block)
        elif block.language == "sql":
            self._sql(block.text, expected)
        elif block.language == "sh":
            for line in block.text.splitlines():
                check_machine_command(line)
        else:
            assert block.language in ("text", "toml", "ini"), f"```{block.language} is no language of this convention"

    def _console(self, block: Block) -> None:
        commands: list[tuple[str, list[str]]] = []
        continued = False
        for line in block.text.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            elif continued:
                commands[-1] = (f"{commands[-1][0]}\n{line}", [])
            else:
                commands[-1][1].append(line)
            continued = line.endswith("\\")
        for command, shown in commands:
            self._command(self.same.real(command), [line for line in shown if line.strip()])

    def _command(self, command: str, shown: list[str]) -> None:
        deadline = time.monotonic() + ASK_AGAIN_S
        while True:
            code, said = self.shell.run(command)
            if (good := code == 0 and self.same.shows(shown, said)) or not ASK_AGAIN.match(command) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert good, f"$ {command}\nexit code {code}, said:\n" + "\n".join(said) + "\nbut the page shows:\n" + "\n".join(shown)

    def _sql(self, text: str, expected: Block | None) -> None:
        shown = [line for line in expected.text.splitlines() if line.strip() and not re.match(r"^\(\d+ rows?\)$", line)] if expected else []
        deadline = time.monotonic() + ASK_AGAIN_S
        while True:
            said = table(self._query(text))
            if self.same.shows(shown, said):
                return
            assert time.monotonic() < deadline, "the rows are\n" + "\n".join(said)
            time.sleep(0.1)

    def _query(self, text: str) -> psycopg.Cursor[Any]:
        if self._conn is None or self._conn.closed:
            _, said = self.shell.run("printf %s \"$PGSUPERVISOR_DATABASE_URL\"")
            self._conn = psycopg.connect(said[0], autocommit=True)
        cursor = self._conn.execute(self.same.real(text).encode())
        while cursor.nextset():
            pass
        return cursor


def table(cursor: psycopg.Cursor[Any]) -> list[str]:
    """Rows as psql prints them."""
    if cursor.description is None:
        return []
    heads = [column.name for column in cursor.description]
    is_json = [column.type_code == JSONB for column in cursor.description]
    rows = [" | ".join(map(cell, row, is_json)).rstrip() for row in cursor.fetchall()]
    return [" | ".join(heads), "---", *rows]


def cell(value: Any, is_json: bool) -> str:
    if value is None:
        return ""
    if is_json:
        return json.dumps(value)
    return {True: "t", False: "f"}[value] if isinstance(value, bool) else str(value)


def check_machine_command(line: str) -> None:
    """A command that sets up a machine is not run here (.ci/fresh does that): its target or extra must exist."""
    words = shlex.split(line, comments=True)
    if not words or words[:2] == ["git", "clone"] or words[0] == "cd":
        return
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words[1:] if "=" not in word), f"no such target: {line}"
    elif words[:2] == ["pip", "install"] or words[:4] == ["python", "-m", "pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = {extra for found in EXTRA.findall(line) for extra in found.split(",")}
        assert asked <= set(known), f"no such extra: {line}"
    else:
        raise AssertionError(f"{line!r}: in ```sh stand make, pip and git alone; what runs here is ```console")
