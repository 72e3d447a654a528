-- How far users have read.

CREATE TABLE receipts (
    room_id      text NOT NULL,
    user_id      text NOT NULL,
    receipt_type text NOT NULL,
    thread_id    text NOT NULL,
    event_id     text NOT NULL,
    ts           bigint NOT NULL,
    pos          bigint NOT NULL,
    event_pos    bigint NOT NULL,
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
) WITH (fillfactor = 80);
COMMENT ON TABLE receipts IS 'The newest receipt of each user, kind and thread; receipts never move backwards';
COMMENT ON COLUMN receipts.receipt_type IS 'm.read or m.read.private (which only its user may see)';
COMMENT ON COLUMN receipts.thread_id IS 'Event ID of the thread root, main for what is in no thread; empty for an unthreaded receipt';
COMMENT ON COLUMN receipts.event_id IS 'Event up to which, itself included, the user has read';
COMMENT ON COLUMN receipts.ts IS 'When it was sent (milliseconds since the epoch)';
COMMENT ON COLUMN receipts.pos IS 'Log position of the receipt itself';
COMMENT ON COLUMN receipts.event_pos IS 'events.pos of the event: of two receipts the one with the greater counts';
CREATE INDEX receipts_by_pos ON receipts (room_id, pos);

-- Log rows of kind receipt: key is the type, key2 the thread ('' for none), body {"event_id", "event_pos", "ts"}.
CREATE FUNCTION log_apply_receipt(rows log[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO receipts AS r (room_id, user_id, receipt_type, thread_id, event_id, ts, pos, event_pos)
        SELECT DISTINCT ON (room_id, user_id, key, key2)
               room_id, user_id, key, key2, b ->> 'event_id', (b ->> 'ts')::bigint, pos, (b ->> 'event_pos')::bigint
        FROM (SELECT *, convert_from(body, 'UTF8')::jsonb AS b FROM unnest(rows)) n
        ORDER BY room_id, user_id, key, key2, (b ->> 'event_pos')::bigint DESC, pos
        ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE
            SET event_id = excluded.event_id, ts = excluded.ts, pos = excluded.pos, event_pos = excluded.event_pos
            WHERE excluded.event_pos > r.event_pos
$$;
COMMENT ON FUNCTION log_apply_receipt IS 'Moves receipts forward in the commit that tells of them';
