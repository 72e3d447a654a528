"""Making rooms through the API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.core import SERVER_NAME
from tests.rooms_app import ALICE, BOB, NOTHING, rooms_config, running_rooms_app, types_of

VERSIONS = [str(version) for version in range(1, 13)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_first_events_come_in_the_order_of_the_specification(database: str, version: str) -> None:
    """A new room would lack its name, its topic or those invited, or clients of other servers refuse it."""
    async with running_rooms_app(database) as app:
        app.profiles[ALICE] = {"displayname": "Alice"}
        room_id = await app.create(
            room_version=version,
            room_alias_name="pub",
            name="The Pub",
            topic="Happy hour",
            invite=[BOB],
            is_direct=True,
            preset="public_chat",
            creation_content={"m.federate": False, "creator": "@mallory:x", "room_version": "99"},
            initial_state=[
                {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}},
                {"type": "m.room.name", "content": {"name": "overwritten"}},
            ],
        )
        rows = await app.timeline(room_id)
        assert types_of(rows) == [
            "m.room.create",
            "m.room.member",
            "m.room.power_levels",
            "m.room.canonical_alias",
            "m.room.join_rules",
            "m.room.history_visibility",
            "m.room.guest_access",
            "m.room.name",
            "m.room.topic",
            "m.room.member",
        ]
        create, member, levels = rows[0].content, rows[1].content, rows[2].content
        assert create["room_version"] == version
        assert create["m.federate"] is False
        assert create.get("creator") == (ALICE if int(version) < 11 else None)
        assert member == {"membership": "join", "displayname": "Alice"}
        assert levels["users"] == ({ALICE: 100} if version != "12" else {})
        assert levels["events"]["m.room.tombstone"] == (150 if version == "12" else 100)
        assert rows[3].content == {"alias": f"#pub:{SERVER_NAME}"}
        assert rows[6].content == {"guest_access": "can_join"}
        assert rows[7].content == {"name": "The Pub"}
        assert rows[8].content["m.topic"]["m.text"] == [{"body": "Happy hour", "mimetype": "text/plain"}]
        assert rows[9].content == {"membership": "invite", "is_direct": True}
        assert (await app.post(f"/join/%23pub:{SERVER_NAME}", "carol")).json == {"room_id": room_id}


async def test_an_invitation_carries_what_identifies_the_room(database: str) -> None:
    """An invitation would show neither the room's name nor that it is a space."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(
            name="Den", invite=[BOB], topic="x" * 20_000, creation_content={"type": "m.space"}
        )
        invite = (await app.timeline(room_id))[-1]
        state = {e["type"]: e for e in invite.event.pdu["unsigned"]["invite_room_state"]}
        assert state["m.room.create"]["content"]["type"] == "m.space"
        assert state["m.room.name"]["content"] == {"name": "Den"}
        assert state["m.room.member"]["state_key"] == ALICE
        assert "m.room.topic" not in state, "too long to be carried along"
        assert set(state["m.room.name"]) == {"type", "state_key", "content", "sender"}


@pytest.mark.parametrize(
    ("options", "join_rule", "guest_access"),
    [
        ({}, "invite", "can_join"),
        ({"visibility": "public"}, "public", "forbidden"),
        ({"visibility": "public", "preset": "private_chat"}, "invite", "can_join"),
        ({"preset": "public_chat"}, "public", "forbidden"),
        ({"preset": "trusted_private_chat"}, "invite", "can_join"),
    ],
)
async def test_presets(database: str, options: dict[str, Any], join_rule: str, guest_access: str) -> None:
    """A private room would be open to strangers, or a public one closed."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(**options)
        assert (await app.content(room_id, "m.room.join_rules"))["join_rule"] == join_rule
        assert (await app.content(room_id, "m.room.guest_access"))["guest_access"] == guest_access
        assert (await app.content(room_id, "m.room.history_visibility"))["history_visibility"] == "shared"


@pytest.mark.parametrize("version", ["11", "12"])
async def test_a_trusted_private_chat_makes_those_invited_equal(database: str, version: str) -> None:
    """The other side of a direct chat could not change its settings."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="trusted_private_chat", invite=[BOB], room_version=version)
        await app.act("bob", "join", room_id)
        levels = (await app.core.rooms.get(room_id)).power_levels
        assert levels.user_level(BOB) == levels.user_level(ALICE)
        creators = (await app.content(room_id, "m.room.create")).get("additional_creators")
        assert creators == ([BOB] if version == "12" else None)


async def test_power_levels_can_be_overridden(database: str) -> None:
    """An announcement room would let everybody speak."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(power_level_content_override={"events_default": 50})
        levels = await app.content(room_id, "m.room.power_levels")
        assert levels["events_default"] == 50
        assert levels["ban"] == 50


async def test_a_preset_may_be_encrypted_by_default(database: str) -> None:
    """An administrator's rule that private rooms are encrypted would have no effect."""
    config = rooms_config(encrypted_presets=frozenset({"private_chat"}))
    async with running_rooms_app(database, config=config) as app:
        encrypted = await app.content(await app.create(), "m.room.encryption")
        assert encrypted == {"algorithm": "m.megolm.v1.aes-sha2"}
        assert await app.content(await app.create(preset="public_chat"), "m.room.encryption") == {}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"room_version": "99"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"visibility": "hidden"}, (400, "M_BAD_JSON")),
        ({"preset": "open"}, (400, "M_BAD_JSON")),
        ({"invite": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"invite": [ALICE]}, (400, "M_INVALID_PARAM")),
        ({"invite": ["@bob:elsewhere.org"]}, (403, "M_FORBIDDEN")),
        ({"invite": [f"@b{n}:{SERVER_NAME}" for n in range(101)]}, (400, "M_INVALID_PARAM")),
        ({"invite_3pid": [{"medium": "email", "address": "a@b.c"}]}, (403, "M_SERVER_NOT_TRUSTED")),
        ({"room_alias_name": "a:b"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "a b"}, (400, "M_INVALID_PARAM")),
        ({"initial_state": [{"type": "m.room.create", "content": {}}]}, (400, "M_INVALID_ROOM_STATE")),
        ({"initial_state": [{"content": {}}]}, (400, "M_BAD_JSON")),
        (
            {"initial_state": [{"type": "m.room.canonical_alias", "content": {"alias": "#a:b.c"}}]},
            (400, "M_BAD_ALIAS"),
        ),
        (
            {"power_level_content_override": {"users": {}}, "room_version": "11", "name": "x"},
            (400, "M_INVALID_ROOM_STATE"),
        ),
        ({"power_level_content_override": {"users": {ALICE: 100}}}, (400, "M_INVALID_ROOM_STATE")),
        ({"creation_content": {"additional_creators": ["bob"]}}, (400, "M_BAD_JSON")),
        ({"name": 5}, (400, "M_BAD_JSON")),
        ({"name": "x" * 70_000}, (413, "M_TOO_LARGE")),
        ({"creation_content": {"x": 1.5}}, (400, "M_BAD_JSON")),
    ],
)
async def test_what_can_not_be_made_is_refused(
    database: str, options: dict[str, Any], error: tuple[int, str]
) -> None:
    """A client would not learn what is wrong with its request, and a half-made room would be left."""
    async with running_rooms_app(database) as app:
        assert (await app.post("/createRoom", "alice", options)).error == error
        assert (await app.get("/joined_rooms", "alice")).json == {"joined_rooms": []}


async def test_an_alias_can_be_taken_once(database: str) -> None:
    """Two rooms would fight for one name, or a failed attempt would block a name for ever."""
    async with running_rooms_app(database) as app:
        bad = {"room_alias_name": "pub", "power_level_content_override": {"users": {ALICE: 1}}}
        assert (await app.post("/createRoom", "alice", bad)).error == (400, "M_INVALID_ROOM_STATE")
        await app.create(room_alias_name="pub")
        taken = await app.post("/createRoom", "bob", {"room_alias_name": "pub"})
        assert taken.error == (400, "M_ROOM_IN_USE")


async def test_who_blocks_invitations_is_not_invited(database: str) -> None:
    """Somebody who asked not to be invited would be."""
    async with running_rooms_app(database) as app:
        app.blocking.add(BOB)
        assert (await app.post("/createRoom", "alice", {"invite": [BOB]})).error == (403, "M_INVITE_BLOCKED")
        assert (await app.get("/joined_rooms", "alice")).json == {"joined_rooms": []}


async def test_rules_of_the_server_hold(database: str) -> None:
    """Users could publish rooms and take names that the administrator does not allow."""
    config = rooms_config(alias_creation_rules=NOTHING, room_list_publication_rules=NOTHING)
    async with running_rooms_app(database, config=config) as app:
        for options in ({"visibility": "public"}, {"room_alias_name": "a"}):
            assert (await app.post("/createRoom", "alice", options)).error == (403, "M_FORBIDDEN")
        assert (await app.post("/createRoom", "suspended")).error == (403, "M_USER_SUSPENDED")
        assert (await app.post("/createRoom", "guest1")).error == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_one_user_makes_rooms_alike_at_once(database: str) -> None:
    """A client that makes many rooms at once would see some fail, or get one room twice.

    The id of a room of version 12 is the hash of its create event, which has nothing of its own but its time.
    """
    async with running_rooms_app(database) as one, running_rooms_app(database) as other:
        made = await asyncio.gather(*(app.create() for app in (one, other) for _ in range(12)))
        assert len(set(made)) == 24


async def test_nul_in_a_state_event_is_refused(database: str) -> None:
    """The server would fail on a text that its database does not hold, or make half a room."""
    async with running_rooms_app(database) as app:
        for wrong in ({"type": "a\0b", "content": {}}, {"type": "a", "state_key": "\0", "content": {}}):
            answer = await app.post("/createRoom", "alice", {"initial_state": [wrong]})
            assert answer.error == (400, "M_BAD_JSON")
