"""Who sees which part of a room's history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.rooms.visibility import sight_of
from ranvier.spec.visibility import Visibility, may_see, visibility_of
from ranvier.storage.rooms import SightChange
from tests.room_endpoints import BOB, RoomEndpoints, forget_memory, running_endpoints

MEMBER, VISIBILITY = "m.room.member", "m.room.history_visibility"


@pytest.mark.parametrize(
    ("visibility", "seen"),
    [
        ("world_readable", "before invited joined"),
        ("shared", "before invited joined"),
        ("invited", "invited joined"),
        ("joined", "joined"),
    ],
)
def test_each_visibility_begins_where_it_should(visibility: str, seen: str) -> None:
    """Newcomers would read what was said before them, or not what they were meant to."""
    sight = sight_of(
        [
            SightChange(2, VISIBILITY, visibility),
            SightChange(10, MEMBER, "invite"),
            SightChange(20, MEMBER, "join"),
        ]
    )
    assert [name for name, pos in (("before", 5), ("invited", 15), ("joined", 25)) if sight.sees(pos)] == (
        seen.split()
    )
    assert sight.sees(20)
    assert [sight.membership_at(pos) for pos in (5, 10, 15, 20, 25)] == [
        "leave",
        "invite",
        "invite",
        "join",
        "join",
    ]


def test_after_leaving_nothing_new_is_seen() -> None:
    """Who was thrown out would go on reading."""
    changes = [SightChange(5, MEMBER, "join"), SightChange(10, MEMBER, "leave")]
    sight = sight_of(changes)
    assert [sight.sees(pos) for pos in (1, 5, 9, 10, 11, 10**9)] == [True, True, True, True, False, False]
    assert sight.left_at == 10
    again = sight_of([*changes, SightChange(20, MEMBER, "ban"), SightChange(30, MEMBER, "leave")])
    assert again.left_at == 10
    back = sight_of([*changes, SightChange(20, VISIBILITY, "joined"), SightChange(30, MEMBER, "join")])
    assert [back.sees(pos) for pos in (9, 15, 20, 25, 30)] == [True, True, True, False, True]
    assert back.left_at is None


def test_a_change_of_visibility_is_seen_by_who_saw_before_or_after() -> None:
    """A stranger who reads along would not learn why it ended."""
    sight = sight_of([SightChange(5, VISIBILITY, "world_readable"), SightChange(10, VISIBILITY, "joined")])
    assert [sight.sees(pos) for pos in (4, 5, 9, 10, 11)] == [False, True, True, True, False]
    assert sight_of([]).spans == ()


def test_odd_visibilities_mean_shared() -> None:
    """A typing error of an administrator would hide a room from its members."""
    sight = sight_of([SightChange(3, VISIBILITY, "everybody"), SightChange(9, MEMBER, "join")])
    assert sight.everything


_CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just(MEMBER), st.sampled_from(["join", "leave", "invite", "ban", None])),
        st.tuples(
            st.just(VISIBILITY),
            st.sampled_from(["world_readable", "shared", "invited", "joined", "odd", None]),
        ),
    ),
    max_size=12,
)


@given(_CHANGES)
def test_spans_say_what_the_rules_say_of_each_event(values: list[tuple[str, str | None]]) -> None:
    """In some rare order of events, somebody would see what they must not, or miss what they may."""
    changes = [SightChange(2 + 3 * n, type_, value) for n, (type_, value) in enumerate(values)]
    sight = sight_of(changes)
    for pos in range(2 + 3 * len(changes) + 3):
        before = _at(changes, pos - 1)
        after = _at(changes, pos)
        joined_later = any(c.type == MEMBER and c.value == "join" and c.pos > pos for c in changes)
        allowed = may_see(
            after[0],
            after[1],
            joined_later=joined_later,
            visibility_before=before[0],
            membership_before=before[1],
        )
        assert sight.sees(pos) is allowed
        assert sight.membership_at(pos) == (after[1] or "leave")
        assert sight.membership_before(pos) == (before[1] or "leave")


def _at(changes: list[SightChange], pos: int) -> tuple[Visibility, str | None]:
    """Replay the room up to a position: the history visibility and the membership."""
    visibility, membership = visibility_of(None), None
    for change in changes:
        if change.pos > pos:
            break
        if change.type == MEMBER:
            membership = change.value
        else:
            visibility = visibility_of({"history_visibility": change.value})
    return visibility, membership


async def _bodies(app: RoomEndpoints, room_id: str, user: str) -> list[str]:
    """Page through everything that a user sees, in both directions, and give the texts, the oldest first."""
    texts: dict[str, list[str]] = {}
    for direction in ("b", "f"):
        query = {"dir": direction, "limit": "3"}
        found: list[str] = []
        while True:
            page = await app.get(f"{room_id}/messages", user, **query)
            found += [e["content"]["body"] for e in page["chunk"] if e["type"] == "m.room.message"]
            if "end" not in page:
                break
            query["from"] = page["end"]
        texts[direction] = found
    assert texts["b"][::-1] == texts["f"]
    return texts["f"]


async def test_history_through_changes_of_everything(database: str) -> None:
    """Somebody who came and went would see what they should not, or miss what was said while they were in."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.say(room_id, "shared")
        await app.visibility(room_id, "joined")
        hidden = await app.say(room_id, "hidden")
        await app.core.join(room_id, BOB)
        await app.say(room_id, "in")
        await app.member(room_id, "bob", "leave")
        await app.say(room_id, "out")
        assert await _bodies(app, room_id, "bob") == ["shared", "in"]
        await app.core.join(room_id, BOB)
        await app.say(room_id, "back")
        await app.visibility(room_id, "world_readable")
        await app.say(room_id, "open")
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            assert await _bodies(app, room_id, "bob") == ["shared", "in", "back", "open"]
            assert await _bodies(app, room_id, "carol") == ["open"]
            assert await _bodies(app, room_id, "alice") == ["shared", "hidden", "in", "out", "back", "open"]
        assert await app.refused(f"{room_id}/event/{hidden}", "bob") == (404, "M_NOT_FOUND")
        assert await app.refused(f"{room_id}/context/{hidden}", "bob") == (404, "M_NOT_FOUND")
        assert (await app.get(f"{room_id}/event/{hidden}"))["content"]["body"] == "hidden"


async def test_strangers_the_invited_and_the_forgetful_see_nothing(database: str) -> None:
    """Rooms would be open to everybody; or what was forgotten would come back."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        event_id = await app.say(room_id, "private")
        reads = ("messages?dir=b", "state", "members", "state/m.room.create", "joined_members")
        forbidden = (403, "M_FORBIDDEN")
        assert [await app.refused(f"{room_id}/{what}", "bob") for what in reads] == [forbidden] * 5
        assert [await app.refused(f"!no:example.org/{what}", "bob") for what in reads] == [forbidden] * 5
        await app.member(room_id, "bob", "invite", by="alice")
        assert [await app.refused(f"{room_id}/{what}", "bob") for what in reads] == [forbidden] * 5
        assert await app.refused(f"{room_id}/event/{event_id}", "bob") == (404, "M_NOT_FOUND")
        await app.core.join(room_id, BOB)
        assert (await app.get(f"{room_id}/messages", "bob", dir="b"))["chunk"]
        await app.member(room_id, "bob", "leave")
        assert (await app.get(f"{room_id}/messages", "bob", dir="b"))["chunk"]
        assert await app.refused(f"{room_id}/joined_members", "bob") == forbidden
        app.forgotten.add((BOB, room_id))
        assert [await app.refused(f"{room_id}/{what}", "bob") for what in reads] == [forbidden] * 5


async def test_guests_read_what_is_open_to_the_world(database: str) -> None:
    """A room made to be looked into could not be; or guests could look into every room."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.visibility(room_id, "world_readable")
        await app.say(room_id, "hello world")
        page = await app.get(f"{room_id}/messages", "guest1", dir="b")
        assert page["chunk"][0]["content"]["body"] == "hello world"
        assert len(await app.get(f"{room_id}/state", "guest1")) == 5
        await app.visibility(room_id, "shared")
        assert await app.refused(f"{room_id}/messages?dir=b", "guest1") == (403, "M_FORBIDDEN")
