"""The state of a room and its members, now and at earlier times."""

from __future__ import annotations

from tests.room_endpoints import ALICE, BOB, CAROL, forget_memory, running_endpoints


async def test_all_state_and_one_piece(database: str) -> None:
    """A client could not show a room: its name, its members, its rules."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.event(room_id, ALICE, "m.room.topic", {"topic": "tea"}, "")
        state = await app.get(f"{room_id}/state")
        assert {(e["type"], e["state_key"]) for e in state} == {
            ("m.room.create", ""),
            ("m.room.member", ALICE),
            ("m.room.power_levels", ""),
            ("m.room.join_rules", ""),
            ("m.room.topic", ""),
        }
        assert all(e["room_id"] == room_id and e["unsigned"]["age"] >= 0 for e in state)
        for path in ("state/m.room.topic", "state/m.room.topic/"):
            assert await app.get(f"{room_id}/{path}") == {"topic": "tea"}
        event = await app.get(f"{room_id}/state/m.room.topic", format="event")
        assert (event["type"], event["content"], event["sender"]) == ("m.room.topic", {"topic": "tea"}, ALICE)
        assert (await app.get(f"{room_id}/state/m.room.member/{ALICE}"))["membership"] == "join"
        assert await app.refused(f"{room_id}/state/m.room.name") == (404, "M_NOT_FOUND")
        assert await app.refused(f"{room_id}/state/m.room.topic", format="xml") == (400, "M_INVALID_PARAM")


async def test_who_left_sees_the_state_of_that_time(database: str) -> None:
    """Somebody who was removed would go on learning who is in the room and what it is called."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        await app.event(room_id, ALICE, "m.room.name", {"name": "old"}, "")
        await app.member(room_id, "bob", "leave", by="alice")
        await app.event(room_id, ALICE, "m.room.name", {"name": "new"}, "")
        await app.event(room_id, ALICE, "m.room.topic", {"topic": "secret"}, "")
        await app.core.join(room_id, CAROL)
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            assert await app.get(f"{room_id}/state/m.room.name", "bob") == {"name": "old"}
            assert await app.refused(f"{room_id}/state/m.room.topic", "bob") == (404, "M_NOT_FOUND")
            state = await app.get(f"{room_id}/state", "bob")
            members = {
                e["state_key"]: e["content"]["membership"] for e in state if e["type"] == "m.room.member"
            }
            assert members == {ALICE: "join", BOB: "leave"}
            chunk = (await app.get(f"{room_id}/members", "bob"))["chunk"]
            assert {e["state_key"] for e in chunk} == {ALICE, BOB}
            assert await app.get(f"{room_id}/state/m.room.name") == {"name": "new"}


async def test_members(database: str) -> None:
    """A client's member list would be wrong, or that of an earlier time would show today's people."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        early = f"s{app.core.tail.pos}"
        await app.core.join(room_id, CAROL)
        await app.member(room_id, "bob", "leave")

        async def listed(**query: str) -> dict[str, str]:
            chunk = (await app.get(f"{room_id}/members", **query))["chunk"]
            return {e["state_key"]: e["content"]["membership"] for e in chunk}

        now = {ALICE: "join", BOB: "leave", CAROL: "join"}
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            assert await listed() == now
            assert await listed(membership="join") == {ALICE: "join", CAROL: "join"}
            assert await listed(not_membership="join") == {BOB: "leave"}
            assert await listed(membership="leave", not_membership="leave") == now
            assert await listed(at=early) == {ALICE: "join", BOB: "join"}
        assert await app.refused(f"{room_id}/members", membership="x") == (400, "M_INVALID_PARAM")
        assert await app.refused(f"{room_id}/members", at="x") == (400, "M_INVALID_PARAM")


async def test_joined_members(database: str) -> None:
    """A bridge could not tell who is in a room, or what they are called."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        profile = {"membership": "join", "displayname": "Bob", "avatar_url": "mxc://example.org/bob"}
        await app.event(room_id, BOB, "m.room.member", profile, BOB)
        await app.core.join(room_id, CAROL)
        await app.member(room_id, "carol", "leave")
        assert await app.get(f"{room_id}/joined_members") == {
            "joined": {ALICE: {}, BOB: {"display_name": "Bob", "avatar_url": "mxc://example.org/bob"}}
        }
        assert await app.refused(f"{room_id}/joined_members", "carol") == (403, "M_FORBIDDEN")


async def test_a_large_room(database: str) -> None:
    """The state of a room with thousands of members would be cut off or broken."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()

        def join_many(draft: object, first: int) -> None:
            for n in range(first, first + 500):
                user_id = f"@u{n}:example.org"
                draft.add(  # type: ignore[attr-defined]
                    sender=user_id, type="m.room.member", content={"membership": "join"}, state_key=user_id
                )

        for first in range(0, 2500, 500):
            await app.core.writer.write(room_id, lambda draft, first=first: join_many(draft, first))
        assert len(await app.get(f"{room_id}/state")) == 2504
        assert len((await app.get(f"{room_id}/members"))["chunk"]) == 2501
        assert len((await app.get(f"{room_id}/joined_members"))["joined"]) == 2501
