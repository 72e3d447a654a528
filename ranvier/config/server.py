"""The server itself: its name, its addresses, its keys, its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ranvier.config.reader import Section, WrongValueError, text
from ranvier.spec.ids import is_server_name, is_user_id

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SPREAD_AS_NEEDED = "as_needed"
SPREAD_ALWAYS = "always"
_SUPPORT_ROLES = ("m.role.admin", "m.role.security")


@dataclass(frozen=True)
class SupportContact:
    """One person or team that users may turn to."""

    role: str
    email_address: str | None
    matrix_id: str | None


@dataclass(frozen=True)
class SupportConfig:
    """What ``/.well-known/matrix/support`` says; nothing is served while it is empty."""

    contacts: tuple[SupportContact, ...]
    support_page: str | None


@dataclass(frozen=True)
class TailConfig:
    """How much of the newest history is kept in memory; what is older is read from the database."""

    rows: int = 20_000
    size_bytes: int = 48 << 20


@dataclass(frozen=True)
class ServerConfig:
    """The server's name and what it says of itself. ``public_baseurl`` ends with a slash.

    ``spread_rooms`` says when rooms are placed on more than one worker of a machine: as_needed, always.
    """

    server_name: str
    public_baseurl: str | None
    serve_server_wellknown: bool
    extra_well_known_client_content: Mapping[str, Any]
    support: SupportConfig
    admin_contact: str | None
    log_level: str
    drain_timeout_ms: int
    spread_rooms: str
    tail: TailConfig
    max_upload_size_bytes: int
    tls_certificate_path: Path | None
    tls_private_key_path: Path | None


def read_server(root: Section) -> ServerConfig:
    """Read the server's name, addresses and process settings."""
    if not root.has("server_name"):
        root.error("server_name", "expected the name that user IDs end with, such as example.org")
    return ServerConfig(
        server_name=root.take("server_name", _server_name, "localhost"),
        public_baseurl=root.take("public_baseurl", _base_url),
        serve_server_wellknown=root.boolean("serve_server_wellknown", False),
        extra_well_known_client_content=root.take("extra_well_known_client_content", _mapping, {}),
        support=_read_support(root),
        admin_contact=root.optional_text("admin_contact"),
        log_level=root.choice("log_level", LOG_LEVELS, "INFO"),
        drain_timeout_ms=root.duration_ms("drain_timeout", "30s"),
        spread_rooms=root.choice("spread_rooms", (SPREAD_AS_NEEDED, SPREAD_ALWAYS), SPREAD_AS_NEEDED),
        tail=_read_tail(root.section("tail")),
        max_upload_size_bytes=root.size_bytes("max_upload_size", "50M"),
        tls_certificate_path=root.path("tls_certificate_path"),
        tls_private_key_path=root.path("tls_private_key_path"),
    )


def _read_tail(section: Section) -> TailConfig:
    tail = TailConfig(
        rows=section.integer("rows", TailConfig.rows, minimum=10),
        size_bytes=section.size_bytes("size", "48M"),
    )
    section.finish()
    return tail


def _read_support(root: Section) -> SupportConfig:
    section = root.section("well_known_support")
    contacts = tuple(_read_contact(contact) for contact in section.sections("contacts"))
    found = SupportConfig(contacts, section.take("support_page", _url))
    section.finish()
    return found


def _read_contact(section: Section) -> SupportContact:
    contact = SupportContact(
        role=section.take("role", _support_role, ""),
        email_address=section.optional_text("email_address"),
        matrix_id=section.take("matrix_id", _user_id),
    )
    if not section.has("role"):
        section.error("role", "expected " + " or ".join(_SUPPORT_ROLES))
    if not (section.has("email_address") or section.has("matrix_id")):
        section.error("email_address", "expected an email_address or a matrix_id")
    section.finish()
    return contact


@dataclass(frozen=True)
class TrustedKeyServer:
    """A server that is asked for other servers' keys; ``verify_keys`` is checked if it is not empty."""

    server_name: str
    verify_keys: Mapping[str, str]


@dataclass(frozen=True)
class OldSigningKey:
    """A key that the server signed with before: its public half, and until when (milliseconds of 1970)."""

    key_id: str
    key: str
    expired_ts: int


@dataclass(frozen=True)
class KeysConfig:
    """The server's signing keys and whom it asks for those of others."""

    signing_key_path: Path | None
    old_signing_keys: tuple[OldSigningKey, ...]
    key_refresh_interval_ms: int
    trusted_key_servers: tuple[TrustedKeyServer, ...]
    suppress_key_server_warning: bool


def read_keys(root: Section) -> KeysConfig:
    """Read where the keys are. A signing key path that is not given means one in the data folder."""
    servers = tuple(_read_key_server(section) for section in root.sections("trusted_key_servers"))
    if not root.has("trusted_key_servers"):
        servers = (TrustedKeyServer("matrix.org", {}),)
    return KeysConfig(
        signing_key_path=root.path("signing_key_path"),
        old_signing_keys=_read_old_keys(root.section("old_signing_keys")),
        key_refresh_interval_ms=root.duration_ms("key_refresh_interval", "1d"),
        trusted_key_servers=servers,
        suppress_key_server_warning=root.boolean("suppress_key_server_warning", False),
    )


def _read_key_server(section: Section) -> TrustedKeyServer:
    if not section.has("server_name"):
        section.error("server_name", "expected the key server's name")
    server = TrustedKeyServer(
        section.take("server_name", _server_name, ""), section.take("verify_keys", _text_mapping, {})
    )
    section.ignore({"accept_keys_insecurely": ""}, "unsigned keys are never accepted; this has no effect")
    section.finish()
    return server


def _read_old_keys(section: Section) -> tuple[OldSigningKey, ...]:
    keys = []
    for key_id in section.names():
        entry = section.section(key_id)
        if not (entry.has("key") and entry.has("expired_ts")):
            entry.error("key", "expected key and expired_ts")
        expired_ts = entry.integer("expired_ts", 0, maximum=2**53)
        keys.append(OldSigningKey(key_id, entry.text("key"), expired_ts))
        entry.finish()
    return tuple(keys)


def _server_name(value: Any) -> str:
    if is_server_name(value):
        return value
    raise WrongValueError("a server name such as example.org (host name or address, perhaps with :port)")


def _user_id(value: Any) -> str:
    if is_user_id(value):
        return value
    raise WrongValueError("a user ID such as @admin:example.org")


def _support_role(value: Any) -> str:
    # "One of: m.role.admin, m.role.security", or a namespaced one of one's own.
    role = text(value)
    if role in _SUPPORT_ROLES or ("." in role and not role.startswith("m.")):
        return role
    raise WrongValueError("m.role.admin or m.role.security")


def _url(value: Any) -> str:
    url = text(value)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise WrongValueError("a URL that begins with https:// or http://") from None
    if parts.scheme not in ("https", "http") or not parts.netloc or parts.query or parts.fragment:
        raise WrongValueError("a URL that begins with https:// or http://, with no ? or #")
    return url


def _base_url(value: Any) -> str:
    url = _url(value)
    return url if url.endswith("/") else url + "/"


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise WrongValueError("a mapping")


def _text_mapping(value: Any) -> Mapping[str, str]:
    if isinstance(value, dict) and all(isinstance(word, str) for pair in value.items() for word in pair):
        return value
    raise WrongValueError("a mapping of texts")
