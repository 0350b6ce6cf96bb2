"""The whole suite, as `make test` runs it:  python -m tests [more for pytest]

Most tests wait, for processes to start and to end; so files run side by side, each process of pytest with a server of
its own. Those marked `alone` judge times, rates or shares of a processor: they come afterwards, with nothing beside them.
Both parts run whatever the other finds. Exit code 0 only if both passed.

The tests start thousands of processes. So what they import is compiled to bytecode first, as in an installed package: also where
PYTHONDONTWRITEBYTECODE is set, under which each of them would compile it anew (half a second for a supervisor).
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import subprocess
import sys
import time

from tests.harness import ROOT

SIDE_BY_SIDE = max(2, len(os.sched_getaffinity(0)))
FILES = ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile", "--no-loadscope-reorder"]  # a file's tests share hosts and fixtures
NOTHING_FOUND = 5  # pytest's exit code where no test was chosen
COMPILED = ("supervisor", "_fastpath", "tests")


def pytest(*words: str) -> int:
    print(f"$ python -m pytest {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode


def main(more: list[str]) -> int:
    began = time.monotonic()
    for folder in COMPILED:
        compileall.compile_dir(ROOT / folder, quiet=2)  # what can't be compiled is a test's business
    side_by_side = FILES if importlib.util.find_spec("xdist") else []
    codes = [pytest(*side_by_side, "-m", "not alone", *more), pytest("-m", "alone", *more)]
    found = [code for code in codes if code != NOTHING_FOUND] or [NOTHING_FOUND]
    print(f"{'passed' if not any(found) else 'FAILED'} in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return max(found, key=abs)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
