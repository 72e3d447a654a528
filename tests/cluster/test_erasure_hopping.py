"""Erasure by a server of several workers."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.cluster_process import HoppingClient
from tests.server.test_erasure_whole import deactivate, said, until_left


async def test_every_worker_keeps_to_an_erasure(hopper: Callable[[], HoppingClient]) -> None:
    """What one worker hides would be read from another."""
    alice, bob, carol = hopper(), hopper(), hopper()
    for user, name in ((alice, "erased-alice"), (bob, "erased-bob"), (carol, "erased-carol")):
        await user.register(name)
    room_id = await alice.create_room()
    await bob.join(room_id)
    event_id = await alice.send(room_id, "secret")
    await deactivate(alice)
    await until_left(bob, room_id, alice.user_id)
    await carol.join(room_id)
    for _ in range(12):
        seen = await carol.get(f"/v3/rooms/{room_id}/event/{event_id}")
        assert seen["content"] == {}
        seen = await bob.get(f"/v3/rooms/{room_id}/event/{event_id}")
        assert seen["content"]["body"] == "secret"
    assert said(await carol.sync(), room_id, alice.user_id) == [{}]
