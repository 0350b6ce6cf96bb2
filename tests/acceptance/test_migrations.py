"""Migrating a real server: complete, repeatable, safe beside others, closed to PUBLIC; and the views that it makes."""

import contextlib
import re
import threading
import uuid

import psycopg
import pytest
from psycopg import sql as pgsql

from supervisor.core.errors import DatabaseUnavailable, MigrationChanged, PermissionMissing, SchemaMissing, SchemaTooNew, SchemaTooOld, SupervisorError
from supervisor.core.ids import RunIds
from supervisor.db import migrations, partitions
from supervisor.db.statements import ROLES, MigrationFile, Sql, migration_files

VIEWS = ("runs", "steps", "attempts", "waits", "queues", "workers", "throughput", "errors", "batches", "failures", "keys", "children", "started", "signals", "published")
SCHEMAS = ("mig", 'We"ird')


@pytest.fixture
def conn(database):
    with psycopg.connect(database.dsn, autocommit=True) as made:
        yield made
        for schema in SCHEMAS:
            made.execute("RESET ROLE")
            drop(made, schema)


def drop(conn, schema):
    conn.execute(pgsql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(pgsql.Identifier(schema)))
    for role in ROLES:
        name = f"{schema}_{role}"
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is not None:
            with contextlib.suppress(psycopg.errors.DependentObjectsStillExist):  # another database of the server uses it too
                conn.execute(pgsql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(pgsql.Identifier(name)))


@pytest.fixture(params=SCHEMAS)
def migrated(conn, request):
    """(connection, Sql) of a schema that was just migrated, with one workflow registered."""
    migrations.migrate(conn, request.param)
    sql = Sql(request.param)
    conn.execute(sql.render("INSERT INTO {schema}.queue (name) VALUES ('default')"))
    conn.execute(sql.render("INSERT INTO {schema}.workflow (name, queue) SELECT 'checkout', id FROM {schema}.queue"))
    return conn, sql


def start(conn, sql, n=1, **named):
    made = [uuid.UUID(bytes=each) for each in RunIds().new_bytes(n)]
    extra = "".join(f", {name} => %({name})s" for name in named)
    text = sql.render("SELECT * FROM {schema}.start_runs('checkout', %(ids)s, %(inputs)s" + extra + ")")
    conn.execute(text, {"ids": made, "inputs": [b'{"order": 1}'] * n, **named})
    return made


def as_role(conn, sql, role, statement):
    """None if *role* may run *statement*, else the SQLSTATE."""
    with conn.transaction(force_rollback=True):
        conn.execute(sql.render("SET LOCAL ROLE {role_%s}" % role))
        try:
            conn.execute(sql.render(statement))
        except psycopg.Error as error:
            return error.sqlstate
    return None


# ── migrating ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_fresh_database_is_migrated_once(conn, schema):
    applied = migrations.migrate(conn, schema)
    assert [each.number for each in migration_files()] == [each.number for each in applied]
    assert [] == migrations.migrate(conn, schema)
    migrations.check(conn, schema)
    assert all(each.applied_at for each in migrations.status(conn, schema))
    row = conn.execute(Sql(schema).render("SELECT system_identifier, number FROM {schema}.cell")).fetchone()
    assert row[0] != 0 and row[1] == 0


def test_hostile_search_path_and_tables_of_the_same_names_in_public_change_nothing(conn):
    """Everything is fully qualified: what an application put into its own path is neither used nor touched."""
    for name in ("run", "step", "task", "queue", "message", "schedule", "worker", "audit", "migration", "cell", "workflow"):
        conn.execute(pgsql.SQL("CREATE TABLE public.{} (mine int)").format(pgsql.Identifier(name)))
    conn.execute("CREATE FUNCTION public.hashint4(int4) RETURNS int4 LANGUAGE sql AS 'SELECT 1/0'")
    conn.execute("CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT (1/0)::text::timestamptz'")
    conn.execute("SET search_path = public, pg_catalog")
    for schema in SCHEMAS:
        migrations.migrate(conn, schema)
        sql = Sql(schema)
        conn.execute(sql.render("INSERT INTO {schema}.queue (name) VALUES ('default')"))
        conn.execute(sql.render("INSERT INTO {schema}.workflow (name, queue) SELECT 'checkout', id FROM {schema}.queue"))
        conn.execute("CREATE TEMP TABLE IF NOT EXISTS run (mine int)")
        (run_id,) = start(conn, sql)
        assert [(run_id,)] == conn.execute(sql.render("SELECT run_id FROM {schema}.runs")).fetchall()
    assert 0 == conn.execute("SELECT count(*) FROM public.run").fetchone()[0]


@pytest.mark.parametrize("locks", [True, False], ids=["advisory lock", "lock worthless behind a pooler"])
def test_concurrent_migrators_apply_each_file_once(database, conn, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(migrations, "_lock", lambda *_: None)
        monkeypatch.setattr(migrations, "_unlock", lambda *_: None)
    done, failed, gate = [], [], threading.Barrier(4)

    def one():
        with psycopg.connect(database.dsn, autocommit=True) as mine:
            gate.wait()
            try:
                done.extend(each.number for each in migrations.migrate(mine, "mig"))
            except Exception as error:  # noqa: BLE001 - the test shows it
                failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [] == failed
    assert [each.number for each in migration_files()] == sorted(done)


def test_a_waiting_migrator_says_for_whom_it_waits(database, conn):
    sql, told = Sql("mig"), threading.Event()
    conn.execute("CREATE SCHEMA mig")
    with psycopg.connect(database.dsn, autocommit=True) as other:
        other.execute(sql.render(f"SELECT pg_advisory_lock({{lock_class}}, {migrations.LOCK_MIGRATE})"))
        lines = []

        def migrate():
            with psycopg.connect(database.dsn, autocommit=True) as mine:
                migrations.migrate(mine, "mig", progress=lambda line: (lines.append(line), told.set()))

        waiting = threading.Thread(target=migrate)
        waiting.start()
        assert told.wait(20)
        assert str(other.info.backend_pid) in lines[0] and "waiting" in lines[0]
    waiting.join(30)
    migrations.check(conn, "mig")


def test_dry_run_changes_nothing_and_shows_the_sql(conn):
    lines = []
    planned = migrations.migrate(conn, "mig", dry_run=True, show_sql=True, progress=lines.append)
    assert len(migration_files()) == len(planned) == len(lines)
    assert 'CREATE TABLE "mig".task' in lines[0] == planned[0].sql
    assert conn.execute("SELECT to_regnamespace('mig')").fetchone()[0] is None


def test_states_of_a_schema_have_errors_with_the_command_to_type(conn):
    with pytest.raises(SchemaMissing, match=re.escape("python -m supervisor migrate --schema mig")):
        migrations.check(conn, "mig")
    migrations.migrate(conn, "mig")
    conn.execute("CREATE TEMP TABLE last AS SELECT * FROM mig.migration ORDER BY number DESC LIMIT 1")
    conn.execute("DELETE FROM mig.migration m USING last WHERE m.number = last.number")
    with pytest.raises(SchemaTooOld, match="migrate --schema mig"):
        migrations.check(conn, "mig")
    conn.execute("INSERT INTO mig.migration TABLE last")
    conn.execute("INSERT INTO mig.migration VALUES (9999, 'later', 'x', now(), '99.0')")
    for refused in (migrations.check, migrations.migrate):
        with pytest.raises(SchemaTooNew, match="9999.*99.0"):
            refused(conn, "mig")
    conn.execute("DELETE FROM mig.migration WHERE number = 9999")
    conn.execute("UPDATE mig.migration SET checksum = 'other' WHERE number = 2")
    for refused in (migrations.check, migrations.migrate):
        with pytest.raises(MigrationChanged, match="0002_functions"):
            refused(conn, "mig")


def with_one_more(monkeypatch, text):
    more = MigrationFile(len(migration_files()) + 1, "extra", text, "sum")
    files = (*migration_files(), more)
    monkeypatch.setattr(migrations, "migration_files", lambda: files)


def test_a_failing_migration_leaves_nothing_and_names_the_line(conn, monkeypatch):
    migrations.migrate(conn, "mig")
    with_one_more(monkeypatch, "CREATE TABLE {schema}.extra (a int);\n\nSELECT nothing FROM {schema}.extra;\n")
    with pytest.raises(SupervisorError, match=r"_extra, line 3 failed.*42703"):
        migrations.migrate(conn, "mig")
    assert conn.execute("SELECT to_regclass('mig.extra')").fetchone()[0] is None


def test_runs_and_callers_from_before_the_client_functions_go_on(conn, monkeypatch):
    """Programs of the version before start runs while the schema is newer: deploy: pre. What they stored reads as it did."""
    eight = "SELECT * FROM mig.start_runs('checkout', ARRAY[mig.new_id()], ARRAY['{}'::bytea], ARRAY[%s], ARRAY['h'::bytea], NULL, 5::int2, make_interval(secs => 0))"
    with monkeypatch.context() as older:
        older.setattr(migrations, "migration_files", lambda: migration_files()[:8])
        migrations.migrate(conn, "mig")
    conn.execute("INSERT INTO mig.queue (name) VALUES ('default')")
    conn.execute("INSERT INTO mig.workflow (name, queue) SELECT 'checkout', id FROM mig.queue")
    assert [] == conn.execute(eight, ("before",)).fetchall()
    old = conn.execute("SELECT * FROM mig.runs").fetchall()
    migrations.migrate(conn, "mig")
    assert old == [row[: len(old[0])] for row in conn.execute("SELECT * FROM mig.runs").fetchall()]  # columns are added at the end
    assert [] == conn.execute(eight, ("after",)).fetchall()
    assert [True] == [matches for _, _, matches in conn.execute(eight, ("before",)).fetchall()]
    assert (2, None) == conn.execute("SELECT count(*), max(batch) FROM mig.runs").fetchone()


def test_runs_that_live_when_publications_come_can_publish(conn, monkeypatch):
    """Their partitions were made before: old ones, those of today, and those ahead, also ones that are cut otherwise than today's."""
    before = next(at for at, file in enumerate(migration_files()) if file.name == "published")
    with monkeypatch.context() as older:
        older.setattr(migrations, "migration_files", lambda: migration_files()[:before])
        migrations.migrate(conn, "mig")
    for table in ("run", "step", "attempt", "outcome"):
        ends = "FROM (mig.id_floor('2020-03-01')) TO (mig.id_floor('2020-03-03'))"
        conn.execute(f"CREATE TABLE mig.{table}_20200301 PARTITION OF mig.{table} FOR VALUES {ends}")
    bounds = "SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass ORDER BY c.relname"
    migrations.migrate(conn, "mig")
    assert conn.execute(bounds, ("mig.run",)).fetchall() == conn.execute(bounds, ("mig.publication",)).fetchall()
    publish = "INSERT INTO mig.publication (run_id, key, pos, value, published_at) VALUES (mig.id_floor(%s), 'k', 0, '1', now())"
    for born in ("2020-03-02", "now"):
        conn.execute(publish, (born,))
    assert 2 == conn.execute("SELECT count(*) FROM mig.published").fetchone()[0]
    made = dict(conn.execute("SELECT p.name, (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = format('mig.%I', p.name)::regclass) FROM mig.partitioned() p"))
    partitions.ensure(conn, Sql("mig"), days_ahead=30)
    more = dict(conn.execute("SELECT p.name, (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = format('mig.%I', p.name)::regclass) FROM mig.partitioned() p"))
    assert made.keys() >= {"run", "step", "publication"} and len({more[name] - made[name] for name in made}) == 1, "all are made ahead alike"


def test_runs_from_before_messages_may_be_sent_some(conn, monkeypatch):
    """Partitions of messages are made for every partition of runs that there is, also those that nobody makes ahead any more."""
    before = next(each.number for each in migration_files() if each.name == "signals") - 1
    with monkeypatch.context() as older:
        older.setattr(migrations, "migration_files", lambda: migration_files()[:before])
        migrations.migrate(conn, "mig")
    conn.execute("INSERT INTO mig.queue (name) VALUES ('default')")
    conn.execute("INSERT INTO mig.workflow (name, queue) SELECT 'checkout', id FROM mig.queue")
    for table in ("run", "outcome"):
        conn.execute(
            f"CREATE TABLE mig.{table}_20200101 PARTITION OF mig.{table} "
            "FOR VALUES FROM ('016f5e66-e800-0000-0000-000000000000') TO ('016f8273-3000-0000-0000-000000000000')"
        )
    old = uuid.UUID("016f5e66-e800-7000-8000-000000000000")
    conn.execute("INSERT INTO mig.run (run_id, workflow, queue, prio, input) VALUES (%s, 1, 1, 5, '{}')", (old,))
    conn.execute("INSERT INTO mig.task (run_id, ready_at, queue, workflow) VALUES (%s, 'infinity', 1, 1)", (old,))
    migrations.migrate(conn, "mig")
    assert conn.execute("SELECT mig.signal(%s, 'go', '1')", (old,)).fetchone() == (True,)
    assert conn.execute("SELECT tableoid::regclass::text FROM mig.message").fetchall() == [("mig.message_20200101",)]
    same = "SELECT count(*), count(distinct split_part(relname, '_', 2)) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = %s::regclass"
    counts = {table: conn.execute(same, (f"mig.{table}",)).fetchone() for table in ("run", "message", "consumed")}
    assert counts["run"] == counts["message"] == counts["consumed"]


def test_what_a_pause_held_up_before_is_let_go(conn, monkeypatch):
    """Runs that were paused before ends came through: one that was cancelled is ready to be told, one with a timeout is due then, any other stays."""
    before = next(each.number for each in migration_files() if each.name == "ends") - 1
    with monkeypatch.context() as older:
        older.setattr(migrations, "migration_files", lambda: migration_files()[:before])
        migrations.migrate(conn, "mig")
    conn.execute("insert into mig.workflow (name, queue) values ('held', mig.queue_id('q'))")
    cancelled, limited, idle = (conn.execute("select mig.start('held')").fetchone()[0] for _ in range(3))
    conn.execute("update mig.task set resumed = 1")
    conn.execute("select mig.cancel(%s)", (cancelled,))
    conn.execute("update mig.task set cancel_at = '2999-01-01' where run_id = %s", (limited,))
    conn.execute("select mig.pause(run_id) from mig.task")
    held = "select wait_kind, isfinite(ready_at), exists (select from mig.pause p where p.run_id = t.run_id) from mig.task t where run_id = %s"
    assert [conn.execute(held, (run,)).fetchone() for run in (cancelled, limited, idle)] == [(7, False, True)] * 3
    migrations.migrate(conn, "mig")
    assert [conn.execute(held, (run,)).fetchone() for run in (cancelled, limited, idle)] == [(1, True, False), (7, True, True), (7, False, True)]
    assert conn.execute("select ready_at = cancel_at from mig.task where run_id = %s", (limited,)).fetchone() == (True,)


def test_a_lock_that_is_not_to_be_had_is_tried_for_again(database, conn, monkeypatch):
    """A waiting ALTER blocks every worker behind it, so it gives up soon and tries again."""
    migrations.migrate(conn, "mig")
    with_one_more(monkeypatch, "ALTER TABLE {schema}.task ADD COLUMN extra int;")
    monkeypatch.setattr(migrations, "_SETTINGS", migrations._SETTINGS.replace(b"2000ms", b"50ms"))
    with psycopg.connect(database.dsn) as other:
        other.execute("SELECT FROM mig.task")

        def progress(line):
            if "try 1" in line:
                other.rollback()

        assert ["extra"] == [each.name for each in migrations.migrate(conn, "mig", progress=progress)]
        other.execute("LOCK TABLE mig.task IN ACCESS SHARE MODE")
        with_one_more(monkeypatch, "ALTER TABLE {schema}.task DROP COLUMN extra;")
        conn.execute("DELETE FROM mig.migration WHERE name = 'extra'")
        monkeypatch.setattr(migrations, "FILE_TRIES", 2)
        with pytest.raises(DatabaseUnavailable, match="pg_stat_activity"):
            migrations.migrate(conn, "mig")


def test_a_role_that_may_not_create_the_schema_is_told_what_to_run(conn):
    conn.execute("CREATE ROLE mig_nobody")
    try:
        conn.execute("SET ROLE mig_nobody")
        with pytest.raises(PermissionMissing, match="AUTHORIZATION"):
            migrations.migrate(conn, "mig")
    finally:
        conn.execute("RESET ROLE; DROP ROLE mig_nobody")


def test_a_role_without_any_right_is_told_which_to_grant(conn):
    migrations.migrate(conn, "mig")
    conn.execute("CREATE ROLE mig_nobody")
    try:
        conn.execute("SET ROLE mig_nobody")
        for refused in (migrations.check, migrations.migrate):
            with pytest.raises(PermissionMissing, match="GRANT"):
                refused(conn, "mig")
    finally:
        conn.execute("RESET ROLE; DROP ROLE mig_nobody")


def test_an_owner_who_may_not_create_roles_gets_notices_and_a_working_schema(conn):
    """Managed servers: neither roles nor pg_control_system; everything else must work."""
    notices, lines = [], []
    conn.execute("CREATE ROLE mig_owner")
    conn.execute("CREATE SCHEMA mig AUTHORIZATION mig_owner")
    try:
        conn.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
        conn.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        conn.execute("SET ROLE mig_owner")
        migrations.migrate(conn, "mig", progress=lines.append)
        assert 4 == sum("may not be created" in each for each in notices)
        assert any("identity is not recorded" in each for each in lines)
        assert 0 == conn.execute("SELECT system_identifier FROM mig.cell").fetchone()[0]
    finally:
        conn.execute("RESET ROLE; GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
        conn.execute("DROP OWNED BY mig_owner CASCADE; DROP ROLE mig_owner")


# ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_partitions_reach_a_week_ahead_and_asking_again_makes_none(migrated):
    conn, sql = migrated
    ahead = "SELECT {schema}.id_floor(clock_timestamp() + interval '6 days')"
    (late,) = conn.execute(sql.render(ahead)).fetchone()
    conn.execute(sql.render("INSERT INTO {schema}.run (run_id, workflow, queue, prio, input) VALUES (%s, 1, 1, 5, '')"), (late,))
    assert 0 == partitions.ensure(conn, sql)
    assert 0 < partitions.ensure(conn, sql, days_ahead=30)


def test_partitions_far_beyond_use_are_refused(migrated):
    conn, sql = migrated
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        partitions.ensure(conn, sql, days_ahead=100_000)


# ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_public_has_no_right_on_anything(migrated):
    conn, sql = migrated
    relations = """SELECT c.relname FROM pg_class c, aclexplode(c.relacl) a
                   WHERE c.relnamespace = {schema_literal}::regnamespace AND a.grantee = 0"""
    functions = """SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                   WHERE p.pronamespace = {schema_literal}::regnamespace AND a.grantee = 0"""
    assert [] == conn.execute(sql.render(relations)).fetchall()
    assert [] == conn.execute(sql.render(functions)).fetchall()


def test_a_client_starts_and_asks_and_reads_no_table(migrated):
    conn, sql = migrated
    start(conn, sql)
    for allowed in (
        "SELECT * FROM {schema}.start_runs('checkout', ARRAY[{schema}.new_id()], ARRAY['{}'::bytea])",
        "SELECT * FROM {schema}.outcomes(ARRAY[{schema}.new_id()])",
        "SELECT {schema}.as_json('{}')",
        "SELECT * FROM {schema}.client_facts()",
        "SELECT * FROM {schema}.find_runs()",
        "SELECT {schema}.workflow_parameters('checkout')",
    ):
        assert as_role(conn, sql, "client", allowed) is None, allowed
    for refused in (
        "SELECT FROM {schema}.run",
        "SELECT FROM {schema}.task",
        "SELECT FROM {schema}.runs",
        "DELETE FROM {schema}.task",
        "SELECT {schema}.fence(1, gen_random_uuid(), 1)",
        "SELECT {schema}.make_partitions(now())",
        "CREATE TABLE {schema}.mine ()",
    ):
        assert "42501" == as_role(conn, sql, "client", refused), refused


def test_a_viewer_reads_the_views_and_nothing_else(migrated):
    conn, sql = migrated
    start(conn, sql)
    for view in VIEWS:
        assert as_role(conn, sql, "viewer", "SELECT * FROM {schema}." + view) is None, view
    for refused in (
        "SELECT FROM {schema}.run",
        "SELECT FROM {schema}.task_now",
        "SELECT FROM {schema}.worker_now",
        "SELECT * FROM {schema}.find_runs()",
    ):
        assert "42501" == as_role(conn, sql, "viewer", refused), refused


def test_a_worker_writes_rows_also_of_later_partitions_and_makes_no_table(migrated):
    conn, sql = migrated
    assert as_role(conn, sql, "worker", "SELECT {schema}.make_partitions(now() + interval '20 days')") is None
    partitions.ensure(conn, sql, days_ahead=20)
    late = (
        "INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name) "
        "VALUES ({schema}.id_floor(clock_timestamp() + interval '19 days'), now(), now(), 1, 1, 1, 1, 1, 's')"
    )
    for allowed in (late, "UPDATE {schema}.task SET owner = NULL", "DELETE FROM {schema}.task", "SELECT FROM {schema}.worker FOR SHARE"):
        assert as_role(conn, sql, "worker", allowed) is None, allowed
    for refused in (
        "CREATE TABLE {schema}.mine ()",
        "UPDATE {schema}.step SET name = ''",
        "DELETE FROM {schema}.outcome",
        "ALTER TABLE {schema}.task ADD x int",
    ):
        assert "42501" == as_role(conn, sql, "worker", refused), refused


def test_a_start_is_durable_where_the_role_has_synchronous_commit_off(migrated):
    conn, sql = migrated
    for given, then in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        with conn.transaction(force_rollback=True):
            conn.execute(f"SET LOCAL synchronous_commit = {given}")
            start(conn, sql)
            assert then == conn.execute("SHOW synchronous_commit").fetchone()[0]


# ── views ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_view_and_every_column_has_a_comment(migrated):
    conn, sql = migrated
    found = conn.execute(
        sql.render("""
        SELECT c.relname, a.attname, obj_description(c.oid, 'pg_class') IS NOT NULL AND col_description(c.oid, a.attnum) IS NOT NULL
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = {schema_literal}::regnamespace AND c.relkind = 'v' AND c.relname = ANY (%s)"""),
        (list(VIEWS),),
    ).fetchall()
    assert set(VIEWS) == {view for view, _, _ in found}
    assert [] == [(view, column) for view, column, commented in found if not commented]


def test_as_json_never_raises_also_in_parallel_plans(migrated):
    conn, sql = migrated
    parallel = "debug_parallel_query" if conn.info.server_version >= 160000 else "force_parallel_mode"
    conn.execute(f"SET {parallel} = on")
    bad = [b"\xff", b'{"a":"\\u0000"}', b"1e400000", b"[" * 100_000, b"", b"{"]
    rows = conn.execute(sql.render("SELECT {schema}.as_json(x) FROM unnest(%s::bytea[]) AS x"), (bad,)).fetchall()
    assert all(row[0]["unreadable"] for row in rows)
    good = '{"a":[1,"é"]}'.encode()
    assert ({"a": [1, "é"]}, None) == conn.execute(sql.render("SELECT {schema}.as_json(%b), {schema}.as_json(NULL)"), (good,)).fetchone()
    assert "codec 7" in conn.execute(sql.render("SELECT {schema}.as_json('x', 7::int2)")).fetchone()[0]["unreadable"]


def wait_of(conn, sql, run_id):
    text = "SELECT status, code, meaning, detail, freed_by FROM {schema}.waits WHERE run_id = %s"
    return conn.execute(sql.render(text), (run_id,)).fetchone()


def register_worker(conn, sql):
    text = "INSERT INTO {schema}.worker (boot, host, pid, supervisor) VALUES (gen_random_uuid(), 'h', 7, gen_random_uuid())"
    conn.execute(sql.render(text))


def test_waits_says_why_a_run_does_not_move_while_no_worker_lives(migrated):
    conn, sql = migrated
    queued, delayed, parked, owned = (start(conn, sql)[0], start(conn, sql, p_delay="1 hour")[0], start(conn, sql)[0], start(conn, sql)[0])
    park = "UPDATE {schema}.task SET wait_kind = 19, ready_at = 'infinity', wait_detail = 'expected a, found b' WHERE run_id = %s"
    conn.execute(sql.render(park), (parked,))
    register_worker(conn, sql)
    conn.execute(sql.render("UPDATE {schema}.task SET owner = (SELECT max(id) FROM {schema}.worker) WHERE run_id = %s"), (owned,))
    assert ("ready", "no_worker") == wait_of(conn, sql, queued)[:2]
    assert ("waiting", "timer") == wait_of(conn, sql, delayed)[:2]
    assert ("waiting", "nondeterminism") == wait_of(conn, sql, parked)[:2]
    assert "expected a, found b" == wait_of(conn, sql, parked)[3]
    status, code, meaning, detail, freed_by = wait_of(conn, sql, owned)
    assert ("running", None) == (status, code)
    assert "gone" in meaning and "process 7 on h" in detail and "supervisor" in freed_by
    assert all(wait_of(conn, sql, each)[4] for each in (queued, delayed, parked))


def test_a_worker_is_alive_while_its_session_holds_its_lock(database, migrated):
    conn, sql = migrated
    (run_id,) = start(conn, sql)
    register_worker(conn, sql)
    lock = sql.render("SELECT pg_advisory_%s({lock_class}, (SELECT max(id) FROM {schema}.worker))")
    with psycopg.connect(database.dsn, autocommit=True) as worker:
        worker.execute(lock % "lock")
        assert "alive" == conn.execute(sql.render("SELECT state FROM {schema}.workers")).fetchone()[0]
        assert ("ready", "queued") == wait_of(conn, sql, run_id)[:2]
    conn.execute(lock % "lock")  # comes back when the closed session has really ended
    conn.execute(lock % "unlock")
    assert "lost" == conn.execute(sql.render("SELECT state FROM {schema}.workers")).fetchone()[0]


def test_history_shows_through_the_views_with_the_designs_words(migrated):
    conn, sql = migrated
    good, bad, live = start(conn, sql, 3)
    with conn.transaction():
        for run_id, status, result in ((good, 1, b'{"ok":true}'), (bad, 2, b'{"type":"ValueError","message":"no"}')):
            conn.execute(sql.render("DELETE FROM {schema}.task WHERE run_id = %s"), (run_id,))
            text = "INSERT INTO {schema}.outcome (run_id, ended_at, worker, steps, status, result) VALUES (%s, now(), 1, 1, %s, %s)"
            conn.execute(sql.render(text), (run_id, status, result))
        conn.execute(
            sql.render("""INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
                          VALUES (%s, 1, 1, 1, now(), now(), 1, 'charge', %s, 'f')"""),
            (bad, b'{"type":"ValueError","message":"no"}'),
        )
    found = dict(conn.execute(sql.render("SELECT run_id, (status, result, error ->> 'type')::text FROM {schema}.runs")).fetchall())
    assert {good: '(completed,"{""ok"": true}",)', bad: "(failed,,ValueError)", live: "(ready,,)"} == found
    errors = conn.execute(sql.render("SELECT source, step, type, message FROM {schema}.errors ORDER BY source")).fetchall()
    assert [("attempt", "charge", "ValueError", "no"), ("run", None, "ValueError", "no")] == errors
    counts = "SELECT sum(started), sum(ended), sum(completed), sum(failed) FROM {schema}.throughput"
    assert (3, 2, 1, 1) == conn.execute(sql.render(counts)).fetchone()
