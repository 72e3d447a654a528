-- New users who are still to be joined to the rooms of the configuration (auto_join_rooms).

CREATE TABLE auto_joins (
    user_id  text PRIMARY KEY,
    due_ts   bigint NOT NULL,
    attempts integer NOT NULL DEFAULT 0
);
COMMENT ON TABLE auto_joins IS
    'Written with the account itself, removed when the user is in the rooms: so neither a crash nor a busy server loses it';
COMMENT ON COLUMN auto_joins.user_id IS 'New user';
COMMENT ON COLUMN auto_joins.due_ts IS 'When a process may take it up, and others let it (milliseconds since the epoch)';
COMMENT ON COLUMN auto_joins.attempts IS 'How often a process has taken it up';
CREATE INDEX auto_joins_due ON auto_joins (due_ts);
