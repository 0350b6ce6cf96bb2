"""Who looks at a dashboard: a real one as a process, visitors that ask for its pages, and many of them at once with their pages open.

As a module it is the other process of `bench dashboard`: open pages as a browser keeps them, one stream of events and one connection each; what has
changed is asked for again as app.js does, less often where a page takes long. Reads what to do from standard input, and ends with it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from supervisor.bench.harness import BenchInvalid, Place

UP_S, TIMEOUT_S = 30.0, 60.0
LEAST_APART_S, SHARE = 0.4, 10  # as in app.js: of its time a tenth at most goes into a page
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Dashboard:
    """One that runs. Signing in takes the present token, which is another one afterwards."""

    port: int
    token_file: Path
    pid: int

    def signed_in(self) -> Visitor:
        visitor = Visitor(self.port)
        form = urlencode({"token": self.token_file.read_text().partition("#")[2].strip(), "name": "bench"})
        status, headers, _ = visitor.ask("POST", "/login", form.encode(), {**FORM, "Origin": f"http://127.0.0.1:{self.port}"})
        if status != 303:
            raise BenchInvalid(f"signing in gave {status}")
        visitor.cookie = headers["set-cookie"].partition(";")[0]
        return visitor


@dataclass
class Visitor:
    """A browser with one connection that stays."""

    port: int
    cookie: str = ""
    _conn: http.client.HTTPConnection | None = field(default=None, repr=False)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        conn = self._conn = self._conn or http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        conn.request(method, path, body, {**({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})})
        got = conn.getresponse()
        return got.status, {name.lower(): value for name, value in got.getheaders()}, got.read()

    def took_ms(self, path: str) -> float:
        """Milliseconds from sending the request to having all of the page. Raises BenchInvalid where it is none, or a part of it was refused."""
        began = time.perf_counter()
        status, _, body = self.ask("GET", path)
        took_ms = (time.perf_counter() - began) * 1000
        if status != 200 or (part := re.search(rb'<section class="panel wide refused">.*?</section>', body, re.DOTALL)):
            raise BenchInvalid(f"{path.partition('?')[0]} gave {status}{': ' + part[0].decode()[:500] if status == 200 and part else ''}")
        return took_ms


@contextmanager
def dashboard_of(place: Place) -> Iterator[Dashboard]:
    """`python -m supervisor dashboard` of that place, on a free port."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "said"), "w+") as said:
        token_file = Path(folder, "dashboard.url")
        words = [sys.executable, "-m", "supervisor", "dashboard", "--port", "0", "--json", "--token-file", str(token_file), "--schema", place.schema]
        # a connection string is no matter for an argument
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, env={**os.environ, "PGSUPERVISOR_DATABASE_URL": place.dsn})
        try:
            port = _until_said(process, Path(folder, "said"))
            yield Dashboard(port, token_file, process.pid)
        finally:
            process.terminate()
            process.wait(UP_S)


def _until_said(process: subprocess.Popen[bytes], path: Path) -> int:
    give_up_at = time.monotonic() + UP_S
    while time.monotonic() < give_up_at and process.poll() is None:
        if (text := path.read_text()).endswith("\n"):
            port = int(json.loads(text)["listens"].rpartition(":")[2])
            with suppress(OSError):
                Visitor(port).ask("GET", "/healthz")
                return port
        time.sleep(0.02)
    raise BenchInvalid(f"the dashboard did not come up within {UP_S:.0f} s: exit code {process.poll()}; see its words above")


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Storm:
    """Open pages in another process. `end` says what they had: pages, events, p50_ms, p99_ms, seconds."""

    def __init__(self, dashboard: Dashboard, paths: list[str]) -> None:
        told = {"port": dashboard.port, "pages": [(path, dashboard.signed_in().cookie) for path in paths]}
        self._process = subprocess.Popen([sys.executable, "-m", "supervisor.bench.viewers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "open\n":
            raise BenchInvalid("the viewers could not open their pages; see their words above")

    def end(self) -> dict[str, float]:
        out, _ = self._process.communicate(timeout=TIMEOUT_S)  # closes its standard input
        if self._process.returncode != 0:
            raise BenchInvalid(f"the viewers ended with {self._process.returncode}; see their words above")
        seen: dict[str, float] = json.loads(out)
        return seen

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Seen:
    took_ms: list[float] = field(default_factory=list)
    events: int = 0


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    """One page on a connection that stays, to its end."""
    writer.write(head)
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit("a page gave " + answer.partition(b"\r\n")[0].decode())
    length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
    assert length is not None
    await reader.readexactly(int(length[1]))


async def _viewer(port: int, path: str, cookie: str, seen: Seen, opened: asyncio.Semaphore) -> None:
    """A page that is open: loaded once, then its content again whenever something has changed."""
    common = f"Host: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n"
    page, stream = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22), await asyncio.open_connection("127.0.0.1", port)
    await _request(*page, f"GET {path} HTTP/1.1\r\n{common}\r\n".encode())
    stream[1].write(f"GET /live HTTP/1.1\r\n{common}Accept: text/event-stream\r\n\r\n".encode())
    await stream[0].readuntil(b"retry:")
    opened.release()
    next_at, changed = 0.0, asyncio.Event()

    async def hear() -> None:
        while line := await stream[0].readline():
            if line.startswith(b"event: changed"):
                seen.events += 1
                changed.set()

    hearing = asyncio.ensure_future(hear())
    try:
        while True:
            await changed.wait()
            await asyncio.sleep(next_at - time.monotonic())
            changed.clear()
            began = time.monotonic()
            await _request(*page, f"GET {path} HTTP/1.1\r\n{common}HX-Request: true\r\n\r\n".encode())
            took_s = time.monotonic() - began
            seen.took_ms.append(took_s * 1000)
            next_at = time.monotonic() + max(LEAST_APART_S, SHARE * took_s)
    finally:
        hearing.cancel()


async def _all(told: dict[str, Any]) -> None:
    seen, opened = Seen(), asyncio.Semaphore(0)
    viewers = [asyncio.ensure_future(_viewer(told["port"], path, cookie, seen, opened)) for path, cookie in told["pages"]]
    for _ in viewers:
        await opened.acquire()
    began = time.monotonic()
    print("open", flush=True)
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([over, *viewers], return_when=asyncio.FIRST_COMPLETED)
    seconds = time.monotonic() - began
    for viewer in viewers:
        if viewer.done():
            viewer.result()  # it does not end by itself
        viewer.cancel()
    ordered = sorted(seen.took_ms) or [0.0]
    print(json.dumps({"pages": len(seen.took_ms), "events": seen.events, "p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[len(ordered) * 99 // 100], "seconds": seconds}))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_all(json.loads(sys.stdin.readline())))
