"""Messages to devices that were not acknowledged yet, and the transaction ids of those who sent them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ranvier.storage.database import Database

_WAS_SENT = """
SELECT EXISTS (SELECT FROM to_device_transactions WHERE user_id = $1 AND device_id = $2 AND txn_id = $3)
"""
_FORGET = "DELETE FROM to_device_transactions WHERE sent_at < now() - $1 * interval '1 second'"

# A token acknowledges the messages up to it, but for those that an answer before it had no room for. In one
# statement: a worker that is stopped would keep what it has locked of a transaction.
_ACKNOWLEDGE = """
WITH a AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS a (user_id, device_id, since)),
released AS (
    DELETE FROM to_device_held h USING a
    WHERE h.user_id = a.user_id AND h.device_id = a.device_id AND h.due <= a.since)
DELETE FROM to_device_messages m USING (
    SELECT a.user_id, a.device_id, LEAST(a.since, (
        SELECT min(after) FROM to_device_held h
        WHERE h.user_id = a.user_id AND h.device_id = a.device_id AND h.due > a.since)) AS upto
    FROM a) acked
WHERE m.user_id = acked.user_id AND m.device_id = acked.device_id AND m.pos <= acked.upto
"""
_PENDING = """
SELECT pos, body FROM to_device_messages
WHERE user_id = $1 AND device_id = $2 AND pos > LEAST($3, (
    SELECT min(after) FROM to_device_held WHERE user_id = $1 AND device_id = $2 AND due > $3))
ORDER BY pos LIMIT $4
"""
_HELD = "SELECT coalesce(max(due), 0) FROM to_device_held WHERE user_id = $1 AND device_id = $2"


class Message(NamedTuple):
    """One message: its position in the log, and the event as the client gets it."""

    pos: int
    body: bytes


class Pending(NamedTuple):
    """What waits for a device, oldest first; ``held`` is the last position that some are held for, or 0."""

    messages: list[Message]
    held: int


class ToDeviceStore:
    """Read and remove messages; they are written through the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def was_sent(self, user_id: str, device_id: str, txn_id: str) -> bool:
        """Say whether a device used a transaction id before."""
        used: bool = await self._database.fetchval(_WAS_SENT, user_id, device_id, txn_id)
        return used

    async def forget_transactions(self, older_than_s: int) -> int:
        """Remove transaction ids of a certain age; gives how many."""
        return await self._database.execute(_FORGET, older_than_s)

    async def acknowledge(self, since: Mapping[tuple[str, str], int]) -> None:
        """Remove what devices, ``(user_id, device_id)``, acknowledge with the position of their token."""
        # In one order everywhere, so that two processes never wait for each other.
        rows = sorted((*device, pos) for device, pos in since.items())
        await self._database.execute(_ACKNOWLEDGE, *(list(column) for column in zip(*rows, strict=True)))

    async def pending(self, user_id: str, device_id: str, since: int, limit: int) -> Pending:
        """Give the first messages that a token at ``since`` does not acknowledge."""
        async with self._database.connection() as connection:
            held = await connection.fetchval(_HELD, user_id, device_id)
            records = await connection.fetch(_PENDING, user_id, device_id, since, limit)
        return Pending([Message(*record) for record in records], held)
