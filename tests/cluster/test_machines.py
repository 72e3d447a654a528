"""Workers on several machines: the same as on one, over TCP and with a secret."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from tests.cluster.cluster_process import HoppingClient
from tests.cluster.machine import Machine
from tests.cluster.services import services
from tests.cluster.test_hopping import settled
from tests.postgres import private_folder
from tests.server.http_client import bodies, position
from tests.server.process import free_port
from tests.server.test_listeners_whole import make_certificate

SECRET = "a secret of the tests"


@asynccontextmanager
async def machines(dsn: str, *secrets: str | None) -> AsyncIterator[list[Machine]]:
    """Give machines with these secrets that have PostgreSQL and Redis at TCP ports, none started."""
    async with services(dsn) as settings:
        with private_folder() as folder:
            found: list[Machine] = []
            try:
                for number, secret in enumerate(secrets, 1):
                    # Any address that is not 127.0.0.1 is a public one to the configuration.
                    found.append(Machine(folder, f"m{number}", f"127.0.0.{number + 1}", settings, secret))
                yield found
            finally:
                for machine in found:
                    machine.close()


async def start(found: Sequence[Machine]) -> None:
    """Start machines and wait until all serve and know each other."""
    for machine in found:
        machine.start()
    for machine in found:
        await machine.ready()
    async with asyncio.timeout(15):
        while any(f"Worker {it.name} is there" not in to.log for to in found for it in found if it is not to):
            await asyncio.sleep(0.05)


async def test_requests_are_passed_on_to_another_machine(database: str) -> None:
    """Two machines would write into the same rooms and keep each other from it, or one would do nothing."""
    async with machines(database, SECRET, SECRET) as found:
        await start(found)
        async with HoppingClient([found[0].socket]) as client:
            await client.register()
            addresses = {it["address"] for it in (await found[0].workers()).values()}
            assert {address.rpartition(":")[0] for address in addresses} == {"tcp:127.0.0.2", "tcp:127.0.0.3"}
            rooms = [await client.create_room() for _ in range(12)]
            async with HoppingClient([found[1].socket]) as other, asyncio.timeout(60):
                other.token = client.token
                while not await _some_is_passed_on(found, client, other, rooms):
                    pass
            since = None
            assert found[1].process is not None
            found[1].process.send_signal(signal.SIGKILL)
            for room_id in rooms:  # what was placed on the dead machine is written here at once
                since = (await client.sync())["next_batch"]
                await client.send(room_id, "still here")
                assert bodies(await client.sync(since), room_id) == ["still here"]


async def _some_is_passed_on(
    found: Sequence[Machine], client: HoppingClient, other: HoppingClient, rooms: Sequence[str]
) -> bool:
    """Write into rooms at two machines at once, and tell whether the first passes on to the second.

    About half of the rooms are placed there. On a busy machine they may be too quiet for it.
    """
    before, asked = (await found[0].workers())["m2"]["requests"], other.asked
    for room_id in rooms:
        await asyncio.gather(*(_talk(one, room_id) for one in (client, other) for _ in range(2)))
    try:
        async with asyncio.timeout(5):
            while (await found[0].workers())["m2"]["requests"] < before + other.asked - asked + 3:
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


async def _talk(client: HoppingClient, room_id: str) -> None:
    for number in range(6):
        await client.send(room_id, str(number))


async def test_a_client_that_hops_between_machines_sees_its_own_writes(database: str) -> None:
    """A message would be missing right after the client was told that it is stored, or time would go back."""
    async with machines(database, SECRET, SECRET) as found:
        await start(found)
        assert not (found[0].data / "run").samefile(found[1].data / "run")
        async with HoppingClient([machine.socket for machine in found]) as client:
            await client.register()
            room_id = await client.create_room()
            room = f"/v3/rooms/{quote(room_id)}"
            since = (await client.sync())["next_batch"]
            for number in range(60):
                event_id = await client.send(room_id, f"message {number}")
                event = await client.get(f"{room}/event/{quote(event_id)}")
                assert event["content"]["body"] == f"message {number}"
                answer = await client.sync(since)
                assert bodies(answer, room_id) == [f"message {number}"]
                assert position(answer["next_batch"]) > position(since)
                since = answer["next_batch"]
                await client.put(f"{room}/state/m.room.topic", {"topic": str(number)})
                assert (await client.get(f"{room}/state/m.room.topic"))["topic"] == str(number)


async def test_a_machine_with_another_secret_is_asked_for_nothing(database: str) -> None:
    """Whoever reaches the port could act for anybody; or a slip in one file would stop the whole server."""
    async with machines(database, SECRET, "another secret") as found:
        await start(found)
        for machine in found:
            await machine.logged("does not know the secret")
            await machine.logged("is the secret the same?")
        async with HoppingClient([found[0].socket]) as one, HoppingClient([found[1].socket]) as other:
            await one.register()
            await other.register()
            for _ in range(6):
                room_id = await one.create_room()
                await other.join(room_id)
                since = (await other.sync())["next_batch"]
                await one.send(room_id, "each does its own work")
                assert bodies(await other.sync(since, 5000), room_id) == ["each does its own work"]
            # Two for each room by one, three by the other: nothing was passed on.
            assert await settled(found[0]) == {"m1": 1 + 12, "m2": 1 + 18}


async def test_tls_that_there_would_not_be_is_refused(database: str) -> None:
    """An administrator would believe that what workers say to each other cannot be read."""
    async with machines(database, SECRET) as [machine]:
        await asyncio.to_thread(make_certificate, machine.folder)
        machine.configure(
            tls_certificate_path=str(machine.folder / "cert.pem"),
            tls_private_key_path=str(machine.folder / "key.pem"),
            worker_listeners=[listener | {"tls": True} for listener in machine.config["worker_listeners"]],
        )
        machine.start()
        assert await machine.end() == 1
        assert "cannot have TLS" in machine.log
        assert "Traceback" not in machine.log


@pytest.mark.parametrize("secret", [None, ""])
async def test_without_a_secret_nothing_is_open_to_the_network(database: str, secret: str | None) -> None:
    """Anybody in the network could act for any user of the server."""
    async with machines(database, secret) as [machine]:
        machine.start()
        assert await machine.end() == 1
        assert "replication on 127.0.0.2" in machine.log
        assert "worker_replication_secret" in machine.log
        assert "Traceback" not in machine.log


async def test_machines_that_do_not_know_of_each_other_show_nothing_older(database: str) -> None:
    """While Redis is away a topic that was just set would be the old one at the other machine."""
    async with machines(database, SECRET, SECRET) as found:
        for machine in found:
            machine.configure(redis={"enabled": True, "host": "127.0.0.1", "port": free_port()})
            machine.start()
        for machine in found:
            await machine.ready()
        async with HoppingClient([machine.socket for machine in found]) as client:
            await client.register()
            room_id = await client.create_room()
            topic = f"/v3/rooms/{quote(room_id)}/state/m.room.topic"
            for number in range(20):
                await client.put(topic, {"topic": str(number)})
                assert (await client.get(topic))["topic"] == str(number)
