"""The test kit: run workflows in a test, without a database or on one, with time that is skipped and steps that are mocked. See docs/testing.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.testing.database import DatabaseEnvironment as DatabaseEnvironment
    from supervisor.testing.environment import TestEnvironment as TestEnvironment, crashes as crashes
    from supervisor.testing.errors import EnvironmentStuck as EnvironmentStuck, MockUsedUp as MockUsedUp, NotInMemory as NotInMemory, StepNotMocked as StepNotMocked
    from supervisor.testing.mocks import Call as Call, Mock as Mock
    from supervisor.testing.reading import replay_file as replay_file

_HOMES = {
    "Call": "testing.mocks", "DatabaseEnvironment": "testing.database", "EnvironmentStuck": "testing.errors", "Mock": "testing.mocks", "MockUsedUp": "testing.errors", "NotInMemory": "testing.errors",
    "StepNotMocked": "testing.errors", "TestEnvironment": "testing.environment", "crashes": "testing.environment", "replay_file": "testing.reading",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imported at first use: who asks for the plugin alone loads no engine."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"supervisor.{home}"), name)
