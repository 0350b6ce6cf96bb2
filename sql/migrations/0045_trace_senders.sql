-- deploy: pre            older code neither writes nor reads what is new
-- lock:   nothing that anybody waits for
-- undo:   DROP FUNCTION {schema}.trace_sent(uuid, text, text, text, text), {schema}.sent_by(uuid, text, text, text, text); DROP TABLE {schema}.trace_sender
--
-- In whose span signals and updates were sent, where a sender was in one that is sampled: a row of its own, so that others pay nothing. Written in
-- the sender's transaction, read when the span of the run that had them is sent.

CREATE TABLE {schema}.trace_sender (
    run_id      uuid NOT NULL,
    name        text NOT NULL,
    id          text NOT NULL,
    traceparent text NOT NULL,
    tracestate  text,
    PRIMARY KEY (run_id, name, id),
    CHECK (length(traceparent) <= 55 AND length(tracestate) <= 512)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.trace_sender IS 'Who sent signals and updates, where a sender said so; insert only';
COMMENT ON COLUMN {schema}.trace_sender.run_id IS 'The run that they were sent to';
COMMENT ON COLUMN {schema}.trace_sender.name IS 'Name of the signal or update';
COMMENT ON COLUMN {schema}.trace_sender.id IS 'Its id';
COMMENT ON COLUMN {schema}.trace_sender.traceparent IS 'The span in which it was sent: 00-<trace>-<span>-<flags>';
COMMENT ON COLUMN {schema}.trace_sender.tracestate IS 'What the vendors of that trace pass on, at most 512 characters';
SELECT {schema}.make_partitions_of('trace_sender');

-- SECURITY DEFINER: a client says whose span it sends in, and must not be able to write the table otherwise: only of what was sent since its transaction
-- began, and once. So who repeats what somebody else had sent under that id is not taken for its sender. Custom plan: prunes.
CREATE FUNCTION {schema}.trace_sent(p_run uuid, p_name text, p_id text, p_traceparent text, p_tracestate text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_parent text := {schema}.as_traceparent(p_traceparent);
    v_run    uuid;
BEGIN
    IF v_parent IS NULL OR right(v_parent, 1) NOT IN ('1', '3', '5', '7', '9', 'b', 'd', 'f') THEN   -- it is not sampled: there will be no such span
        RETURN false;
    END IF;
    v_run := {schema}.newest(p_run);
    INSERT INTO {schema}.trace_sender (run_id, name, id, traceparent, tracestate)
    SELECT v_run, p_name, p_id, v_parent, CASE WHEN length(p_tracestate) <= 512 AND p_tracestate <> '' THEN p_tracestate END
    WHERE EXISTS (SELECT FROM {schema}.message m WHERE m.run_id = v_run AND m.kind = 1 AND m.name = p_name AND m.id = p_id AND m.sent_at >= transaction_timestamp())
       OR EXISTS (SELECT FROM {schema}.update_request q WHERE q.run_id = v_run AND q.name = p_name AND q.id = p_id AND q.sent_at >= transaction_timestamp())
    ON CONFLICT (run_id, name, id) DO NOTHING;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION {schema}.trace_sent(uuid, text, text, text, text) IS
    'Internal: say in whose span a signal or an update was sent, in the transaction that sent it; whether it was stored';

CREATE FUNCTION {schema}.sent_by(run uuid, name text, id text, traceparent text, tracestate text DEFAULT NULL) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.trace_sent(run, name, id, traceparent, tracestate) $$;
COMMENT ON FUNCTION {schema}.sent_by(uuid, text, text, text, text) IS
    'Say in whose span the signal or update with that id was sent, in the transaction that sent it: the run''s span is linked to that';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker text := {role_worker_literal};
    client text := {role_client_literal};
    operator text := {role_operator_literal};
    one    record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT ON {schema}.trace_sender', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.trace_sent(uuid, text, text, text, text), {schema}.sent_by(uuid, text, text, text, text)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
