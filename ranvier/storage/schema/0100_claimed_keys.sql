-- A client that got no answer uploads its keys again, though some of them may have been given out meanwhile.

CREATE TABLE claimed_one_time_keys (
    user_id    text NOT NULL,
    device_id  text NOT NULL,
    algorithm  text NOT NULL,
    key_id     text NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
COMMENT ON TABLE claimed_one_time_keys IS 'One-time keys that were given out, and are not taken once more; old rows are removed';
CREATE INDEX claimed_one_time_keys_by_age ON claimed_one_time_keys (claimed_at);
