"""A history that was never executed, row by row: for tests of what is read, and how much of it. And who reads it: a viewer, whose questions are explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.harness import Database

Row = dict[str, Any]


@dataclass
class Filled:
    """A database with such a history, and a viewer's session."""

    database: Database
    conn: psycopg.Connection[Row]

    def rows(self, query: str, *values: Any) -> list[Row]:
        return self.conn.execute(query, values or None).fetchall()

    def explained(self, query: str, *values: Any) -> Row:
        """Its plan, with what it came to. *values* stand in it as $1, $2 …"""
        cursor = psycopg.RawCursor(self.conn, row_factory=dict_row)
        plan: Row = cursor.execute(f"explain (analyze, buffers, timing off, format json) {query}".encode(), values).fetchall()[0]["QUERY PLAN"][0]["Plan"]
        return plan

    def blocks(self, query: str, *values: Any) -> int:
        """How many pages it touches, inside of functions too."""
        self.explained(query, *values)  # what is read of the catalogue, once
        plan = self.explained(query, *values)
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@contextmanager
def read_by_a_viewer(database: Database) -> Iterator[Filled]:
    with psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as conn:
        conn.execute("set role supervisor_viewer")
        yield Filled(database, conn)


# run ids of 100 runs per ms from a minute ago on, in the partition of today; [n] is the n-th
MADE = """
create temp table made as
select g as n, (lpad(to_hex((extract(epoch from clock_timestamp() - interval '1 minute') * 1000)::int8 + g / 100), 12, '0')
                || '7' || substr(md5(g::text), 1, 3) || '8' || substr(md5(g::text), 4, 15))::uuid as id
from generate_series(1, %s) as g order by 2
"""

# One run every 0.3 s, the newest a second ago, over 8 h 20 min: n is a run's number, from the oldest.
OLD_PARTITIONS = """
do $$
declare
    low timestamptz := date_bin('7 days', clock_timestamp() - interval '2 minutes', '2020-01-01 00:00:00+00');
    one text;
begin
    foreach one in array array['run', 'step', 'attempt', 'outcome', 'child', 'child_done', 'publication', 'attribute', 'attribute_set', 'progress_note'] loop
        execute format('create table supervisor.%I partition of supervisor.%I for values from (%L) to (%L)', one || '_old', one,
                       supervisor.id_floor(low - interval '7 days'), supervisor.id_floor(low));
    end loop;
end $$
"""
NUMBERED = """
create table numbered as
select n, at, (substr(supervisor.id_floor(at)::text, 1, 24) || lpad(to_hex(n), 12, '0'))::uuid as run_id,
       case when n % 200 = 7 then 2 when n % 1000 = 13 then 3 when n % 5000 = 21 then 4 when n % 5000 = 22 then 5 when n % 500 = 30 then 6
            when n > {runs} * 0.98 or n % 2000 = 50 then null else 1 end::int2 as outcome
from (select n, clock_timestamp() - interval '1 s' - ({runs} - n) * interval '0.3 s' as at from generate_series(1, {runs}) as n) as made
"""
FILL = (
    "insert into supervisor.queue (name) values ('orders'), ('bulk')",
    "insert into supervisor.workflow (name, queue) values ('checkout', 1), ('report', 1), ('rare', 2)",
    "insert into supervisor.batch (name) values ('nightly')",
    """insert into supervisor.run (run_id, created_at, workflow, queue, prio, key, input, parent_id, parent_seq, batch, attributes)
       select run_id, at, case when n % 10000 = 1 then 3 else 1 + n % 2 end, 1 + n % 2, n % 10, case when n % 10 = 0 then 'order-' || n end,
              convert_to(json_build_object('order', n, 'name', 'x' || n, 'big', n % 3 = 0)::text, 'UTF8'),
              case when n % 1000 between 2 and 6 then (select p.run_id from numbered p where p.n = m.n - m.n % 1000 + 1) end,
              case when n % 1000 between 2 and 6 then n % 1000 - 2 end, case when n % 100 = 0 then 1 end,
              case when n % 4 = 0 then convert_to(json_build_object('tenant', 't' || n % 16, 'n', n, 'deep', json_build_object('first name', n % 7))::text, 'UTF8') end
       from numbered m""",
    """insert into supervisor.schedule_fire (schedule, tick_at, id, fired_at, kind, state)
       select case when n % 500 = 3 then 'hourly' when n % 3 = 0 then 'often' else 'another' end, at, run_id, at, 1, case when n % 300 = 9 then 3 else 1 end
       from numbered where n % 3 < 2 or n % 500 = 3""",
    """insert into supervisor.attribute (run_id, name, n, kind, txt, num)
       select r.run_id, a.name, a.n, a.kind, a.txt, a.num from supervisor.run r, supervisor.attribute_rows(r.attributes) a where r.attributes is not null""",
    "insert into supervisor.child (parent_id, seq, run_id) select parent_id, parent_seq, run_id from supervisor.run where parent_id is not null",
    "insert into supervisor.run_key (workflow, key, run_id, input_hash) select workflow, key, run_id, '' from supervisor.run where key is not null",
    """insert into supervisor.outcome (run_id, ended_at, steps, status, result, worker)
       select run_id, at + n % 100 * interval '1 s', n % 5, outcome, case outcome when 1 then '{"ok": true}'::bytea when 2 then
              convert_to(json_build_object('type', case n % 400 when 7 then 'shop.CardDeclined' else 'builtins.ValueError' end,
                                           'message', 'card ' || n || ' was declined 100%_\\')::text, 'UTF8') end, 1
       from numbered where outcome is not null""",
    """insert into supervisor.task (run_id, ready_at, queue, workflow, prio, owner, wait_kind, wait_since, step, seq, attempt)
       select n.run_id, case when n.n % 4 = 2 then 'infinity' when n.n % 4 = 3 then now() + interval '1 day' else at end, r.queue, r.workflow, r.prio,
              case when n.n % 4 = 1 then 1 end, (array[null, 11, 10, 1])[1 + (n.n + 3) % 4], at, case when n.n % 4 > 0 then 'charge' end, 2, n.n % 3
       from numbered n join supervisor.run r using (run_id) where outcome is null""",
)
