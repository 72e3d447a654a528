"""How many workers of a machine rooms are placed on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from ranvier.cluster import placement
from ranvier.cluster.forwarding import Forwarding
from ranvier.cluster.members import Members
from ranvier.cluster.overview import ClusterWorkers, Overview
from ranvier.cluster.placement import ROOM, Placement
from ranvier.cluster.relief import Relief
from ranvier.cluster.writers import MachineIdle, Writers, room_writers
from ranvier.config.database import RedisConfig
from ranvier.http.forwarding import Neighbours
from ranvier.http.request import Request
from ranvier.http.route import PLACED_WITH_WRITERS, Route
from ranvier.log.clock import SystemClock
from ranvier.log.standstill import Standstill
from ranvier.wire.figures import Figures
from ranvier.wire.members import DRAINING, Member

ROOMS = [f"!{number}:test" for number in range(200)]


class _Members(Members):
    knows_all = True  # type: ignore[assignment]


class Machine:
    """The workers of one machine as one of them sees them, with as much to do as a test says."""

    def __init__(self, *names: str, own: str = "a", always: bool = False) -> None:
        found = [
            _member(name, started_ts=number, heads="here", fronted=True) for number, name in enumerate(names)
        ]
        self.spare_cores = 8.0
        self.now_s = 0.0
        (this,) = (member for member in found if member.name == own)
        self.members = _Members(this, cast(Any, None), dict)
        self.writers = Writers(self.members, always=always, cores=8, spare_cores=lambda: self.spare_cores)
        self.placement = Placement(self.members)
        for member in found:
            self.hear(member)

    def hear(self, member: Member) -> None:
        """Hear an announcement."""
        if member.name != self.members.own.name:
            self.members.greet(msgspec.json.encode(member))

    def say(self, name: str, **what: Any) -> None:
        """Change what a worker says of itself."""
        member = self.members.find(name)
        assert member is not None
        changed = msgspec.structs.replace(member, beat=member.beat + 1, **what)
        if member is self.members.own:
            self.members.own = changed
        self.hear(changed)

    def count(self, seconds: int = 1, **loads: float) -> int:
        """Let some seconds go by with these loads; give how many write then."""
        for _ in range(seconds):
            for name, load in loads.items():
                self.say(name, load=load)
            self.now_s += 1.0
            self.writers.count(self.now_s)
        return len(self.placed)

    @property
    def placed(self) -> set[str]:
        """Give the workers on which rooms are placed."""
        return {self.placement.place(ROOM, room_id).name for room_id in ROOMS}


def _member(name: str, **what: Any) -> Member:
    return Member(name=name, instance=name, pid=1, host="host", address="unix:/nowhere", **what)


def test_rooms_are_placed_on_the_worker_that_runs_longest() -> None:
    """Four workers would do the work of one at twice the price; each start would move all rooms."""
    machine = Machine("b", "c", "a")
    machine.say("b", writers=1)
    assert machine.placed == {"b"}
    machine.hear(_member("aa", started_ts=9, heads="here", writers=1))
    assert machine.placed == {"b"}


def test_who_may_have_a_room_is_found_out_once_for_all_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many workers, each change of them would keep everybody waiting while all rooms are placed anew."""
    asked = list[int]()

    def counted(alive: Sequence[Member]) -> list[Member]:
        asked.append(len(alive))
        return room_writers(alive)

    monkeypatch.setattr(placement, "room_writers", counted)
    machine = Machine(*map(str, range(50)), own="0", always=True)
    assert len(machine.placed) == 50
    assert asked == [50]
    machine.members.lose("7", "7")
    assert len(machine.placed) == 49
    assert asked == [50, 49]


def overview_of(machine: Machine, rooms: int) -> Overview:
    """Give what the page shows of a machine, where so many rooms are active."""
    tail = SimpleNamespace(rooms_active=lambda: map(str, range(rooms)), pos=0)
    workers = ClusterWorkers(
        members=machine.members,
        placement=machine.placement,
        forwarding=cast(Any, None),
        redis=RedisConfig(path=Path("/nowhere")),
        end=lambda: None,
    )
    return Overview(
        server_name="test",
        workers=workers,
        tail=cast(Any, tail),
        database=cast(Any, SimpleNamespace(reachable=False)),
        clock=SystemClock(),
    )


async def turns_until(done: asyncio.Task[Any]) -> int:
    """Give how many turns of the event loop a task takes."""
    turns = 0
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_others_are_answered_while_many_rooms_are_placed() -> None:
    """The page, left open, would stop the worker that answers it with each change of the workers."""
    overview = overview_of(Machine(*map(str, range(50)), own="0", always=True), 3000)
    asked = asyncio.create_task(overview.status(with_history=False))
    assert await turns_until(asked) > 30
    assert sum(it["rooms"] for it in (await asked)["workers"]) == 3000


async def test_many_who_look_wait_for_the_same_rooms_to_be_placed() -> None:
    """On a busy worker the page would give up, and the sooner the more people look at it."""
    overview = overview_of(Machine("a", "b", always=True), 5000)
    first = await turns_until(asyncio.create_task(overview.status(with_history=False)))
    many = asyncio.gather(*(overview.status(with_history=False) for _ in range(10)))
    assert await turns_until(asyncio.ensure_future(many)) < first


async def test_a_worker_that_drains_is_shown_without_rooms_at_once() -> None:
    """Whoever drained it would see its rooms stay, and wonder whether that was done."""
    machine = Machine("a", "b", always=True)
    overview = overview_of(machine, 100)
    await overview.status(with_history=False)
    machine.say("b", state=DRAINING)
    status = await overview.status(with_history=False)
    assert {it["name"]: it["rooms"] for it in status["workers"]} == {"a": 100, "b": 0}


async def test_who_goes_while_the_page_is_answered_is_not_both_there_and_gone() -> None:
    """A worker that was killed just then would be shown as one that was heard of this instant."""
    machine = Machine("a", always=True)
    overview = overview_of(machine, 3000)
    machine.hear(_member("b"))
    asked = asyncio.create_task(overview.status(with_history=False))
    await asyncio.sleep(0)
    machine.members.lose("b", "b")
    status = await asked
    assert [it["name"] for it in status["gone"]] == ["b"]
    assert [it["name"] for it in status["workers"]] == ["a"]


def test_another_one_follows_a_writer_that_goes() -> None:
    """Rooms would stay with a worker that drains or is dead."""
    machine = Machine("b", "a", "c")
    machine.say("b", writers=1)
    machine.say("b", state=DRAINING)
    assert machine.placed == {"a"}
    machine.members.lose("b", "b")
    assert machine.placed == {"a"}
    machine.say("c", roles=("sync",))
    machine.say("a", roles=("sync",))
    assert machine.placed == {"a", "c"}, "where nobody takes requests all do"


def test_more_workers_write_when_one_has_too_much_to_do() -> None:
    """A busy server would use one core of its many."""
    machine = Machine("a", "b", "c")
    assert machine.count(5, a=0.7) == 1
    assert machine.count(2, a=0.95) == 1, "not for a moment"
    assert machine.count(1, a=0.95) == 2
    assert machine.count(5, a=0.8, b=0.7) == 2
    assert machine.count(5, a=0.9, b=0.9) == 3
    assert machine.count(20, a=0.9, b=0.9, c=0.9) == 3, "there are no more"
    assert room_writers(machine.members.alive()) == list(machine.members.alive())


def test_no_more_workers_write_when_no_core_is_free() -> None:
    """On a machine that is busy the same work would take nearly twice the time."""
    machine = Machine("a", "b")
    machine.spare_cores = 0.6
    assert machine.count(20, a=0.95) == 1
    machine.spare_cores = 1.5
    assert machine.count(3, a=0.95) == 2
    machine.spare_cores = 0.0
    assert machine.count(20, a=0.95, b=0.6) == 2, "who has rooms keeps them"


def test_fewer_workers_write_when_there_is_less_to_do() -> None:
    """After one busy hour a server would go on at the higher price; or rooms would go to and fro."""
    machine = Machine("a", "b")
    assert machine.count(3, a=0.95) == 2
    assert machine.count(10, a=0.2, b=0.1) == 2
    assert machine.count(1, a=0.5, b=0.3) == 2
    assert machine.count(10, a=0.2, b=0.1) == 2, "it is counted anew"
    assert machine.count(1, a=0.2, b=0.1) == 1


def test_a_successor_goes_on_with_as_many() -> None:
    """When the longest running worker of a busy server ends, all rooms would be thrown on one for a while."""
    machine = Machine("b", "a", "c")
    machine.say("b", writers=2)
    machine.count()
    machine.members.lose("b", "b")
    assert machine.placed == {"a", "c"}


def test_a_worker_that_only_reads_needs_no_help_in_writing() -> None:
    """Syncs alone would have all workers write, at twice the price, and for ever."""
    machine = Machine("a", "b", "c")
    assert machine.count(20, a=0.95, b=0.9, c=0.85) == 1, "they are all as busy with something else"
    assert machine.count(3, a=0.95, b=0.3, c=0.1) == 2
    assert machine.count(9, a=0.4, b=0.4, c=0.4) == 2
    assert machine.count(2, a=0.4, b=0.4, c=0.4) == 1


def test_nobody_counts_without_news_of_the_others() -> None:
    """While Redis is away rooms would go to and fro, by how busy somebody was before."""
    machine = Machine("a", "b")
    machine.members.knows_all = False  # type: ignore[misc]
    assert machine.count(20, a=0.95) == 1


def test_a_worker_of_its_own_comes_last() -> None:
    """Beside ``ranvier up`` no connection can move to it, so all that is written would be passed on to it."""
    machine = Machine("c", "a")
    machine.say("c", writers=1, fronted=False)
    machine.say("a", writers=1)
    assert machine.placed == {"a"}


def test_each_machine_has_its_own_writers() -> None:
    """A second machine would only be waiting for the first one to fail."""
    machine = Machine("a", "b")
    for name in ("x", "y"):
        machine.hear(_member(name, started_ts=5, heads="there", writers=1))
    assert machine.placed == {"a", "x"}
    beside = Machine("b", "a")
    beside.say("b", writers=1)
    beside.hear(_member("x", heads="there", writers=1))
    neighbours = _neighbours(beside, held=ROOMS)
    assert {neighbours.home(_write(room_id)) for room_id in ROOMS} == {"b"}, "none can move to the other"
    busy = _neighbours(beside, written_lately=ROOMS)
    assert {busy.home(_write(room_id)) for room_id in ROOMS} == {"b", None}
    assert {busy.target(_write(room_id)) for room_id in ROOMS} == {"b", "x"}


def test_an_administrator_may_have_all_of_them_write() -> None:
    """The setting ``spread_rooms: always`` would have no effect."""
    machine = Machine("a", "b", "c", always=True)
    assert machine.count(20, a=0.1) == 3


def test_workers_of_the_release_before_have_rooms_as_before() -> None:
    """While a server is being updated, old and new workers would disagree on who has which room."""
    machine = Machine("b", "a")
    machine.count(3)
    assert machine.placed == {"a", "b"}
    machine.members.lose("b", "b")
    assert machine.placed == {"a"}


def test_free_cores_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not be known whether there is a core for one more; or the worker would end by asking."""
    now_s = 100.0
    monkeypatch.setattr("ranvier.cluster.writers.time", SimpleNamespace(monotonic=lambda: now_s))
    path = tmp_path / "stat"
    path.write_text("cpu  9 9 9 1000 500 9 9\ncpu0 1 1 1 1 1 1 1\n")
    idle = MachineIdle(path)
    now_s += 2.0
    path.write_text("cpu  9 9 9 1250 550 9 9\n")
    assert idle() == pytest.approx(300 / os.sysconf("SC_CLK_TCK") / 2.0)
    for text in ("cpu 1 2\n", "", "cpu  a b c d e f\n"):
        path.write_text(text)
        assert idle() == 0.0
    path.unlink()
    assert idle() == MachineIdle(path)() == 0.0
    assert MachineIdle()() >= 0.0


@pytest.mark.parametrize(("own", "load", "home"), [("a", 0.9, None), ("b", 0.1, "a")])
def test_a_quiet_room_is_left_to_a_writer(own: str, load: float, home: str | None) -> None:
    """Connections would stay wherever they came in, and each worker write a little."""
    machine = Machine("a", "b", own=own)
    machine.say("a", writers=1)
    machine.say(own, load=load)
    neighbours = _neighbours(machine, held=ROOMS)
    assert {neighbours.home(_write(room_id)) for room_id in ROOMS} == {home}
    assert {neighbours.target(_write(room_id)) for room_id in ROOMS} == {None}, "it is not worth a detour"
    assert neighbours.home(_write(ROOMS[0], method="GET")) is None


def test_a_writer_with_too_much_to_do_gives_away_what_is_placed_elsewhere() -> None:
    """A second writer would get new rooms alone, and the first one stay as busy as it was."""
    machine = Machine("a", "b")
    machine.count(3, a=0.95)
    neighbours = _neighbours(machine, held=ROOMS)
    given = {room_id for room_id in ROOMS if neighbours.home(_write(room_id)) == "b"}
    assert given == {room_id for room_id in ROOMS if machine.placement.place(ROOM, room_id).name == "b"}
    machine.say("b", load=0.85)
    assert not [room_id for room_id in ROOMS if neighbours.home(_write(room_id))], "that one is as busy"
    machine.say("b", load=0.1)
    machine.say("a", load=0.6)
    assert not [room_id for room_id in ROOMS if neighbours.home(_write(room_id))], "it has time again"


def test_a_quiet_room_is_not_passed_on() -> None:
    """Behind nginx, which shares rooms out by itself, most messages would take a detour for ever."""
    machine = Machine("b", "a")
    machine.say("b", writers=1)
    neighbours = _neighbours(machine, written_lately=ROOMS[:3])
    assert [room_id for room_id in ROOMS if neighbours.target(_write(room_id)) == "b"] == ROOMS[:3]
    assert neighbours.target(_write("#alias:test")) == "b", "nobody knows which room it is"


def test_a_worker_on_which_all_rooms_are_placed_asks_nobody() -> None:
    """Each message would cost it a search for somebody better, or what others are to do be done here."""
    machine = Machine("a", "b")
    assert _neighbours(machine).is_only_writer()
    machine.members.set_writers(2)
    assert not _neighbours(machine).is_only_writer()
    machine.members.set_writers(1)
    assert _neighbours(machine).is_only_writer()
    machine.hear(_member("far", started_ts=9, heads="there", writers=1))
    assert not _neighbours(machine).is_only_writer(), "the other machine has a writer, too"
    machine = Machine("a", "b", own="b")
    machine.say("a", writers=1)
    assert not _neighbours(machine).is_only_writer()


def test_a_room_is_made_by_a_writer() -> None:
    """The first ten events of each room would be commits of whichever worker was asked."""
    machine = Machine("b", "a")
    machine.say("b", writers=1)
    neighbours = _neighbours(machine)
    route = Route("POST", "/createRoom", cast(Any, None), placed_by=PLACED_WITH_WRITERS)
    request = Request("POST", "/createRoom", route, params={}, request_id="1")
    assert (neighbours.home(request), neighbours.target(request)) == ("b", None)
    machine.say("b", writers=2)
    assert neighbours.home(request) is None


class Waiting(Machine):
    """A machine on which clients poll; ``given`` counts who was given to whom."""

    def __init__(self, **loads: float) -> None:
        super().__init__(*loads)
        for name, load in loads.items():
            self.say(name, load=load, figures=Figures(sync_waiting=200))
        self.relief = Relief(self.members, clock=lambda: self.now_s)

    def given(self, seconds: float) -> dict[str, int]:
        """Let some seconds go by, with clients that would go whenever one may."""
        found: dict[str, int] = {}
        until_s = self.now_s + seconds - 0.001
        while self.now_s < until_s:
            if self.relief.is_due() and (name := self.relief.find()) is not None:
                found[name] = found.get(name, 0) + 1
            self.now_s += 0.01
        return found


def test_who_polls_goes_to_the_worker_that_has_least_to_do() -> None:
    """All who write would wait for all who poll, on the one worker that everybody's connections come to."""
    machine = Waiting(a=0.7, b=0.4, c=0.3, d=0.1)
    assert machine.given(10) == {}, "there is time"
    machine.say("a", load=0.9)
    machine.say("d", roles=("client",))
    machine.hear(_member("far", heads="there", fronted=True))
    machine.hear(_member("alone", heads="here"))
    assert machine.given(3) == {"c": 66}, "a third of them makes both alike"
    for name in "bc":
        machine.say(name, load=0.75)
    assert machine.given(10) == {}, "it would not be worth it"


def test_no_more_go_than_make_workers_alike() -> None:
    """All would go to one worker before it can say that it has enough, and come back the next moment."""
    machine = Waiting(a=1.0, b=1.0, c=0.2)
    assert machine.given(3) == {"c": 40}, "the other one gives as many"
    machine.say("a", figures=Figures(sync_waiting=2))
    assert machine.given(3) == {"c": 1}
    machine.members._heard["c"] -= 10
    assert machine.given(10) == {}, "nobody knows what it does now"


def test_fewer_go_where_it_does_not_help() -> None:
    """A worker that is busy with writing would lose all who poll, and they take what they write with them."""
    machine = Waiting(a=1.0, b=0.1)
    given = [sum(machine.given(12).values()) for _ in range(10)]
    assert given[0] > 100
    assert sum(given[5:]) < 20


def test_they_go_on_going_where_there_is_more_to_do_than_time() -> None:
    """The more a worker has to do, the sooner it would give up: at first it has no less to do."""
    machine = Waiting(a=1.0, b=0.1)
    machine.say("a", figures=Figures(sync_waiting=1000))
    given = 0
    for step in range(6):
        given += sum(machine.given(3).values())
        machine.say("b", load=0.1 + 0.1 * step)
    assert given > 600


def test_what_polls_cost_is_no_reason_for_another_writer_and_none_against_one() -> None:
    """A writer that gave away who polls would stay alone at its limit, or get help and lose it in turns."""
    machine = Machine("a", "b", "c")
    few, many = Figures(sync_waiting=10), Figures(sync_waiting=100)
    for name in "bc":
        machine.say(name, figures=many)
    assert machine.count(3, a=1.0, b=0.6, c=0.6) == 2
    machine = Machine("a", "b", "c", "d")
    for name in "ab":
        machine.say(name, figures=few)
    for name in "cd":
        machine.say(name, figures=many)
    assert machine.count(3, a=0.95) == 2
    assert machine.count(20, a=0.7, b=0.7, c=0.5, d=0.5) == 2
    machine = Machine("a", "b", "c")
    machine.say("a", figures=Figures(sync_waiting=2000))
    for name in "bc":
        machine.say(name, figures=Figures(sync_waiting=60))
    for _ in range(30):
        assert machine.count(a=1.0, b=0.05, c=0.05) == 1, "its own polls are what it is busy with"
    machine = Machine("a", "b", "c")
    machine.say("a", figures=Figures(sync_waiting=500))
    assert machine.count(3, a=0.95, b=0.15, c=0.15) == 2, "they follow what it writes, and nobody polls there"


def test_a_quiet_server_has_one_writer() -> None:
    """Whoever does next to nothing would be found to need no writer, and that would mean all."""
    machine = Machine("a", "b", "c")
    for _ in range(30):
        assert machine.count(a=0.010, b=0.012, c=0.012) == 1


def test_a_stranger_can_not_fill_the_memory() -> None:
    """Anybody without an account could have a worker keep gigabytes, one long alias after the other."""
    placement = Machine("a", "b").placement
    names = {placement.place(ROOM, f"#{number}{'a' * 60_000}").name for number in range(20)}
    assert names <= {"a", "b"}
    assert not placement._known
    placement.place(ROOM, "!room")
    assert len(placement._known) == 1


def _neighbours(
    machine: Machine, *, held: Sequence[str] = (), written_lately: Sequence[str] = ()
) -> Neighbours:
    """Make what an application knows of its neighbours; nobody else writes to the rooms that it holds."""
    quiet = SimpleNamespace(is_written_elsewhere=lambda now_ms: False)
    rooms = SimpleNamespace(held=lambda room_id: quiet if room_id in held else None)
    latest = [SimpleNamespace(origin_server_ts=9_980)]
    tail = SimpleNamespace(
        pos=1, latest_of_room=lambda room_id, upto, limit: latest if room_id in written_lately else []
    )
    links = SimpleNamespace(find=lambda name: object())
    return Neighbours(
        currency=cast(Any, None),
        forwarding=Forwarding(
            placement=machine.placement, links=cast(Any, links), own_name=machine.members.own.name
        ),
        placement=machine.placement,
        writers=machine.writers,
        relief=Relief(machine.members),
        rooms=cast(Any, rooms),
        tail=cast(Any, tail),
        clock=cast(Any, SimpleNamespace(now_ms=lambda: 10_000)),
        standstill=Standstill(int),
    )


def _write(room_id: str, method: str = "PUT") -> Request:
    route = Route(method, "/rooms/{room_id}/send", cast(Any, None), placed_by="room_id")
    path = f"/rooms/{room_id}/send"
    return Request(method, path, route, params={"room_id": room_id})
