"""Identifiers: their grammar, their limits and their parts. At run time they are plain strings.

What we make is held to the strict grammar, what others made to the historical one, because a user
or a room that is refused by us alone splits a room.
Source: appendices, "Identifier Grammar".
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Any, TypeGuard

from ranvier.spec.errors import MatrixError, invalid_param

MAX_ID_BYTES = 255
"""Limit of a user ID, room ID, alias, event ID, event type and state key, in bytes of UTF-8."""

_HOSTNAME = r"(?:\[([0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z.-]{1,255})"
_SERVER_NAME = re.compile(_HOSTNAME + r"(?::[0-9]{1,5})?")
# "any legal non-surrogate Unicode code points except for `:` and NUL"
_LOCALPART = "[^:\0\ud800-\udfff]"
_USER_LOCALPART = re.compile(f"@{_LOCALPART}*")
_ROOM_LOCALPART = re.compile(f"!{_LOCALPART}+")
_ALIAS_LOCALPART = re.compile(f"#{_LOCALPART}+")
_HASH_ROOM_ID = re.compile(r"![0-9A-Za-z_-]{43}")
_EVENT_ID = re.compile("\\$[^\0\ud800-\udfff]+")
_NEW_LOCALPART = re.compile(r"[a-z0-9._=\-/+]+")
_OPAQUE_ID = re.compile(r"[0-9A-Za-z\-._~]{1,255}")
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")


def domain_of(identifier: str) -> str:
    """Give the server name in an id, or raise 400 ``M_INVALID_PARAM`` for an id that has none."""
    _, colon, domain = identifier.partition(":")
    if not colon:
        raise invalid_param("This ID has no server name")
    return domain


def localpart_of(identifier: str) -> str:
    """Give what stands between the sigil and the server name (all of it in an id without one)."""
    return identifier[1:].partition(":")[0]


def fits(text: str, limit: int = MAX_ID_BYTES) -> bool:
    """Say whether ``text`` is at most ``limit`` bytes of UTF-8."""
    # The specification once left open whether 255 meant bytes or code points; it is bytes.
    return len(text) <= limit and (text.isascii() or len(text.encode("utf-8", "surrogatepass")) <= limit)


def is_server_name(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a server name: host name, IPv4 or bracketed IPv6 address, perhaps a port."""
    if not isinstance(value, str):
        return False
    match = _SERVER_NAME.fullmatch(value)
    if match is None:
        return False
    if match[1] is None:
        return not value[0].isdigit() or _is_ipv4_or_name(value)
    try:
        IPv6Address(match[1])
    except AddressValueError:
        return False
    return True


def _is_ipv4_or_name(server_name: str) -> bool:
    # "IPv4 literals must be a sequence of four decimal numbers in the range 0 to 255"
    host = server_name.partition(":")[0]
    return _IPV4.fullmatch(host) is None or all(int(number) <= 255 for number in host.split("."))


def is_user_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a user ID, be it a historical one."""
    return _has_domain(value, _USER_LOCALPART)


def is_compliant_user_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a user ID that may be shown to clients outside of events.

    "User IDs with localparts containing characters outside the range U+0021 to U+007E, or with an
    empty localpart, are considered non-compliant … servers SHOULD NOT forward such user IDs".
    """
    if not is_user_id(value):
        return False
    localpart = localpart_of(value)
    return localpart != "" and all("\x21" <= character <= "\x7e" for character in localpart)


def is_room_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a room ID, with a server name or (room version 12) as a hash."""
    if isinstance(value, str) and _HASH_ROOM_ID.fullmatch(value) is not None:
        return True
    return _has_domain(value, _ROOM_LOCALPART)


def is_hash_room_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a room ID of room version 12: ``!`` and the hash of the create event."""
    return isinstance(value, str) and _HASH_ROOM_ID.fullmatch(value) is not None


def is_room_alias(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` is a room alias."""
    return _has_domain(value, _ALIAS_LOCALPART)


def is_event_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` may be an event ID of some room version; what follows ``$`` is opaque."""
    return isinstance(value, str) and fits(value) and _EVENT_ID.fullmatch(value) is not None


def is_opaque_id(value: Any) -> TypeGuard[str]:
    """Say whether ``value`` follows the "Opaque Identifier Grammar" (1 to 255 characters)."""
    return isinstance(value, str) and _OPAQUE_ID.fullmatch(value) is not None


def _has_domain(value: Any, localpart: re.Pattern[str]) -> TypeGuard[str]:
    if not isinstance(value, str) or not fits(value):
        return False
    local, colon, domain = value.partition(":")
    return bool(colon) and localpart.fullmatch(local) is not None and is_server_name(domain)


def check_server_name(value: Any) -> str:
    """Give ``value`` back if it is a server name, or raise 400 ``M_INVALID_PARAM``."""
    if not is_server_name(value):
        raise invalid_param("This is not a server name")
    return value


def check_user_id(value: Any) -> str:
    """Give ``value`` back if it is a user ID, or raise 400 ``M_INVALID_PARAM``."""
    if not is_user_id(value):
        raise invalid_param("This is not a user ID (@localpart:server.name, at most 255 bytes)")
    return value


def check_room_id(value: Any) -> str:
    """Give ``value`` back if it is a room ID, or raise 400 ``M_INVALID_PARAM``."""
    if not is_room_id(value):
        raise invalid_param("This is not a room ID (at most 255 bytes, beginning with !)")
    return value


def check_room_alias(value: Any) -> str:
    """Give ``value`` back if it is a room alias, or raise 400 ``M_INVALID_PARAM``."""
    if not is_room_alias(value):
        raise invalid_param("This is not a room alias (#name:server.name, at most 255 bytes)")
    return value


def check_event_id(value: Any) -> str:
    """Give ``value`` back if it may be an event ID, or raise 400 ``M_INVALID_PARAM``."""
    if not is_event_id(value):
        raise invalid_param("This is not an event ID (at most 255 bytes, beginning with $)")
    return value


def check_event_type(value: Any) -> str:
    """Give ``value`` back if it is a string of at most 255 bytes, or raise 400 ``M_INVALID_PARAM``."""
    if not isinstance(value, str) or not fits(value):
        raise invalid_param(f"An event type is a string of at most {MAX_ID_BYTES} bytes")
    return value


def check_state_key(value: Any) -> str:
    """Give ``value`` back if it is a string of at most 255 bytes, or raise 400 ``M_INVALID_PARAM``."""
    if not isinstance(value, str) or not fits(value):
        raise invalid_param(f"A state key is a string of at most {MAX_ID_BYTES} bytes")
    return value


def check_new_localpart(localpart: Any, server_name: str) -> str:
    """Give back a localpart that a new user of ours may have, or raise 400 ``M_INVALID_USERNAME``."""
    if not isinstance(localpart, str) or _NEW_LOCALPART.fullmatch(localpart) is None:
        raise MatrixError(
            "M_INVALID_USERNAME", 400, "A user name consists of the characters a-z, 0-9, and ._=-/+"
        )
    if not fits(f"@{localpart}:{server_name}"):
        raise MatrixError("M_INVALID_USERNAME", 400, f"The user ID would be longer than {MAX_ID_BYTES} bytes")
    return localpart


def new_room_id(server_name: str, random_text: str) -> str:
    """Make a room ID for room versions 1 to 11 of random letters and digits."""
    return f"!{random_text}:{server_name}"


def room_id_of_create(event_id: str) -> str:
    """Make the room ID of a room version 12 room: its create event's ID with the sigil ``!``."""
    return "!" + event_id[1:]


def new_event_id(server_name: str, random_text: str) -> str:
    """Make an event ID for room versions 1 and 2 of random letters and digits."""
    return f"${random_text}:{server_name}"
