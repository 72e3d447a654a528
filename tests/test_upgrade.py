"""Room upgrades through the API."""

from __future__ import annotations

import pytest

from tests.core import SERVER_NAME
from tests.rooms_app import ALICE, BOB, CAROL, running_rooms_app

VERSIONS = [(1, 12), (5, 6), (6, 11), (9, 10), (10, 12), (11, 12), (12, 12), (12, 11), (12, 1)]


@pytest.mark.parametrize(("old", "new"), VERSIONS)
async def test_the_new_room_takes_the_place_of_the_old_one(database: str, old: int, new: int) -> None:
    """After an upgrade a room would have lost its settings, its name, its bans or its moderators."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(
            room_version=str(old),
            visibility="public",
            room_alias_name="pub",
            name="Pub",
            topic="Beer",
            power_level_content_override={"users": {BOB: 60} | ({} if old == 12 else {ALICE: 100})},
            creation_content={"type": "m.custom", "m.federate": False},
            initial_state=[{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}],
        )
        await app.act("bob", "join", room_id)
        await app.act("alice", "ban", room_id, "carol", reason="rude")
        last = (await app.timeline(room_id))[-1].event_id
        answer = await app.post(f"/rooms/{room_id}/upgrade", "alice", {"new_version": str(new)})
        assert answer.status == 200, answer
        new_id = answer.json["replacement_room"]
        create = await app.content(new_id, "m.room.create")
        assert create["predecessor"] == {"room_id": room_id, "event_id": last}
        assert (create["type"], create["m.federate"], create["room_version"]) == ("m.custom", False, str(new))
        assert (await app.content(new_id, "m.room.name"))["name"] == "Pub"
        assert (await app.content(new_id, "m.room.topic"))["topic"] == "Beer"
        assert await app.content(new_id, "m.room.join_rules") == {"join_rule": "public"}
        assert (await app.content(new_id, "m.room.encryption"))["algorithm"] == "m.megolm.v1.aes-sha2"
        assert await app.content(new_id, "m.room.member", CAROL) == {"membership": "ban", "reason": "rude"}
        room = await app.core.rooms.get(new_id)
        levels = room.power_levels
        assert levels.user_level(BOB) == 60
        assert levels.user_level(ALICE) == (levels.INFINITE if new == 12 else 100)
        if new == 12:
            assert ALICE not in levels.users
            assert levels.event_level("m.room.tombstone", True) > levels.state_default
        assert room.joined == {ALICE}

        tombstone = await app.content(room_id, "m.room.tombstone")
        assert tombstone["replacement_room"] == new_id
        assert (await app.core.rooms.get(room_id)).power_levels.events_default == 50
        resolved = await app.get(f"/directory/room/%23pub:{SERVER_NAME}")
        assert resolved.json["room_id"] == new_id
        assert await app.content(room_id, "m.room.canonical_alias") == {}
        assert (await app.content(new_id, "m.room.canonical_alias"))["alias"] == f"#pub:{SERVER_NAME}"
        listed = (await app.get("/publicRooms", "bob")).json["chunk"]
        assert [entry["room_id"] for entry in listed] == [new_id]


async def test_a_moderator_may_upgrade_where_the_room_lets_them(database: str) -> None:
    """An upgrade by a moderator would fail half way, or make them an administrator."""
    async with running_rooms_app(database) as app:
        override = {"users": {ALICE: 100, BOB: 50}, "events": {"m.room.tombstone": 50, "m.room.name": 100}}
        room_id = await app.create(
            preset="public_chat", room_version="10", name="Pub", power_level_content_override=override
        )
        await app.act("bob", "join", room_id)
        answer = await app.post(f"/rooms/{room_id}/upgrade", "bob", {"new_version": "11"})
        new_id = answer.json["replacement_room"]
        levels = (await app.core.rooms.get(new_id)).power_levels
        assert (levels.user_level(BOB), levels.user_level(ALICE)) == (50, 100)
        assert (await app.content(new_id, "m.room.name"))["name"] == "Pub"
        assert (await app.content(room_id, "m.room.tombstone"))["replacement_room"] == new_id


async def test_additional_creators(database: str) -> None:
    """Those who should own the new room would not, or those who no longer should would."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(creation_content={"additional_creators": [CAROL]})
        body = {"new_version": "12", "additional_creators": [BOB, ALICE, BOB]}
        answer = await app.post(f"/rooms/{room_id}/upgrade", "alice", body)
        new_id = answer.json["replacement_room"]
        assert (await app.content(new_id, "m.room.create"))["additional_creators"] == [BOB]
        assert (await app.core.rooms.get(new_id)).power_levels.user_level(CAROL) == 100
        old = await app.post(f"/rooms/{new_id}/upgrade", "alice", {**body, "new_version": "11"})
        assert "additional_creators" not in await app.content(old.json["replacement_room"], "m.room.create")


async def test_join_rules_that_the_new_version_does_not_know(database: str) -> None:
    """A room that was closed would be open, or nobody could ever be let in."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(room_version="10")
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": []})
        answer = await app.post(f"/rooms/{room_id}/upgrade", "alice", {"new_version": "7"})
        assert await app.content(answer.json["replacement_room"], "m.room.join_rules") == {
            "join_rule": "invite"
        }


async def test_a_space_keeps_its_rooms_and_many_bans(database: str) -> None:
    """An upgraded space would be empty, and those banned from it would be back."""
    async with running_rooms_app(database) as app:
        space = await app.create(creation_content={"type": "m.space"}, room_version="11")
        child = await app.create()
        await app.set_state(space, "m.space.child", {"via": [SERVER_NAME]}, child)
        for start in (0, 150):
            await app.core.writer.write(
                space,
                lambda draft, start=start: [
                    draft.add(
                        sender=ALICE,
                        type="m.room.member",
                        state_key=f"@spam{n}:{SERVER_NAME}",
                        content={"membership": "ban"},
                    )
                    for n in range(start, start + 150)
                ],
            )
        answer = await app.post(f"/rooms/{space}/upgrade", "alice", {"new_version": "12"})
        new_id = answer.json["replacement_room"]
        assert (await app.content(new_id, "m.space.child", child))["via"] == [SERVER_NAME]
        assert await app.membership_of(new_id, "spam299") == "ban"


async def test_who_may_not_upgrade(database: str) -> None:
    """Anybody could take over a room, or a mistake would close it."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        await app.act("bob", "join", room_id)
        upgrade = f"/rooms/{room_id}/upgrade"
        assert (await app.post(upgrade, "bob", {"new_version": "11"})).error == (403, "M_FORBIDDEN")
        assert (await app.post(upgrade, "carol", {"new_version": "11"})).error == (403, "M_FORBIDDEN")
        wrong = await app.post(upgrade, "alice", {"new_version": "99"})
        assert wrong.error == (400, "M_UNSUPPORTED_ROOM_VERSION")
        assert (await app.post(upgrade, "alice", {})).error == (400, "M_BAD_JSON")
        creators = {"new_version": "12", "additional_creators": ["bob"]}
        assert (await app.post(upgrade, "alice", creators)).error == (400, "M_BAD_JSON")
        unknown = await app.post("/rooms/!no:elsewhere.org/upgrade", "alice", {"new_version": "11"})
        assert unknown.error == (404, "M_NOT_FOUND")
        assert await app.content(room_id, "m.room.tombstone") == {}
