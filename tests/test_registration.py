"""Registration through the client API, on a real database."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import Any

import pytest

from ranvier.http.limits import Rate
from ranvier.storage.accounts import IdentityTaken
from ranvier.storage.identities import IdentityStore
from tests.account_server import CHEAP, OPEN, PASSWORD, AccountServer, account_server

DUMMY = {"type": "m.login.dummy"}


async def test_a_user_registers_and_is_logged_in(database: str) -> None:
    """Nobody could make an account with a usual client, or it would not be logged in afterwards."""
    async with account_server(database) as server:
        asked = await server.post("/v3/register", {"username": "Alice", "password": PASSWORD})
        assert asked.status == 401
        assert asked.body["flows"] == [{"stages": ["m.login.dummy"]}]
        assert "errcode" not in asked.body
        body = {
            "username": "Alice",
            "password": PASSWORD,
            "device_id": "PHONE",
            "auth": {**DUMMY, "session": asked.body["session"]},
        }
        made = await server.post("/v3/register", body)
        assert made.status == 200
        assert (made.body["user_id"], made.body["device_id"]) == ("@alice:example.org", "PHONE")
        who = await server.whoami(made.body["access_token"])
        assert who.body == {"user_id": "@alice:example.org", "device_id": "PHONE", "is_guest": False}


async def test_a_client_may_repeat_only_the_session(database: str) -> None:
    """A client that finishes its stages elsewhere, in a browser, could not complete the registration."""
    async with account_server(database) as server:
        asked = await server.post("/v3/register", {"username": "bob", "password": PASSWORD})
        made = await server.post("/v3/register", {"auth": {**DUMMY, "session": asked.body["session"]}})
        assert made.body["user_id"] == "@bob:example.org"
        assert (await server.login("bob")).status == 200
        stored = await server.core.database.fetchval("SELECT count(*) FROM uia_sessions")
        assert stored == 0


@pytest.mark.parametrize("name", ["", "al ice", "ällice", "a:b", "_bridge", "12345", "x" * 250, "@a:b"])
async def test_a_name_that_cannot_be_is_refused_at_once(database: str, name: str) -> None:
    """People would fill in a form to the end, or get names that other servers refuse."""
    async with account_server(database) as server:
        answer = await server.post("/v3/register", {"username": name, "password": PASSWORD})
        assert (answer.status, answer.errcode) == (400, "M_INVALID_USERNAME")


async def test_a_taken_name_is_refused_whatever_its_case(database: str) -> None:
    """Two people would have one name."""
    async with account_server(database) as server:
        await server.register("carol")
        for name in ("carol", "CAROL"):
            answer = await server.post("/v3/register", {"username": name, "password": PASSWORD})
            assert (answer.status, answer.errcode) == (400, "M_USER_IN_USE")
            answer = await server.get("/v3/register/available", username=name)
            assert (answer.status, answer.errcode) == (400, "M_USER_IN_USE")
        assert (await server.get("/v3/register/available", username="dave")).body == {"available": True}
        answer = await server.get("/v3/register/available", username="Δ")
        assert answer.errcode == "M_INVALID_USERNAME"


async def test_a_user_without_a_wish_gets_a_name(database: str) -> None:
    """Clients that leave the name to the server could not register."""
    async with account_server(database) as server:
        made = await server.post("/v3/register", {"password": PASSWORD, "auth": DUMMY, "inhibit_login": True})
        assert set(made.body) == {"user_id", "home_server"}
        assert (await server.login(made.body["user_id"])).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"username": 7},
        {"password": ["x"]},
        {"auth": "dummy"},
        {"auth": {"type": 3}},
        {"auth": {"session": 3}},
        {"auth": {"type": "m.login.dummy", "session": "nonsense"}},
        {"device_id": "*", "auth": DUMMY},
        {"auth": {"type": "m.login.password", "password": "x"}},
        {"username": "eve", "auth": DUMMY},
        {"username": "eve", "password": "", "auth": DUMMY},
        {"username": "eve", "password": "x" * 513, "auth": DUMMY},
        {"type": "m.login.application_service", "username": "eve"},
    ],
)
async def test_broken_requests_are_refused_with_a_clear_error(database: str, body: Any) -> None:
    """A broken client would make the server answer 500, or get an account that it can not use."""
    async with account_server(database) as server:
        answer = await server.post("/v3/register", body)
        assert answer.status in (400, 401, 403)
        assert answer.errcode is not None
        assert await server.core.database.fetchval("SELECT count(*) FROM accounts") == 0


async def test_registration_is_closed_unless_it_is_opened(database: str) -> None:
    """Strangers could make accounts on a private server."""
    async with account_server(database, CHEAP) as server:
        for kind in ("user", "guest"):
            answer = await server.post(
                "/v3/register", {"username": "x", "password": "y", "auth": DUMMY}, kind=kind
            )
            assert answer.status == 403
        assert (await server.get("/v3/register/available", username="x")).errcode == "M_FORBIDDEN"
        path = "/v1/register/m.login.registration_token/validity"
        assert (await server.get(path, token="x")).errcode == "M_FORBIDDEN"
        assert (await server.get("/_synapse/admin/v1/register")).status == 400


async def test_a_registration_token_makes_as_many_accounts_as_it_allows(database: str) -> None:
    """An invitation for one would let many in, or nobody."""
    config = CHEAP + "enable_registration: true\nregistration_requires_token: true\n"
    path = "/v1/register/m.login.registration_token/validity"
    async with account_server(database, config) as server:
        await server.parts.registration_tokens.create("for-one", uses_allowed=1)
        await server.parts.registration_tokens.create("gone", expires_ts=server.clock.ms - 1)
        assert (await server.get(path, token="for-one")).body == {"valid": True}
        for wrong in ("gone", "unknown", "x" * 65):
            assert (await server.get(path, token=wrong)).body == {"valid": False}
        assert (await server.get(path)).errcode == "M_MISSING_PARAM"
        asked = await server.post("/v3/register", {"username": "ann", "password": PASSWORD})
        assert asked.body["flows"] == [{"stages": ["m.login.registration_token"]}]
        session = asked.body["session"]

        def body(name: str, **auth: str) -> Any:
            return {
                "username": name,
                "password": PASSWORD,
                "auth": {"type": "m.login.registration_token", **auth},
            }

        refused = await server.post("/v3/register", body("ann", token="unknown", session=session))
        assert (refused.status, refused.errcode) == (401, "M_UNAUTHORIZED")
        assert refused.body["session"] == session
        assert (await server.post("/v3/register", {**body("ann"), "auth": DUMMY})).status == 401
        made = await server.post("/v3/register", body("ann", token="for-one", session=session))
        assert made.status == 200
        assert (await server.get(path, token="for-one")).body == {"valid": False}
        assert (await server.post("/v3/register", body("ben", token="for-one"))).status == 401


async def test_guests_may_come_where_they_are_welcome_and_become_users(database: str) -> None:
    """Guests could do what only users may, or would lose their rooms when they register."""
    async with account_server(database, OPEN + "allow_guest_access: true\n") as server:
        guest = await server.post(
            "/v3/register", {"username": "ignored", "device_id": "IGNORED", "password": 1}, kind="guest"
        )
        assert guest.status == 400
        guest = await server.post(
            "/v3/register", {"username": "ignored", "device_id": "IGNORED"}, kind="guest"
        )
        token, user_id = guest.body["access_token"], guest.body["user_id"]
        assert guest.body["device_id"] != "IGNORED"
        assert (await server.whoami(token)).body["is_guest"] is True
        assert (await server.get("/v3/account/3pid", token)).errcode == "M_GUEST_ACCESS_FORBIDDEN"
        name = user_id[1:].partition(":")[0]
        body = {"username": name, "password": PASSWORD, "guest_access_token": token, "auth": DUMMY}
        assert (await server.post("/v3/register", {**body, "username": "other"})).status == 403
        upgraded = await server.post("/v3/register", body)
        assert upgraded.body["user_id"] == user_id
        assert (await server.whoami(token)).body["is_guest"] is False
        assert (await server.login(name)).status == 200


def mac(nonce: str, *parts: str) -> str:
    """Sign as ``register_new_matrix_user`` does."""
    return hmac.new(b"the secret", "\0".join([nonce, *parts]).encode(), hashlib.sha1).hexdigest()


async def test_the_shared_secret_makes_users_and_administrators(database: str) -> None:
    """Scripts for other servers would not work here, or anybody could make administrators."""
    path = "/_synapse/admin/v1/register"
    async with account_server(database) as server:
        nonce = (await server.get(path)).body["nonce"]
        body = {"nonce": nonce, "username": "root", "password": PASSWORD, "admin": True}
        wrong = await server.post(path, {**body, "mac": mac(nonce, "root", PASSWORD, "notadmin")})
        assert (wrong.status, wrong.errcode) == (403, "M_UNKNOWN")
        right = mac(nonce, "root", PASSWORD, "admin")
        made = await server.post(path, {**body, "mac": right})
        assert made.body["user_id"] == "@root:example.org"
        account = await server.parts.accounts.get("@root:example.org")
        assert account is not None
        assert account.is_admin
        assert (await server.post(path, {**body, "mac": right})).errcode == "M_USER_IN_USE"
        server.clock.ms += 61_000
        late = await server.post(path, {**body, "mac": right})
        assert (late.status, late.body["error"]) == (400, "Unrecognised nonce")
        for nonce in ("", "x.y.z", "1.2"):
            assert (await server.post(path, {**body, "nonce": nonce, "mac": right})).status == 400


async def test_one_address_can_not_make_accounts_without_end(database: str) -> None:
    """A script could fill the server with accounts."""
    async with account_server(database, rates={"rc_registration": Rate(0.1, 2)}) as server:
        await server.register("one")
        await server.register("two")
        answer = await server.post("/v3/register", {"username": "three", "password": PASSWORD, "auth": DUMMY})
        assert (answer.status, answer.errcode) == (429, "M_LIMIT_EXCEEDED")
        assert 0 < answer.body["retry_after_ms"] <= 10_000
        server.clock.ms += 10_000
        await server.register("three")


async def test_of_two_who_take_a_name_at_once_one_gets_it(database: str) -> None:
    """Two people would share an account."""
    async with account_server(database) as server:
        answers = await _register_at_once(server, "zoe", 5)
        assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400]


async def _register_at_once(server: AccountServer, name: str, times: int) -> list[Any]:
    body = {"username": name, "password": PASSWORD, "auth": DUMMY}
    return await asyncio.gather(*(server.post("/v3/register", body) for _ in range(times)))


async def test_who_has_an_account_can_be_kept_from_strangers(database: str) -> None:
    """Anybody could find out who has an account, though the administrator wants that hidden."""
    async with account_server(database, OPEN + "inhibit_user_in_use_error: true\n") as server:
        await server.register("alice")
        answer = await server.get("/v3/register/available", username="alice")
        assert (answer.status, answer.body) == (200, {"available": True})
        begun = await server.post("/v3/register", {"username": "alice", "password": PASSWORD})
        assert begun.status == 401, "the stages come first"
        body = {"username": "alice", "password": PASSWORD, "auth": DUMMY}
        assert (await server.post("/v3/register", body)).errcode == "M_USER_IN_USE"
        bad = await server.get("/v3/register/available", username="not a name")
        assert bad.errcode == "M_INVALID_USERNAME"


async def test_an_identity_has_one_account_and_an_account_of_it_is_whole(database: str) -> None:
    """Who logs in for the first time, twice at once, would have two accounts, or half of one."""
    async with account_server(database) as server:
        registration, database_of = server.parts.registration, server.core.database
        made = await asyncio.gather(
            *(registration.register(name, identity=("corp", "s1")) for name in ("alice", "bob", "carol")),
            return_exceptions=True,
        )
        (user_id,) = [it for it in made if isinstance(it, str)]
        assert sum(isinstance(it, IdentityTaken) for it in made) == 2
        counts = "SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM profiles)"
        assert tuple(await database_of.fetchrow(counts) or ()) == (1, 1)
        store = IdentityStore(database_of)
        assert await store.get("corp", "s1") == user_id
        await store.link("corp", "s2", user_id)
        assert await store.get("corp", "s2") is None
        assert await store.providers_of(user_id, ["club", "corp"]) == ["corp"]
