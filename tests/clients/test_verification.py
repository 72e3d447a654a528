"""Cross-signing, emoji verification and the key backup, with matrix-js-sdk."""

import asyncio

from tests.clients.conftest import Name
from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JsDevice, JsDriver
from tests.clients.people import encrypted_room, js_user


async def compare_emoji(asks: JsDevice, answers: JsDevice, request: str) -> None:
    """Carry a request that `asks` made through to its end, as two people with good eyes would."""
    await answers.wait(kind="verification_request", id=request)
    await answers.run("verify_accept", id=request)
    await asks.wait(kind="verification", id=request, phase="Ready")
    await asks.run("verify_start", id=request)
    shown = await asyncio.gather(*(side.wait(kind="sas", id=request) for side in (asks, answers)))
    assert shown[0]["emoji"] == shown[1]["emoji"]
    assert len(shown[0]["emoji"]) == 7
    await asyncio.gather(*(side.run("verify_confirm", id=request) for side in (asks, answers)))
    for side in (asks, answers):
        await side.wait(kind="verification", id=request, phase="Done")


async def test_own_devices_verify_by_emoji(homeserver: Homeserver, js: JsDriver, name: Name) -> None:
    """A user's new phone stays 'unverified' although the user compared the emoji on both devices."""
    laptop = await js_user(js, homeserver, name("alice"))
    await laptop.run("bootstrap")
    phone = await js.log_in(homeserver, laptop.user_id, laptop.password)
    await phone.run("start")
    before = await laptop.run("trust", user_id=laptop.user_id, device_id=phone.device_id)
    assert not before["device_verified"]

    request = await phone.run("verify_own")
    await compare_emoji(phone, laptop, request)

    await laptop.trusts(laptop.user_id, phone.device_id, device_verified=True)
    # The new device also got the private signing keys from the old one, so that it can verify others itself.
    await phone.trusts(laptop.user_id, laptop.device_id, device_verified=True, user_verified=True, ready=True)


async def test_two_users_verify_and_trust_each_others_devices(
    homeserver: Homeserver, js: JsDriver, name: Name
) -> None:
    """Two users compared emoji, and yet one still sees the other's signed devices as strangers."""
    alice, bob = await asyncio.gather(
        js_user(js, homeserver, name("alice")), js_user(js, homeserver, name("bob"))
    )
    await asyncio.gather(alice.run("bootstrap"), bob.run("bootstrap"))
    room_id = await encrypted_room(alice, bob)

    request = await alice.run("verify_user", user_id=bob.user_id, room_id=room_id)
    await compare_emoji(alice, bob, request)

    for here, there in ((alice, bob), (bob, alice)):
        await here.trusts(there.user_id, there.device_id, user_verified=True, device_verified=True)
    sent = await bob.message(room_id, "it is really me")
    await alice.sees_message(sent, "it is really me")


async def test_different_emoji_end_the_verification(homeserver: Homeserver, js: JsDriver, name: Name) -> None:
    """A user says that the emoji differ, and the other side goes on as if they matched."""
    laptop = await js_user(js, homeserver, name("alice"))
    await laptop.run("bootstrap")
    phone = await js.log_in(homeserver, laptop.user_id, laptop.password)
    await phone.run("start")
    request = await phone.run("verify_own")
    await laptop.wait(kind="verification_request", id=request)
    await laptop.run("verify_accept", id=request)
    await phone.wait(kind="verification", id=request, phase="Ready")
    await phone.run("verify_start", id=request)
    await asyncio.gather(*(side.wait(kind="sas", id=request) for side in (phone, laptop)))

    await laptop.run("verify_mismatch", id=request)

    seen = await phone.wait(kind="verification", id=request, phase="Cancelled")
    assert seen["cancelled"] == "m.mismatched_sas"
    trust = await laptop.run("trust", user_id=laptop.user_id, device_id=phone.device_id)
    assert not trust["device_verified"]


async def test_a_new_device_restores_the_backup_and_reads_old_messages(
    homeserver: Homeserver, js: JsDriver, name: Name
) -> None:
    """After losing every device, the recovery key does not bring the old messages back."""
    alice, bob = await asyncio.gather(
        js_user(js, homeserver, name("alice")), js_user(js, homeserver, name("bob"))
    )
    recovery_key = await alice.run("bootstrap")
    room_id = await encrypted_room(alice, bob)
    sent = {}
    for here in (alice, bob):
        for number in range(3):
            body = f"message {number} of {here.user_id}"
            sent[await here.message(room_id, body)] = body
    for event_id, body in sent.items():
        await alice.sees_message(event_id, body)
    await alice.run("backed_up")
    await alice.run("crash")

    phone = await js.log_in(homeserver, alice.user_id, alice.password)
    await phone.run("start")
    restored = await phone.run("recover", recovery_key=recovery_key)

    assert restored["imported"] == restored["total"] >= 2
    history = await phone.run("scroll_to_start", room_id=room_id)
    read = {event["event_id"]: event["body"] for event in history if event["event_id"] in sent}
    assert read == sent
    await phone.trusts(alice.user_id, phone.device_id, device_verified=True, ready=True)
    # Bob never compared emoji with alice, but sees that she vouches for her new device.
    await bob.trusts(alice.user_id, phone.device_id, device_signed=True, user_verified=False)
