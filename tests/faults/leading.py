"""A supervisor without workers that leads as soon as it may: what a host's parent does for all, and quick to start and to kill.

python -m tests.faults.leading DSN     prints "leads" when it does
"""

from __future__ import annotations

import os
import select
import sys
import time
from uuid import uuid4

from supervisor.leader.burial import Burials
from supervisor.leader.lead import Leadership


def main() -> None:
    burials = Burials(sys.argv[1], "supervisor")
    leadership = Leadership(sys.argv[1], "supervisor", uuid4(), burials)
    parts = (leadership, burials)
    told = False
    while True:
        asked = [part.sockets() for part in parts]
        reading, writing = {fd for each in asked for fd in each[0]}, {fd for each in asked for fd in each[1]}
        wait_s = max(0.0, min([0.2, *(part.due() - time.monotonic() for part in parts)]))
        readable, writable, _ = select.select(reading, writing, [], wait_s)
        for part in parts:
            part.act(set(readable), set(writable))
        if leadership.term and not told:
            told = True
            os.write(1, b"leads\n")


if __name__ == "__main__":
    main()
