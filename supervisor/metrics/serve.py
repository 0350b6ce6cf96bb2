"""The process that serves /metrics, /livez, /readyz and /startupz. HTTP is wsgiref's, exposition and its negotiation prometheus_client's.

Owns what one visitor may cost the others: each connection has a thread and ten seconds, and of too many the oldest gives way.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from supervisor.db.connect import Dsn
from supervisor.db.pages import Sessions
from supervisor.engine.forked import die_with
from supervisor.host.titles import set_title
from supervisor.metrics.collect import Collector
from supervisor.metrics.probes import Probes, Schema
from supervisor.metrics.stored import SESSIONS_MAX, STATEMENT_S, Question, facts

log = logging.getLogger("pgsupervisor.metrics")

CONNECTIONS_MAX = 64
CONNECTION_S = 10.0
SILENT_S = 5.0  # of a client, in the middle of its request or of our answer
READY_FRESH_S, READY_PATIENCE_S = 1.0, 2.0
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)  # what is meant for the host may reach its whole group

Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


def serve(fd: int, parent: int, dsn: Dsn, schema: str) -> None:
    """Serve on the socket *fd* what stands in the black box of *parent*, until that ends or this process is told to. Never returns."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent, signal.SIGKILL)
    os.set_inheritable(fd, False)
    set_title("metrics")
    sessions = Sessions(dsn, schema, most=SESSIONS_MAX, timeout_s=STATEMENT_S, purpose="metrics")
    probes = Probes(parent, Question(Schema(dsn, schema).fits, READY_FRESH_S, READY_PATIENCE_S))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(probes, Question(lambda: facts(sessions))))
    Server(socket.socket(fileno=fd), application(make_wsgi_app(registry), probes)).serve_forever()


def application(metrics: App, probes: Probes) -> App:
    """Which path answers what."""
    pages: dict[str, Callable[[], list[str]]] = {
        "/livez": lambda: _listed(probes.not_live()), "/readyz": probes.not_ready, "/startupz": lambda: _listed(probes.not_begun()),
    }  # fmt: skip

    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path, reading = environ["PATH_INFO"], environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if path == "/metrics" and reading:
            return metrics(environ, start)
        if not reading:
            return _plain(environ, start, "405 Method Not Allowed", ["GET or HEAD"], [("Allow", "GET, HEAD")])
        if path not in pages:
            return _plain(environ, start, "404 Not Found", ["here are /metrics, /livez, /readyz and /startupz"])
        wrong = pages[path]()
        return _plain(environ, start, "503 Service Unavailable" if wrong else "200 OK", wrong or ["ok"])

    return answer


def _listed(reason: str | None) -> list[str]:
    return [] if reason is None else [reason]


def _plain(environ: dict[str, Any], start: Start, status: str, lines: list[str], more: Iterable[tuple[str, str]] = ()) -> Iterable[bytes]:
    text = "".join(f"{line}\n" for line in lines).encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text))), ("Cache-Control", "no-store"), *more])
    return [text if environ["REQUEST_METHOD"] == "GET" else b""]


class Handler(WSGIRequestHandler):
    """One request of one connection; what goes wrong with it is the visitor's, and of no interest to the host's log."""

    timeout = SILENT_S
    server_version, sys_version = "pgsupervisor", ""

    def address_string(self) -> str:
        return str(self.client_address[0]) if self.client_address else ""

    def get_stderr(self) -> Any:
        return io.StringIO()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        log.debug("%s: %s", self.address_string(), format % args)


class Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, of which there are CONNECTIONS_MAX at most."""

    daemon_threads, block_on_close = True, False

    def __init__(self, listening: socket.socket, app: App) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = "pgsupervisor", listening.getsockname()[1]
        self.setup_environ()
        self.set_app(app)
        self._open: dict[Any, float] = {}
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = min(self._open, key=self._open.__getitem__) if len(self._open) >= CONNECTIONS_MAX else None
            self._open[request] = time.monotonic()
        if oldest is not None:
            self._cut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: end connections that have had their time."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, since in self._open.items() if now - since > CONNECTION_S]
        for request in late:
            self._cut(request)

    def _cut(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        try:
            request.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended by itself
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a visitor's request ended early", exc_info=True)
