"""Everything about accounts and sessions, built in order on the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ranvier.config import Config
from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.storage.access_tokens import AccessTokenStore, ShortLivedTokenStore
from ranvier.storage.accounts import AccountStore
from ranvier.storage.auto_joins import AutoJoinStore
from ranvier.storage.database import Database
from ranvier.storage.devices import DeviceStore
from ranvier.storage.identities import IdentityStore
from ranvier.storage.registration_tokens import RegistrationTokenStore
from ranvier.storage.uia_sessions import UiaSessionStore
from ranvier.users.access_tokens import AccessTokens
from ranvier.users.accounts import Accounts
from ranvier.users.deactivation import Deactivation, Depart
from ranvier.users.devices import Devices
from ranvier.users.expiry import Expiry
from ranvier.users.last_seen import LastSeen
from ranvier.users.login import Limiter, Login, Sessions
from ranvier.users.openid import OpenIdTokens
from ranvier.users.passwords import Passwords
from ranvier.users.registration import OnRegistered, Registration, SharedSecret
from ranvier.users.registration_tokens import RegistrationTokens
from ranvier.users.uia import SESSION_TIMEOUT_MS, Uia


class LogParts(Protocol):
    """What is needed of the core."""

    @property
    def database(self) -> Database:
        """Connections."""

    @property
    def appender(self) -> Appender:
        """Writes to the log."""

    @property
    def tail(self) -> Tail:
        """The newest rows."""


@dataclass(frozen=True)
class AccountParts:
    """The objects, under the names that endpoints ask for. ``passwords`` is to be closed at the end.

    ``deactivation.run``, ``last_seen.run`` and ``expiry.run`` are to run always.
    """

    accounts: Accounts
    access_tokens: AccessTokens
    deactivation: Deactivation
    devices: Devices
    expiry: Expiry
    last_seen: LastSeen
    login: Login
    openid_tokens: OpenIdTokens
    passwords: Passwords
    registration: Registration
    registration_tokens: RegistrationTokens
    sessions: Sessions
    shared_secret: SharedSecret
    uia: Uia


def build_accounts(
    core: LogParts,
    config: Config,
    *,
    clock: Clock,
    limiter: Limiter,
    depart: Depart,
    on_registered: OnRegistered = lambda: None,
) -> AccountParts:
    """Build what concerns accounts.

    ``depart`` lets a deactivated user leave all rooms; ``on_registered`` is called for each new account.
    """
    database, appender, tail = core.database, core.appender, core.tail
    account_store = AccountStore(database)
    token_store = AccessTokenStore(database)
    uia_store = UiaSessionStore(database)
    login_tokens = ShortLivedTokenStore(database, "login")
    passwords = Passwords(config.passwords)
    accounts = Accounts(
        store=account_store,
        appender=appender,
        tail=tail,
        passwords=passwords,
        server_name=config.server.server_name,
    )
    access_tokens = AccessTokens(
        store=token_store, appender=appender, tail=tail, clock=clock, sessions=config.sessions
    )
    devices = Devices(store=DeviceStore(database), appender=appender, tail=tail)
    sessions = Sessions(access_tokens=access_tokens, devices=devices, short_lived_tokens=login_tokens)
    login = Login(accounts=accounts, limiter=limiter, clock=clock, login_tokens=login_tokens)
    registration_tokens = RegistrationTokens(
        store=RegistrationTokenStore(database),
        sessions=uia_store,
        clock=clock,
        session_timeout_ms=SESSION_TIMEOUT_MS,
    )
    return AccountParts(
        accounts=accounts,
        access_tokens=access_tokens,
        deactivation=Deactivation(
            store=account_store,
            accounts=accounts,
            sessions=sessions,
            depart=depart,
        ),
        devices=devices,
        expiry=Expiry(sessions=uia_store, tokens=token_store, short_lived_tokens=login_tokens, clock=clock),
        last_seen=LastSeen(devices=devices, clock=clock),
        login=login,
        openid_tokens=OpenIdTokens(store=ShortLivedTokenStore(database, "openid"), clock=clock),
        passwords=passwords,
        registration=Registration(
            store=account_store,
            accounts=accounts,
            passwords=passwords,
            clock=clock,
            config=config.registration,
            policy=config.passwords.policy,
            auto_joins=AutoJoinStore(database),
            on_registered=on_registered,
        ),
        registration_tokens=registration_tokens,
        sessions=sessions,
        shared_secret=SharedSecret(secret=config.registration.shared_secret, clock=clock),
        uia=Uia(
            store=uia_store,
            tokens=token_store,
            accounts=accounts,
            registration_tokens=registration_tokens,
            identities=IdentityStore(database),
            check_password=login.check_password,
            clock=clock,
            password_enabled=config.passwords.enabled_for_reauth,
            grace_ms=config.sessions.ui_auth_session_timeout_ms,
            sso_providers=[provider.idp_id for provider in config.sso.providers],
        ),
    )
