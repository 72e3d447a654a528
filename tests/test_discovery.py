"""What the server says of itself to clients."""

from __future__ import annotations

import pytest

from tests.account_server import CHEAP, OPEN, PASSWORD, account_server


async def test_versions_and_what_is_not_there(database: str) -> None:
    """Clients would refuse the server, or wait for an OAuth login that does not exist."""
    async with account_server(database) as server:
        versions = (await server.get("/versions")).body
        assert {"r0.6.1", "v1.1", "v1.11", "v1.19"} <= set(versions["versions"])
        answer = await server.get("/v1/auth_metadata")
        assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")


async def test_well_known_files(database: str) -> None:
    """People who type only the server's name could not log in, or find nobody to ask for help."""
    config = CHEAP + (
        "public_baseurl: https://matrix.example.org\n"
        "extra_well_known_client_content: {org.example.color: green}\n"
        "well_known_support: {support_page: 'https://example.org/help', "
        "contacts: [{role: m.role.admin, matrix_id: '@root:example.org'}]}\n"
    )
    async with account_server(database, config) as server:
        client = (await server.get("/.well-known/matrix/client")).body
        assert client == {
            "m.homeserver": {"base_url": "https://matrix.example.org/"},
            "org.example.color": "green",
        }
        assert (await server.get("/.well-known/matrix/support")).body == {
            "contacts": [{"role": "m.role.admin", "matrix_id": "@root:example.org"}],
            "support_page": "https://example.org/help",
        }
    async with account_server(database, CHEAP) as server:
        for name in ("client", "support"):
            answer = await server.get(f"/.well-known/matrix/{name}")
            assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("admin", [True, False])
async def test_capabilities_follow_the_configuration(database: str, admin: bool) -> None:
    """Clients would offer what is then refused, or hide what is possible."""
    config = OPEN + "enable_set_displayname: false\ndefault_room_version: '11'\nforget_rooms_on_leave: true\n"
    async with account_server(database, config) as server:
        await server.parts.registration.register("alice", PASSWORD, admin=admin)
        token = (await server.login("alice")).body["access_token"]
        found = (await server.get("/v3/capabilities", token)).body["capabilities"]
        assert found["m.room_versions"]["default"] == "11"
        assert found["m.room_versions"]["available"]["12"] == "stable"
        assert found["m.change_password"] == {"enabled": True}
        assert found["m.set_displayname"] == {"enabled": admin}
        assert found["m.set_avatar_url"] == {"enabled": True}
        assert found["m.profile_fields"].get("disallowed") == (None if admin else ["displayname"])
        assert found["m.forget_forced_upon_leave"] == {"enabled": True}
        assert found.get("m.account_moderation") == ({"suspend": True, "lock": True} if admin else None)
        assert (await server.get("/v3/capabilities")).errcode == "M_MISSING_TOKEN"


async def test_what_there_is_none_of(database: str) -> None:
    """Clients that ask on every start would show an error."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        assert (await server.get("/v3/voip/turnServer", token)).body == {}
        assert (await server.get("/v3/thirdparty/protocols", token)).body == {}
        assert (await server.get("/v3/account/3pid", token)).body == {"threepids": []}
