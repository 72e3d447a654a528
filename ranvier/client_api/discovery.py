"""What the server is and can do: versions, well-known files, capabilities."""

from __future__ import annotations

from typing import Any

from ranvier.config import Config
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.spec.errors import MatrixError, not_found
from ranvier.spec.room_versions import ROOM_VERSIONS

V3 = versions("v3", "r0")
V1 = versions("v1", "unstable")

SPEC_VERSIONS = [
    *(f"r0.{minor}.{patch}" for minor, patch in ((0, 1), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0))),
    *("r0.6.0", "r0.6.1"),
    *(f"v1.{minor}" for minor in range(1, 20)),
]


async def get_versions(request: Request) -> dict[str, Any]:
    """Say which versions of the specification hold. Source: client-server API, ``GET /versions``."""
    return {"versions": SPEC_VERSIONS, "unstable_features": {}}


def well_known_client(config: Config) -> dict[str, Any] | None:
    """Give what clients need to find the server, None where its address is not configured."""
    if config.server.public_baseurl is None:
        return None
    homeserver = {"m.homeserver": {"base_url": config.server.public_baseurl}}
    return {**homeserver, **config.server.extra_well_known_client_content}


async def get_well_known_client(request: Request, *, config: Config) -> dict[str, Any]:
    """Say where the server is. Source: client-server API, "Well-known URIs"."""
    content = well_known_client(config)
    if content is None:
        raise not_found("This server does not say where it is")
    return content


async def get_well_known_support(request: Request, *, config: Config) -> dict[str, Any]:
    """Say whom to ask for help. Source: client-server API, ``GET /.well-known/matrix/support``."""
    support = config.server.support
    contacts = [
        {
            key: value
            for key, value in (
                ("role", contact.role),
                ("matrix_id", contact.matrix_id),
                ("email_address", contact.email_address),
            )
            if value is not None
        }
        for contact in support.contacts
    ]
    content: dict[str, Any] = {"contacts": contacts} if contacts else {}
    if support.support_page is not None:
        content["support_page"] = support.support_page
    if not content:
        raise not_found("This server names no contacts")
    return content


async def get_capabilities(request: Request, *, config: Config) -> dict[str, Any]:
    """Say what the user may do. Source: client-server API, "Capabilities negotiation"."""
    registration, passwords, admin = config.registration, config.passwords, request.user.is_admin
    locked_fields = [
        field
        for field, allowed in (
            ("displayname", registration.enable_set_displayname),
            ("avatar_url", registration.enable_set_avatar_url),
        )
        if not (allowed or admin)
    ]
    profile_fields: dict[str, Any] = {"enabled": True}
    if locked_fields:
        profile_fields["disallowed"] = locked_fields
    capabilities: dict[str, Any] = {
        "m.room_versions": {
            "default": config.rooms.default_room_version,
            "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
        },
        "m.change_password": {"enabled": passwords.enabled_for_reauth},
        "m.set_displayname": {"enabled": "displayname" not in locked_fields},
        "m.set_avatar_url": {"enabled": "avatar_url" not in locked_fields},
        "m.profile_fields": profile_fields,
        "m.3pid_changes": {"enabled": False},
        "m.get_login_token": {"enabled": config.users_can_confirm},
        "m.forget_forced_upon_leave": {"enabled": config.rooms.forget_rooms_on_leave},
    }
    if admin:
        capabilities["m.account_moderation"] = {"suspend": True, "lock": True}
    return {"capabilities": capabilities}


async def get_auth_metadata(request: Request) -> dict[str, Any]:
    """Say that there is no OAuth 2.0 here, so that clients use the other API."""
    raise MatrixError("M_UNRECOGNIZED", 404, "This server has no OAuth 2.0 API")


async def get_turn_server(request: Request) -> dict[str, Any]:
    """Give no TURN server: none is configured. Source: client-server API, ``GET /voip/turnServer``."""
    return {}


async def get_protocols(request: Request) -> dict[str, Any]:
    """Give the third-party networks that one can reach: none. Source: ``GET /thirdparty/protocols``."""
    return {}


ROUTES = [
    Route("GET", "/_matrix/client/versions", get_versions, auth=Auth.NONE),
    Route("GET", "/.well-known/matrix/client", get_well_known_client, auth=Auth.NONE),
    Route("GET", "/.well-known/matrix/support", get_well_known_support, auth=Auth.NONE),
    Route("GET", V3("/capabilities"), get_capabilities, auth=Auth.GUEST),
    Route("GET", V1("/auth_metadata"), get_auth_metadata, auth=Auth.NONE),
    Route("GET", V3("/voip/turnServer"), get_turn_server),
    Route("GET", V3("/thirdparty/protocols"), get_protocols, auth=Auth.GUEST),
]
