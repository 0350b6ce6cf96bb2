"""The whole suite, as `make test` runs it:  python -m tests [more for pytest]

Most tests wait, for processes to start and to end; so files run side by side, each process of pytest with a server of
its own. Those marked `alone` judge times, rates or shares of a processor: they come afterwards, with nothing beside them.
Both parts run whatever the other finds. What failed in them, where that is little, is judged once more by itself: on machines that others
use too, a process now and then does not get a processor for seconds. What fails again fails; what passes then is named, for it is worth a look.
Exit code 0 only if all passed, at once or then.

The tests start thousands of processes. So what they import is compiled to bytecode first, as in an installed package: also where
PYTHONDONTWRITEBYTECODE is set, under which each of them would compile it anew (half a second for a supervisor).
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.harness import ROOT

SIDE_BY_SIDE = max(2, len(os.sched_getaffinity(0)))
FILES = ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile", "--no-loadscope-reorder"]  # a file's tests share hosts and fixtures
NOTHING_FOUND = 5  # pytest's exit code where no test was chosen
FAILED = 1  # and where some of them failed
AGAIN_MAX = 10  # more than that is no accident
COMPILED = ("supervisor", "_fastpath", "tests")


def pytest(*words: str) -> int:
    print(f"$ python -m pytest {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode


def failed(cache: Path) -> list[str]:
    """What pytest notes of the tests that failed."""
    noted = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(noted.read_text())) if noted.exists() else []


def main(more: list[str]) -> int:
    began = time.monotonic()
    for folder in COMPILED:
        compileall.compile_dir(ROOT / folder, quiet=2)  # what can't be compiled is a test's business
    side_by_side = FILES if importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryDirectory(prefix="pgs-tests-") as folder:
        noting = ["-o", f"cache_dir={folder}"]
        codes = [pytest(*noting, *side_by_side, "-m", "not alone", *more), pytest(*noting, "-m", "alone", *more)]
        code = max([code for code in codes if code != NOTHING_FOUND] or [NOTHING_FOUND], key=abs)
        first = failed(Path(folder))
        if code == FAILED and 0 < len(first) <= AGAIN_MAX:
            code = pytest(*noting, "--last-failed", "--last-failed-no-failures=none", *more)
            if code == 0:
                print("\n".join(["failed beside others, passed by themselves:", *(f"  {each}" for each in first)]), flush=True)
    print(f"{'passed' if code == 0 else 'FAILED'} in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
