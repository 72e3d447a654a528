"""Rooms that users forgot; written by the log (kind ``forgotten_room``)."""

from __future__ import annotations

from ranvier.storage.database import Database

_OF_USER = "SELECT room_id, pos FROM forgotten_rooms WHERE user_id = $1"


class ForgottenRoomStore:
    """Read which rooms a user forgot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_user(self, user_id: str) -> dict[str, int]:
        """Give the rooms that the user ever forgot, with the log position of it."""
        return {r["room_id"]: r["pos"] for r in await self._database.fetch(_OF_USER, user_id)}
