"""Rooms, the room directory, profiles and presence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ranvier.config.reader import Section, WrongValueError, text
from ranvier.spec.globs import Glob, whole_glob
from ranvier.spec.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS

_PRESETS_ENCRYPTED = {
    "all": frozenset({"private_chat", "trusted_private_chat", "public_chat"}),
    "invite": frozenset({"private_chat", "trusted_private_chat"}),
    "off": frozenset[str](),
}


@dataclass(frozen=True)
class DirectoryRule:
    """One line of a rule list: whom and what it is about, as globs, and what it says."""

    user_id: Glob
    room_id: Glob
    alias: Glob
    any_alias: bool
    allow: bool

    def matches(self, user_id: str, room_id: str, aliases: Sequence[str]) -> bool:
        """Tell whether the rule is about this user, room and any of these aliases."""
        if not (self.user_id.matches(user_id) and self.room_id.matches(room_id)):
            return False
        return self.any_alias or any(self.alias.matches(alias) for alias in aliases)


@dataclass(frozen=True)
class DirectoryRules:
    """A list of rules, of which the first that matches decides; if none does, the answer is no."""

    rules: tuple[DirectoryRule, ...]

    def allow(self, user_id: str, room_id: str, aliases: Sequence[str]) -> bool:
        """Tell whether the user may give or publish this (Synapse's meaning of its two rule lists)."""
        for rule in self.rules:
            if rule.matches(user_id, room_id, aliases):
                return rule.allow
        return False


@dataclass(frozen=True)
class RoomsConfig:
    """What rooms are made of and who may do what with them.

    ``encrypted_presets`` are the presets whose new rooms are encrypted unless their creator says otherwise.
    """

    default_room_version: str
    encrypted_presets: frozenset[str]
    forget_rooms_on_leave: bool
    alias_creation_rules: DirectoryRules
    room_list_publication_rules: DirectoryRules
    enable_room_list_search: bool
    allow_public_rooms_without_auth: bool
    allow_public_rooms_over_federation: bool
    require_membership_for_aliases: bool
    block_non_admin_invites: bool
    filter_timeline_limit: int
    redaction_retention_period_ms: int | None
    forgotten_room_retention_period_ms: int | None


def read_rooms(root: Section) -> RoomsConfig:
    """Read what concerns rooms and their directory."""
    encrypted = root.choice("encryption_enabled_by_default_for_room_type", tuple(_PRESETS_ENCRYPTED), "off")
    return RoomsConfig(
        default_room_version=root.take(
            "default_room_version", _room_version, DEFAULT_ROOM_VERSION.identifier
        ),
        encrypted_presets=_PRESETS_ENCRYPTED[encrypted],
        forget_rooms_on_leave=root.boolean("forget_rooms_on_leave", False),
        alias_creation_rules=_read_rules(root, "alias_creation_rules", default_allow=True),
        room_list_publication_rules=_read_rules(root, "room_list_publication_rules", default_allow=False),
        enable_room_list_search=root.boolean("enable_room_list_search", True),
        allow_public_rooms_without_auth=root.boolean("allow_public_rooms_without_auth", False),
        allow_public_rooms_over_federation=root.boolean("allow_public_rooms_over_federation", False),
        require_membership_for_aliases=root.boolean("require_membership_for_aliases", True),
        block_non_admin_invites=root.boolean("block_non_admin_invites", False),
        filter_timeline_limit=root.integer("filter_timeline_limit", 100, minimum=1, maximum=1000),
        redaction_retention_period_ms=root.optional_duration_ms("redaction_retention_period", "7d"),
        forgotten_room_retention_period_ms=root.optional_duration_ms("forgotten_room_retention_period"),
    )


def _room_version(value: Any) -> str:
    if str(value) not in ROOM_VERSIONS:
        raise WrongValueError("a room version in quotes, one of " + ", ".join(ROOM_VERSIONS))
    return str(value)


def _read_rules(root: Section, key: str, *, default_allow: bool) -> DirectoryRules:
    if not root.has(key):
        root.section(key)
        return DirectoryRules(tuple([_rule("*", "*", "*", True)] if default_allow else []))
    return DirectoryRules(tuple(_read_rule(section) for section in root.sections(key)))


def _read_rule(section: Section) -> DirectoryRule:
    if not section.has("action"):
        section.error("action", "expected allow or deny")
    rule = _rule(
        section.take("user_id", text, "*"),
        section.take("room_id", text, "*"),
        section.take("alias", text, "*"),
        section.choice("action", ("allow", "deny"), "deny") == "allow",
    )
    section.finish()
    return rule


def _rule(user_id: str, room_id: str, alias: str, allow: bool) -> DirectoryRule:
    return DirectoryRule(whole_glob(user_id), whole_glob(room_id), whole_glob(alias), alias == "*", allow)


@dataclass(frozen=True)
class ProfileConfig:
    """Who may look at profiles."""

    require_auth: bool
    limit_to_users_who_share_rooms: bool
    allow_lookup_over_federation: bool


def read_profiles(root: Section) -> ProfileConfig:
    """Read who may look at profiles."""
    return ProfileConfig(
        require_auth=root.boolean("require_auth_for_profile_requests", False),
        limit_to_users_who_share_rooms=root.boolean("limit_profile_requests_to_users_who_share_rooms", False),
        allow_lookup_over_federation=root.boolean("allow_profile_lookup_over_federation", True),
    )


@dataclass(frozen=True)
class PresenceConfig:
    """Whether and how finely users see who is online."""

    enabled: bool
    include_offline_users_on_sync: bool
    last_active_granularity_ms: int
    sync_online_timeout_ms: int
    idle_timeout_ms: int


def read_presence(root: Section) -> PresenceConfig:
    """Read ``presence`` (and the old ``use_presence``)."""
    section = root.section("presence")
    found = PresenceConfig(
        enabled=section.boolean("enabled", root.boolean("use_presence", True)),
        include_offline_users_on_sync=section.boolean("include_offline_users_on_sync", False),
        last_active_granularity_ms=section.duration_ms("last_active_granularity", "1m"),
        sync_online_timeout_ms=section.duration_ms("sync_online_timeout", "30s"),
        idle_timeout_ms=section.duration_ms("idle_timeout", "5m"),
    )
    if found.last_active_granularity_ms == 0 or found.sync_online_timeout_ms == 0:
        section.error("last_active_granularity", "expected this and sync_online_timeout to be longer than 0")
    if found.idle_timeout_ms <= found.last_active_granularity_ms:
        section.error("idle_timeout", "expected more than last_active_granularity")
    section.finish()
    return found


@dataclass(frozen=True)
class UserDirectoryConfig:
    """Whom a search for users finds."""

    enabled: bool
    search_all_users: bool
    prefer_local_users: bool
    exclude_remote_users: bool
    show_locked_users: bool


def read_user_directory(root: Section) -> UserDirectoryConfig:
    """Read ``user_directory``."""
    section = root.section("user_directory")
    found = UserDirectoryConfig(
        enabled=section.boolean("enabled", True),
        search_all_users=section.boolean("search_all_users", False),
        prefer_local_users=section.boolean("prefer_local_users", False),
        exclude_remote_users=section.boolean("exclude_remote_users", False),
        show_locked_users=section.boolean("show_locked_users", False),
    )
    section.finish()
    return found
