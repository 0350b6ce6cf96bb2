-- deploy: pre            an index alone; a file of its own, so that its lock is not the one of new columns
-- lock:   SHARE on run: starts wait while its partitions are read once, 1 to 2 s per GB that is not in memory; readers do not wait
-- undo:   DROP INDEX {schema}.run_batch_idx
--
-- Runs of a batch in the order of their ids. Partial: a start outside of any batch does not touch it.
CREATE INDEX run_batch_idx ON {schema}.run (batch, run_id) WHERE batch IS NOT NULL;
