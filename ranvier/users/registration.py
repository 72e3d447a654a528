"""Registration: new accounts, their names and their passwords."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

from ranvier.config.accounts import PasswordPolicy, RegistrationConfig
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, forbidden
from ranvier.spec.ids import check_new_localpart
from ranvier.storage.accounts import AccountStore, NameTaken, NewAccount, TokenUsedUp
from ranvier.storage.auto_joins import AutoJoinStore
from ranvier.users.accounts import Accounts
from ranvier.users.passwords import Passwords, check_new_password
from ranvier.users.profiles import check_display_name
from ranvier.users.uia import DUMMY, REGISTRATION_TOKEN, Flows

NONCE_LIFETIME_MS = 60_000
_NAME_ATTEMPTS = 20

OnRegistered = Callable[[], None]
"""Called when there is a new account."""


def user_in_use() -> MatrixError:
    """Say that the name is taken (400 ``M_USER_IN_USE``)."""
    return MatrixError("M_USER_IN_USE", 400, "This user name is taken already")


def wished_localpart(name: str, server_name: str) -> str:
    """Give the localpart for a name that somebody wishes, in lower case. Raises ``M_INVALID_USERNAME``."""
    localpart = check_new_localpart(name.lower(), server_name)
    if localpart.startswith("_"):
        raise MatrixError("M_INVALID_USERNAME", 400, "A user name may not begin with _")
    if localpart.isdigit():
        raise MatrixError("M_INVALID_USERNAME", 400, "Numbers are kept for guests")
    return localpart


class Registration:
    """Make accounts by the rules of the configuration. ``on_registered`` is called for each."""

    def __init__(
        self,
        *,
        store: AccountStore,
        accounts: Accounts,
        passwords: Passwords,
        clock: Clock,
        config: RegistrationConfig,
        policy: PasswordPolicy,
        auto_joins: AutoJoinStore,
        on_registered: OnRegistered = lambda: None,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._passwords = passwords
        self._clock = clock
        self._config = config
        self._policy = policy
        self._auto_joins = auto_joins
        self._on_registered = on_registered

    @property
    def flows(self) -> Flows:
        """The stages by which a stranger may register."""
        return ((REGISTRATION_TOKEN,),) if self._config.requires_token else ((DUMMY,),)

    def check_enabled(self, kind: str) -> None:
        """Refuse a kind of account (``user`` or ``guest``) that strangers may not make.

        Raises ``M_FORBIDDEN`` and ``M_GUEST_ACCESS_FORBIDDEN``.
        """
        if kind == "guest" and not self._config.allow_guest_access:
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guest access is disabled on this server")
        if kind == "user" and not self._config.enabled:
            raise forbidden("Registration is disabled on this server")

    def check_password(self, password: str) -> None:
        """Check a new password by the policy. Raises ``M_WEAK_PASSWORD`` and ``M_INVALID_PARAM``."""
        check_new_password(self._policy, password)

    def check_name(self, name: str) -> str:
        """Give the localpart for a name that somebody wishes, in lower case.

        Raises ``M_INVALID_USERNAME``.
        """
        return wished_localpart(name, self._accounts.server_name)

    async def check_available(self, localpart: str, *, always: bool = True) -> None:
        """Refuse a name that is taken (``M_USER_IN_USE``).

        Unless ``always``, the configuration may hide that until the end.
        """
        if not always and self._config.inhibit_user_in_use_error:
            return
        if await self._store.is_taken(self._accounts.full_id(localpart)):
            raise user_in_use()

    async def register(
        self,
        localpart: str | None,
        password: str | None = None,
        *,
        admin: bool = False,
        guest: bool = False,
        display_name: str | None = None,
        registration_token: str | None = None,
        identity: tuple[str, str] | None = None,
    ) -> str:
        """Make an account and give its user ID; without a name it gets a number.

        The name is one that ``check_name`` gave. Users other than guests are called by it until they choose
        another, unless there is a ``display_name`` ("" for none), which is checked. ``identity`` is by whom
        the account is used who has no password: a provider and the subject there. Raises ``M_USER_IN_USE``
        and, for a registration token that was used up meanwhile, 401 ``M_UNAUTHORIZED``; IdentityTaken.
        """
        if display_name is not None:
            check_display_name(display_name)
        auto_join = self._config.auto_join
        password_hash = None if password is None else await self._passwords.hash(password)
        for _ in range(_NAME_ATTEMPTS):
            name = localpart if localpart is not None else str(await self._store.next_number())
            new = NewAccount(
                user_id=self._accounts.full_id(name),
                password_hash=password_hash,
                created_ts=self._clock.now_ms(),
                is_guest=guest,
                is_admin=admin,
                registration_token=registration_token,
                display_name=(None if guest else name) if display_name is None else display_name,
                auto_join=bool(auto_join.rooms) and (auto_join.for_guests or not guest),
                identity=identity,
            )
            try:
                await self._store.create(new)
            except NameTaken:
                if localpart is None:
                    continue
                raise user_in_use() from None
            except TokenUsedUp:
                raise MatrixError("M_UNAUTHORIZED", 401, "The registration token is used up") from None
            self._on_registered()
            return new.user_id
        raise MatrixError("M_UNKNOWN", 503, "No free user name was found; try again")

    async def upgrade_guest(self, user_id: str, password: str) -> None:
        """Make a registered user of a guest. Source: client-server API, "Guest Access"."""
        await self._accounts.set_password(user_id, password)
        await self._accounts.change(user_id, is_guest=False)
        if self._config.auto_join.rooms:
            await self._auto_joins.add(user_id, self._clock.now_ms())
            self._on_registered()


class SharedSecret:
    """Registration by whoever knows ``registration_shared_secret``, as Synapse's admin API has it.

    A nonce is its time and a signature, so that any worker takes it. It can be used again within its
    lifetime, but only for what was signed with it: the same account, which by then exists.
    """

    def __init__(self, *, secret: str | None, clock: Clock) -> None:
        self._secret = None if secret is None else secret.encode()
        self._clock = clock

    def nonce(self) -> str:
        """Give a nonce. Raises ``M_UNKNOWN`` (400) where no secret is configured."""
        head = f"{self._clock.now_ms():x}.{secrets.token_hex(16)}"
        return f"{head}.{self._sign(head)}"

    def check(
        self, nonce: str, username: str, password: str, mac: str, *, admin: bool, user_type: str | None
    ) -> None:
        """Check a request. Raises 400 and 403 ``M_UNKNOWN``."""
        head, _, signature = nonce.rpartition(".")
        if not _equal(signature, self._sign(head)) or self._age_ms(head) > NONCE_LIFETIME_MS:
            raise MatrixError("M_UNKNOWN", 400, "Unrecognised nonce")
        parts = [nonce, username, password, "admin" if admin else "notadmin"]
        if user_type is not None:
            parts.append(user_type)
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        expected = hmac.new(self._key(), text, hashlib.sha1).hexdigest()
        if not _equal(mac.lower(), expected):
            raise MatrixError("M_UNKNOWN", 403, "HMAC incorrect")

    def _key(self) -> bytes:
        if self._secret is None:
            raise MatrixError("M_UNKNOWN", 400, "Shared secret registration is not enabled")
        return self._secret

    def _sign(self, head: str) -> str:
        return hmac.new(self._key(), b"nonce:" + head.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def _age_ms(self, head: str) -> int:
        return self._clock.now_ms() - int(head.partition(".")[0], 16)


def _equal(given: Any, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(
        given.encode("utf-8", "surrogatepass"), expected.encode()
    )
