"""User-interactive authentication, as ``/account/password`` and registration use it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ranvier.http.limits import Rate
from tests.account_server import CHEAP, OPEN, PASSWORD, AccountServer, Answer, account_server

PATH = "/v3/account/password"
NEW = {"new_password": "battery staple", "logout_devices": False}


def proof(session: str | None, **fields: Any) -> dict[str, Any]:
    """Make the stage of a password."""
    auth = {"type": "m.login.password", "password": PASSWORD, **fields}
    return {**NEW, "auth": auth if session is None else {**auth, "session": session}}


async def ask(server: AccountServer, token: str) -> str:
    """Begin to change the password and give the session."""
    asked = await server.post(PATH, NEW, token)
    assert asked.status == 401
    assert asked.body["flows"] == [{"stages": ["m.login.password"]}]
    assert asked.body["completed"] == []
    assert asked.body["params"] == {}
    session: str = asked.body["session"]
    return session


@pytest.mark.parametrize(
    "about",
    [
        {"identifier": {"type": "m.id.user", "user": "alice"}},
        {"identifier": {"type": "m.id.user", "user": "@alice:example.org"}},
        {"user": "@alice:example.org"},
        {},
    ],
)
async def test_the_right_password_is_enough(database: str, about: Any) -> None:
    """Clients could not change a password, remove a device or set up encryption."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        session = await ask(server, token)
        assert (await server.post(PATH, proof(session, **about), token)).status == 200


async def test_a_wrong_password_may_be_tried_again_in_the_same_session(database: str) -> None:
    """Somebody who mistypes their password would have to begin anew, or would see no message."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        session = await ask(server, token)
        wrong = await server.post(PATH, proof(session, password="wrong"), token)
        assert (wrong.status, wrong.errcode) == (401, "M_FORBIDDEN")
        assert (wrong.body["session"], wrong.body["flows"][0]["stages"]) == (session, ["m.login.password"])
        assert (await server.post(PATH, proof(session), token)).status == 200


async def test_another_ones_password_proves_nothing(database: str) -> None:
    """Whoever gets hold of an open client could take the account over with a password of their own."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        await server.register("mallory", password="my own")
        session = await ask(server, token)
        answer = await server.post(PATH, proof(session, user="mallory", password="my own"), token)
        assert (answer.status, answer.errcode) == (401, "M_FORBIDDEN")


async def test_a_session_is_for_one_user_one_operation_and_one_time(database: str) -> None:
    """A confirmation for something harmless would be good for deleting the account."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        other = (await server.register("bob"))["access_token"]
        session = await ask(server, token)
        for path, access in (
            ("/v3/account/deactivate", token),
            ("/v1/login/get_token", token),
            (PATH, other),
        ):
            answer = await server.post(path, proof(session), access)
            assert (answer.status, answer.errcode) == (401, "M_FORBIDDEN")
            assert answer.body["session"] != session
        answers = await asyncio.gather(*(server.post(PATH, proof(session), token) for _ in range(4)))
        assert sorted(answer.status for answer in answers) == [200, 401, 401, 401]


async def test_a_session_ends_after_a_while_and_holds_at_every_worker(database: str) -> None:
    """A confirmation left open in some window would be valid for ever, or not at the next worker."""
    async with account_server(database) as one, account_server(database) as two:
        token = (await one.register("alice"))["access_token"]
        session = await ask(one, token)
        two.clock.ms += 15 * 60 * 1000 + 1
        late = await two.post(PATH, proof(session), token)
        assert late.status == 401
        await one.parts.expiry.sweep()
        two.clock.ms = one.clock.ms
        assert (await two.post(PATH, proof(session), token)).status == 200


async def test_the_first_request_may_hold_the_proof_already(database: str) -> None:
    """Simple clients and scripts would have to make two requests for everything."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        assert (await server.post(PATH, proof(None), token)).status == 200
        assert await server.core.database.fetchval("SELECT count(*) FROM uia_sessions") == 0


async def test_passwords_can_not_be_tried_here_either(database: str) -> None:
    """A stolen access token would allow to guess the password."""
    async with account_server(database, rates={"rc_login.failed_attempts": Rate(0.1, 2)}) as server:
        token = (await server.register("alice"))["access_token"]
        session = await ask(server, token)
        answers: list[Answer] = []
        for _ in range(3):
            answers.append(await server.post(PATH, proof(session, password="wrong"), token))
        assert [answer.status for answer in answers] == [401, 401, 429]


async def test_an_account_without_a_password_is_told_so(database: str) -> None:
    """A client would ask for a password that does not exist."""
    async with account_server(database) as server:
        user_id = await server.parts.registration.register("alice")
        device_id = await server.parts.devices.ensure(user_id, None, None)
        token = (await server.parts.access_tokens.issue(user_id, device_id)).access_token
        answer = await server.post(PATH, NEW, token)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
        assert (await server.login("alice", "")).status == 403


class _Request:
    """What is looked at of a request."""

    method, path = "POST", "/delete_devices"

    def __init__(self, requester: Any) -> None:
        self.requester_or_none = requester


async def test_within_the_configured_time_one_is_not_asked_twice(database: str) -> None:
    """Removing ten devices would take the password ten times although the administrator allows once."""
    async with account_server(database, OPEN + "ui_auth: {session_timeout: 5m}\n") as server:
        token = (await server.register("alice"))["access_token"]
        request = _Request(await server.parts.access_tokens.authenticate(token))
        require = server.parts.uia.require
        with pytest.raises(Exception, match="needed"):
            await require(request, {}, "delete devices", may_skip=True)
        await require(request, {"auth": proof(None)["auth"]}, "delete devices", may_skip=True)
        await require(request, {}, "delete devices", may_skip=True)
        with pytest.raises(Exception, match="needed"):
            await require(request, {}, "delete devices")
        server.clock.ms += 300_000
        with pytest.raises(Exception, match="needed"):
            await require(request, {}, "delete devices", may_skip=True)


async def test_stages_are_passed_in_order(database: str) -> None:
    """A flow of two stages could be passed with one, or never."""
    async with account_server(database, CHEAP) as server:
        await server.parts.registration_tokens.create("let-me-in", uses_allowed=1)
        require = server.parts.uia.require
        request = _Request(None)
        flows = (("m.login.registration_token", "m.login.dummy"),)

        async def attempt(**auth: str) -> Any:
            try:
                return await require(request, {"auth": auth}, "register", flows=flows)
            except Exception as error:
                return error.body()  # type: ignore[attr-defined]

        early = await attempt(type="m.login.dummy")
        assert early["errcode"] == "M_UNRECOGNIZED"
        session = early["session"]
        first = await attempt(type="m.login.registration_token", token="let-me-in", session=session)
        assert (first["completed"], "errcode" in first) == (["m.login.registration_token"], False)
        assert not await server.parts.registration_tokens.is_valid("let-me-in")
        again = await attempt(type="m.login.registration_token", token="let-me-in", session=session)
        assert again["completed"] == ["m.login.registration_token"]
        passed = await attempt(type="m.login.dummy", session=session)
        assert passed.registration_token == "let-me-in"
        assert await server.parts.registration_tokens.is_valid("let-me-in")


async def test_a_password_under_way_can_not_be_read_in_the_database(database: str) -> None:
    """Whoever sees the database would see the passwords of those who register just then."""
    async with account_server(database) as server:
        asked = await server.post("/v3/register", {"username": "alice", "password": PASSWORD})
        row = await server.core.database.fetchrow("SELECT * FROM uia_sessions")
        assert row is not None
        assert PASSWORD.encode() not in row["body"]
        assert asked.body["session"].encode() not in bytes(row["session_hash"]) + bytes(row["body"])
