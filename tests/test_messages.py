"""Paging through history, and finding a point in it by time."""

from __future__ import annotations

import orjson

from tests.room_endpoints import ALICE, BOB, Core, RoomEndpoints, forget_memory, running_endpoints


async def _texts(app: RoomEndpoints, room_id: str, **query: str) -> list[str]:
    page = await app.get(f"{room_id}/messages", **query)
    return [event["content"].get("body", event["type"]) for event in page["chunk"]]


async def test_the_whole_history_in_pages(database: str) -> None:
    """Scrolling up would skip or repeat messages, or never come to the beginning."""
    async with running_endpoints(database) as app:
        room_id, other = await app.core.create_room(), await app.core.create_room()
        for n in range(25):
            await app.say(room_id, str(n))
            await app.say(other, "noise")
        for after_restart in (False, True):
            if after_restart:
                forget_memory(app.core)
                await app.say(room_id, "new")  # part of the history in memory, part in the database
            whole: list[str] = []
            query = {"dir": "b", "limit": "7"}
            while True:
                page = await app.get(f"{room_id}/messages", **query)
                whole += [event["event_id"] for event in page["chunk"]]
                if "end" not in page:
                    break
                assert len(page["chunk"]) == 7
                query["from"] = page["end"]
            expected = await _event_ids(app.core, room_id)
            assert whole == expected[::-1]
            forwards = await app.get(f"{room_id}/messages", dir="f", limit="100")
            assert [event["event_id"] for event in forwards["chunk"]] == expected
            assert "end" not in forwards
            back = await app.get(f"{room_id}/messages", dir="b", limit="3", **{"from": forwards["start"]})
            assert back["chunk"] == []


async def _event_ids(core: Core, room_id: str) -> list[str]:
    room = await core.rooms.get(room_id)
    rows = await core.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=1000)
    return [row.event_id for row in rows]


async def test_from_and_to(database: str) -> None:
    """A client that fills a gap would get events that it has already, or not all that it lacks."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.say(room_id, "one")
        left = f"s{app.core.tail.pos}"
        for text in ("two", "three", "four"):
            await app.say(room_id, text)
        right = f"s{app.core.tail.pos}_3-abc"
        await app.say(room_id, "five")
        assert await _texts(app, room_id, dir="b", **{"from": right, "to": left}) == ["four", "three", "two"]
        assert await _texts(app, room_id, dir="f", **{"from": left, "to": right}) == ["two", "three", "four"]
        assert await _texts(app, room_id, dir="b", limit="1", **{"from": right, "to": left}) == ["four"]
        page = await app.get(f"{room_id}/messages", dir="b", limit="0", **{"from": right})
        assert page["chunk"] == []
        assert page["end"] == f"s{app.core.tail.pos - 1}"


async def test_wrong_parameters(database: str) -> None:
    """A client with a mistake in it would get a server error, or pages that are not what it asked for."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        path = f"{room_id}/messages"
        assert await app.refused(path) == (400, "M_MISSING_PARAM")
        assert await app.refused(path, dir="x") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, dir="b", limit="-1") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, dir="b", limit="many") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, dir="b", **{"from": "t12-34"}) == (400, "M_INVALID_PARAM")
        assert await app.refused(path, dir="b", filter="{") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, dir="b", filter="[]") == (400, "M_BAD_JSON")
        assert len((await app.get(path, dir="b", limit="99999999"))["chunk"]) == 4


async def test_filters(database: str) -> None:
    """A client's list of files, or of one person's messages, would be wrong."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        for n in range(30):
            await app.say(room_id, f"a{n}")
        await app.say(room_id, "picture", "bob", url="mxc://example.org/abc")
        for n in range(120):
            await app.say(room_id, f"b{n}")

        async def filtered(**wanted: object) -> list[str]:
            return await _texts(app, room_id, dir="b", limit="5", filter=orjson.dumps(wanted).decode())

        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            assert await filtered(contains_url=True) == ["picture"]
            assert await filtered(senders=[BOB]) == ["picture", "m.room.member"]
            assert await filtered(types=["m.room.c*"]) == ["m.room.create"]
            assert await filtered(not_types=["m.room.message"], not_senders=[BOB], limit=2) == [
                "m.room.join_rules",
                "m.room.power_levels",
            ]
            assert await filtered(rooms=["!other:example.org"]) == []
            assert await filtered(types=[]) == []


async def test_filters_by_what_relates(database: str) -> None:
    """A client could not list the threads of somebody."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        root, other = await app.say(room_id, "root"), await app.say(room_id, "other")
        await app.say(room_id, "reply", "bob", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
        await app.say(room_id, "note", **{"m.relates_to": {"rel_type": "m.reference", "event_id": other}})
        by_bob = orjson.dumps({"related_by_senders": [BOB], "related_by_rel_types": ["m.thread"]}).decode()
        assert await _texts(app, room_id, dir="b", filter=by_bob) == ["root"]
        references = orjson.dumps({"related_by_rel_types": ["m.reference"]}).decode()
        assert await _texts(app, room_id, dir="b", filter=references) == ["other"]


async def test_members_are_sent_along(database: str) -> None:
    """A client that loads members lazily would show user ids in place of names."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        for user_id in (BOB, "@carol:example.org"):
            await app.core.join(room_id, user_id)
        await app.say(room_id, "hi", "bob")
        lazy = '{"lazy_load_members":true}'
        page = await app.get(f"{room_id}/messages", dir="b", limit="1", filter=lazy)
        assert [member["state_key"] for member in page["state"]] == [BOB]
        assert page["state"][0]["room_id"] == room_id
        assert "state" not in await app.get(f"{room_id}/messages", dir="b", limit="1")


async def test_ignored_people_are_not_heard(database: str) -> None:
    """Somebody who is ignored would still be read when scrolling up."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        await app.say(room_id, "blah", "bob")
        await app.say(room_id, "yes")
        app.ignoring[ALICE] = frozenset([BOB])
        assert await _texts(app, room_id, dir="b", limit="3") == ["yes", "m.room.member", "m.room.join_rules"]


async def test_what_an_event_says_about_its_reader(database: str) -> None:
    """A client could not tell which messages it can not decrypt because its user was not in the room."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.say(room_id, "early")
        await app.core.join(room_id, BOB)
        await app.say(room_id, "late")
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            page = await app.get(f"{room_id}/messages", "bob", dir="b", limit="3")
            assert [e["unsigned"]["membership"] for e in page["chunk"]] == ["join", "join", "leave"]
            assert all(0 <= e["unsigned"]["age"] < 60_000 for e in page["chunk"])
            assert {e["room_id"] for e in page["chunk"]} == {room_id}


async def test_the_event_at_a_time(database: str) -> None:
    """ "Jump to date" would lead nowhere."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room("@bridge:example.org")
        path = f"/_matrix/client/v1/rooms/{room_id}/timestamp_to_event"
        ids = []
        for ts in (4_000_000_000_000, 4_000_000_000_500, 4_000_000_001_000):
            sent = await app.put(f"{room_id}/send/m.room.message/t{ts}", "bridge", {"body": "x"}, ts=ts)
            ids.append(sent.json["event_id"])
        after = await app.get(path, "bridge", ts=4_000_000_000_400, dir="f")
        assert after == {"event_id": ids[1], "origin_server_ts": 4_000_000_000_500}
        assert (await app.get(path, "bridge", ts=4_000_000_000_400, dir="b"))["event_id"] == ids[0]
        assert await app.refused(path, "bridge", ts=4_000_000_002_000, dir="f") == (404, "M_NOT_FOUND")
        assert await app.refused(path, "bridge", ts=5, dir="b") == (404, "M_NOT_FOUND")
        assert await app.refused(path, "bridge", ts=5) == (400, "M_MISSING_PARAM")
        assert await app.refused(path, "bob", ts=5, dir="f") == (403, "M_FORBIDDEN")
        await app.event(
            room_id,
            "@bridge:example.org",
            "m.room.history_visibility",
            {"history_visibility": "joined"},
            "",
        )
        await app.core.join(room_id, BOB)
        assert (await app.get(path, "bob", ts=4_000_000_002_000, dir="b"))["event_id"] == ids[2]
