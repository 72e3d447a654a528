-- Two processes may move one receipt at the same time: the log tells of none that is behind what it told before.

CREATE OR REPLACE FUNCTION log_apply_receipt(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (
            SELECT room_id, user_id, key, key2, event_pos,
                   lag(event_pos) OVER (PARTITION BY room_id, user_id, key, key2 ORDER BY pos) AS before
            FROM (SELECT *, (convert_from(body, 'UTF8')::jsonb ->> 'event_pos')::bigint AS event_pos FROM unnest(rows)) b) n
            LEFT JOIN receipts r ON r.room_id = n.room_id AND r.user_id = n.user_id AND r.receipt_type = n.key
                AND r.thread_id = n.key2
            WHERE n.event_pos < coalesce(n.before, r.event_pos)
    ) THEN
        RAISE EXCEPTION 'a receipt was moved meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, pos, event_pos)
        SELECT DISTINCT ON (room_id, user_id, key, key2)
               room_id, user_id, key, key2, b ->> 'event_id', (b ->> 'ts')::bigint, pos, (b ->> 'event_pos')::bigint
        FROM (SELECT *, convert_from(body, 'UTF8')::jsonb AS b FROM unnest(rows)) n
        ORDER BY room_id, user_id, key, key2, pos DESC
        ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE
            SET event_id = excluded.event_id, ts = excluded.ts, pos = excluded.pos, event_pos = excluded.event_pos;
END $$;
COMMENT ON FUNCTION log_apply_receipt IS 'Moves receipts forward in the commit that tells of them, or refuses the whole write';
