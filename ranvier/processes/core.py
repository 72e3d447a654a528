"""The core of every process: database, log and rooms, built in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ranvier.cluster.leases import Lease, Leases
from ranvier.config.server import TailConfig
from ranvier.log.append import Appender, Line
from ranvier.log.bus import Bus
from ranvier.log.clock import Clock
from ranvier.log.follow import Follower
from ranvier.log.standstill import Standstill
from ranvier.log.tail import Tail
from ranvier.processes.persevere import persevere
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Identity
from ranvier.rooms.fork_state import ForkStates
from ranvier.rooms.many_ends import ManyEnds
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.storage.database import Database
from ranvier.storage.event_graph import EventGraphStore
from ranvier.storage.events import EventStore
from ranvier.storage.job_leases import Transactions
from ranvier.storage.nids import Nids
from ranvier.storage.rooms import RoomStore
from ranvier.storage.transactions import TransactionStore

DEFAULT_TAIL = TailConfig()
_SETTLE_S = 2.0
WARM_ROWS = 5000
"""How many rows a process reads at its start, so that clients that come back are answered from memory."""


@dataclass(frozen=True)
class Core:
    """What everything else is built on."""

    database: Database
    bus: Bus
    clock: Clock
    tail: Tail
    follower: Follower
    appender: Appender
    nids: Nids
    events: EventStore
    room_store: RoomStore
    transactions: TransactionStore
    rooms: Rooms
    memberships: Memberships
    graph: EventGraphStore
    forks: ForkStates
    writer: RoomWriter
    identity: Identity
    pool: Executor
    tasks: asyncio.TaskGroup
    log_tasks: list[asyncio.Task[None]]
    """What follows the log and writes it, which ends last."""
    background: list[asyncio.Task[None]]
    closing: list[Callable[[], None]]
    """What is called once nothing is served any more."""
    leases: Leases | None

    def run_always(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something for as long as the process serves; if it fails the process ends."""
        self.background.append(self.tasks.create_task(work))

    def keep_doing(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run something for as long as the process serves; if it fails it is begun anew."""
        self.run_always(persevere(work, name, self.clock))

    def run_once(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Keep doing something, but in one process of the server at a time."""
        self.run_fenced(name, lambda transactions: work())

    def run_fenced(self, name: str, work: Callable[[Transactions], Awaitable[None]]) -> None:
        """Run something as ``run_once`` does, with transactions that are refused once another does."""
        if self.leases is None:
            self.keep_doing(name, lambda: work(self.database.transaction))
            return

        def alone(lease: Lease) -> Awaitable[None]:
            return persevere(lambda: work(lease.transaction), name, self.clock)

        self.run_always(self.leases.run_alone(name, alone))

    async def stop(self) -> None:
        """End what runs always. What was begun for requests may finish, if that does not take long."""
        for task in self.background:
            task.cancel()
        await self.writer.settle(_SETTLE_S)
        for task in self.log_tasks:
            task.cancel()
        self.pool.shutdown(wait=False)
        for close in self.closing:
            close()


async def start_core(
    database: Database,
    *,
    bus: Bus,
    clock: Clock,
    identity: Identity,
    tasks: asyncio.TaskGroup,
    tail_config: TailConfig = DEFAULT_TAIL,
    committed: Callable[[int], None] | None = None,
    line: Line | None = None,
    leases: Leases | None = None,
) -> Core:
    """Build the core on a migrated database and fill its tail. What runs for ever is started in ``tasks``.

    ``committed`` is called with the position of each commit of this process before anybody is told of it,
    and of what it read from the log before anybody sees it;
    ``line`` is where the workers of a machine wait to commit;
    ``leases`` are there where several processes share work that one of them is to do.
    """
    tail = Tail(max_rows=tail_config.rows, max_bytes=tail_config.size_bytes)
    follower = Follower(
        database=database,
        bus=bus,
        tail=tail,
        warm_rows=min(WARM_ROWS, tail_config.rows),
        committed=committed,
    )
    standstill = Standstill(lambda: tail.pos)
    appender = Appender(
        database=database,
        bus=bus,
        clock=clock,
        committed=committed,
        line=line,
        standstill=standstill if line is not None else None,
    )
    nids = Nids(database)
    room_store = RoomStore(database)
    transactions = TransactionStore(database)
    rooms = Rooms(store=room_store, tail=tail)
    memberships = Memberships(store=room_store, tail=tail)
    # For signatures and large states: PyNaCl releases the GIL, and Python gives it up every few milliseconds.
    pool = ThreadPoolExecutor(2, thread_name_prefix="heavy")
    graph = EventGraphStore(database)
    events = EventStore(database)
    forks = ForkStates(graph=graph, events=events, room_store=room_store, nids=nids, pool=pool)
    writer = RoomWriter(
        rooms=rooms,
        appender=appender,
        tail=tail,
        transactions=transactions,
        nids=nids,
        identity=identity,
        clock=clock,
        tasks=tasks,
        many_ends=ManyEnds(forks=forks),
        standstill=standstill,
    )
    await follower.start()
    return Core(
        database=database,
        bus=bus,
        clock=clock,
        tail=tail,
        follower=follower,
        appender=appender,
        nids=nids,
        events=events,
        room_store=room_store,
        transactions=transactions,
        rooms=rooms,
        memberships=memberships,
        graph=graph,
        forks=forks,
        writer=writer,
        identity=identity,
        pool=pool,
        tasks=tasks,
        log_tasks=[tasks.create_task(it) for it in (follower.run(), appender.run(), standstill.run())],
        background=[],
        closing=[],
        leases=leases,
    )
