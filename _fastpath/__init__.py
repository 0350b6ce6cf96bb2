"""The loop and its leaves: compiled where the extension was built, else the same source uncompiled.

`PGSUPERVISOR_LOOP=python` takes the uncompiled build even where the other exists, `=compiled` insists on the compiled one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

BUILDS = ("compiled", "python")


def _load_source(name: str) -> ModuleType:
    """Import `<name>.py` though an extension module of that name stands beside it."""
    full = f"{__name__}.{name}"
    spec = importlib.util.spec_from_file_location(full, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


_wanted = os.environ.get("PGSUPERVISOR_LOOP", "")
if _wanted not in ("", *BUILDS):
    raise ImportError(f"PGSUPERVISOR_LOOP={_wanted!r}; give one of {', '.join(BUILDS)}, or leave it unset")
if TYPE_CHECKING:
    from supervisor._fastpath import loop as loop, wire as wire
elif _wanted == "python":
    wire = _load_source("wire")
    loop = _load_source("loop")
else:
    from supervisor._fastpath import loop, wire


def build() -> str:
    """`compiled` or `python`: which build of the loop this process runs."""
    return "compiled" if wire.compiled() and not str(loop.__file__).endswith(".py") else "python"


if _wanted == "compiled" and build() != "compiled":
    raise ImportError("PGSUPERVISOR_LOOP=compiled, but the extension was not built; install a compiler and Python's headers, then: pip install -e .")
