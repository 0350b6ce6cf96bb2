"""pgsupervisor: durable workflows on nothing but PostgreSQL.

Everything a user imports lives in `supervisor.api`; this file only passes it on, lazily, and holds nothing that
the programs need (another distribution installs a package of this name and may overwrite this file).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from supervisor.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name == "__all__":  # of `from supervisor import *`
            return __dir__()
        if name.startswith("_") or name == "api":
            raise AttributeError(name)
        return getattr(import_module("supervisor.api"), name)


def __dir__() -> list[str]:
    return sorted(import_module("supervisor.api").__all__)
