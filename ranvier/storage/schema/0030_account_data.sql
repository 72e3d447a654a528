-- What users keep for themselves: account data (tags and read markers included), push rules, filters.

CREATE TABLE account_data (
    user_id text NOT NULL,
    room_id text NOT NULL,
    type    text NOT NULL,
    content bytea NOT NULL,
    pos     bigint NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
) WITH (fillfactor = 80);
COMMENT ON TABLE account_data IS 'Account data, global and by room; m.tag and m.fully_read are rows of it like any other';
COMMENT ON COLUMN account_data.user_id IS 'Whose it is: nobody else ever sees it';
COMMENT ON COLUMN account_data.room_id IS 'Room that it belongs to; empty for global account data';
COMMENT ON COLUMN account_data.type IS 'Event type';
COMMENT ON COLUMN account_data.content IS 'Content, a JSON object';
COMMENT ON COLUMN account_data.pos IS 'Log position of the last change';
CREATE INDEX account_data_by_pos ON account_data (user_id, pos);

-- Log rows of kind account_data: key is the type, body the content. key2, where there is one, is the position of the
-- row that the content was computed on (0: none): if that moved on the write is refused, and is to be computed again.
CREATE FUNCTION log_apply_account_data(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(rows) n
            LEFT JOIN account_data a ON a.user_id = n.user_id AND a.room_id = coalesce(n.room_id, '') AND a.type = n.key
            WHERE n.key2 IS NOT NULL AND n.key2::bigint <> coalesce(a.pos, 0)
    ) THEN
        RAISE EXCEPTION 'account data was changed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    INSERT INTO account_data (user_id, room_id, type, content, pos)
        SELECT DISTINCT ON (user_id, room, key) user_id, room, key, body, pos
        FROM (SELECT *, coalesce(room_id, '') AS room FROM unnest(rows)) n
        ORDER BY user_id, room, key, pos DESC
        ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos;
END $$;
COMMENT ON FUNCTION log_apply_account_data IS 'Keeps the newest content of each type';

CREATE TABLE push_rules (
    user_id  text PRIMARY KEY,
    document bytea NOT NULL,
    pos      bigint NOT NULL
) WITH (fillfactor = 80);
COMMENT ON TABLE push_rules IS 'Push rules of users who changed any';
COMMENT ON COLUMN push_rules.document IS 'The user''s own rules and what they changed about predefined ones, JSON';
COMMENT ON COLUMN push_rules.pos IS 'Log position of the last change';

-- Log rows of kind push_rules: body is the document, key2 the position that it was computed on, as above.
CREATE FUNCTION log_apply_push_rules(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(rows) n LEFT JOIN push_rules p USING (user_id)
            WHERE n.key2 IS NOT NULL AND n.key2::bigint <> coalesce(p.pos, 0)
    ) THEN
        RAISE EXCEPTION 'push rules were changed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    INSERT INTO push_rules (user_id, document, pos)
        SELECT DISTINCT ON (user_id) user_id, body, pos FROM unnest(rows) ORDER BY user_id, pos DESC
        ON CONFLICT (user_id) DO UPDATE SET document = excluded.document, pos = excluded.pos;
END $$;
COMMENT ON FUNCTION log_apply_push_rules IS 'Keeps the newest push rules of each user';

CREATE TABLE filters (
    filter_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    text NOT NULL,
    digest     bytea NOT NULL,
    definition bytea NOT NULL,
    UNIQUE (user_id, digest)
);
COMMENT ON TABLE filters IS 'Filters that clients uploaded; they never change';
COMMENT ON COLUMN filters.user_id IS 'Whose it is';
COMMENT ON COLUMN filters.digest IS 'SHA-256 of the definition: an equal filter is stored once';
COMMENT ON COLUMN filters.definition IS 'The filter as the client sent it, canonical JSON';
