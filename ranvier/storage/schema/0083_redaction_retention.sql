-- Redacted events lose in the database, too, what redaction takes away.

CREATE TABLE log_times (
    pos bigint PRIMARY KEY,
    ts  bigint NOT NULL
);
COMMENT ON TABLE log_times IS 'How far the log was when: by it, and not by what senders claim, is known how old a redaction is';
COMMENT ON COLUMN log_times.pos IS 'Position of the newest row then';
COMMENT ON COLUMN log_times.ts IS 'Milliseconds since the epoch';

CREATE TABLE redaction_progress (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    pos      bigint NOT NULL
);
COMMENT ON TABLE redaction_progress IS 'Up to where in the log redacted events are stored in their redacted form';
COMMENT ON COLUMN redaction_progress.pos IS 'Log position';
INSERT INTO redaction_progress (pos) VALUES (0);

CREATE INDEX events_redacted ON events (pos) WHERE redacted_by IS NOT NULL;
COMMENT ON INDEX events_redacted IS 'Events that were redacted, also those that came after their redaction';
