"""The event stream where it is read from the database: after a long absence or a restart."""

from __future__ import annotations

from ranvier.storage.events import TimelineSpan
from tests.core import running_core

ALICE = "@alice:example.org"


async def test_the_first_events_of_many_rooms(database: str) -> None:
    """Who was away for long would be told of messages in the wrong order, or of some never."""
    async with running_core(database) as core:
        rooms = [await core.create_room() for _ in range(3)]
        start = core.tail.pos
        for number in range(12):
            content = {"msgtype": "m.text", "body": str(number)}
            await core.writer.write(
                rooms[number % 3],
                lambda draft, content=content: draft.add(  # type: ignore[misc]
                    sender=ALICE, type="m.room.message", content=content
                ),
            )
        nids = [(await core.rooms.get(room_id)).room_nid for room_id in rooms]
        spans = [
            TimelineSpan(room_id, nid, start, start + 9) for room_id, nid in zip(rooms, nids, strict=True)
        ]
        spans[1] = spans[1]._replace(after=start + 2)

        async def told(limit: int) -> list[str]:
            rows = await core.events.first_of_rooms(spans, limit=limit)
            return [row.content["body"] for row in rows]

        assert await told(100) == ["0", "2", "3", "4", "5", "6", "7", "8"]
        assert await told(4) == ["0", "2", "3", "4"]
        assert await core.events.first_of_rooms([], limit=4) == []
