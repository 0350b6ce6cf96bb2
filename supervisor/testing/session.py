"""A worker's session without a server: each batch is done as it is sent, and answered in the next turn of the event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from supervisor.testing.statements import Statements

WRITES = frozenset({
    "insert_steps", "insert_mixed_steps", "insert_attempts", "insert_timers", "insert_runs", "insert_consumed", "finish", "fire_timers", "continue_runs",
    "accept_updates",
})  # fmt: skip


class MemorySession:
    """What `db.pipeline.Pipeline` is to a worker.

    answered     called when there is something to be read
    committed    told of every batch that changed a history; true where the worker dies before it is told so
    """

    broken: str | None = None

    def __init__(self, statements: Statements, answered: Callable[[], Any], committed: Callable[[], bool]) -> None:
        self.statements = statements
        self.heard: list[bytes] = []
        self.sent = 0
        self._answered, self._committed = answered, committed
        self._answers: deque[tuple[Any, dict[str, Any]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._answers)

    def send(self, token: Any, statements: Iterable[tuple[str, Sequence[bytes] | None]]) -> None:
        self.sent += 1
        asked = list(statements)
        answer = {name: self.statements.execute(name, params) for name, params in asked}
        if any(name in WRITES for name, _ in asked) and self._committed():
            return
        self._answers.append((token, answer))
        self._answered()

    def flush(self) -> bool:
        return True

    def read(self) -> list[tuple[Any, dict[str, Any]]]:
        answers, self._answers = list(self._answers), deque()
        return answers

    def unanswered(self) -> list[Any]:
        return [token for token, _ in self._answers]

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass
