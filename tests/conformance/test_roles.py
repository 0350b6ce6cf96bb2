"""Who may do what: every role against every object that the catalogue has. What is not named here is denied, later objects too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from supervisor.db import migrations
from supervisor.db.statements import ROLES, MigrationFile, Sql, migration_files
from tests.harness import Database

NOBODY = "roles_nobody"  # has what PUBLIC has
SQL = Sql()

# ── what each role may ───────────────────────────────────────────────────────────────────────────────────────────

VIEWS = "attempts audits attributes batches cancellations children compensations due errors failures keys later leaders live pauses published queues runs schedule_fires schedule_runs schedules saved_views signals started steps throughput tokens heartbeats updates versions waits workers workflows".split()
CALLS = (  # of applications and of people; in the caller's transaction
    "start_runs(text, uuid[], bytea[], text[], bytea[], text, smallint, interval, bytea, text, text)",
    "start(text, jsonb, text, text, integer, interval, jsonb, text, text, boolean)",
    "start_many(text, jsonb[], text[], text, integer, interval, jsonb, text, text, boolean)",
    "cancel_many(uuid[], text, text)", "cancel_tree(uuid[], text, text)", "terminate(uuid, text, boolean, text)", "terminate_many(uuid[], text, text)",
    "replace_runs(text, uuid[], bytea[], text[], bytea[], text, smallint, interval, bytea, text)",
    "cancel(uuid, text, boolean, text)", "home()", "result(uuid)", "outcomes(uuid[])", "outcomes_soon(uuid[], interval)", "find_runs(uuid[], text, text, text, uuid, integer)", "batch_results(text, uuid, integer)",
    "signal(uuid, text, jsonb, text, boolean)", "send_signal(uuid, text, bytea, text)", "wait_for_disk()",
    "signal_and_tell(uuid, text, bytea, text, text, text, boolean, integer, boolean, text, text)",
    "send_signals(uuid[], text[], bytea[], text[])",
    "signals_together(uuid[], text[], bytea[], text[], boolean[], integer[], boolean[], text[], text[])",
    "signal_with_start(text, text, jsonb, jsonb, text, text, text, integer, interval, jsonb, text, text, boolean)",
    "start_and_send(text, uuid, bytea, text, bytea, text, smallint, interval, bytea, text, text, text, bytea, text)",
    "update(uuid, text, jsonb, text, boolean)", "send_update(uuid, text, bytea, text)",
    "update_with_start(text, text, jsonb, jsonb, text, text, text, integer, interval, jsonb, text, text, boolean)",
    "start_and_update(text, uuid, bytea, text, bytea, text, smallint, interval, bytea, text, text, text, bytea, text)",
    "update_standing(uuid, text, text)", "update_answer(uuid, text, text)",
    "tells_of_one(text)", "start_one(text, uuid, bytea, text, smallint, interval)", "start_and_tell(text, uuid, bytea, text, smallint, interval, text, text)",
    "client_facts()", "workflow_parameters(text)", "new_id()", "published(uuid, text)", "published_values(uuid, text)",
    "trace_starts(uuid[], text, text)", "traced(uuid, text, text)", "trace_sent(uuid, text, text, text, text)", "sent_by(uuid, text, text, text, text)",
    "newest(uuid)", "progress(uuid)", "attributes(uuid)",
    "operate(text, uuid, uuid, integer, bytea, jsonb, text, text)", "pause(uuid, text, text, boolean)", "resume(uuid, text, text, boolean)",
    "retry(uuid, text, text, boolean)", "fork(uuid, integer, jsonb, text, text, text, boolean)",
    "complete(text, jsonb, boolean)", "fail(text, text, boolean, boolean)", "heartbeat(text, jsonb)", "finish_token(text, smallint, bytea, boolean)", "beat_token(text, bytea)",
    "send_because(text, uuid, text, bytea, text, text, text)",
    "put_schedule(text, jsonb, text, text, text, text)", "change_schedule(text, jsonb, text, text)", "pause_schedule(text, text, text)", "resume_schedule(text, text, text)",
    "create_schedule(text, text, jsonb, text, interval, text, text, interval, interval, text, text, integer, jsonb, timestamp with time zone, timestamp with time zone, text, text)",
    "trigger_schedule(text, text, text, text, boolean, uuid)", "backfill_schedule(text, timestamp with time zone, timestamp with time zone, text, text, text)", "delete_schedule(text, text, text)",
    "ask_query(uuid, uuid, text, bytea, double precision)", "query_answer(uuid)", "forget_query(uuid)",
)  # fmt: skip
SEES = ("as_word(text)",)  # whoever reads the views
HISTORIES = ("history_run(uuid)", "history_steps(uuid, integer, integer)", "history_pending(uuid)", "history_sample(text, timestamp with time zone, integer, text)")
SEEN = ("goes_on(uuid)", "newest_errors(text, timestamp with time zone, integer)", "error_groups(interval, integer)", "wait_groups(integer)", "rates(interval, integer)", "paces(interval, integer)", "queue_sizes(integer)", "worker_sizes(integer)", "version_sizes(integer)", "batch_sizes(text, timestamp with time zone, integer, integer, text)")
INTERVENE = (  # of operators alone: what a step comes to, and many runs at once
    "intervene(text, uuid, uuid, integer, bytea, jsonb, text, text)", "operate_many(text, uuid[], integer, bytea, jsonb, text, text)",
    "finish_because(uuid, integer, smallint, bytea, boolean, text, text)", "save_view(text, text, text)", "forget_view(text)",
    "skip(uuid, integer, jsonb, text, text, boolean)", "step_of(uuid, integer)", "pause_queue(text, text, text)", "resume_queue(text, text, text, boolean)",
    "edit_retry(uuid, integer, integer, double precision, double precision, double precision, double precision, text, text, boolean)",
)  # fmt: skip
PURE = ("as_json(bytea, smallint)", "merged_attributes(bytea, bytea)", "id_time(uuid)", "id_floor(timestamp with time zone)", "outcome_name(smallint)", "trace_id(uuid)")
ENGINE = (  # of workers, their parents and the leader among these
    "make_partitions(timestamp with time zone)", "fence(integer, uuid, integer)", "queue_id(text)", "requests_of(integer, bigint[])", "put_aside(uuid[])",
    "all_owned(bigint, integer, integer)", "take_away(uuid[], timestamp with time zone, smallint, text)", "as_leader(bigint)",
    "take_term(uuid, text, integer, text)", "renew_statistics()", "partitioned()", "keep_if_live(text)", "drop_keys(text, uuid, integer)",
    "accepts(text, text)", "version_of(integer, integer)", "has_begun(uuid)", "run_version(uuid)", "pin(uuid, text, integer, integer)",
    "fire_schedules(jsonb)", "release_held(integer)", "drop_fires(text, uuid, integer)", "drop_batches(text, bigint, integer)", "drop_detached(text)", "drop_queries()", "drop_updates()", "wake_updated(uuid[])", "announce_signal(integer, boolean, text, text)",
    "close_children(uuid[])", "lose_children(uuid[], integer[])", "end_wedged(uuid[])", "wedged(uuid, smallint, smallint, text)", "error_json(text, text)",
    "set_attributes(uuid, integer, bytea, timestamp with time zone)", "continue_run(uuid, uuid, integer, text, smallint, bytea, interval, integer)",
    "traces_of(uuid[])", "take_trace_ends(uuid[], integer)",
)  # fmt: skip
OPERATORS = ("move_runs(text, text, text, uuid, integer, boolean, text, text)",)
WRITTEN = {
    "INSERT": "run run_key step attempt outcome child child_done cancellation consumed publication progress_note update_accepted update_done completion beat trace task timer worker workflow workflow_version queue leader retired",
    "UPDATE": "task timer worker workflow workflow_version queue leader retired query update_request pause changed beat",
    "DELETE": "task timer leader retired query update_request pause changed",
}
READ = (
    "batch cell migration wait_kind run run_key step attempt outcome child child_done cancellation message consumed publication progress_note child_continued child_kept update_request update_accepted update_done completion beat trace trace_sender task timer worker workflow workflow_version served missing queue leader retired query pause changed schedule schedule_backfill queue_pause worker_now task_now "
    + " ".join(f"run_key_{n}" for n in range(8))
)
Right = tuple[str, str]  # object, privilege


def rights(names: Any, privilege: str) -> set[Right]:
    return {(name, privilege) for name in (names.split() if isinstance(names, str) else names)}


USES = rights(["supervisor"], "USAGE")
MAY: dict[str, set[Right]] = {
    "supervisor_worker": USES
    | rights([*CALLS, *PURE, *ENGINE, *OPERATORS, *HISTORIES, *SEEN, *SEES], "EXECUTE") | rights([*READ.split(), *VIEWS], "SELECT")
    | {right for privilege, tables in WRITTEN.items() for right in rights(tables, privilege)}
    | rights("queue_id_seq workflow_id_seq workflow_version_id_seq worker_id_seq", "USAGE"),
    "supervisor_client": USES | rights([*CALLS, *PURE], "EXECUTE"),
    "supervisor_viewer": USES | rights([*PURE, *HISTORIES, *SEEN, *SEES], "EXECUTE") | rights([*VIEWS, "migration"], "SELECT"),
    "supervisor_operator": USES | rights([*CALLS, *PURE, *OPERATORS, *HISTORIES, *SEEN, *SEES, *INTERVENE], "EXECUTE") | rights([*VIEWS, "migration"], "SELECT"),
    NOBODY: set(),
}  # fmt: skip

# ── what the catalogue says ──────────────────────────────────────────────────────────────────────────────────────

_OBJECTS = """
select c.relname::text, case when c.relkind = 'S' then 'sequence' else 'table' end, c.oid
from pg_class c where c.relnamespace = 'supervisor'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select p.proname || '(' || array_to_string(array(select format_type(t.id, null) from unnest(p.proargtypes) with ordinality as t (id, n) order by n), ', ') || ')',
       'function', p.oid
from pg_proc p where p.pronamespace = 'supervisor'::regnamespace
union all
select 'supervisor', 'schema', 'supervisor'::regnamespace::oid
"""
_PRIVILEGES = {
    "table": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "sequence": ("USAGE", "SELECT", "UPDATE"),
    "function": ("EXECUTE",),
    "schema": ("USAGE", "CREATE"),
}


def objects(database: Database) -> dict[str, tuple[str, int]]:
    """Name → kind and oid; a function's name is with the types of its parameters."""
    return {name: (kind, oid) for name, kind, oid in database.sql(_OBJECTS)}


def held(database: Database, role: str) -> set[Right]:
    """Every privilege that *role* has on any object of the schema, its own or through PUBLIC; columns count as their table."""
    found = set()
    for name, (kind, oid) in objects(database).items():
        for privilege in _PRIVILEGES[kind]:
            if database.one(f"select has_{kind}_privilege(%s, %s::oid, %s)", role, oid, privilege):
                found.add((name, privilege))
            elif kind == "table" and privilege in ("SELECT", "INSERT", "UPDATE", "REFERENCES"):
                if database.one("select has_any_column_privilege(%s, %s::oid, %s)", role, oid, privilege):
                    found.add((f"{name}, some columns", privilege))
    return found


@pytest.fixture
def peopled(database: Database) -> Iterator[Database]:
    """A database with one more role: a stranger, who has what PUBLIC has."""
    database.sql(f"drop role if exists {NOBODY}")
    database.sql(f"create role {NOBODY} nologin")
    yield database
    database.sql(f"drop owned by {NOBODY}; drop role {NOBODY}")


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_what_is_named_here_and_nothing_else(peopled: Database, role: str) -> None:
    """Generated from the catalogue, so an object that somebody adds is denied to all until it is named."""
    peopled.sql("select supervisor.make_partitions(now() + interval '30 days')")  # made later: rights are asked on the parent
    now = held(peopled, role)
    assert {"too much": sorted(now - MAY[role]), "too little": sorted(MAY[role] - now)} == {"too much": [], "too little": []}


def test_the_roles_are_those_of_the_project(peopled: Database) -> None:
    assert {f"supervisor_{role}" for role in ROLES} | {NOBODY} == set(MAY)
    members = "select m.roleid::regrole::text, m.member::regrole::text from pg_auth_members m where m.member::regrole::text like 'supervisor\\_%'"
    assert peopled.sql(members) == [], "a role inherits from another"
    logs_in = "select rolname from pg_roles where rolname like 'supervisor\\_%' and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolbypassrls)"
    assert peopled.sql(logs_in) == []


@pytest.mark.parametrize("role", MAY)
def test_the_server_does_what_the_catalogue_says(peopled: Database, role: str) -> None:
    """Every table, view and function is really asked for by every role, and refused by its name where it is not the role's."""
    may, wrong = MAY[role], []
    with peopled.connect() as conn:
        for name, (kind, oid) in objects(peopled).items():
            for privilege, statement in attempts(conn, name, kind, oid):
                refused = refusal(conn, role, statement)
                allowed = (name, privilege) in may
                if allowed == (refused is not None):
                    wrong.append((statement, "refused" if refused else "not refused", refused))
    assert not wrong


def attempts(conn: Any, name: str, kind: str, oid: int) -> list[tuple[str, str]]:
    """Statements that need one privilege each; nothing of what they do is kept."""
    if kind == "table":
        is_view = conn.execute("select relkind = 'v' from pg_class where oid = %s", (oid,)).fetchone()[0]
        words = {"SELECT": "select from {} limit 0", "DELETE": "delete from {}", "INSERT": "insert into {} default values", "TRUNCATE": "truncate {}"}
        return [(privilege, text.format(f"supervisor.{name}")) for privilege, text in words.items() if privilege == "SELECT" or not is_view]
    if kind == "function":
        nulls = ", ".join(f"null::{each}" for each in name.partition("(")[2].rstrip(")").split(", ") if each)
        procedure = conn.execute("select prokind = 'p' from pg_proc where oid = %s", (oid,)).fetchone()[0]
        return [("EXECUTE", f"{'call' if procedure else 'select'} supervisor.{name.partition('(')[0]}({nulls})")]
    return [("CREATE", "create table supervisor.mine ()")] if kind == "schema" else []


def refusal(conn: Any, role: str, statement: str) -> str | None:
    """Why *role* was refused by its rights; None where it was let in, whatever came of it."""
    with conn.transaction(force_rollback=True):
        conn.execute(f"set local role {role}")
        try:
            with conn.transaction():
                conn.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            return str(error).splitlines()[0]
        except psycopg.DatabaseError:
            return None
    return None


def test_what_a_later_migration_adds_is_denied_to_all(peopled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL lets everybody execute a new function; here nobody may, and no role inherits rights on new tables."""
    before = set(objects(peopled))
    text = """
        CREATE TABLE {schema}.late (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b text) PARTITION BY RANGE (id);
        CREATE TABLE {schema}.late_1 PARTITION OF {schema}.late DEFAULT;
        CREATE VIEW {schema}.lates AS SELECT * FROM {schema}.late;
        CREATE SEQUENCE {schema}.lately;
        CREATE FUNCTION {schema}.later(a int4) RETURNS int4 LANGUAGE sql SECURITY DEFINER AS $$ SELECT a $$;
        CREATE PROCEDURE {schema}.latest() LANGUAGE sql AS $$ SELECT 1 $$;
    """
    files = (*migration_files(), MigrationFile(len(migration_files()) + 1, "late", text, "sum"))
    monkeypatch.setattr(migrations, "migration_files", lambda: files)
    with peopled.connect() as conn:
        migrations.migrate(conn, "supervisor")
    assert set(objects(peopled)) - before >= {"late", "late_1", "lates", "lately", "late_id_seq", "later(integer)", "latest()"}
    for role, may in MAY.items():
        assert held(peopled, role) == may


def called(database: Database, procedure: str) -> set[str]:
    """What the body of a procedure calls; no operator of its caller's."""
    body = database.one("select prosrc from pg_proc where oid = %s::regprocedure and not prosecdef", procedure)
    assert not set("=<>+-*/%|&~!^") & set(body)
    return set(re.findall(r"[\w.\"]+(?=\s*\()", body))


@pytest.mark.parametrize("role", ["supervisor_viewer", "supervisor_operator", "supervisor_worker"])
def test_every_column_of_every_view_can_be_read(peopled: Database, role: str) -> None:
    """The functions in a view are called with the rights of who reads it."""
    with peopled.connect() as conn:
        conn.execute(f"set role {role}")
        for view in VIEWS:
            conn.execute(f"select * from supervisor.{view} limit 1")


def test_every_function_has_a_path_of_its_own(peopled: Database) -> None:
    """A caller's search_path, or a temporary table of his, must not decide what a function of the owner's reads."""
    loose = "select oid::regprocedure::text from pg_proc where pronamespace = 'supervisor'::regnamespace and not coalesce(proconfig @> array['search_path=pg_catalog, pg_temp'], false) and prosqlbody is null"
    # those that commit can have none: all they say is qualified, with their callers' rights
    assert {name.partition("(")[0]: called(peopled, name) for (name,) in peopled.sql(loose)} == {
        "supervisor.start_and_tell": {
            '"supervisor".start_one', "pg_catalog.set_config", "pg_catalog.pg_notify", "pg_catalog.concat", '"supervisor".wait_for_disk', '"supervisor".tells_of_one',
        },
        "supervisor.signal_and_tell": {
            '"supervisor".send_signal', "pg_catalog.set_config", "pg_catalog.pg_notify", "pg_catalog.json_build_array", '"supervisor".wait_for_disk',
        },
        "supervisor.signals_together": {'"supervisor".send_signals', "pg_catalog.array_agg", "pg_catalog.set_config", '"supervisor".wait_for_disk'},
    }  # fmt: skip
    definers = {name.partition("(")[0] for (name,) in peopled.sql("select oid::regprocedure::text from pg_proc where pronamespace = 'supervisor'::regnamespace and prosecdef")}
    assert {name.removeprefix("supervisor.") for name in definers} == set(
        "newest progress attributes set_attributes continue_run start_runs replace_runs start_one start start_many signal send_signal send_signals signal_with_start start_and_send update send_update update_with_start start_and_update update_standing update_answer cancel cancel_many cancel_tree terminate terminate_many home result outcomes outcomes_soon find_runs batch_results client_facts workflow_parameters new_id published published_values ask_query query_answer forget_query history_run history_steps history_pending history_sample operate intervene operate_many pause resume retry move_runs fork skip edit_retry step_of complete fail heartbeat finish_token beat_token send_because finish_because save_view forget_view queue_id make_partitions renew_statistics close_children lose_children end_wedged goes_on newest_errors error_groups wait_groups rates trace_starts trace_sent trace_id put_schedule create_schedule change_schedule pause_schedule resume_schedule trigger_schedule backfill_schedule delete_schedule fire_schedules release_held drop_fires pause_queue resume_queue take_trace_ends paces queue_sizes worker_sizes version_sizes batch_sizes".split()
    ), "a function that runs with its owner's rights is a door: name it here when it is meant to be one"
