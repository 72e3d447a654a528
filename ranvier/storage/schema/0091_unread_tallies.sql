-- What was counted as unread, so that it need not be counted again.

CREATE TABLE unread_tallies (
    user_id  text NOT NULL,
    room_nid bigint NOT NULL,
    upto     bigint NOT NULL,
    rules    text NOT NULL,
    tally    bytea NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) WITH (fillfactor = 80);
COMMENT ON TABLE unread_tallies IS 'Unread notifications as they were counted last, written after some hundred events; may be lost without harm';
COMMENT ON COLUMN unread_tallies.user_id IS 'Whose they are';
COMMENT ON COLUMN unread_tallies.room_nid IS 'In which room';
COMMENT ON COLUMN unread_tallies.upto IS 'Log position up to which events were counted';
COMMENT ON COLUMN unread_tallies.rules IS 'By which push rules and ignored users: with others it is of no use';
COMMENT ON COLUMN unread_tallies.tally IS 'JSON: position up to which all was read, the same by thread, and each notification (position, thread, highlighted)';

CREATE INDEX events_redactions_of_room ON events (room_nid, pos) WHERE type = 'm.room.redaction' AND pos IS NOT NULL;
COMMENT ON INDEX events_redactions_of_room IS 'What was redacted after a tally was written';
CREATE INDEX redactions_by_event ON redactions (event_nid);
COMMENT ON INDEX redactions_by_event IS 'What a redaction is about';
