"""The predefined push rules, as data in the specification's order, and the shape of a rule.

Source: client-server API v1.19, "Predefined Rules".
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

Kind = Literal["override", "content", "room", "sender", "underride"]
KINDS: Final[tuple[Kind, ...]] = ("override", "content", "room", "sender", "underride")
"""The kinds of rule, "in the order that they are checked"."""

Action = str | dict[str, Any]
Actions = tuple[Action, ...]
"""What a rule does: ``"notify"`` and tweaks (``{"set_tweak": "sound", "value": "default"}``)."""

USER_ID: Final = "\0user_id"
"""Stands in a predefined rule for the id of the user whose rule it is."""

MASTER: Final = ".m.rule.master"
"""The one predefined rule that comes before the user's own."""


class PushRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One rule. ``conditions`` belong to override and underride, ``pattern`` to content rules."""

    rule_id: str
    actions: Actions
    conditions: tuple[dict[str, Any], ...] | None = None
    pattern: str | None = None
    enabled: bool = True
    default: bool = False


def _match(key: str, pattern: str) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _is(key: str, value: str | bool) -> dict[str, Any]:
    return {"kind": "event_property_is", "key": key, "value": value}


def _rule(rule_id: str, *conditions: dict[str, Any], actions: Actions = ()) -> PushRule:
    return PushRule(rule_id, actions, conditions, default=True)


_ONE_TO_ONE: dict[str, Any] = {"kind": "room_member_count", "is": "2"}
_HIGHLIGHT: Action = {"set_tweak": "highlight"}
_DEFAULT_SOUND: Action = {"set_tweak": "sound", "value": "default"}
_RING: Action = {"set_tweak": "sound", "value": "ring"}

DEFAULT_RULES: Final[dict[Kind, tuple[PushRule, ...]]] = {
    "override": (
        PushRule(MASTER, (), (), enabled=False, default=True),
        _rule(".m.rule.suppress_notices", _match("content.msgtype", "m.notice")),
        _rule(
            ".m.rule.invite_for_me",
            _match("type", "m.room.member"),
            _match("content.membership", "invite"),
            _match("state_key", USER_ID),
            actions=("notify", _DEFAULT_SOUND),
        ),
        _rule(".m.rule.member_event", _match("type", "m.room.member")),
        _rule(
            ".m.rule.is_user_mention",
            {"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": USER_ID},
            actions=("notify", _DEFAULT_SOUND, _HIGHLIGHT),
        ),
        _rule(
            ".m.rule.is_room_mention",
            _is(r"content.m\.mentions.room", True),
            {"kind": "sender_notification_permission", "key": "room"},
            actions=("notify", _HIGHLIGHT),
        ),
        _rule(
            ".m.rule.tombstone",
            _match("type", "m.room.tombstone"),
            _match("state_key", ""),
            actions=("notify", _HIGHLIGHT),
        ),
        _rule(".m.rule.reaction", _match("type", "m.reaction")),
        _rule(
            ".m.rule.room.server_acl",
            _match("type", "m.room.server_acl"),
            _match("state_key", ""),
        ),
        _rule(".m.rule.suppress_edits", _is(r"content.m\.relates_to.rel_type", "m.replace")),
    ),
    "content": (),
    "room": (),
    "sender": (),
    "underride": (
        _rule(".m.rule.call", _match("type", "m.call.invite"), actions=("notify", _RING)),
        _rule(
            ".m.rule.encrypted_room_one_to_one",
            _ONE_TO_ONE,
            _match("type", "m.room.encrypted"),
            actions=("notify", _DEFAULT_SOUND),
        ),
        _rule(
            ".m.rule.room_one_to_one",
            _ONE_TO_ONE,
            _match("type", "m.room.message"),
            actions=("notify", _DEFAULT_SOUND),
        ),
        _rule(".m.rule.message", _match("type", "m.room.message"), actions=("notify",)),
        _rule(".m.rule.encrypted", _match("type", "m.room.encrypted"), actions=("notify",)),
    ),
}
