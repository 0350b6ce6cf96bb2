"""The dashboard as a process: where it listens, who may reach it, and its end.

Refuses to listen where others could read along: any address but this machine's own wants TLS, or an explicit word that something else sees to it.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.core.errors import ConfigInvalid, MissingExtra
from supervisor.dashboard import HOST, PORT

if TYPE_CHECKING:
    from supervisor.dashboard.keys import Keys
    from supervisor.db.connect import Dsn

DRAIN_S = 2
NICE = 5  # whoever looks gives way to whoever works


@dataclass(frozen=True)
class Serving:
    """How to serve. `port` 0: a free one. `tell`: called with the URL to open, which holds the token; never log it.

    `ready`: called with the login page's address, the token's file, and where it listens.
    """

    dsn: Dsn
    schema: str
    tell: Callable[[str], None]
    ready: Callable[[str, Path, str], None]
    actor: str
    host: str = HOST
    port: int = PORT
    allow_hosts: Sequence[str] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    plain_http: bool = False
    read_only: bool = False
    timeout_s: float = 5.0
    token_file: Path | None = None
    log_dir: Path | None = None  # where workers of this host log to
    any_port: bool = False  # another one where `port` is taken


def check_installed() -> None:
    """Raise MissingExtra where a part of the extra [dashboard] is not there."""
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn", "jinja2") if find_spec(name) is None]
    if missing:
        raise MissingExtra("the dashboard", "dashboard", " and ".join(missing))


def check_address(serving: Serving) -> None:
    """Raise ConfigInvalid where what is asked would put the pages, and the cookie, on a wire in the clear."""
    if bool(serving.tls_cert) != bool(serving.tls_key):
        raise ConfigInvalid("--tls-cert and --tls-key belong together; give both, or neither")
    if not is_loopback(serving.host) and not serving.tls_cert and not serving.plain_http:
        raise ConfigInvalid(
            f"--host {serving.host} can be reached from other machines, and without TLS they can read along, the cookie too; "
            f"give --tls-cert FILE --tls-key FILE, or --plain-http where something in front does TLS, or leave --host out and use a tunnel: ssh -L {PORT}:127.0.0.1:{PORT} this-host"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(serving: Serving) -> int:
    """Serve until TERM or ^C; exit code 0."""
    check_installed()
    check_address(serving)
    import uvicorn

    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends by its own, then raises it again: the token's file is to go
    from supervisor.dashboard.app import Dashboard, Setup

    listening = bound(serving.host, serving.port, serving.any_port)
    port = listening.getsockname()[1]
    scheme = "https" if serving.tls_cert else "http"
    names = hosts_of(serving, port, scheme)
    url = f"{scheme}://{names[0]}/login"
    path = serving.token_file or default_token_file(port)
    cookie = f"{'__Host-' if scheme == 'https' else ''}pgsupervisor-{port}"
    keys = _keys(path, url, serving)
    cluster = f"{serving.dsn.shown or 'database by libpq'}, schema {serving.schema}"
    setup = Setup(serving.dsn, serving.schema, keys, frozenset(names), scheme, cookie, serving.read_only, serving.timeout_s, cluster, serving.log_dir)
    dashboard = Dashboard(setup)
    config = uvicorn.Config(
        dashboard.app(), log_config=None, access_log=False, server_header=False, lifespan="off", ws="none", proxy_headers=False, timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=serving.tls_cert, ssl_keyfile=serving.tls_key, timeout_keep_alive=30,
    )  # fmt: skip
    try:
        serving.ready(url, path, "{}:{}".format(*listening.getsockname()[:2]))
        _server(uvicorn, config, dashboard).run([listening])
    except KeyboardInterrupt:
        pass
    finally:
        dashboard.close()
    return 0


def _keys(path: Path, url: str, serving: Serving) -> Keys:
    from supervisor.dashboard.keys import Keys

    try:
        return Keys(path, url, serving.tell, serving.actor)
    except OSError as error:
        remedy = "give HOME or XDG_RUNTIME_DIR a folder of this account's, or the command dashboard another file: --token-file FILE"
        raise ConfigInvalid(f"the dashboard can't keep its URL in {path}: {error.strerror or error}; {remedy}") from None


def _server(uvicorn: Any, config: Any, dashboard: Any) -> Any:
    class Server(uvicorn.Server):  # type: ignore[misc]
        """Ends its streams before it waits for connections to end."""

        async def shutdown(self, sockets: Any = None) -> None:
            dashboard.live.close()
            await super().shutdown(sockets)

    return Server(config)


def bound(host: str, port: int, any_port: bool = False) -> socket.socket:
    """A socket that listens there, or where *any_port* on a free one. Raises ConfigInvalid with what is in the way."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if any_port and port:
            return bound(host, 0)
        raise ConfigInvalid(f"the dashboard can't listen on {host} port {port} ({error.strerror or error}); give another port, or 0 for a free one") from None
    made.set_inheritable(False)
    return made


def hosts_of(serving: Serving, port: int, scheme: str) -> list[str]:
    """What a Host header may say; the first is the one that is told."""
    shown = f"[{serving.host.strip('[]')}]" if ":" in serving.host else serving.host
    default = (scheme == "https" and port == 443) or (scheme == "http" and port == 80)
    anywhere = serving.host in ("0.0.0.0", "::", "[::]")
    names = [*serving.allow_hosts] if anywhere and serving.allow_hosts else [f"{socket.gethostname()}:{port}" if anywhere else f"{shown}:{port}", *serving.allow_hosts]
    if is_loopback(serving.host):
        names += [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"]
    return [*names, *(name.rpartition(":")[0] for name in names if default and name.endswith(f":{port}"))]


def default_token_file(port: int) -> Path:
    """In the account's own runtime folder, else beside the embedded server's data: nowhere that others may write to."""
    import platformdirs

    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        if folder and _own(folder):
            return Path(folder, "pgsupervisor", f"dashboard-{port}.url")
    return Path(platformdirs.user_data_dir("pgsupervisor"), f"dashboard-{port}.url")


def _own(folder: str) -> bool:
    try:
        facts = os.stat(folder)
    except OSError:
        return False
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
