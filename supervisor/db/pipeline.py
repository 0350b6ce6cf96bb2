"""One session in libpq's pipeline mode: batches of prepared statements, each ended by one Sync, answered in order.

Owns the psycopg connection and never blocks after `open`: the caller watches `fileno()` and calls `read` and `flush`.
A batch is atomic: everything before its Sync is one implicit transaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq

from supervisor.core.errors import DatabaseUnavailable

Statement = tuple[str, Sequence[bytes | None] | None]
FENCED = "SV003"


@dataclass(frozen=True)
class Refused:
    """What the server said of a batch that it rolled back."""

    statement: str
    sqlstate: str
    message: str

    @property
    def fenced(self) -> bool:
        """This worker was declared dead, or a run was taken from it."""
        return self.sqlstate == FENCED


class Pipeline:
    """A session for batches. `sent` counts Syncs, so that a test can count them against the wire.

    broken   why the session is of no use any more, or None. Nobody knows then what became of what was not answered.
    heard    payloads of notifications, where the session listens
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._formats: dict[str, list[int]] = {}
        self._inflight: deque[tuple[Any, list[str]]] = deque()
        self._results: list[Any] = []
        self._refused: Refused | None = None
        self.broken: str | None = None
        self.heard: list[bytes] = []
        self.sent = 0

    def prepare(self, name: str, text: str) -> None:
        """Prepare one statement; before `enter` only. Raises DatabaseUnavailable with the server's words."""
        result = self._pgconn.prepare(name.encode(), text.encode())
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise DatabaseUnavailable(f"statement {name} can't be prepared: {words(result)}")
        described = self._pgconn.describe_prepared(name.encode())
        self._formats[name] = [pq.Format.BINARY] * described.nparams

    def enter(self) -> None:
        """From here on the session speaks in pipelines and does not block."""
        self._pgconn.enter_pipeline_mode()
        self._pgconn.nonblocking = 1

    def fileno(self) -> int:
        """The session's socket. Raises DatabaseUnavailable when libpq has closed it already."""
        try:
            return self._pgconn.socket
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"the session is lost: {error}") from None

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return len(self._inflight)

    def send(self, token: Any, statements: Iterable[Statement]) -> None:
        """Queue one batch; *token* comes back with its results. Call `flush` until it is done."""
        names: list[str] = []
        self._inflight.append((token, names))  # first: what broke while it was being sent may have been sent
        send = self._pgconn.send_query_prepared
        try:
            for name, values in statements:
                formats = self._formats[name]
                send(name.encode(), values or None, formats or None, pq.Format.BINARY)
                names.append(name)
            self._pgconn.pipeline_sync()
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"the session broke while sending: {error}") from None
        self.sent += 1

    def flush(self) -> bool:
        """Push what is queued into the socket; False while the socket is full."""
        try:
            return not self._pgconn.flush()
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"the session broke while sending: {error}") from None

    def read(self) -> list[tuple[Any, dict[str, Any] | Refused]]:
        """Batches that were answered: (token, results by statement) or (token, why it was rolled back). Look at `broken` after them."""
        answered: list[tuple[Any, dict[str, Any] | Refused]] = []
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            nothing = 0
            while self._inflight and nothing < 2 and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    nothing += 1
                    continue
                nothing = 0
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    answered.append(self._answer())
                else:
                    self._keep(result)
            while (notified := pgconn.notifies()) is not None:
                self.heard.append(notified.extra)
        except psycopg.Error as error:
            self.broken = f"the session is lost: {' '.join(str(error).split())}"
        if pgconn.status == pq.ConnStatus.BAD and self.broken is None:
            self.broken = f"the session is lost: {' '.join(pgconn.get_error_message().split())}"
        return answered

    def unanswered(self) -> list[Any]:
        """Tokens of what was sent and not answered, in order: it may be durable, or still become so."""
        return [token for token, _ in self._inflight]

    def _keep(self, result: Any) -> None:
        if result.status == pq.ExecStatus.FATAL_ERROR and self._refused is None:
            names = self._inflight[0][1]
            sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            self._refused = Refused(names[min(len(self._results), len(names) - 1)], sqlstate, words(result))
        self._results.append(result)

    def _answer(self) -> tuple[Any, dict[str, Any] | Refused]:
        token, names = self._inflight.popleft()
        results, self._results = self._results, []
        refused, self._refused = self._refused, None
        if refused is not None:
            return token, refused
        return token, dict(zip(names, results, strict=True))

    def close(self) -> None:
        self._connection.close()


def words(result: Any) -> str:
    """The server's message, detail and hint, in one line."""
    field = pq.DiagnosticField
    parts = [result.error_field(which) for which in (field.MESSAGE_PRIMARY, field.MESSAGE_DETAIL, field.MESSAGE_HINT)]
    return "; ".join(part.decode("utf-8", "replace") for part in parts if part) or result.get_error_message()
