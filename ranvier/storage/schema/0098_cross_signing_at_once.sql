-- Cross-signing keys that are published by two sessions at once.

-- Rows of kind device_list with the key cross_signing say in their body as "master" which public key the user's master
-- key had (null: there was none) when it was decided whether the user must prove who they are. If it is another by now
-- the write is refused, and is to be decided again. Two that come in one batch are refused to be written one by one.
CREATE OR REPLACE FUNCTION log_apply_device_list(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT user_id, convert_from(body, 'UTF8')::json AS body FROM unnest(rows)
                     WHERE key = 'cross_signing') n
            LEFT JOIN cross_signing_keys k ON k.user_id = n.user_id AND k.usage = 'master'
            WHERE n.body -> 'master' IS NOT NULL AND n.body ->> 'master' IS DISTINCT FROM k.public_key
    ) OR EXISTS (
        SELECT FROM unnest(rows) WHERE key = 'cross_signing' GROUP BY user_id, key2 HAVING count(*) > 1
    ) THEN
        RAISE EXCEPTION 'cross-signing keys were changed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    PERFORM device_rows_apply(rows);
    INSERT INTO device_list_changes (user_id, pos)
        SELECT user_id, max(pos) FROM unnest(rows) GROUP BY user_id
        ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos;
END $$;
