"""What happens in a room arrives at the others and is shown there: js and nio in one encrypted room."""

import asyncio

from nio import ReactionEvent

from tests.clients.conftest import MakeNio, Name
from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JsDevice, JsDriver
from tests.clients.nio_client import NioDevice
from tests.clients.people import encrypted_room, js_user


async def js_and_nio(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> tuple[JsDevice, NioDevice, str]:
    """Alice in js and bob in nio share an encrypted room."""
    alice, bob = await asyncio.gather(js_user(js, homeserver, name("alice")), nio("bob"))
    return alice, bob, await encrypted_room(alice, bob)


async def test_typing_is_shown_and_ends(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """'… is typing' does not appear at the other side, or never goes away."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    await bob.act(bob.client.room_typing(room_id, True, 20_000))
    await alice.wait(kind="typing", room_id=room_id, user_id=bob.user_id, typing=True)
    await bob.act(bob.client.room_typing(room_id, False))
    await alice.wait(kind="typing", room_id=room_id, user_id=bob.user_id, typing=False)

    await alice.run("typing", room_id=room_id, typing=True)
    await bob.until(lambda: (room_id, [alice.user_id]) in bob.typing, "alice typing")
    await alice.run("typing", room_id=room_id, typing=False)
    await bob.until(lambda: bob.typing[-1] == (room_id, []), "nobody typing")


async def test_read_receipts_reach_the_sender(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """The sender never learns that a message was read, or a private receipt shows to others."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    first = await alice.message(room_id, "read me")
    second = await alice.message(room_id, "read me in private")
    await bob.sees_message(second, "read me in private")
    await bob.act(bob.client.update_receipt_marker(room_id, first))
    await alice.wait(kind="receipt", content={first: {"m.read": {bob.user_id: {}}}})
    assert bob.user_id in (await alice.run("shown", room_id=room_id, event_id=first))["readers"]

    from_bob = await bob.message(room_id, "your turn")
    await alice.sees_message(from_bob, "your turn")
    assert (await alice.run("shown", room_id=room_id, event_id=from_bob))["notifications"] > 0
    await alice.run("receipt", room_id=room_id, event_id=from_bob, type="m.read.private")
    await alice.run("receipt", room_id=room_id, event_id=from_bob, type="m.read", unthreaded=True)
    await bob.until(
        lambda: any(seen[1:3] == (from_bob, alice.user_id) for seen in bob.receipts), "alice's receipt"
    )
    assert not [seen for seen in bob.receipts if seen[3] == "m.read.private"]


async def test_edits_show_the_new_text(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """A corrected message still shows its old text to the others, or to those who come later."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    original = await bob.message(room_id, "teh text")
    await alice.sees_message(original, "teh text")
    edit = await bob.message(
        room_id,
        "* the text",
        **{
            "m.new_content": {"msgtype": "m.text", "body": "the text"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": original},
        },
    )
    await alice.wait(kind="edited", event_id=original, body="the text")
    shown = await alice.run("shown", room_id=room_id, event_id=original)
    assert (shown["body"], shown["edited"]) == ("the text", True)
    await bob.sees_message(edit, "* the text")


async def test_reactions_are_counted_and_taken_back(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """A thumbs-up does not appear under a message, or stays after it was taken back."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    liked = await alice.message(room_id, "like this")
    await bob.sees_message(liked, "like this")
    relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": liked, "key": "👍"}}
    reaction = await bob.send(room_id, relation, "m.reaction")
    await alice.wait(kind="event", type="m.reaction", event_id=reaction)
    assert (await alice.run("shown", room_id=room_id, event_id=liked))["reactions"] == {"👍": 1}

    of_alice = await alice.run("send", room_id=room_id, type="m.reaction", content=relation)
    await bob.until(
        lambda: [e for _, e in bob.events if isinstance(e, ReactionEvent) and e.event_id == of_alice],
        "alice's reaction",
    )
    await bob.act(bob.client.room_redact(room_id, reaction))
    await alice.wait(kind="redacted", event_id=reaction)
    assert (await alice.run("shown", room_id=room_id, event_id=liked))["reactions"] == {"👍": 1}


async def test_redaction_removes_the_text(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """A message that its author deleted can still be read by the others."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    regretted = await alice.message(room_id, "oops")
    await bob.sees_message(regretted, "oops")
    await alice.run("redact", room_id=room_id, event_id=regretted, reason="typo")
    await bob.sees_redaction(regretted)

    from_bob = await bob.message(room_id, "oops too")
    await alice.sees_message(from_bob, "oops too")
    await bob.act(bob.client.room_redact(room_id, from_bob, "also a typo"))
    await alice.wait(kind="redacted", event_id=from_bob, sender=bob.user_id)
    shown = await alice.run("shown", room_id=room_id, event_id=from_bob)
    assert (shown["redacted"], shown["body"]) == (True, None)

    phone = await js.log_in(homeserver, alice.user_id, alice.password)
    await phone.run("start")
    shown = await phone.run("shown", room_id=room_id, event_id=regretted)
    assert (shown["redacted"], shown["body"]) == (True, None)


async def test_threads_gather_their_replies(
    homeserver: Homeserver, js: JsDriver, nio: MakeNio, name: Name
) -> None:
    """A thread lacks replies, counts them wrongly, or shows them in the main timeline instead."""
    alice, bob, room_id = await js_and_nio(homeserver, js, nio, name)
    root = await alice.message(room_id, "let us discuss")
    await bob.sees_message(root, "let us discuss")
    in_thread = {"rel_type": "m.thread", "event_id": root, "is_falling_back": True}
    first = await bob.message(room_id, "yes", **{"m.relates_to": in_thread})
    seen = await alice.sees_message(first, "yes")
    assert seen["thread_root"] == root
    second = await alice.run(
        "send", room_id=room_id, content={"msgtype": "m.text", "body": "no"}, thread_root=root
    )
    await bob.sees_message(second, "no")
    await alice.wait(kind="thread", root=root, length=2, last=second)

    phone = await js.log_in(homeserver, alice.user_id, alice.password)
    await phone.run("start")
    await phone.wait(kind="thread", root=root, length=2)
