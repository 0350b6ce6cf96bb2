"""Who is to be deposed, as a table; and which workers are believed to be gone."""

from __future__ import annotations

import pytest

from supervisor.leader.depose import Facts, judge
from supervisor.leader.reap import lasting

HOUR = 3600.0


@pytest.mark.parametrize(
    ("holder", "idle_s", "term", "lead", "ended", "beat_age_s", "server_age_s", "deposed"),
    [
        (10, 0.3, 4, 10, False, 0.4, HOUR, None),  # it beats
        (10, 0.3, 4, 10, False, 1.5, HOUR, None),  # late, not yet too late
        (10, 9.0, 4, 10, False, 1.6, HOUR, "term"),
        (10, 1.6, 4, 10, False, 1.6, 3.0, None),  # the server has just started: everything is slow
        (10, 1.6, 4, 10, False, 9.0, 3.0, "term"),  # older than the start: no session's any more
        (11, 0.2, 4, 10, False, 9.0, HOUR, None),  # somebody has just taken the lock and is about to begin a term
        (11, 1.6, 4, 10, False, 9.0, HOUR, "holder"),  # about to for too long
        (11, 1.6, 4, 10, True, 0.1, HOUR, "holder"),
        (11, 1.6, None, None, False, None, HOUR, "holder"),  # the first of all
        (11, 1.6, None, None, False, None, 3.0, None),
        (11, None, 4, 10, False, 9.0, HOUR, None),  # another role's session: it can't be seen
    ],
)  # fmt: skip
def test_who_is_deposed(holder, idle_s, term, lead, ended, beat_age_s, server_age_s, deposed):
    verdict = judge(Facts(holder, idle_s, term, lead, ended, beat_age_s, server_age_s))
    if deposed is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.term, verdict.holder_pid) == ((term, None) if deposed == "term" else (None, holder))


def test_a_lock_is_missing_since_it_was_first_missing():
    """A worker that comes back in between begins anew."""
    first = lasting({}, [7, 8], 100.0, HOUR)
    assert {7: 100.0, 8: 100.0} == first
    assert {8: 100.0, 9: 101.0} == lasting(first, [8, 9], 101.0, HOUR)


def test_nobody_is_missing_while_the_server_is_young():
    """After a restart all locks are missing at once, and every worker comes back."""
    assert {} == lasting({7: 100.0}, [7, 8], 101.0, 4.9)
