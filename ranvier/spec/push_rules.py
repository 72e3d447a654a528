"""Which events notify whom: a user's push rules, compiled once and evaluated for many events.

A rule list is compiled into tests of the event alone and tests of the user. For one event
(``PushView``) the first kind runs once per rule list, and users without rules of their own share one
list; so a message to a room of fifty costs one evaluation and fifty look-ups.

Source: client-server API, "Push Rules".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from ranvier.spec.globs import fold
from ranvier.spec.push_conditions import (
    Anchor,
    CompiledCondition,
    EventTest,
    PushView,
    UserTest,
    compile_condition,
    pattern_condition,
)
from ranvier.spec.push_rules_default import DEFAULT_RULES, KINDS, MASTER, Actions, Kind, PushRule

__all__ = [
    "Actions",
    "CompiledRules",
    "DefaultChange",
    "Kind",
    "PushRule",
    "PushView",
    "UserPushRules",
    "compile_rules",
    "effective_rules",
    "highlights",
    "notifies",
    "sound",
    "tweaks",
]


class DefaultChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user changed about one predefined rule; ``None`` means as predefined."""

    enabled: bool | None = None
    actions: Actions | None = None


class UserPushRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored for a user: rules of their own, the most important first, and changed defaults."""

    override: tuple[PushRule, ...] = ()
    content: tuple[PushRule, ...] = ()
    room: tuple[PushRule, ...] = ()
    sender: tuple[PushRule, ...] = ()
    underride: tuple[PushRule, ...] = ()
    defaults: dict[str, DefaultChange] = {}

    def of_kind(self, kind: Kind) -> tuple[PushRule, ...]:
        """Give the user's own rules of one kind."""
        rules: tuple[PushRule, ...] = getattr(self, kind)
        return rules


NO_USER_RULES: Final = UserPushRules()


def effective_rules(user_rules: UserPushRules) -> dict[Kind, tuple[PushRule, ...]]:
    """Merge a user's rules with the predefined ones, in order of importance within each kind.

    "They operate at a lower priority than user-defined rules, except for .m.rule.master".
    """
    rules: dict[Kind, tuple[PushRule, ...]] = {}
    for kind in KINDS:
        defaults = [_changed(rule, user_rules.defaults.get(rule.rule_id)) for rule in DEFAULT_RULES[kind]]
        first = [rule for rule in defaults if rule.rule_id == MASTER]
        rest = [rule for rule in defaults if rule.rule_id != MASTER]
        rules[kind] = (*first, *user_rules.of_kind(kind), *rest)
    return rules


def _changed(rule: PushRule, change: DefaultChange | None) -> PushRule:
    if change is None:
        return rule
    return msgspec.structs.replace(
        rule,
        enabled=rule.enabled if change.enabled is None else change.enabled,
        actions=rule.actions if change.actions is None else change.actions,
    )


class _CompiledRule(NamedTuple):
    position: int  # order of importance, and what sorts the tuples
    anchor: Anchor | None
    event_tests: tuple[EventTest, ...]
    user_tests: tuple[UserTest, ...]
    actions: Actions


class _Plan(NamedTuple):
    """What one rule list makes of one event: rules that hang on the user, then the one that does not."""

    personal: tuple[tuple[tuple[UserTest, ...], Actions], ...]
    otherwise: Actions | None


class CompiledRules:
    """Evaluate one rule list. Made by ``compile_rules``; safe to share between users and to keep."""

    __slots__ = ("_anchored", "_free")

    def __init__(self, rules: dict[Kind, tuple[PushRule, ...]]) -> None:
        self._free: list[_CompiledRule] = []
        # a user may have muted hundreds of rooms: rules that ask for one room, sender or type are looked up
        self._anchored: dict[Anchor, list[_CompiledRule]] = {}
        ordered = ((kind, rule) for kind in KINDS for rule in rules[kind] if rule.enabled)
        for position, (kind, rule) in enumerate(ordered):
            compiled = _compile(position, kind, rule)
            if compiled is None:
                continue
            if compiled.anchor is None:
                self._free.append(compiled)
            else:
                self._anchored.setdefault(compiled.anchor, []).append(compiled)

    def evaluate(self, view: PushView, user_id: str, display_name: str | None = None) -> Actions | None:
        """Give the actions of the most important rule that matches, or ``None`` if none does.

        ``display_name`` is the user's in this room. The sender's own events give ``None``:
        "Homeservers MUST NOT notify the Push Gateway for events that the user has sent themselves".
        """
        if user_id == view.sender:
            return None
        plan = self._plan_for(view)
        for user_tests, actions in plan.personal:
            if all(test(view, user_id, display_name) for test in user_tests):
                return actions
        return plan.otherwise

    def is_personal(self, view: PushView) -> bool:
        """Tell whether what comes of an event hangs on the user, and not on the rules alone."""
        return bool(self._plan_for(view).personal)

    def _plan_for(self, view: PushView) -> _Plan:
        plan: _Plan | None = view.plans.get(self)
        if plan is None:
            plan = view.plans[self] = self._plan(view)
        return plan

    def _plan(self, view: PushView) -> _Plan:
        candidates = list(self._free)
        for anchor in view.anchors:
            candidates += self._anchored.get(anchor, ())
        candidates.sort(key=_position)
        personal: list[tuple[tuple[UserTest, ...], Actions]] = []
        for rule in candidates:
            for test in rule.event_tests:
                if not test(view):
                    break
            else:
                if not rule.user_tests:
                    return _Plan(tuple(personal), rule.actions)
                personal.append((rule.user_tests, rule.actions))
        return _Plan(tuple(personal), None)


def _position(rule: _CompiledRule) -> int:
    return rule.position


def _compile(position: int, kind: Kind, rule: PushRule) -> _CompiledRule | None:
    """Compile a rule, or give ``None`` if one of its conditions never matches."""
    anchors: list[Anchor] = []
    event_tests: list[EventTest] = []
    user_tests: list[UserTest] = []
    for condition in _conditions_of(kind, rule):
        if condition is None:
            return None
        if condition.anchor:
            anchors.append(condition.anchor)
        if condition.event_test:
            event_tests.append(condition.event_test)
        if condition.user_test:
            user_tests.append(condition.user_test)
    anchors.sort(key=_rarity)
    event_tests[:0] = [_has_anchor(anchor) for anchor in anchors[1:]]
    anchor = anchors[0] if anchors else None
    return _CompiledRule(position, anchor, tuple(event_tests), tuple(user_tests), rule.actions)


def _rarity(anchor: Anchor) -> int:
    return ("room_id", "sender", "type").index(anchor[0])


def _has_anchor(anchor: Anchor) -> EventTest:
    return lambda view: anchor in view.anchors


def _conditions_of(kind: Kind, rule: PushRule) -> list[CompiledCondition | None]:
    rule_id = rule.rule_id
    if kind == "content":
        return [pattern_condition(rule.pattern) if rule.pattern is not None else None]
    # "in the cases of room and sender rules, the rule_id of the rule determines its behaviour"
    if kind == "room":
        return [CompiledCondition(lambda view: view.room_id == rule_id, anchor=("room_id", fold(rule_id)))]
    if kind == "sender":
        return [CompiledCondition(lambda view: view.sender == rule_id, anchor=("sender", fold(rule_id)))]
    return [compile_condition(condition, default=rule.default) for condition in rule.conditions or ()]


def compile_rules(user_rules: UserPushRules) -> CompiledRules:
    """Compile a user's rules together with the predefined ones.

    Users without rules of their own who changed the same defaults get the same object, so that an
    event is evaluated once for all of them.
    """
    if any(user_rules.of_kind(kind) for kind in KINDS):
        return CompiledRules(effective_rules(user_rules))
    return _compile_shared(msgspec.json.encode(user_rules, order="deterministic"))


@lru_cache(maxsize=256)
def _compile_shared(encoded: bytes) -> CompiledRules:
    return CompiledRules(effective_rules(msgspec.json.decode(encoded, type=UserPushRules)))


def notifies(actions: Actions | None) -> bool:
    """Say whether the actions call for a notification."""
    return actions is not None and "notify" in actions


def tweaks(actions: Actions | None) -> dict[str, Any]:
    """Give the ``tweaks`` of a push: name to value; ``highlight`` without a value is ``True``."""
    found: dict[str, Any] = {}
    for action in actions or ():
        if isinstance(action, dict) and isinstance(name := action.get("set_tweak"), str):
            found[name] = action.get("value", True if name == "highlight" else None)
    return found


def highlights(actions: Actions | None) -> bool:
    """Say whether the event is to be highlighted.

    "If a highlight tweak is given with no value, its value is defined to be true."
    """
    return tweaks(actions).get("highlight") is True


def sound(actions: Actions | None) -> str | None:
    """Give the sound to be played, or ``None`` for a silent notification."""
    name = tweaks(actions).get("sound")
    return name if isinstance(name, str) else None
