-- Finding what a redaction took effect on.

CREATE INDEX events_by_redaction ON events (redacted_by) WHERE redacted_by IS NOT NULL;
COMMENT ON INDEX events_by_redaction IS 'The events that a redaction took effect on';
