"""Rooms that everybody forgot leave the server, and nothing else does."""

from __future__ import annotations

import orjson
import pytest

from ranvier.cluster.leases import Lease, LeaseLostError
from ranvier.log.clock import SystemClock
from ranvier.rooms.purge import RoomPurge
from ranvier.spec.errors import MatrixError
from ranvier.storage.job_leases import JobLeaseStore
from ranvier.storage.room_purges import RoomPurgeStore
from ranvier.wire.log_rows import PURGED_ROOM, LogRow
from tests.core import SERVER_NAME, running_core
from tests.rooms_app import ALICE, BOB, RoomsApp, running_rooms_app
from tests.test_import_room import busy_room, import_into
from tests.test_receive_event import ALICE as LOCAL
from tests.test_receive_event import state_of

DAY_MS = 86_400_000
BY_NID = (
    "rooms",
    "events",
    "event_edges",
    "snapshots",
    "current_state",
    "state_deltas",
    "relations",
    "room_directory",
)
BY_ID = ("room_aliases", "receipts", "account_data", "forgotten_rooms")


class Later(SystemClock):
    """A clock that is some days ahead."""

    def __init__(self, days: float) -> None:
        self.days = days

    def now_ms(self) -> int:
        return super().now_ms() + int(self.days * DAY_MS)


def purge_of(app: RoomsApp, days: float = 30, retention_ms: int | None = 28 * DAY_MS) -> RoomPurge:
    """Make what removes rooms, some days from now."""
    return RoomPurge(
        store=RoomPurgeStore(app.core.database),
        appender=app.core.appender,
        clock=Later(days),
        retention_ms=retention_ms,
    )


async def sweep(app: RoomsApp, days: float = 30) -> None:
    """Remove what may go, some days from now."""
    await purge_of(app, days).sweep(app.core.database.transaction)
    await app.core.follower._catch_up()


async def stored(app: RoomsApp, room_id: str, room_nid: int) -> dict[str, int]:
    """Count what the database has of a room, by table."""
    fetch = app.core.database.fetchval
    counts = {
        table: await fetch(f"SELECT count(*) FROM {table} WHERE room_nid = $1", room_nid) for table in BY_NID
    }
    for table in BY_ID:
        counts[table] = await fetch(f"SELECT count(*) FROM {table} WHERE room_id = $1", room_id)
    return counts


async def lively_room(app: RoomsApp, name: str) -> tuple[str, int]:
    """Let Alice and Bob do all that leaves traces in the database; give the room and its integer."""
    room_id = await app.create(
        "alice", preset="public_chat", room_alias_name=name, visibility="public", topic="one"
    )
    await app.act("bob", "join", room_id)
    core = app.core
    first = await core.send(room_id, ALICE, "well")
    relation = {"rel_type": "m.thread", "event_id": first.event_id}
    for content in (
        {"msgtype": "m.text", "body": "in it", "m.relates_to": relation},
        {"msgtype": "m.text", "body": "to what is not here", "m.relates_to": {**relation, "event_id": "$no"}},
    ):
        await core.writer.write(
            room_id, lambda draft, c=content: draft.add(sender=BOB, type="m.room.message", content=c)
        )
    await core.writer.write(
        room_id, lambda draft: draft.add(sender=ALICE, type="m.room.redaction", content={}, redacts=first)
    )
    for number in range(3):
        await app.set_state(room_id, "m.room.topic", {"topic": str(number)})
    receipt = orjson.dumps({"event_id": first.event_id, "event_pos": first.pos, "ts": 1})
    await core.appender.append_rows(
        [
            LogRow(kind="receipt", room_id=room_id, user_id=BOB, key="m.read", key2="", body=receipt),
            LogRow(kind="account_data", room_id=room_id, user_id=BOB, key="m.tag", body=b"{}"),
        ]
    )
    room = await core.rooms.get(room_id)
    await core.database.execute(
        "INSERT INTO event_edges (room_nid, prev_id, event_nid) SELECT $1, $2, event_nid FROM events "
        "WHERE event_id = $3",
        room.room_nid,
        first.event.prev_event_ids[0],
        first.event_id,
    )
    return room_id, room.room_nid


async def leave(app: RoomsApp, room_id: str, *users: str, forget: bool = True) -> None:
    """Let users leave and forget a room."""
    for user in users:
        assert (await app.act(user, "leave", room_id)).status == 200
        if forget:
            assert (await app.act(user, "forget", room_id)).status == 200


async def test_nothing_is_left_of_a_room_that_everybody_forgot(database: str) -> None:
    """The database would keep for ever what nobody can look at any more."""
    async with running_rooms_app(database) as app:
        room_id, room_nid = await lively_room(app, "tea")
        other_id, other_nid = await lively_room(app, "coffee")
        await leave(app, room_id, "alice", "bob")
        await leave(app, other_id, "bob")
        before = await stored(app, room_id, room_nid)
        assert all(before.values()), before
        kept = await stored(app, other_id, other_nid)
        await sweep(app)
        assert set((await stored(app, room_id, room_nid)).values()) == {0}
        assert await stored(app, other_id, other_nid) == kept
        leftover = (
            "SELECT count(*) FROM redactions r LEFT JOIN events e USING (event_nid) WHERE e.event_nid IS NULL"
        )
        assert await app.core.database.fetchval(leftover) == 0
        assert await app.core.database.fetchval("SELECT count(*) FROM purged_rooms") == 0
        # And nothing in memory says otherwise.
        assert await app.core.rooms.find(room_id) is None
        assert room_id not in await app.core.memberships.of(ALICE)
        with pytest.raises(MatrixError):
            await app.aliases.resolve(f"#tea:{SERVER_NAME}")
        assert (await app.act("alice", "join", room_id)).error == (404, "M_NOT_FOUND")
        assert (await app.act("bob", "join", other_id)).status == 200
        assert (await app.post("/createRoom", "alice", {"room_alias_name": "tea"})).status == 200


async def test_a_room_that_means_something_to_anybody_stays(database: str) -> None:
    """People would come back to a room, or accept an invitation, and find it gone."""
    async with running_rooms_app(database) as app:
        rooms = {
            name: (await lively_room(app, name))[0] for name in ("early", "left", "invited", "back", "in")
        }
        await leave(app, rooms["early"], "alice", "bob")
        await leave(app, rooms["left"], "alice")
        await leave(app, rooms["left"], "bob", forget=False)
        await app.act("alice", "invite", rooms["invited"], "carol")
        await leave(app, rooms["invited"], "alice", "bob")
        await leave(app, rooms["back"], "alice", "bob")
        await app.act("bob", "join", rooms["back"])
        await leave(app, rooms["back"], "bob", forget=False)
        await leave(app, rooms["in"], "bob")
        await sweep(app, days=27)
        for name, room_id in rooms.items():
            assert await app.core.rooms.find(room_id) is not None, name
        await sweep(app, days=29)
        left = {name for name, room_id in rooms.items() if await app.core.rooms.find(room_id) is not None}
        assert left == rooms.keys() - {"early"}
        # Without a retention period nothing ever goes.
        await leave(app, rooms["in"], "alice")
        await purge_of(app, retention_ms=None).sweep(app.core.database.transaction)
        assert await app.core.rooms.find(rooms["in"]) is not None


async def test_who_can_never_come_back_keeps_no_room(database: str) -> None:
    """One deactivated account would keep every room that it was ever in."""
    async with running_rooms_app(database) as app:
        room_id, _ = await lively_room(app, "tea")
        await leave(app, room_id, "alice")
        await leave(app, room_id, "bob", forget=False)
        await app.core.database.execute(
            "INSERT INTO accounts (user_id, created_ts, deactivated, departing) VALUES ($1, 0, true, true)",
            BOB,
        )
        await sweep(app)
        assert await app.core.rooms.find(room_id) is not None
        await app.core.database.execute("UPDATE accounts SET departing = false")
        await sweep(app)
        assert await app.core.rooms.find(room_id) is None


async def test_who_comes_back_at_the_last_moment_finds_the_room(database: str) -> None:
    """A room would be taken from under somebody who just joined it."""
    async with running_rooms_app(database) as app:
        room_id, room_nid = await lively_room(app, "tea")
        await leave(app, room_id, "alice", "bob")
        (candidate,) = await RoomPurgeStore(app.core.database).candidates("", 1 << 60, 10)
        assert candidate.forgotten
        await app.act("bob", "join", room_id)
        await app.core.appender.append_rows(
            [LogRow(kind=PURGED_ROOM, room_id=room_id, key=str(candidate.head))]
        )
        await app.core.follower._catch_up()
        await app.core.send(room_id, BOB, "still here")
        assert (await stored(app, room_id, room_nid))["rooms"] == 1
        assert await app.membership_of(room_id, "bob") == "join"


async def test_a_write_that_was_under_way_does_not_bring_a_room_back(database: str) -> None:
    """A message computed on the room before it went would leave events that belong to nothing."""
    async with running_rooms_app(database) as app, running_rooms_app(database) as slow:
        room_id, room_nid = await lively_room(app, "tea")
        await slow.core.follower._catch_up()
        await slow.core.rooms.get(room_id)
        await leave(app, room_id, "alice", "bob")
        await sweep(app)
        with pytest.raises(MatrixError):
            await slow.core.send(room_id, ALICE, "still here?")
        assert set((await stored(app, room_id, room_nid)).values()) == {0}


async def test_another_process_goes_on_and_a_late_one_is_refused(database: str) -> None:
    """After a crash half of a room would stay for ever, or two processes would get into each other's way."""
    async with running_rooms_app(database) as app:
        core = app.core
        room_id, room_nid = await lively_room(app, "tea")
        for number in range(120):  # more than one piece
            await core.send(room_id, ALICE, str(number))
        await leave(app, room_id, "alice", "bob")
        leases = JobLeaseStore(core.database)

        async def take(holder: str) -> Lease:
            epoch = await leases.take("purge", holder, 10_000)
            assert epoch is not None
            return Lease("purge", epoch, store=leases, database=core.database)

        late = await take("first")
        await core.database.execute("UPDATE job_leases SET until = '-infinity'")
        lease = await take("second")
        # The second takes the room away, removes a piece, and dies.
        store = RoomPurgeStore(core.database)
        (candidate,) = await store.candidates("", 1 << 60, 10)
        row = LogRow(kind=PURGED_ROOM, room_id=room_id, key=str(candidate.head))
        await core.appender.append_rows([row])
        async with lease.transaction() as connection:
            assert await store.remove_piece(connection, (await store.pending())[0])
        left = await stored(app, room_id, room_nid)
        assert left["rooms"] == 0
        assert 0 < left["events"] < 50
        with pytest.raises(LeaseLostError):
            await purge_of(app).sweep(late.transaction)
        assert await stored(app, room_id, room_nid) == left
        await purge_of(app, retention_ms=None).sweep(lease.transaction)
        assert set((await stored(app, room_id, room_nid)).values()) == {0}


async def test_a_room_of_another_server_is_removed_and_can_be_joined_again(database: str) -> None:
    """Whoever once forgot a room could never come back, or would find what is left of the old one in it."""
    remote = busy_room("11")
    async with running_core(database) as core:
        await import_into(core, remote, remote.member(LOCAL, LOCAL, "join"))
        sent = await core.send(remote.room_id, LOCAL, "hello")
        remote.learn(sent.event)
        content = {"membership": "leave"}
        left = await core.writer.write(
            remote.room_id,
            lambda draft: draft.add(sender=LOCAL, type="m.room.member", state_key=LOCAL, content=content),
        )
        remote.learn(left.event)
        row = LogRow(kind="forgotten_room", user_id=LOCAL, room_id=remote.room_id)
        await core.tail.wait_for(await core.appender.append_rows([row]))
        purge = RoomPurge(
            store=RoomPurgeStore(core.database),
            appender=core.appender,
            clock=Later(1),
            retention_ms=DAY_MS // 2,
        )
        again = remote.member(LOCAL, LOCAL, "join")
        room_nid = (await core.rooms.get(remote.room_id)).room_nid
        head = (await core.rooms.get(remote.room_id)).head
        row = LogRow(kind=PURGED_ROOM, room_id=remote.room_id, key=str(head))
        await core.tail.wait_for(await core.appender.append_rows([row]))
        with pytest.raises(MatrixError) as caught:
            await import_into(core, remote, again)
        assert caught.value.status == 503
        await purge.sweep(core.database.transaction)
        joined = await import_into(core, remote, again)
        assert joined.room_nid != room_nid
        assert await state_of(core, remote.room_id) == remote.state([again.event_id])
        await core.send(remote.room_id, LOCAL, "back again")
        left_over = await core.database.fetchval("SELECT count(*) FROM events WHERE room_nid = $1", room_nid)
        assert left_over == 0
        await purge.sweep(core.database.transaction)
        assert await core.rooms.find(remote.room_id) is not None
