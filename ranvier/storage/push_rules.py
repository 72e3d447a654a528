"""Push rules: one document for each user who changed any."""

from __future__ import annotations

from ranvier.storage.database import Database

_GET = "SELECT document, pos FROM push_rules WHERE user_id = $1"


class PushRuleStore:
    """Read push rules. They are written through the log (kind ``push_rules``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str) -> tuple[bytes, int] | None:
        """Give a user's document and the log position of its last change; None if nothing was changed."""
        record = await self._database.fetchrow(_GET, user_id)
        return None if record is None else (record["document"], record["pos"])
