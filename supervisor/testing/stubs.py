"""Workflows that are mocked: while an environment runs, what a mocked workflow executes is its mock. So a parent is tested without its children.

A stub is workflow code like any other: it is replayed, its result goes through the workflow's own type, its error is the run's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from supervisor import sync
from supervisor.api import words
from supervisor.core import context
from supervisor.testing.mocks import Call, Mock, Mocks

WHOLE = -1  # seq of a call that is a whole run


class Stubs:
    """Of one environment. `runs`: those that executed a stub, with what it was told."""

    def __init__(self, mocks: Mocks) -> None:
        self._mocks = mocks
        self.runs: dict[UUID, tuple[Any, BaseException | None]] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Workflows that have mocks are these."""
        changed = [(workflow, workflow.fn) for workflow in self._mocks.workflows()]
        try:
            for workflow, fn in changed:
                workflow.settle()
                workflow.fn = self._stub(workflow, fn)
            yield
        finally:
            for workflow, fn in changed:
                workflow.fn = fn

    def _stub(self, workflow: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(fn).parameters)

        async def waits(*args: Any) -> Any:
            mock = self._mocks.of(workflow)
            if mock is None:
                return await fn(*args)
            if mock.takes_s:
                await words.sleep(mock.takes_s)
            value = self._played(mock, workflow, names, args)
            return await value if inspect.isawaitable(value) else value

        def goes_on(*args: Any) -> Any:
            mock = self._mocks.of(workflow)
            if mock is None:
                return fn(*args)
            if mock.takes_s:
                sync.sleep(mock.takes_s)
            return self._played(mock, workflow, names, args)

        return waits if workflow.is_async else goes_on

    def _played(self, mock: Mock, workflow: Any, names: list[str], args: tuple[Any, ...]) -> Any:
        """One answer for one run, however often it is replayed; a callable is workflow code, and called each time."""
        run_id = context.current().run_id
        call = Call(workflow.name, args, {}, dict(zip(names, args, strict=True)), run_id, WHOLE, 1, False)
        if mock.is_code:
            if run_id not in self.runs:
                self.runs[run_id] = None, None
                mock.calls.append(call)
            return mock.replay(call)
        if run_id not in self.runs:
            try:
                self.runs[run_id] = mock.play(call), None
            except Exception as error:  # noqa: BLE001 - the run ends by it
                self.runs[run_id] = None, error
        value, raised = self.runs[run_id]
        if raised is not None:
            raise raised
        return value


__all__ = ["Stubs"]
