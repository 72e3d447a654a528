"""The world that the scenarios share: 50 users, 20 rooms of 5, one room of 50."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.client import Client, check

USERS = 50
SMALL_ROOMS = 20
SMALL_ROOM_MEMBERS = 5


def small_room_members(room: int) -> list[int]:
    """Return the members (indices of users) of one small room, its creator first; each user is in two."""
    return [(room * SMALL_ROOM_MEMBERS + place) % USERS for place in range(SMALL_ROOM_MEMBERS)]


@dataclass
class World:
    """Users and rooms as the scenarios make them."""

    host: str
    port: int
    user_prefix: str = "user"
    users: list[Client] = field(default_factory=list)
    small_rooms: list[str] = field(default_factory=list)
    big_room: str = ""
    rooms_of: dict[str, set[str]] = field(default_factory=dict)

    def reconnect(self) -> None:
        """Give every user a new connection: the server, or the event loop, is not the one of before."""
        self.users = [user.twin() for user in self.users]

    def entered(self, user: Client, room_id: str) -> None:
        """Note that a user is now in a room."""
        self.rooms_of.setdefault(user.user_id, set()).add(room_id)

    def small_rooms_of(self, user: int) -> list[str]:
        """Return the small rooms that a user is in."""
        return [room_id for room, room_id in enumerate(self.small_rooms) if user in small_room_members(room)]

    async def top_up(self, events: int) -> None:
        """Send messages into the big room until its history has at least so many."""
        found = len((await self.users[0].messages(self.big_room, events))["chunk"])
        for number in range(found, events):
            await self.users[number % USERS].send(self.big_room, f"top up {number}")
        found = len((await self.users[0].messages(self.big_room, events))["chunk"])
        check(found == events, f"{found} events in the big room's history instead of {events}")
