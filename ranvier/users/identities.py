"""Who somebody is to a provider, and what they are to be called here, by the claims and the configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from ranvier.config.claim_templates import TemplateFailed, render, render_strictly
from ranvier.config.sso import AttributeRequirement, OidcProvider
from ranvier.spec.errors import MatrixError, forbidden
from ranvier.spec.ids import fits
from ranvier.users.profiles import MAX_DISPLAYNAME
from ranvier.users.provider_http import ProviderFailed
from ranvier.users.registration import wished_localpart

logger = logging.getLogger(__name__)

MAX_NAME: Final = 255
_ALLOWED: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-/+")


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody as a provider (``idp_id``) knows them: by their ``subject`` there, which stays theirs.

    ``localpart`` is the name that they would have here, None if nothing says one that could be;
    ``display_name`` is empty where nothing says one.
    """

    provider: str
    subject: str
    localpart: str | None = None
    display_name: str = ""


def identity_of(provider: OidcProvider, claims: Mapping[str, Any], server_name: str) -> Identity:
    """Make an identity of what a provider says. Raises 403 ``M_FORBIDDEN`` and ProviderFailed."""
    for requirement in provider.attribute_requirements:
        if not _is_met(requirement, claims):
            told = "A login was refused, %s: attribute_requirements, because of the claim %s"
            logger.info(told, provider.idp_id, requirement.attribute)
            raise forbidden("Your account there is not one that may log in here")
    mapping = provider.mapping
    try:
        name = render(mapping.localpart_template, claims)
        display_name = render(mapping.display_name_template, claims)
    except TemplateFailed as error:
        raise ProviderFailed(f"a template of user_mapping_provider fails: {error}") from None
    return Identity(
        provider=provider.idp_id,
        subject=_subject(provider, claims),
        localpart=_localpart(name, server_name),
        display_name=display_name.replace("\0", "")[:MAX_DISPLAYNAME],
    )


def _subject(provider: OidcProvider, claims: Mapping[str, Any]) -> str:
    mapping = provider.mapping
    if mapping.subject_template:
        try:
            subject = render_strictly(mapping.subject_template, claims)
        except TemplateFailed as error:
            raise ProviderFailed(f"the subject_template fails: {error}") from None
    else:
        claim = claims.get(mapping.subject_claim)
        # Providers without OpenID Connect have numbers.
        is_subject = isinstance(claim, str | int) and not isinstance(claim, bool)
        subject = str(claim) if is_subject else ""
    if not subject or not fits(subject) or "\0" in subject:
        raise ProviderFailed(f"it does not say of whom it speaks ({mapping.subject_claim})")
    return subject


def _is_met(requirement: AttributeRequirement, claims: Mapping[str, Any]) -> bool:
    """Tell whether a claim is there with one of the values; of a list one is enough.

    What is true, false or a number is compared as JSON has it.
    """
    claim = claims.get(requirement.attribute)
    if claim is None:
        return False
    given = claim if isinstance(claim, list) else [claim]
    return not requirement.values or any(_as_text(value) in requirement.values for value in given)


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    return value if isinstance(value, str) else None


def _localpart(name: str, server_name: str) -> str | None:
    """Give the localpart for a name of any characters, None for one that nobody may have.

    Source: appendices, "Mapping from other character sets".
    """
    escaped = "".join(
        chr(byte) if byte in _ALLOWED else f"={byte:02x}"
        for byte in name[: MAX_NAME + 1].lower().encode("utf-8", "surrogatepass")
    )
    try:
        return wished_localpart(escaped, server_name)
    except MatrixError:
        return None
