-- Rows of these tables are added and, but for a few, never changed: there is nothing to clean up after them. PostgreSQL
-- looks through such a table after each 1000 new rows and a fifth, to mark pages as seen by all; of a small table that
-- is work for nothing, in the first minutes of a new server above all. What is changed or taken away counts as ever.

ALTER TABLE events SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE transactions SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE log SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE state_deltas SET (autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE snapshots SET (autovacuum_vacuum_insert_threshold = 100000);

-- For the same reason their samples are small ones: 300 rows for each step of the statistics' target.
ALTER TABLE events
    ALTER event_nid SET STATISTICS 1, ALTER pos SET STATISTICS 1, ALTER room_nid SET STATISTICS 1,
    ALTER type SET STATISTICS 1, ALTER state_key SET STATISTICS 1, ALTER sender SET STATISTICS 1,
    ALTER origin_server_ts SET STATISTICS 1, ALTER snapshot_nid SET STATISTICS 1, ALTER rejected SET STATISTICS 1,
    ALTER soft_failed SET STATISTICS 1, ALTER redacted_by SET STATISTICS 1;
ALTER TABLE transactions ALTER user_id SET STATISTICS 1, ALTER scope SET STATISTICS 1, ALTER sent_ts SET STATISTICS 1;

-- A thousand notifications as what each position adds to the one before are a tenth of what they were in full.
COMMENT ON COLUMN unread_tallies.tally IS 'JSON: position up to which all was read, the same by thread, the positions of the notifications (each less the one before), which of them are in which thread, which are highlighted';
