-- Devices, their keys, and who must be told that a list of devices changed.

CREATE TABLE devices (
    user_id         text NOT NULL,
    device_id       text NOT NULL,
    display_name    text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    last_seen_ts    bigint,
    last_seen_ip    text,
    last_seen_agent text,
    PRIMARY KEY (user_id, device_id)
) WITH (fillfactor = 80);
COMMENT ON TABLE devices IS 'Devices of the users of this server';
COMMENT ON COLUMN devices.display_name IS 'Name that the user gave it, visible to everybody';
COMMENT ON COLUMN devices.last_seen_ts IS 'Milliseconds since the epoch; some minutes old';
COMMENT ON COLUMN devices.last_seen_ip IS 'Address of its last request';
COMMENT ON COLUMN devices.last_seen_agent IS 'User-Agent of its last request';

CREATE TABLE device_keys (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    keys      bytea NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
COMMENT ON TABLE device_keys IS 'Identity keys of devices: a device with none takes no part in encryption';
COMMENT ON COLUMN device_keys.keys IS 'The signed object as it was uploaded, JSON, without "unsigned"';

CREATE TABLE one_time_keys (
    seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id   text NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id    text NOT NULL,
    key       bytea NOT NULL,
    UNIQUE (user_id, device_id, algorithm, key_id)
);
COMMENT ON TABLE one_time_keys IS 'One-time keys that nobody has claimed yet; a claim deletes the row';
COMMENT ON COLUMN one_time_keys.seq IS 'Order of upload, in which they are given out';
COMMENT ON COLUMN one_time_keys.key IS 'JSON: a string or a signed object';
CREATE INDEX one_time_keys_in_order ON one_time_keys (user_id, device_id, algorithm, seq);

CREATE TABLE fallback_keys (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id    text NOT NULL,
    key       bytea NOT NULL,
    used      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_id, device_id, algorithm)
);
COMMENT ON TABLE fallback_keys IS 'Keys given out again and again when the one-time keys have run out';
COMMENT ON COLUMN fallback_keys.used IS 'Given out at least once: the device should replace it';

CREATE TABLE cross_signing_keys (
    user_id    text NOT NULL,
    usage      text NOT NULL,
    public_key text NOT NULL,
    key        bytea NOT NULL,
    PRIMARY KEY (user_id, usage)
);
COMMENT ON TABLE cross_signing_keys IS 'The cross-signing keys of each user';
COMMENT ON COLUMN cross_signing_keys.usage IS 'master, self_signing or user_signing';
COMMENT ON COLUMN cross_signing_keys.public_key IS 'Unpadded Base64';
COMMENT ON COLUMN cross_signing_keys.key IS 'The object as it was uploaded, JSON, with signatures of the user only';

CREATE TABLE key_signatures (
    target_user_id text NOT NULL,
    target_id      text NOT NULL,
    signer_user_id text NOT NULL,
    signer_key_id  text NOT NULL,
    signature      text NOT NULL,
    pos            bigint NOT NULL,
    PRIMARY KEY (target_user_id, target_id, signer_user_id, signer_key_id)
);
COMMENT ON TABLE key_signatures IS 'Signatures that were added to keys after their upload';
COMMENT ON COLUMN key_signatures.target_id IS 'Device id, or public key of a master key';
COMMENT ON COLUMN key_signatures.signer_key_id IS 'Algorithm and id of the key that signed';
COMMENT ON COLUMN key_signatures.pos IS 'Log position of its upload';
CREATE INDEX key_signatures_by_signer ON key_signatures (signer_user_id, pos);

CREATE TABLE device_list_changes (
    user_id text PRIMARY KEY,
    pos     bigint NOT NULL
);
COMMENT ON TABLE device_list_changes IS 'When the devices or cross-signing keys of each user changed last';
COMMENT ON COLUMN device_list_changes.pos IS 'Log position of the newest change';
CREATE INDEX device_list_changes_by_pos ON device_list_changes (pos);

CREATE TABLE to_device_messages (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    pos       bigint NOT NULL,
    body      bytea NOT NULL,
    PRIMARY KEY (user_id, device_id, pos)
);
COMMENT ON TABLE to_device_messages IS 'Messages that a device did not acknowledge yet';
COMMENT ON COLUMN to_device_messages.pos IS 'Log position, their order';
COMMENT ON COLUMN to_device_messages.body IS 'The event as the client gets it, JSON';

CREATE TABLE to_device_held (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    after     bigint NOT NULL,
    due       bigint NOT NULL,
    PRIMARY KEY (user_id, device_id, due)
);
COMMENT ON TABLE to_device_held IS
    'Answers that had no room for all messages: those after one position count as if they came at another';
COMMENT ON COLUMN to_device_held.after IS 'Position of the last message that the answer held';
COMMENT ON COLUMN to_device_held.due IS 'Log position of this row: a token before it does not acknowledge the others';

CREATE TABLE to_device_transactions (
    user_id   text NOT NULL,
    device_id text NOT NULL,
    txn_id    text NOT NULL,
    sent_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, device_id, txn_id)
);
COMMENT ON TABLE to_device_transactions IS 'Transaction ids of send-to-device requests; old rows are removed';
CREATE INDEX to_device_transactions_by_age ON to_device_transactions (sent_at);

-- What rows of the log do -------------------------------------------------------------------------

-- Kinds device and device_list: key says what happened to the device, or to the user's keys.
--   deleted       the device and all that belongs to it goes
--   renamed       body is the new name, or null
--   device_keys   body is the object of identity keys; key2 is "resigned" where only its signatures changed
--   cross_signing key2 is the usage, body {"public_key", "key"}
--   signatures    body [{"target_id", "signer_key_id", "signature"}] on the user's own keys
-- The steps run in this order over the whole batch. What one commit holds for one device comes from
-- one request at a time, so that within a batch only the order of equal keys matters.
CREATE FUNCTION device_rows_apply(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(rows) WHERE key = 'renamed') THEN
        UPDATE devices d SET display_name = convert_from(r.body, 'UTF8') FROM (
            SELECT DISTINCT ON (user_id, device_id) user_id, device_id, body FROM unnest(rows)
            WHERE key = 'renamed' ORDER BY user_id, device_id, pos DESC) r
        WHERE d.user_id = r.user_id AND d.device_id = r.device_id;
    END IF;
    IF EXISTS (SELECT FROM unnest(rows) WHERE key = 'device_keys') THEN
        -- Signatures were made on other keys than these.
        DELETE FROM key_signatures s USING unnest(rows) r
            WHERE r.key = 'device_keys' AND r.key2 IS NULL AND s.target_user_id = r.user_id AND s.target_id = r.device_id;
        INSERT INTO device_keys (user_id, device_id, keys)
            SELECT DISTINCT ON (r.user_id, r.device_id) r.user_id, r.device_id, r.body
            FROM unnest(rows) r JOIN devices USING (user_id, device_id)
            WHERE r.key = 'device_keys' ORDER BY r.user_id, r.device_id, r.pos DESC
            ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys;
    END IF;
    IF EXISTS (SELECT FROM unnest(rows) WHERE key = 'cross_signing') THEN
        DELETE FROM key_signatures s USING unnest(rows) r JOIN cross_signing_keys old
                ON old.user_id = r.user_id AND old.usage = r.key2
            WHERE r.key = 'cross_signing'
              AND old.public_key <> convert_from(r.body, 'UTF8')::json ->> 'public_key'
              AND (s.target_user_id = r.user_id AND s.target_id = old.public_key
                   OR s.signer_user_id = r.user_id AND s.signer_key_id = 'ed25519:' || old.public_key);
        INSERT INTO cross_signing_keys (user_id, usage, public_key, key)
            SELECT DISTINCT ON (user_id, key2) user_id, key2, body ->> 'public_key',
                   convert_to(body ->> 'key', 'UTF8')
            FROM (SELECT user_id, key2, pos, convert_from(body, 'UTF8')::json AS body FROM unnest(rows)
                  WHERE key = 'cross_signing') r
            ORDER BY user_id, key2, pos DESC
            ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, key = excluded.key;
    END IF;
    IF EXISTS (SELECT FROM unnest(rows) WHERE key = 'signatures') THEN
        PERFORM key_signatures_add(pos, user_id, user_id, body) FROM unnest(rows)
            WHERE key = 'signatures' ORDER BY pos;
    END IF;
    IF EXISTS (SELECT FROM unnest(rows) WHERE key = 'deleted') THEN
        DELETE FROM devices d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM device_keys d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM one_time_keys d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM fallback_keys d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM key_signatures s USING unnest(rows) r
            WHERE r.key = 'deleted' AND s.target_user_id = r.user_id AND s.target_id = r.device_id;
        DELETE FROM to_device_messages d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM to_device_held d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
        DELETE FROM to_device_transactions d USING unnest(rows) r
            WHERE r.key = 'deleted' AND d.user_id = r.user_id AND d.device_id = r.device_id;
    END IF;
END $$;
COMMENT ON FUNCTION device_rows_apply IS 'Keep devices and keys as rows of the kinds device and device_list say';

CREATE FUNCTION key_signatures_add(at_pos bigint, signer text, target text, signatures bytea) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO key_signatures (target_user_id, target_id, signer_user_id, signer_key_id, signature, pos)
        SELECT target, s.target_id, signer, s.signer_key_id, s.signature, at_pos
        FROM json_to_recordset(convert_from(signatures, 'UTF8')::json)
            AS s (target_id text, signer_key_id text, signature text)
        ON CONFLICT (target_user_id, target_id, signer_user_id, signer_key_id)
            DO UPDATE SET signature = excluded.signature, pos = excluded.pos
$$;
COMMENT ON FUNCTION key_signatures_add IS 'Add the signatures of one row: [{"target_id", "signer_key_id", "signature"}]';

CREATE FUNCTION log_apply_device(rows log[]) RETURNS void LANGUAGE sql AS $$
    SELECT device_rows_apply(rows)
$$;
COMMENT ON FUNCTION log_apply_device IS 'A change of a device that only its user is told of';

CREATE FUNCTION log_apply_device_list(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM device_rows_apply(rows);
    INSERT INTO device_list_changes (user_id, pos)
        SELECT user_id, max(pos) FROM unnest(rows) GROUP BY user_id
        ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos;
END $$;
COMMENT ON FUNCTION log_apply_device_list IS 'A change that all who share a room with the user are told of';

CREATE FUNCTION log_apply_user_signature(rows log[]) RETURNS void LANGUAGE sql AS $$
    SELECT key_signatures_add(pos, user_id, key, body) FROM unnest(rows) ORDER BY pos
$$;
COMMENT ON FUNCTION log_apply_user_signature IS
    'user_id signed keys of the user named by key: only user_id sees these signatures';

CREATE FUNCTION log_apply_otk(rows log[]) RETURNS void LANGUAGE sql AS $$ SELECT $$;
COMMENT ON FUNCTION log_apply_otk IS 'The key counts of a device changed: caches of them forget';

CREATE FUNCTION log_apply_to_device(rows log[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO to_device_messages (user_id, device_id, pos, body)
        SELECT r.user_id, r.device_id, r.pos, r.body
        FROM unnest(rows) r JOIN devices USING (user_id, device_id)
$$;
COMMENT ON FUNCTION log_apply_to_device IS 'Keep a message until its device acknowledges it; for a device that is gone it is dropped';

CREATE FUNCTION log_apply_to_device_held(rows log[]) RETURNS void LANGUAGE sql AS $$
    -- An answer that is asked for again is held again: the later row says all that the earlier one did.
    DELETE FROM to_device_held h USING unnest(rows) r
        WHERE h.user_id = r.user_id AND h.device_id = r.device_id AND h.after = r.key::bigint;
    INSERT INTO to_device_held (user_id, device_id, after, due)
        SELECT r.user_id, r.device_id, r.key::bigint, r.pos
        FROM unnest(rows) r JOIN devices USING (user_id, device_id)
$$;
COMMENT ON FUNCTION log_apply_to_device_held IS 'Remember that an answer ended with the message at position key';

CREATE FUNCTION log_apply_to_device_txn(rows log[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO to_device_transactions (user_id, device_id, txn_id) SELECT key, device_id, key2 FROM unnest(rows)
$$;
COMMENT ON FUNCTION log_apply_to_device_txn IS
    'A transaction id (key2) of a device of the user named by key; used twice it refuses the whole write';
