-- deploy: pre            one function that nothing older calls
-- lock:   none that anybody waits for
-- undo:   DROP FUNCTION {schema}.all_owned(int8, int4, int4)
--
-- The ending of a batch of runs is all or nothing: who counts fewer task rows than runs does not own them all.
CREATE FUNCTION {schema}.all_owned(p_found int8, p_asked int4, p_worker int4) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_found <> p_asked THEN
        RAISE EXCEPTION 'worker % ends % runs and owns only % of them', p_worker, p_asked, p_found USING ERRCODE = 'SV003';
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.all_owned(int8, int4, int4) IS 'True, or raises SV003: a batch that ends runs must own every one of them';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {role_worker_literal}) THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.all_owned(int8, int4, int4) TO %I', {role_worker_literal});
    END IF;
END $$;
