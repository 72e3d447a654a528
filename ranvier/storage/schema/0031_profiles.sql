-- Profiles, and which changes of them are still to be told to rooms.

CREATE TABLE profiles (
    user_id  text PRIMARY KEY,
    document bytea NOT NULL,
    pos      bigint NOT NULL
) WITH (fillfactor = 80);
COMMENT ON TABLE profiles IS 'Profiles of users of ours who have set any field';
COMMENT ON COLUMN profiles.document IS 'Every field by its name, JSON';
COMMENT ON COLUMN profiles.pos IS 'Log position of the last change';

CREATE TABLE profile_changes (
    user_id text PRIMARY KEY,
    pos     bigint NOT NULL
);
COMMENT ON TABLE profile_changes IS 'Users whose name or avatar changed and does not stand in the member events of all their rooms yet';
COMMENT ON COLUMN profile_changes.pos IS 'Log position of the change; a later change takes its place';

-- Log rows of kind profile: key is the field that changed, body the whole profile, key2 the position of the profile
-- that it was computed on (0: none): if that moved on the write is refused, and is to be computed again.
CREATE FUNCTION log_apply_profile(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(rows) n LEFT JOIN profiles p USING (user_id)
            WHERE n.key2 IS NOT NULL AND n.key2::bigint <> coalesce(p.pos, 0)
    ) THEN
        RAISE EXCEPTION 'the profile was changed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    INSERT INTO profiles (user_id, document, pos)
        SELECT DISTINCT ON (user_id) user_id, body, pos FROM unnest(rows) ORDER BY user_id, pos DESC
        ON CONFLICT (user_id) DO UPDATE SET document = excluded.document, pos = excluded.pos;
    INSERT INTO profile_changes (user_id, pos)
        SELECT user_id, max(pos) FROM unnest(rows) WHERE key IN ('displayname', 'avatar_url') GROUP BY user_id
        ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos;
END $$;
COMMENT ON FUNCTION log_apply_profile IS 'Keeps the newest profile of each user, and notes what rooms must be told';
