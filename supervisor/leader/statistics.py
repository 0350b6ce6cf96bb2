"""Statistics: ANALYZE what has grown, where autovacuum comes late. A duty of the leader.

Hot statements do not depend on it (their plans are forced); views, `list` and retention do. One table per statement, and
at most a few per turn. What has not doubled is left alone, and so is what is small.
"""

from __future__ import annotations

import logging

from supervisor.leader.talk import Ask, Pause, Talk

log = logging.getLogger("pgsupervisor.leader")

EVERY_S = 60.0
TABLES_MAX = 8
BETWEEN_S = 0.5


def statistics(term: int) -> Talk:
    for _ in range(TABLES_MAX):
        ((table,),) = yield Ask("renew_statistics")  # without the fence: it would keep a successor waiting; at worst it is done twice
        if table is None:
            return
        log.debug("term %d: statistics of %s renewed", term, table)
        yield Pause(BETWEEN_S)
