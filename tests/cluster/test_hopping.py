"""Any worker, any request: clients that ask another worker each time notice nothing of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import aiohttp
import pytest

from ranvier.cluster.placement import READ, ROOM, ranked
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.machine import Machine
from tests.server.http_client import Refused, bodies, position

ALL = json.dumps({"room": {"timeline": {"limit": 1000}}})
Hopper = Callable[[], HoppingClient]


async def settled(cluster: ClusterProcess | Machine) -> dict[str, int]:
    """Give how many requests each worker has answered, once they have told of all that was."""
    counts: dict[str, tuple[int, int]] = {}
    async with asyncio.timeout(20):
        while True:
            workers = await cluster.workers()
            now = {name: (it["beat"], it["requests"]) for name, it in workers.items()}
            if counts.keys() == now.keys() and all(now[name][0] > counts[name][0] for name in now):
                if all(now[name][1] == counts[name][1] for name in now):
                    return {name: requests for name, (_, requests) in now.items()}
                counts = now
            counts = counts if counts.keys() == now.keys() else now
            await asyncio.sleep(0.2)


async def test_a_client_that_hops_sees_its_own_writes_at_once(hopper: Hopper) -> None:
    """A message, a topic or account data would be missing right after the client was told it is stored."""
    client = await hopper().register()
    room_id = await client.create_room()
    room = f"/v3/rooms/{quote(room_id)}"
    since = (await client.sync())["next_batch"]
    for number in range(60):
        event_id = await client.send(room_id, f"message {number}")
        assert (await client.get(f"{room}/event/{quote(event_id)}"))["content"]["body"] == f"message {number}"
        answer = await client.sync(since)
        assert bodies(answer, room_id) == [f"message {number}"]
        assert position(answer["next_batch"]) > position(since)
        since = answer["next_batch"]
        await client.put(f"{room}/state/m.room.topic", {"topic": f"topic {number}"})
        assert (await client.get(f"{room}/state/m.room.topic"))["topic"] == f"topic {number}"
        path = f"/v3/user/{quote(client.user_id)}/account_data/org.example.n"
        await client.put(path, {"n": number})
        assert (await client.get(path)) == {"n": number}
        since = (await client.sync(since))["next_batch"]


async def test_what_one_was_answered_all_others_see(hopper: Hopper) -> None:
    """Two people beside each other would disagree about what was sent, whichever workers they ask."""
    alice, bob = [await hopper().register() for _ in range(2)]
    room_id = await alice.create_room()
    await bob.join(room_id)
    assert bob.user_id in (await alice.get(f"/v3/rooms/{quote(room_id)}/joined_members"))["joined"]
    since = (await bob.sync())["next_batch"]
    for number in range(60):
        writer, reader = (alice, bob) if number % 2 else (bob, alice)
        event_id = await writer.send(room_id, str(number))
        answer = await reader.get(f"/v3/rooms/{quote(room_id)}/messages", dir="b", limit=1)
        assert answer["chunk"][0]["event_id"] == event_id
        answer = await bob.sync(since)
        assert bodies(answer, room_id) == [str(number)]
        since = answer["next_batch"]


async def test_tokens_never_go_back(hopper: Hopper) -> None:
    """A client that hops while others write would be sent a message twice, or never."""
    writers = [await hopper().register() for _ in range(3)]
    reader = await hopper().register()
    room_id = await writers[0].create_room()
    for client in (*writers[1:], reader):
        await client.join(room_id)
    since = (await reader.sync())["next_batch"]
    expected = [f"{n} {number}" for n in range(3) for number in range(40)]

    async def write(n: int) -> None:
        for number in range(40):
            await writers[n].send(room_id, f"{n} {number}")

    writing = asyncio.gather(*(write(n) for n in range(3)))
    seen: list[str] = []
    async with asyncio.timeout(60):
        while len(seen) < len(expected):
            answer = await reader.sync(since, 5000, filter=ALL)
            assert position(answer["next_batch"]) >= position(since)
            since = answer["next_batch"]
            assert not answer["rooms"]["join"][room_id]["timeline"]["limited"]
            seen += bodies(answer, room_id)
    await writing
    assert sorted(seen) == sorted(expected)
    for n in range(3):
        assert [it for it in seen if it.startswith(f"{n} ")] == [f"{n} {number}" for number in range(40)]


async def test_a_transaction_is_sent_once_whichever_worker_a_retry_reaches(hopper: Hopper) -> None:
    """A client that repeats a request after a lost answer would send its message twice."""
    client = await hopper().register()
    room_id = await client.create_room()
    since = (await client.sync())["next_batch"]
    ids = await asyncio.gather(*(client.send(room_id, "once", txn_id="the one") for _ in range(12)))
    assert len(set(ids)) == 1
    assert bodies(await client.sync(since), room_id) == ["once"]


async def test_logging_out_holds_on_every_worker(hopper: Hopper) -> None:
    """A token that was given up would still let its finder in at another worker."""
    client = await hopper().register()
    for socket in client.sockets:
        client.choose = lambda socket=socket: socket  # type: ignore[method-assign,misc]
        await client.get("/v3/account/whoami")
    await client.post("/v3/logout")
    for socket in client.sockets:
        client.choose = lambda socket=socket: socket  # type: ignore[method-assign,misc]
        with pytest.raises(Refused) as refused:
            await client.get("/v3/account/whoami")
        assert refused.value.errcode == "M_UNKNOWN_TOKEN"


async def test_interactive_authentication_goes_on_at_any_worker(hopper: Hopper) -> None:
    """Registering in two steps would fail whenever the second step reaches another worker."""
    client = hopper()
    for number in range(6):
        body = {"username": f"two-steps-{number}", "password": "a long password"}
        with pytest.raises(Refused) as refused:
            await client.post("/v3/register", body)
        auth = {"type": "m.login.dummy", "session": refused.value.body["session"]}
        answer = await client.post("/v3/register", {**body, "auth": auth})
        assert answer["user_id"].startswith(f"@two-steps-{number}:")


async def test_typing_reaches_people_at_other_workers(hopper: Hopper) -> None:
    """Nobody at another worker would see that somebody writes."""
    alice, bob = [await hopper().register() for _ in range(2)]
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await bob.sync())["next_batch"]
    path = f"/v3/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
    await alice.put(path, {"typing": True, "timeout": 20_000})
    typing: list[str] = []
    async with asyncio.timeout(10):
        while alice.user_id not in typing:
            answer = await bob.sync(since, 2000)
            since = answer["next_batch"]
            for event in (
                answer.get("rooms", {})
                .get("join", {})
                .get(room_id, {})
                .get("ephemeral", {})
                .get("events", [])
            ):
                typing = event["content"]["user_ids"]


async def test_writes_into_one_room_go_to_one_worker(cluster: ClusterProcess, hopper: Hopper) -> None:
    """Workers would overtake each other in a busy room, and each message would cost several attempts."""
    client = await hopper().register()
    room_id = await client.create_room()
    before = await settled(cluster)

    async def talk() -> None:
        for number in range(30):
            await client.send(room_id, str(number))

    await asyncio.gather(*(talk() for _ in range(6)))
    after = await settled(cluster)
    # Where nobody else wrote lately a worker writes itself; they notice each other within a few messages.
    # From then on the room's worker answers all: those it is asked for itself are about 60.
    assert max(after[name] - before[name] for name in after) >= 140


async def test_those_who_write_come_together_at_one_worker(cluster: ClusterProcess, hopper: Hopper) -> None:
    """Each worker would commit by itself what one could commit together: twice the work with four of them."""
    workers = await cluster.workers()
    (writer,) = [name for name, it in workers.items() if it["takes_rooms"]]
    clients = [await hopper().register() for _ in range(6)]
    rooms = [await client.create_room() for client in clients]
    api = f"{cluster.url}/_matrix/client/v3"

    async def connect() -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        for client, room_id in zip(clients, rooms, strict=True):
            headers = {"Authorization": f"Bearer {client.token}"}
            connector = aiohttp.TCPConnector(limit=1)
            async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
                yield session, room_id

    async def send(session: aiohttp.ClientSession, room_id: str, number: int) -> None:
        url = f"{api}/rooms/{quote(room_id)}/send/m.room.message/gathered{number}"
        async with session.put(url, json={"msgtype": "m.text", "body": str(number)}) as response:
            assert response.status == 200

    between = await settled(cluster)
    came = attempts = 0
    async with asyncio.timeout(60):
        while came < 24:  # a connection that the writer does not take at once stays for two seconds
            before = between
            async for session, room_id in connect():
                # The front looks at the first request alone, and this one is placed by its user.
                async with session.get(f"{api}/account/whoami") as response:
                    assert response.status == 200
                for number in range(4):
                    await send(session, room_id, 10 * attempts + number)
            between = await settled(cluster)
            assert sum(between[name] - before[name] for name in workers) == 30
            came = between[writer] - before[writer]
            attempts += 1
    async for session, room_id in connect():
        await send(session, room_id, 9)  # the front knows who writes
    after = await settled(cluster)
    told = {name: after[name] - between[name] for name in workers}
    assert told == dict.fromkeys(workers, 0) | {writer: 6}


async def test_a_connection_goes_where_its_room_is(own_cluster: ClusterProcess) -> None:
    """Each message of a client whose connection is at another worker would cost two workers and be slower."""
    workers = await own_cluster.workers()
    assert all(it["takes_rooms"] for it in workers.values())
    names = sorted(workers)
    async with HoppingClient([own_cluster.worker_socket("worker1")]) as client:
        await client.register()
        while ranked(ROOM, room_id := await client.create_room(), names)[0] != "worker1":
            pass
        rooms = (f"!{number}:test" for number in range(100))
        elsewhere = next(room for room in rooms if ranked(READ, room, names)[0] == "worker2")
        headers = {"Authorization": f"Bearer {client.token}"}
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            api = f"{own_cluster.url}/_matrix/client/v3/rooms"
            # The front looks at the first request alone.
            async with session.get(f"{api}/{quote(elsewhere)}/joined_members") as response:
                assert response.status == 403
            async with asyncio.timeout(20):
                while not (await own_cluster.workers())["worker2"]["requests"]:
                    await asyncio.sleep(0.1)

            async def told_by_ten(name: str) -> dict[str, int]:
                """Send ten messages over the connection, and give how many requests each worker had."""
                before = await settled(own_cluster)
                busy = [asyncio.create_task(_talk(client, room_id)) for _ in range(3)]
                for number in range(10):
                    url = f"{api}/{quote(room_id)}/send/m.room.message/{name}{number}"
                    async with session.put(url, json={"msgtype": "m.text", "body": str(number)}) as response:
                        assert response.status == 200
                for task in busy:
                    task.cancel()
                await asyncio.gather(*busy, return_exceptions=True)
                after = await settled(own_cluster)
                return {name: after[name] - before[name] for name in names}

            # One that does not know yet writes itself, and one that is slow to be taken has some passed on.
            async with asyncio.timeout(60):
                attempt = 0
                while (told := await told_by_ten(f"moved{attempt}."))["worker2"]:
                    assert (told["worker3"], told["worker4"]) == (0, 0)
                    attempt += 1
            assert told["worker1"] >= 10


async def _talk(client: HoppingClient, room_id: str) -> None:
    """Send one message after the other, until cancelled."""
    while True:
        await client.send(room_id, "the room is busy at its worker")
