-- deploy: pre            grants only
-- lock:   none that anybody waits for
-- undo:   REVOKE of each; DROP ROLE of each where no other database of the server uses it
--
-- owner      whoever migrates; owns everything and is no role of its own
-- worker     what the loop and its parent read and write; no DDL (make_partitions makes partitions for it)
-- client     may start runs and ask about them, by functions alone; no table, no view
-- viewer     reads the views, nothing else
-- operator   viewer and client together; later verbs (cancel, pause, retry) are granted to it
--
-- Roles belong to the whole server, so one that exists is taken as it is. Where a role is missing and may not be made,
-- a NOTICE says so and its grants are left out; running as the owner needs none of them.
-- PUBLIC has nothing: the migrator revokes all from it on every object after every file, because ALTER DEFAULT
-- PRIVILEGES … IN SCHEMA can't take away what PUBLIC has by default (EXECUTE on functions).
-- Partitions made later need no grants: rights are asked on the table that a statement names, which is the parent.
-- Views run with their owner's rights, but the functions in them with the reader's: hence as_json for viewers.

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN SELECT w.name FROM unnest(
            ARRAY[{role_worker_literal}, {role_client_literal}, {role_viewer_literal}, {role_operator_literal}]) AS w (name) LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted.name);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;   -- another database's migration made it in the same moment
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role "%" does not exist and may not be created by "%": nothing is granted to it', wanted.name, current_user
                    USING HINT = format('let a superuser run: CREATE ROLE %I NOLOGIN', wanted.name);
        END;
    END LOOP;
END $$;

DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('USAGE ON SCHEMA {schema}', ARRAY[worker, client, viewer, operator]),
        ('SELECT ON ALL TABLES IN SCHEMA {schema}', ARRAY[worker]),
        ('EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema}', ARRAY[worker]),
        ('USAGE ON ALL SEQUENCES IN SCHEMA {schema}', ARRAY[worker]),
        -- history: insert only
        ('INSERT ON {schema}.run, {schema}.run_key, {schema}.step, {schema}.attempt, {schema}.outcome, {schema}.child, '
         '{schema}.child_done', ARRAY[worker]),
        -- what is to do, and who does it; SELECT … FOR UPDATE and FOR SHARE ask for UPDATE
        ('INSERT, UPDATE, DELETE ON {schema}.task, {schema}.timer', ARRAY[worker]),
        ('INSERT, UPDATE ON {schema}.worker, {schema}.workflow, {schema}.queue', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.start_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval), '
         '{schema}.outcomes(uuid[]), {schema}.find_runs(uuid[], text, text, text, uuid, int4), {schema}.client_facts(), '
         '{schema}.workflow_parameters(text), {schema}.new_id()', ARRAY[client, operator]),
        ('EXECUTE ON FUNCTION {schema}.retry(uuid)', ARRAY[operator]),
        ('EXECUTE ON FUNCTION {schema}.as_json(bytea, int2), {schema}.id_time(uuid), {schema}.id_floor(timestamptz)',
         ARRAY[client, viewer, operator]),
        ('SELECT ON {schema}.runs, {schema}.steps, {schema}.attempts, {schema}.waits, {schema}.queues, {schema}.workers, '
         '{schema}.throughput, {schema}.errors, {schema}.migration', ARRAY[viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
