"""Single sign-on: the OpenID providers by which people log in, and the clients that are trusted."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from ranvier.config.claim_templates import template
from ranvier.config.reader import Section, WrongValueError, text, texts
from ranvier.spec.ids import is_opaque_id

_DIRECT: Final = (
    "ID tokens come straight from the token endpoint, whose TLS certificate stands for their signature"
)
_NOT_NEEDED: Final[Mapping[str, str]] = {
    "jwks_uri": _DIRECT,
    "skip_verification": _DIRECT,
    "id_token_signing_alg_values_supported": _DIRECT,
}
_UNSUPPORTED: Final = dict.fromkeys(
    (
        *("additional_authorization_parameters", "passthrough_authorization_parameters", "redirect_uri"),
        *("backchannel_logout_enabled", "backchannel_logout_is_soft", "backchannel_logout_ignore_sub"),
        *("client_secret_jwt_key", "unstable_idp_brand"),
    ),
    "",
)
_UNSUPPORTED_MAPPING: Final = dict.fromkeys(
    ("email_template", "extra_attributes", "picture_claim", "picture_template"), ""
)
_MIX_UP: Final = (
    "one of several providers could use logins at this one, unless it names itself in its answers "
    "(authorization_response_iss_parameter_supported in its discovery document) or this is true"
)
_NO_EFFECT: Final = "Ranvier does not have this feature; this has no effect"
# By these names older releases of Synapse and newer ones know the mapping that is done here.
_MAPPING_MODULES: Final = (
    "synapse.handlers.oidc.JinjaOidcMappingProvider",
    "synapse.handlers.oidc_handler.JinjaOidcMappingProvider",
)
BASIC, POST, NONE = "client_secret_basic", "client_secret_post", "none"


@dataclass(frozen=True)
class AttributeRequirement:
    """A claim that somebody must have, with one of these values (any, if none is named)."""

    attribute: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class UserMapping:
    """What of the claims is the subject, and how names are made of them. Empty templates make none."""

    subject_claim: str = "sub"
    subject_template: str = ""
    localpart_template: str = ""
    display_name_template: str = ""
    confirm_localpart: bool = False


@dataclass(frozen=True)
class OidcProvider:
    """One provider. Endpoints that are None are those of its discovery document.

    ``asks_userinfo`` says that its userinfo endpoint is asked, and not only the ID token looked at;
    ``own_callback`` that it sends people back to an address that no other provider has.
    """

    idp_id: str
    idp_name: str
    idp_icon: str | None
    idp_brand: str | None
    issuer: str
    discover: bool
    authorization_endpoint: str | None
    token_endpoint: str | None
    userinfo_endpoint: str | None
    client_id: str
    client_secret: str | None = field(repr=False)
    client_auth_method: str
    scopes: tuple[str, ...]
    pkce_method: str
    asks_userinfo: bool
    own_callback: bool
    allow_existing_users: bool
    enable_registration: bool
    attribute_requirements: tuple[AttributeRequirement, ...]
    mapping: UserMapping

    @property
    def gives_id_token(self) -> bool:
        """Whether it speaks OpenID Connect, and not OAuth 2.0 alone."""
        return "openid" in self.scopes


@dataclass(frozen=True)
class SsoConfig:
    """The providers, and the beginnings of the addresses of clients that get a login without being named."""

    providers: tuple[OidcProvider, ...] = ()
    client_whitelist: tuple[str, ...] = ()
    update_profile_information: bool = False


def read_sso(root: Section, public_baseurl: str | None) -> SsoConfig:
    """Read ``oidc_providers`` and ``sso``."""
    sections = root.sections("oidc_providers")
    providers = tuple(map(_read_provider, sections))
    if len(providers) > 1:
        for section, provider in zip(sections, providers, strict=True):
            if not provider.own_callback:
                section.note("own_callback", _MIX_UP)
    if providers and public_baseurl is None:
        root.error("oidc_providers", "expected also public_baseurl: providers send people back to it")
    names = [provider.idp_id for provider in providers]
    for name in {name for name in names if name and names.count(name) > 1}:
        root.error("oidc_providers", f"more than one provider has the idp_id {name}")
    section = root.section("sso")
    found = SsoConfig(
        providers=providers,
        client_whitelist=section.texts("client_whitelist"),
        update_profile_information=section.boolean("update_profile_information", False),
    )
    section.finish()
    return found


def is_safe_endpoint(url: str, *, may_be_near: bool = True) -> bool:
    """Tell whether a URL of a provider is https, or, where it ``may_be_near``, at least on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (may_be_near and parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_provider(section: Section) -> OidcProvider:
    for key in ("idp_id", "idp_name", "issuer", "client_id"):
        if not section.has(key):
            section.error(key, "expected this of every provider")
    scopes: tuple[str, ...] = section.take("scopes", _scopes) or ("openid",)
    profile = section.choice("user_profile_method", ("auto", "userinfo_endpoint"), "auto")
    found = OidcProvider(
        idp_id=section.take("idp_id", _provider_id, ""),
        idp_name=section.text("idp_name"),
        idp_icon=section.take("idp_icon", _mxc),
        idp_brand=section.optional_text("idp_brand"),
        issuer=section.take("issuer", _endpoint, ""),
        discover=section.boolean("discover", True),
        authorization_endpoint=section.take("authorization_endpoint", _endpoint),
        token_endpoint=section.take("token_endpoint", _endpoint),
        userinfo_endpoint=section.take("userinfo_endpoint", _endpoint),
        client_id=section.text("client_id"),
        client_secret=section.secret("client_secret"),
        client_auth_method=section.choice("client_auth_method", (BASIC, POST, NONE), BASIC),
        scopes=scopes,
        pkce_method=section.choice("pkce_method", ("auto", "always", "never"), "auto"),
        asks_userinfo=profile == "userinfo_endpoint" or "openid" not in scopes,
        own_callback=section.boolean("own_callback", False),
        allow_existing_users=section.boolean("allow_existing_users", False),
        enable_registration=section.boolean("enable_registration", True),
        attribute_requirements=tuple(map(_read_requirement, section.sections("attribute_requirements"))),
        mapping=_read_mapping(section.section("user_mapping_provider")),
    )
    section.ignore(_NOT_NEEDED, "unnecessary: {}; this has no effect")
    section.ignore(_UNSUPPORTED, _NO_EFFECT, severity="warning")
    section.finish()
    _check_whole(section, found)
    return found


def _check_whole(section: Section, provider: OidcProvider) -> None:
    """Tell what is missing for what else is set."""
    if provider.client_auth_method != NONE and not (
        section.has("client_secret") or section.has("client_secret_path")
    ):
        section.error(
            "client_secret", "expected this or client_secret_path, or client_auth_method: none for no secret"
        )
    wanted = ["authorization_endpoint", "token_endpoint"]
    if provider.asks_userinfo:
        wanted.append("userinfo_endpoint")
    for key in wanted:
        if not provider.discover and not section.has(key):
            section.error(key, "expected this, because discover is false")


def _read_requirement(section: Section) -> AttributeRequirement:
    if not section.has("attribute"):
        section.error("attribute", "expected the name of a claim")
    value, values = section.optional_text("value"), section.texts("one_of")
    if value is not None and values:
        section.error("one_of", "give either this or value, not both")
    found = AttributeRequirement(section.text("attribute"), values if value is None else (value,))
    section.finish()
    return found


def _read_mapping(outer: Section) -> UserMapping:
    module = outer.optional_text("module")
    if module is not None and module not in _MAPPING_MODULES:
        outer.error("module", "Ranvier runs no modules; expected only a config here")
    section = outer.section("config")
    found = UserMapping(
        subject_claim=section.text("subject_claim", "sub"),
        subject_template=section.take("subject_template", template, ""),
        localpart_template=section.take("localpart_template", template, ""),
        display_name_template=section.take("display_name_template", template, ""),
        confirm_localpart=section.boolean("confirm_localpart", False),
    )
    if section.has("subject_claim") and section.has("subject_template"):
        section.error("subject_template", "give either this or subject_claim, not both")
    section.ignore(_UNSUPPORTED_MAPPING, _NO_EFFECT, severity="warning")
    section.finish()
    outer.finish()
    return found


def _provider_id(value: Any) -> str:
    # "Should use the Opaque identifier Grammar"; it is part of a path, and of a cookie.
    if is_opaque_id(text(value)) and len(value) <= 100 and value.strip("."):
        return text(value)
    raise WrongValueError("a name of letters, digits, '.', '-', '_' and '~', at most 100 of them")


def _endpoint(value: Any) -> str:
    if is_safe_endpoint(text(value)):
        return text(value)
    raise WrongValueError("a URL that begins with https:// (http:// only for a provider on this machine)")


def _mxc(value: Any) -> str:
    if text(value).startswith("mxc://"):
        return text(value)
    raise WrongValueError("an mxc:// URI")


def _scopes(value: Any) -> tuple[str, ...]:
    if found := texts(value):
        return found
    raise WrongValueError("a list of scopes")
