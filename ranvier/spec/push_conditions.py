"""The conditions of push rules, compiled: what depends on the event alone, and what on the user.

Source: client-server API, "Push Rules", "Conditions".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ranvier.spec import globs
from ranvier.spec.event import Event
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.property_paths import MISSING, Path, parse_path, value_at
from ranvier.spec.push_rules_default import USER_ID

MAX_KEY = 512
"""Characters of the longest property path that is looked up."""
MAX_INTEGER = 2**53 - 1
MAX_DISPLAY_NAME = 256

Anchor = tuple[str, str]
"""A property that every event must have exactly so: ``("type", "m.room.message")``, folded."""
EventTest = Callable[["PushView"], bool]
UserTest = Callable[["PushView", str, str | None], bool]
"""``(view, user_id, display_name)``: a test whose outcome differs between users."""

_BODY: Path = ("content", "body")
_ANCHORS = {("type",), ("room_id",), ("sender",)}
_COUNT = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})", re.ASCII)
_COMPARE = {"==": operator.eq, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class PushView:
    """Hold what one event's evaluation for many users shares; every part is computed once.

    ``member_count`` is the number of joined members, ``power_levels`` the levels of the room before the
    event; they are only read for what needs a level (``@room``).
    """

    __slots__ = (
        "_strings",
        "_texts",
        "_words",
        "anchors",
        "event",
        "member_count",
        "plans",
        "power_levels",
        "room_id",
        "sender",
    )

    def __init__(self, event: Event, *, member_count: int, power_levels: PowerLevels) -> None:
        self.event = event
        self.sender = event.sender
        self.room_id = event.room_id
        self.member_count = member_count
        self.power_levels = power_levels
        self.anchors: tuple[Anchor, ...] = (
            ("type", globs.fold(event.type)),
            ("room_id", globs.fold(event.room_id)),
            ("sender", globs.fold(event.sender)),
        )
        self.plans: dict[object, Any] = {}  # CompiledRules -> what it makes of this event
        self._texts: dict[Path, str | None] = {}
        self._strings: dict[Path, frozenset[str]] = {}
        self._words: frozenset[str] | None = None

    def value(self, path: Path) -> Any:
        """Give the property at ``path``, or ``MISSING``."""
        if len(path) == 1:  # ids that not every room version keeps in the PDU
            if path[0] == "room_id":
                return self.room_id
            if path[0] == "event_id":
                return self.event.event_id
        return value_at(self.event.pdu, path)

    def text(self, path: Path) -> str | None:
        """Give the string at ``path`` folded, or ``None`` if there is no string."""
        try:
            return self._texts[path]
        except KeyError:
            value = self.value(path)
            text = self._texts[path] = globs.fold(value) if isinstance(value, str) else None
            return text

    def strings(self, path: Path) -> frozenset[str]:
        """Give the strings in the array at ``path``, exactly; none if there is no array."""
        try:
            return self._strings[path]
        except KeyError:
            value = self.value(path)
            items = [item for item in value if isinstance(item, str)] if isinstance(value, list) else ()
            strings = self._strings[path] = frozenset(items)
            return strings

    def body_words(self) -> frozenset[str]:
        """Give the folded words of ``content.body``."""
        if self._words is None:
            self._words = globs.words_of(self.text(_BODY) or "")
        return self._words


class CompiledCondition(NamedTuple):
    """Say what one condition asks of the event and of the user. All of it must hold."""

    event_test: EventTest | None = None
    user_test: UserTest | None = None
    anchor: Anchor | None = None


def compile_condition(condition: Mapping[str, Any], *, default: bool = False) -> CompiledCondition | None:
    """Compile one condition, or give ``None`` for one that never matches (unknown, or broken).

    "Unrecognised conditions MUST NOT match any events". ``default`` is true for the conditions of a
    predefined rule, where ``USER_ID`` stands for the user.
    """
    kind = condition.get("kind")
    compiler = _COMPILERS.get(kind) if isinstance(kind, str) else None
    return compiler(condition, default) if compiler else None


def pattern_condition(pattern: str) -> CompiledCondition | None:
    """Compile the pattern of a content rule: a match on the words of ``content.body``."""
    if globs.is_too_costly(pattern):
        return None
    pattern = globs.fold(pattern)
    if globs.is_word(pattern):
        return CompiledCondition(lambda view: pattern in view.body_words())
    glob = globs.word_glob(pattern)

    def matches_words(view: PushView) -> bool:
        body = view.text(_BODY)
        return body is not None and glob.matches(body)

    return CompiledCondition(matches_words)


def _path_of(condition: Mapping[str, Any]) -> Path | None:
    key = condition.get("key")
    return parse_path(key) if isinstance(key, str) and len(key) <= MAX_KEY else None


def _event_match(condition: Mapping[str, Any], default: bool) -> CompiledCondition | None:
    path, pattern = _path_of(condition), condition.get("pattern")
    if path is None or not isinstance(pattern, str):
        return None
    if default and pattern == USER_ID:
        return CompiledCondition(user_test=lambda view, user_id, _: view.value(path) == user_id)
    # "if key is content.body, then pattern must instead match any substring … at a word boundary"
    if path == _BODY:
        return pattern_condition(pattern)
    if globs.is_too_costly(pattern):
        return None
    pattern = globs.fold(pattern)
    if not globs.has_wildcard(pattern):
        if path in _ANCHORS:
            return CompiledCondition(anchor=(path[0], pattern))
        return CompiledCondition(lambda view: view.text(path) == pattern)
    glob = globs.whole_glob(pattern)

    def matches_whole(view: PushView) -> bool:
        text = view.text(path)
        return text is not None and glob.matches(text)

    return CompiledCondition(matches_whole)


def is_simple(value: object) -> bool:
    """Say whether the value is a non-compound canonical JSON value."""
    if isinstance(value, int):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return value is None or isinstance(value, str)


def _event_property_is(condition: Mapping[str, Any], _default: bool) -> CompiledCondition | None:
    path, value = _path_of(condition), condition.get("value", MISSING)
    if path is None or not is_simple(value):
        return None
    kind = type(value)  # "do not cast types": True is not 1

    def is_value(view: PushView) -> bool:
        found = view.value(path)
        return type(found) is kind and bool(found == value)

    return CompiledCondition(is_value)


def _event_property_contains(condition: Mapping[str, Any], default: bool) -> CompiledCondition | None:
    path, value = _path_of(condition), condition.get("value", MISSING)
    if path is None or not is_simple(value):
        return None
    if default and value == USER_ID:
        return CompiledCondition(
            lambda view: bool(view.strings(path)),  # spares the users when nobody is mentioned
            lambda view, user_id, _: user_id in view.strings(path),
        )
    if isinstance(value, str):
        return CompiledCondition(lambda view: value in view.strings(path))
    kind = type(value)

    def contains(view: PushView) -> bool:
        found = view.value(path)
        return isinstance(found, list) and any(type(item) is kind and item == value for item in found)

    return CompiledCondition(contains)


def _contains_display_name(_condition: Mapping[str, Any], _default: bool) -> CompiledCondition:
    def has_display_name(view: PushView, _user_id: str, display_name: str | None) -> bool:
        if not display_name or len(display_name) > MAX_DISPLAY_NAME:
            return False
        name = globs.fold(display_name)
        if globs.is_word(name):
            return name in view.body_words()
        return globs.word_glob(name, literal=True).matches(view.text(_BODY) or "")

    return CompiledCondition(lambda view: view.text(_BODY) is not None, has_display_name)


def _room_member_count(condition: Mapping[str, Any], _default: bool) -> CompiledCondition | None:
    comparison = condition.get("is")
    parts = _COUNT.fullmatch(comparison) if isinstance(comparison, str) else None
    if parts is None:
        return None
    compare, count = _COMPARE[parts[1] or "=="], int(parts[2])
    return CompiledCondition(lambda view: bool(compare(view.member_count, count)))


def _sender_notification_permission(condition: Mapping[str, Any], _default: bool) -> CompiledCondition | None:
    key = condition.get("key")
    if not isinstance(key, str):
        return None

    def may_notify(view: PushView) -> bool:
        return view.power_levels.user_level(view.sender) >= view.power_levels.notification_level(key)

    return CompiledCondition(may_notify)


_COMPILERS: Final[dict[str, Callable[[Mapping[str, Any], bool], CompiledCondition | None]]] = {
    "event_match": _event_match,
    "event_property_is": _event_property_is,
    "event_property_contains": _event_property_contains,
    "contains_display_name": _contains_display_name,
    "room_member_count": _room_member_count,
    "sender_notification_permission": _sender_notification_permission,
}


def is_valid_count(comparison: str) -> bool:
    """Say whether ``comparison`` is a decimal integer with one of ``==``, ``<``, ``>``, ``<=``, ``>=``."""
    return _COUNT.fullmatch(comparison) is not None
