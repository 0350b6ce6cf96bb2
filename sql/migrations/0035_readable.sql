-- deploy: pre            older code asks nothing of it
-- lock:   nothing that anybody waits for
-- undo:   REVOKE EXECUTE ON FUNCTION {schema}.outcome_name(int2) FROM the viewer, client and operator
--
-- A view's functions are called with the rights of who reads it: `cancellations` could be read by nobody but the engine where it says how.

COMMENT ON FUNCTION {schema}.outcome_name(int2) IS 'The word for how a run ended, by its number';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_client_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.outcome_name(int2) TO %I', one.rolname);
    END LOOP;
END $$;
