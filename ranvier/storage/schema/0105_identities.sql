-- Single sign-on: whom the accounts belong to, and the key of logins that are under way.

CREATE TABLE identities (
    provider text NOT NULL,
    subject  text NOT NULL,
    user_id  text NOT NULL,
    PRIMARY KEY (provider, subject),
    UNIQUE (user_id, provider)
);
COMMENT ON TABLE identities IS 'Which account somebody logs in to who proved to a provider who they are';
COMMENT ON COLUMN identities.provider IS 'idp_id of the configuration';
COMMENT ON COLUMN identities.subject IS 'What the provider knows somebody by, for good';

ALTER TABLE server ADD COLUMN sso_key bytea;
COMMENT ON COLUMN server.sso_key IS 'What all workers seal the cookies of logins with, beside the signing key; null until one needs it';
