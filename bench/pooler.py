"""A pgbouncer in transaction mode in front of a server, for measuring and testing through it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from supervisor.bench.harness import BenchInvalid

UP_S = 20.0
PORT = 6432


def program() -> str | None:
    """Where pgbouncer is, if it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pooled(dsn: str, **settings: object) -> Iterator[str]:
    """*dsn* by way of a pooler that ends with the block; *settings* are further ones of its own. Raises BenchInvalid where it can't be had."""
    found = program()
    server = conninfo_to_dict(dsn)
    if found is None:
        raise BenchInvalid("--pooled needs pgbouncer, which is not installed: apt install pgbouncer")
    if server.get("password") or not server.get("host"):
        raise BenchInvalid("--pooled needs a server that trusts this account and a host in --dsn; the embedded one is such a server")
    folder = Path(tempfile.mkdtemp(prefix="pgs-pooler-", dir="/tmp"))
    user, host = server.get("user") or pwd.getpwuid(os.getuid()).pw_name, str(server["host"])
    (folder / "users.txt").write_text(f'"{user}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={host} port={server.get('port') or 5432}\n"
        f"[pgbouncer]\npool_mode = transaction\nunix_socket_dir = {folder}\nlisten_addr =\nlisten_port = {PORT}\nauth_type = trust\n"
        f"auth_file = {folder}/users.txt\nadmin_users = {user}\nlogfile = {folder}/log\npidfile = {folder}/pid\n"
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    words = [found, str(folder / "pgbouncer.ini")]
    if os.getuid() == 0:  # which pgbouncer refuses to be
        account = Path(host).owner() if host.startswith("/") else "nobody"  # whose the server's socket is
        shutil.chown(folder, account)
        words[1:1] = ["-u", account]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + UP_S
        while not (folder / f".s.PGSQL.{PORT}").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise BenchInvalid(f"pgbouncer did not come up: {(folder / 'log').read_text() if (folder / 'log').exists() else 'it said nothing'}")
            time.sleep(0.02)
        yield make_conninfo(dsn, host=str(folder), port=PORT)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
