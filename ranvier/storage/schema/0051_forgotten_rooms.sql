-- Rooms that users want to hear no more of.

CREATE TABLE forgotten_rooms (
    user_id text NOT NULL,
    room_id text NOT NULL,
    pos     bigint NOT NULL,
    PRIMARY KEY (user_id, room_id)
);
COMMENT ON TABLE forgotten_rooms IS
    'Rooms that a user forgot. It counts until the user''s next member event in the room: so coming back needs no write here';
COMMENT ON COLUMN forgotten_rooms.pos IS 'Log position at which the user forgot the room';

CREATE FUNCTION log_apply_forgotten_room(rows log[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO forgotten_rooms (user_id, room_id, pos)
        SELECT user_id, room_id, max(pos) FROM unnest(rows) GROUP BY user_id, room_id
        ON CONFLICT (user_id, room_id) DO UPDATE SET pos = excluded.pos
$$;
