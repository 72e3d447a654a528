"""A request that every endpoint answers with 200, from which hostile ones are made.

Strings that begin with ``$`` stand for what ``Scene`` prepared (``$room_id``); the path's parameters are
filled by their names.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ranvier.http.route import Route, parameters
from tests.server.http_client import HttpClient

Json = Any

PASSWORD = "a long password"
AUTH = {
    "type": "m.login.password",
    "identifier": {"type": "m.id.user", "user": "$user_id"},
    "password": PASSWORD,
}
_SESSION_DATA = {"ephemeral": "e", "ciphertext": "c", "mac": "m"}
_BACKED_UP = {
    "first_message_index": 0,
    "forwarded_count": 0,
    "is_verified": True,
    "session_data": _SESSION_DATA,
}
_BACKUP = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "k"}}
_DEVICE_KEYS = {
    "user_id": "$user_id",
    "device_id": "$device_id",
    "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
    "keys": {"$key_id": "a"},
    "signatures": {"$user_id": {"$key_id": "s"}},
}
_MESSAGE = {
    "msgtype": "m.text",
    "body": "b",
    "m.mentions": {"user_ids": ["$target"], "room": True},
    "m.relates_to": {
        "rel_type": "m.thread",
        "event_id": "$event_id",
        "m.in_reply_to": {"event_id": "$event_id"},
    },
}
_ONE_TIME_KEY = {"key": "k", "signatures": {"$user_id": {"$key_id": "s"}}}
_RULE = {
    "actions": ["notify", {"set_tweak": "sound", "value": "default"}],
    "conditions": [
        {"kind": "event_match", "key": "content.body", "pattern": "x*"},
        {"kind": "room_member_count", "is": ">2"},
        {"kind": "event_property_is", "key": "content.a\\.b", "value": 1},
    ],
}
_EVENT_FILTER = {"limit": 5, "types": ["m.*"], "not_types": ["n"], "senders": ["$user_id"], "not_senders": []}
_FILTER = {
    "event_fields": ["content.body"],
    "event_format": "client",
    "presence": _EVENT_FILTER,
    "account_data": _EVENT_FILTER,
    "room": {
        "rooms": ["$room_id"],
        "not_rooms": [],
        "include_leave": True,
        "timeline": {**_EVENT_FILTER, "lazy_load_members": True, "contains_url": False},
        "state": {"lazy_load_members": True, "unread_thread_notifications": True},
        "ephemeral": {},
        "account_data": {},
    },
}
_MEMBER = {"user_id": "$stranger", "reason": "why"}
_CREATE = {
    "visibility": "private",
    "name": "n",
    "topic": "t",
    "invite": ["$stranger"],
    "room_version": "11",
    "creation_content": {"m.federate": False, "type": "m.space"},
    "initial_state": [
        {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "shared"}},
        {"type": "x.y", "content": {"a": 1}},
    ],
    "preset": "trusted_private_chat",
    "is_direct": True,
    "power_level_content_override": {
        "users_default": 1,
        "events": {"x.y": 5},
        "users": {"$stranger": 3, "$user_id": 100},
    },
}
_LOGIN = {
    "type": "m.login.password",
    "identifier": {"type": "m.id.user", "user": "$user_id"},
    "password": PASSWORD,
    "device_id": "NEW",
    "initial_device_display_name": "d",
    "refresh_token": True,
}
_REGISTER = {
    "username": "$new_name",
    "password": PASSWORD,
    "device_id": "D",
    "initial_device_display_name": "d",
    "inhibit_login": False,
    "refresh_token": True,
    "auth": {"type": "m.login.dummy"},
}

BODIES: dict[str, Json] = {
    "change_password": {"new_password": PASSWORD, "logout_devices": False, "auth": AUTH},
    "deactivate": {"auth": AUTH, "erase": True, "id_server": "x.y"},
    "put_account_data": {"a": {"b": [1]}},
    "put_room_account_data": {"a": {"b": [1]}},
    "set_suspended": {"suspended": True},
    "set_locked": {"locked": True},
    "put_alias": {"room_id": "$room_id"},
    "create_room": _CREATE,
    "put_device": {"display_name": "d"},
    "delete_device": {"auth": AUTH},
    "delete_devices": {"devices": ["$device_id"], "auth": AUTH},
    "put_visibility": {"visibility": "public"},
    "post_public_rooms": {
        "limit": 3,
        "filter": {"generic_search_term": "x", "room_types": [None, "m.space"]},
        "include_all_networks": False,
    },
    "post_filter": _FILTER,
    "create_version": _BACKUP,
    "put_version": {**_BACKUP, "version": "$version"},
    "put_all_keys": {"rooms": {"$room_id": {"sessions": {"s": _BACKED_UP}}}},
    "put_room_keys": {"sessions": {"s": _BACKED_UP}},
    "put_key": _BACKED_UP,
    "upload_keys": {
        "device_keys": _DEVICE_KEYS,
        "one_time_keys": {
            "signed_curve25519:A": {"key": "k", "signatures": {"$user_id": {"ed25519:X": "s"}}}
        },
        "fallback_keys": {"signed_curve25519:F": {"key": "k", "fallback": True, "signatures": {}}},
    },
    "query_keys": {"device_keys": {"$target": ["$device_id"]}, "timeout": 1000},
    "claim_keys": {"one_time_keys": {"$target": {"D": "signed_curve25519"}}, "timeout": 1000},
    "upload_cross_signing_keys": {
        "master_key": {
            "user_id": "$user_id",
            "usage": ["master"],
            "keys": {f"ed25519:{'A' * 43}": "A" * 43},
        },
        "auth": AUTH,
    },
    "upload_signatures": {"$user_id": {"$device_id": _DEVICE_KEYS}},
    "log_in": _LOGIN,
    "get_login_token": {"auth": AUTH},
    "refresh": {"refresh_token": "$refresh_token"},
    "join": {"reason": "r"},
    "join_room": {"reason": "r"},
    "knock": {"reason": "r"},
    "leave": {"reason": "r"},
    "forget": {},
    "invite": _MEMBER,
    "kick": _MEMBER,
    "ban": _MEMBER,
    "unban": _MEMBER,
    "search_users": {"search_term": "user", "limit": 5},
    "set_presence": {"presence": "online", "status_msg": "s"},
    "put_profile_field": {"displayname": "d"},
    "put_push_rule": _RULE,
    "put_push_rule_enabled": {"enabled": True},
    "put_push_rule_actions": {"actions": _RULE["actions"]},
    "send_receipt": {"thread_id": "main"},
    "set_read_markers": dict.fromkeys(("m.fully_read", "m.read", "m.read.private"), "$event_id"),
    "register": _REGISTER,
    "register_by_secret": {
        "nonce": "n",
        "username": "$new_name",
        "password": PASSWORD,
        "mac": "00",
        "admin": False,
        "user_type": None,
        "displayname": "d",
    },
    "upgrade_room": {"new_version": "11", "additional_creators": []},
    "send_event": _MESSAGE,
    "send_state": {"membership": "join", "displayname": "d", "avatar_url": "mxc://x/y"},
    "send_state_without_key": {"users": {"$target": 50}, "events": {"m.room.name": 50}, "ban": 50},
    "redact_event": {"reason": "r"},
    "put_tag": {"order": 0.5},
    "send_to_device": {"messages": {"$target": {"*": {"a": 1}}}},
    "set_typing": {"typing": True, "timeout": 1000},
}
"""By the route's name; endpoints that are not here take no body."""

QUERIES: dict[str, dict[str, str]] = {
    "sync": {"timeout": "0"},
    "events": {"timeout": "0", "from": "$since"},
    "initial_sync": {"limit": "3", "archived": "true"},
    "messages": {"dir": "b", "limit": "3"},
    "timestamp_to_event": {"ts": "0", "dir": "f"},
    "key_changes": {"from": "$since", "to": "$since"},
    "mutual_rooms": {"user_id": "$target"},
    "register_available": {"username": "$new_name"},
    "get_token_validity": {"token": "t"},
    "choose_provider": {"redirectUrl": "https://a.b/"},
    "redirect_to_provider": {"redirectUrl": "https://a.b/"},
    "come_back": {"state": "s", "code": "c"},
    "ask_name": {"state": "s"},
    "show_fallback": {"session": "s"},
    **{
        name: {"version": "$version"}
        for name in (
            "put_all_keys",
            "put_room_keys",
            "put_key",
            "get_all_keys",
            "get_room_keys",
            "get_key",
            "delete_keys",
            "delete_room_keys",
            "delete_key",
        )
    },
}

# What a path parameter is where its name alone does not say it.
_PARAMETERS: dict[str, dict[str, str]] = {
    "send_state": {"event_type": "m.room.member", "state_key": "$user_id"},
    "send_state_without_key": {"event_type": "m.room.power_levels"},
    "one_state_without_key": {"event_type": "m.room.create"},
    "one_state": {"event_type": "m.room.member", "state_key": "$user_id"},
    "knock": {"room_id": "$knock_room"},
    "put_alias": {"alias": "$new_alias"},
    "put_push_rule": {"rule_id": "another"},
    **{
        name: {"user_id": "$victim"}
        for name in ("get_suspended", "set_suspended", "get_locked", "set_locked")
    },
}

_RELATION = {"rel_type": "m.annotation", "event_id": "$event_id", "key": "+"}
SPECIAL: dict[str, Json] = {
    "m.room.create": {"room_version": "11", "creator": "$user_id", "additional_creators": ["$target"]},
    "m.room.join_rules": {
        "join_rule": "restricted",
        "allow": [{"type": "m.room_membership", "room_id": "$room_id"}],
    },
    "m.room.history_visibility": {"history_visibility": "joined"},
    "m.room.guest_access": {"guest_access": "can_join"},
    "m.room.name": {"name": "n"},
    "m.room.topic": {"topic": "t", "m.topic": {"m.text": [{"body": "t", "mimetype": "text/plain"}]}},
    "m.room.avatar": {"url": "mxc://x/y", "info": {"w": 1}},
    "m.room.canonical_alias": {"alias": "$alias", "alt_aliases": ["$alias"]},
    "m.room.aliases": {"aliases": ["$alias"]},
    "m.room.pinned_events": {"pinned": ["$event_id"]},
    "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": 1},
    "m.room.server_acl": {"allow": ["*"], "deny": ["x"], "allow_ip_literals": False},
    "m.room.third_party_invite": {
        "display_name": "d",
        "key_validity_url": "u",
        "public_key": "k",
        "public_keys": [{"public_key": "k", "key_validity_url": "u"}],
    },
    "m.space.child": {"via": ["x"], "order": "a", "suggested": True},
    "m.space.parent": {"via": ["x"], "canonical": True},
    "m.reaction": {"m.relates_to": _RELATION},
    "m.room.message": {**_MESSAGE, "m.new_content": {"body": "n"}},
    "m.room.encrypted": {
        "algorithm": "a",
        "m.relates_to": {"rel_type": "m.replace", "event_id": "$event_id"},
    },
    "m.room.redaction": {"redacts": "$event_id", "reason": "r"},
    "m.room.member": {
        "membership": "invite",
        "displayname": "d",
        "avatar_url": "mxc://x/y",
        "is_direct": True,
        "reason": "r",
        "join_authorised_via_users_server": "$user_id",
        "third_party_invite": {
            "display_name": "d",
            "signed": {"mxid": "$target", "token": "t", "signatures": {"x": {"ed25519:0": "s"}}},
        },
    },
    "m.room.tombstone": {"body": "b", "replacement_room": "$room_id"},
    "m.room.power_levels": {
        "users": {"$user_id": 100, "$target": 1},
        "users_default": 0,
        "events": {"x": 1},
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 0,
        "notifications": {"room": 50},
    },
}
"""Events that mean something to the server, those last after which nothing may be allowed any more."""

_numbers = itertools.count(1)


@dataclass
class Scene:
    """A user with one of everything, for one endpoint's requests.

    ``admin_token`` is that of an administrator, whose endpoints are about the value ``victim``: whoever
    makes a scene sets both where they are needed.
    """

    user: HttpClient
    values: dict[str, str] = field(default_factory=dict)
    admin_token: str = ""

    def filled(self, value: Json) -> Json:
        """Replace every ``$name`` in a value, also in an object's keys."""
        if isinstance(value, dict):
            return {self.filled(key): self.filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.filled(inner) for inner in value]
        if isinstance(value, str) and value.startswith("$"):
            if value.startswith("$new_"):
                self.values["new_name"] = f"new{next(_numbers)}"
                self.values["new_alias"] = f"#new{next(_numbers)}:{self.values['server_name']}"
            return self.values.get(value[1:], value)
        return value

    def parameters(self, route: Route) -> dict[str, str]:
        """Give what stands in the path of a route."""
        own = _PARAMETERS.get(route.name, {})
        return {
            name: self.filled(own[name]) if name in own else self.values[name]
            for name in parameters(route.paths[0])
        }

    def query(self, route: Route) -> dict[str, str]:
        """Give the query of a route's good request."""
        filled: dict[str, str] = self.filled(QUERIES.get(route.name, {}))
        return filled

    def body(self, route: Route) -> Json:
        """Give the body of a route's good request, or None."""
        return self.filled(BODIES.get(route.name))


async def prepare(user: HttpClient, *, server_name: str, target: HttpClient, stranger: HttpClient) -> Scene:
    """Make a new user and, in a room that ``target`` joins, one of everything that a path can name."""
    number = next(_numbers)
    answer = await user.post(
        "/v3/register",
        {
            "username": f"scene{number}",
            "password": PASSWORD,
            "refresh_token": True,
            "auth": {"type": "m.login.dummy"},
        },
    )
    user.token, user.user_id, user.device_id = (answer[k] for k in ("access_token", "user_id", "device_id"))
    room_id = await user.create_room(room_alias_name=f"scene{number}")
    await target.join(room_id)
    event_id = await user.send(room_id, "hello")
    knock_room = await target.create_room(
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]
    )
    me, room = f"/v3/user/{quote(user.user_id)}", quote(room_id)
    await user.put(f"{me}/account_data/x.y", {"a": 1})
    await user.put(f"{me}/rooms/{room}/account_data/x.y", {"a": 1})
    await user.put(f"{me}/rooms/{room}/tags/u.x", {"order": 0.5})
    await user.put(f"/v3/profile/{quote(user.user_id)}/displayname", {"displayname": "d"})
    await user.put("/v3/pushrules/global/override/mine", _RULE)
    scene = Scene(user)
    scene.values = {
        "server_name": server_name,
        "user_id": user.user_id,
        "device_id": user.device_id,
        "key_id": f"ed25519:{user.device_id}",
        "refresh_token": answer["refresh_token"],
        "target": target.user_id,
        "stranger": stranger.user_id,
        "room_id": room_id,
        "knock_room": knock_room,
        "event_id": event_id,
        "event_type": "m.room.message",
        "state_key": "",
        "txn_id": "txn",
        "alias": f"#scene{number}:{server_name}",
        "new_name": "",
        "new_alias": "",
        "type": "x.y",
        "tag": "u.x",
        "key": "displayname",
        "scope": "global",
        "kind": "override",
        "rule_id": "mine",
        "rel_type": "m.thread",
        "receipt_type": "m.read",
        "session_id": "s",
        "idp_id": "company",
        "auth_type": "m.login.sso",
        "filter_id": (await user.post(f"{me}/filter", {}))["filter_id"],
        "version": (await user.post("/v3/room_keys/version", _BACKUP))["version"],
        "since": (await user.sync())["next_batch"],
    }
    keys = {"rooms": {room_id: {"sessions": {"s": _BACKED_UP}}}}
    await user.request("PUT", "/v3/room_keys/keys", keys, version=scene.values["version"])
    return scene
