-- deploy: pre            nothing; the file of this number comes from elsewhere
-- lock:   none
-- undo:   nothing
SELECT;
