-- The published room directory of this server.

CREATE TABLE room_directory (
    room_nid        bigint PRIMARY KEY,
    room_id         text NOT NULL UNIQUE,
    publisher       text NOT NULL,
    snapshot_nid    bigint NOT NULL DEFAULT 0,
    joined_members  integer NOT NULL DEFAULT 0,
    room_type       text,
    searched        text NOT NULL DEFAULT '',
    shown           bytea
);
COMMENT ON TABLE room_directory IS 'Published rooms, with what the directory tells of them';
COMMENT ON COLUMN room_directory.publisher IS 'User who published the room';
COMMENT ON COLUMN room_directory.snapshot_nid IS
    'State of the room (rooms.snapshot_nid) that the next columns were made of; 0 to have them made anew';
COMMENT ON COLUMN room_directory.joined_members IS 'Number of joined members: the order of the directory';
COMMENT ON COLUMN room_directory.room_type IS 'type of the create event, if it has one';
COMMENT ON COLUMN room_directory.searched IS 'Name, topic and alias in lower case, for searching';
COMMENT ON COLUMN room_directory.shown IS 'The entry as clients get it, JSON; null until first made';
CREATE INDEX room_directory_order ON room_directory (joined_members DESC, room_id);
