-- What of presence outlives the server.

CREATE TABLE presence (
    user_id        text PRIMARY KEY,
    status_msg     text,
    last_active_ts bigint NOT NULL,
    process        text
) WITH (fillfactor = 80);
COMMENT ON TABLE presence IS
    'Status messages, and who is connected to which process: written in batches when either changes, so up to some seconds late';
COMMENT ON COLUMN presence.status_msg IS 'What the user says of themselves; null if nothing';
COMMENT ON COLUMN presence.last_active_ts IS 'When the user was last active as of this row (milliseconds since the epoch)';
COMMENT ON COLUMN presence.process IS 'Process that the user is connected to; null while offline';
CREATE INDEX presence_by_process ON presence (process) WHERE process IS NOT NULL;
