"""The load, and beside it runs whose steps stand at a gate while sessions are lost."""

from supervisor import workflow
from tests.apps.taken import afterwards, ends_at_once, parent, tasked, threaded, transacted
from tests.faults.apps_load import order

__all__ = ["ends_at_once", "order", "padded", "parent", "tasked", "threaded", "transacted"]


@workflow
async def padded(word: str, padding: str) -> str:
    """Its input is as long as its padding."""
    return await afterwards.aio(word)
