"""What the apps of the conformance suite share: gates that a test opens, and descriptions that tell any two values apart."""

from __future__ import annotations

import asyncio
import enum
import os
from pathlib import Path
from typing import Any


async def at_gate(name: str, within_s: float = 60.0) -> None:
    """In an async step: wait until the test has opened *name* (`effects.open`); thousands may wait at once."""
    path = Path(os.environ["TEST_EFFECTS"]).parent / name
    waited = 0.0
    while not path.exists():
        await asyncio.sleep(0.02)
        waited += 0.02
        if waited > within_s:
            raise TimeoutError(f"gate {name} was never opened")


def described(value: Any) -> str:
    """Type and content of *value*, all the way down, equal for equal values and for nothing else."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, BaseException):
        return f"{kind}({described(list(value.args))} {described(vars(value))} {printed(value)!r} cause={described(value.__cause__)})"
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, dict):
        return f"{kind}{{{', '.join(f'{described(key)}: {described(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{kind}[{', '.join(map(described, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{kind}<{', '.join(sorted(map(described, value)))}>"
    fields = getattr(type(value), "__struct_fields__", None) or getattr(type(value), "__dataclass_fields__", None)
    if fields:
        return f"{kind}({', '.join(f'{name}={described(getattr(value, name))}' for name in fields)})"
    return f"{kind}:{value!r}"


def printed(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - unprintable on purpose
        return "(unprintable)"


def branch(value: Any) -> str:
    """The way that code would take which tests *value* as code does."""
    return " ".join(
        str(test)
        for test in (
            value is None, value is True, value is False, bool(value), value == 0, value == 1, value == "",
            isinstance(value, (list, tuple)),
            isinstance(value, dict), isinstance(value, str), isinstance(value, int), isinstance(value, float),
            hasattr(value, "__dataclass_fields__"),
        )
    )  # fmt: skip
