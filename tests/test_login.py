"""Logging in, refreshing and logging out through the client API, on a real database."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import bcrypt
import pytest

from ranvier.http.limits import Rate
from ranvier.log.bus import LocalBus
from ranvier.log.standstill import Standstill
from ranvier.spec.errors import MatrixError
from ranvier.storage import access_tokens
from ranvier.storage.access_tokens import AccessTokenStore
from ranvier.storage.accounts import AccountStore, NewAccount
from ranvier.storage.database import DatabaseUnavailable
from ranvier.users.access_tokens import revocations
from ranvier.users.accounts import TOKEN_ROWS
from ranvier.wire.log_rows import LogRow
from tests.account_server import CHEAP, OPEN, PASSWORD, AccountServer, account_server
from tests.test_standstill import Now

ALICE = "@alice:example.org"
TYPED = {"type": "m.login.password", "password": "x"}


@pytest.mark.parametrize(
    "who",
    [
        {"identifier": {"type": "m.id.user", "user": "alice"}},
        {"identifier": {"type": "m.id.user", "user": "ALICE"}},
        {"identifier": {"type": "m.id.user", "user": ALICE}},
        {"user": "alice"},
        {"user": ALICE},
    ],
)
async def test_a_user_logs_in_by_any_form_of_their_name(database: str, who: Any) -> None:
    """People who type their name as their client suggests could not log in."""
    async with account_server(database, OPEN + "public_baseurl: https://matrix.example.org\n") as server:
        await server.register("alice")
        answer = await server.post(
            "/v3/login", {"type": "m.login.password", "password": PASSWORD, "device_id": "TABLET", **who}
        )
        assert (answer.body["user_id"], answer.body["device_id"]) == (ALICE, "TABLET")
        assert answer.body["well_known"]["m.homeserver"]["base_url"] == "https://matrix.example.org/"
        assert (await server.whoami(answer.body["access_token"])).body["device_id"] == "TABLET"


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({"type": "m.login.password", "user": "alice", "password": "wrong"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.password", "user": "nobody", "password": PASSWORD}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.password", "user": "@alice:other.org", "password": "x"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.password", "user": "a\0b", "password": "x"}, 400, "M_BAD_JSON"),
        ({"type": "m.login.password", "user": "x" * 9999, "password": "x"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.password", "user": "alice", "password": "x" * 9999}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.password", "user": "alice"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "password": "x"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": 1, "password": "x"}, 400, "M_BAD_JSON"),
        (
            {"type": "m.login.password", "identifier": {"type": "m.id.phone"}, "password": "x"},
            403,
            "M_FORBIDDEN",
        ),
        (
            {"type": "m.login.password", "medium": "email", "address": "a@b", "password": "x"},
            403,
            "M_FORBIDDEN",
        ),
        ({"type": "m.login.password", "identifier": {"type": "x"}, "password": "x"}, 400, "M_UNKNOWN"),
        ({"type": "m.login.token", "token": "nonsense"}, 403, "M_FORBIDDEN"),
        ({"type": "m.login.token"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.application_service"}, 400, "M_APPSERVICE_LOGIN_UNSUPPORTED"),
        ({"type": "m.login.magic"}, 400, "M_UNKNOWN"),
        ({}, 400, "M_BAD_JSON"),
    ],
)
async def test_who_proves_nothing_does_not_get_in(
    database: str, body: Any, status: int, errcode: str
) -> None:
    """Strangers would get into accounts, or a broken request would be answered 500."""
    async with account_server(database) as server:
        await server.register("alice")
        answer = await server.post("/v3/login", body)
        assert (answer.status, answer.errcode) == (status, errcode)


async def test_the_offered_ways_to_log_in(database: str) -> None:
    """A client would show no login form, or one that can not work."""
    async with account_server(database) as server:
        flows = (await server.get("/v3/login")).body["flows"]
        assert [flow["type"] for flow in flows] == ["m.login.password", "m.login.token"]
    async with account_server(database, "password_config: {enabled: off}") as server:
        flows = (await server.get("/v3/login")).body["flows"]
        assert [flow["type"] for flow in flows] == ["m.login.token"]
        assert (await server.login("alice")).errcode == "M_UNKNOWN"


async def test_one_client_lets_another_in(database: str) -> None:
    """Logging in by a code from one's other device would not work, or the code would work twice."""
    async with account_server(database) as server:
        alice = await server.register("alice")
        token = alice["access_token"]
        asked = await server.post("/v1/login/get_token", {}, token)
        assert asked.status == 401
        auth = {"type": "m.login.password", "password": PASSWORD, "session": asked.body["session"]}
        given = await server.post("/v1/login/get_token", {"auth": auth}, token)
        assert given.body["expires_in_ms"] == 120_000
        body = {"type": "m.login.token", "token": given.body["login_token"]}
        assert (await server.post("/v3/login", body)).body["user_id"] == ALICE
        assert (await server.post("/v3/login", body)).status == 403
        again = await server.post("/v1/login/get_token", {"auth": auth}, token)
        assert again.status == 401


async def test_logging_in_again_on_a_device_ends_its_older_session(database: str) -> None:
    """A stolen token of a device would stay valid after its owner logged in again."""
    async with account_server(database) as server:
        first = await server.register("alice", device_id="PHONE")
        other = (await server.login("alice")).body
        second = (await server.login("alice", device_id="PHONE")).body
        assert (await server.whoami(first["access_token"])).errcode == "M_UNKNOWN_TOKEN"
        assert (await server.whoami(second["access_token"])).status == 200
        assert (await server.whoami(other["access_token"])).status == 200


async def test_a_login_whose_session_has_begun_is_answered_however_late(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody would be told that it failed, and have two sessions on one device of which nobody sees one."""
    async with account_server(database) as server:
        first = await server.register("alice", device_id="PHONE")
        now = Now()
        server.core.appender.standstill = Standstill(lambda: server.core.tail.pos, now.clock)
        beside_others = AccessTokenStore.beside_others

        async def stand_still(store: AccessTokenStore, token_hash: bytes) -> int | None:
            now.forward_s = 10.0
            return await beside_others(store, token_hash)

        monkeypatch.setattr(AccessTokenStore, "beside_others", stand_still)
        second = await server.login("alice", device_id="PHONE")
        assert second.status == 200
        assert (await server.whoami(first["access_token"])).errcode == "M_UNKNOWN_TOKEN"
        assert (await server.whoami(second.body["access_token"])).status == 200


async def test_logging_out_ends_one_session_or_all(database: str) -> None:
    """Somebody who logged out on a shared computer would still be logged in."""
    async with account_server(database) as server:
        tokens = [(await server.register("alice"))["access_token"]]
        tokens += [(await server.login("alice")).body["access_token"] for _ in range(2)]
        for token in tokens:
            assert (await server.whoami(token)).status == 200
        assert (await server.post("/v3/logout", {}, tokens[0])).body == {}
        answer = await server.whoami(tokens[0])
        assert (answer.status, answer.errcode, answer.body["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", False)
        assert (await server.whoami(tokens[1])).status == 200
        assert len(await server.parts.devices.of_user(ALICE)) == 2
        assert (await server.post("/v3/logout/all", {}, tokens[1])).status == 200
        assert (await server.whoami(tokens[2])).status == 401
        assert await server.parts.devices.of_user(ALICE) == []
        assert (await server.post("/v3/logout", {}, tokens[1])).status == 401


async def test_logging_out_is_done_as_a_whole(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device would stay for ever, encrypted to by everybody, if a worker died while it logged out."""
    async with account_server(database) as server:
        token = (await server.register("alice"))["access_token"]
        appender, append, left = server.core.appender, server.core.appender.append_rows, [1]

        async def append_once(rows: Any, **how: bool) -> int:
            if not left:
                raise DatabaseUnavailable
            left.pop()
            return await append(rows, **how)

        monkeypatch.setattr(appender, "append_rows", append_once)
        await server.post("/v3/logout", {}, token)
        assert (await server.whoami(token)).status == 401
        assert await server.parts.devices.of_user(ALICE) == []


async def test_another_process_forgets_a_revoked_token(database: str) -> None:
    """After logging out, the token would go on working at every worker that had seen it."""
    bus = LocalBus()
    async with account_server(database, bus=bus) as one, account_server(database, bus=bus) as two:
        token = (await one.register("alice"))["access_token"]
        assert (await two.whoami(token)).status == 200
        await one.post("/v3/logout", {}, token)
        assert (await two.whoami(token)).status == 401
        assert (await one.whoami(token)).status == 401


async def test_a_refreshed_session_goes_on_and_the_old_tokens_end(database: str) -> None:
    """Clients that refresh would be logged out, or a lost answer to a refresh would log them out."""
    async with account_server(database) as server:
        old = await server.register("alice", refresh_token=True)
        assert old["expires_in_ms"] == 300_000
        server.clock.ms += 300_000
        expired = await server.whoami(old["access_token"])
        assert (expired.errcode, expired.body["soft_logout"]) == ("M_UNKNOWN_TOKEN", True)
        refresh = {"refresh_token": old["refresh_token"]}
        lost = (await server.post("/v3/refresh", refresh)).body
        new = (await server.post("/v3/refresh", refresh)).body
        assert (await server.whoami(new["access_token"])).body["device_id"] == old["device_id"]
        # "The old refresh token remains valid until the new access token or refresh token is used"
        used = await server.post("/v3/refresh", refresh)
        assert (used.status, used.errcode) == (401, "M_UNKNOWN_TOKEN")
        assert (await server.whoami(lost["access_token"])).status == 401
        newer = (await server.post("/v3/refresh", {"refresh_token": new["refresh_token"]})).body
        newest = (await server.post("/v3/refresh", {"refresh_token": newer["refresh_token"]})).body
        assert (await server.post("/v3/refresh", {"refresh_token": new["refresh_token"]})).status == 401
        assert (await server.whoami(newest["access_token"])).status == 200
        await server.post("/v3/logout", {}, newest["access_token"])
        assert (await server.post("/v3/refresh", {"refresh_token": newest["refresh_token"]})).status == 401
        for table in ("access_tokens", "refresh_tokens"):
            assert await server.core.database.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_the_token_before_a_refresh_works_until_the_new_one_is_used(database: str) -> None:
    """A request that runs while the client refreshes would fail."""
    async with account_server(database) as server:
        old = await server.register("alice", refresh_token=True)
        new = (await server.post("/v3/refresh", {"refresh_token": old["refresh_token"]})).body
        assert (await server.whoami(old["access_token"])).status == 200
        both = await asyncio.gather(*(server.whoami(new["access_token"]) for _ in range(4)))
        assert {answer.status for answer in both} == {200}
        assert (await server.whoami(old["access_token"])).status == 401


async def until_one_waits(server: AccountServer) -> None:
    """Wait until a statement waits in PostgreSQL for what another one does."""
    waiting = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    async with asyncio.timeout(60):
        while not await server.core.database.fetchval(waiting):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ended", ["device", "all"])
async def test_a_session_that_is_refreshed_while_it_is_ended_is_over(
    database: str, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """A thief who refreshes without pause would stay logged in, unseen, when the device is removed."""
    insert, inserted, commit = access_tokens._insert, asyncio.Event(), asyncio.Event()

    async def insert_slowly(*args: Any) -> Any:
        outcome = await insert(*args)
        inserted.set()
        await commit.wait()
        return outcome

    async with account_server(database) as server:
        stolen = await server.register("alice", refresh_token=True, device_id="PHONE")
        monkeypatch.setattr(access_tokens, "_insert", insert_slowly)
        refreshing = asyncio.create_task(
            server.post("/v3/refresh", {"refresh_token": stolen["refresh_token"]})
        )
        await inserted.wait()
        devices, tokens = server.parts.devices, server.parts.access_tokens
        end = devices.delete(ALICE, ["PHONE"]) if ended == "device" else tokens.revoke_all(ALICE)
        ending = asyncio.create_task(end)
        await until_one_waits(server)
        commit.set()
        new = (await refreshing).body
        await ending
        assert (await server.whoami(new["access_token"])).status == 401
        assert (await server.post("/v3/refresh", {"refresh_token": new["refresh_token"]})).status == 401
        assert await server.core.database.fetchval("SELECT count(*) FROM refresh_tokens") == 0


@pytest.fixture
def refresh_that_waits(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Have each refresh set the first event when it has its locks, and wait for the second one."""
    locked, go_on, execute = asyncio.Event(), asyncio.Event(), asyncpg.Connection.execute
    go_on.set()

    async def execute_later(connection: Any, query: str, *args: Any, **options: Any) -> Any:
        if query == access_tokens._DROP_SUCCESSORS:
            locked.set()
            await go_on.wait()
        return await execute(connection, query, *args, **options)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute_later)
    return locked, go_on


async def test_a_refresh_that_meets_the_first_use_of_an_earlier_one(
    database: str, refresh_that_waits: tuple[asyncio.Event, asyncio.Event]
) -> None:
    """A client that refreshes anew while it uses the tokens it has would stall everybody's writes."""
    locked, go_on = refresh_that_waits
    async with account_server(database) as server:
        old = await server.register("alice", refresh_token=True)
        again = {"refresh_token": old["refresh_token"]}
        unused = (await server.post("/v3/refresh", again)).body
        locked.clear()
        go_on.clear()
        refreshing = asyncio.create_task(server.post("/v3/refresh", again))
        await locked.wait()
        using = asyncio.create_task(server.whoami(unused["access_token"]))
        await until_one_waits(server)
        go_on.set()
        refreshed, used = await asyncio.gather(refreshing, using)
        assert (refreshed.status, used.status) == (200, 401)
        assert (await server.whoami(refreshed.body["access_token"])).status == 200


@pytest.mark.parametrize("device_first", [False, True])
async def test_a_refresh_that_meets_a_change_of_its_account_and_device(
    database: str, refresh_that_waits: tuple[asyncio.Event, asyncio.Event], device_first: bool
) -> None:
    """A client that refreshes while its account is locked and its session ended would stall all writes."""
    locked, go_on = refresh_that_waits
    async with account_server(database) as server:
        session = await server.register("alice", refresh_token=True, device_id="PHONE")
        go_on.clear()
        refreshing = asyncio.create_task(
            server.post("/v3/refresh", {"refresh_token": session["refresh_token"]})
        )
        await locked.wait()
        account = LogRow(kind=TOKEN_ROWS, user_id=ALICE, key="account", body=b'{"locked": true}')
        rows = [account, *revocations(ALICE, ["PHONE"])]
        ending = asyncio.create_task(server.core.appender.append_rows(rows[::-1] if device_first else rows))
        await until_one_waits(server)
        go_on.set()
        answer, _ = await asyncio.gather(refreshing, ending)
        assert answer.status == 200
        assert (await server.whoami(answer.body["access_token"])).status == 401


async def test_a_login_that_meets_a_change_of_its_account_and_the_end_of_its_device(database: str) -> None:
    """A client that logs in while its account is suspended and its device deleted would stall all writes."""
    async with account_server(database) as server:
        await server.register("alice", device_id="PHONE")
        account = LogRow(kind=TOKEN_ROWS, user_id=ALICE, key="account", body=b'{"suspended": true}')
        devices = [
            LogRow(kind=kind, user_id=ALICE, device_id="PHONE", key="deleted")
            for kind in ("device", "device_list")
        ]
        async with server.core.database.transaction() as login:
            await login.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            await login.execute("SELECT FROM accounts WHERE user_id = $1 FOR SHARE", ALICE)
            ending = asyncio.create_task(server.core.appender.append_rows([*devices, account]))
            await until_one_waits(server)
            await login.execute("SELECT FROM devices WHERE user_id = $1 FOR NO KEY UPDATE", ALICE)
        await ending
        assert await server.parts.devices.of_user(ALICE) == []


async def test_a_login_that_is_overtaken_by_a_new_password_is_refused(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a stolen password and logs in at that moment would stay, though all others are logged out."""
    async with account_server(database) as server:
        owner = await server.register("alice")
        devices, ensure = server.parts.devices, server.parts.devices.ensure

        async def overtaken(*args: Any) -> str:
            device_id = await ensure(*args)
            await server.parts.accounts.set_password(ALICE, "battery staple")
            await server.parts.sessions.end_others(
                await server.parts.access_tokens.authenticate(owner["access_token"])
            )
            return device_id

        monkeypatch.setattr(devices, "ensure", overtaken)
        answer = await server.login("alice")
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
        monkeypatch.setattr(devices, "ensure", ensure)
        assert (await server.whoami(owner["access_token"])).status == 200
        assert (await server.login("alice", "battery staple")).status == 200


@pytest.mark.parametrize("device_id", [None, "NEW", "PHONE"])
async def test_a_login_that_is_refused_at_last_leaves_no_device(
    database: str, monkeypatch: pytest.MonkeyPatch, device_id: str | None
) -> None:
    """A stranger would be in the list of devices though nobody got in; or a device would lose its keys.

    Or whoever uses the device would be logged out.
    """
    async with account_server(database) as server:
        token = (await server.register("alice", device_id="PHONE"))["access_token"]
        devices, ensure = server.parts.devices, server.parts.devices.ensure

        async def overtaken(*args: Any) -> str:
            made = await ensure(*args)
            await server.parts.accounts.set_password(ALICE, "battery staple")
            return made

        monkeypatch.setattr(devices, "ensure", overtaken)
        named = {} if device_id is None else {"device_id": device_id}
        assert (await server.login("alice", **named)).status == 403
        assert await devices.ids(ALICE) == ["PHONE"]
        assert (await server.whoami(token)).status == 200


@pytest.mark.parametrize("overtaken_before", ["ensure", "append_rows"])
async def test_of_two_logins_to_one_device_at_once_one_stays(
    database: str, monkeypatch: pytest.MonkeyPatch, overtaken_before: str
) -> None:
    """A device would have two sessions, of which nobody sees the second, or none though both were let in."""
    bus = LocalBus()
    async with account_server(database, bus=bus) as one, account_server(database, bus=bus) as two:
        before = await one.register("alice", device_id="PHONE", refresh_token=True)
        owner: Any = one.parts.devices if overtaken_before == "ensure" else one.core.appender
        work, faster = getattr(owner, overtaken_before), []

        async def overtaken(*args: Any, **how: Any) -> Any:
            if not faster:
                faster.append(await two.login("alice", device_id="PHONE", refresh_token=True))
            return await work(*args, **how)

        monkeypatch.setattr(owner, overtaken_before, overtaken)
        slower = await one.login("alice", device_id="PHONE", refresh_token=True)
        sessions = [before, faster[0].body, slower.body]
        # Whoever is first to have their tokens made, the other one's login replaces theirs.
        expected = [401, 401, 200] if overtaken_before == "ensure" else [401, 200, 401]
        for server in (one, two):
            used = [await server.whoami(session["access_token"]) for session in sessions]
            assert [answer.status for answer in used] == expected
        refreshed = [
            await one.post("/v3/refresh", {"refresh_token": session["refresh_token"]}) for session in sessions
        ]
        assert [answer.status for answer in refreshed] == expected


async def test_a_session_that_is_refreshed_while_another_begins_on_its_device_is_over(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thief who refreshes without pause would stay when the owner of the device logs in on it again."""
    async with account_server(database) as server:
        stolen = await server.register("alice", device_id="PHONE", refresh_token=True)
        appender, append, refreshed = server.core.appender, server.core.appender.append_rows, []

        async def refresh_first(*args: Any, **how: Any) -> int:
            if not refreshed:
                refreshed.append(await server.post("/v3/refresh", {"refresh_token": stolen["refresh_token"]}))
            return await append(*args, **how)

        monkeypatch.setattr(appender, "append_rows", refresh_first)
        session = (await server.login("alice", device_id="PHONE", refresh_token=True)).body
        assert refreshed[0].status == 200
        for tokens, status in ((refreshed[0].body, 401), (stolen, 401), (session, 200)):
            assert (await server.whoami(tokens["access_token"])).status == status
            again = await server.post("/v3/refresh", {"refresh_token": tokens["refresh_token"]})
            assert again.status == status


async def test_a_login_to_a_device_that_is_deleted_meanwhile_makes_it_anew(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session would have no device: nobody could encrypt to it, and the list would not show it."""
    async with account_server(database) as server:
        await server.register("alice")
        devices, ensure, left = server.parts.devices, server.parts.devices.ensure, [1]

        async def deleted_meanwhile(*args: Any) -> str:
            device_id = await ensure(*args)
            if left:
                left.pop()
                await devices.delete(ALICE, [device_id])
            return device_id

        monkeypatch.setattr(devices, "ensure", deleted_meanwhile)
        session = (await server.login("alice", device_id="PHONE", refresh_token=True)).body
        assert (await server.whoami(session["access_token"])).body["device_id"] == "PHONE"
        assert (await devices.get(ALICE, "PHONE")).device_id == "PHONE"


@pytest.mark.parametrize("token", ["", "nonsense", "rvr_a_b_c", "x" * 9999, "é"])
async def test_a_wrong_refresh_token_is_refused(database: str, token: str) -> None:
    """A stranger could get a session, or a broken token would be answered 500."""
    async with account_server(database) as server:
        answer = await server.post("/v3/refresh", {"refresh_token": token})
        assert (answer.status, answer.errcode) == (401, "M_UNKNOWN_TOKEN")


async def test_sessions_end_when_the_configuration_says(database: str) -> None:
    """An administrator who limits sessions would have them go on for ever."""
    config = OPEN + "session_lifetime: 1h\nnonrefreshable_access_token_lifetime: 30m\n"
    async with account_server(database, config) as server:
        plain = await server.register("alice")
        assert plain["expires_in_ms"] == 1_800_000
        session = (await server.login("alice", refresh_token=True)).body
        server.clock.ms += 3_500_000
        session = (await server.post("/v3/refresh", {"refresh_token": session["refresh_token"]})).body
        assert session["expires_in_ms"] == 100_000
        server.clock.ms += 100_000
        over = await server.post("/v3/refresh", {"refresh_token": session["refresh_token"]})
        assert (over.status, over.body["soft_logout"]) == (401, True)
        await server.parts.expiry.sweep()
        over = await server.post("/v3/refresh", {"refresh_token": session["refresh_token"]})
        assert over.body["soft_logout"] is True
        server.clock.ms += 91 * 86_400_000
        await server.parts.expiry.sweep()
        assert await server.core.database.fetchval("SELECT count(*) FROM refresh_tokens") == 0


async def test_an_imported_user_logs_in_with_the_password_that_they_have(database: str) -> None:
    """After moving from another server everybody would need a new password."""
    stored = bcrypt.hashpw((PASSWORD + "pepper").encode(), bcrypt.gensalt(4)).decode()
    config = "password_config: {pepper: pepper, argon2: {time_cost: 1, memory: 64K}}\n"
    async with account_server(database, config) as server:
        store = AccountStore(server.core.database)
        await store.create(NewAccount(user_id="@Old.Name:example.org", password_hash=stored, created_ts=1))
        assert (await server.login("old.name", "wrong")).status == 403
        assert (await server.login("Old.Name")).body["user_id"] == "@Old.Name:example.org"
        kept = await server.core.database.fetchval("SELECT password_hash FROM accounts")
        assert kept.startswith("$argon2id$")
        assert (await server.login("old.name")).status == 200
        async with account_server(database, config) as other:
            await server.core.database.execute("UPDATE accounts SET password_hash = $1", stored)
            at_once = await asyncio.gather(*(it.login("old.name") for it in (server, other, server, other)))
            assert {answer.status for answer in at_once} == {200}


async def test_passwords_can_not_be_tried_without_end(database: str) -> None:
    """Somebody could guess a password by trying, or lock others out by failing on purpose from afar."""
    rates = {"rc_login.failed_attempts": Rate(0.1, 2)}
    async with account_server(database, rates=rates) as server:
        await server.register("alice")
        await server.register("bob")
        assert [(await server.login("alice", "wrong")).status for _ in range(3)] == [403, 403, 429]
        assert (await server.login("ALICE")).status == 429
        assert (await server.login("bob")).status == 200
        server.clock.ms += 10_000
        assert (await server.login("alice")).status == 200
    rates = {"rc_login.account": Rate(0.1, 2), "rc_login.address": Rate(0.1, 3)}
    async with account_server(database, rates=rates) as server:
        assert [(await server.login("alice")).status for _ in range(3)] == [200, 200, 429]
        assert (await server.login("bob")).status == 429


async def test_passwords_tried_at_once_are_counted(database: str) -> None:
    """Somebody could try hundreds of passwords in the time in which one is checked."""
    rates = {"rc_login.failed_attempts": Rate(0.1, 3)}
    async with account_server(database, OPEN.partition("password_config")[0], rates=rates) as server:
        await server.register("alice")
        guesses = [*(f"wrong {n}" for n in range(10)), PASSWORD]
        check = server.parts.login.check_password
        outcomes = await asyncio.gather(*(check("alice", guess) for guess in guesses), return_exceptions=True)
        statuses = [outcome.status for outcome in outcomes if isinstance(outcome, MatrixError)]
        assert statuses == [403] * 3 + [429] * 8
        server.clock.ms += 30_000
        at_once = await asyncio.gather(*(server.login("alice") for _ in range(5)))
        assert [answer.status for answer in at_once] == [200] * 5


async def test_no_more_than_some_passwords_of_one_user_wait(database: str) -> None:
    """Somebody could have a worker check their own password for hours, in thousands of requests."""
    rates = {"rc_login.failed_attempts": Rate(1000, 1000)}
    async with account_server(database, OPEN.partition("password_config")[0], rates=rates) as server:
        await server.register("alice")
        check = server.parts.login.check_password
        outcomes = await asyncio.gather(
            *(check("alice", PASSWORD) for _ in range(200)), return_exceptions=True
        )
        refused = [outcome.status for outcome in outcomes if isinstance(outcome, MatrixError)]
        assert set(refused) == {429}
        assert 0 < len(refused) < len(outcomes)
        assert (await server.login("alice")).status == 200


async def test_tokens_are_not_stored(database: str) -> None:
    """Whoever reads a backup of the database could act for every user."""
    async with account_server(database, CHEAP + OPEN.partition("\n")[0]) as server:
        user_id = await server.parts.registration.register("alice", PASSWORD)
        device_id = await server.parts.devices.ensure(user_id, None, None)
        issued = await server.parts.access_tokens.issue(user_id, device_id, refreshable=True)
        assert issued.access_token.startswith("rvt_")
        rows = await server.core.database.fetch("SELECT t::text FROM access_tokens t, refresh_tokens r")
        assert issued.access_token.rpartition("_")[0][-32:] not in str(rows)
        hashes = await server.core.database.fetchval("SELECT password_hash FROM accounts")
        assert hashes.startswith("$argon2id$")


async def test_without_the_local_password_database_no_password_logs_in(database: str) -> None:
    """An administrator who turned passwords off would leave that door open."""
    async with account_server(database, OPEN.replace("{argon2", "{localdb_enabled: false, argon2")) as server:
        await server.parts.registration.register("alice", PASSWORD)
        flows = (await server.get("/v3/login")).body["flows"]
        assert "m.login.password" not in {flow["type"] for flow in flows}
        answer = await server.login("alice")
        assert answer.status in (400, 403)
        assert "access_token" not in answer.body
