"""What the terms of leaders must be afterwards, whoever was killed, stopped or lost."""

from __future__ import annotations

from tests.harness import Database

HISTORY = "select term, pid, began_at, ended_at, why, beat_at, supervisor, lead_pid, chores_pid from supervisor.leader order by term"


def judge_history(database: Database) -> list[tuple]:
    """Terms follow one another without a hole and without an overlap; every one but the last has an end and a reason."""
    rows = database.sql(HISTORY)
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    for before, after in zip(rows, rows[1:], strict=False):
        assert before[3] is not None and before[4], f"term {before[0]} has no end"
        assert before[3] <= after[2], f"term {after[0]} began before term {before[0]} ended"
        assert before[5] <= after[2], f"term {before[0]} beat when term {after[0]} had begun"
    return rows
