"""Users with devices, and the encrypted rooms that they share."""

from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JsDevice, JsDriver
from tests.clients.nio_client import NioDevice

ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {"algorithm": "m.megolm.v1.aes-sha2"},
}


async def js_user(js: JsDriver, homeserver: Homeserver, localpart: str) -> JsDevice:
    """Register a user whose js device syncs."""
    device = await js.register(homeserver, localpart)
    await device.run("start")
    return device


async def encrypted_room(alice: JsDevice, *others: JsDevice | NioDevice) -> str:
    """Let alice create an encrypted room and the others join it; all see all when it returns."""
    invited = [other.user_id for other in others]
    options = {"preset": "private_chat", "invite": invited, "initial_state": [ENCRYPTION]}
    room_id: str = await alice.run("create_room", options=options)
    for other in others:
        if isinstance(other, JsDevice):
            await other.wait(kind="membership", room_id=room_id, membership="invite")
            await other.run("join", room_id=room_id)
        else:
            await other.until(lambda o=other: o.client.invited_rooms.get(room_id), "the invite")
            await other.act(other.client.join(room_id))
    everyone = [alice.user_id, *invited]
    for device in (alice, *others):
        if isinstance(device, JsDevice):
            await device.run("settled", room_id=room_id, members=everyone)
        else:
            await device.settled(room_id, everyone)
    return room_id
