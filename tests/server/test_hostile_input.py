"""What a stranger can send to any endpoint is refused in the specification's words, or harmless."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from ranvier.http.route import Auth, Route, parameters
from ranvier.processes.application import client_routes
from tests.clients.sync_compare import Mode, differences
from tests.clients.sync_model import World
from tests.postgres import private_folder
from tests.server.hostile_values import BODIES, PIECES, VALUES, hostile_bodies, nodes, replaced
from tests.server.http_client import HttpClient, Refused
from tests.server.process import SHARED_SECRET, ServerProcess
from tests.server.request_examples import SPECIAL, Scene, prepare
from tests.spec_openapi import operations, serving

SEED = 7
_AT_ONCE = 6
_ANSWER_S = 20
# The codes of the specification's text and OpenAPI files; what is not here no client understands.
KNOWN = frozenset(
    (
        "M_APPSERVICE_LOGIN_UNSUPPORTED",
        "M_BAD_ALIAS",
        "M_BAD_JSON",
        "M_BAD_STATE",
        "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
        "M_CAPTCHA_INVALID",
        "M_CAPTCHA_NEEDED",
        "M_DUPLICATE_ANNOTATION",
        "M_EXCLUSIVE",
        "M_FORBIDDEN",
        "M_GUEST_ACCESS_FORBIDDEN",
        "M_INCOMPATIBLE_ROOM_VERSION",
        "M_INVALID_PARAM",
        "M_INVALID_ROOM_STATE",
        "M_INVALID_SIGNATURE",
        "M_INVALID_USERNAME",
        "M_INVITE_BLOCKED",
        "M_KEY_TOO_LARGE",
        "M_LIMIT_EXCEEDED",
        "M_MISSING_PARAM",
        "M_MISSING_TOKEN",
        "M_NOT_FOUND",
        "M_NOT_JSON",
        "M_PROFILE_TOO_LARGE",
        "M_RESOURCE_LIMIT_EXCEEDED",
        "M_ROOM_IN_USE",
        "M_SERVER_NOT_TRUSTED",
        "M_THREEPID_DENIED",
        "M_TOO_LARGE",
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "M_UNABLE_TO_GRANT_JOIN",
        "M_UNAUTHORIZED",
        "M_UNKNOWN",
        "M_UNKNOWN_DEVICE",
        "M_UNKNOWN_TOKEN",
        "M_UNRECOGNIZED",
        "M_UNSUPPORTED_ROOM_VERSION",
        "M_USER_DEACTIVATED",
        "M_USER_IN_USE",
        "M_USER_LIMIT_EXCEEDED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
        "M_WEAK_PASSWORD",
        "M_WRONG_ROOM_KEYS_VERSION",
    )
)
_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
# Pages of single sign-on, which are not there without a provider (tests/test_sso_attacks.py has one).
_PAGES = frozenset(
    (
        *("choose_provider", "redirect_to_provider", "come_back", "ask_name", "choose_name", "give_access"),
        "show_fallback",
    )
)
# Refusing the example is right: nothing to refresh to, a made-up signature, rights that nobody here has.
_REFUSED = {
    "get_well_known_client": 404,
    "get_well_known_support": 404,
    "get_auth_metadata": 404,
    "register_by_secret": 400,
    "forget": 400,
    "kick": 403,
    "unban": 403,
    **dict.fromkeys(_PAGES, 404),
}


@dataclass
class Stage:
    """The server, and people whom the attacked endpoints may name."""

    server: ServerProcess
    session: aiohttp.ClientSession
    stack: AsyncExitStack
    target: HttpClient
    stranger: HttpClient
    quiet: HttpClient
    victim: HttpClient
    admin: HttpClient
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    async def scene(self) -> Scene:
        """Make a user with one of everything."""
        user = await self.stack.enter_async_context(HttpClient(self.server.url))
        name = self.server.server_name
        try:
            scene = await prepare(user, server_name=name, target=self.target, stranger=self.stranger)
        except Refused as error:
            raise AssertionError(f"{error}: {self.server.log[-3000:]}") from error
        scene.values["victim"], scene.admin_token = self.victim.user_id, str(self.admin.token)
        return scene

    async def ask(
        self, method: str, raw_path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request as it is, and note whatever is wrong with the answer."""
        what = f"{method} {raw_path[:200]} {(body or b'')[:300]!r}"
        try:
            async with self.session.request(
                method, URL(self.server.url + raw_path, encoded=True), data=body, headers=headers or {}
            ) as response:
                status, answer = response.status, await response.read()
                kind = response.headers.get("Content-Type")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.wrong.append(f"{what}: no answer: {error!r}")
            return 0, None
        self.statuses[status] += 1
        problem, decoded = _problem(status, answer, kind)
        if problem:
            self.wrong.append(f"{what}: {status} {problem}: {answer[:300]!r}")
        return status, decoded


def _problem(status: int, answer: bytes, kind: str | None) -> tuple[str, Any]:
    """Say what is wrong with an answer, whatever the question was.

    Source: client-server API, "Standard error response".
    """
    try:
        decoded = json.loads(answer)
    except ValueError:
        return "not JSON", None
    if kind != "application/json":
        return f"content type {kind}", decoded
    if status >= 500:
        return "the server failed", decoded
    if status < 400:
        return "", decoded
    if not isinstance(decoded, dict):
        return "no error object", decoded
    if status == 401 and "flows" in decoded:
        return ("" if isinstance(decoded.get("session"), str) else "no session"), decoded
    if decoded.get("errcode") not in KNOWN or not isinstance(decoded.get("error"), str):
        return "unknown error", decoded
    if (status == 429) != (decoded["errcode"] == "M_LIMIT_EXCEEDED"):
        return "a limit is 429", decoded
    return "", decoded


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a server of the module's own, without limits of rate."""
    settings = {
        "room_list_publication_rules": [{"action": "allow"}],
        "rc_room_creation": _UNLIMITED,
        "rc_profile": _UNLIMITED,
        "rc_reports": _UNLIMITED,
        "rc_user_directory": _UNLIMITED,
    }
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private_folder())
        server = ServerProcess(folder, settings)
        stack.push_async_callback(server.stop)
        await server.start()
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        clients = [await stack.enter_async_context(HttpClient(server.url)) for _ in range(5)]
        target, stranger, quiet, victim = [await client.register() for client in clients[:4]]
        admin = await clients[4].register_admin(SHARED_SECRET, "root")
        yield Stage(
            server,
            session,
            stack,
            target=target,
            stranger=stranger,
            quiet=quiet,
            victim=victim,
            admin=admin,
        )


def _url(route: Route, values: dict[str, str], query: dict[str, str]) -> str:
    """Write the raw path and query of a request; values are encoded, except in ``raw`` places."""
    path = route.paths[0]
    for name in parameters(path):
        path = path.replace("{" + name + "}", quote(values[name], safe=""))
    return path + _query({name: quote(value, safe="") for name, value in query.items()})


def _query(pieces: dict[str, str]) -> str:
    return "?" + "&".join(f"{name}={piece}" for name, piece in pieces.items()) if pieces else ""


def _headers(route: Route, scene: Scene) -> dict[str, str]:
    if route.auth is Auth.NONE:
        return {}
    token = scene.admin_token if route.auth is Auth.ADMIN else scene.user.token
    return {"Authorization": f"Bearer {token}"}


async def _good(stage: Stage, scene: Scene, route: Route) -> tuple[int, Any]:
    body = scene.body(route)
    return await stage.ask(
        route.method,
        _url(route, scene.parameters(route), scene.query(route)),
        None if body is None else json.dumps(body).encode(),
        _headers(route, scene),
    )


async def _in_parallel(work: Iterable[Any]) -> None:
    """Run coroutines, a few at a time."""
    waiting = iter(work)

    async def one_after_another() -> None:
        for coroutine in waiting:
            await coroutine

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(one_after_another())


def _check(stage: Stage) -> None:
    """Fail with what went wrong; one line of each kind is enough to read."""
    kinds = {re.sub(r"[^a-z]+", " ", line.split(" ", 2)[1] + line[-120:]): line for line in stage.wrong}
    log = [line for line in stage.server.log.splitlines() if "Traceback" in line]
    assert not stage.wrong, "\n".join([f"{len(stage.wrong)} wrong, {len(log)} tracebacks", *kinds.values()])
    assert not log, stage.server.log[-5000:]


async def test_every_endpoint_answers_a_good_request(stage: Stage) -> None:
    """An endpoint would not work at all."""
    unexpected: list[str] = []

    async def one(route: Route) -> None:
        scene = await stage.scene()
        status, answer = await _good(stage, scene, route)
        expected = _REFUSED.get(route.name, 200)
        if status != expected:
            unexpected.append(f"{route.name}: {status} {str(answer)[:300]}")

    await _in_parallel(one(route) for route in client_routes())
    assert not unexpected, "\n".join(unexpected)
    _check(stage)


async def test_hostile_bodies(stage: Stage) -> None:
    """A client's broken request would fail inside the server, or spoil others' sync."""
    chance = random.Random(SEED)
    witness = World()
    witness.apply(await stage.target.sync())
    room_id = await stage.quiet.create_room()
    before = (await stage.quiet.sync())["next_batch"]
    event_id = await stage.quiet.send(room_id, "quiet")

    async def attack(route: Route) -> None:
        scene = await stage.scene()
        headers = _headers(route, scene)
        good = scene.body(route)
        bodies = [*BODIES, *(hostile_bodies(good, chance, values_per_node=6) if good is not None else ())]
        for body in bodies:
            url = _url(route, {**scene.parameters(route), "txn_id": str(id(body))}, scene.query(route))
            status, answer = await stage.ask(route.method, url, body, headers)
            if status == 401 and answer.get("errcode") in ("M_UNKNOWN_TOKEN", "M_USER_DEACTIVATED"):
                scene = await stage.scene()  # logged out, as it wished
                headers = _headers(route, scene)

    await _in_parallel(attack(route) for route in client_routes() if route.method != "GET")
    _check(stage)
    await _check_witness(stage, witness)
    told = await stage.quiet.sync(before)
    events = told["rooms"]["join"][room_id]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [event_id]


async def _check_witness(stage: Stage, witness: World) -> None:
    """Insist that who was in every attacked room sees the same by increments as afresh."""
    witness.apply(await stage.target.sync(witness.since))
    while (answer := await stage.target.sync(witness.since))["next_batch"] != witness.since:
        witness.apply(answer)
    fresh = World()
    fresh.apply(await stage.target.sync())
    found = differences(witness, fresh, Mode("plain"), set())
    assert not found, "\n".join(line[:600] for line in found[:20])


async def test_hostile_paths_and_queries(stage: Stage) -> None:
    """A strange URL would fail inside the server."""
    chance = random.Random(SEED)
    served = serving(client_routes())
    queries: dict[str, set[str]] = {}
    for operation in operations():
        route = served[operation.method, operation.path]
        if route is not None:
            queries.setdefault(route.name, set()).update(operation.query)

    async def attack(route: Route) -> None:
        scene = await stage.scene()
        body = scene.body(route)
        data = None if body is None else json.dumps(body).encode()
        urls = [
            *_hostile_paths(route, scene),
            *_hostile_queries(route, scene, queries.get(route.name, set())),
        ]
        for url in chance.sample(urls, min(len(urls), 90)):
            status, answer = await stage.ask(route.method, url, data, _headers(route, scene))
            if status == 401 and answer.get("errcode") in ("M_UNKNOWN_TOKEN", "M_USER_DEACTIVATED"):
                scene = await stage.scene()

    await _in_parallel(attack(route) for route in client_routes())
    _check(stage)


def _hostile_paths(route: Route, scene: Scene) -> list[str]:
    values = {name: quote(value, safe="") for name, value in scene.parameters(route).items()}
    urls = []
    for name in parameters(route.paths[0]):
        for piece in PIECES:
            path = route.paths[0]
            for other, value in {**values, name: piece}.items():
                path = path.replace("{" + other + "}", value)
            urls.append(path + _query({k: quote(v, safe="") for k, v in scene.query(route).items()}))
    return urls


def _hostile_queries(route: Route, scene: Scene, names: set[str]) -> list[str]:
    path = _url(route, scene.parameters(route), {})
    good = {name: quote(value, safe="") for name, value in scene.query(route).items()}
    urls = [
        path + "?" + "&".join(["a=b"] * 500),
        path + "?%FF=%FF",
        path + "?&&=&a",
        path + "?" + "x" * 20_000,
    ]
    for name in sorted({*names, *good}):
        urls += [
            path + _query({**good, name: piece}) for piece in PIECES if name != "timeout" or piece != "1"
        ]
        urls.append(path + _query({other: value for other, value in good.items() if other != name}))
        urls.append(f"{path}{_query(good)}{'&' if good else '?'}{name}=a&{name}=b")
    return urls


async def test_no_text_holds_a_nul(stage: Stage) -> None:
    """A character that the database can not keep would be a failure, or be cut out in silence."""
    accepted: list[str] = []

    async def ask(route: Route, scene: Scene, url: str, data: bytes | None, errcode: str) -> None:
        status, answer = await stage.ask(route.method, url, data, _headers(route, scene))
        if (status, isinstance(answer, dict) and answer.get("errcode")) != (400, errcode):
            accepted.append(
                f"{route.name}: {url[:200]} {(data or b'')[:200]!r}: {status} {str(answer)[:200]}"
            )

    async def attack(route: Route) -> None:
        scene = await stage.scene()
        values, query, body = scene.parameters(route), scene.query(route), scene.body(route)
        data = None if body is None else json.dumps(body).encode()
        for name, value in values.items():
            await ask(
                route, scene, _url(route, {**values, name: value + "\0"}, query), data, "M_INVALID_PARAM"
            )
        for name, value in query.items():
            url = _url(route, values, {**query, name: "\0" + value})
            await ask(route, scene, url, data, "M_INVALID_PARAM")
        for path in nodes(body):
            for text in ('"a\\u0000"', '{"\\u0000":1}'):
                await ask(route, scene, _url(route, values, query), replaced(body, path, text), "M_BAD_JSON")

    await _in_parallel(attack(route) for route in client_routes() if route.name not in _PAGES)
    assert not accepted, f"{len(accepted)} accepted\n" + "\n".join(accepted[:40])
    _check(stage)


async def test_who_asks_is_checked_everywhere(stage: Stage) -> None:
    """Somebody without a right token, or a guest, would be let in, or be refused without a reason."""
    scene = await stage.scene()
    guest = (await stage.quiet.request("POST", "/v3/register", {}, kind="guest"))["access_token"]
    gone = await stage.scene()
    await gone.user.post("/v3/logout")
    for route in client_routes():
        if route.auth is Auth.NONE:
            continue
        url = _url(route, scene.parameters(route), scene.query(route))
        body = json.dumps(scene.body(route) or {}).encode()

        async def answer(
            header: str, url: str = url, method: str = route.method, body: bytes = body
        ) -> tuple[int, Any]:
            status, decoded = await stage.ask(method, url, body, {"Authorization": header} if header else {})
            return status, decoded.get("errcode") if isinstance(decoded, dict) else None

        if route.auth is not Auth.OPTIONAL:
            assert await answer("") == (401, "M_MISSING_TOKEN"), route.name
        for token in ("x", "\xff", "a" * 5000, str(gone.user.token), "syt_x_y_z", "%00"):
            assert await answer(f"Bearer {token}") == (401, "M_UNKNOWN_TOKEN"), (route.name, token[:30])
        for header in ("Basic eDp5", "Bearer", "bearer  "):
            assert await answer(header) == (401, "M_MISSING_TOKEN"), (route.name, header)
        if route.auth in (Auth.USER, Auth.ADMIN):
            assert await answer(f"Bearer {guest}") == (403, "M_GUEST_ACCESS_FORBIDDEN"), route.name
    _check(stage)


async def test_strange_events_in_every_room_version(stage: Stage) -> None:
    """An event that is special to the server would break a room, or somebody's sync, by what is in it."""
    chance = random.Random(SEED)
    witness = World()
    witness.apply(await stage.target.sync())

    async def attack(version: str) -> None:
        scene = await stage.scene()
        room_id = await scene.user.create_room(room_version=version)
        await stage.target.join(room_id)
        scene.values["room_id"], scene.values["event_id"] = room_id, await scene.user.send(room_id, "hello")
        headers = {"Authorization": f"Bearer {scene.user.token}"}
        for number, (type_, content) in enumerate(SPECIAL.items()):
            good = scene.filled(content)
            bodies = [json.dumps(good).encode(), b"{}"]
            bodies += [replaced(good, path, chance.choice(VALUES)) for path in nodes(good) for _ in range(2)]
            path = f"/_matrix/client/v3/rooms/{quote(room_id)}"
            for at, body in enumerate(bodies):
                await stage.ask("PUT", f"{path}/send/{type_}/{number}-{at}", body, headers)
                for key in ("", quote(stage.target.user_id), "x"):
                    await stage.ask("PUT", f"{path}/state/{type_}/{key}", body, headers)
        for rest in ("state", "members", "messages?dir=b&limit=1000", "joined_members", "initialSync"):
            await stage.ask("GET", f"{path}/{rest}", None, headers)
        for rest in (f"room_summary/{quote(room_id)}", f"rooms/{quote(room_id)}/hierarchy"):
            await stage.ask("GET", f"/_matrix/client/v1/{rest}", None, headers)

    await _in_parallel(attack(version) for version in ("1", "6", "10", "11", "12"))
    await stage.ask("GET", "/_matrix/client/v3/publicRooms")
    _check(stage)
    await _check_witness(stage, witness)


async def test_refused_rooms_leave_nothing_behind(stage: Stage) -> None:
    """A room that could not be made as wished would be there half-made."""
    scene = await stage.scene()
    known = set((await scene.user.get("/v3/joined_rooms"))["joined_rooms"])
    route = next(route for route in client_routes() if route.name == "create_room")
    good = scene.body(route)
    made = set()
    for body in hostile_bodies(good, random.Random(SEED), values_per_node=6):
        status, answer = await stage.ask("POST", route.paths[0], body, _headers(route, scene))
        if status == 200:
            made.add(answer["room_id"])
    now = set((await scene.user.get("/v3/joined_rooms"))["joined_rooms"])
    assert now - known == made
    _check(stage)
