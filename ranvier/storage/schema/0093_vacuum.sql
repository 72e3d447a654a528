-- Rows of these tables are added and, but for a few, never changed: there is nothing to clean up after them. PostgreSQL
-- looks through such a table after each 1000 new rows and a fifth, to mark pages as seen by all; of a small table that
-- is work for nothing, in the first minutes of a new server above all. What is changed or taken away counts as ever.

ALTER TABLE events SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE transactions SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE log SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE state_deltas SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE snapshots SET (autovacuum_vacuum_insert_threshold = 100000);
