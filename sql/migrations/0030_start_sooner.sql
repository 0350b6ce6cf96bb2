-- deploy: pre            older clients call the same procedure; where they repeat a start they may be told of it before it is on the disk
-- lock:   nothing that anybody waits for
-- undo:   start_and_tell as in 0012
--
-- The hosts hear of a start while it is on its way to the disk, so that the claim and the start wait for the disk side by side instead of one after the
-- other. A worker's claim commits after the start's in the one log and is durable before any code runs: so is the start.

-- A procedure, for it commits in between, as signal_and_tell does: first the start, which others may see from there on; then its announcement, which
-- sessions that listen get with its commit; then all waits for the disk together, with others'. All names are qualified and there is no operator.
CREATE OR REPLACE PROCEDURE {schema}.start_and_tell(
    p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval, p_channel text, p_hint text)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.start_one(p_workflow, p_run, p_input, p_queue, p_priority, p_delay), pg_catalog.set_config('synchronous_commit', 'off', true);
    COMMIT;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(p_channel, p_hint);
    COMMIT;
    PERFORM {schema}.wait_for_disk();
END $$;
COMMENT ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) IS
    'Internal: start_one, its commit, in a second transaction the announcement to the hosts, and in a third the wait for the disk';
