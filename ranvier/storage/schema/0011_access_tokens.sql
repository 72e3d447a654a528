-- Access and refresh tokens, and the log rows that tell every process to forget them.

CREATE TABLE refresh_tokens (
    refresh_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_hash      bytea NOT NULL UNIQUE,
    user_id         text NOT NULL,
    device_id       text NOT NULL,
    replaces        bigint,
    expires_ts      bigint,
    session_ends_ts bigint
);
COMMENT ON TABLE refresh_tokens IS 'Tokens that are exchanged for new access tokens';
COMMENT ON COLUMN refresh_tokens.token_hash IS 'SHA-256 of the token';
COMMENT ON COLUMN refresh_tokens.replaces IS 'refresh_id of the token that this one was given for, until this or its access token is used first';
COMMENT ON COLUMN refresh_tokens.expires_ts IS 'Milliseconds since the epoch; null without end';
COMMENT ON COLUMN refresh_tokens.session_ends_ts IS 'When the whole session ends, however often it is refreshed (milliseconds); null without end';
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_by_replaces ON refresh_tokens (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE access_tokens (
    token_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_hash         bytea NOT NULL UNIQUE,
    user_id            text NOT NULL,
    device_id          text,
    created_ts         bigint NOT NULL,
    expires_ts         bigint,
    refresh_id         bigint REFERENCES refresh_tokens ON DELETE CASCADE,
    replaces           bigint,
    reauthenticated_ts bigint
);
COMMENT ON TABLE access_tokens IS 'Tokens that let their holder act for a user';
COMMENT ON COLUMN access_tokens.token_hash IS 'SHA-256 of the token';
COMMENT ON COLUMN access_tokens.device_id IS 'Device of the session; null for a token that an administrator made';
COMMENT ON COLUMN access_tokens.created_ts IS 'Milliseconds since the epoch';
COMMENT ON COLUMN access_tokens.expires_ts IS 'Milliseconds since the epoch; null without end';
COMMENT ON COLUMN access_tokens.refresh_id IS 'Refresh token that was given out with it';
COMMENT ON COLUMN access_tokens.replaces IS 'refresh_id that it was given for, until it or its refresh token is used first';
COMMENT ON COLUMN access_tokens.reauthenticated_ts IS 'When its holder last proved again who they are (milliseconds)';
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_by_refresh ON access_tokens (refresh_id) WHERE refresh_id IS NOT NULL;
CREATE INDEX access_tokens_by_replaces ON access_tokens (replaces) WHERE replaces IS NOT NULL;

-- Log rows of kind access_token. `key` says what happens: 'device' (the tokens of device_id are revoked), 'token' (the
-- one with token_id key2), 'others' (all of the user but token_id key2), 'rotated' (the successor of refresh_id key2
-- was used first), 'account' (body: JSON of the columns of accounts that change). Whatever it is, every process forgets
-- what it remembers of the user.
CREATE FUNCTION log_apply_access_token(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    r log;
BEGIN
    FOREACH r IN ARRAY rows LOOP
        CASE r.key
        WHEN 'device' THEN
            DELETE FROM refresh_tokens WHERE user_id = r.user_id AND device_id = r.device_id;
            DELETE FROM access_tokens WHERE user_id = r.user_id AND device_id = r.device_id;
        WHEN 'token' THEN
            DELETE FROM refresh_tokens USING access_tokens t
                WHERE t.token_id = r.key2::bigint AND t.user_id = r.user_id AND refresh_tokens.refresh_id = t.refresh_id;
            DELETE FROM access_tokens WHERE token_id = r.key2::bigint AND user_id = r.user_id;
        WHEN 'others' THEN
            DELETE FROM refresh_tokens f WHERE user_id = r.user_id AND NOT EXISTS (
                SELECT FROM access_tokens t WHERE t.refresh_id = f.refresh_id AND t.token_id = r.key2::bigint);
            DELETE FROM access_tokens WHERE user_id = r.user_id AND token_id IS DISTINCT FROM r.key2::bigint;
        WHEN 'rotated' THEN
            UPDATE access_tokens SET replaces = NULL WHERE replaces = r.key2::bigint AND user_id = r.user_id;
            UPDATE refresh_tokens SET replaces = NULL WHERE replaces = r.key2::bigint AND user_id = r.user_id;
            DELETE FROM refresh_tokens WHERE refresh_id = r.key2::bigint AND user_id = r.user_id;
        WHEN 'account' THEN
            UPDATE accounts a SET
                is_guest = coalesce(n.is_guest, a.is_guest), is_admin = coalesce(n.is_admin, a.is_admin),
                deactivated = coalesce(n.deactivated, a.deactivated), erased = coalesce(n.erased, a.erased),
                departing = coalesce(n.departing, a.departing), locked = coalesce(n.locked, a.locked),
                suspended = coalesce(n.suspended, a.suspended),
                shadow_banned = coalesce(n.shadow_banned, a.shadow_banned),
                rate_limited = coalesce(n.rate_limited, a.rate_limited),
                password_hash = CASE WHEN n.deactivated THEN NULL ELSE a.password_hash END
            FROM jsonb_populate_record(NULL::accounts, convert_from(r.body, 'UTF8')::jsonb) n
            WHERE a.user_id = r.user_id;
        END CASE;
    END LOOP;
END $$;
COMMENT ON FUNCTION log_apply_access_token IS 'Revokes tokens and changes accounts in the commit that tells every process of it';

CREATE TABLE short_lived_tokens (
    token_hash bytea PRIMARY KEY,
    purpose    text NOT NULL,
    user_id    text NOT NULL,
    expires_ts bigint NOT NULL
);
COMMENT ON TABLE short_lived_tokens IS 'Tokens that live minutes: to log in once, to prove to others who one is';
COMMENT ON COLUMN short_lived_tokens.token_hash IS 'SHA-256 of the token';
COMMENT ON COLUMN short_lived_tokens.purpose IS 'login (m.login.token) or openid';
COMMENT ON COLUMN short_lived_tokens.expires_ts IS 'Milliseconds since the epoch';
CREATE INDEX short_lived_tokens_by_expiry ON short_lived_tokens (expires_ts);
CREATE INDEX short_lived_tokens_by_user ON short_lived_tokens (user_id);
