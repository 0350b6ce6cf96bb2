"""What steps do in a test instead of what they do: a value, an error, a list of both, a callable; and what was called.

Values go through the step's real codec, errors through its real retry policy: a mock stands where the body stands, and nowhere else.
"""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from supervisor.core import registry
from supervisor.core.errors import DefinitionError
from supervisor.testing.errors import MockUsedUp

_NOTHING: Any = object()


@dataclass(frozen=True)
class Call:
    """One attempt of a step.

    args, kwargs     as the workflow called it
    arguments        the same by parameter name, defaults too
    attempt          1 for the first try; redelivered: it may have begun before a crash
    idempotency_key  as `current()` has it
    """

    step: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    arguments: Mapping[str, Any]
    run_id: UUID
    seq: int
    attempt: int
    redelivered: bool

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.seq}"

    def __str__(self) -> str:
        given = ", ".join([*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())])
        return f"{self.step}({given})"


class Mock:
    """What stands in for one step, or workflow; `calls` are those that it answered. `with env.mock(…):` removes it at the end.

    is_code   it is a callable: of a workflow, that is code which is replayed
    """

    def __init__(self, step: Any, play: Callable[[Call], Any], takes_s: float, is_code: bool, remove: Callable[[Mock], None]) -> None:
        self.step, self.takes_s, self.is_code = step, takes_s, is_code
        self.calls: list[Call] = []
        self._play, self._remove = play, remove

    def play(self, call: Call) -> Any:
        """The value, or what is to be awaited for it; raises the error."""
        self.calls.append(call)
        return self._play(call)

    def replay(self, call: Call) -> Any:
        """The same again, of a call that was noted."""
        return self._play(call)

    @property
    def called(self) -> bool:
        return bool(self.calls)

    def remove(self) -> None:
        """From here on the step is executed really, or by the mock that was there before."""
        self._remove(self)

    def __enter__(self) -> Mock:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<mock of {self.step.name}, called {len(self.calls)} times>"


class Mocks:
    """All mocks of one environment, and every call of any step."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.calls: list[Call] = []
        self._by_step: dict[Any, list[Mock]] = defaultdict(list)

    def add(
        self, step: Any, returns: Any = _NOTHING, raises: Any = None, sequence: Sequence[Any] | None = None, calls: Callable[..., Any] | None = None, takes_s: float = 0.0
    ) -> Mock:
        """A mock of *step*, a step or a workflow, or the name of one; the last one that was made counts. Raises DefinitionError."""
        found = step_of(step)
        given = [returns is not _NOTHING, raises is not None, sequence is not None, calls is not None]
        if sum(given) > 1:
            raise DefinitionError(f"the mock of step {found.name} has several of returns=, raises=, sequence= and calls=; give one")
        made = Mock(found, _player(found, None if returns is _NOTHING else returns, raises, sequence, calls), takes_s, calls is not None, self._drop)
        self._by_step[found].append(made)
        return made

    def of(self, step: Any) -> Mock | None:
        there = self._by_step.get(step)
        return there[-1] if there else None

    def workflows(self) -> list[Any]:
        """Workflows that have mocks."""
        return [each for each, mocks in self._by_step.items() if mocks and registry.find(each.name) is each]

    def note(self, run: Any, command: Any) -> Call:
        """An attempt begins."""
        call = call_of(run, command)
        self.calls.append(call)
        return call

    def last(self, command: Any) -> Call:
        """The attempt of *command* that was noted last."""
        run_id = UUID(bytes=command.run.id)
        return next(call for call in reversed(self.calls) if (call.run_id, call.seq) == (run_id, command.seq))

    def _drop(self, mock: Mock) -> None:
        there = self._by_step[mock.step]
        if mock in there:
            there.remove(mock)


def _player(step: Any, returns: Any, raises: Any, sequence: Sequence[Any] | None, calls: Callable[..., Any] | None) -> Callable[[Call], Any]:
    if raises is not None:
        sequence, forever = [raises], True
    elif sequence is not None:
        forever = False
    elif calls is not None:
        return lambda call: calls(*call.args, **call.kwargs)
    else:
        return lambda call: returns
    results = list(sequence)
    left: Iterator[Any] = iter(results)

    def play(_: Call) -> Any:
        value = results[0] if forever else next(left, _NOTHING)
        if value is _NOTHING:
            raise MockUsedUp(step.name, len(results))
        if isinstance(value, BaseException) or isinstance(value, type) and issubclass(value, BaseException):
            raise value
        return value

    return play


def step_of(step: Any) -> Any:
    """The step, or workflow, that is meant. Raises DefinitionError, which names a near one."""
    known = registry.steps()
    if not isinstance(step, str):
        if step in known or step in registry.workflows().values():
            return step
        raise DefinitionError(f"{step!r} is no step and no workflow; give a function that @step or @workflow decorates, or its name")
    found = [each for each in (*known, *registry.workflows().values()) if each.name == step]
    if len(found) == 1:
        return found[0]
    if found:
        homes = ", ".join(f"{each.fn.__module__}.{each.fn.__qualname__}" for each in found)
        raise DefinitionError(f"several are named {step!r}: {homes}; give the function itself")
    near = difflib.get_close_matches(step, [each.name for each in (*known, *registry.workflows().values())], 3)
    raise DefinitionError(f"no step and no workflow is named {step!r}" + (f"; did you mean {' or '.join(near)}?" if near else "; is its module imported?"))


def call_of(run: Any, command: Any) -> Call:
    step, kwargs = command.step, dict(command.kwargs or {})
    parameters = list(inspect.signature(step.fn).parameters.values())[1 if step.info.transactional else 0 :]  # the engine gives the transaction
    bound = inspect.Signature(parameters).bind_partial(*command.args, **kwargs)
    bound.apply_defaults()
    return Call(
        step.name, tuple(command.args), kwargs, dict(bound.arguments), UUID(bytes=run.id), command.seq, command.attempt, bool(command.redelivered)
    )  # fmt: skip


__all__ = ["Call", "Mock", "Mocks"]
