"""What a transactional step is given: the transaction in which its SQL and its checkpoint commit together.

Both classes are faces of one session that the engine owns; they refuse what would end or redirect its transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Parameters = Sequence[Any] | Mapping[str, Any] | None


class Transaction(Protocol):
    """The transaction of a `def` step."""

    def execute(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows (none where it gives none). Raises psycopg's errors, at this call."""
        ...

    @property
    def rowcount(self) -> int:
        """Rows that the last statement returned or touched."""
        ...

    @property
    def connection(self) -> Any:
        """The psycopg connection, for an ORM; the step then runs alone in its transaction from its next attempt on."""
        ...


class AsyncTransaction(Protocol):
    """The transaction of an `async def` step."""

    async def execute(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows (none where it gives none). Raises psycopg's errors, at this call."""
        ...

    @property
    def rowcount(self) -> int:
        """Rows that the last statement returned or touched."""
        ...
