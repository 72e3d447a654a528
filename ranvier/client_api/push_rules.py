"""Push rules: reading and changing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Handler, Route, versions
from ranvier.spec import push_rule_edits as edits
from ranvier.spec.push_rules import UserPushRules
from ranvier.users.push_rules import PushRules, rules_content

V3 = versions("v3", "r0")
_MAX_BODY: Final = 64 * 1024


async def get_all_push_rules(request: Request, *, push_rules: PushRules) -> bytes:
    """Give every rule set, of which there is one."""
    user_id = request.user.user_id
    return rules_content((await push_rules.of(user_id)).rules, user_id)


async def get_global_push_rules(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Give every rule of the global set."""
    rules: dict[str, Any] = (await _rule_sets(request, push_rules))["global"]
    return rules


async def get_push_rules_of_kind(request: Request, *, push_rules: PushRules) -> list[Any]:
    """Give the rules of one kind."""
    kind = edits.check_kind(request.params["kind"])
    rules: list[Any] = (await _rule_sets(request, push_rules))["global"][kind]
    return rules


async def _rule_sets(request: Request, push_rules: PushRules) -> dict[str, Any]:
    edits.check_scope(request.params["scope"])
    user_id = request.user.user_id
    return edits.to_client((await push_rules.of(user_id)).rules, user_id)


async def get_push_rule(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Give one rule."""
    rules, kind, rule_id = await _one(request, push_rules)
    return edits.get_rule(rules, request.user.user_id, kind, rule_id)


async def get_push_rule_enabled(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Say whether a rule is enabled."""
    return {"enabled": edits.get_enabled(*await _one(request, push_rules))}


async def get_push_rule_actions(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Give the actions of a rule."""
    return {"actions": edits.get_actions(*await _one(request, push_rules))}


async def _one(request: Request, push_rules: PushRules) -> tuple[UserPushRules, str, str]:
    kind, rule_id = _named(request)
    return (await push_rules.of(request.user.user_id)).rules, kind, rule_id


def _named(request: Request) -> tuple[str, str]:
    """Give the kind and the id of the rule that a path names."""
    edits.check_scope(request.params["scope"])
    return request.params["kind"], request.params["rule_id"]


async def put_push_rule(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Make a rule, or change one."""
    body = request.json_object()
    before, after = request.str_param("before", None), request.str_param("after", None)
    return await _edit(
        request,
        push_rules,
        lambda rules, kind, rule_id: edits.put_rule(rules, kind, rule_id, body, before=before, after=after),
    )


async def delete_push_rule(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Remove a rule of one's own."""
    return await _edit(request, push_rules, edits.delete_rule)


async def put_push_rule_enabled(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Enable or disable a rule."""
    body = request.json_object()
    return await _edit(
        request, push_rules, lambda rules, kind, rule_id: edits.set_enabled(rules, kind, rule_id, body)
    )


async def put_push_rule_actions(request: Request, *, push_rules: PushRules) -> dict[str, Any]:
    """Change what a rule does."""
    body = request.json_object()
    return await _edit(
        request, push_rules, lambda rules, kind, rule_id: edits.set_actions(rules, kind, rule_id, body)
    )


async def _edit(
    request: Request, push_rules: PushRules, change: Callable[[UserPushRules, str, str], UserPushRules]
) -> dict[str, Any]:
    kind, rule_id = _named(request)
    await push_rules.edit(request.user.user_id, lambda rules: change(rules, kind, rule_id))
    return {}


def _route(method: str, path: str, handler: Handler) -> Route:
    """Declare an endpoint with and without the slash at the end: clients use both."""
    path = f"/pushrules{path}"
    return Route(method, V3(path) + V3(f"{path}/"), handler, placed_by=PLACED_BY_USER, max_body=_MAX_BODY)


_RULE = "/{scope}/{kind}/{rule_id}"

ROUTES = [
    _route("GET", "", get_all_push_rules),
    _route("GET", "/{scope}", get_global_push_rules),
    _route("GET", "/{scope}/{kind}", get_push_rules_of_kind),
    _route("GET", _RULE, get_push_rule),
    _route("PUT", _RULE, put_push_rule),
    _route("DELETE", _RULE, delete_push_rule),
    _route("GET", f"{_RULE}/enabled", get_push_rule_enabled),
    _route("PUT", f"{_RULE}/enabled", put_push_rule_enabled),
    _route("GET", f"{_RULE}/actions", get_push_rule_actions),
    _route("PUT", f"{_RULE}/actions", put_push_rule_actions),
]
