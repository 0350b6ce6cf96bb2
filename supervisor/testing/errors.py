"""What a test environment tells the test, and never the run: the run is not to blame."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.errors import SupervisorError


class NotInMemory(SupervisorError):
    """A test asks for something that needs a database, and its environment has none."""

    code = "not_in_memory"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} needs a database, and this test environment has none; use a DatabaseEnvironment instead")


class BadValue(Exception):
    """Arguments that the functions of the database refuse (SQLSTATE 22023). Whoever knows what was asked says it, as InputInvalid."""


class StepNotMocked(SupervisorError):
    """A strict test environment was to execute a step for which there is no mock."""

    code = "step_not_mocked"

    def __init__(self, step: str, call: str) -> None:
        self.step, self.call = step, call
        super().__init__(f"step {step} was called as {call} and has no mock; add one, env.mock({step}, returns=…), or make the environment with strict=False")


class MockUsedUp(SupervisorError):
    """A mock with a list of results was called more often than it has results."""

    code = "mock_used_up"

    def __init__(self, step: str, results: int) -> None:
        self.step, self.results = step, results
        super().__init__(f"the mock of step {step} has {results} results and was called once more; give it more of them, or a callable")


class EnvironmentStuck(SupervisorError):
    """What a test waits for can't happen: no timer is due, and all runs wait for something that nobody sends."""

    code = "environment_stuck"

    def __init__(self, what: str, waiting: Sequence[str]) -> None:
        self.waiting = list(waiting)
        told = "\n".join(f"  {each}" for each in self.waiting) or "  no run lives"
        super().__init__(f"{what}, and nothing will happen any more by itself; send what is waited for, or give the wait a timeout. Waiting:\n{told}")


__all__ = ["EnvironmentStuck", "MockUsedUp", "NotInMemory", "StepNotMocked"]
