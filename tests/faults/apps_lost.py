"""The load, and beside it runs whose steps stand at a gate while sessions are lost."""

from tests.apps.taken import ends_at_once, parent, tasked, threaded, transacted
from tests.faults.apps_load import order

__all__ = ["ends_at_once", "order", "parent", "tasked", "threaded", "transacted"]
