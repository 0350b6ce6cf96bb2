"""How pages ask: together, each part for itself where one can't be had, prepared where the session is theirs, planned for their values."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from supervisor.core.errors import ReadTimeout, SupervisorError
from supervisor.db.connect import Dsn
from supervisor.db.pages import Sessions
from tests.harness import Database

PREPARED = "select count(*), count(*) filter (where generic_plans > 0 and cardinality(parameter_types) > 0) from pg_prepared_statements"


@pytest.fixture
def sessions(database: Database) -> Iterator[Sessions]:
    made = Sessions(Dsn(database.dsn, ""), "supervisor", timeout_s=0.5)
    yield made
    made.close()


def test_what_is_asked_together_is_what_is_asked_one_by_one(sessions: Sessions) -> None:
    asked = {"leader": ("page_leader",), "saved": ("page_saved",), "queues": ("page_queues", 100, 10)}
    with sessions.look() as look:
        found = look.together(asked)
        assert found == {part: look.rows(*each) for part, each in asked.items()}
        assert [said.name for said in look.said] == ["page_leader", "page_saved", "page_queues"] * 2


def test_a_part_that_takes_too_long_costs_no_other(sessions: Sessions, database: Database) -> None:
    """Its neighbours are asked again, and each is said once."""
    with database.connect() as holder, holder.transaction():
        holder.execute("lock table supervisor.saved_view in access exclusive mode")
        with sessions.look() as look:
            found = look.parts({"leader": ("page_leader",), "saved": ("page_saved",), "queues": ("page_queues", 100, 10)})
            assert isinstance(found["saved"], ReadTimeout) and found["leader"] == found["queues"] == []
            assert [said.name for said in look.said] == ["page_leader", "page_saved", "page_queues"]
            assert look.rows("page_leader") == [], "the transaction goes on"


def test_blocks_are_prepared_once_and_planned_for_their_values(sessions: Sessions) -> None:
    """A plan for any run would lock every partition of the history, for each page."""
    for _ in range(8):
        with sessions.look() as look:
            look.rows("page_kinds", "01a00000-0000-7000-8000-000000000000")
            look.rows("page_saved")
            prepared, generic = look._conn.execute(PREPARED).fetchone() or (0, 0)
    assert (prepared, generic) == (2, 0)


def test_a_session_that_met_an_error_is_not_used_again(sessions: Sessions) -> None:
    with sessions.look() as look:
        first = look._conn.info.backend_pid
    with pytest.raises((psycopg.Error, SupervisorError)), sessions.look() as look:
        assert look._conn.info.backend_pid == first
        look.rows("page_kinds", "no uuid")
    with sessions.look() as look:
        assert look.rows("page_leader") == []
