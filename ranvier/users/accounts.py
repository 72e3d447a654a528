"""Accounts of this server's users: who exists, and what they are."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, forbidden, not_found
from ranvier.spec.ids import is_user_id
from ranvier.storage.accounts import Account, AccountStore
from ranvier.users.followed import FollowedByUser
from ranvier.users.passwords import Passwords
from ranvier.wire.log_rows import LogRow

__all__ = ["TOKEN_ROWS", "Account", "Accounts", "is_as_known_at"]

TOKEN_ROWS = "access_token"
"""The kind of the log rows after which caches forget what they know of a user."""
_MAX_KNOWN = 20_000


class Accounts:
    """Know the accounts. Those that were asked for are kept in memory, and forgotten when the log says so."""

    def __init__(
        self,
        *,
        store: AccountStore,
        appender: Appender,
        tail: Tail,
        passwords: Passwords,
        server_name: str,
    ) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._passwords = passwords
        self._domain = f":{server_name}"
        self._known: FollowedByUser[Account | None] = FollowedByUser(
            tail=tail, concerns=lambda row: row.kind == TOKEN_ROWS, load=store.get, max_users=_MAX_KNOWN
        )
        self.server_name = server_name

    def is_local(self, user_id: str) -> bool:
        """Tell whether a user ID is of this server."""
        # A server name has no colon but before its port, and localparts have none.
        return user_id.endswith(self._domain) and user_id.find(":") == len(user_id) - len(self._domain)

    def full_id(self, name: str) -> str:
        """Give the user ID of a localpart (or of a user ID)."""
        return name if name.startswith("@") else f"@{name}{self._domain}"

    async def get(self, user_id: str) -> Account | None:
        """Give an account of this server, a deactivated one too; None if there is none."""
        if (account := self._known.held(user_id)) is not None:
            return account
        if not self.is_local(user_id) or not is_user_id(user_id):
            return None
        return await self._known.of(user_id)

    async def exists(self, user_id: str) -> bool:
        """Tell whether this server has such a user, be it a deactivated one."""
        return await self.get(user_id) is not None

    async def require(self, user_id: str) -> Account:
        """Give an account in use. Raises ``M_NOT_FOUND``."""
        account = await self.get(user_id)
        if account is None or account.deactivated:
            raise not_found("There is no such user")
        return account

    async def which_exist(self, user_ids: Sequence[str]) -> set[str]:
        """Give those of the user IDs that have an account here."""
        return await self._store.which_exist([user_id for user_id in user_ids if is_user_id(user_id)])

    async def guests_in(self, room_id: str) -> list[str]:
        """Give the guests of ours who are in a room."""
        return await self._store.guests_in(room_id)

    async def rooms_with_guests(self) -> list[tuple[str, bytes]]:
        """Give the rooms that guests of ours are in, each with what it says of guests (a PDU)."""
        return await self._store.rooms_with_guests()

    async def find(self, name: str) -> tuple[Account | None, str | None]:
        """Find the account for a name that somebody typed, and its password hash.

        ``name`` is a user ID or a localpart. The case does not matter, unless names differ in it alone.
        """
        user_id = self.full_id(name)
        if not is_user_id(user_id) or not self.is_local(user_id):
            return None, None
        found = await self._store.find(user_id)
        exact = [entry for entry in found if entry[0].user_id == user_id]
        if exact:
            return exact[0]
        return found[0] if len(found) == 1 else (None, None)

    async def change(self, user_id: str, **columns: bool) -> None:
        """Change columns of an account (``locked``, ``is_admin``, …; see ``storage.accounts.Account``).

        Every process sees it from then on; a deactivated account loses its password with it.
        """
        row = LogRow(kind=TOKEN_ROWS, user_id=user_id, key="account", body=orjson.dumps(columns))
        await self._tail.wait_for(await self._appender.append_rows([row]))

    async def set_password(self, user_id: str, password: str, *, replaced: str | None = None) -> None:
        """Give an account a new password, which no login token outlives.

        ``replaced`` is the hash of the one that was given for it: raises 403 ``M_FORBIDDEN`` if the account
        has another one by now, or was deactivated. Raises ``M_NOT_FOUND``, and 503 if a newer one may be set.
        """
        password_hash = await self._passwords.hash(password)
        self._appender.check_in_time()
        if not await self._store.set_password(user_id, password_hash, replaced):
            raise not_found("There is no such user") if replaced is None else password_changed()

    async def has_password(self, user_id: str) -> bool:
        """Tell whether a user can log in with a password."""
        return await self._store.has_password(user_id)

    async def check_password(self, name: str, password: str) -> tuple[Account | None, str | None]:
        """Give what ``find`` does, without the hash if the password is another.

        Takes as long for a user who does not exist. A hash that is outdated is replaced.
        """
        while True:
            account, stored = await self.find(name)
            if not await self._passwords.matches(password, stored):
                return account, None
            assert account is not None
            assert stored is not None
            if not self._passwords.is_outdated(stored):
                return account, stored
            newer = await self._passwords.hash(password)
            if await self._store.replace_hash(account.user_id, stored, newer):
                return account, newer
            # Somebody else replaced it, or changed the password.


def is_as_known_at(tail: Tail, user_id: str, pos: int) -> bool:
    """Tell whether nothing of a user's account and tokens has changed since ``pos``, as far as is known."""
    return tail.start <= pos and not any(row.kind == TOKEN_ROWS for row in tail.rows_of_user(user_id, pos))


def password_changed() -> MatrixError:
    """Say that the password that was given is the account's no more (403 ``M_FORBIDDEN``)."""
    return forbidden("The password was changed, or the account deactivated, just now")


def user_deactivated() -> MatrixError:
    """Say that the account was deactivated (403 ``M_USER_DEACTIVATED``)."""
    return MatrixError("M_USER_DEACTIVATED", 403, "This account has been deactivated")
