"""Room summaries, spaces and rooms in common, through the API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core import SERVER_NAME
from tests.rooms_app import BOB, RoomsApp, running_rooms_app

NOT_FOUND = (404, "M_NOT_FOUND")
V1 = "/_matrix/client/v1"


async def test_a_summary_tells_what_a_room_is(database: str) -> None:
    """A client could not show a room before joining it."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(
            preset="public_chat",
            room_alias_name="pub",
            name="Pub",
            initial_state=[{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}],
        )
        expected = {
            "room_id": room_id,
            "name": "Pub",
            "canonical_alias": f"#pub:{SERVER_NAME}",
            "num_joined_members": 1,
            "join_rule": "public",
            "world_readable": False,
            "guest_can_join": False,
            "room_version": "12",
            "encryption": "m.megolm.v1.aes-sha2",
        }
        unstable = "/_matrix/client/unstable/im.nheko.summary"
        for path in (
            f"{V1}/room_summary/{room_id}",
            f"{V1}/room_summary/%23pub:{SERVER_NAME}",
            f"{unstable}/summary/{room_id}",
            f"{unstable}/rooms/{room_id}/summary",
        ):
            assert (await app.get(path)).json == expected
            assert (await app.get(path, "alice")).json == {**expected, "membership": "join"}
            assert (await app.get(path, "bob")).json == {**expected, "membership": "leave"}
        assert (await app.get(f"{V1}/room_summary/!no:elsewhere.org", "bob")).error == NOT_FOUND
        assert (await app.get(f"{V1}/room_summary/nonsense", "bob")).error == (400, "M_INVALID_PARAM")


async def test_who_may_learn_of_a_room(database: str) -> None:
    """A private room's name would be shown to strangers, or those invited would not see it."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(name="Den", invite=[BOB])
        path = f"{V1}/room_summary/{room_id}"
        assert (await app.get(path)).error == NOT_FOUND
        assert (await app.get(path, "carol")).error == NOT_FOUND
        assert (await app.get(path, "bob")).json["membership"] == "invite"
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
        assert (await app.get(path, "carol")).json["name"] == "Den"
        lobby = await app.create(preset="public_chat")
        allow: list[Any] = [{"type": "m.room_membership", "room_id": lobby}]
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
        assert (await app.get(path, "carol")).error == NOT_FOUND
        await app.act("carol", "join", lobby)
        assert (await app.get(path, "carol")).json["allowed_room_ids"] == [lobby]
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "public"})
        await app.act("alice", "ban", room_id, "carol")
        assert (await app.get(path, "carol")).error == NOT_FOUND


async def space_of(app: RoomsApp, children: dict[str, dict[str, Any]], **options: Any) -> str:
    """Make a space with children and what their events say."""
    space = await app.create(preset="public_chat", creation_content={"type": "m.space"}, **options)
    for child, content in children.items():
        await app.set_state(space, "m.space.child", {"via": [SERVER_NAME], **content}, child)
    return space


async def test_a_space_is_walked_depth_first(database: str) -> None:
    """A space's rooms would be missing or in disorder, or private ones be shown."""
    async with running_rooms_app(database) as app:
        rooms = {n: await app.create(preset="public_chat", name=n) for n in ("a", "b", "c")}
        hidden = await app.create(name="hidden")
        inner = await space_of(app, {rooms["b"]: {}}, name="inner")
        root = await space_of(
            app,
            {
                rooms["a"]: {"order": "2", "suggested": True},
                inner: {"order": "1"},
                rooms["c"]: {},
                hidden: {"order": "0"},
                "!gone:elsewhere.org": {},
            },
            name="root",
        )
        await app.set_state(inner, "m.space.child", {"via": [SERVER_NAME]}, root)  # a loop
        path = f"{V1}/rooms/{root}/hierarchy"

        async def names(user: str = "bob", **query: str) -> list[str]:
            answer = await app.get(path, user, **query)
            assert answer.status == 200, answer
            return [room["name"] for room in answer.json["rooms"]]

        assert await names() == ["root", "inner", "b", "a", "c"]
        assert await names("alice") == ["root", "hidden", "inner", "b", "a", "c"]
        assert await names(max_depth="1") == ["root", "inner", "a", "c"]
        assert await names(max_depth="0") == ["root"]
        assert await names(suggested_only="true") == ["root", "a"]
        first = (await app.get(path, "bob")).json["rooms"][0]
        child = first["children_state"][0]
        assert set(child) == {"type", "state_key", "sender", "content", "origin_server_ts"}
        assert len(first["children_state"]) == 5


async def test_pages_of_a_space(database: str) -> None:
    """Only the first rooms of a large space could be seen."""
    async with running_rooms_app(database) as app:
        rooms = {await app.create(preset="public_chat", name=str(n)): {"order": str(n)} for n in range(5)}
        path = f"{V1}/rooms/{await space_of(app, rooms, name='root')}/hierarchy"
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = (await app.get(path, "bob", limit="2", **more)).json
            found += [room["name"] for room in page["rooms"]]
            if "next_batch" not in page:
                break
            more = {"from": page["next_batch"]}
        assert found == ["root", "0", "1", "2", "3", "4"]
        for query in ({**more, "max_depth": "1"}, {**more, "suggested_only": "true"}, {"from": "x"}):
            assert (await app.get(path, "bob", **query)).error == (400, "M_INVALID_PARAM")
        assert (await app.get(path, "bob", limit="0")).error == (400, "M_INVALID_PARAM")


async def test_a_space_that_may_not_be_seen(database: str) -> None:
    """Strangers could look into private spaces."""
    async with running_rooms_app(database) as app:
        space = await app.create(creation_content={"type": "m.space"})
        for room_id in (space, "!no:elsewhere.org"):
            answer = await app.get(f"{V1}/rooms/{room_id}/hierarchy", "bob")
            assert answer.error == (403, "M_FORBIDDEN")


async def test_rooms_in_common(database: str) -> None:
    """A client could not show where one knows somebody from."""
    async with running_rooms_app(database) as app:
        shared = []
        for _ in range(3):
            room_id = await app.create(preset="public_chat")
            await app.act("bob", "join", room_id)
            shared.append(room_id)
        await app.create(invite=[BOB])
        path = f"{V1}/mutual_rooms"
        answer = await app.get(path, "alice", user_id=BOB)
        assert answer.json == {"joined": sorted(shared), "count": 3}
        nobody = await app.get(path, "alice", user_id="@nobody:elsewhere.org")
        assert nobody.json == {"joined": [], "count": 0}


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({}, "M_INVALID_PARAM"),
        ({"user_id": "alice"}, "M_INVALID_PARAM"),
        ({"user_id": f"@alice:{SERVER_NAME}"}, "M_INVALID_PARAM"),
        ({"user_id": f"@\u00e4:{SERVER_NAME}"}, "M_INVALID_PARAM"),
        ({"user_id": BOB, "from": "x"}, "M_INVALID_PARAM"),
    ],
)
async def test_rooms_in_common_with_nobody(database: str, query: dict[str, str], errcode: str) -> None:
    """A client would not learn what is wrong with its request."""
    async with running_rooms_app(database) as app:
        assert (await app.get(f"{V1}/mutual_rooms", "alice", **query)).error == (400, errcode)
