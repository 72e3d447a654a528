"""``rc_*``: how much one client, address or room may ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ranvier.config.reader import Section


@dataclass(frozen=True)
class RateLimit:
    """Allow ``per_second`` actions a second in the long run, and ``burst_count`` at once."""

    per_second: float
    burst_count: float


DEFAULTS: Mapping[str, RateLimit] = {
    "rc_message": RateLimit(0.2, 10),
    "rc_registration": RateLimit(0.17, 3),
    "rc_registration_token_validity": RateLimit(0.1, 5),
    "rc_login.address": RateLimit(0.003, 5),
    "rc_login.account": RateLimit(0.003, 5),
    "rc_login.failed_attempts": RateLimit(0.17, 3),
    "rc_joins.local": RateLimit(0.1, 10),
    "rc_joins.remote": RateLimit(0.01, 10),
    "rc_joins_per_room": RateLimit(1, 10),
    "rc_invites.per_room": RateLimit(0.3, 10),
    "rc_invites.per_user": RateLimit(0.003, 5),
    "rc_invites.per_issuer": RateLimit(0.3, 10),
    "rc_third_party_invite": RateLimit(0.0025, 5),
    "rc_3pid_validation": RateLimit(0.003, 5),
    "rc_key_requests": RateLimit(20, 100),
    "rc_media_create": RateLimit(10, 50),
    "rc_presence.per_user": RateLimit(0.1, 1),
    "rc_delayed_event_mgmt": RateLimit(1, 5),
    "rc_room_creation": RateLimit(0.016, 10),
    "rc_reports": RateLimit(1, 5),
    "rc_user_directory": RateLimit(0.016, 200),
    "rc_profile": RateLimit(1, 500),
}
"""Synapse's names, dotted where it nests them, and Synapse's values."""


def read_rate_limits(root: Section) -> Mapping[str, RateLimit]:
    """Read every limit by its dotted name. ``rc_admin_redaction`` is there only if it is configured."""
    limits: dict[str, RateLimit] = {}
    parents: dict[str, Section] = {}
    for name, default in DEFAULTS.items():
        top, _, inner = name.partition(".")
        if inner and top not in parents:
            parents[top] = root.section(top)
        limits[name] = _read_limit(parents[top].section(inner) if inner else root.section(top), default)
    parents["rc_joins"].ignore(
        {"remote": ""}, "this version joins no rooms of other servers; this has no effect"
    )
    for section in parents.values():
        section.finish()
    if root.has("rc_admin_redaction"):
        section = root.section("rc_admin_redaction")
        limits["rc_admin_redaction"] = _read_limit(section, limits["rc_message"])
    else:
        root.section("rc_admin_redaction")
    return limits


def _read_limit(section: Section, default: RateLimit) -> RateLimit:
    limit = RateLimit(
        per_second=section.number("per_second", default.per_second),
        burst_count=section.number("burst_count", default.burst_count),
    )
    section.finish()
    return limit
