-- The user directory: who can be found by name, and where anybody may see who is there.

CREATE TABLE user_directory (
    user_id      text PRIMARY KEY,
    display_name text,
    avatar_url   text,
    name_key     text NOT NULL,
    local_key    text NOT NULL,
    words        tsvector NOT NULL
);
COMMENT ON TABLE user_directory IS 'Users that a search may find: those of ours, and those of other servers who are in rooms here';
COMMENT ON COLUMN user_directory.user_id IS 'Full user ID';
COMMENT ON COLUMN user_directory.display_name IS 'Name: of the profile for users of ours, of their newest member event for others';
COMMENT ON COLUMN user_directory.avatar_url IS 'Avatar, from where the name is from';
COMMENT ON COLUMN user_directory.name_key IS 'Words of the name as they are compared, with spaces between';
COMMENT ON COLUMN user_directory.local_key IS 'Words of the user ID before the colon, likewise';
COMMENT ON COLUMN user_directory.words IS 'All words by which the user is found';
CREATE INDEX user_directory_words ON user_directory USING gin (words);
COMMENT ON INDEX user_directory_words IS 'Finds words by how they begin';

CREATE TABLE user_directory_rooms (
    room_nid bigint PRIMARY KEY,
    is_open  boolean NOT NULL
);
COMMENT ON TABLE user_directory_rooms IS 'Rooms whose members are in the directory';
COMMENT ON COLUMN user_directory_rooms.room_nid IS 'Room';
COMMENT ON COLUMN user_directory_rooms.is_open IS 'Anybody may join it, or read it: its members can be found by all';

CREATE TABLE user_directory_progress (
    pos bigint NOT NULL
);
COMMENT ON TABLE user_directory_progress IS 'How far the directory has followed the log; one row';
COMMENT ON COLUMN user_directory_progress.pos IS 'Log position';
INSERT INTO user_directory_progress (pos) VALUES (0);

CREATE TABLE user_directory_new (
    user_id text PRIMARY KEY
);
COMMENT ON TABLE user_directory_new IS 'Accounts that were made and are not in the directory yet';
COMMENT ON COLUMN user_directory_new.user_id IS 'Full user ID';
INSERT INTO user_directory_new (user_id) SELECT user_id FROM accounts;

CREATE FUNCTION user_directory_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO user_directory_new (user_id) VALUES (NEW.user_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION user_directory_note IS 'Making an account is no row of the log, so the directory would not hear of it';
CREATE TRIGGER accounts_user_directory AFTER INSERT ON accounts
    FOR EACH ROW EXECUTE FUNCTION user_directory_note();

CREATE INDEX profiles_by_pos ON profiles (pos);
COMMENT ON INDEX profiles_by_pos IS 'What changed since the directory was brought up to date';
CREATE INDEX state_deltas_of_directory ON state_deltas (pos)
    WHERE type IN ('m.room.member', 'm.room.join_rules', 'm.room.history_visibility');
COMMENT ON INDEX state_deltas_of_directory IS 'Likewise';
CREATE INDEX events_redactions ON events (pos) WHERE type = 'm.room.redaction' AND pos IS NOT NULL;
COMMENT ON INDEX events_redactions IS 'Likewise: a name may have been redacted';
