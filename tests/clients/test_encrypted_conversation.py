"""Encrypted rooms between matrix-nio and matrix-js-sdk."""

import asyncio

from nio.crypto import OlmDevice

from tests.clients.conftest import MakeNio, Name
from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JsDriver
from tests.clients.nio_client import NioDevice
from tests.clients.people import encrypted_room, js_user


async def test_two_users_and_three_devices_read_each_other(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """Someone could not read an encrypted message that was sent to them, from either kind of client."""
    alice, bob = await asyncio.gather(js_user(js, homeserver, name("alice")), nio("bob"))
    alice_phone = await js.log_in(homeserver, alice.user_id, alice.password)
    await alice_phone.run("start")
    room_id = await encrypted_room(alice, bob)
    await alice_phone.run("settled", room_id=room_id, members=[alice.user_id, bob.user_id])

    from_alice = await alice.message(room_id, "hello bob")
    await asyncio.gather(
        bob.sees_message(from_alice, "hello bob"), alice_phone.sees_message(from_alice, "hello bob")
    )
    from_bob = await bob.message(room_id, "hello alice")
    await asyncio.gather(
        alice.sees_message(from_bob, "hello alice"), alice_phone.sees_message(from_bob, "hello alice")
    )
    from_phone = await alice_phone.message(room_id, "and from my phone")
    seen = await alice.sees_message(from_phone, "and from my phone")
    assert seen["encrypted"]
    await bob.sees_message(from_phone, "and from my phone")


async def test_a_device_that_logs_in_later_gets_the_keys_of_later_messages(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """A new phone of a friend shows 'unable to decrypt' for messages that were sent after it logged in."""
    alice, bob = await asyncio.gather(js_user(js, homeserver, name("alice")), nio("bob"))
    room_id = await encrypted_room(alice, bob)
    before = await bob.message(room_id, "before")
    await alice.sees_message(before, "before")

    phone = await js.log_in(homeserver, alice.user_id, alice.password)
    await phone.run("start")
    await bob.until(lambda: bob.device_of(alice.user_id, phone.device_id), "the new device")
    after = await bob.message(room_id, "after")
    await asyncio.gather(phone.sees_message(after, "after"), alice.sees_message(after, "after"))


async def test_two_nio_devices_verify_each_other(nio: MakeNio) -> None:
    """Two people compare emoji, they match, and yet their devices do not trust each other."""
    alice, bob = await asyncio.gather(nio("alice"), nio("bob"))
    room_id = await alice.create_encrypted_room([bob.user_id])
    await bob.until(lambda: bob.client.invited_rooms.get(room_id), "the invite")
    await bob.act(bob.client.join(room_id))
    await asyncio.gather(*(device.settled(room_id, [alice.user_id, bob.user_id]) for device in (alice, bob)))

    def peer(here: NioDevice) -> OlmDevice | None:
        there = bob if here is alice else alice
        return here.device_of(there.user_id, there.client.device_id)

    bobs = await alice.until(lambda: peer(alice), "bob's device")
    await bob.until(lambda: peer(bob), "alice's device")
    await alice.act(alice.client.start_key_verification(bobs))
    await bob.until(lambda: list(bob.client.key_verifications), "the verification")
    (transaction,) = bob.client.key_verifications
    await bob.act(bob.client.accept_key_verification(transaction))
    sas = [here.client.key_verifications[transaction] for here in (alice, bob)]
    for here in (alice, bob):
        await here.until(lambda h=here: h.client.key_verifications[transaction].established_sas, "the key")
    assert sas[0].get_emoji() == sas[1].get_emoji()
    for here in (alice, bob):
        await here.act(here.client.confirm_short_auth_string(transaction))
    for here in (alice, bob):
        await here.until(lambda h=here: h.client.key_verifications[transaction].verified, "verified")
    for here in (alice, bob):
        known = peer(here)
        assert known is not None
        assert known.verified
