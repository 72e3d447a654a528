"""Access tokens: made, looked up on every request, exchanged and revoked."""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from ranvier.config.accounts import SessionConfig
from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.spec.ids import localpart_of
from ranvier.spec.unpadded_base64 import encode_urlsafe_base64
from ranvier.storage.access_tokens import AccessTokenStore, NewTokens, RefreshRow, TokenRow
from ranvier.users.accounts import TOKEN_ROWS, password_changed
from ranvier.users.requester import Requester, unknown_token
from ranvier.wire.log_rows import LogRow, Row

ACCESS, REFRESH, LOGIN, OPENID = "rvt", "rvr", "rvl", "rvo"
"""What tokens begin with, so that a leaked one can be told by its looks."""
MAX_TOKEN_LENGTH = 500
_HASHES_KEPT = 8192


def new_token(prefix: str, user_id: str) -> str:
    """Make a token: whose it is, 128 random bits, and a checksum that refuses mistyped ones unread."""
    localpart = encode_urlsafe_base64(localpart_of(user_id).encode("utf-8", "surrogatepass"))
    body = f"{prefix}_{localpart}_{secrets.token_hex(16)}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def token_hash(token: str) -> bytes:
    """Give what is stored of a token. It is random enough that a fast hash can not be turned round."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# Each request has one, and mostly one that came before; a longer one is none of ours and is not kept.
_hash_of_known = lru_cache(_HASHES_KEPT)(token_hash)


def _hash(token: str) -> bytes:
    return _hash_of_known(token) if len(token) <= MAX_TOKEN_LENGTH else token_hash(token)


def is_well_formed(prefix: str, token: str) -> bool:
    """Tell whether a token may be one of ours of this kind."""
    if len(token) > MAX_TOKEN_LENGTH or not token.isascii() or not token.startswith(prefix + "_"):
        return False
    body, _, checksum = token.rpartition("_")
    return f"{zlib.crc32(body.encode()):08x}" == checksum


class IssuedTokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client gets; the lifetime is of the access token."""

    access_token: str
    refresh_token: str | None = None
    expires_in_ms: int | None = None


class DeviceGone(Exception):
    """Say that the device was deleted before its tokens were made."""


class _Known:
    """One access token in memory."""

    __slots__ = ("expires_ts", "requester")

    def __init__(self, requester: Requester, expires_ts: int | None) -> None:
        self.requester = requester
        self.expires_ts = expires_ts


class AccessTokens:
    """Know the access tokens.

    Those in use are in memory, by their hash, until the log says that something of their user changed.
    """

    def __init__(
        self,
        *,
        store: AccessTokenStore,
        appender: Appender,
        tail: Tail,
        clock: Clock,
        sessions: SessionConfig,
        max_cached: int = 50_000,
    ) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._clock = clock
        self._sessions = sessions
        self._max_cached = max_cached
        self._known: dict[bytes, _Known] = {}
        self._of_user: dict[str, set[bytes]] = {}
        self._changes = 0
        tail.listen(self._apply, changes=True)

    # -- looking up ------------------------------------------------------------------------------------

    async def authenticate(self, token: str) -> Requester:
        """Give the holder of a token, a locked one too. Raises 401 ``M_UNKNOWN_TOKEN``.

        An expired token is answered with ``soft_logout``.
        """
        known = self._known.get(_hash(token))
        if known is None:
            known = await self._load(token)
        if known.expires_ts is not None and known.expires_ts <= self._clock.now_ms():
            raise unknown_token(soft_logout=True)
        return known.requester

    def key(self, token: str) -> bytes:
        """Give what a token is known by in memory: its hash."""
        return _hash(token)

    def known(self, key: bytes) -> Requester | None:
        """Give the holder of a valid token, by its key, if that is in memory."""
        known = self._known.get(key)
        if known is None or (known.expires_ts is not None and known.expires_ts <= self._clock.now_ms()):
            return None
        return known.requester

    async def _load(self, token: str) -> _Known:
        if not is_well_formed(ACCESS, token):
            raise unknown_token()
        digest = token_hash(token)
        while True:
            changes = self._changes
            row = await self._store.load(digest)
            if row is None:
                raise unknown_token()
            if row.replaces is None:
                break
            # "The old refresh token remains valid until the new access token or refresh token is used"
            await self._rotated(row.user_id, row.replaces)
        known = _Known(_requester(row), row.expires_ts)
        # A change that came while the database answered may be newer than the answer.
        if changes == self._changes:
            self._keep(digest, known)
        return known

    def _keep(self, digest: bytes, known: _Known) -> None:
        if len(self._known) >= self._max_cached:
            oldest = next(iter(self._known))
            user_id = self._known.pop(oldest).requester.user_id
            tokens = self._of_user[user_id]
            tokens.discard(oldest)
            if not tokens:
                del self._of_user[user_id]
        self._known[digest] = known
        self._of_user.setdefault(known.requester.user_id, set()).add(digest)

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, LogRow) and row.kind == TOKEN_ROWS and row.user_id is not None:
                self._changes += 1
                for digest in self._of_user.pop(row.user_id, ()):
                    del self._known[digest]

    # -- giving out ------------------------------------------------------------------------------------

    async def issue(
        self,
        user_id: str,
        device_id: str | None,
        *,
        refreshable: bool = False,
        password_hash: str | None = None,
    ) -> IssuedTokens:
        """Make the tokens of a new session; ``refreshable`` if the client can refresh them.

        ``password_hash`` is of the password that was given for it, if one was, or that the account had when
        the login began, empty for none. Raises DeviceGone, and 403 ``M_FORBIDDEN`` if the account has another
        password by now, or was deactivated.
        """
        now = self._clock.now_ms()
        lifetime_ms = self._sessions.refreshable_access_token_lifetime_ms
        ends_ts = _after(now, self._sessions.session_lifetime_ms)
        if refreshable and lifetime_ms is not None and device_id is not None:
            issued, new = self._new_pair(user_id, device_id, ends_ts)
        else:
            expires_ts = _earlier(
                _after(now, self._sessions.nonrefreshable_access_token_lifetime_ms), ends_ts
            )
            issued = _issued(new_token(ACCESS, user_id), None, expires_ts, now)
            new = NewTokens(
                token_hash=token_hash(issued.access_token),
                user_id=user_id,
                device_id=device_id,
                created_ts=now,
                expires_ts=expires_ts,
            )
        outcome = await self._store.insert(new, password_hash)
        if outcome == "no device":
            raise DeviceGone
        if outcome == "refused":
            raise password_changed()
        return issued

    async def refresh(self, token: str) -> IssuedTokens:
        """Exchange a refresh token. Raises 401 ``M_UNKNOWN_TOKEN``, soft if the session has expired.

        Source: client-server API, "Refreshing access tokens".
        """
        row = await self._store.load_refresh(token_hash(token)) if is_well_formed(REFRESH, token) else None
        if row is None:
            raise unknown_token()
        if _is_over(row, self._clock.now_ms()):
            raise unknown_token(soft_logout=True)
        if row.replaces is not None:
            await self._rotated(row.user_id, row.replaces)
        issued, new = self._new_pair(row.user_id, row.device_id, row.session_ends_ts)
        if not await self._store.succeed(row.refresh_id, new):
            raise unknown_token()
        return issued

    def _new_pair(
        self, user_id: str, device_id: str, session_ends_ts: int | None
    ) -> tuple[IssuedTokens, NewTokens]:
        now = self._clock.now_ms()
        lifetime_ms = self._sessions.refreshable_access_token_lifetime_ms
        expires_ts = _earlier(_after(now, lifetime_ms), session_ends_ts)
        refresh = new_token(REFRESH, user_id)
        issued = _issued(new_token(ACCESS, user_id), refresh, expires_ts, now)
        new = NewTokens(
            token_hash=token_hash(issued.access_token),
            user_id=user_id,
            device_id=device_id,
            created_ts=now,
            expires_ts=expires_ts,
            refresh_hash=token_hash(refresh),
            refresh_expires_ts=_after(now, self._sessions.refresh_token_lifetime_ms),
            session_ends_ts=session_ends_ts,
        )
        return issued, new

    # -- taking back -----------------------------------------------------------------------------------

    async def devices(self, user_id: str) -> list[str]:
        """Give the devices of a user that have a session."""
        return await self._store.devices(user_id)

    async def revoke_earlier(self, user_id: str, device_id: str, issued: IssuedTokens) -> None:
        """Revoke all tokens of a device but those that were just issued for it; every process forgets them.

        If these are gone by now another session began there, or the device was deleted; nothing is revoked.
        """
        token_id = await self._store.beside_others(token_hash(issued.access_token))
        if token_id is not None:
            row = LogRow(
                kind=TOKEN_ROWS, user_id=user_id, device_id=device_id, key="device", key2=str(token_id)
            )
            await self._append([row], may_be_late=True)  # the session has begun, whatever is answered

    async def revoke_token(self, user_id: str, token_id: int) -> None:
        """Revoke one access token and its refresh token."""
        await self._append(
            [LogRow(kind=TOKEN_ROWS, user_id=user_id, key="token", key2=str(token_id))], may_be_late=True
        )

    async def revoke_all(self, user_id: str, *, but: int | None = None) -> None:
        """Revoke all tokens of a user, but perhaps for one access token (its id)."""
        kept = None if but is None else str(but)
        await self._append(
            [LogRow(kind=TOKEN_ROWS, user_id=user_id, key="others", key2=kept)], may_be_late=True
        )

    async def _rotated(self, user_id: str, refresh_id: int) -> None:
        await self._append([LogRow(kind=TOKEN_ROWS, user_id=user_id, key="rotated", key2=str(refresh_id))])

    async def _append(self, rows: Sequence[LogRow], *, may_be_late: bool = False) -> None:
        if rows:
            await self._tail.wait_for(await self._appender.append_rows(rows, may_be_late=may_be_late))


def revocations(user_id: str, device_ids: Sequence[str]) -> list[LogRow]:
    """Give the rows that revoke all tokens of some devices."""
    return [
        LogRow(kind=TOKEN_ROWS, user_id=user_id, device_id=device_id, key="device")
        for device_id in device_ids
    ]


def _requester(row: TokenRow) -> Requester:
    return Requester(
        row.user_id,
        row.device_id,
        is_guest=row.is_guest,
        is_admin=row.is_admin,
        access_token_id=row.token_id,
        appservice_id=row.appservice_id,
        shadow_banned=row.shadow_banned,
        suspended=row.suspended,
        locked=row.locked,
        rate_limited=row.rate_limited,
    )


def _issued(access: str, refresh: str | None, expires_ts: int | None, now: int) -> IssuedTokens:
    return IssuedTokens(access, refresh, None if expires_ts is None else expires_ts - now)


def _after(now: int, lifetime_ms: int | None) -> int | None:
    return None if lifetime_ms is None else now + lifetime_ms


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _is_over(row: RefreshRow, now: int) -> bool:
    return any(end is not None and end <= now for end in (row.expires_ts, row.session_ends_ts))
