"""Accounts: passwords, deactivation, locking, suspension, OpenID, through the client API."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ranvier.log.bus import LocalBus
from ranvier.log.standstill import Standstill
from ranvier.processes.register_user import register_user
from ranvier.spec.errors import MatrixError
from ranvier.users.last_seen import LastSeen
from tests.account_server import CHEAP, OPEN, PASSWORD, AccountServer, account_server, read_config
from tests.postgres import private_folder
from tests.test_standstill import Now

ALICE, ROOT = "@alice:example.org", "@root:example.org"


async def confirmed(server: AccountServer, path: str, token: str, body: dict[str, Any]) -> Any:
    """Make a request that needs the password, and give it."""
    asked = await server.post(path, body, token)
    assert asked.status == 401, asked
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
        "session": asked.body["session"],
    }
    return await server.post(path, {**body, "auth": auth}, token)


@pytest.mark.parametrize("logout_devices", [True, False, None])
async def test_a_new_password_replaces_the_old_one(database: str, logout_devices: bool | None) -> None:
    """Whoever stole a password would keep the account, or one's other devices would be logged out unasked."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        other = (await server.login("alice")).body["access_token"]
        body: dict[str, Any] = {"new_password": "battery staple"}
        if logout_devices is not None:
            body["logout_devices"] = logout_devices
        assert (await confirmed(server, "/v3/account/password", token, body)).body == {}
        assert (await server.login("alice")).status == 403
        assert (await server.login("alice", "battery staple")).status == 200
        assert (await server.whoami(token)).status == 200
        assert (await server.whoami(other)).status == (200 if logout_devices is False else 401)


@pytest.mark.parametrize("was_set", [False, True])
async def test_a_password_is_set_late_with_all_that_belongs_to_it_or_not_at_all(
    database: str, monkeypatch: pytest.MonkeyPatch, was_set: bool
) -> None:
    """Whoever changed a stolen password would be told to try again, and the thief would stay logged in.

    Or a worker that stood still would set it again over a newer one.
    """
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        thief = (await server.login("alice")).body["access_token"]
        now = Now()
        server.core.appender.standstill = Standstill(lambda: server.core.tail.pos, now.clock)
        owner, name = (server.parts.sessions, "end_others") if was_set else (server.parts.passwords, "hash")
        work = getattr(owner, name)

        async def stand_still(value: Any) -> Any:
            now.forward_s = 10.0
            return await work(value)

        monkeypatch.setattr(owner, name, stand_still)
        answer = await confirmed(server, "/v3/account/password", token, {"new_password": "battery staple"})
        server.core.appender.standstill = None
        assert answer.status == (200 if was_set else 503)
        assert (await server.whoami(thief)).status == (401 if was_set else 200)
        assert (await server.login("alice", "battery staple")).status == (200 if was_set else 403)


async def test_of_two_new_passwords_at_once_one_is_set(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who was told that their password is changed could not log in with it.

    And a thief who knows the old one would set it over the new one.
    """
    bus = LocalBus()
    async with account_server(database, bus=bus) as one, account_server(database, bus=bus) as two:
        token = (await one.register("alice"))["access_token"]
        passwords, hash_password = one.parts.passwords, one.parts.passwords.hash
        path, faster = "/v3/account/password", {"new_password": "battery staple"}

        async def overtaken(password: str) -> str:
            assert (await confirmed(two, path, token, faster)).status == 200
            return await hash_password(password)

        monkeypatch.setattr(passwords, "hash", overtaken)
        answer = await confirmed(one, path, token, {"new_password": "the slower one"})
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
        assert (await two.login("alice", "the slower one")).status == 403
        assert (await two.login("alice", "battery staple")).status == 200


@pytest.mark.parametrize("path", ["/v3/account/password", "/v3/logout/all"])
async def test_a_login_token_ends_with_the_sessions(database: str, path: str) -> None:
    """Who knew the old password could be back a minute after all devices were logged out."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        login_token, _ = await server.parts.login.make_token(ALICE)
        if path == "/v3/logout/all":
            assert (await server.post(path, {}, token)).status == 200
        else:
            body = {"new_password": "battery staple"}
            assert (await confirmed(server, path, token, body)).status == 200
        answer = await server.post("/v3/login", {"type": "m.login.token", "token": login_token})
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("has_password", [True, False])
async def test_a_login_token_is_used_while_the_password_changes(
    database: str, monkeypatch: pytest.MonkeyPatch, has_password: bool
) -> None:
    """Whoever was let in by a code would stay when all others are logged out, or could still use it then."""
    async with account_server(database) as server:
        await server.parts.registration.register("alice", PASSWORD if has_password else None)
        devices, ensure = server.parts.devices, server.parts.devices.ensure
        used, unused, other = [(await server.parts.login.make_token(ALICE))[0] for _ in range(3)]

        async def overtaken(*args: Any) -> str:
            device_id = await ensure(*args)
            await server.parts.accounts.set_password(ALICE, "battery staple")
            return device_id

        async def log_in(token: str) -> int:
            return (await server.post("/v3/login", {"type": "m.login.token", "token": token})).status

        assert await log_in(other) == 200
        monkeypatch.setattr(devices, "ensure", overtaken)
        assert await log_in(used) == 403
        monkeypatch.setattr(devices, "ensure", ensure)
        assert await log_in(unused) == 403
        assert await log_in((await server.parts.login.make_token(ALICE))[0]) == 200


async def test_a_login_token_is_asked_for_while_the_password_changes(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stole a password would get in for two more minutes after it was changed."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        login, make_token = server.parts.login, server.parts.login.make_token

        async def overtaken(user_id: str, **how: Any) -> Any:
            await server.parts.accounts.set_password(ALICE, "battery staple")
            return await make_token(user_id, **how)

        monkeypatch.setattr(login, "make_token", overtaken)
        answer = await confirmed(server, "/v1/login/get_token", token, {})
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


async def test_a_weak_or_missing_new_password_is_refused(database: str) -> None:
    """People would lose access, or the administrator's rules for passwords would not hold."""
    config = OPEN.replace(
        "password_config: {",
        "password_config: {policy: {enabled: true, minimum_length: 8, require_digit: true, "
        "require_symbol: true, require_uppercase: true, require_lowercase: true}, ",
    )
    async with account_server(database, config) as server:
        answer = await server.post("/v3/register", {"username": "alice", "password": PASSWORD})
        assert (answer.status, answer.errcode) == (400, "M_WEAK_PASSWORD")
        token = (await server.register("bob", password="Aa1-----"))["access_token"]
        for weak in ("Aa1----", "aa1-----", "AA1-----", "Aaa-----", "Aa1bbbbb"):
            answer = await server.post("/v3/account/password", {"new_password": weak}, token)
            assert (answer.status, answer.errcode) == (400, "M_WEAK_PASSWORD")
        for wrong in ({"new_password": 1}, {"new_password": "Aa1-----", "logout_devices": "no"}):
            assert (await server.post("/v3/account/password", wrong, token)).errcode == "M_BAD_JSON"
        assert (await server.post("/v3/account/password", {"new_password": "x"})).errcode == "M_MISSING_TOKEN"


@pytest.mark.parametrize("erase", [True, False])
async def test_a_deactivated_account_is_over(database: str, erase: bool) -> None:
    """Somebody who left would still be there, or somebody else could take their name."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        other = (await server.login("alice")).body["access_token"]
        answer = await confirmed(server, "/v3/account/deactivate", token, {"erase": erase})
        assert answer.body == {"id_server_unbind_result": "success"}
        for gone in (token, other):
            assert (await server.whoami(gone)).errcode == "M_UNKNOWN_TOKEN"
        login = await server.login("alice")
        assert (login.status, login.errcode) == (403, "M_USER_DEACTIVATED")
        taken = await server.post("/v3/register", {"username": "alice", "password": PASSWORD})
        assert taken.errcode == "M_USER_IN_USE"
        await until_departed(server)
        assert server.departed == [(ALICE, erase)]


async def until_departed(server: AccountServer) -> None:
    """Wait until all deactivated users have left their rooms."""
    async with asyncio.timeout(10):
        while await server.core.database.fetchval("SELECT count(*) FROM accounts WHERE departing"):
            await asyncio.sleep(0)


async def test_leaving_rooms_goes_on_after_a_restart(database: str) -> None:
    """A server that stopped in between would leave a deactivated user in rooms for ever."""
    async with account_server(database) as server:
        await server.register("alice")
        await server.parts.accounts.change(ALICE, deactivated=True, departing=True, erased=True)
    async with account_server(database) as server:
        await until_departed(server)
        assert server.departed == [(ALICE, True)]
        # Devices have names, and addresses that they were at.
        for table in ("devices", "access_tokens"):
            assert await server.core.database.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_a_locked_user_can_only_log_out(database: str) -> None:
    """Locking a stolen account would have no effect, or its owner would lose their session."""
    async with account_server(database) as server:
        root = await administrator(server)
        token = (await server.register("alice"))["access_token"]
        assert (await server.whoami(token)).status == 200
        path = f"/v1/admin/lock/{ALICE}"
        assert (await server.get(path, root)).body == {"locked": False}
        assert (await server.call("PUT", path, {"locked": True}, root)).body == {"locked": True}
        for answer in (await server.whoami(token), await server.login("alice")):
            assert (answer.status, answer.errcode, answer.body["soft_logout"]) == (401, "M_USER_LOCKED", True)
        await server.call("PUT", path, {"locked": False}, root)
        assert (await server.whoami(token)).status == 200
        await server.call("PUT", path, {"locked": True}, root)
        assert (await server.post("/v3/logout", {}, token)).status == 200
        assert (await server.whoami(token)).errcode == "M_UNKNOWN_TOKEN"


async def test_a_suspended_user_stays_logged_in(database: str) -> None:
    """Suspending somebody would log them out, or keep them from logging in on another device."""
    async with account_server(database) as server:
        root = await administrator(server)
        token = (await server.register("alice"))["access_token"]
        path = f"/v1/admin/suspend/{ALICE}"
        assert (await server.call("PUT", path, {"suspended": True}, root)).body == {"suspended": True}
        assert (await server.get(path, root)).body == {"suspended": True}
        assert (await server.whoami(token)).status == 200
        # "permit the user to … log in and create additional sessions": it asks them to authenticate
        assert (await server.post("/v1/login/get_token", {}, token)).status == 401
        await server.call("PUT", path, {"suspended": False}, root)
        assert (await server.get(path, root)).body == {"suspended": False}


async def test_only_administrators_moderate_accounts_and_not_each_other(database: str) -> None:
    """Anybody could lock anybody, or find out who has an account."""
    async with account_server(database) as server:
        root = await administrator(server)
        token = (await server.register("alice"))["access_token"]
        for kind in ("lock", "suspend"):
            field = {"lock": "locked", "suspend": "suspended"}[kind]
            for user, access, status, errcode in (
                (ALICE, token, 403, "M_FORBIDDEN"),
                ("@nobody:example.org", token, 403, "M_FORBIDDEN"),
                ("@nobody:example.org", root, 404, "M_NOT_FOUND"),
                ("@alice:other.org", root, 400, "M_INVALID_PARAM"),
                (ROOT, root, 403, "M_FORBIDDEN"),
            ):
                path = f"/v1/admin/{kind}/{user}"
                for answer in (
                    await server.get(path, access),
                    await server.call("PUT", path, {field: True}, access),
                ):
                    assert (answer.status, answer.errcode) == (status, errcode)
            assert (await server.call("PUT", f"/v1/admin/{kind}/{ALICE}", {}, root)).errcode == "M_BAD_JSON"


async def administrator(server: AccountServer) -> str:
    """Make an administrator and give their token."""
    await server.parts.registration.register("root", PASSWORD, admin=True)
    token: str = (await server.login("root")).body["access_token"]
    return token


async def test_one_sees_where_ones_devices_were(database: str) -> None:
    """A user or an administrator could not find a session that is not theirs."""
    async with account_server(database) as server:
        alice = await server.register("alice", device_id="PHONE")
        token, path = alice["access_token"], f"/v3/admin/whois/{ALICE}"
        await server.whoami(token)
        await server.parts.last_seen.write()
        answer = await server.get(path, token)
        connection = answer.body["devices"]["PHONE"]["sessions"][0]["connections"][0]
        assert connection["last_seen"] == server.clock.ms
        assert connection["ip"] == "127.0.0.1"
        assert "aiohttp" in connection["user_agent"]
        assert (await server.get(path, await administrator(server))).status == 200
        assert (await server.get(f"/v3/admin/whois/{ROOT}", token)).status == 403


async def test_one_proves_to_others_who_one_is(database: str) -> None:
    """Widgets and integrations could not tell who uses them, or one could pretend to be another."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        answer = await server.post(f"/v3/user/{ALICE}/openid/request_token", {}, token)
        given = answer.body
        assert (given["token_type"], given["matrix_server_name"], given["expires_in"]) == (
            "Bearer",
            "example.org",
            3600,
        )
        assert await server.parts.openid_tokens.user_of(given["access_token"]) == ALICE
        assert (await server.whoami(given["access_token"])).status == 401
        server.clock.ms += 3_600_000
        assert await server.parts.openid_tokens.user_of(given["access_token"]) is None
        assert (await server.post(f"/v3/user/{ROOT}/openid/request_token", {}, token)).status == 403


async def test_accounts_are_known_by_their_ids(database: str) -> None:
    """Invites to people who do not exist would be accepted, or changes to an account would not be seen."""
    async with account_server(database) as server:
        await server.register("alice")
        accounts = server.parts.accounts
        assert await accounts.exists(ALICE)
        for nobody in (
            "@nobody:example.org",
            "@alice:other.org",
            "alice",
            "@a\0:example.org",
            "",
            "@a:b:example.org",
        ):
            assert not await accounts.exists(nobody)
        assert await accounts.which_exist([ALICE, "@nobody:example.org", "@x\0:example.org"]) == {ALICE}
        found = await accounts.get(ALICE)
        assert found is not None
        assert not found.is_admin
        await accounts.change(ALICE, is_admin=True)
        found = await accounts.get(ALICE)
        assert found is not None
        assert found.is_admin


async def test_what_can_not_be_written_now_is_written_later(database: str) -> None:
    """When the database is away for a minute, devices would look as if they had not been used."""
    async with account_server(database) as server:
        alice = await server.register("alice", device_id="PHONE")
        requester = await server.parts.access_tokens.authenticate(alice["access_token"])
        seen = LastSeen(devices=server.parts.devices, clock=server.clock)
        seen.note(requester, "10.0.0.1", "x\0" * 1000)
        await seen.write()
        device = await server.parts.devices.get(ALICE, "PHONE")
        assert device.last_seen_ip == "10.0.0.1"


def test_the_command_line_refuses_what_can_not_be(tmp_path: Path) -> None:
    """An administrator would make a user who can not log in."""
    config = read_config(CHEAP)
    with pytest.raises(MatrixError, match="a-z"):
        register_user(config, tmp_path, "not a name", PASSWORD, False)
    with pytest.raises(MatrixError, match="1 to 512"):
        register_user(config, tmp_path, "alice", "", False)


def test_the_command_line_makes_users_of_a_server_that_does_not_run() -> None:
    """An administrator could not make the first user before the server is open to the world."""
    config = read_config(CHEAP)
    with private_folder() as folder:
        register_user(config, folder, "alice", PASSWORD, False)
        with pytest.raises(MatrixError, match="already"):
            register_user(config, folder, "alice", PASSWORD, False)


async def test_the_command_line_writes_to_the_configured_database(database: str, tmp_path: Path) -> None:
    """Users made on the command line could not log in."""
    url = urlsplit(database)
    args = {
        "host": parse_qs(url.query)["host"][0],
        "port": int(parse_qs(url.query)["port"][0]),
        "user": url.username,
        "dbname": url.path[1:],
    }
    config = read_config(CHEAP + f"database: {{name: psycopg2, args: {args}}}\n")
    await asyncio.to_thread(register_user, config, tmp_path, "Root", PASSWORD, True)
    with pytest.raises(MatrixError) as caught:
        await asyncio.to_thread(register_user, config, tmp_path, "root", PASSWORD, True)
    assert caught.value.errcode == "M_USER_IN_USE"
    async with account_server(database) as server:
        token = (await server.login("root")).body["access_token"]
        assert (await server.parts.access_tokens.authenticate(token)).is_admin
