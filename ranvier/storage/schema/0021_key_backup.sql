-- Server-side key backups: session keys that the server can not read.

CREATE TABLE key_backups (
    user_id   text NOT NULL,
    version   bigint NOT NULL,
    algorithm text NOT NULL,
    auth_data bytea NOT NULL,
    etag      bigint NOT NULL DEFAULT 0,
    deleted   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_id, version)
);
COMMENT ON TABLE key_backups IS 'Versions of the key backup of each user; a deleted one stays so that its number is not used again';
COMMENT ON COLUMN key_backups.version IS 'Counts from 1 for each user; the greatest that is not deleted is the current one';
COMMENT ON COLUMN key_backups.auth_data IS 'JSON object';
COMMENT ON COLUMN key_backups.etag IS 'Grows with each change of the keys';

CREATE TABLE key_backup_keys (
    user_id             text NOT NULL,
    version             bigint NOT NULL,
    room_id             text NOT NULL,
    session_id          text NOT NULL,
    first_message_index bigint NOT NULL,
    forwarded_count     bigint NOT NULL,
    is_verified         boolean NOT NULL,
    session_data        bytea NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);
COMMENT ON TABLE key_backup_keys IS 'Encrypted session keys of a backup';
COMMENT ON COLUMN key_backup_keys.session_data IS 'JSON object';
