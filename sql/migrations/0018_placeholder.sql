-- deploy: pre            nothing: the number is another file's
-- lock:   none
-- undo:   nothing
SELECT 1;
