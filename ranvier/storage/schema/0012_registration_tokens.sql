-- Tokens that let people register (m.login.registration_token).

CREATE TABLE registration_tokens (
    token        text PRIMARY KEY,
    uses_allowed integer,
    completed    integer NOT NULL DEFAULT 0,
    expires_ts   bigint
);
COMMENT ON TABLE registration_tokens IS 'Tokens that administrators give to people so that they can register';
COMMENT ON COLUMN registration_tokens.uses_allowed IS 'How many accounts may be made with it; null without limit';
COMMENT ON COLUMN registration_tokens.completed IS 'How many accounts were made with it';
COMMENT ON COLUMN registration_tokens.expires_ts IS 'Milliseconds since the epoch; null without end';

-- Not logged by PostgreSQL: writing one waits for no disk, and after a crash people only authenticate again.
CREATE UNLOGGED TABLE uia_sessions (
    session_hash       bytea PRIMARY KEY,
    operation          text NOT NULL,
    created_ts         bigint NOT NULL,
    completed          text[] NOT NULL DEFAULT '{}',
    registration_token text,
    body               bytea
);
COMMENT ON TABLE uia_sessions IS 'User-interactive authentications that are under way';
COMMENT ON COLUMN uia_sessions.session_hash IS 'SHA-256 of the session id';
COMMENT ON COLUMN uia_sessions.operation IS 'What the session is for: operation, method, path and user';
COMMENT ON COLUMN uia_sessions.created_ts IS 'Milliseconds since the epoch';
COMMENT ON COLUMN uia_sessions.completed IS 'Stages that were passed, in order';
COMMENT ON COLUMN uia_sessions.registration_token IS 'Token that passed the stage m.login.registration_token';
COMMENT ON COLUMN uia_sessions.body IS 'The first request, for a client that repeats only the session; encrypted under the session id';
CREATE INDEX uia_sessions_by_age ON uia_sessions (created_ts);
CREATE INDEX uia_sessions_by_token ON uia_sessions (registration_token) WHERE registration_token IS NOT NULL;
