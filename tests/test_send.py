"""Sending events and state, transaction ids, limits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from ranvier.http.limits import Rate
from tests.room_endpoints import ALICE, BOB, forget_memory, running_endpoints


async def test_a_message_arrives_and_a_repeat_does_not(database: str) -> None:
    """A client that retries would say everything twice, also while the first request is under way."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        body = {"msgtype": "m.text", "body": "once"}
        answers = await asyncio.gather(
            *(app.put(f"{room_id}/send/m.room.message/t1", body=body) for _ in range(5))
        )
        assert {answer.json["event_id"] for answer in answers} == {answers[0].json["event_id"]}
        page = await app.get(f"{room_id}/messages", dir="b")
        assert [e["content"].get("body") for e in page["chunk"]].count("once") == 1
        assert page["chunk"][0]["unsigned"]["transaction_id"] == "t1"
        other_device = await app.get(f"{room_id}/messages", "alice/LAPTOP", dir="b")
        assert "transaction_id" not in other_device["chunk"][0]["unsigned"]
        again = await app.put(f"{room_id}/send/m.room.message/t1", "alice/LAPTOP", body)
        assert again.json["event_id"] != answers[0].json["event_id"]


async def test_a_repeat_is_known_after_a_restart_and_after_leaving(database: str) -> None:
    """A client that lost the answer to its last message before leaving would show it as failed."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        first = await app.put(f"{room_id}/send/m.room.message/t1", "bob", {"body": "bye"})
        await app.member(room_id, "bob", "leave")
    async with running_endpoints(database) as app:
        again = await app.put(f"{room_id}/send/m.room.message/t1", "bob", {"body": "bye"})
        assert again.json == first.json
        new = await app.put(f"{room_id}/send/m.room.message/t2", "bob", {"body": "bye"})
        assert new.error == (403, "M_FORBIDDEN")


async def test_what_may_not_be_sent(database: str) -> None:
    """A stranger could write into rooms, or learn which rooms exist; oversized events would be stored."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        path = f"{room_id}/send/m.room.message/t"
        assert (await app.put(path + "1", "bob", {"body": "hi"})).error == (403, "M_FORBIDDEN")
        unknown = await app.put("!nowhere:example.org/send/m.room.message/t1", "bob", {})
        assert unknown.error == (403, "M_FORBIDDEN")
        assert (await app.put(path + "2", body={"body": "x" * 70_000})).error == (413, "M_TOO_LARGE")
        assert (await app.put(path + "3", body=[])).error == (400, "M_BAD_JSON")
        assert (await app.put(path + "4", body={"number": 1.5})).error == (400, "M_BAD_JSON")
        assert (await app.put(f"{room_id}/send/{'t' * 300}/t5", body={})).error == (400, "M_INVALID_PARAM")
        assert (await app.put(f"{room_id}/send/a%00b/t6", body={})).error == (400, "M_INVALID_PARAM")
        assert (await app.put(path + "7", "alice/SUSPENDED", {})).error == (403, "M_USER_SUSPENDED")
        relation = {"m.relates_to": {"rel_type": "m.reference", "event_id": "$a\x00"}}
        assert (await app.put(path + "8", body=relation)).error == (400, "M_BAD_JSON")


async def test_a_shadow_banned_user_believes_to_have_sent(database: str) -> None:
    """Somebody who pesters others would notice at once that nobody hears them."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, "@shadow:example.org")
        before = app.core.tail.pos
        answer = await app.put(f"{room_id}/send/m.room.message/t1", "shadow", {"body": "spam"})
        assert answer.status == 200
        assert len(answer.json["event_id"]) == 44
        assert app.core.tail.pos == before


async def test_state_is_set_once(database: str) -> None:
    """The room's name would not change, or each client that sets it again would add a line to the history."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        first = await app.put(f"{room_id}/state/m.room.name", body={"name": "Tea"})
        same = await app.put(f"{room_id}/state/m.room.name/", body={"name": "Tea"})
        assert first.json == same.json
        assert (await app.get(f"{room_id}/state/m.room.name"))["name"] == "Tea"
        await app.core.join(room_id, BOB)
        refused = await app.put(f"{room_id}/state/m.room.name", "bob", {"name": "Mine"})
        assert refused.error == (403, "M_FORBIDDEN")
        others = await app.put(f"{room_id}/state/org.example.seat/{ALICE}", "bob", {})
        assert others.error == (403, "M_FORBIDDEN")
        left = await app.put(f"{room_id}/state/m.room.member/{BOB}", "bob", {"membership": "leave"})
        assert left.status == 200
        assert (await app.core.rooms.get(room_id)).membership_of(BOB) == "leave"


async def test_state_that_a_proxy_sends_to_a_second_worker_is_set_once(database: str) -> None:
    """A topic (or a ban) would come back that somebody replaced in the moment in which a worker died."""
    async with AsyncExitStack() as stack:
        dead, other = [
            await stack.enter_async_context(running_endpoints(database, x_forwarded=True)) for _ in range(2)
        ]
        room_id = await dead.core.create_room()
        path = f"{room_id}/state/m.room.topic"
        old = {"body": {"topic": "old"}, "request_id": "0123456789abcdef"}
        first = await dead.put(path, **old)
        new = await other.put(path, body={"topic": "new"}, request_id="fedcba9876543210")
        assert await other.put(path, **old) == first
        page = await other.get(f"{room_id}/messages", dir="b")
        assert page["chunk"][0]["event_id"] == new.json["event_id"]
        assert "transaction_id" not in page["chunk"][0]["unsigned"], "no client chose it"
        assert (await other.put(path, body={"topic": "old"})).json != first.json, "who asks anew, sets it"
        assert (await other.get(path))["topic"] == "old"


async def test_state_is_set_however_many_requests_have_one_id(database: str) -> None:
    """A bot that names all that it does for one event alike would be told that its second topic is set."""
    async with running_endpoints(database, x_forwarded=True) as app:
        path = f"{await app.core.create_room()}/state/m.room.topic"
        for topic in ("deploying", "deployed"):
            await app.put(path, body={"topic": topic}, request_id="0123456789abcdef")
            assert (await app.get(path))["topic"] == topic


async def test_what_a_client_without_a_proxy_calls_its_requests_is_not_heeded(database: str) -> None:
    """Somebody could not set a topic back whose client sends the same header each time."""
    async with running_endpoints(database) as app:
        path = f"{await app.core.create_room()}/state/m.room.topic"
        for topic in ("old", "new", "old"):
            await app.put(path, body={"topic": topic}, request_id="0123456789abcdef")
            assert (await app.get(path))["topic"] == topic


async def test_a_canonical_alias_is_checked(database: str) -> None:
    """A room could claim the address of another room."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        app.bad_aliases.add("#other:example.org")
        bad = {"alias": "#other:example.org"}
        answer = await app.put(f"{room_id}/state/m.room.canonical_alias", body=bad)
        assert answer.error == (400, "M_BAD_ALIAS")
        good = {"alias": "#mine:example.org"}
        assert (await app.put(f"{room_id}/state/m.room.canonical_alias", body=good)).status == 200


async def test_messages_are_limited(database: str) -> None:
    """One client that runs wild would fill the server."""
    async with running_endpoints(database, rates={"rc_message": Rate(0.001, 2)}) as app:
        room_id = await app.core.create_room()
        answers = [await app.put(f"{room_id}/send/m.room.message/t{n}", body={}) for n in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].json["retry_after_ms"] > 0
        repeated = await app.put(f"{room_id}/send/m.room.message/t1", body={})
        assert repeated.json == answers[1].json


async def test_the_same_reaction_counts_once(database: str) -> None:
    """A second press would show two hearts of one person, and a redacted one could not be given again."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        target = await app.say(room_id, "cake?")

        def heart(key: str = "❤") -> dict[str, object]:
            return {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": key}}

        path = f"{room_id}/send/m.reaction/t"
        first = await app.put(path + "1", body=heart())
        both = await asyncio.gather(app.put(path + "2", body=heart()), app.put(path + "3", body=heart()))
        assert [answer.error for answer in both] == [(400, "M_DUPLICATE_ANNOTATION")] * 2
        forget_memory(app.core)
        assert (await app.put(path + "4", body=heart())).error == (400, "M_DUPLICATE_ANNOTATION")
        assert (await app.put(path + "5", body=heart("👍"))).status == 200
        assert (await app.put(path + "6", "bob", heart())).status == 200
        assert (await app.put(path + "1", body=heart())).json == first.json
        redacted = await app.put(f"{room_id}/redact/{first.json['event_id']}/r1")
        assert redacted.status == 200
        assert (await app.put(path + "7", body=heart())).status == 200


async def test_two_equal_reactions_at_once_are_one(database: str) -> None:
    """Two taps on a slow connection would leave two reactions."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        target = await app.say(room_id, "cake?")
        body = {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "x"}}
        answers = await asyncio.gather(
            *(app.put(f"{room_id}/send/m.reaction/t{n}", body=body) for n in range(5))
        )
        assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400]


async def test_a_thread_starts_at_a_plain_message_only(database: str) -> None:
    """Threads inside of threads: clients that follow the specification could not show them."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        root = await app.say(room_id, "root")
        thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
        reply = await app.put(f"{room_id}/send/m.room.message/t1", body={"body": "in it", **thread})
        nested = {"m.relates_to": {"rel_type": "m.thread", "event_id": reply.json["event_id"]}}
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            answer = await app.put(f"{room_id}/send/m.room.message/t2", body={"body": "no", **nested})
            assert answer.error == (400, "M_UNKNOWN")


async def test_an_application_service_chooses_the_time(database: str) -> None:
    """Bridged history would all seem to be of today; and a user could date messages as they like."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room("@bridge:example.org")
        sent = await app.put(f"{room_id}/send/m.room.message/t1", "bridge", {"body": "old"}, ts=1234)
        assert (await app.get(f"{room_id}/event/{sent.json['event_id']}", "bridge"))[
            "origin_server_ts"
        ] == 1234
        await app.core.join(room_id, BOB)
        sent = await app.put(f"{room_id}/send/m.room.message/t1", "bob", {"body": "new"}, ts=1234)
        assert (await app.get(f"{room_id}/event/{sent.json['event_id']}", "bob"))["origin_server_ts"] > 1234
