"""Accounts in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import orjson

from ranvier.storage.database import Connection, Database

_COLUMNS = (
    "user_id, created_ts, is_guest, is_admin, deactivated, erased, locked, suspended, shadow_banned, "
    "rate_limited, appservice_id"
)
_GET = f"SELECT {_COLUMNS} FROM accounts WHERE user_id = $1"
# Names that differ only in case are one name to people; imported accounts may have capitals.
_FIND = f"SELECT {_COLUMNS}, password_hash FROM accounts WHERE lower(user_id) = lower($1)"
_TAKEN = "SELECT EXISTS (SELECT FROM accounts WHERE lower(user_id) = lower($1))"
_EXIST = "SELECT user_id FROM accounts WHERE user_id = ANY ($1)"
_GUESTS_IN = """
SELECT a.user_id FROM rooms r JOIN current_state s USING (room_nid) JOIN accounts a ON a.user_id = s.state_key
WHERE r.room_id = $1 AND s.type = 'm.room.member' AND s.membership = 'join' AND a.is_guest
"""
_WITH_GUESTS = """
SELECT r.room_id, e.pdu
FROM (SELECT DISTINCT s.room_nid FROM accounts a JOIN current_state s ON s.state_key = a.user_id
      WHERE a.is_guest AND s.type = 'm.room.member' AND s.membership = 'join') g
JOIN rooms r USING (room_nid)
JOIN current_state c ON c.room_nid = g.room_nid AND c.type = 'm.room.guest_access' AND c.state_key = ''
JOIN events e ON e.event_nid = c.event_nid
"""
_CREATE = """
WITH made AS (
    INSERT INTO accounts (user_id, password_hash, created_ts, is_guest, is_admin, appservice_id)
    SELECT $1, $2, $3, $4, $5, $6 WHERE NOT EXISTS (SELECT FROM accounts WHERE lower(user_id) = lower($1))
    ON CONFLICT DO NOTHING RETURNING user_id
), profile AS (
    INSERT INTO profiles (user_id, document, pos) SELECT user_id, $7, 0 FROM made WHERE $7::bytea IS NOT NULL
    ON CONFLICT DO NOTHING
), auto_join AS (
    INSERT INTO auto_joins (user_id, due_ts) SELECT user_id, $3 FROM made WHERE $8 ON CONFLICT DO NOTHING
)
SELECT true FROM made
"""
_USE_TOKEN = """
UPDATE registration_tokens SET completed = completed + 1
WHERE token = $1 AND (uses_allowed IS NULL OR completed < uses_allowed)
  AND (expires_ts IS NULL OR expires_ts > $2)
RETURNING true
"""
_LINK = """
INSERT INTO identities (provider, subject, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true
"""
_SET_PASSWORD = """
UPDATE accounts SET password_hash = $2
WHERE user_id = $1 AND NOT deactivated AND ($3::text IS NULL OR password_hash = $3) RETURNING true
"""
# Once the account is locked: a token that is just being made waits for that, or is found.
_DROP_LOGIN_TOKENS = "DELETE FROM short_lived_tokens WHERE user_id = $1 AND purpose = 'login'"
_REPLACE_HASH = "UPDATE accounts SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2"
_HAS_PASSWORD = "SELECT password_hash IS NOT NULL FROM accounts WHERE user_id = $1"
_NEXT_NUMBER = "SELECT nextval('user_numbers')"
_DEPARTING = "SELECT user_id, erased FROM accounts WHERE departing LIMIT $1"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One user of this server; see the table ``accounts``. ``created_ts`` is in milliseconds."""

    user_id: str
    created_ts: int
    is_guest: bool = False
    is_admin: bool = False
    deactivated: bool = False
    erased: bool = False
    locked: bool = False
    suspended: bool = False
    shadow_banned: bool = False
    rate_limited: bool = True
    appservice_id: str | None = None


class NewAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account to be made, its name, and the registration token that it uses up.

    ``identity`` is the provider and the subject there by whom it is used, if it is by one. With ``auto_join``
    it is noted that the user is to be joined to the rooms of the configuration.
    """

    user_id: str
    password_hash: str | None
    created_ts: int
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None
    registration_token: str | None = None
    display_name: str | None = None
    auto_join: bool = False
    identity: tuple[str, str] | None = None


class NameTaken(Exception):
    """Say that an account has this name already."""


class TokenUsedUp(Exception):
    """Say that the registration token was used up or expired before the account was made."""


class IdentityTaken(Exception):
    """Say that the identity has an account already."""


class AccountStore:
    """Read and write the table ``accounts``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str) -> Account | None:
        """Give an account by its exact user ID."""
        record = await self._database.fetchrow(_GET, user_id)
        return None if record is None else Account(**record)

    async def find(self, user_id: str) -> list[tuple[Account, str | None]]:
        """Give the accounts whose ID is this but for the case, each with its password hash."""
        found = []
        for record in await self._database.fetch(_FIND, user_id):
            fields = dict(record)
            password_hash = fields.pop("password_hash")
            found.append((Account(**fields), password_hash))
        return found

    async def is_taken(self, user_id: str) -> bool:
        """Tell whether an account has this ID, in whatever case."""
        taken: bool = await self._database.fetchval(_TAKEN, user_id)
        return taken

    async def guests_in(self, room_id: str) -> list[str]:
        """Give the guests of ours who are in a room."""
        return [record["user_id"] for record in await self._database.fetch(_GUESTS_IN, room_id)]

    async def rooms_with_guests(self) -> list[tuple[str, bytes]]:
        """Give the rooms that guests of ours are in, each with what it says of guests (a PDU)."""
        return [(r["room_id"], r["pdu"]) for r in await self._database.fetch(_WITH_GUESTS)]

    async def which_exist(self, user_ids: Sequence[str]) -> set[str]:
        """Give those of the user IDs that have an account."""
        return {record["user_id"] for record in await self._database.fetch(_EXIST, list(user_ids))}

    async def create(self, new: NewAccount) -> None:
        """Make an account. Raises NameTaken, TokenUsedUp and IdentityTaken; then nothing was written."""
        token, identity = new.registration_token, new.identity
        if token is None and identity is None:
            async with self._database.connection() as connection:
                await _create(connection, new)
            return
        async with self._database.transaction() as connection:
            if token is not None and not await connection.fetchval(_USE_TOKEN, token, new.created_ts):
                raise TokenUsedUp
            await _create(connection, new)
            # Whoever else makes an account for this identity waits here for our commit, and then makes none.
            if identity is not None and not await connection.fetchval(_LINK, *identity, new.user_id):
                raise IdentityTaken

    async def set_password(self, user_id: str, password_hash: str, replaced: str | None) -> bool:
        """Set the password of an account, perhaps only in place of one of this hash; login tokens end.

        False if there is no such account in use, or it has another password.
        """
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_SET_PASSWORD, user_id, password_hash, replaced):
                return False
            await connection.execute(_DROP_LOGIN_TOKENS, user_id)
        return True

    async def replace_hash(self, user_id: str, old: str, new: str) -> bool:
        """Keep the same password under a newer kind of hash; False if it was changed meanwhile."""
        return await self._database.execute(_REPLACE_HASH, user_id, old, new) == 1

    async def has_password(self, user_id: str) -> bool:
        """Tell whether the account has a password."""
        return bool(await self._database.fetchval(_HAS_PASSWORD, user_id))

    async def next_number(self) -> int:
        """Give a number that no other account was offered as its localpart."""
        number: int = await self._database.fetchval(_NEXT_NUMBER)
        return number

    async def departing(self, limit: int) -> list[tuple[str, bool]]:
        """Give deactivated users who have not left all rooms yet, and whether they wish to be erased."""
        return [(r["user_id"], r["erased"]) for r in await self._database.fetch(_DEPARTING, limit)]


async def _create(connection: Connection, new: NewAccount) -> None:
    profile = None if not new.display_name else orjson.dumps({"displayname": new.display_name})
    made = await connection.fetchval(
        _CREATE,
        new.user_id,
        new.password_hash,
        new.created_ts,
        new.is_guest,
        new.is_admin,
        new.appservice_id,
        profile,
        new.auto_join,
    )
    if made is None:
        raise NameTaken
