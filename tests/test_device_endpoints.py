"""Devices, keys, messages between devices and backups over HTTP, with real logins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from ranvier.client_api import devices, key_backup, keys, to_device
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import bind
from ranvier.processes.core import Core as ProcessCore
from ranvier.processes.encryption import EncryptionParts, build_encryption
from ranvier.rooms.draft import Identity as ServerIdentity
from ranvier.spec.filters import NO_FILTER
from ranvier.sync.context import SyncContext, UserSection
from ranvier.sync.sections.device_lists import DeviceListsSection
from ranvier.sync.sections.one_time_keys import OneTimeKeyCountsSection, UnusedFallbackKeysSection
from ranvier.sync.sections.to_device import ToDeviceSection
from ranvier.wire.tokens import Token
from tests.account_server import PASSWORD, AccountServer, Answer, account_server
from tests.core import KEY, SERVER_NAME
from tests.test_cross_signing import Identity
from tests.test_keys import identity, one_time

ROUTES = [*devices.ROUTES, *keys.ROUTES, *to_device.ROUTES, *key_backup.ROUTES]
ALICE, BOB = "@alice:example.org", "@bob:example.org"


@dataclass
class Server:
    """Endpoints of accounts, and beside them those of devices."""

    accounts: AccountServer
    parts: EncryptionParts
    sections: Mapping[str, UserSection]
    url: str
    tokens: dict[str, str]
    http: aiohttp.ClientSession

    async def ask(self, who: str, method: str, path: str, body: Any = None, **query: str) -> Answer:
        """Send a request as a device (``path`` after ``/_matrix/client/v3``)."""
        async with self.http.request(
            method,
            f"{self.url}/_matrix/client/v3{path}",
            json=body,
            params=query,
            headers={"Authorization": f"Bearer {self.tokens[who]}"},
        ) as response:
            return Answer(response.status, await response.json(content_type=None))

    async def login(self, name: str, user: str, device_id: str) -> None:
        answer = await self.accounts.login(user, device_id=device_id)
        self.tokens[name] = answer.body["access_token"]

    async def sync(self, user_id: str, device_id: str, since: Token | None) -> dict[str, bytes]:
        """Ask the sections as an answer to /sync does."""
        tail = self.accounts.core.tail
        context = SyncContext(
            user_id=user_id,
            device_id=device_id,
            filter=NO_FILTER,
            since=since,
            upto=Token(tail.pos),
            joined=[],
            newly_joined=frozenset(),
            left=frozenset(),
            in_tail=since is not None,
        )
        answer = {}
        for key, section in self.sections.items():
            value = await (section.initial(context) if since is None else section.since(context))
            if value is not None:
                answer[key] = value
        return answer


@asynccontextmanager
async def serving(dsn: str) -> AsyncIterator[Server]:
    async with account_server(dsn) as accounts, aiohttp.ClientSession() as http:
        limiter = RateLimiter({"rc_key_requests": Rate(0.001, 2)})
        core = {**vars(accounts.core), "clock": accounts.clock, "identity": ServerIdentity(SERVER_NAME, KEY)}
        parts = build_encryption(cast(ProcessCore, SimpleNamespace(**core)))
        sections = {
            "to_device": ToDeviceSection(parts.inboxes),
            "device_lists": DeviceListsSection(parts.device_lists),
            "device_one_time_keys_count": OneTimeKeyCountsSection(parts.key_counts),
            "device_unused_fallback_key_types": UnusedFallbackKeysSection(parts.key_counts),
        }
        named = {**vars(accounts.parts), **vars(parts), "limiter": limiter, "clock": accounts.clock}
        application = Application(
            {"client": bind(ROUTES, named)},
            authentication=RequestAuthentication(accounts.parts.access_tokens),
            limiter=limiter,
            metrics=Metrics(),
        )
        listener = Listener(ListenerSettings((TcpAddress("127.0.0.1", 0),)), application.endpoint(["client"]))
        await listener.start()
        address = listener.addresses[0]
        assert isinstance(address, TcpAddress)
        try:
            server = Server(accounts, parts, sections, f"http://127.0.0.1:{address.port}", {}, http)
            for user in ("alice", "bob"):
                answer = await accounts.register(
                    user, device_id=user.upper(), initial_device_display_name=user
                )
                server.tokens[user] = answer["access_token"]
            yield server
        finally:
            await listener.stop(grace_s=2)


@pytest.fixture
async def server(database: str) -> AsyncIterator[Server]:
    """A server with Alice and Bob, one device each."""
    async with serving(database) as running:
        yield running


def password_auth(session: str) -> dict[str, Any]:
    user = {"type": "m.id.user", "user": "alice"}
    return {"type": "m.login.password", "identifier": user, "password": PASSWORD, "session": session}


async def test_devices_are_listed_and_renamed(server: Server) -> None:
    """A user could not tell their devices apart."""
    await server.login("second", "alice", "TABLET")
    listed = await server.ask("alice", "GET", "/devices")
    assert {d["device_id"]: d.get("display_name") for d in listed.body["devices"]} == {
        "ALICE": "alice",
        "TABLET": None,
    }
    assert (await server.ask("alice", "PUT", "/devices/TABLET", {"display_name": "kitchen"})).status == 200
    assert (await server.ask("second", "GET", "/devices/TABLET")).body["display_name"] == "kitchen"
    for method, body in (("GET", None), ("PUT", {"display_name": "x"}), ("PUT", {})):
        missing = await server.ask("bob", method, "/devices/TABLET", body)
        assert (missing.status, missing.errcode) == (404, "M_NOT_FOUND")
    assert (await server.ask("alice", "PUT", "/devices/TABLET", {"display_name": 5})).errcode == "M_BAD_JSON"


async def test_deleting_a_device_needs_the_password(server: Server) -> None:
    """A stolen access token could throw the user out of all other devices."""
    await server.login("second", "alice", "TABLET")
    asked = await server.ask("alice", "DELETE", "/devices/TABLET", {})
    assert asked.status == 401
    assert asked.body["flows"] == [{"stages": ["m.login.password"]}]
    wrong = {**password_auth(asked.body["session"]), "password": "no"}
    assert (await server.ask("alice", "DELETE", "/devices/TABLET", {"auth": wrong})).status == 401
    auth = password_auth(asked.body["session"])
    assert (await server.ask("alice", "DELETE", "/devices/TABLET", {"auth": auth})).status == 200
    gone = await server.ask("second", "GET", "/devices")
    assert (gone.status, gone.errcode) == (401, "M_UNKNOWN_TOKEN")


async def test_deleting_several_devices(server: Server) -> None:
    """A user could not clear out old devices at once."""
    for name in ("A", "B"):
        await server.login(name, "alice", name)
    assert (await server.ask("alice", "POST", "/delete_devices", {})).errcode == "M_BAD_JSON"
    many = {"devices": [f"D{n}" for n in range(1001)]}
    assert (await server.ask("alice", "POST", "/delete_devices", many)).errcode == "M_TOO_LARGE"
    body = {"devices": ["A", "B", "GONE"]}
    asked = await server.ask("alice", "POST", "/delete_devices", body)
    assert asked.status == 401
    body = {**body, "auth": password_auth(asked.body["session"])}
    assert (await server.ask("alice", "POST", "/delete_devices", body)).status == 200
    listed = await server.ask("alice", "GET", "/devices")
    assert [d["device_id"] for d in listed.body["devices"]] == ["ALICE"]


async def test_keys_go_from_one_device_to_another(server: Server) -> None:
    """Nobody could begin an encrypted conversation."""
    upload = {"device_keys": identity(ALICE, "ALICE"), "one_time_keys": one_time(3)}
    uploaded = await server.ask("alice", "POST", "/keys/upload", upload)
    assert uploaded.body == {"one_time_key_counts": {"signed_curve25519": 3}}
    assert (await server.ask("alice", "POST", "/keys/upload", {})).body == uploaded.body
    queried = await server.ask("bob", "POST", "/keys/query", {"device_keys": {ALICE: []}, "timeout": 1000})
    assert queried.body["device_keys"][ALICE]["ALICE"]["keys"] == identity(ALICE, "ALICE")["keys"]
    assert queried.body["failures"] == {}
    wanted = {"one_time_keys": {ALICE: {"ALICE": "signed_curve25519"}}}
    claimed = await server.ask("bob", "POST", "/keys/claim", wanted)
    assert len(claimed.body["one_time_keys"][ALICE]["ALICE"]) == 1
    for path, body in (
        ("/keys/upload", {"device_keys": 5}),
        ("/keys/query", {}),
        ("/keys/query", {"device_keys": {ALICE: [5]}}),
        ("/keys/claim", {"one_time_keys": {ALICE: {"ALICE": 5}}}),
    ):
        assert (await server.ask("bob", "POST", path, body)).errcode == "M_BAD_JSON"


async def test_key_changes(server: Server) -> None:
    """A client that was offline would not learn of new devices."""
    token = str(Token(server.accounts.core.tail.pos))
    await server.ask("alice", "POST", "/keys/upload", {"device_keys": identity(ALICE, "ALICE")})
    changes = await server.ask("alice", "GET", "/keys/changes", **{"from": token, "to": token})
    assert changes.body == {"changed": [ALICE], "left": []}
    others = await server.ask("bob", "GET", "/keys/changes", **{"from": token, "to": token})
    assert others.body == {"changed": [], "left": []}
    assert (await server.ask("bob", "GET", "/keys/changes", to=token)).errcode == "M_MISSING_PARAM"
    bad = await server.ask("bob", "GET", "/keys/changes", **{"from": "x", "to": token})
    assert bad.errcode == "M_INVALID_PARAM"


async def test_cross_signing_keys_are_replaced_with_the_password(server: Server) -> None:
    """A stolen access token could replace the user's identity."""
    path = "/keys/device_signing/upload"

    def body(seed: int) -> dict[str, Any]:
        keys = Identity(ALICE, "ALICE", seed).keys
        return {f"{usage}_key": key for usage, key in keys.items()}

    assert (await server.ask("alice", "POST", path, body(10))).status == 200
    assert (await server.ask("alice", "POST", path, body(10))).status == 200
    asked = await server.ask("alice", "POST", path, body(60))
    assert asked.status == 401
    auth = password_auth(asked.body["session"])
    assert (await server.ask("alice", "POST", path, {**body(60), "auth": auth})).status == 200
    queried = await server.ask("bob", "POST", "/keys/query", {"device_keys": {ALICE: []}})
    assert queried.body["master_keys"][ALICE] == Identity(ALICE, "ALICE", 60).key("master")
    me = Identity(ALICE, "ALICE", 60)
    await server.ask("alice", "POST", "/keys/upload", {"device_keys": me.device})
    signed = {ALICE: {"ALICE": me.sign(me.device, "self_signing"), "GONE": me.device}}
    answer = await server.ask("alice", "POST", "/keys/signatures/upload", signed)
    assert answer.status == 200
    assert list(answer.body["failures"][ALICE]) == ["GONE"]


async def test_a_message_reaches_the_device_through_sync(server: Server) -> None:
    """Keys, verification and calls would not reach other devices."""
    first = Token(server.accounts.core.tail.pos)
    assert await server.sync(ALICE, "ALICE", None) == {
        "device_one_time_keys_count": b'{"signed_curve25519":0}',
        "device_unused_fallback_key_types": b"[]",
    }
    body = {"messages": {ALICE: {"ALICE": {"n": 1}}}}
    for _ in range(2):
        assert (await server.ask("bob", "PUT", "/sendToDevice/m.test/t1", body)).body == {}
    answer = await server.sync(ALICE, "ALICE", first)
    expected = b'{"events":[{"content":{"n":1},"sender":"@bob:example.org","type":"m.test"}]}'
    assert answer["to_device"] == expected
    second = Token(server.accounts.core.tail.pos)
    assert "to_device" not in await server.sync(ALICE, "ALICE", second)
    bad = await server.ask("bob", "PUT", "/sendToDevice/m.test/t2", {"messages": {ALICE: {"ALICE": 5}}})
    assert bad.errcode == "M_BAD_JSON"


async def test_new_keys_show_in_sync(server: Server) -> None:
    """A device would run out of one-time keys, or not hear of another device of its user."""
    first = Token(server.accounts.core.tail.pos)
    upload = {"device_keys": identity(ALICE, "ALICE"), "one_time_keys": one_time(3)}
    await server.ask("alice", "POST", "/keys/upload", upload)
    answer = await server.sync(ALICE, "ALICE", first)
    assert answer == {
        "device_lists": b'{"changed":["@alice:example.org"],"left":[]}',
        "device_one_time_keys_count": b'{"signed_curve25519":3}',
        "device_unused_fallback_key_types": b"[]",
    }


async def test_key_requests_are_limited(server: Server) -> None:
    """A client that can not read a room would keep all devices of all members busy."""
    answers = [
        await server.ask("bob", "PUT", f"/sendToDevice/m.room_key_request/t{n}", {"messages": {}})
        for n in range(3)
    ]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_a_backup_over_http(server: Server) -> None:
    """A new device could not read old messages."""
    version = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "k"}}
    assert (await server.ask("alice", "POST", "/room_keys/version", version)).body == {"version": "1"}
    key = {"first_message_index": 0, "forwarded_count": 0, "is_verified": True, "session_data": {"mac": "m"}}
    room = "/room_keys/keys/!r:example.org"
    stored = await server.ask("alice", "PUT", f"{room}/s%2F1", key, version="1")
    assert stored.body == {"etag": "1", "count": 1}
    await server.ask("alice", "PUT", room, {"sessions": {"s2": key}}, version="1")
    everything = {"rooms": {"!o:example.org": {"sessions": {"s3": key}}}}
    assert (await server.ask("alice", "PUT", "/room_keys/keys", everything, version="1")).body["count"] == 3
    assert (await server.ask("alice", "GET", f"{room}/s%2F1", version="1")).body == key
    assert set((await server.ask("alice", "GET", room, version="1")).body["sessions"]) == {"s/1", "s2"}
    assert set((await server.ask("alice", "GET", "/room_keys/keys", version="1")).body["rooms"]) == {
        "!r:example.org",
        "!o:example.org",
    }
    assert (await server.ask("alice", "GET", f"{room}/none", version="1")).errcode == "M_NOT_FOUND"
    assert (await server.ask("alice", "GET", room)).errcode == "M_MISSING_PARAM"
    assert (await server.ask("bob", "GET", room, version="1")).errcode == "M_NOT_FOUND"
    changed = {**version, "auth_data": {"public_key": "l"}}
    assert (await server.ask("alice", "PUT", "/room_keys/version/1", changed)).body == {}
    current = (await server.ask("alice", "GET", "/room_keys/version")).body
    assert current == {**changed, "version": "1", "etag": "3", "count": 3}
    assert (await server.ask("alice", "GET", "/room_keys/version/1")).body == current
    assert (await server.ask("alice", "DELETE", f"{room}/s2", version="1")).body["count"] == 2
    assert (await server.ask("alice", "DELETE", room, version="1")).body["count"] == 1
    assert (await server.ask("alice", "DELETE", "/room_keys/keys", version="1")).body["count"] == 0
    assert (await server.ask("alice", "DELETE", "/room_keys/version/1")).body == {}
    assert (await server.ask("alice", "GET", "/room_keys/version")).errcode == "M_NOT_FOUND"
