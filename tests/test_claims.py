"""Two processes that write into one room all the time: neither is overtaken for ever."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from ranvier.cluster.claims import RoomClaims
from ranvier.log.bus import BatchListener, LocalBus
from ranvier.wire.log_rows import Batch
from tests.core import Core, running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


class _Wire(LocalBus):
    """A bus on which others hear of a commit some milliseconds later, as they do by way of Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[_Wire] = []

    async def publish(self, batch: Batch) -> None:
        await super().publish(batch)
        for other in self.others:
            for listener in other._batch_listeners:
                asyncio.get_running_loop().call_later(0.005, _tell, listener, batch)


def _tell(listener: BatchListener, batch: Batch) -> None:
    listener(batch)


async def _room_of_two(here: Core, there: Core) -> str:
    room_id = await here.create_room()
    await here.join(room_id, BOB)
    assert await there.tail.wait_for(here.tail.pos)
    for core in (here, there):
        await core.rooms.get(room_id)
    return room_id


def _claims(*names: str) -> dict[str, RoomClaims]:
    """Make the claims of workers that tell each other at once."""
    made: dict[str, RoomClaims] = {}

    def tell(teller: str, body: bytes) -> None:
        for name, claims in made.items():
            if name != teller:
                claims.hear(body)

    for name in names:
        made[name] = RoomClaims(own_name=name, tell=partial(tell, name))
    return made


async def test_who_is_overtaken_twice_goes_first(database: str) -> None:
    """Some people's messages would be refused with 503 in a room in which many write at once."""
    bus, wire = _Wire(), _Wire()
    bus.others, wire.others = [wire], [bus]
    async with running_core(database, bus=bus) as here, running_core(database, bus=wire) as there:
        room_id = await _room_of_two(here, there)
        claims = _claims("here", "there")
        here.writer.claims, there.writer.claims = claims["here"], claims["there"]
        done = asyncio.Event()

        async def talk() -> int:
            for number in range(2000):
                await here.send(room_id, ALICE, f"here {number}")
                if done.is_set():
                    return number
            return 2000

        talking = [asyncio.create_task(talk()) for _ in range(4)]
        answers = await asyncio.gather(
            *(there.send(room_id, BOB, f"there {number}") for number in range(10)), return_exceptions=True
        )
        done.set()
        assert max(await asyncio.gather(*talking)) < 2000, "nobody was there to overtake"
        assert [it for it in answers if isinstance(it, Exception)] == []
        rows = there.tail.events_of_room(room_id, 0)
        told = [row.content["body"] for row in rows if row.sender == BOB and row.type == "m.room.message"]
        assert told == [f"there {number}" for number in range(10)]
        assert not any(it.must_wait(room_id) for it in claims.values())


async def test_nothing_is_written_into_a_claimed_room_and_the_claim_ends(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room would stay silent after a worker that claimed it died; or the claim would be none."""
    bus = LocalBus()
    monkeypatch.setattr("ranvier.cluster.claims.CLAIM_S", 5.0)
    async with running_core(database, bus=bus) as here, running_core(database, bus=bus) as there:
        room_id = await _room_of_two(here, there)
        claims = _claims("here", "there")
        here.writer.claims, there.writer.claims = claims["here"], claims["there"]
        claims["there"].claim(room_id)
        waiting = asyncio.create_task(here.send(room_id, ALICE, "second"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        first = await there.send(room_id, BOB, "first")
        async with asyncio.timeout(2):  # who has written gives it back
            assert (await waiting).pos == first.pos + 1
        # whoever claims it now never writes: it ends by itself
        monkeypatch.setattr("ranvier.cluster.claims.CLAIM_S", 0.2)
        claims["there"].claim(room_id)
        async with asyncio.timeout(5):
            await here.send(room_id, ALICE, "third")


async def test_of_many_who_claim_a_room_all_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers that wait for each other would leave a busy room silent, again and again."""
    monkeypatch.setattr("ranvier.cluster.claims.CLAIM_S", 10.0)
    names = ["a", "b", "c"]
    claims = _claims(*names)
    turns: list[str] = []

    async def write(name: str) -> None:
        await claims[name].wait("!room")
        turns.append(name)
        await asyncio.sleep(0)
        claims[name].give_back("!room", len(turns))

    for name in reversed(names):
        claims[name].claim("!room")
    async with asyncio.timeout(5):  # nobody waits for the end of a claim
        await asyncio.gather(*(write(name) for name in reversed(names)))
    assert turns == names
    assert not any(it.must_wait("!room") for it in claims.values())


async def test_a_claim_behind_others_holds_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many workers that write in one room the last one's clients would be refused, again and again."""
    monkeypatch.setattr("ranvier.cluster.claims.CLAIM_S", 1.0)
    claims = _claims("a", "b", "c")
    claims["c"].claim("!room")
    claims["a"].claim("!room")
    waiting = asyncio.create_task(claims["c"].wait("!room"))
    for _ in range(4):  # it is overtaken, too, and so goes on to claim the room
        await asyncio.sleep(0.3)
        claims["a"].claim("!room")
    claims["a"].give_back("!room", 17)
    assert await waiting == 17
    assert claims["b"].must_wait("!room")
    claims["c"].give_back("!room", 18)
    assert not claims["b"].must_wait("!room")


async def test_who_waited_is_told_what_to_follow_first() -> None:
    """Who was let wait would write on top of an old state of the room, and be overtaken once more."""
    claims = _claims("a", "b")
    claims["a"].claim("!room")
    waiting = asyncio.create_task(claims["b"].wait("!room"))
    await asyncio.sleep(0)
    claims["a"].give_back("!room", 17)
    assert await waiting == 17
    assert await claims["b"].wait("!room") == 0


async def test_a_notice_of_another_version_is_left_out() -> None:
    """A worker of the next release would break the link to this one."""
    claims = _claims("a")["a"]
    for body in (b"", b"\xc1", b"\x93\x01\x02\x03", b"{}", b"\x92\xa1\xff\xa1b"):
        claims.hear(body)
    assert not claims.must_wait("!room")
