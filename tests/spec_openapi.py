"""What the specification's OpenAPI files name, as a compact table, and which of it Ranvier serves.

``python -m tests.spec_openapi`` writes the coverage table of the documentation anew.
Source: client-server API v1.19 (names of paths, query parameters and top-level fields of bodies only).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ranvier.http.route import BoundRoute, Route
from ranvier.http.router import Router
from ranvier.spec.errors import MatrixError

DOCUMENT = Path(__file__).parent.parent / "docs" / "client-server-api.md"

# One operation a line: method, path, ``?`` query parameters, ``{`` fields of the body. A name without a type
# is a string; an indented line continues the one before. ``#`` opens a module of the specification.
_TABLE = """
# Server discovery & support
GET /.well-known/matrix/client
GET /.well-known/matrix/support
GET /.well-known/matrix/policy_server
GET /_matrix/client/versions
GET /_matrix/client/v3/capabilities
# Legacy login & sessions
GET /_matrix/client/v3/login
POST /_matrix/client/v3/login { type identifier:object user medium address password token device_id
    initial_device_display_name refresh_token:bool
POST /_matrix/client/v1/login/get_token { auth:object
POST /_matrix/client/v3/refresh { refresh_token
POST /_matrix/client/v3/logout
POST /_matrix/client/v3/logout/all
GET /_matrix/client/v3/login/sso/redirect ? redirectUrl action
GET /_matrix/client/v3/login/sso/redirect/{idpId} ? redirectUrl action
# OAuth 2.0 API discovery
GET /_matrix/client/v1/auth_metadata
# Account registration & management
POST /_matrix/client/v3/register ? kind { auth:object username password device_id
    initial_device_display_name inhibit_login:bool refresh_token:bool
POST /_matrix/client/v3/register/email/requestToken { client_secret email send_attempt:int next_link
    id_server id_access_token
POST /_matrix/client/v3/register/msisdn/requestToken { client_secret country phone_number
    send_attempt:int next_link id_server id_access_token
GET /_matrix/client/v3/register/available ? username
GET /_matrix/client/v1/register/m.login.registration_token/validity ? token
POST /_matrix/client/v3/account/password { new_password logout_devices:bool auth:object
POST /_matrix/client/v3/account/password/email/requestToken { client_secret email send_attempt:int
    next_link id_server id_access_token
POST /_matrix/client/v3/account/password/msisdn/requestToken { client_secret country phone_number
    send_attempt:int next_link id_server id_access_token
POST /_matrix/client/v3/account/deactivate { auth:object id_server erase:bool
GET /_matrix/client/v3/account/whoami
# Administrative contact (3PID)
GET /_matrix/client/v3/account/3pid
POST /_matrix/client/v3/account/3pid { three_pid_creds:object
POST /_matrix/client/v3/account/3pid/add { auth:object client_secret sid
POST /_matrix/client/v3/account/3pid/bind { client_secret id_server id_access_token sid
POST /_matrix/client/v3/account/3pid/delete { id_server medium address
POST /_matrix/client/v3/account/3pid/unbind { id_server medium address
POST /_matrix/client/v3/account/3pid/email/requestToken { client_secret email send_attempt:int next_link
    id_server id_access_token
POST /_matrix/client/v3/account/3pid/msisdn/requestToken { client_secret country phone_number
    send_attempt:int next_link id_server id_access_token
# Filtering
POST /_matrix/client/v3/user/{userId}/filter { event_fields:list event_format presence:object
    account_data:object room:object
GET /_matrix/client/v3/user/{userId}/filter/{filterId}
# Syncing
GET /_matrix/client/v3/sync ? filter since full_state:bool set_presence timeout:int use_state_after:bool
GET /_matrix/client/v3/events ? from timeout:int
GET /_matrix/client/v3/initialSync ? limit:int archived:bool
GET /_matrix/client/v3/events/{eventId}
GET /_matrix/client/v3/events ? from timeout:int room_id
# Getting events & state for a room
GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}
GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey} ? format
GET /_matrix/client/v3/rooms/{roomId}/state
GET /_matrix/client/v3/rooms/{roomId}/members ? at membership not_membership
GET /_matrix/client/v3/rooms/{roomId}/joined_members
GET /_matrix/client/v3/rooms/{roomId}/messages ? from to dir limit:int filter
GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event ? ts:int dir
GET /_matrix/client/v3/rooms/{roomId}/initialSync
# Sending events & redactions
PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}
PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}
PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId} { reason
# Relationships / threads
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId} ? from to limit:int dir recurse:bool
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType} ? from to limit:int dir recurse:bool
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType} ? from to limit:int dir
    recurse:bool
GET /_matrix/client/v1/rooms/{roomId}/threads ? include limit:int from
# Room creation & aliases
POST /_matrix/client/v3/createRoom { visibility room_alias_name name topic invite:list invite_3pid:list
    room_version creation_content:object initial_state:list preset is_direct:bool
    power_level_content_override:object
PUT /_matrix/client/v3/directory/room/{roomAlias} { room_id
GET /_matrix/client/v3/directory/room/{roomAlias}
DELETE /_matrix/client/v3/directory/room/{roomAlias}
GET /_matrix/client/v3/rooms/{roomId}/aliases
# Room membership
GET /_matrix/client/v3/joined_rooms
POST /_matrix/client/v3/rooms/{roomId}/invite { user_id reason
POST /_matrix/client/v3/rooms/{roomId}/invite { id_server id_access_token medium address
POST /_matrix/client/v3/rooms/{roomId}/join { third_party_signed:object reason
POST /_matrix/client/v3/join/{roomIdOrAlias} ? via:list { third_party_signed:object reason
POST /_matrix/client/v3/knock/{roomIdOrAlias} ? via:list { reason
POST /_matrix/client/v3/rooms/{roomId}/leave { reason
POST /_matrix/client/v3/rooms/{roomId}/forget
POST /_matrix/client/v3/rooms/{roomId}/kick { user_id reason
POST /_matrix/client/v3/rooms/{roomId}/ban { user_id reason
POST /_matrix/client/v3/rooms/{roomId}/unban { user_id reason
# Room discovery
GET /_matrix/client/v3/directory/list/room/{roomId}
PUT /_matrix/client/v3/directory/list/room/{roomId} { visibility
GET /_matrix/client/v3/publicRooms ? limit:int since server
POST /_matrix/client/v3/publicRooms ? server { limit:int since filter:object include_all_networks:bool
    third_party_instance_id
GET /_matrix/client/v1/room_summary/{roomIdOrAlias} ? via:list
GET /_matrix/client/v1/rooms/{roomId}/hierarchy ? suggested_only:bool limit:int max_depth:int from
GET /_matrix/client/v1/mutual_rooms ? user_id from
POST /_matrix/client/v3/rooms/{roomId}/upgrade { new_version additional_creators:list
# User data: directory, profile
POST /_matrix/client/v3/user_directory/search { search_term limit:int
PUT /_matrix/client/v3/profile/{userId}/{keyName}
GET /_matrix/client/v3/profile/{userId}/{keyName}
DELETE /_matrix/client/v3/profile/{userId}/{keyName}
GET /_matrix/client/v3/profile/{userId}
# Typing / receipts / markers / presence
PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId} { typing:bool timeout:int
POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId} { thread_id
POST /_matrix/client/v3/rooms/{roomId}/read_markers { m.fully_read m.read m.read.private
PUT /_matrix/client/v3/presence/{userId}/status { presence status_msg
GET /_matrix/client/v3/presence/{userId}/status
# Content repository
GET /_matrix/client/v1/media/download/{serverName}/{mediaId} ? timeout_ms:int
GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName} ? timeout_ms:int
GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId} ? width:int height:int method
    timeout_ms:int animated:bool
GET /_matrix/client/v1/media/preview_url ? url ts:int
GET /_matrix/client/v1/media/config
POST /_matrix/media/v3/upload ? filename
PUT /_matrix/media/v3/upload/{serverName}/{mediaId} ? filename
POST /_matrix/media/v1/create
GET /_matrix/media/v3/download/{serverName}/{mediaId} ? allow_remote:bool timeout_ms:int
    allow_redirect:bool
GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName} ? allow_remote:bool timeout_ms:int
    allow_redirect:bool
GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId} ? width:int height:int method allow_remote:bool
    timeout_ms:int allow_redirect:bool animated:bool
GET /_matrix/media/v3/preview_url ? url ts:int
GET /_matrix/media/v3/config
# Send-to-device
PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId} { messages:object
# Device management
GET /_matrix/client/v3/devices
GET /_matrix/client/v3/devices/{deviceId}
PUT /_matrix/client/v3/devices/{deviceId} { display_name
DELETE /_matrix/client/v3/devices/{deviceId} { auth:object
POST /_matrix/client/v3/delete_devices { devices:list auth:object
# E2EE keys & cross-signing
POST /_matrix/client/v3/keys/upload { device_keys:object one_time_keys:object fallback_keys:object
POST /_matrix/client/v3/keys/query { timeout:int device_keys:object
POST /_matrix/client/v3/keys/claim { timeout:int one_time_keys:object
GET /_matrix/client/v3/keys/changes ? from to
POST /_matrix/client/v3/keys/device_signing/upload { master_key:object self_signing_key:object
    user_signing_key:object auth:object
POST /_matrix/client/v3/keys/signatures/upload
# E2EE key backup
POST /_matrix/client/v3/room_keys/version { algorithm auth_data:object
GET /_matrix/client/v3/room_keys/version
GET /_matrix/client/v3/room_keys/version/{version}
PUT /_matrix/client/v3/room_keys/version/{version} { algorithm auth_data:object version
DELETE /_matrix/client/v3/room_keys/version/{version}
PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId} ? version { first_message_index:int
    forwarded_count:int is_verified:bool session_data:object
GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId} ? version
DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId} ? version
PUT /_matrix/client/v3/room_keys/keys/{roomId} ? version { sessions:object
GET /_matrix/client/v3/room_keys/keys/{roomId} ? version
DELETE /_matrix/client/v3/room_keys/keys/{roomId} ? version
PUT /_matrix/client/v3/room_keys/keys ? version { rooms:object
GET /_matrix/client/v3/room_keys/keys ? version
DELETE /_matrix/client/v3/room_keys/keys ? version
# Push
GET /_matrix/client/v3/pushers
POST /_matrix/client/v3/pushers/set { pushkey kind app_id app_display_name device_display_name
    profile_tag lang data:object append:bool
GET /_matrix/client/v3/pushrules/
GET /_matrix/client/v3/pushrules/global/
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId} ? before after { actions:list conditions:list
    pattern
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled { enabled:bool
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions { actions:list
GET /_matrix/client/v3/notifications ? from limit:int only
# Client config: account data, tags
PUT /_matrix/client/v3/user/{userId}/account_data/{type}
GET /_matrix/client/v3/user/{userId}/account_data/{type}
PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags
PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag} { order:int
DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}
# Server administration
GET /_matrix/client/v3/admin/whois/{userId}
GET /_matrix/client/v1/admin/suspend/{userId}
PUT /_matrix/client/v1/admin/suspend/{userId} { suspended:bool
GET /_matrix/client/v1/admin/lock/{userId}
PUT /_matrix/client/v1/admin/lock/{userId} { locked:bool
# Reporting content
POST /_matrix/client/v3/rooms/{roomId}/report { reason
POST /_matrix/client/v3/rooms/{roomId}/report/{eventId} { reason
POST /_matrix/client/v3/users/{userId}/report { reason
# Search & context
POST /_matrix/client/v3/search ? next_batch { search_categories:object
GET /_matrix/client/v3/rooms/{roomId}/context/{eventId} ? limit:int filter
# VoIP / OpenID
GET /_matrix/client/v3/voip/turnServer
POST /_matrix/client/v3/user/{userId}/openid/request_token
# Third-party networks
GET /_matrix/client/v3/thirdparty/protocols
GET /_matrix/client/v3/thirdparty/protocol/{protocol}
GET /_matrix/client/v3/thirdparty/location/{protocol} ? fields:object
GET /_matrix/client/v3/thirdparty/user/{protocol} ? fields:object
GET /_matrix/client/v3/thirdparty/location ? alias
GET /_matrix/client/v3/thirdparty/user ? userid
# AS extensions in the CS API
POST /_matrix/client/v1/appservice/{appserviceId}/ping { transaction_id
PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId} { visibility
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """Name one operation; ``query`` and ``body`` map names to their types (``string``, ``int``, ...)."""

    module: str
    method: str
    path: str
    query: Mapping[str, str]
    body: Mapping[str, str]


def operations() -> Iterator[Operation]:
    """Give every operation of the client-server API, in the order of the specification's modules."""
    module = ""
    for line in re.sub(r"\n {4}", " ", _TABLE.strip()).splitlines():
        if line.startswith("#"):
            module = line.removeprefix("# ")
            continue
        head, _, body = line.partition(" {")
        head, _, query = head.partition(" ?")
        method, _, path = head.partition(" ")
        yield Operation(module, method, path, _fields(query), _fields(body))


def _fields(text: str) -> dict[str, str]:
    pairs = (field.partition(":") for field in text.split())
    return {name: kind or "string" for name, _, kind in pairs}


async def _unused() -> None:
    """Stand for a handler that is never run."""


def serving(routes: Iterable[Route]) -> dict[tuple[str, str], Route | None]:
    """Map each operation's method and path to the route that answers it, or None."""
    router = Router([BoundRoute(route, _unused) for route in routes])
    return {(op.method, op.path): _route_of(router, op) for op in operations()}


def _route_of(router: Router, operation: Operation) -> Route | None:
    try:
        return router.find(operation.method, re.sub(r"\{[^}]*\}", "x", operation.path)).bound.route
    except MatrixError:
        return None


def coverage_document(routes: Iterable[Route]) -> str:
    """Write the coverage table in Markdown."""
    served = serving(routes)
    known = list(operations())
    count = sum(served[op.method, op.path] is not None for op in known)
    lines = [
        "# The client-server API: what Ranvier serves",
        "",
        f"{count} of the {len(known)} operations of the specification (v1.19). Derived from the routes "
        "(`python -m tests.spec_openapi`); a test keeps it true.",
        "",
        "*Who*: `user` needs the access token of a registered user, `guest` takes guests too, `locked` "
        "locked accounts too, `optional` looks at a token where there is one, `none` asks for none, `admin` "
        "needs a server administrator. *Also at*: older or unstable paths of the same endpoint.",
    ]
    module = ""
    for op in known:
        if op.module != module:
            module = op.module
            of_module = [other for other in known if other.module == module]
            there = sum(served[other.method, other.path] is not None for other in of_module)
            lines += ["", f"## {module} ({there} of {len(of_module)})", ""]
            lines += [
                "| operation | served | who | rate limit | also at |",
                "| --- | --- | --- | --- | --- |",
            ]
        lines.append(_row(op, served[op.method, op.path]))
    return "\n".join(lines) + "\n"


def _row(operation: Operation, route: Route | None) -> str:
    start = f"| {operation.method} `{operation.path}` |"
    if route is None:
        return f"{start} no | | | |"
    also = sorted({match[1] for path in route.paths[1:] if (match := _VERSION.match(path))})
    return f"{start} yes | {route.auth.value} | {route.limit or ''} | {', '.join(also)} |"


_VERSION = re.compile(r"/_matrix/client/([^/]+)/")


def _main() -> None:
    # Not at the top: the other tests need the table without the whole server.
    from ranvier.processes.application import client_routes  # noqa: PLC0415

    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(coverage_document(client_routes()))


if __name__ == "__main__":
    _main()
