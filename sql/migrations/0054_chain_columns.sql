-- deploy: pre            older code ignores the columns
-- lock:   ACCESS EXCLUSIVE on task, run and message, brief: columns without a default
-- undo:   ALTER TABLE {schema}.task DROP COLUMN chain; ALTER TABLE {schema}.run DROP COLUMN chain; ALTER TABLE {schema}.message DROP COLUMN chain
--
-- Of which chain a run is, and what was sent to it: 0055 says what for. In a file of their own, so that nobody waits for a row of task while an index is made.

ALTER TABLE {schema}.task ADD COLUMN chain uuid;
COMMENT ON COLUMN {schema}.task.chain IS 'As run.chain; here, so that nobody else has to ask';
ALTER TABLE {schema}.run ADD COLUMN chain uuid;
COMMENT ON COLUMN {schema}.run.chain IS 'Of a run that goes on with another one: the first of them. Null in all others, also in that first one';
ALTER TABLE {schema}.message ADD COLUMN chain uuid;
COMMENT ON COLUMN {schema}.message.chain IS 'As run.chain: by it and its id a message is known to the runs after its own';
