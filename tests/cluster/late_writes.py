"""What a worker has in hand when it is stopped where it stands, and does when it goes on.

That is a commit that PostgreSQL has been sent, writes that were computed and wait for the next commit, and
a request that another worker passed on. While they wait for a lock the worker is stopped; the lock is let
go, and others write into the same rooms. None of what these were answered may be undone by what comes late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import asyncpg

from ranvier.cluster.placement import ROOM, ranked
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import OVERTAKEN, QUEUED, figures
from tests.cluster.log_lock import connection_of, log_locked
from tests.server.http_client import HttpClient, Refused, Unavailable

_WITHIN_S: Final = 30.0
_LOOK_S: Final = 0.01
_SENT_WITHIN_S: Final = 0.05
_COMPUTED: Final = 3  # while PostgreSQL has the first


@asynccontextmanager
async def late_writes(cluster: ClusterProcess, victim: str) -> AsyncIterator[LateWrites]:
    """Have people and rooms ready; the victim is a worker that takes rooms."""
    members = await cluster.workers()
    elsewhere = next(name for name in sorted(members) if name != victim)
    async with AsyncExitStack() as stack:
        locking = await stack.enter_async_context(connection_of(cluster))
        late = LateWrites(cluster, victim, elsewhere, locking, stack)
        await late.gather([name for name, it in members.items() if it["takes_rooms"]])
        yield late


class LateWrites:
    """Writes of a worker that is stopped and goes on: ``under_way``, ``overtake``, ``check``, in turn."""

    def __init__(
        self,
        cluster: ClusterProcess,
        victim: str,
        elsewhere: str,
        locking: asyncpg.Connection,
        stack: AsyncExitStack,
    ) -> None:
        self._cluster = cluster
        self._victim = cluster.worker_socket(victim)
        self._victim_name = victim
        self._elsewhere = cluster.worker_socket(elsewhere)
        self._locking = locking
        self._stack = stack
        self._tasks: list[asyncio.Task[Any]] = []
        self._overtaken = 0.0

    async def gather(self, writers: list[str]) -> None:
        """Make rooms: for a commit, a message, who is banned, and who joins and is banned."""
        self.owner = await self._client(elsewhere=True)
        self.sender = await self._client()
        self.banned = await self._client()
        self.joining = await self._client(elsewhere=True)
        for client in (self.owner, self.sender, self.banned, self.joining):
            await client.register()
        self.rooms = [await self.owner.create_room() for _ in range(4)]
        for room_id in self.rooms[:3]:
            await self.sender.join(room_id)
        await self.banned.join(self.rooms[2])
        # One that is placed on the victim: a request that names it is passed on to it.
        aliases = (f"#{self.rooms[3][1:9]}{number}:{self._cluster.server_name}" for number in range(1000))
        self.alias = next(it for it in aliases if ranked(ROOM, it, writers)[0] == self._victim_name)
        await self.owner.put(f"/v3/directory/room/{quote(self.alias)}", {"room_id": self.rooms[3]})

    @asynccontextmanager
    async def under_way(self, *, alone: bool) -> AsyncIterator[None]:
        """Have all of it under way, as far as it goes without the lock of the log; then let that go.

        If nobody writes but these (``alone``), it is known which of it waits for the next commit.
        """
        async with log_locked(self._locking), asyncio.timeout(_WITHIN_S):
            self._overtaken = (await figures(self._victim))[OVERTAKEN]
            self._begin(self.sender.send(self.rooms[0], "committed late"))
            while not await self._locking.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(_LOOK_S)
            self._begin(self.sender.send(self.rooms[1], "late"))
            self._begin(self.banned.send(self.rooms[2], "late and banned"))
            self._begin(self.joining.post(f"/v3/join/{quote(self.alias)}"))
            while (await figures(self._victim))[QUEUED] < _COMPUTED:
                await asyncio.sleep(_LOOK_S)
                if not alone:  # some of it may be in one commit with what others write
                    path = f"/v3/user/{quote(self.sender.user_id)}/account_data/late{len(self._tasks)}"
                    self._begin(self.sender.put(path))
                    await asyncio.sleep(_SENT_WITHIN_S)
            yield

    async def overtake(self) -> None:
        """Write into the same rooms by another worker, which is answered though the victim stands still."""
        async with asyncio.timeout(_WITHIN_S):
            self.newer = [await self.owner.send(room_id, "newer") for room_id in self.rooms]
            for room_id, client in ((self.rooms[2], self.banned), (self.rooms[3], self.joining)):
                await self.owner.post(f"/v3/rooms/{quote(room_id)}/ban", {"user_id": client.user_id})

    async def is_committed(self) -> bool:
        """Tell whether the commit that PostgreSQL had been sent is in the log."""
        found = await self._locking.fetchval(
            "SELECT count(*) FROM events e JOIN rooms r USING (room_nid) "
            "WHERE r.room_id = $1 AND e.sender = $2 AND e.type = 'm.room.message' AND e.pos IS NOT NULL",
            self.rooms[0],
            self.sender.user_id,
        )
        return bool(found)

    async def check(self) -> int:
        """Demand, once the victim goes on, that each write was done once or refused, and undid nothing.

        Give how many writes the victim had to compute again.
        """
        async with asyncio.timeout(_WITHIN_S):
            outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        first, second, of_banned, of_joining = outcomes[:4]
        await self._check_done(self.rooms[0], "committed late", first)
        await self._check_done(self.rooms[1], "late", second)
        await self._check_banned(of_banned)
        # Whoever passed it on cannot know whether it was done, and says so.
        refused = isinstance(of_joining, Unavailable) or getattr(of_joining, "status", 0) == 403
        assert refused or isinstance(of_joining, dict), of_joining
        for room_id, client in ((self.rooms[2], self.banned), (self.rooms[3], self.joining)):
            assert await self._membership(room_id, client) == ["ban", "ban"], "a ban was undone"
        overtaken = int((await figures(self._victim))[OVERTAKEN] - self._overtaken)
        assert overtaken, "nothing was in the victim's hand"
        return overtaken

    async def _check_done(self, room_id: str, text: str, outcome: Any) -> None:
        assert isinstance(outcome, str), outcome
        told = await self._told(room_id)
        assert [it["event_id"] for it in told if it["content"].get("body") == text] == [outcome]
        assert self.newer[self.rooms.index(room_id)] in [it["event_id"] for it in told]

    async def _check_banned(self, outcome: Any) -> None:
        told = await self._told(self.rooms[2])
        ban = next(n for n, it in enumerate(told) if it["content"].get("membership") == "ban")
        written = [it["event_id"] for it in told[:ban] if it["sender"] == self.banned.user_id]
        assert not [it for it in told[ban:] if it["sender"] == self.banned.user_id], "who was banned wrote"
        if isinstance(outcome, Refused):
            assert outcome.status == 403, outcome
        else:
            assert outcome in written, outcome

    def _begin(self, request: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.create_task(request))

    async def _client(self, *, elsewhere: bool = False) -> HttpClient:
        socket = self._elsewhere if elsewhere else self._victim
        return await self._stack.enter_async_context(HoppingClient([socket]))

    async def _told(self, room_id: str) -> list[Any]:
        """Give a room's events in order; both workers must tell the same."""
        told = []
        for client in (self.sender, self.owner):
            page = await client.get(f"/v3/rooms/{quote(room_id)}/messages", dir="b", limit=100)
            told.append(page["chunk"][::-1])
        assert [it["event_id"] for it in told[0]] == [it["event_id"] for it in told[1]]
        events: list[Any] = told[0]
        return events

    async def _membership(self, room_id: str, client: HttpClient) -> list[str]:
        """Give what both workers say of somebody's membership."""
        found = []
        for socket in (self._victim, self._elsewhere):
            async with HoppingClient([socket]) as reader:
                reader.token = self.owner.token
                path = f"/v3/rooms/{quote(room_id)}/state/m.room.member/{quote(client.user_id)}"
                found.append((await reader.get(path))["membership"])
        return found
