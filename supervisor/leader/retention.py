"""Retention: drop partitions of the history that are older than was asked for. A duty of the leader; by default it drops nothing.

A partition goes when all its runs were born, and ended, longer ago than that, when none of them is live, and no older
live run has a child in it. What was begun is recorded in `retired` and brought to an end by whoever leads: detach each
table (CONCURRENTLY, which blocks nobody), look again for live runs and attach again if there is one, remove the keys,
forget the batches that have no other runs and what schedules fired then, drop the tables. An interrupted DETACH is finished first, always: until then inserts into its range fail.
"""

from __future__ import annotations

import logging
from functools import partial
from uuid import UUID

from supervisor.core.errors import DatabaseUnavailable
from supervisor.leader.talk import CANCELLED, LOCK_NOT_AVAILABLE, Ask, Pause, Talk, Text, is_refused

log = logging.getLogger("pgsupervisor.leader")

EVERY_S = 3600.0
SLICE = 500
TRIES_MAX, AGAIN_S = 300, 0.2  # a reader of the table (a backup) may hold a DETACH up: for a minute now, and for hours over the next turns
AT_ONCE_MAX = 8  # partitions per turn


def retention(keep_s: float | None, term: int) -> Talk:
    """One turn. *keep_s*: how long the history is kept; None for ever."""
    ((may, owner, role),) = yield Ask("may_retire")
    if not may:
        if keep_s is not None:
            log.warning("retention: the tables belong to role %s, and %s may not drop any; let a supervisor log in as %s, or as a member of it", owner, role, owner)
        return
    for (text,) in (yield Ask("unfinished_detaches")):
        log.info("retention: finishing an interrupted DETACH")
        yield from _patiently(partial(_one, text))
    for suffix, low, high, _ in (yield Ask("retired")):
        yield from _drop(term, suffix, low, high)
    if keep_s is None:
        return
    dropped = 0
    for suffix, low, high in (yield Ask("old_partitions", (keep_s,))):
        ((needed,),) = yield Ask("partition_needed", {"low": low, "high": high, "keep_s": keep_s})
        if needed is not None:
            log.info("retention: partition %s is kept: %s", suffix, needed)
            continue
        if (yield Ask("retire", {"suffix": suffix, "low": low, "high": high}, ("as_leader", (term,)))):
            yield from _drop(term, suffix, low, high)
            dropped += 1
        if dropped >= AT_ONCE_MAX:
            return


def _drop(term: int, suffix: str, low: UUID, high: UUID) -> Talk:
    """Bring one partition that was retired to its end, wherever that was interrupted."""
    fence = ("as_leader", (term,))
    log.info("retention: partition %s (runs from %s to %s) goes", suffix, low, high)
    yield from _patiently(partial(_detach, term, suffix))
    ((kept,),) = yield from _patiently(partial(_one, Ask("keep_if_live", (suffix,), fence)))
    if kept:
        log.warning("retention: a run of partition %s came back to life; it is kept", suffix)
        return
    keys = yield from _slices("drop_keys", suffix, UUID(int=0), fence)
    batches = yield from _slices("drop_batches", suffix, 0, fence)
    fires = yield from _slices("drop_fires", suffix, UUID(int=0), fence)
    ((tables,),) = yield from _patiently(partial(_one, Ask("drop_detached", (suffix,), fence)))
    log.warning("retention: partition %s dropped: %d tables, runs born from %s to %s, %d keys, %d batches, %d fires of schedules", suffix, tables, low, high, keys, batches, fires)


def _slices(block: str, suffix: str, after: object, fence: tuple[str, tuple[int]]) -> Talk:
    """Look at all of what *block* removes, by the slice: one statement for a million rows would hold a million locks. Returns how many those were."""
    looked = 0
    while True:
        ((n, last),) = yield Ask(block, (suffix, after, SLICE), fence)
        looked += n
        if n < SLICE:
            return looked
        after = last


def _detach(term: int, suffix: str) -> Talk:
    """DETACH is no part of a transaction, so the term is looked at before each."""
    while True:
        yield Ask("as_leader", (term,))
        texts = yield Ask("detaches", (suffix,))
        if not texts:
            return
        yield Text(texts[0][0])


def _one(question: Ask | str) -> Talk:
    return (yield Text(question) if isinstance(question, str) else question)


def _patiently(again: partial[Talk]) -> Talk:
    """Try until the locks were to be had; raises the refusal when they were not for a minute."""
    for _ in range(TRIES_MAX):
        try:
            return (yield from again())
        except DatabaseUnavailable as error:
            if not is_refused(error, LOCK_NOT_AVAILABLE, CANCELLED):
                raise
            last = error
        yield Pause(AGAIN_S)
    raise last
