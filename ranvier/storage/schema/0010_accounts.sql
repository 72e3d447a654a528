-- Accounts of this server's users.

CREATE TABLE accounts (
    user_id       text PRIMARY KEY,
    password_hash text,
    created_ts    bigint NOT NULL,
    is_guest      boolean NOT NULL DEFAULT false,
    is_admin      boolean NOT NULL DEFAULT false,
    deactivated   boolean NOT NULL DEFAULT false,
    erased        boolean NOT NULL DEFAULT false,
    departing     boolean NOT NULL DEFAULT false,
    locked        boolean NOT NULL DEFAULT false,
    suspended     boolean NOT NULL DEFAULT false,
    shadow_banned boolean NOT NULL DEFAULT false,
    rate_limited  boolean NOT NULL DEFAULT true,
    appservice_id text
) WITH (fillfactor = 90);
COMMENT ON TABLE accounts IS 'Users of this server, those who were deactivated included: their names are never given again';
COMMENT ON COLUMN accounts.user_id IS 'Full user ID; new ones are lower case';
COMMENT ON COLUMN accounts.password_hash IS 'argon2id, or bcrypt of an imported user until the next login; null if there is no password';
COMMENT ON COLUMN accounts.created_ts IS 'Milliseconds since the epoch';
COMMENT ON COLUMN accounts.is_guest IS 'Guest account';
COMMENT ON COLUMN accounts.is_admin IS 'Server administrator';
COMMENT ON COLUMN accounts.deactivated IS 'Can never be used again';
COMMENT ON COLUMN accounts.erased IS 'Was deactivated with the wish that what can be removed is removed';
COMMENT ON COLUMN accounts.departing IS 'Was deactivated and has not left all rooms yet';
COMMENT ON COLUMN accounts.locked IS 'Can not be used until it is unlocked, sessions are kept';
COMMENT ON COLUMN accounts.suspended IS 'May read and leave, but not speak';
COMMENT ON COLUMN accounts.shadow_banned IS 'What it sends reaches nobody';
COMMENT ON COLUMN accounts.rate_limited IS 'False if an administrator exempts it from rate limits';
COMMENT ON COLUMN accounts.appservice_id IS 'Application service that made the account';
CREATE INDEX accounts_by_lower_id ON accounts (lower(user_id));
CREATE INDEX accounts_departing ON accounts (user_id) WHERE departing;

CREATE SEQUENCE user_numbers;
COMMENT ON SEQUENCE user_numbers IS 'Localparts of guests and of those who do not choose one';
