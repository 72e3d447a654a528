"""Registration, passwords and sessions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ranvier.config.reader import Section, WrongValueError, text, texts
from ranvier.spec.ids import domain_of, is_room_alias, is_user_id

AutoJoinPreset = Literal["public_chat", "private_chat", "trusted_private_chat"]
_PRESETS: Final[Mapping[str, AutoJoinPreset]] = {
    "public_chat": "public_chat",
    "private_chat": "private_chat",
    "trusted_private_chat": "trusted_private_chat",
}


@dataclass(frozen=True)
class AutoJoinConfig:
    """Rooms (aliases) that new users are joined to, and how those that are missing are made.

    ``mxid_localpart`` is who makes them and invites to those that need it; without one that is the first who
    registers, and nobody invites. ``federated`` says whether users of other servers may join.
    """

    rooms: tuple[str, ...] = ()
    autocreate: bool = True
    federated: bool = True
    preset: AutoJoinPreset = "public_chat"
    mxid_localpart: str | None = None
    for_guests: bool = True


def _read_auto_join(root: Section, server_name: str) -> AutoJoinConfig:
    found = AutoJoinConfig(
        rooms=root.take("auto_join_rooms", _aliases, ()),
        autocreate=root.boolean("autocreate_auto_join_rooms", True),
        federated=root.boolean("autocreate_auto_join_rooms_federated", True),
        preset=_PRESETS[root.choice("autocreate_auto_join_room_preset", tuple(_PRESETS), "public_chat")],
        mxid_localpart=root.take("auto_join_mxid_localpart", _localpart),
        for_guests=root.boolean("auto_join_rooms_for_guests", True),
    )
    if found.preset != "public_chat" and found.mxid_localpart is None:
        root.error(
            "autocreate_auto_join_room_preset",
            "expected also auto_join_mxid_localpart, who sends the invites",
        )
    for alias in found.rooms:
        if domain_of(alias) != server_name:
            root.warn(
                "auto_join_rooms", f"{alias} is on another server, which this one does not talk to: no effect"
            )
    return found


@dataclass(frozen=True)
class RegistrationConfig:
    """Who may make an account, and what a new one gets."""

    enabled: bool
    without_verification: bool
    requires_token: bool
    shared_secret: str | None = field(repr=False)
    allow_guest_access: bool
    inhibit_user_in_use_error: bool
    auto_join: AutoJoinConfig
    enable_set_displayname: bool
    enable_set_avatar_url: bool


def read_registration(root: Section, server_name: str) -> RegistrationConfig:
    """Read who may register. Open registration has to be asked for twice, for everybody else's sake."""
    found = RegistrationConfig(
        enabled=root.boolean("enable_registration", False),
        without_verification=root.boolean("enable_registration_without_verification", False),
        requires_token=root.boolean("registration_requires_token", False),
        shared_secret=root.secret("registration_shared_secret"),
        allow_guest_access=root.boolean("allow_guest_access", False),
        inhibit_user_in_use_error=root.boolean("inhibit_user_in_use_error", False),
        auto_join=_read_auto_join(root, server_name),
        enable_set_displayname=root.boolean("enable_set_displayname", True),
        enable_set_avatar_url=root.boolean("enable_set_avatar_url", True),
    )
    if found.enabled and not (found.requires_token or found.without_verification):
        root.error(
            "enable_registration",
            "anybody could make accounts, spammers too; expected also registration_requires_token: true, "
            "or, if you do want that, enable_registration_without_verification: true",
        )
    return found


@dataclass(frozen=True)
class PasswordPolicy:
    """What a new password must have; nothing is asked unless ``enabled``."""

    enabled: bool
    minimum_length: int
    require_digit: bool
    require_symbol: bool
    require_lowercase: bool
    require_uppercase: bool


@dataclass(frozen=True)
class PasswordConfig:
    """How passwords are kept and checked. ``pepper`` is mixed into each; memory is in KiB."""

    enabled_for_login: bool
    enabled_for_reauth: bool
    pepper: str = field(repr=False)
    policy: PasswordPolicy
    argon2_time_cost: int
    argon2_memory_kib: int
    argon2_parallelism: int


def read_passwords(root: Section) -> PasswordConfig:
    """Read ``password_config``."""
    section = root.section("password_config")
    enabled = section.choice("enabled", ("on", "off", "only_for_reauth"), "on")
    # "Set to false to disable authentication against the local password database": here is no other one.
    if not section.boolean("localdb_enabled", True):
        enabled = "off"
    argon2 = section.section("argon2")
    found = PasswordConfig(
        enabled_for_login=enabled == "on",
        enabled_for_reauth=enabled != "off",
        pepper=section.text("pepper"),
        policy=_read_policy(section.section("policy")),
        argon2_time_cost=argon2.integer("time_cost", 2, minimum=1, maximum=100),
        argon2_memory_kib=argon2.size_bytes("memory", "19M") // 1024,
        argon2_parallelism=argon2.integer("parallelism", 1, minimum=1, maximum=64),
    )
    if found.argon2_memory_kib < 8 * found.argon2_parallelism:
        argon2.error("memory", "expected at least 8K for each of parallelism")
    argon2.finish()
    section.finish()
    return found


def _read_policy(section: Section) -> PasswordPolicy:
    found = PasswordPolicy(
        enabled=section.boolean("enabled", False),
        minimum_length=section.integer("minimum_length", 1, maximum=512),
        require_digit=section.boolean("require_digit", False),
        require_symbol=section.boolean("require_symbol", False),
        require_lowercase=section.boolean("require_lowercase", False),
        require_uppercase=section.boolean("require_uppercase", False),
    )
    section.finish()
    return found


@dataclass(frozen=True)
class SessionConfig:
    """How long tokens and sessions live, in milliseconds; ``None`` is without end.

    A ``refreshable_access_token_lifetime_ms`` of ``None`` means that no refresh tokens are given out.
    """

    session_lifetime_ms: int | None
    refreshable_access_token_lifetime_ms: int | None
    nonrefreshable_access_token_lifetime_ms: int | None
    refresh_token_lifetime_ms: int | None
    ui_auth_session_timeout_ms: int
    allow_access_token_in_query: bool


def read_sessions(root: Section) -> SessionConfig:
    """Read the lifetimes; none may be longer than the session's."""
    ui_auth = root.section("ui_auth")
    found = SessionConfig(
        session_lifetime_ms=root.optional_duration_ms("session_lifetime"),
        refreshable_access_token_lifetime_ms=root.optional_duration_ms(
            "refreshable_access_token_lifetime", "5m"
        ),
        nonrefreshable_access_token_lifetime_ms=root.optional_duration_ms(
            "nonrefreshable_access_token_lifetime"
        ),
        refresh_token_lifetime_ms=root.optional_duration_ms("refresh_token_lifetime"),
        ui_auth_session_timeout_ms=ui_auth.duration_ms("session_timeout", 0),
        allow_access_token_in_query=root.boolean("allow_access_token_in_query", False),
    )
    ui_auth.finish()
    for key in (
        "refreshable_access_token_lifetime",
        "nonrefreshable_access_token_lifetime",
        "refresh_token_lifetime",
    ):
        lifetime_ms = getattr(found, f"{key}_ms")
        if root.has(key) and (lifetime_ms or 0) > (found.session_lifetime_ms or math.inf):
            root.error(key, "expected at most session_lifetime")
    return found


def _localpart(value: Any) -> str:
    if is_user_id(f"@{text(value)}:x"):
        return text(value)
    raise WrongValueError("the part of a user ID between @ and the colon")


def _aliases(value: Any) -> tuple[str, ...]:
    aliases = texts(value)
    if not all(is_room_alias(alias) for alias in aliases):
        raise WrongValueError("a list of room aliases (#name:server.name)")
    return aliases
