"""A go-between for sessions on a unix socket: it can let the clients' ends go and keep the server's, as a broken network does, or leave both
ends where they are and pass nothing."""

from __future__ import annotations

import selectors
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import psycopg


class GoBetween:
    """Clients connect to `dsn`. `cut` ends what clients have; the server hears nothing of it. While `closed`, nobody gets in."""

    def __init__(self, dsn: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pgs-between-", dir="/tmp"))  # a socket's path is short
        given = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server = f"{given['host']}/.s.PGSQL.{given['port']}"
        self._path = folder / f".s.PGSQL.{given['port']}"
        self.dsn = psycopg.conninfo.make_conninfo(dsn, host=str(folder))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, socket.socket | None] = {}  # None: its other end was cut
        self._clients: set[socket.socket] = set()
        self._hung: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.closed = self._over = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    if end is self._listener:
                        self._accept()
                    elif end in self._peers:
                        self._pass(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.closed:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._server)
        except OSError:
            client.close()
            return
        self._clients.add(client)
        self._peers[client], self._peers[server] = server, client
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ)

    def _pass(self, end: socket.socket) -> None:
        """What came in at one end goes out at the other; at its end both are closed."""
        try:
            data = end.recv(1 << 16)
        except OSError:
            data = b""
        other = self._peers[end]
        if not data:
            self._close(end)
            if other is not None:
                self._close(other)
        elif other is not None:
            try:
                other.sendall(data)
            except OSError:
                self._close(other)

    def _close(self, end: socket.socket) -> None:
        if self._peers.pop(end, end) is not end:
            self._selector.unregister(end)
        self._clients.discard(end)
        end.close()

    def cut(self) -> None:
        """End all clients' connections; the server goes on with what it was sent."""
        with self._lock:
            for client in list(self._clients):
                server = self._peers[client]
                self._close(client)
                if server is not None:
                    self._peers[server] = None

    def hang(self) -> None:
        """Pass nothing more between those who are connected now, not even that an end is gone; who connects later is served."""
        with self._lock:
            for end in self._peers:
                self._selector.unregister(end)
            self._hung |= self._peers.keys()
            self._peers, self._clients = {}, set()

    def stop(self) -> None:
        self._over = True
        self._thread.join(5)
        for end in (self._listener, *self._peers, *self._hung):
            end.close()
        shutil.rmtree(self._path.parent)
