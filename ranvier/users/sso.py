"""Single sign-on: from who proved to a provider who they are to an account of this server."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ranvier.config.sso import SsoConfig
from ranvier.spec.errors import MatrixError, forbidden
from ranvier.storage.accounts import IdentityTaken
from ranvier.storage.identities import IdentityStore
from ranvier.users.accounts import Account, Accounts, user_deactivated
from ranvier.users.identities import Identity, identity_of
from ranvier.users.oidc import OidcClient
from ranvier.users.provider_http import ProofRefused, ProviderFailed
from ranvier.users.registration import Registration
from ranvier.users.sealed_steps import SealedSteps, Step

logger = logging.getLogger(__name__)

CALLBACK: Final = "_synapse/client/oidc/callback"
"""Where providers send people back to, below the public base URL: what is registered there for Synapse.

One that has an ``own_callback`` sends them to its name below that.
"""

SetDisplayName = Callable[[str, str], Awaitable[None]]


class SsoAccounts:
    """Find, link and make the accounts of identities."""

    def __init__(
        self,
        *,
        store: IdentityStore,
        accounts: Accounts,
        registration: Registration,
        config: SsoConfig,
        set_display_name: SetDisplayName,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._registration = registration
        self._update_profiles = config.update_profile_information
        self._allow_existing = {it.idp_id for it in config.providers if it.allow_existing_users}
        self._set_display_name = set_display_name

    async def of(self, identity: Identity) -> Account | None:
        """Give the account of an identity; None if it has none yet.

        One that is there already by its name is theirs from now on where the configuration says so.
        Raises 403 ``M_USER_DEACTIVATED`` and ``M_USER_LOCKED``.
        """
        user_id = await self._store.get(identity.provider, identity.subject)
        if user_id is None and identity.provider in self._allow_existing:
            user_id = await self._take_over(identity)
        account = None if user_id is None else await self._accounts.get(user_id)
        if account is None:
            return None
        if account.deactivated:
            raise user_deactivated()
        if account.locked:
            raise MatrixError("M_USER_LOCKED", 403, "This account has been locked")
        if self._update_profiles and identity.display_name:
            await self._set_display_name(account.user_id, identity.display_name)
        return account

    async def owner(self, identity: Identity) -> str | None:
        """Give the user who is known by an identity, and change nothing."""
        return await self._store.get(identity.provider, identity.subject)

    async def _take_over(self, identity: Identity) -> str | None:
        """Link the account that has an identity's name; None if there is none that can be theirs."""
        if identity.localpart is None:
            return None
        account, _ = await self._accounts.find(self._accounts.full_id(identity.localpart))
        if account is None:
            return None
        await self._store.link(identity.provider, identity.subject, account.user_id)
        # Nobody's, if the account was somebody else's at this provider or is not in use.
        return await self._store.get(identity.provider, identity.subject)

    async def make(self, identity: Identity, name: str) -> Account:
        """Make the account of an identity, under a name.

        Account and link are one transaction, so no crash leaves one of them. Of two workers that do it at
        once for one identity the second waits for the first one's commit, at the name or at the link, writes
        nothing and finds what the first made. Raises ``M_INVALID_USERNAME`` and ``M_USER_IN_USE``, and as
        ``of`` does.
        """
        localpart = self._registration.check_name(name)
        try:
            await self._registration.register(
                localpart,
                display_name=identity.display_name or None,
                identity=(identity.provider, identity.subject),
            )
        except IdentityTaken:
            pass
        except MatrixError:
            if await self.owner(identity) is None:
                raise
        account = await self.of(identity)
        if account is None:
            raise MatrixError("M_UNKNOWN", 503, "The account could not be made; try again")
        return account

    async def providers_of(self, user_id: str, among: Sequence[str]) -> list[str]:
        """Give those of some providers by which a user logs in."""
        return await self._store.providers_of(user_id, among)


@dataclass(frozen=True)
class Sso:
    """All that single sign-on needs: the providers by their ``idp_id``, the logins under way, the accounts.

    ``whitelist`` are the beginnings of the addresses of clients to which nobody is asked to give access.
    """

    providers: Mapping[str, OidcClient]
    steps: SealedSteps
    accounts: SsoAccounts
    server_name: str
    whitelist: Sequence[str]

    def provider(self, idp_id: str) -> OidcClient:
        """Give a provider, also by the longer name that Synapse gives it. Raises 404 ``M_NOT_FOUND``."""
        found = self.providers.get(idp_id) or self.providers.get(idp_id.removeprefix("oidc-"))
        if found is None:
            raise MatrixError("M_NOT_FOUND", 404, "This server has no such way to log in")
        return found

    async def login_url(self, step: Step) -> str:
        """Give where a browser is sent with a step. Raises ProviderFailed."""
        with _naming(step.provider):
            return await self.provider(step.provider).login_url(step)

    async def identity(
        self, step: Step, code: str, issuer: str | None, own_callback: str | None = None
    ) -> Identity:
        """Find out who came back from a provider, to the callback of all or to the ``own_callback`` of one.

        Raises ProviderFailed and 403 ``M_FORBIDDEN``.
        """
        client = self.provider(step.provider)
        with _naming(step.provider):
            if own_callback != (step.provider if client.config.own_callback else None):
                raise ProofRefused("the answer came to another provider's address")
            claims = await client.claims(step, code, issuer)
            return identity_of(client.config, claims, self.server_name)

    def is_trusted(self, redirect_url: str) -> bool:
        """Tell whether the client at a URL may have a login without being named."""
        return any(redirect_url.startswith(beginning) for beginning in self.whitelist)

    def may_choose_for(self, identity: Identity) -> bool:
        """Tell whether an identity has a name that need not be asked for."""
        mapping = self.provider(identity.provider).config.mapping
        return identity.localpart is not None and not mapping.confirm_localpart

    def check_may_register(self, identity: Identity) -> None:
        """Refuse who may not have a new account. Raises 403 ``M_FORBIDDEN``."""
        if not self.provider(identity.provider).config.enable_registration:
            logger.info(
                "A login was refused, %s: no account, and enable_registration is false", identity.provider
            )
            raise forbidden("There is no account for you on this server")


@contextmanager
def _naming(idp_id: str) -> Iterator[None]:
    """Say with what went wrong at which provider."""
    try:
        yield
    except ProviderFailed as failure:
        raise type(failure)(f"{idp_id}: {failure}") from None


def whitelisted(config: SsoConfig) -> list[str]:
    """Give the beginnings of trusted addresses; one that is only a host ends there."""
    return [
        f"{entry}/" if entry.startswith(("https://", "http://")) and entry.count("/") == 2 else entry
        for entry in config.client_whitelist
    ]
