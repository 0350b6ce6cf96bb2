"""Where metrics are served: "9464", "0.0.0.0:9464", "[::1]:9464". The host binds the address, so it stays while what serves it is started again."""

from __future__ import annotations

import logging
import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from supervisor.core.errors import ConfigInvalid, MissingExtra
from supervisor.host.beside import Beside

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn

log = logging.getLogger("pgsupervisor.parent")

LOOPBACK = "127.0.0.1"
BACKLOG = 64


def parse(text: str, where: str) -> tuple[str, int]:
    """Host and port of `[HOST:]PORT`. *where* it was said, for the error."""
    host, _, port = text.strip().rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ConfigInvalid(f"{where}: {text!r} is no address; give a port of this machine, or HOST:PORT for scrapers elsewhere: 9464, 0.0.0.0:9464, [::1]:9464")
    return host.strip("[]") or LOOPBACK, int(port)


def beside(text: str, where: str, dsn: Dsn, schema: str) -> Metrics:
    """What serves metrics of this process, to be made a part of its loop. Raises ConfigInvalid, MissingExtra."""
    if find_spec("prometheus_client") is None:
        raise MissingExtra("metrics", "metrics", "prometheus_client")
    return Metrics(bound(*parse(text, where), where), dsn, schema)


def bound(host: str, port: int, where: str) -> socket.socket:
    """A socket that listens there."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        raise ConfigInvalid(f"{where}: metrics can't be served on {host} port {port} ({error.strerror or error}); give another address, or port 0 for a free one") from None
    return made


class Metrics(Beside):
    """The process that serves them. Its socket is this process's: who connects while it is started again waits, and is not refused."""

    what, sessions = "metrics", 2  # one for what is told of the database, one for /readyz

    def __init__(self, listening: socket.socket, dsn: Dsn, schema: str) -> None:
        super().__init__(["metrics", "serve", "--fd", str(listening.fileno())], dsn, schema, (listening.fileno(),))
        self._listening = listening
        host, port = listening.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        log.info("metrics on %s", self.url)

    def close(self) -> None:
        super().close()
        self._listening.close()
