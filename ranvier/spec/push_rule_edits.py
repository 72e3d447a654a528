"""What clients do to their push rules: pure functions from the stored rules to new ones.

Nothing here changes its argument. Source: client-server API, "Push Rules: API".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from ranvier.spec.errors import MatrixError, bad_json, invalid_param, not_found
from ranvier.spec.globs import MAX_PATTERN, MAX_PATTERN_WITH_JOKER, fold, is_too_costly, is_word
from ranvier.spec.push_conditions import MAX_KEY, is_simple, is_valid_count
from ranvier.spec.push_rules import DefaultChange, UserPushRules, effective_rules
from ranvier.spec.push_rules_default import DEFAULT_RULES, KINDS, USER_ID, Action, Actions, Kind, PushRule

MAX_RULES: Final = 1000
"""Rules of one's own, of all kinds together."""
MAX_SEARCHES: Final = 100
"""Patterns among them that are more than one word: each is searched for in every message."""
MAX_RULE_ID: Final = 255
MAX_ACTIONS: Final = 16
MAX_CONDITIONS: Final = 16
MAX_RULE_BYTES: Final = 4096
"""Size of one rule's actions, conditions and pattern as JSON."""
MAX_BYTES: Final = 256 * 1024
"""Size of all that is stored for a user; clients get it whole whenever a rule changes."""

# "Clients and homeservers MUST ignore these actions"
_HISTORICAL_ACTIONS = {"dont_notify", "coalesce"}


def check_scope(scope: str) -> None:
    """Raise 400 ``M_INVALID_PARAM`` unless the scope is ``global``, the only one defined."""
    if scope != "global":
        raise invalid_param(f"Unknown push rule scope {scope[:MAX_RULE_ID]!r}: only 'global' is defined")


def check_kind(kind: str) -> Kind:
    """Give the kind of rule, or raise 400 ``M_INVALID_PARAM``."""
    for known in KINDS:
        if kind == known:
            return known
    raise invalid_param(f"Unknown kind of push rule {kind[:MAX_RULE_ID]!r}; known are {', '.join(KINDS)}")


# -- reading ---------------------------------------------------------------------------


def to_client(user_rules: UserPushRules, user_id: str) -> dict[str, Any]:
    """Give the answer of ``GET /pushrules/``, which is the content of ``m.push_rules`` too."""
    rules = effective_rules(user_rules)
    return {"global": {kind: [_rule_to_client(rule, user_id) for rule in rules[kind]] for kind in KINDS}}


def get_rule(user_rules: UserPushRules, user_id: str, kind: str, rule_id: str) -> dict[str, Any]:
    """Give one rule as clients see it, or raise 404 ``M_NOT_FOUND``."""
    return _rule_to_client(_find(user_rules, check_kind(kind), rule_id), user_id)


def get_enabled(user_rules: UserPushRules, kind: str, rule_id: str) -> bool:
    """Say whether a rule is enabled, or raise 404 ``M_NOT_FOUND``."""
    return _find(user_rules, check_kind(kind), rule_id).enabled


def get_actions(user_rules: UserPushRules, kind: str, rule_id: str) -> list[Action]:
    """Give a rule's actions, or raise 404 ``M_NOT_FOUND``."""
    return list(_find(user_rules, check_kind(kind), rule_id).actions)


def _find(user_rules: UserPushRules, kind: Kind, rule_id: str) -> PushRule:
    for rule in effective_rules(user_rules)[kind]:
        if rule.rule_id == rule_id:
            return rule
    raise _no_such_rule()


def _no_such_rule() -> MatrixError:
    return not_found("The push rule was not found")


def _rule_to_client(rule: PushRule, user_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "rule_id": rule.rule_id,
        "default": rule.default,
        "enabled": rule.enabled,
        "actions": list(rule.actions),
    }
    if rule.conditions is not None:
        conditions = [dict(condition) for condition in rule.conditions]
        if rule.default:
            conditions = [_with_user_id(condition, user_id) for condition in conditions]
        answer["conditions"] = conditions
    if rule.pattern is not None:
        answer["pattern"] = rule.pattern
    return answer


def _with_user_id(condition: dict[str, Any], user_id: str) -> dict[str, Any]:
    return {key: user_id if value == USER_ID else value for key, value in condition.items()}


# -- changing --------------------------------------------------------------------------


def put_rule(
    user_rules: UserPushRules,
    kind: str,
    rule_id: str,
    body: Mapping[str, Any],
    *,
    before: str | None = None,
    after: str | None = None,
) -> UserPushRules:
    """Create a rule, or change the one with this id, and give the new rules.

    A new rule without ``before`` and ``after`` becomes the most important of its kind; a changed one
    stays where it is and as enabled as it was. Raises 400 ``M_INVALID_PARAM`` (kind, rule id, value),
    ``M_BAD_JSON`` (shape of the body), ``M_UNKNOWN`` (``before``/``after`` names no rule of the user's)
    and 413 ``M_TOO_LARGE``.
    """
    kind = check_kind(kind)
    _check_rule_id(rule_id)
    rules = user_rules.of_kind(kind)
    old = next((rule for rule in rules if rule.rule_id == rule_id), None)
    rule = _parse_rule(kind, rule_id, body, enabled=old is None or old.enabled)
    if before is None and after is None and old is not None:
        placed = tuple(rule if it is old else it for it in rules)
    else:
        others = [it for it in rules if it is not old]
        others.insert(_place(others, before, after), rule)
        placed = tuple(others)
    return _check_amount(_with_kind(user_rules, kind, placed))


def delete_rule(user_rules: UserPushRules, kind: str, rule_id: str) -> UserPushRules:
    """Remove a rule of the user's own, or raise 404 ``M_NOT_FOUND`` (400 for a predefined one)."""
    kind = check_kind(kind)
    rules = user_rules.of_kind(kind)
    kept = tuple(rule for rule in rules if rule.rule_id != rule_id)
    if len(kept) == len(rules):
        if _is_default(kind, rule_id):
            raise invalid_param("A predefined push rule cannot be deleted; it can be disabled")
        raise _no_such_rule()
    return _with_kind(user_rules, kind, kept)


def set_enabled(user_rules: UserPushRules, kind: str, rule_id: str, body: Mapping[str, Any]) -> UserPushRules:
    """Enable or disable a rule, predefined or not, as ``{"enabled": bool}`` asks.

    Raises 404 ``M_NOT_FOUND`` and 400 ``M_BAD_JSON``.
    """
    enabled = body.get("enabled")
    if not isinstance(enabled, bool):
        raise bad_json("'enabled' must be true or false")
    return _change(user_rules, check_kind(kind), rule_id, DefaultChange(enabled=enabled))


def set_actions(user_rules: UserPushRules, kind: str, rule_id: str, body: Mapping[str, Any]) -> UserPushRules:
    """Change the actions of a rule, predefined or not, as ``{"actions": [...]}`` asks.

    Raises 404 ``M_NOT_FOUND``, 400 ``M_BAD_JSON`` and ``M_INVALID_PARAM``, and 413 ``M_TOO_LARGE``.
    """
    _check_size(body.get("actions"))
    change = DefaultChange(actions=_parse_actions(body))
    return _check_amount(_change(user_rules, check_kind(kind), rule_id, change))


def copy_for_room(user_rules: UserPushRules, old_id: str, new_id: str) -> UserPushRules:
    """Have the rules about one room be about another, too. Raises 413 ``M_TOO_LARGE``.

    Those are its room rule, and override and underride rules with a condition for the room and its id in
    their own (as clients make them to mute it).
    """
    for kind in KINDS:
        rules = user_rules.of_kind(kind)
        known = {rule.rule_id for rule in rules}
        copies = [
            (at, copied)
            for at, rule in enumerate(rules)
            if (copied := _for_room(rule, kind, old_id, new_id)) is not None and copied.rule_id not in known
        ]
        together = list(rules)
        for at, copied in reversed(copies):
            together.insert(at + 1, copied)
        user_rules = _with_kind(user_rules, kind, tuple(together))
    return _check_amount(user_rules)


def _for_room(rule: PushRule, kind: Kind, old_id: str, new_id: str) -> PushRule | None:
    if old_id not in rule.rule_id or (kind == "room" and rule.rule_id != old_id):
        return None
    rule_id = rule.rule_id.replace(old_id, new_id)
    if kind == "room":
        return msgspec.structs.replace(rule, rule_id=rule_id)
    conditions = tuple(
        {**it, "pattern": new_id} if it.get("key") == "room_id" and it.get("pattern") == old_id else it
        for it in rule.conditions or ()
    )
    if len(rule_id) > MAX_RULE_ID or conditions == rule.conditions or rule.conditions is None:
        return None
    return msgspec.structs.replace(rule, rule_id=rule_id, conditions=conditions)


def _change(user_rules: UserPushRules, kind: Kind, rule_id: str, change: DefaultChange) -> UserPushRules:
    """Apply what is not ``None`` in ``change`` to a rule of either sort."""
    fields = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    if _is_default(kind, rule_id):
        old = user_rules.defaults.get(rule_id, DefaultChange())
        changes = {**user_rules.defaults, rule_id: msgspec.structs.replace(old, **fields)}
        return msgspec.structs.replace(user_rules, defaults=changes)
    rules = user_rules.of_kind(kind)
    if all(rule.rule_id != rule_id for rule in rules):
        raise _no_such_rule()
    changed = (msgspec.structs.replace(it, **fields) if it.rule_id == rule_id else it for it in rules)
    return _with_kind(user_rules, kind, tuple(changed))


def _with_kind(user_rules: UserPushRules, kind: Kind, rules: tuple[PushRule, ...]) -> UserPushRules:
    return msgspec.structs.replace(user_rules, **{kind: rules})


def _is_default(kind: Kind, rule_id: str) -> bool:
    return any(rule.rule_id == rule_id for rule in DEFAULT_RULES[kind])


def _place(others: list[PushRule], before: str | None, after: str | None) -> int:
    # "If both after and before are provided, the new or updated rule must be the next most important
    # rule with respect to the rule identified by before."
    neighbour = after if before is None else before
    if neighbour is None:
        return 0
    if neighbour.startswith("."):
        raise invalid_param("A rule cannot be placed relative to a predefined rule")
    for index, rule in enumerate(others):
        if rule.rule_id == neighbour:
            return index + (before is None)
    raise MatrixError("M_UNKNOWN", 400, f"before/after rule not found: {neighbour[:MAX_RULE_ID]}")


# -- checking what a client sent ---------------------------------------------------------


def _check_rule_id(rule_id: str) -> None:
    # "If the string starts with a dot, the request MUST be rejected … Slashes and backslashes are
    # also not allowed."
    if not rule_id or len(rule_id) > MAX_RULE_ID:
        raise invalid_param(f"A rule id has 1 to {MAX_RULE_ID} characters")
    if rule_id.startswith("."):
        raise invalid_param("Rule ids that start with a dot are reserved for predefined rules")
    if "/" in rule_id or "\\" in rule_id:
        raise invalid_param("A rule id may not contain slashes or backslashes")


def _check_amount(user_rules: UserPushRules) -> UserPushRules:
    """Give the rules back, or raise 413 ``M_TOO_LARGE`` if they are too many, too big or too slow."""
    if sum(len(user_rules.of_kind(kind)) for kind in KINDS) > MAX_RULES:
        raise _too_large(f"At most {MAX_RULES} push rules of one's own")
    patterns = [rule.pattern for rule in user_rules.content]
    for rule in (*user_rules.override, *user_rules.underride):
        patterns += [it.get("pattern") for it in rule.conditions or () if _is_search(it)]
    if sum(isinstance(it, str) and not is_word(fold(it)) for it in patterns) > MAX_SEARCHES:
        raise _too_large(f"At most {MAX_SEARCHES} patterns that are more than one word")
    if len(encode_rules(user_rules)) > MAX_BYTES:
        raise _too_large(f"At most {MAX_BYTES} bytes of push rules")
    return user_rules


def _is_search(condition: Mapping[str, Any]) -> bool:
    pattern = condition.get("pattern")
    if condition.get("kind") != "event_match" or not isinstance(pattern, str):
        return False
    return condition.get("key") == "content.body" or "*" in pattern or "?" in pattern


def _check_size(value: object) -> None:
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:  # nested too deep, or a number that JSON cannot hold
        raise bad_json(f"The push rule cannot be stored: {error}") from None
    if size > MAX_RULE_BYTES:
        raise _too_large(f"A push rule may have at most {MAX_RULE_BYTES} bytes")


def _too_large(message: str) -> MatrixError:
    return MatrixError("M_TOO_LARGE", 413, message)


def _parse_rule(kind: Kind, rule_id: str, body: Mapping[str, Any], *, enabled: bool) -> PushRule:
    _check_size([body.get("actions"), body.get("conditions"), body.get("pattern")])
    actions = _parse_actions(body)
    if kind == "content":
        return PushRule(rule_id, actions, pattern=_parse_pattern(body), enabled=enabled)
    if kind in {"override", "underride"}:
        return PushRule(rule_id, actions, _parse_conditions(body), enabled=enabled)
    return PushRule(rule_id, actions, enabled=enabled)


def _parse_actions(body: Mapping[str, Any]) -> Actions:
    actions = body.get("actions")
    if not isinstance(actions, list) or len(actions) > MAX_ACTIONS:
        raise bad_json(f"'actions' must be an array of at most {MAX_ACTIONS} actions")
    kept = [it for it in actions if not (isinstance(it, str) and it in _HISTORICAL_ACTIONS)]
    return tuple(_check_action(action) for action in kept)


def _check_action(action: object) -> Action:
    if action == "notify":
        return "notify"
    if isinstance(action, dict):
        if not isinstance(action.get("set_tweak"), str):
            raise bad_json("An action that is an object must have 'set_tweak', a string")
        return action
    if isinstance(action, str):
        raise invalid_param(f"Unknown action {action[:64]!r}")
    raise bad_json("An action must be a string or an object")


def _parse_pattern(body: Mapping[str, Any]) -> str:
    pattern = body.get("pattern")
    if not isinstance(pattern, str):
        raise bad_json("A content rule needs 'pattern', a string")
    return _check_pattern(pattern)


def _check_pattern(pattern: str) -> str:
    if is_too_costly(pattern):
        raise invalid_param(
            f"A pattern has at most {MAX_PATTERN} characters, with '?' at most {MAX_PATTERN_WITH_JOKER}"
        )
    return pattern


def _parse_conditions(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Check the conditions; unknown kinds are kept (they never match), known ones must be whole."""
    conditions = body.get("conditions", [])
    if not isinstance(conditions, list) or len(conditions) > MAX_CONDITIONS:
        raise bad_json(f"'conditions' must be an array of at most {MAX_CONDITIONS} conditions")
    for condition in conditions:
        if not isinstance(condition, dict) or not isinstance(condition.get("kind"), str):
            raise bad_json("A condition must be an object with 'kind', a string")
        _check_condition(condition)
    return tuple(conditions)


def _check_condition(condition: dict[str, Any]) -> None:
    kind, key = condition["kind"], condition.get("key")
    if kind in _KEYED and (not isinstance(key, str) or len(key) > MAX_KEY):
        raise bad_json(f"A condition {kind} needs 'key', a string of at most {MAX_KEY} characters")
    if kind == "event_match":
        if not isinstance(condition.get("pattern"), str):
            raise bad_json("A condition event_match needs 'pattern', a string")
        _check_pattern(condition["pattern"])
    elif kind in {"event_property_is", "event_property_contains"}:
        if "value" not in condition or not is_simple(condition["value"]):
            raise bad_json(f"A condition {kind} needs 'value': a string, integer, boolean or null")
    elif kind == "room_member_count":
        comparison = condition.get("is")
        if not isinstance(comparison, str) or not is_valid_count(comparison):
            raise bad_json("A condition room_member_count needs 'is': an integer, after ==, <, >, <= or >=")


_KEYED = {"event_match", "event_property_is", "event_property_contains", "sender_notification_permission"}


# -- storing -----------------------------------------------------------------------------


def encode_rules(user_rules: UserPushRules) -> bytes:
    """Give the JSON document that is stored for a user."""
    return msgspec.json.encode(user_rules)


def decode_rules(document: bytes) -> UserPushRules:
    """Read a document that ``encode_rules`` made; raises ``msgspec.DecodeError`` on any other."""
    return msgspec.json.decode(document, type=UserPushRules)
