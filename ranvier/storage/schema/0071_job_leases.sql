CREATE TABLE job_leases (
    name   text PRIMARY KEY,
    holder text NOT NULL,
    epoch  bigint NOT NULL,
    until  timestamptz NOT NULL
);
COMMENT ON TABLE job_leases IS 'Who does a job that only one process may do at a time.';
COMMENT ON COLUMN job_leases.name IS 'The job.';
COMMENT ON COLUMN job_leases.holder IS 'The worker that does it, or did it last.';
COMMENT ON COLUMN job_leases.epoch IS 'Grows with each new holder: what an earlier one still writes is refused by it.';
COMMENT ON COLUMN job_leases.until IS 'When another worker may take it, unless it is renewed before.';
