"""Everything about single sign-on, where the configuration names a provider."""

from __future__ import annotations

import hashlib
from typing import Protocol
from urllib.parse import urlsplit

import nacl.secret
import nacl.utils

from ranvier.config import Config
from ranvier.log.clock import Clock
from ranvier.processes.accounts import AccountParts
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database
from ranvier.storage.identities import IdentityStore, shared_key
from ranvier.users.oidc import OidcClient
from ranvier.users.provider_http import TIMEOUT_S, ProviderHttp
from ranvier.users.sealed_steps import SealedSteps
from ranvier.users.sso import CALLBACK, SetDisplayName, Sso, SsoAccounts, whitelisted


class DatabasePart(Protocol):
    """What is needed of the core."""

    @property
    def database(self) -> Database:
        """Connections."""


async def build_sso(
    core: DatabasePart,
    config: Config,
    accounts: AccountParts,
    *,
    clock: Clock,
    signing_key: SigningKey,
    set_display_name: SetDisplayName,
    timeout_s: float = TIMEOUT_S,
) -> Sso | None:
    """Build what concerns single sign-on; nothing where there is no provider."""
    url = config.server.public_baseurl
    if not config.sso.providers or url is None:
        return None
    return Sso(
        providers={
            it.idp_id: OidcClient(
                config=it,
                redirect_uri=url + CALLBACK + (f"/{it.idp_id}" if it.own_callback else ""),
                http=ProviderHttp(timeout_s=timeout_s),  # a slow one leaves the others alone
                clock=clock,
            )
            for it in config.sso.providers
        },
        steps=SealedSteps(
            key=await sealing_key(core.database, signing_key),
            clock=clock,
            path=urlsplit(url).path,
            secure=urlsplit(url).scheme == "https",
        ),
        accounts=SsoAccounts(
            store=IdentityStore(core.database),
            accounts=accounts.accounts,
            registration=accounts.registration,
            config=config.sso,
            set_display_name=set_display_name,
        ),
        server_name=config.server.server_name,
        whitelist=whitelisted(config.sso),
    )


async def sealing_key(database: Database, signing_key: SigningKey) -> bytes:
    """Give what all workers seal with: the database's secret, and the server's own, in one.

    So whoever reads a copy of the database can make no login of it.
    """
    shared = await shared_key(database, nacl.utils.random(nacl.secret.SecretBox.KEY_SIZE))
    return hashlib.blake2b(shared, key=signing_key.seed, digest_size=32, person=b"ranvier sso").digest()
