-- Guests are few: who are left in rooms that want them no longer is looked for by them.

CREATE INDEX accounts_guests ON accounts (user_id) WHERE is_guest;
COMMENT ON INDEX accounts_guests IS 'Finds the rooms that guests are in';
