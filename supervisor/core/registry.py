"""What this process can run: workflows and steps by name. Names from the database are looked up here and never imported."""

from __future__ import annotations

import re
from typing import Any

from supervisor.core.errors import DefinitionError

NAME_MAX = 200  # of a signal, of a query, of an update, of a queue
QUEUE_NAME = "a name of 1 to 200 characters on one line, without control characters"
_NOT_OF_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # of the same text in sql (is_queue_name), which has no NUL and no lone surrogates

_workflows: dict[str, Any] = {}
_steps: list[Any] = []
_queries: list[Any] = []
_schedules: dict[str, Any] = {}


def is_name(name: object) -> bool:
    """Whether a signal, a query or an update may be named so."""
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and name.isprintable()


def is_queue_name(name: object) -> bool:
    """Whether a queue may be named so; the database has the same rule."""
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and not _NOT_OF_A_LINE.search(name)


def register(workflow: Any) -> None:
    """Add a workflow. Raises DefinitionError when another function has its name."""
    known = _workflows.get(workflow.name)
    if known is not None and _home(known.fn) != _home(workflow.fn):
        raise DefinitionError(
            f"two workflows are named {workflow.name!r}: {_home(known.fn)} and {_home(workflow.fn)}; give one of them @workflow(name=…)"
        )
    _workflows[workflow.name] = workflow


def _home(fn: Any) -> str:
    return f"{fn.__module__}.{fn.__qualname__}"


def workflows() -> dict[str, Any]:
    """All registered workflows by name."""
    return dict(_workflows)


def register_step(step: Any) -> None:
    _steps.append(step)


def steps() -> list[Any]:
    """All registered steps, in the order of their definition."""
    return list(_steps)


def register_query(query: Any) -> None:
    _queries.append(query)


def queries() -> list[Any]:
    """All queries that the app has defined."""
    return list(_queries)


def register_schedule(schedule: Any) -> None:
    """Add a schedule. Raises DefinitionError when another workflow has one of its name; a module that is loaded again defines its own anew."""
    known = _schedules.get(schedule.name)
    if known is not None and _home(known.workflow.fn) != _home(schedule.workflow.fn):
        raise DefinitionError(f"two schedules are named {schedule.name!r}: of {_home(known.workflow.fn)} and of {_home(schedule.workflow.fn)}; give one of them another name")
    _schedules[schedule.name] = schedule


def schedules() -> list[Any]:
    """All schedules that the app declares, by name."""
    return [schedule for _, schedule in sorted(_schedules.items())]


def settle() -> None:
    """Resolve every annotation, and hold inputs of schedules against them. Raises DefinitionError naming function or schedule; called before the first claim, so that errors come early."""
    for one in (*_workflows.values(), *_steps, *schedules()):
        one.settle()


def find(name: str) -> Any | None:
    return _workflows.get(name)
