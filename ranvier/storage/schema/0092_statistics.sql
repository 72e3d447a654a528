-- ANALYZE of a busy server's largest tables costs more than what its statistics are good for: it reads a sample of
-- wide rows and sorts each column. Their queries go by unique keys, or by room and position, whatever the values are.
-- So the sample is a tenth of the usual, and columns that no query compares are left out.

ALTER TABLE events
    ALTER event_nid SET STATISTICS 10, ALTER pos SET STATISTICS 10, ALTER room_nid SET STATISTICS 10,
    ALTER event_id SET STATISTICS 0, ALTER type SET STATISTICS 10, ALTER state_key SET STATISTICS 10,
    ALTER sender SET STATISTICS 10, ALTER depth SET STATISTICS 0, ALTER origin_server_ts SET STATISTICS 10,
    ALTER snapshot_nid SET STATISTICS 10, ALTER replaces_nid SET STATISTICS 0, ALTER auth_chain SET STATISTICS 0,
    ALTER txn_device SET STATISTICS 0, ALTER txn_id SET STATISTICS 0, ALTER pdu SET STATISTICS 0,
    ALTER rejected SET STATISTICS 10, ALTER soft_failed SET STATISTICS 10, ALTER redacted_by SET STATISTICS 10;
ALTER TABLE transactions
    ALTER user_id SET STATISTICS 10, ALTER device_id SET STATISTICS 0, ALTER scope SET STATISTICS 10,
    ALTER txn_id SET STATISTICS 0, ALTER event_id SET STATISTICS 0, ALTER sent_ts SET STATISTICS 10;
ALTER TABLE log
    ALTER pos SET STATISTICS 10, ALTER kind SET STATISTICS 10, ALTER room_id SET STATISTICS 10,
    ALTER user_id SET STATISTICS 10, ALTER device_id SET STATISTICS 0, ALTER key SET STATISTICS 0,
    ALTER key2 SET STATISTICS 0, ALTER body SET STATISTICS 0;
ALTER TABLE snapshots ALTER state SET STATISTICS 0, ALTER added SET STATISTICS 0, ALTER removed SET STATISTICS 0;
ALTER TABLE unread_tallies ALTER tally SET STATISTICS 0;
