-- A session that begins on a device ends those that the device had.

-- As in 0097, but a row with the key 'device' may name in key2 the token that is kept (token_id): that of the session that
-- has begun. Of two that begin at once the row of one names a token that the row of the other has removed, and then
-- it removes nothing: else both would be over.
CREATE OR REPLACE FUNCTION log_apply_access_token(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    r log;
    kept_refresh_id bigint;
BEGIN
    FOREACH r IN ARRAY (SELECT array_agg(l ORDER BY l.key <> 'account', l.pos) FROM unnest(rows) l) LOOP
        CASE r.key
        WHEN 'device' THEN
            PERFORM FROM devices WHERE user_id = r.user_id AND device_id = r.device_id FOR UPDATE;
            SELECT refresh_id INTO kept_refresh_id FROM access_tokens
                WHERE token_id = r.key2::bigint AND user_id = r.user_id;
            CONTINUE WHEN r.key2 IS NOT NULL AND NOT FOUND;
            DELETE FROM refresh_tokens WHERE user_id = r.user_id AND device_id = r.device_id
                AND refresh_id IS DISTINCT FROM kept_refresh_id;
            DELETE FROM access_tokens WHERE user_id = r.user_id AND device_id = r.device_id
                AND token_id IS DISTINCT FROM r.key2::bigint;
        WHEN 'token' THEN
            DELETE FROM refresh_tokens USING access_tokens t
                WHERE t.token_id = r.key2::bigint AND t.user_id = r.user_id AND refresh_tokens.refresh_id = t.refresh_id;
            DELETE FROM access_tokens WHERE token_id = r.key2::bigint AND user_id = r.user_id;
        WHEN 'others' THEN
            PERFORM FROM devices WHERE user_id = r.user_id ORDER BY device_id FOR UPDATE;
            DELETE FROM refresh_tokens f WHERE user_id = r.user_id AND NOT EXISTS (
                SELECT FROM access_tokens t WHERE t.refresh_id = f.refresh_id AND t.token_id = r.key2::bigint);
            DELETE FROM access_tokens WHERE user_id = r.user_id AND token_id IS DISTINCT FROM r.key2::bigint;
        WHEN 'rotated' THEN
            PERFORM FROM refresh_tokens WHERE refresh_id = r.key2::bigint AND user_id = r.user_id FOR UPDATE;
            UPDATE access_tokens SET replaces = NULL WHERE replaces = r.key2::bigint AND user_id = r.user_id;
            UPDATE refresh_tokens SET replaces = NULL WHERE replaces = r.key2::bigint AND user_id = r.user_id;
            DELETE FROM refresh_tokens WHERE refresh_id = r.key2::bigint AND user_id = r.user_id;
        WHEN 'account' THEN
            UPDATE accounts a SET
                is_guest = coalesce(n.is_guest, a.is_guest), is_admin = coalesce(n.is_admin, a.is_admin),
                deactivated = coalesce(n.deactivated, a.deactivated), erased = coalesce(n.erased, a.erased),
                erased_pos = CASE WHEN coalesce(n.erased, a.erased) THEN coalesce(a.erased_pos, r.pos) END,
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
