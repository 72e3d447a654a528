-- Room aliases of this server.

CREATE TABLE room_aliases (
    alias      text PRIMARY KEY,
    room_id    text,
    creator    text NOT NULL,
    created_ts bigint NOT NULL
);
COMMENT ON TABLE room_aliases IS 'Which room each alias of this server names';
COMMENT ON COLUMN room_aliases.alias IS 'The whole alias, #name:server';
COMMENT ON COLUMN room_aliases.room_id IS 'Room that it names; null while a room is being made that claimed it';
COMMENT ON COLUMN room_aliases.creator IS 'User who made the alias';
COMMENT ON COLUMN room_aliases.created_ts IS 'Milliseconds since the epoch; a claim that is older than a minute counts no more';
CREATE INDEX room_aliases_by_room ON room_aliases (room_id);
