-- What happens while a device is deleted: keys are published for it, or given out.

-- Rows of kind device with the key deleted say as key2 "keyless" that the device had no identity keys when it was
-- decided that nobody else is told. If it has some by now the write is refused, and is to be decided again.
CREATE OR REPLACE FUNCTION log_apply_device(rows log[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(rows) r JOIN device_keys USING (user_id, device_id)
            WHERE r.key = 'deleted' AND r.key2 = 'keyless'
    ) THEN
        RAISE EXCEPTION 'a device got keys meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    PERFORM device_rows_apply(rows);
END $$;

-- A device that is made anew under the same id may have keys of the same names. At the end of the transaction, when
-- the deletion of the one-time keys has waited for who was giving one out.
CREATE FUNCTION claimed_one_time_keys_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM claimed_one_time_keys WHERE user_id = OLD.user_id AND device_id = OLD.device_id;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER devices_claimed_keys AFTER DELETE ON devices DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION claimed_one_time_keys_forget();
