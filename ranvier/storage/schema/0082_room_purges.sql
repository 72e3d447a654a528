-- Rooms that all of this server's users forgot leave the database.

ALTER TABLE forgotten_rooms ADD COLUMN ts bigint NOT NULL
    DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
COMMENT ON COLUMN forgotten_rooms.ts IS
    'When the user forgot the room (milliseconds since the epoch); for what was forgotten before this column, when it came';
CREATE INDEX forgotten_rooms_by_room ON forgotten_rooms (room_id);
COMMENT ON INDEX forgotten_rooms_by_room IS 'Finds the rooms that may be purged';

CREATE OR REPLACE FUNCTION log_apply_forgotten_room(rows log[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO forgotten_rooms (user_id, room_id, pos)
        SELECT user_id, room_id, max(pos) FROM unnest(rows) GROUP BY user_id, room_id
        ON CONFLICT (user_id, room_id) DO UPDATE SET pos = excluded.pos, ts = excluded.ts
$$;

CREATE TABLE purged_rooms (
    room_nid     bigint PRIMARY KEY,
    room_id      text NOT NULL,
    snapshot_nid bigint NOT NULL
);
COMMENT ON TABLE purged_rooms IS 'Rooms that are gone for everybody, and whose events and state are being removed piece by piece';
COMMENT ON COLUMN purged_rooms.room_nid IS 'What rooms.room_nid was; never used again';
COMMENT ON COLUMN purged_rooms.room_id IS 'What rooms.room_id was';
COMMENT ON COLUMN purged_rooms.snapshot_nid IS 'What rooms.snapshot_nid was';

CREATE INDEX events_outside ON events (room_nid) WHERE pos IS NULL AND state_key IS NULL;
COMMENT ON INDEX events_outside IS 'Refused messages, which no other index finds by their room';

-- Log rows of kind purged_room: key is the head at which the room was found to be forgotten by all. If it moved on,
-- somebody came back, and nothing happens.
CREATE FUNCTION log_apply_purged_room(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    gone_nids bigint[];
    gone_ids  text[];
BEGIN
    WITH gone AS (
        DELETE FROM rooms r USING unnest(rows) n WHERE r.room_id = n.room_id AND r.head = n.key::bigint
        RETURNING r.room_nid, r.room_id, r.snapshot_nid
    ), noted AS (
        INSERT INTO purged_rooms (room_nid, room_id, snapshot_nid) SELECT room_nid, room_id, snapshot_nid FROM gone
    )
    SELECT coalesce(array_agg(room_nid), '{}'), coalesce(array_agg(room_id), '{}') INTO gone_nids, gone_ids FROM gone;
    DELETE FROM room_nids WHERE room_id = ANY (gone_ids);
    DELETE FROM room_aliases WHERE room_id = ANY (gone_ids);
    DELETE FROM room_directory WHERE room_nid = ANY (gone_nids);
END $$;
COMMENT ON FUNCTION log_apply_purged_room IS
    'Takes a room away in the commit that tells every process of it: from then on nobody can read or write it';
