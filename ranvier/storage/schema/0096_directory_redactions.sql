-- A published room whose name, topic, … was redacted is described anew, whoever looks at the directory next.

CREATE FUNCTION room_directory_redacted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A redaction does not change the room's state as such. Its own number, so that who has read what the
    -- directory is to tell before it finds that out when writing it.
    UPDATE room_directory SET snapshot_nid = -NEW.redacted_by WHERE room_nid = NEW.room_nid;
    RETURN NULL;
END $$;
CREATE TRIGGER events_room_directory AFTER UPDATE OF redacted_by ON events
    FOR EACH ROW WHEN (NEW.redacted_by IS NOT NULL AND NEW.state_key = '')
    EXECUTE FUNCTION room_directory_redacted();
COMMENT ON COLUMN room_directory.snapshot_nid IS
    'State of the room (rooms.snapshot_nid) that the next columns were made of; not above 0: they are to be made anew';
UPDATE room_directory SET snapshot_nid = 0;
