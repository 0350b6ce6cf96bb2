"""An environment, awaited: `env.aio.start(…)`, for code under test that has an AsyncClient. Nothing here waits; the environment runs inside of each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supervisor.api.client_async import AsyncClient
from supervisor.api.verbs import Verbs

if TYPE_CHECKING:
    from supervisor.testing.driving import Driven


class DrivenAsyncClient(AsyncClient):
    """The verbs of one environment. Belongs to no event loop."""

    def __init__(self, env: Driven) -> None:
        super().__init__()
        self._env = env

    def _ready(self) -> None:
        self._env._ready()

    async def _carry(self, make: Callable[[Verbs], Any]) -> Any:
        return self._env._carry(make)

    async def _pause_or_carry(self, asked: Any) -> Any:
        return self._env._pause_or_carry(asked)

    async def _result(self, run: Any, timeout: float | None) -> Any:
        return self._env._result(run, timeout)

    def within(self, connection: Any) -> Any:
        return self._env.within(connection)

    async def close(self) -> None:
        """The environment is closed by who made it."""


__all__ = ["DrivenAsyncClient"]
