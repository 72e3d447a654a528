"""Relations, threads, and what they add to events."""

from __future__ import annotations

from typing import Any

from tests.room_endpoints import ALICE, BOB, RoomEndpoints, forget_memory, running_endpoints


def _to(event_id: str, rel_type: str, **more: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id, **more}}


def _edit(event_id: str, text: str) -> dict[str, Any]:
    return {**_to(event_id, "m.replace"), "m.new_content": {"msgtype": "m.text", "body": text}}


async def _bundle(app: RoomEndpoints, room_id: str, event_id: str, user: str = "alice") -> Any:
    """Give m.relations of an event: the same from memory as from the database, alone and in a page."""
    alone = (await app.get(f"{room_id}/event/{event_id}", user))["unsigned"].get("m.relations")
    page = await app.get(f"{room_id}/messages", user, dir="b", limit="100")
    in_page = next(e for e in page["chunk"] if e["event_id"] == event_id)
    assert _ageless(in_page["unsigned"].get("m.relations")) == _ageless(alone)
    return alone


def _ageless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ageless(inner) for key, inner in value.items() if key != "age"}
    return value


async def test_the_newest_valid_edit(database: str) -> None:
    """A message would be shown as it was before its correction; or others could put words into its mouth."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        original = await app.say(room_id, "teh")
        await app.say(room_id, "* the", **_edit(original, "the"))
        newest = await app.say(room_id, "* The", **_edit(original, "The"))
        await app.say(room_id, "* HACKED", "bob", **_edit(original, "HACKED"))
        await app.say(room_id, "no new content", **_to(original, "m.replace"))
        await app.event(room_id, ALICE, "m.sticker", _edit(original, "another type"))
        edit_of_edit = await app.say(room_id, "* again", **_edit(newest, "again"))
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            shown = (await _bundle(app, room_id, original, "bob"))["m.replace"]
            assert shown["event_id"] == newest
            assert shown["content"]["m.new_content"]["body"] == "The"
            assert (shown["sender"], shown["type"], shown["room_id"]) == (ALICE, "m.room.message", room_id)
            assert await _bundle(app, room_id, newest) is None
            assert await _bundle(app, room_id, edit_of_edit) is None
        await app.put(f"{room_id}/redact/{newest}/t1")
        shown = (await _bundle(app, room_id, original))["m.replace"]
        assert shown["content"]["m.new_content"]["body"] == "the"
        await app.put(f"{room_id}/redact/{original}/t2")
        assert await _bundle(app, room_id, original) is None


async def test_a_redacted_edit_is_no_edit(database: str) -> None:
    """Taking back a correction would not show the original again."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        original = await app.say(room_id, "right")
        wrong = await app.say(room_id, "* wrong", **_edit(original, "wrong"))
        await app.put(f"{room_id}/redact/{wrong}/t1")
        assert await _bundle(app, room_id, original) is None
        forget_memory(app.core)
        assert await _bundle(app, room_id, original) is None


async def test_a_thread_is_summarised(database: str) -> None:
    """Threads would show a wrong count or preview, or count people whom the reader ignores."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        for user_id in (BOB, "@carol:example.org"):
            await app.core.join(room_id, user_id)
        root = await app.say(room_id, "root")
        await app.say(room_id, "one", "bob", **_to(root, "m.thread"))
        latest = await app.say(room_id, "two", "bob", **_to(root, "m.thread"))
        await app.say(room_id, "* TWO", "bob", **_edit(latest, "TWO"))
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            thread = (await _bundle(app, room_id, root))["m.thread"]
            assert (thread["count"], thread["current_user_participated"]) == (2, True)
            assert thread["latest_event"]["event_id"] == latest
            nested = thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]
            assert nested["content"]["m.new_content"]["body"] == "TWO"
            assert (await _bundle(app, room_id, root, "bob"))["m.thread"]["current_user_participated"] is True
            carols = (await _bundle(app, room_id, root, "carol"))["m.thread"]
            assert carols["current_user_participated"] is False
            app.ignoring[ALICE] = frozenset([BOB])
            assert (await app.get(f"{room_id}/event/{root}"))["unsigned"].get("m.relations") is None
            app.ignoring.clear()


async def test_references(database: str) -> None:
    """Verifications in a room could not find their requests."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        target = await app.say(room_id, "poll")
        answers = [await app.say(room_id, str(n), **_to(target, "m.reference")) for n in range(3)]
        await app.say(room_id, "like", **_to(target, "m.annotation", key="x"))
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            shown = await _bundle(app, room_id, target)
            assert shown == {"m.reference": {"chunk": [{"event_id": id_} for id_ in answers]}}
        state = await app.event(room_id, ALICE, "m.room.name", {"name": "n"}, "")
        await app.say(room_id, "to state", **_to(state, "m.reference"))
        assert await _bundle(app, room_id, state) is None


async def test_children_that_the_reader_may_not_see_do_not_count(database: str) -> None:
    """Who left would go on reading the newest message of each thread."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        root = await app.say(room_id, "root")
        seen = await app.say(room_id, "seen", **_to(root, "m.thread"))
        await app.member(room_id, "bob", "leave")
        await app.say(room_id, "secret", **_to(root, "m.thread"))
        await app.say(room_id, "* secret", **_edit(root, "secret"))
        await app.say(room_id, "secret", **_to(root, "m.reference"))
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            shown = await _bundle(app, room_id, root, "bob")
            assert list(shown) == ["m.thread"]
            assert shown["m.thread"]["count"] == 1
            assert shown["m.thread"]["latest_event"]["event_id"] == seen
            chunk = (await app.get(f"/_matrix/client/v1/rooms/{room_id}/relations/{root}", "bob"))["chunk"]
            assert [event["event_id"] for event in chunk] == [seen]


async def test_paging_through_relations(database: str) -> None:
    """The view of a thread, or of who reacted, would be incomplete or never end."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        root = await app.say(room_id, "root")
        for n in range(7):
            await app.say(room_id, str(n), **_to(root, "m.thread"))
        await app.event(room_id, ALICE, "m.reaction", _to(root, "m.annotation", key="x"))
        sticker = await app.event(room_id, BOB, "m.sticker", _to(root, "m.thread"))
        path = f"/_matrix/client/v1/rooms/{room_id}/relations/{root}"

        async def all_of(path: str, **query: str) -> list[str]:
            found: list[str] = []
            query = {"limit": "3", **query}
            while True:
                page = await app.get(path, **query)
                assert ("prev_batch" in page) is ("from" in query)
                found += [e["content"].get("body", e["type"]) for e in page["chunk"]]
                if "next_batch" not in page:
                    return found
                query["from"] = page["next_batch"]

        texts = [str(n) for n in range(7)]
        assert await all_of(path) == ["m.sticker", "m.reaction", *texts[::-1]]
        assert await all_of(path, dir="f") == [*texts, "m.reaction", "m.sticker"]
        assert await all_of(f"{path}/m.thread", dir="f") == [*texts, "m.sticker"]
        assert await all_of(f"{path}/m.thread/m.room.message", dir="f") == texts
        assert await all_of(f"{path}/m.other") == []
        app.ignoring[ALICE] = frozenset([BOB])
        assert await all_of(f"{path}/m.thread", dir="f") == texts
        app.ignoring.clear()
        newest = await app.get(path, limit="1")
        assert newest["chunk"][0]["event_id"] == sticker
        between = await app.get(path, **{"from": newest["next_batch"], "to": newest["next_batch"]})
        assert between["chunk"] == []
        missing = f"/_matrix/client/v1/rooms/{room_id}/relations/$nothing"
        assert await app.refused(missing) == (404, "M_NOT_FOUND")
        assert await app.refused(path, "carol") == (404, "M_NOT_FOUND")
        assert await app.refused(f"{path}/a%00b") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, limit="0") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, recurse="maybe") == (400, "M_INVALID_PARAM")


async def test_relations_of_relations(database: str) -> None:
    """The view of a thread would lack the reactions and corrections in it."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        root = await app.say(room_id, "root")
        reply = await app.say(room_id, "reply", **_to(root, "m.thread"))
        edit = await app.say(room_id, "* reply!", **_edit(reply, "reply!"))
        reaction = await app.event(room_id, ALICE, "m.reaction", _to(edit, "m.annotation", key="x"))
        await app.say(room_id, "too far", **_to(reaction, "m.reference"))
        path = f"/_matrix/client/v1/rooms/{room_id}/relations/{root}"
        direct = await app.get(path)
        assert [e["event_id"] for e in direct["chunk"]] == [reply]
        assert "recursion_depth" not in direct
        deep = await app.get(path, recurse="true")
        assert [e["event_id"] for e in deep["chunk"]] == [reaction, edit, reply]
        assert deep["recursion_depth"] == 3
        only = await app.get(f"{path}/m.annotation", recurse="true")
        assert [e["event_id"] for e in only["chunk"]] == [reaction]


async def test_the_threads_of_a_room(database: str) -> None:
    """The list of threads would be out of order, or show those that one has nothing to do with."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        mine, bobs, both = [
            await app.say(room_id, t, u) for t, u in (("a", "alice"), ("b", "bob"), ("c", "bob"))
        ]
        for root, user in ((mine, "bob"), (both, "alice"), (bobs, "bob")):
            await app.say(room_id, "in thread", user, **_to(root, "m.thread"))
        path = f"/_matrix/client/v1/rooms/{room_id}/threads"

        async def roots(user: str = "alice", **query: str) -> list[str]:
            return [e["event_id"] for e in (await app.get(path, user, **query))["chunk"]]

        assert await roots() == [bobs, both, mine]
        assert await roots(include="participated") == [both, mine]
        assert await roots("bob", include="participated") == [bobs, both, mine]
        await app.say(room_id, "again", "bob", **_to(mine, "m.thread"))
        assert await roots() == [mine, bobs, both]
        first = await app.get(path, limit="2")
        assert first["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"] == 2
        assert await roots(**{"from": first["next_batch"]}) == [both]
        app.ignoring[ALICE] = frozenset([BOB])
        assert await roots() == [both]
        assert await app.refused(path, **{"from": "x"}) == (400, "M_INVALID_PARAM")
        assert await app.refused(path, include="none") == (400, "M_INVALID_PARAM")
        assert await app.refused(path, "carol") == (403, "M_FORBIDDEN")
        await app.member(room_id, "bob", "ban", by="alice")
        assert await app.refused(path, "bob") == (403, "M_FORBIDDEN")
