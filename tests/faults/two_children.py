"""A supervisor whose children only sleep and outlive it; parent and leadership are the real ones.

python -m tests.faults.two_children DSN     prints the children's pids once they run
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

from supervisor.host.parent import Parent, ParentOptions
from supervisor.leader.lead import Leadership


def sleep_for_ever(_: Any) -> int:
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # not killed with the parent
    os.write(1, f"child {os.getpid()}\n".encode())  # in one write: the other child prints too
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3600)
    return 0


def main() -> int:
    parent = Parent(ParentOptions(sys.argv[1], "supervisor", 2, 1, drain_timeout_s=0.0), sleep_for_ever)
    leadership = Leadership(sys.argv[1], "supervisor", parent.options.supervisor_id, parent.reaper.burials)
    parent.add(leadership)
    parent.start()
    while parent.step(0.5):
        pass
    parent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
