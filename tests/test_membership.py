"""Joining, inviting, knocking, leaving, kicking, banning and forgetting through the API."""

from __future__ import annotations

from typing import Any

import pytest
from nacl.signing import SigningKey

from ranvier.http.limits import Rate
from ranvier.rooms.append_event import AlreadySent
from ranvier.rooms.draft import Txn
from ranvier.spec.canonical_json import encode
from ranvier.spec.errors import MatrixError
from ranvier.spec.unpadded_base64 import encode_base64
from ranvier.users.requester import Requester
from tests.core import SERVER_NAME
from tests.rooms_app import ALICE, BOB, CAROL, rooms_config, running_rooms_app

FORBIDDEN = (403, "M_FORBIDDEN")


async def test_joining_and_leaving(database: str) -> None:
    """People could not come and go, or would come without their names."""
    async with running_rooms_app(database) as app:
        app.profiles[BOB] = {"displayname": "Bob", "avatar_url": "mxc://a/b"}
        room_id = await app.create(preset="public_chat")
        joined = await app.act("bob", "join", room_id, reason="hi")
        assert joined.json == {"room_id": room_id}
        content = await app.content(room_id, "m.room.member", BOB)
        assert content == {
            "membership": "join",
            "displayname": "Bob",
            "avatar_url": "mxc://a/b",
            "reason": "hi",
        }
        assert (await app.get("/joined_rooms", "bob")).json == {"joined_rooms": [room_id]}
        before = len(await app.timeline(room_id))
        assert (await app.act("bob", "join", room_id)).status == 200
        assert len(await app.timeline(room_id)) == before, "joining twice is joining once"
        assert (await app.act("bob", "leave", room_id, reason="bye")).json == {}
        assert await app.content(room_id, "m.room.member", BOB) == {"membership": "leave", "reason": "bye"}
        assert (await app.act("bob", "leave", room_id)).status == 200
        assert (await app.get("/joined_rooms", "bob")).json == {"joined_rooms": []}
        assert (await app.act("carol", "leave", room_id)).error == FORBIDDEN


async def test_a_room_is_joined_by_id_or_alias(database: str) -> None:
    """Links to rooms would not work."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat", room_alias_name="pub")
        by_alias = await app.post(f"/join/%23pub:{SERVER_NAME}", "bob", via="elsewhere.org")
        assert by_alias.json == {"room_id": room_id}
        assert (await app.post(f"/join/{room_id}", "carol")).json == {"room_id": room_id}
        assert (await app.post("/join/%23no:elsewhere.org", "bob")).error == (404, "M_NOT_FOUND")
        assert (await app.post("/join/!no:elsewhere.org", "bob")).error == (404, "M_NOT_FOUND")
        assert (await app.post("/join/nonsense", "bob")).error == (400, "M_INVALID_PARAM")
        assert (await app.post("/join/!%00:b", "bob")).status == 400


async def test_inviting(database: str) -> None:
    """A private room would let in strangers, or keep out those invited."""
    async with running_rooms_app(database) as app:
        app.profiles[BOB] = {"displayname": "Bob"}
        room_id = await app.create(name="Den")
        assert (await app.act("bob", "join", room_id)).error == FORBIDDEN
        assert (await app.act("bob", "invite", room_id, "carol")).error == FORBIDDEN
        assert (await app.act("alice", "invite", room_id, "bob", reason="come")).json == {}
        row = (await app.timeline(room_id))[-1]
        assert row.content == {"membership": "invite", "displayname": "Bob", "reason": "come"}
        assert row.event.pdu["unsigned"]["invite_room_state"][0]["type"] == "m.room.create"
        assert (await app.act("alice", "invite", room_id, "bob")).json == {}, "was already invited"
        assert (await app.act("bob", "join", room_id)).status == 200
        assert (await app.act("alice", "invite", room_id, "bob")).error == FORBIDDEN
        await app.act("alice", "ban", room_id, "bob")
        assert (await app.act("alice", "invite", room_id, "bob")).error == FORBIDDEN
        app.blocking.add(CAROL)
        assert (await app.act("alice", "invite", room_id, "carol")).error == (403, "M_INVITE_BLOCKED")
        assert (await app.post(f"/rooms/{room_id}/invite", "alice", {})).error == (400, "M_BAD_JSON")
        by_mail = {"medium": "email", "address": "a@b.c", "id_server": "x", "id_access_token": "y"}
        refused = await app.post(f"/rooms/{room_id}/invite", "alice", by_mail)
        assert refused.error == (403, "M_SERVER_NOT_TRUSTED")
        elsewhere = await app.post(f"/rooms/{room_id}/invite", "alice", {"user_id": "@a:elsewhere.org"})
        assert elsewhere.error == FORBIDDEN
        nobody = await app.post(f"/rooms/{room_id}/invite", "alice", {"user_id": "bob"})
        assert nobody.error == (400, "M_INVALID_PARAM")


async def test_rejecting_and_revoking_an_invitation(database: str) -> None:
    """An invitation could not be got rid of."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(invite=[BOB, CAROL])
        assert (await app.act("bob", "leave", room_id)).status == 200
        assert (await app.act("alice", "kick", room_id, "carol")).status == 200
        for user in ("bob", "carol"):
            assert await app.membership_of(room_id, user) == "leave"
            assert (await app.act(user, "join", room_id)).error == FORBIDDEN


async def test_kicking_and_banning(database: str) -> None:
    """A moderator could not keep order, or anybody could throw anybody out."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        await app.act("bob", "join", room_id)
        await app.act("carol", "join", room_id)
        for action in ("kick", "ban"):
            assert (await app.act("bob", action, room_id, "carol")).error == FORBIDDEN
            assert (await app.act("bob", action, room_id, "alice")).error == FORBIDDEN
        assert (await app.act("alice", "kick", room_id, "carol", reason="rude")).json == {}
        assert await app.content(room_id, "m.room.member", CAROL) == {
            "membership": "leave",
            "reason": "rude",
        }
        assert (await app.act("alice", "kick", room_id, "carol")).error == FORBIDDEN, "not in the room"
        assert (await app.act("carol", "join", room_id)).status == 200
        assert (await app.act("alice", "ban", room_id, "carol")).json == {}
        assert (await app.act("carol", "join", room_id)).error == FORBIDDEN
        assert (await app.act("carol", "leave", room_id)).error == FORBIDDEN
        assert (await app.act("alice", "kick", room_id, "carol")).error == (403, "M_BAD_STATE")
        assert (await app.act("bob", "unban", room_id, "carol")).error == FORBIDDEN
        assert (await app.act("alice", "unban", room_id, "carol")).json == {}
        assert (await app.act("alice", "unban", room_id, "carol")).error == (403, "M_BAD_STATE")
        assert (await app.act("carol", "join", room_id)).status == 200
        assert (await app.act("alice", "ban", room_id, "dave")).json == {}, "who was never there, too"


@pytest.mark.parametrize("version", ["7", "10", "12"])
async def test_knocking(database: str, version: str) -> None:
    """Nobody could ask to be let in."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(room_version=version, name="Club")
        knocked = await app.post(f"/knock/{room_id}", "bob", {"reason": "please"})
        assert knocked.error == FORBIDDEN
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "knock"})
        knocked = await app.post(f"/knock/{room_id}", "bob", {"reason": "please"})
        assert knocked.json == {"room_id": room_id}
        row = (await app.timeline(room_id))[-1]
        assert row.content == {"membership": "knock", "reason": "please"}
        state = {e["type"] for e in row.event.pdu["unsigned"]["knock_room_state"]}
        assert state >= {"m.room.create", "m.room.name", "m.room.join_rules"}
        assert (await app.act("bob", "join", room_id)).error == FORBIDDEN
        assert (await app.act("alice", "invite", room_id, "bob")).status == 200
        assert (await app.act("bob", "join", room_id)).status == 200
        assert (await app.post(f"/knock/{room_id}", "bob")).error == FORBIDDEN
        assert (await app.post(f"/knock/{room_id}", "carol")).status == 200
        assert (await app.act("carol", "leave", room_id)).status == 200, "takes the knock back"
        assert (await app.post("/knock/!no:elsewhere.org", "bob")).error == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("version", "rule"), [("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")]
)
async def test_members_of_another_room_may_join(database: str, version: str, rule: str) -> None:
    """A space's members could not enter its rooms, or everybody could."""
    async with running_rooms_app(database) as app:
        space = await app.create(preset="public_chat")
        room_id = await app.create(room_version=version)
        allow: list[Any] = [{"type": "m.room_membership", "room_id": space}, {"type": "x"}, 5]
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": rule, "allow": allow})
        assert (await app.act("bob", "join", room_id)).error == FORBIDDEN
        await app.act("bob", "join", space)
        assert (await app.act("bob", "join", room_id)).status == 200
        content = await app.content(room_id, "m.room.member", BOB)
        assert content["join_authorised_via_users_server"] == ALICE
        await app.act("alice", "invite", room_id, "carol")
        assert (await app.act("carol", "join", room_id)).status == 200
        assert "join_authorised_via_users_server" not in await app.content(room_id, "m.room.member", CAROL)


async def test_nobody_vouches_where_nobody_may_invite(database: str) -> None:
    """A join would be made that other servers refuse, and the room would split."""
    async with running_rooms_app(database) as app:
        space = await app.create(preset="public_chat")
        room_id = await app.create(room_version="11")
        allow = [{"type": "m.room_membership", "room_id": space}]
        await app.set_state(room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
        await app.act("bob", "join", space)
        assert (await app.act("alice", "leave", room_id)).status == 200
        assert (await app.act("bob", "join", room_id)).error == FORBIDDEN


async def test_guests_come_in_where_they_may(database: str) -> None:
    """Guests would be in rooms that do not want them."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        assert (await app.act("guest1", "join", room_id)).error == (403, "M_GUEST_ACCESS_FORBIDDEN")
        await app.set_state(room_id, "m.room.guest_access", {"guest_access": "can_join"})
        assert (await app.act("guest1", "join", room_id)).status == 200
        assert (await app.act("guest1", "leave", room_id)).status == 200
        for user in ("guest1", "guest2", "bob"):
            assert (await app.act(user, "join", room_id)).status == 200
        closed = await app.set_state(room_id, "m.room.guest_access", {"guest_access": "forbidden"})
        assert await app.core.tail.wait_for(closed.pos + 2)
        assert (await app.core.rooms.get(room_id)).joined == {ALICE, BOB}


async def test_suspended_users_can_only_leave(database: str) -> None:
    """A suspended user would go on to invite and join."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(invite=[f"@suspended:{SERVER_NAME}"])
        suspended = (403, "M_USER_SUSPENDED")
        assert (await app.act("suspended", "join", room_id)).error == suspended
        assert (await app.act("suspended", "invite", room_id, "bob")).error == suspended
        assert (await app.act("suspended", "leave", room_id)).status == 200


async def test_a_third_party_invitation_is_accepted_with_its_signature(database: str) -> None:
    """Who was invited by e-mail could not come in, or anybody could in their place."""
    key = SigningKey(b"\1" * 32)
    async with running_rooms_app(database) as app:
        room_id = await app.create()
        public_key = encode_base64(bytes(key.verify_key))
        content = {"display_name": "b…", "public_key": public_key, "key_validity_url": "https://id/"}
        await app.set_state(room_id, "m.room.third_party_invite", content, "token")
        signed: dict[str, Any] = {"mxid": BOB, "token": "token"}
        signature = encode_base64(key.sign(encode(signed)).signature)
        signed |= {"sender": ALICE, "signatures": {"id": {"ed25519:0": signature}}}

        async def join(user: str, **changes: Any) -> tuple[int, str]:
            return (await app.act(user, "join", room_id, third_party_signed=signed | changes)).error

        assert await join("carol") == FORBIDDEN
        assert await join("bob", token="other") == FORBIDDEN
        assert await join("bob", sender=CAROL) == FORBIDDEN
        assert await join("bob", signatures={"id": {"ed25519:0": encode_base64(b"\0" * 64)}}) == FORBIDDEN
        assert (await join("bob"))[0] == 200
        invite = (await app.timeline(room_id))[-2]
        assert invite.content["third_party_invite"]["display_name"] == "b…"


async def test_forgetting(database: str) -> None:
    """A room that a user never wants to see again would come back, or one be lost that they are in."""
    async with running_rooms_app(database) as app:
        room_id = await app.create(preset="public_chat")
        await app.act("bob", "join", room_id)
        assert (await app.post(f"/rooms/{room_id}/forget", "bob")).error == (400, "M_UNKNOWN")
        await app.act("bob", "leave", room_id)
        assert await app.forgotten.of(BOB) == frozenset()
        assert (await app.post(f"/rooms/{room_id}/forget", "bob")).json == {}
        assert (await app.post(f"/rooms/{room_id}/forget", "bob")).json == {}
        assert await app.forgotten.of(BOB) == {room_id}
        async with running_rooms_app(database) as restarted:
            assert await restarted.forgotten.is_forgotten(BOB, room_id)
        await app.act("bob", "join", room_id)
        await app.act("bob", "leave", room_id)
        assert await app.forgotten.of(BOB) == frozenset(), "coming back remembers"
        assert (await app.post("/rooms/!never:there/forget", "bob")).json == {}


async def test_rooms_may_be_forgotten_on_leaving(database: str) -> None:
    """The administrator's setting would have no effect."""
    async with running_rooms_app(database, config=rooms_config(forget_rooms_on_leave=True)) as app:
        room_id = await app.create(preset="public_chat")
        await app.act("bob", "join", room_id)
        assert (await app.act("bob", "leave", room_id)).status == 200
        assert await app.forgotten.of(BOB) == {room_id}
        # "either normally or via a kick or ban"
        for action in ("kick", "ban"):
            await app.act("bob", "join", room_id)
            assert await app.forgotten.of(BOB) == frozenset()
            assert (await app.act("alice", action, room_id, "bob")).status == 200
            assert await app.forgotten.of(BOB) == {room_id}
        assert (await app.act("alice", "unban", room_id, "bob")).status == 200
        assert await app.forgotten.of(BOB) == {room_id}
        await app.membership.leave_all(ALICE)
        assert await app.forgotten.of(ALICE) == {room_id}


async def test_leaving_everything(database: str) -> None:
    """A deactivated account would stay in its rooms."""
    async with running_rooms_app(database) as app:
        rooms = [await app.create(preset="public_chat") for _ in range(3)]
        for room_id in rooms:
            await app.act("bob", "join", room_id)
        invited = await app.create(invite=[BOB])
        await app.membership.leave_all(BOB)
        assert [await app.membership_of(room_id, "bob") for room_id in (*rooms, invited)] == ["leave"] * 4


async def test_a_room_that_is_too_busy_is_left_later(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deactivated account would stay for ever in the one room that was busy when it left the others."""
    async with running_rooms_app(database) as app:
        busy, other = [await app.create(preset="public_chat") for _ in range(2)]
        for room_id in (busy, other):
            await app.act("bob", "join", room_id)
        write = app.core.writer.write

        async def refuse_busy(room_id: str, *more: Any) -> Any:
            if room_id == busy:
                raise MatrixError("M_LIMIT_EXCEEDED", 429, "This room is too busy; try again")
            return await write(room_id, *more)

        with monkeypatch.context() as patch:
            patch.setattr(app.core.writer, "write", refuse_busy)
            with pytest.raises(MatrixError, match="too busy"):
                await app.membership.leave_all(BOB)
        assert [await app.membership_of(room_id, "bob") for room_id in (busy, other)] == ["join", "leave"]
        await app.membership.leave_all(BOB)
        assert await app.membership_of(busy, "bob") == "leave"


async def test_membership_sent_as_state_means_the_same(database: str) -> None:
    """A client that sends member events itself would get around invitations that are blocked."""
    alice, bob = Requester(ALICE, "PHONE"), Requester(BOB, "PHONE")
    async with running_rooms_app(database) as app:
        app.profiles[ALICE] = {"displayname": "Alice"}
        room_id = await app.create()
        own = {"membership": "join", "displayname": "Al", "join_authorised_via_users_server": "@x:y"}
        await app.membership.set_state(alice, room_id, ALICE, own)
        assert await app.content(room_id, "m.room.member", ALICE) == {
            "membership": "join",
            "displayname": "Al",
        }
        assert (await app.act("alice", "join", room_id)).status == 200
        assert (await app.content(room_id, "m.room.member", ALICE))["displayname"] == "Al"
        await app.membership.set_state(alice, room_id, BOB, {"membership": "invite", "is_direct": True})
        assert await app.content(room_id, "m.room.member", BOB) == {"membership": "invite", "is_direct": True}
        await app.membership.set_state(bob, room_id, BOB, {"membership": "join"})
        await app.membership.set_state(alice, room_id, BOB, {"membership": "ban"})
        await app.membership.set_state(alice, room_id, BOB, {"membership": "leave"})
        assert await app.membership_of(room_id, "bob") == "leave"
        app.blocking.add(BOB)
        for target, content in (
            (BOB, {"membership": "invite"}),
            (BOB, {"membership": "join"}),
            (BOB, {"membership": "dancing"}),
            (BOB, {}),
        ):
            with pytest.raises(Exception, match=r"invitations|in another's name|membership must be"):
                await app.membership.set_state(alice, room_id, target, content)


async def test_a_ban_that_a_proxy_sends_to_a_second_worker_is_set_once(database: str) -> None:
    """A ban would come back that another moderator lifted in the moment in which a worker died."""
    alice, txn = Requester(ALICE, "PHONE"), Txn(ALICE, "", f"state m.room.member {BOB}", "t1")
    async with running_rooms_app(database) as app:
        room_id = await app.create()
        ban = {"membership": "ban"}
        event_id = await app.membership.set_state(alice, room_id, BOB, ban, txn)
        await app.membership.set_state(alice, room_id, BOB, {"membership": "leave"})
        with pytest.raises(AlreadySent) as caught:
            await app.membership.set_state(alice, room_id, BOB, ban, txn)
        assert caught.value.event_id == event_id
        assert await app.membership_of(room_id, "bob") == "leave"


async def test_limits(database: str) -> None:
    """One account could flood a room with joins, or a user with invitations."""
    rates = {name: Rate(0.001, 1) for name in ("rc_joins.local", "rc_invites.per_user", "rc_room_creation")}
    async with running_rooms_app(database, rates=rates) as app:
        room_id = await app.create(preset="public_chat")
        again = await app.post("/createRoom", "alice")
        assert again.error == (429, "M_LIMIT_EXCEEDED")
        assert again.json["retry_after_ms"] > 0
        other = await app.create("carol", preset="public_chat")
        assert (await app.act("bob", "join", room_id)).status == 200
        assert (await app.act("bob", "join", room_id)).status == 200, "already there"
        assert (await app.act("bob", "join", other)).error == (429, "M_LIMIT_EXCEEDED")
        assert (await app.act("alice", "invite", room_id, "dave")).status == 200
        assert (await app.act("carol", "invite", other, "dave")).error == (429, "M_LIMIT_EXCEEDED")
