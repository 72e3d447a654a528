"""The server is killed again and again while people talk: nothing that was answered may be lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

from tests.chaos.excuses import How
from tests.chaos.storm import check_positions
from tests.chaos.talk import EVERYBODY_SAYS, Talk
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess

KILLS = 50
USERS = 6
ROOMS = 3


async def test_nothing_answered_is_lost_when_the_server_is_killed(own_server: ServerProcess) -> None:
    """Messages would vanish, come twice or in another order after a crash or a power cut."""
    chance = random.Random(2)
    await own_server.start()
    async with AsyncExitStack() as stack:
        users = [await stack.enter_async_context(HttpClient(own_server.url)) for _ in range(USERS)]
        for user in users:
            await user.register()
        options = {"power_level_content_override": EVERYBODY_SAYS}
        rooms = [await users[0].create_room(**options) for _ in range(ROOMS)]
        for user in users[1:]:
            for room_id in rooms:
                await user.join(room_id)
        talk, started = Talk(users, rooms, seed=2, pause_s=0.02), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk.run(started))
            await started.wait()
            for _ in range(KILLS):
                await asyncio.sleep(chance.uniform(0.02, 0.4))
                own_server.kill()
                await own_server.start()
            talk.finish()
    assert len(talk.answered) > KILLS, "the test said too little to find anything"
    assert not [it for it in talk.failures if it.how is How.HUNG]
    await check_positions(own_server.folder)
    print(
        f"\n{KILLS} kills, {len(talk.answered)} messages answered, {len(talk.failures)} requests lost, "
        f"{talk.deliveries} deliveries"
    )
