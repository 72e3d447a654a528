"""Messages from device to device on a real database: each arrives, once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from ranvier.log.clock import SystemClock, note_asked
from ranvier.log.standstill import Standstill
from ranvier.spec.errors import MatrixError
from ranvier.storage.database import DatabaseUnavailable
from ranvier.storage.devices import DeviceStore
from ranvier.storage.to_device import Pending, ToDeviceStore
from ranvier.users.to_device import ToDevice, ToDeviceInboxes
from tests.core import SERVER_NAME, Core, running_core
from tests.test_devices import make_devices
from tests.test_standstill import Now

ALICE, BOB = "@alice:example.org", "@bob:example.org"
PHONE, DESK, SENDER = (ALICE, "PHONE"), (ALICE, "DESK"), (BOB, "B")


def make_to_device(core: Core) -> ToDevice:
    return ToDevice(
        store=ToDeviceStore(core.database),
        devices=DeviceStore(core.database),
        appender=core.appender,
        tail=core.tail,
        server_name=SERVER_NAME,
    )


def make_inboxes(core: Core) -> ToDeviceInboxes:
    return ToDeviceInboxes(
        store=ToDeviceStore(core.database), appender=core.appender, tail=core.tail, clock=SystemClock()
    )


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core with two devices of Alice and one of Bob."""
    async with running_core(database) as running:
        for user_id, device_id in (PHONE, DESK, SENDER):
            await make_devices(running).ensure(user_id, device_id, None)
        yield running


class Client:
    """A device that syncs: it keeps the token of the last answer."""

    def __init__(self, core: Core, inboxes: ToDeviceInboxes, device: tuple[str, str] = PHONE) -> None:
        self.core, self.inboxes, self.device = core, inboxes, device
        self.token = 0

    async def sync(self, *, in_tail: bool | None = None, lose: bool = False) -> list[Any]:
        """Give the contents that an answer holds; with ``lose`` it never arrives."""
        upto = self.core.tail.pos
        known = self.token >= self.core.tail.start and self.token > 0
        bodies = await self.inboxes.receive(
            self.device, self.token, upto, in_tail=known if in_tail is None else in_tail
        )
        if not lose:
            self.token = upto
        return [orjson.loads(body)["content"]["n"] for body in bodies]


async def stored(core: Core) -> int:
    count: int = await core.database.fetchval("SELECT count(*) FROM to_device_messages")
    return count


async def test_a_worker_that_stood_still_sends_what_was_not_sent_elsewhere(core: Core) -> None:
    """A room key would be refused though nobody else had sent it."""
    now = Now()
    core.appender.standstill = Standstill(lambda: core.tail.pos, now.clock)
    note_asked()
    now.forward_s = 10.0
    for _ in range(2):
        await make_to_device(core).send(SENDER, "m.test", "txn", {ALICE: {"PHONE": {"n": 1}}})
    assert await Client(core, make_inboxes(core)).sync() == [1]


async def test_a_message_arrives_once_and_is_removed(core: Core) -> None:
    """A room key would be lost, or come again with every sync."""
    to_device, inboxes = make_to_device(core), make_inboxes(core)
    client = Client(core, inboxes)
    assert await client.sync() == []
    await to_device.send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": 1}, "GONE": {"n": 2}}})
    assert await stored(core) == 1
    assert await client.sync(lose=True) == [1]
    assert await client.sync() == [1]
    assert await client.sync() == []
    await inboxes.flush()
    assert await stored(core) == 0
    rows = [row for row in core.tail.rows_of_user(ALICE, 0) if row.kind == "to_device"]
    assert orjson.loads(rows[0].body or b"") == {"content": {"n": 1}, "sender": BOB, "type": "m.test"}


async def test_all_devices_of_a_user(core: Core) -> None:
    """A verification request to "*" would reach no device, or only one."""
    inboxes = make_inboxes(core)
    before = core.tail.pos
    await make_to_device(core).send(SENDER, "m.test", "t1", {ALICE: {"*": {"n": 1}}})
    assert core.tail.pos == before + 3
    assert await Client(core, inboxes).sync() == [1]
    assert await Client(core, inboxes, DESK).sync() == [1]


async def test_a_retry_sends_nothing_twice(core: Core, database: str) -> None:
    """A client that repeats a request, also after a restart, would send every message twice."""
    to_device, inboxes = make_to_device(core), make_inboxes(core)
    message = {ALICE: {"PHONE": {"n": 1}}}
    await asyncio.gather(*(to_device.send(SENDER, "m.test", "t1", message) for _ in range(5)))
    async with running_core(database) as other:
        await make_to_device(other).send(SENDER, "m.test", "t1", message)
    await to_device.send(PHONE, "m.test", "t1", message)
    assert await Client(core, inboxes).sync() == [1, 1]


async def test_two_workers_get_one_request_at_once(core: Core, database: str) -> None:
    """A request repeated over another worker would be sent twice, or fail."""
    message = {ALICE: {"PHONE": {"n": 1}}}
    async with running_core(database) as other:
        senders = [make_to_device(core), make_to_device(other)]
        for n in range(10):
            await asyncio.gather(*(s.send(SENDER, "m.test", f"t{n}", message) for s in senders))
        assert await stored(core) == 10


async def test_a_request_that_another_worker_did_is_no_error(
    core: Core, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An administrator would find errors in the log each time that a client is impatient."""
    to_device = make_to_device(core)
    message = {ALICE: {"PHONE": {"n": 1}}}
    await to_device.send(SENDER, "m.test", "t1", message)

    async def was_not_sent_yet(self: ToDeviceStore, *key: str) -> bool:
        return False

    monkeypatch.setattr(ToDeviceStore, "was_sent", was_not_sent_yet)
    await to_device.send(SENDER, "m.test", "t1", message)
    assert await stored(core) == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_many_messages_come_in_pieces_and_in_order(core: Core) -> None:
    """A device that was offline for long would lose room keys, or get an answer of any size."""
    to_device, inboxes = make_to_device(core), make_inboxes(core)
    for n in range(250):
        await to_device.send(SENDER, "m.test", f"t{n}", {ALICE: {"PHONE": {"n": n}}})
    client, got, sizes = Client(core, inboxes), [], []
    for n in range(6):
        lost = await client.sync(lose=True)
        again = await client.sync()
        assert lost == again
        got.extend(again)
        sizes.append(len(again))
        if n == 1:  # what comes meanwhile takes its turn
            await to_device.send(SENDER, "m.test", "late", {ALICE: {"PHONE": {"n": 250}}})
        if n == 2:
            client.inboxes = make_inboxes(core)  # the server was restarted
    assert got == list(range(251))
    assert sizes[:3] == [100, 100, 51]
    await client.inboxes.flush()
    assert await stored(core) == 0
    assert await core.database.fetchval("SELECT count(*) FROM to_device_held") == 0


async def test_a_fresh_process_knows_what_was_acknowledged(core: Core) -> None:
    """After a restart, a device would get again what it has handled."""
    to_device = make_to_device(core)
    client = Client(core, make_inboxes(core))
    await to_device.send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": 1}}})
    assert await client.sync() == [1]
    await to_device.send(SENDER, "m.test", "t2", {ALICE: {"PHONE": {"n": 2}}})
    client.inboxes, token = make_inboxes(core), client.token
    assert await client.sync() == [2]
    assert await stored(core) == 1
    client.token = token  # a client that lost its newest token
    assert await client.sync() == [2]


async def test_what_the_tail_does_not_hold_comes_from_the_database(core: Core) -> None:
    """A device whose token is old would miss its messages."""
    inboxes = make_inboxes(core)
    client = Client(core, inboxes)
    await client.sync()
    await make_to_device(core).send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": 1}}})
    assert await client.sync(in_tail=False) == [1]
    assert await client.sync(in_tail=True) == []


@pytest.mark.parametrize("first", ["fails", "is broken off", "goes on"])
async def test_a_message_is_there_for_who_asks_again_while_it_is_looked_for(
    core: Core, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A device that comes to another worker, and whose first request there fails, would lose a room key."""
    client = Client(core, make_inboxes(core))
    await make_to_device(core).send(SENDER, "m.test", "t0", {ALICE: {"PHONE": {"n": 0}}})
    assert await client.sync() == [0]
    await make_to_device(core).send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": 1}}})
    client.inboxes = make_inboxes(core)
    pending, is_asked, goes_on = ToDeviceStore.pending, asyncio.Event(), asyncio.Event()

    async def wait_once(self: ToDeviceStore, *args: Any) -> Pending:
        monkeypatch.setattr(ToDeviceStore, "pending", pending)
        is_asked.set()
        await goes_on.wait()
        if first == "fails":
            raise DatabaseUnavailable
        return await pending(self, *args)

    monkeypatch.setattr(ToDeviceStore, "pending", wait_once)
    asking = asyncio.create_task(client.sync(lose=True))
    await is_asked.wait()
    if first == "is broken off":
        asking.cancel()
    elif first == "fails":
        goes_on.set()
    if first != "goes on":
        await asyncio.wait([asking])
    assert await client.sync() == [1]
    goes_on.set()
    (outcome,) = await asyncio.gather(asking, return_exceptions=True)
    assert first != "goes on" or outcome == [1]


async def test_a_worker_that_stands_still_while_it_removes_messages_holds_up_nobody(core: Core) -> None:
    """One frozen worker would freeze the devices whose messages it was removing, and then all others."""
    client = Client(core, make_inboxes(core))
    await make_to_device(core).send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": 1}}})
    assert await client.sync() == [1]
    client.inboxes = make_inboxes(core)
    is_there, goes_on = asyncio.Event(), asyncio.Event()

    async def stand_still() -> None:
        async with core.database.transaction() as connection:
            await connection.execute("DELETE FROM to_device_messages")
            is_there.set()
            await goes_on.wait()
            await connection.execute("DELETE FROM to_device_held")

    frozen = asyncio.create_task(stand_still())
    await is_there.wait()
    async with asyncio.timeout(60):  # a statement is given up after twice that time
        assert await client.sync() == []
    goes_on.set()
    with pytest.raises(DatabaseUnavailable):
        await frozen
    assert await stored(core) == 0


async def test_too_much_is_refused(core: Core) -> None:
    """One request could fill the server's memory."""
    to_device = make_to_device(core)
    with pytest.raises(MatrixError) as caught:
        await to_device.send(SENDER, "m.test", "t1", {ALICE: {"PHONE": {"n": "x" * 70_000}}})
    assert caught.value.errcode == "M_TOO_LARGE"
    for event_type, txn_id in (("m.test", "a" * 256), ("x" * 256, "t")):
        with pytest.raises(MatrixError) as caught:
            await to_device.send(SENDER, event_type, txn_id, {ALICE: {"PHONE": {"n": 1}}})
        assert caught.value.errcode == "M_INVALID_PARAM"
    with pytest.raises(MatrixError) as caught:
        await to_device.send(SENDER, "m.test", "t", {"alice": {"PHONE": {"n": 1}}})
    assert caught.value.errcode == "M_INVALID_PARAM"
