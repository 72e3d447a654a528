"""The core of a server without its edge: database, log and rooms, wired as in ``processes``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ranvier.log.append import Appender
from ranvier.log.bus import Bus, LocalBus
from ranvier.log.clock import SystemClock
from ranvier.log.follow import Follower
from ranvier.log.standstill import Standstill
from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft, Identity, Txn
from ranvier.rooms.fork_state import ForkStates
from ranvier.rooms.many_ends import ManyEnds
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.spec.ids import new_room_id
from ranvier.spec.room_versions import room_version
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database
from ranvier.storage.event_graph import EventGraphStore
from ranvier.storage.events import EventStore
from ranvier.storage.migrations import migrate
from ranvier.storage.nids import Nids
from ranvier.storage.rooms import RoomStore
from ranvier.storage.transactions import TransactionStore
from ranvier.wire.log_rows import EventRow

SERVER_NAME = "example.org"
KEY = SigningKey.parse("ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")


@dataclass(frozen=True)
class Core:
    """What the tests reach for."""

    database: Database
    tail: Tail
    follower: Follower
    appender: Appender
    rooms: Rooms
    writer: RoomWriter
    memberships: Memberships
    events: EventStore
    room_store: RoomStore
    nids: Nids
    graph: EventGraphStore
    forks: ForkStates
    pool: Executor

    async def create_room(self, creator: str = "@alice:example.org", version: str = "12") -> str:
        """Make a public room with its creator in it, and give its id."""
        await self.nids.reserve()
        rules = room_version(version)
        room_id = "" if rules.room_id_is_create_hash else new_room_id(SERVER_NAME, f"r{self.nids.take()}")

        def build(draft: Draft) -> str:
            content: dict[str, Any] = {"room_version": version}
            if rules.creator_in_content:
                content["creator"] = creator
            draft.add(sender=creator, type="m.room.create", state_key="", content=content)
            draft.add(sender=creator, type="m.room.member", state_key=creator, content={"membership": "join"})
            levels: dict[str, Any] = {"users": {} if rules.privileged_creators else {creator: 100}}
            draft.add(sender=creator, type="m.room.power_levels", state_key="", content=levels)
            draft.add(sender=creator, type="m.room.join_rules", state_key="", content={"join_rule": "public"})
            return draft.room_id

        return await self.writer.create(rules, room_id, build)

    async def send(
        self, room_id: str, sender: str, body: str, *, txn: Txn | None = None, **extra: Any
    ) -> EventRow:
        """Send a text message."""
        content = {"msgtype": "m.text", "body": body}
        return await self.writer.write(
            room_id,
            lambda draft: draft.add(sender=sender, type="m.room.message", content=content, **extra),
            txn,
        )

    async def join(self, room_id: str, user_id: str) -> EventRow:
        """Let a user join a public room."""
        content = {"membership": "join"}
        return await self.writer.write(
            room_id,
            lambda draft: draft.add(sender=user_id, type="m.room.member", state_key=user_id, content=content),
        )


@asynccontextmanager
async def running_core(
    dsn: str, *, bus: Bus | None = None, size: int = 8, committed: Callable[[int], None] | None = None
) -> AsyncIterator[Core]:
    """Run the core on a database; several may run on one database, each as a process would."""
    database = Database({"dsn": dsn}, size=size)
    await migrate(database, SERVER_NAME)
    bus = bus if bus is not None else LocalBus()
    clock = SystemClock()
    tail = Tail()
    follower = Follower(database=database, bus=bus, tail=tail, committed=committed)
    appender = Appender(database=database, bus=bus, clock=clock, committed=committed)
    room_store = RoomStore(database)
    rooms = Rooms(store=room_store, tail=tail)
    nids = Nids(database)
    events = EventStore(database)
    graph = EventGraphStore(database)
    pool = ThreadPoolExecutor(2)
    forks = ForkStates(graph=graph, events=events, room_store=room_store, nids=nids, pool=pool)
    await follower.start()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(follower.run()), tasks.create_task(appender.run())]
        writer = RoomWriter(
            rooms=rooms,
            appender=appender,
            tail=tail,
            transactions=TransactionStore(database),
            nids=nids,
            identity=Identity(SERVER_NAME, KEY),
            clock=clock,
            tasks=tasks,
            many_ends=ManyEnds(forks=forks),
            standstill=Standstill(lambda: tail.pos),
        )
        running.append(tasks.create_task(writer.standstill.run()))
        yield Core(
            database=database,
            tail=tail,
            follower=follower,
            appender=appender,
            rooms=rooms,
            writer=writer,
            memberships=Memberships(store=room_store, tail=tail),
            events=events,
            room_store=room_store,
            nids=nids,
            graph=graph,
            forks=forks,
            pool=pool,
        )
        for task in running:
            task.cancel()
    pool.shutdown()
    await database.close()
