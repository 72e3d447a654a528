-- Old rows of the log are removed: what they brought about is in tables of its own.

CREATE TABLE log_pruned (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    pos      bigint NOT NULL
);
COMMENT ON TABLE log_pruned IS 'Up to where rows of the log, other than events, are removed: nobody can follow from before';
COMMENT ON COLUMN log_pruned.pos IS 'Log position';
INSERT INTO log_pruned (pos) VALUES (0);

CREATE TABLE log_marks (
    pos bigint PRIMARY KEY,
    ts  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE log_marks IS 'How far the log was when, now and then: by it is known how old its rows are';
COMMENT ON COLUMN log_marks.pos IS 'Position of the newest row then';
COMMENT ON COLUMN log_marks.ts IS 'By the clock of the database';
