"""Logging in and out: who proved to be whom, and the session that they get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, forbidden, invalid_param
from ranvier.spec.ids import MAX_ID_BYTES
from ranvier.storage.access_tokens import ShortLivedTokenStore
from ranvier.users.access_tokens import (
    LOGIN,
    AccessTokens,
    DeviceGone,
    IssuedTokens,
    is_well_formed,
    new_token,
    token_hash,
)
from ranvier.users.accounts import Account, Accounts, password_changed, user_deactivated
from ranvier.users.devices import MAX_DISPLAY_NAME, Devices, check_device_id
from ranvier.users.edits import Edits
from ranvier.users.requester import Requester, user_locked

LOGIN_TOKEN_LIFETIME_MS = 120_000  # "2 minutes is recommended as a default"
# "The lifetime of this token SHOULD be limited to around five seconds": it is in an address, and so in
# histories and logs. Twice as long is for telephones that have to open an app first.
SSO_TOKEN_LIFETIME_MS = 10_000


class Limiter(Protocol):
    """Count what each key does; see ``http.limits.RateLimiter``."""

    def check(self, name: str, key: str, now: float, cost: float = 1.0, *, count: bool = True) -> None:
        """Let an action pass, or raise 429 ``M_LIMIT_EXCEEDED``; ``now`` is in seconds."""

    def count(self, name: str, key: str, now: float, cost: float = 1.0) -> None:
        """Count an action that took place."""


class Admitted(NamedTuple):
    """Who may begin a session, and the hash of the password that the account had then, empty for none."""

    user_id: str
    password_hash: str


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session that has begun."""

    user_id: str
    device_id: str
    tokens: IssuedTokens


def typed_name(body: Mapping[str, Any]) -> str:
    """Read whom a login or a stage is about: the ``identifier``, or the older ``user``.

    Raises ``M_FORBIDDEN`` for an identifier that is not known here (an email address, a phone number),
    ``M_INVALID_PARAM`` and ``M_MISSING_PARAM``. Source: client-server API, "Identifier types".
    """
    identifier = body.get("identifier")
    if identifier is None:
        if body.get("medium") is not None or body.get("address") is not None:
            raise forbidden("Logging in with an email address or phone number is not possible here")
        name = body.get("user")
    elif not isinstance(identifier, Mapping):
        raise invalid_param("'identifier' must be an object")
    elif identifier.get("type") in ("m.id.thirdparty", "m.id.phone"):
        raise forbidden("Logging in with an email address or phone number is not possible here")
    elif identifier.get("type") != "m.id.user":
        raise MatrixError("M_UNKNOWN", 400, "Unknown type of identifier")
    else:
        name = identifier.get("user")
    if name is None:
        raise MatrixError("M_MISSING_PARAM", 400, "The request does not say which user")
    if not isinstance(name, str):
        raise invalid_param("The user must be a string")
    return name


class Sessions:
    """Begin and end sessions: a device and its tokens."""

    def __init__(
        self, *, access_tokens: AccessTokens, devices: Devices, short_lived_tokens: ShortLivedTokenStore
    ) -> None:
        self._access_tokens = access_tokens
        self._devices = devices
        self._short_lived_tokens = short_lived_tokens

    async def begin(
        self,
        user_id: str,
        *,
        device_id: str | None,
        display_name: str | None,
        refreshable: bool,
        password_hash: str | None = None,
    ) -> Session:
        """Begin a session on a device, a new one unless the client names one.

        ``password_hash`` is of the password that the account had when the user was admitted, empty for none:
        raises 403 ``M_FORBIDDEN`` if it has another one by now, and leaves no device that was made for it.
        """
        if device_id is not None:
            check_device_id(device_id)
        if display_name is not None:
            display_name = display_name[:MAX_DISPLAY_NAME]
        is_named = device_id is not None
        while True:
            existed = device_id is not None and device_id in await self._devices.ids(user_id)
            device_id = await self._devices.ensure(user_id, device_id, display_name)
            try:
                tokens = await self._access_tokens.issue(
                    user_id, device_id, refreshable=refreshable, password_hash=password_hash
                )
            except DeviceGone:
                continue
            except MatrixError:
                if not existed:
                    await self._devices.delete(user_id, [device_id])
                raise
            # "If the client sets the device_id, the server will invalidate any access and refresh tokens
            # previously assigned to that device." Not before: a login that is refused ends nobody's session.
            if is_named:
                await self._access_tokens.revoke_earlier(user_id, device_id, tokens)
            return Session(user_id=user_id, device_id=device_id, tokens=tokens)

    async def end(self, requester: Requester) -> None:
        """End the session that a request was made in, and remove its device."""
        if requester.device_id is not None:
            await self._devices.delete(requester.user_id, [requester.device_id])
        elif requester.access_token_id is not None:
            await self._access_tokens.revoke_token(requester.user_id, requester.access_token_id)

    async def end_all(self, user_id: str) -> None:
        """End all sessions of a user, and remove all devices; nobody begins another with a login token."""
        await self._short_lived_tokens.drop(user_id)
        await self._devices.delete_all(user_id)
        await self._access_tokens.revoke_all(user_id)

    async def end_others(self, requester: Requester) -> None:
        """End all sessions of a user but the one that the request was made in, as ``end_all`` does."""
        await self._short_lived_tokens.drop(requester.user_id)
        await self._devices.delete_all(requester.user_id, keep=requester.device_id)
        await self._access_tokens.revoke_all(requester.user_id, but=requester.access_token_id)


class Login:
    """Check who logs in, as often as ``rc_login`` allows."""

    def __init__(
        self, *, accounts: Accounts, limiter: Limiter, clock: Clock, login_tokens: ShortLivedTokenStore
    ) -> None:
        self._accounts = accounts
        self._limiter = limiter
        self._clock = clock
        self._login_tokens = login_tokens
        self._checks = Edits()

    async def with_password(self, name: str, password: str) -> Admitted:
        """Admit the user of a typed name if the password is their own.

        Raises ``M_FORBIDDEN``, ``M_USER_DEACTIVATED``, ``M_USER_LOCKED`` and ``M_LIMIT_EXCEEDED`` (of
        ``rc_login``: ``failed_attempts`` and ``account``).
        """
        account, password_hash = await self.check_password(name, password)
        return self._admit(account, password_hash)

    async def check_password(self, name: str, password: str) -> tuple[Account, str]:
        """Give the account of a typed name if the password is its own, and its hash, counting failures.

        Raises ``M_FORBIDDEN``, ``M_USER_DEACTIVATED`` and ``M_LIMIT_EXCEEDED``.
        """
        key = self._accounts.full_id(name).lower()[: MAX_ID_BYTES + 1]
        # Of guesses made at once, each would be let pass before any has failed.
        async with self._checks.alone(key):
            return await self._check_next(key, name, password)

    async def _check_next(self, key: str, name: str, password: str) -> tuple[Account, str]:
        self._limiter.check("rc_login.failed_attempts", key, self._clock.monotonic(), count=False)
        account, password_hash = await self._accounts.check_password(name, password)
        if account is None or password_hash is None:
            # Even if others failed meanwhile, at another worker, and left no room: this guess was tried.
            self._limiter.count("rc_login.failed_attempts", key, self._clock.monotonic())
            if account is not None and account.deactivated:
                raise user_deactivated()
            raise forbidden("Invalid user name or password")
        return account, password_hash

    async def with_token(self, token: str) -> Admitted:
        """Admit the user of a login token, and use the token up. Raises ``M_FORBIDDEN`` and the like."""
        taken = None
        if is_well_formed(LOGIN, token):
            taken = await self._login_tokens.take(token_hash(token), self._clock.now_ms())
        account = None if taken is None else await self._accounts.get(taken.user_id)
        if taken is None or account is None or account.deactivated:
            raise forbidden("Invalid login token")
        return self._admit(account, taken.password_hash)

    async def make_token(
        self, user_id: str, *, password_hash: str | None = None, lifetime_ms: int = LOGIN_TOKEN_LIFETIME_MS
    ) -> tuple[str, int]:
        """Give a token that lets its holder log in once as a user, and its lifetime in milliseconds.

        ``password_hash`` is of the password that was given for it, if one was: raises 403 ``M_FORBIDDEN`` if
        the account has another one by now, or was deactivated.
        """
        token = new_token(LOGIN, user_id)
        expires_ts = self._clock.now_ms() + lifetime_ms
        if not await self._login_tokens.keep(token_hash(token), user_id, expires_ts, password_hash):
            raise password_changed()
        return token, lifetime_ms

    def _admit(self, account: Account, password_hash: str) -> Admitted:
        if account.locked:
            raise user_locked()
        if account.rate_limited:
            self._limiter.check("rc_login.account", account.user_id.lower(), self._clock.monotonic())
        return Admitted(account.user_id, password_hash)
