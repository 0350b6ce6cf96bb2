"""A real `python -m supervisor dashboard` and whoever visits it, by HTTP as the standard library speaks it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.harness import ROOT, eventually


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    cookies: list[str]

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running dashboard."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    token_file: Path
    log: Path

    def token(self) -> str:
        return self.token_file.read_text().strip().partition("#")[2]

    def visitor(self, name: str = "ann") -> Visitor:
        """Somebody who has signed in."""
        made = Visitor(self.port)
        answer = made.post("/login", {"token": self.token(), "name": name})
        assert answer.status == 303, answer.text
        made.cookie = answer.cookies[0].partition(";")[0]
        made.csrf = re.search(r'name="csrf" value="([^"]+)"', made.get("/queues").text)[1]  # type: ignore[index]
        return made


@dataclass
class Visitor:
    port: int
    cookie: str = ""
    csrf: str = ""
    host: str = "127.0.0.1"
    scheme: str = "http"
    named_port: bool = True  # in Host and Origin

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}" if self.named_port else self.host

    def _connected(self) -> http.client.HTTPConnection:
        if self.scheme == "https":
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=ssl._create_unverified_context())
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        given = {"Host": self.authority, **({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        conn = self._connected()
        try:
            conn.request(method, path, body, {name: value for name, value in given.items() if value is not None})
            got = conn.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read(), got.headers.get_all("set-cookie") or [])
        finally:
            conn.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, form: dict[str, Any] | Sequence[tuple[str, str]], **headers: Any) -> Answer:
        """A form of this visitor's, as a browser sends it."""
        fields = list(form.items()) if isinstance(form, dict) else list(form)
        if self.csrf and not any(name == "csrf" for name, _ in fields):
            fields.append(("csrf", self.csrf))
        given = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"{self.scheme}://{self.authority}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.ask("POST", path, urlencode(fields).encode(), given)

    def do(self, run: Any, verb: str, reason: str = "a test wants it", **form: str) -> Answer:
        return self.post(f"/runs/{run}/{verb}", {"reason": reason, **form})

    @contextmanager
    def events(self) -> Iterator[Iterator[str]]:
        """What is told to an open page, event by event."""
        conn = self._connected()
        conn.request("GET", "/live", headers={"Host": self.authority, "Cookie": self.cookie})
        got = conn.getresponse()
        assert got.status == 200 and got.getheader("content-type", "").startswith("text/event-stream")
        try:
            yield (line.decode().partition(": ")[2].strip() for line in iter(got.readline, b"") if line.startswith(b"event"))
        finally:
            conn.close()


@contextmanager
def served(folder: Path, dsn: str, *args: str, scheme: str = "http") -> Iterator[Served]:
    """A dashboard on a free port, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    log, token_file = folder / "dashboard.log", folder / "dashboard.url"
    words = [sys.executable, "-m", "supervisor", "dashboard", "--port", "0", "--json", "--token-file", str(token_file), "--actor", "tester", *args]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": dsn}
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        said = eventually(lambda: _first_line(process, log), 60, "the dashboard's URL")
        made = Served(process, said["url"], int(said["listens"].rpartition(":")[2]), token_file, log)
        eventually(lambda: answers(made.port, scheme), 30, "an answer of the dashboard")
        yield made
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the dashboard did not end when told to:\n{log.read_text()}") from None
    assert process.returncode == -signal.SIGKILL or (process.returncode == 0 and not token_file.exists()), log.read_text()


def _first_line(process: subprocess.Popen[bytes], log: Path) -> Any:
    text = log.read_text()
    assert process.poll() is None, f"the dashboard ended with {process.returncode}:\n{text}"
    found = next((line for line in text.splitlines() if line.startswith("{")), None)
    return json.loads(found) if found else None


def answers(port: int, scheme: str = "http") -> bool:
    """Whether a dashboard is there."""
    try:
        return Visitor(port, scheme=scheme).get("/healthz").status == 200
    except OSError:
        return False


# ── reading pages ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Read:
    """A page taken apart: tags with their attributes, and its text."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    @classmethod
    def of(cls, html: str) -> Read:
        made = cls()
        parser = _Parser(made)
        parser.feed(html)
        parser.close()
        return made

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for each, attributes in self.tags if each == tag and name in attributes]


def filled(visitor: Visitor, path: str, **other: str) -> dict[str, str]:
    """The fields of a page's only form as a browser would send them, but for what somebody types."""
    html = visitor.get(path).text.partition('<form class="terms"')[2]
    found: dict[str, str] = {}
    for tag in re.findall(r'<input[^>]* name="[^>]*>', html):
        (name,), (value,) = re.findall(r' name="([^"]*)"', tag), re.findall(r' value="([^"]*)"', tag) or [""]
        found[name] = unescape(value)
    found |= {name: unescape(text) for name, text in re.findall(r'<textarea[^>]* name="([^"]*)"[^>]*>\n?(.*?)</textarea>', html, re.DOTALL)}
    found |= {name: unescape(value) for name, value in re.findall(r'<select[^>]* name="([^"]*)"[^>]*>(?:(?!</select>).)*<option value="([^"]*)" selected', html, re.DOTALL)}
    return found | other


class _Parser(HTMLParser):
    def __init__(self, read: Read) -> None:
        super().__init__(convert_charrefs=True)
        self._read = read

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._read.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self._read.text += data


@dataclass
class Shown:
    """A table of a page: its columns, and of each row's cells the text and where their links lead."""

    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, tuple[str, str | None]]] = field(default_factory=list)


def tables(html: str) -> dict[str, Shown]:
    """The tables of a page by their titles; cells by their columns, where two are called alike the first one."""
    found: dict[str, Shown] = {}
    for title, body in re.findall(r'role="region" aria-label="([^"]*)">(.*?)</table>', html, re.DOTALL):
        columns = [unescape(re.sub(r"<[^>]*>", "", each)).strip() for each in re.findall(r"<th [^>]*>(.*?)</th>", body, re.DOTALL)]
        made = found[unescape(title)] = Shown(columns)
        for row in re.findall(r"<tr>(.*?)</tr>", body.partition("<tbody>")[2], re.DOTALL):
            cells = [_cell(each) for each in re.findall(r"<td [^>]*>(.*?)</td>", row, re.DOTALL)]
            made.rows.append(dict(reversed(list(zip(columns, cells, strict=True)))))
    return found


def _cell(html: str) -> tuple[str, str | None]:
    link = re.search(r' href="([^"]*)"', html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split()), unescape(link[1]) if link else None
