"""Partitions ahead: make sure that the history's tables have room for the days to come. A duty of the leader.

At the start of every term and hourly; never done by a worker, for DDL waits. CREATE and ATTACH, see `make_partitions`.
"""

from __future__ import annotations

import logging

from supervisor.db.partitions import DAYS_AHEAD
from supervisor.leader.talk import Ask, Talk

log = logging.getLogger("pgsupervisor.leader")

EVERY_S = 3600.0


def partitions(term: int) -> Talk:
    ((made,),) = yield Ask("make_partitions", (DAYS_AHEAD,), ("as_leader", (term,)))
    if made:
        log.info("made %d tables for the days ahead", made)
    yield Ask("drop_queries", (), ("as_leader", (term,)))  # of requesters that went away while no host was there to answer
    yield Ask("drop_updates", (), ("as_leader", (term,)))
