"""The published room directory through the API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ranvier.storage.room_directory import Entry, RoomDirectoryStore
from ranvier.wire.log_rows import EventRow
from tests.core import SERVER_NAME
from tests.rooms_app import ALICE, NOTHING, RoomsApp, rooms_config, running_rooms_app

FORBIDDEN = (403, "M_FORBIDDEN")


async def names(app: RoomsApp, **query: Any) -> list[str]:
    answer = await app.post("/publicRooms", "bob", query)
    assert answer.status == 200, answer
    return [room["name"] for room in answer.json["chunk"]]


async def test_a_published_room_is_described(database: str) -> None:
    """People could not find rooms, or not tell what they are."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(
            visibility="public",
            name="Pub",
            topic="Beer",
            room_alias_name="pub",
            creation_content={"type": "m.space"},
            initial_state=[
                {"type": "m.room.avatar", "content": {"url": "mxc://a/b"}},
                {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}},
            ],
        )
        await app.create(name="private")
        answer = await app.get("/publicRooms", "bob")
        entry = {
            "room_id": room_id,
            "name": "Pub",
            "topic": "Beer",
            "avatar_url": "mxc://a/b",
            "canonical_alias": f"#pub:{SERVER_NAME}",
            "num_joined_members": 1,
            "world_readable": True,
            "guest_can_join": False,
            "join_rule": "public",
            "room_type": "m.space",
        }
        assert answer.json == {"chunk": [entry], "total_room_count_estimate": 1}
        assert (await app.get("/publicRooms")).error == (401, "M_MISSING_TOKEN")
    async with running_rooms_app(database, config=rooms_config(allow_public_rooms_without_auth=True)) as app:
        assert (await app.get("/publicRooms")).json["chunk"] == [entry]
    async with running_rooms_app(database, config=rooms_config(enable_room_list_search=False)) as app:
        assert (await app.get("/publicRooms", "bob")).json["chunk"] == []


async def test_the_directory_follows_the_rooms(database: str) -> None:
    """The directory would show names and numbers of yesterday, or a name that a moderator removed."""
    async with running_rooms_app(database) as app:
        small = await app.create(visibility="public", name="small")
        large = await app.create(visibility="public", name="large")
        for user in ("bob", "carol"):
            await app.act(user, "join", large)
        assert await names(app) == ["large", "small"]
        for user in ("bob", "carol"):
            await app.act(user, "leave", large)
            await app.act(user, "join", small)
        row = await app.set_state(small, "m.room.name", {"name": "rude"})
        assert await names(app) == ["rude", "large"]
        await _redact(app, small, row)
        answer = await app.get("/publicRooms", "bob")
        assert [room.get("name") for room in answer.json["chunk"]] == [None, "large"]
        assert answer.json["chunk"][0]["num_joined_members"] == 3


async def _redact(app: RoomsApp, room_id: str, row: EventRow) -> None:
    await app.core.writer.write(
        room_id,
        lambda draft: draft.add(sender=ALICE, type="m.room.redaction", content={}, redacts=row),
    )


async def test_a_name_that_was_removed_before_a_restart_is_gone(database: str) -> None:
    """A name that a moderator removed would be shown to everybody until the room changes."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(visibility="public")
        row = await app.set_state(room_id, "m.room.name", {"name": "rude"})
        assert await names(app) == ["rude"]
        await _redact(app, room_id, row)
    async with running_rooms_app(database) as app:
        answer = await app.get("/publicRooms", "bob")
        assert [room.get("name") for room in answer.json["chunk"]] == [None]


async def test_a_name_that_is_removed_while_it_is_read_is_gone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a moderator removed would be shown on, as somebody looked at the directory just then."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(visibility="public")
        row = await app.set_state(room_id, "m.room.name", {"name": "rude"})
        refresh, redacted = RoomDirectoryStore.refresh, list[str]()

        async def redact_and_refresh(self: RoomDirectoryStore, entries: Sequence[Entry]) -> None:
            if not redacted:
                redacted.append(row.event_id)
                await _redact(app, room_id, row)
            await refresh(self, entries)

        monkeypatch.setattr(RoomDirectoryStore, "refresh", redact_and_refresh)
        answer = await app.get("/publicRooms", "bob")
        assert redacted
        assert [room.get("name") for room in answer.json["chunk"]] == [None]


async def test_who_looks_at_the_directory_waits_for_no_commit(database: str) -> None:
    """All who write would wait for a second, as the two stood in each other's way, and one be told 500."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(visibility="public")
        await app.set_state(room_id, "m.room.name", {"name": "old"})
        assert await names(app) == ["old"]
        await app.set_state(room_id, "m.room.name", {"name": "new"})
        async with app.core.database.transaction() as held:
            await held.execute("SELECT FROM room_directory FOR UPDATE")
            async with asyncio.timeout(20):
                assert await names(app) == ["old"]
        assert await names(app) == ["new"]


async def test_pages_go_forward_and_back(database: str) -> None:
    """Rooms beyond the first page could not be found, or would come twice."""
    async with running_rooms_app(database) as app:
        for n in range(7):
            await app.create(visibility="public", name=str(n))
        everything = await names(app)
        assert len(set(everything)) == 7
        found: list[str] = []
        since: dict[str, str] = {}
        pages = []
        while True:
            page = (await app.get("/publicRooms", "bob", limit="3", **since)).json
            pages.append(page)
            found += [room["name"] for room in page["chunk"]]
            if "next_batch" not in page:
                break
            since = {"since": page["next_batch"]}
        assert found == everything
        assert "prev_batch" not in pages[0]
        back = (await app.get("/publicRooms", "bob", limit="3", since=pages[2]["prev_batch"])).json
        assert back["chunk"] == pages[1]["chunk"]
        first = (await app.get("/publicRooms", "bob", limit="3", since=back["prev_batch"])).json
        assert first["chunk"] == pages[0]["chunk"]
        assert "prev_batch" not in first
        for token in ("x", "n", "nAAAA", "n" + "bnVsbA", "pWzEsMV0", "nWy0xLCJhIl0", "\U0001f600"):
            answer = await app.get("/publicRooms", "bob", since=token)
            assert answer.error == (400, "M_INVALID_PARAM"), token


async def test_searching(database: str) -> None:
    """People would have to read the whole list."""
    async with running_rooms_app(database) as app:
        await app.create(visibility="public", name="Green Tea", topic="hot 100%")
        await app.create(visibility="public", name="Coffee", creation_content={"type": "m.space"})
        assert await names(app, filter={"generic_search_term": "green"}) == ["Green Tea"]
        assert await names(app, filter={"generic_search_term": "100%"}) == ["Green Tea"]
        assert await names(app, filter={"generic_search_term": "%e%"}) == []
        assert await names(app, filter={"room_types": [None]}) == ["Green Tea"]
        assert await names(app, filter={"room_types": ["m.space"]}) == ["Coffee"]
        assert len(await names(app, filter={"room_types": [None, "m.space"]})) == 2
        assert await names(app, filter={"room_types": []}) == []
        assert await names(app, third_party_instance_id="irc") == []
        assert len(await names(app, include_all_networks=True)) == 2
        elsewhere = await app.post("/publicRooms", "bob", {}, server="elsewhere.org")
        assert elsewhere.error == (404, "M_NOT_FOUND")
        assert (await app.get("/publicRooms", "bob", server=SERVER_NAME)).status == 200


async def test_who_may_publish(database: str) -> None:
    """Anybody could publish a private room, or take a public one out of the list."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat", name="x")
        listing = f"/directory/list/room/{room_id}"
        assert (await app.get(listing)).json == {"visibility": "private"}
        await app.act("bob", "join", room_id)
        for user in ("bob", "carol"):
            assert (await app.ask("PUT", listing, user, {"visibility": "public"})).error == FORBIDDEN
        assert (await app.ask("PUT", listing, "alice", {})).json == {}, "public is what it defaults to"
        assert (await app.get(listing)).json == {"visibility": "public"}
        assert await names(app) == ["x"]
        assert (await app.ask("PUT", listing, "admin", {"visibility": "private"})).json == {}
        assert await names(app) == []
        wrong = await app.ask("PUT", listing, "alice", {"visibility": "secret"})
        assert wrong.error == (400, "M_BAD_JSON")
        for answer in (
            await app.get("/directory/list/room/!no:elsewhere.org"),
            await app.ask("PUT", "/directory/list/room/!no:elsewhere.org", "alice", {}),
        ):
            assert answer.error == (404, "M_NOT_FOUND")
    config = rooms_config(room_list_publication_rules=NOTHING)
    async with running_rooms_app(database, config=config) as app:
        assert (await app.ask("PUT", listing, "alice", {"visibility": "public"})).error == FORBIDDEN


@pytest.mark.parametrize("limit", [-1, 0, 1, 10**6])
async def test_any_limit_is_answered(database: str, limit: int) -> None:
    """One request could ask for the whole list of a large server."""
    async with running_rooms_app(database) as app:
        await app.create(visibility="public", name="x")
        assert await names(app, limit=limit) == ["x"]
