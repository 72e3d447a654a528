"""Clients and the server go away and come back, and nobody misses anything."""

import asyncio

import pytest

from tests.clients.conftest import MakeNio, Name
from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JsDriver
from tests.clients.people import encrypted_room, js_user

# More than a timeline holds by default, so that the answers after a return are cut and must be paged.
MANY = 35


async def test_crashed_clients_return_with_their_old_tokens_and_miss_nothing(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """After a crash a client has holes in its conversations, or cannot decrypt what came meanwhile."""
    alice, bob, carol = await asyncio.gather(
        js_user(js, homeserver, name("alice")), nio("bob"), js_user(js, homeserver, name("carol"))
    )
    room_id = await encrypted_room(carol, alice, bob)
    before = await carol.message(room_id, "before")
    await asyncio.gather(alice.sees_message(before, "before"), bob.sees_message(before, "before"))
    stored = await alice.run("checkpoint")
    await asyncio.gather(alice.run("crash"), bob.crash())

    missed = {await carol.message(room_id, f"missed {number}"): f"missed {number}" for number in range(5)}
    await asyncio.gather(alice.run("start"), bob.revive())

    assert (await alice.wait(kind="started"))["since"] == stored["since"]
    for event_id, body in missed.items():
        await asyncio.gather(alice.sees_message(event_id, body), bob.sees_message(event_id, body))
    after = await carol.message(room_id, "after")
    await asyncio.gather(alice.sees_message(after, "after"), bob.sees_message(after, "after"))
    for event_id in missed:
        assert len([event for _, event in bob.events if event.event_id == event_id]) == 1


async def test_a_long_absence_leaves_a_gap_that_can_be_paged(
    homeserver: Homeserver, js: JsDriver, name: Name
) -> None:
    """After a long absence, scrolling back does not bring everything that was said meanwhile."""
    alice, carol = await asyncio.gather(
        js_user(js, homeserver, name("alice")), js_user(js, homeserver, name("carol"))
    )
    room_id = await encrypted_room(carol, alice)
    await alice.run("checkpoint")
    await alice.run("crash")
    missed = {await carol.message(room_id, f"missed {number}"): f"missed {number}" for number in range(MANY)}
    await alice.run("start")
    await alice.sees_message(list(missed)[-1], f"missed {MANY - 1}")
    history = await alice.run("scroll_to_start", room_id=room_id)
    read = {event["event_id"]: event["body"] for event in history}
    assert {event_id: read.get(event_id) for event_id in missed} == missed


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_the_server_restarts_under_running_clients(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name, how: str
) -> None:
    """After the server was restarted, people must log in again, or messages are lost or unreadable."""
    alice, bob = await asyncio.gather(js_user(js, homeserver, name("alice")), nio("bob"))
    room_id = await encrypted_room(alice, bob)
    before = await alice.message(room_id, "before")
    await bob.sees_message(before, "before")

    if how == "killed":
        homeserver.kill()
    await homeserver.restart()

    from_bob = await bob.message(room_id, "still there?")
    await alice.sees_message(from_bob, "still there?")
    from_alice = await alice.message(room_id, "yes")
    await bob.sees_message(from_alice, "yes")
    assert not [e for _, e in bob.events if e.event_id == before][1:]
