"""Runs that are found by their attributes."""

from __future__ import annotations

from supervisor import Signal, set_attributes, workflow

marked_go = Signal("marked_go", int)


@workflow
async def marked(number: int) -> int:
    """Ends at once, or waits and then has another stage."""
    if number % 2:
        set_attributes(stage="waits")
        await marked_go.wait()
        set_attributes(stage="over", amount=1000.5)
    return number
