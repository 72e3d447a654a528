"""Room aliases through the API."""

from __future__ import annotations

from typing import Any

import pytest

from ranvier.log.standstill import Standstill
from ranvier.spec.errors import MatrixError
from ranvier.storage.aliases import AliasStore
from tests.core import SERVER_NAME
from tests.rooms_app import ALICE, BOB, NOTHING, RoomsApp, rooms_config, running_rooms_app
from tests.test_standstill import Now

PUB = f"#pub:{SERVER_NAME}"
FORBIDDEN = (403, "M_FORBIDDEN")


def path(alias: str) -> str:
    return "/directory/room/" + alias.replace("#", "%23").replace(" ", "%20")


async def name(app: RoomsApp, user: str, alias: str, room_id: str) -> tuple[int, str]:
    return (await app.ask("PUT", path(alias), user, {"room_id": room_id})).error


async def test_an_alias_is_made_found_and_removed(database: str) -> None:
    """Links to rooms by name would not work, or for ever."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        assert await name(app, "alice", PUB, room_id) == (200, "")
        assert (await app.get(path(PUB))).json == {"room_id": room_id, "servers": [SERVER_NAME]}
        assert (await app.get(f"/rooms/{room_id}/aliases", "alice")).json == {"aliases": [PUB]}
        assert await name(app, "alice", PUB, room_id) == (409, "M_UNKNOWN")
        assert (await app.ask("DELETE", path(PUB), "alice")).json == {}
        for answer in (await app.get(path(PUB)), await app.ask("DELETE", path(PUB), "alice")):
            assert answer.error == (404, "M_NOT_FOUND")


async def test_a_worker_that_stood_still_changes_no_name_that_may_be_newer(database: str) -> None:
    """An alias that was given anew meanwhile would be gone, or a room that was hidden be listed again."""
    async with running_rooms_app(database) as app:
        room_id, now = await app.create(preset="public_chat"), Now()
        assert await name(app, "alice", PUB, room_id) == (200, "")
        listed = f"/directory/list/room/{room_id}"
        app.core.appender.standstill = Standstill(lambda: app.core.tail.pos, now.clock)
        now.forward_s = 10.0
        late = [
            await app.ask("DELETE", path(PUB), "alice"),
            await app.ask("PUT", path(f"#two:{SERVER_NAME}"), "alice", {"room_id": room_id}),
            await app.ask("PUT", listed, "alice", {"visibility": "public"}),
        ]
        assert [it.status for it in late] == [503] * 3
        assert (await app.get(f"/rooms/{room_id}/aliases", "alice")).json == {"aliases": [PUB]}
        assert (await app.get(listed)).json == {"visibility": "private"}


async def test_who_may_name_a_room(database: str) -> None:
    """A stranger could name a room, or take its name away."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        assert await name(app, "bob", PUB, room_id) == FORBIDDEN
        await app.act("bob", "join", room_id)
        assert await name(app, "bob", PUB, room_id) == (200, "")
        assert (await app.ask("DELETE", path(PUB), "carol")).error == FORBIDDEN
        assert (await app.ask("DELETE", path(PUB), "bob")).status == 200
        for deleter in ("alice", "admin"):
            await name(app, "bob", PUB, room_id)
            assert (await app.ask("DELETE", path(PUB), deleter)).status == 200
        for alias in (
            "pub",
            f"#a b:{SERVER_NAME}",
            "#pub:elsewhere.org",
            "#" + "x" * 300 + f":{SERVER_NAME}",
        ):
            assert await name(app, "alice", alias, room_id) == (400, "M_INVALID_PARAM")
        assert await name(app, "alice", PUB, "!no:elsewhere.org") == (404, "M_NOT_FOUND")
        assert (await app.ask("PUT", path(PUB), "alice", {})).error == (400, "M_BAD_JSON")
        assert (await app.get(path("#pub:elsewhere.org"))).error == (404, "M_NOT_FOUND")
        assert (await app.get(path("pub"))).error == (400, "M_INVALID_PARAM")
    async with running_rooms_app(database, config=rooms_config(alias_creation_rules=NOTHING)) as app:
        assert await name(app, "alice", PUB, room_id) == FORBIDDEN


async def test_who_may_list_the_aliases_of_a_room(database: str) -> None:
    """Names of a private room would leak."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(room_alias_name="pub")
        listing = f"/rooms/{room_id}/aliases"
        assert (await app.get(listing, "bob")).error == FORBIDDEN
        assert (await app.get("/rooms/!no:elsewhere.org/aliases", "bob")).error == FORBIDDEN
        visibility = {"history_visibility": "world_readable"}
        await app.set_state(room_id, "m.room.history_visibility", visibility)
        assert (await app.get(listing, "bob")).json == {"aliases": [PUB]}


async def test_a_removed_alias_is_no_longer_advertised(database: str) -> None:
    """A room would go on showing a name that leads nowhere, or perhaps to another room."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat", room_alias_name="pub")
        await name(app, "alice", f"#bar:{SERVER_NAME}", room_id)
        both = {"alias": PUB, "alt_aliases": [f"#bar:{SERVER_NAME}", PUB]}
        await app.set_state(room_id, "m.room.canonical_alias", both)
        await app.ask("DELETE", path(PUB), "alice")
        left = await app.content(room_id, "m.room.canonical_alias")
        assert left == {"alt_aliases": [f"#bar:{SERVER_NAME}"]}
        # An administrator of the server who is not in the room removes the alias all the same.
        assert (await app.ask("DELETE", path(f"#bar:{SERVER_NAME}"), "admin")).status == 200
        assert await app.content(room_id, "m.room.canonical_alias") == left


@pytest.mark.parametrize(
    ("content", "errcode"),
    [
        ({"alias": PUB}, None),
        ({"alias": None, "alt_aliases": [PUB]}, None),
        ({}, None),
        ({"alias": ""}, None),
        ({"alias": "pub"}, "M_INVALID_PARAM"),
        ({"alias": 5}, "M_INVALID_PARAM"),
        ({"alt_aliases": PUB}, "M_INVALID_PARAM"),
        ({"alt_aliases": [PUB] * 101}, "M_INVALID_PARAM"),
        ({"alias": f"#no:{SERVER_NAME}"}, "M_BAD_ALIAS"),
        ({"alt_aliases": [f"#other:{SERVER_NAME}"]}, "M_BAD_ALIAS"),
        ({"alt_aliases": ["#old:elsewhere.org"]}, None),
    ],
)
async def test_a_canonical_alias_must_lead_to_the_room(
    database: str, content: dict[str, Any], errcode: str | None
) -> None:
    """A room could pass for another by its name."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(room_alias_name="pub")
        await app.create("bob", room_alias_name="other")
        await app.set_state(room_id, "m.room.canonical_alias", {"alt_aliases": ["#old:elsewhere.org"]})
        room = await app.core.rooms.get(room_id)
        found = None
        try:
            await app.aliases.check_canonical(room, content)
        except MatrixError as error:
            found = error.errcode
        assert found == errcode


async def test_two_who_want_one_alias_at_once(database: str) -> None:
    """A name would lead to two rooms, or a crash while a room is made would block it for ever."""
    store_sql = "UPDATE room_aliases SET created_ts = created_ts - 61000 WHERE room_id IS NULL"
    async with running_rooms_app(database) as app:
        room_id = await app.create()
        await app.core.database.execute(
            "INSERT INTO room_aliases (alias, creator, created_ts)"
            " VALUES ($1, $2, extract(epoch FROM now()) * 1000)",
            PUB,
            BOB,
        )
        assert (await app.get(path(PUB))).error == (404, "M_NOT_FOUND")
        assert await name(app, "alice", PUB, room_id) == (409, "M_UNKNOWN")
        await app.core.database.execute(store_sql)
        assert await name(app, "alice", PUB, room_id) == (200, "")
        assert (await app.get(path(PUB))).json["room_id"] == room_id
        found = await app.core.database.fetchval("SELECT creator FROM room_aliases")
        assert found == ALICE


async def test_a_room_that_was_made_just_before_a_crash_has_its_name(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name that it shows would lead nowhere, and then to the room of whoever takes it."""

    async def crash(*_: Any) -> None:
        raise MatrixError("M_UNKNOWN", 503, "a crash")

    async with running_rooms_app(database) as app:
        with monkeypatch.context() as crashing:
            crashing.setattr(AliasStore, "settle", crash)
            crashing.setattr(AliasStore, "unclaim", crash)
            for alias_name in ("pub", "tea"):
                made = {"room_alias_name": alias_name, "preset": "public_chat"}
                assert (await app.post("/createRoom", "alice", made)).status == 503
        await app.core.database.execute("UPDATE room_aliases SET created_ts = created_ts - 61000")
        other = await app.create("bob")
        assert await name(app, "bob", PUB, other) == (409, "M_UNKNOWN")
        for alias in (PUB, f"#tea:{SERVER_NAME}"):  # of the first it is known by now
            found = (await app.get(path(alias))).json["room_id"]
            assert await app.content(found, "m.room.canonical_alias") == {"alias": alias}
