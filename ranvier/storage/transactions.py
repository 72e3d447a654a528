"""Transaction ids of sent events: written by the append itself, read when a retry comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ranvier.storage.database import Connection, Database

_PIECE: Final = 1000

_FIND = """
SELECT t.user_id, t.device_id, t.scope, t.txn_id, t.event_id
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (user_id, device_id, scope, txn_id)
JOIN transactions t USING (user_id, device_id, scope, txn_id)
"""
_FORGET = f"""
WITH gone AS (
    DELETE FROM transactions WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM transactions
        WHERE sent_ts < (extract(epoch FROM now() - $1 * interval '1 second') * 1000)::bigint
        ORDER BY sent_ts LIMIT {_PIECE})) RETURNING true
) SELECT count(*) = {_PIECE} FROM gone
"""


class TransactionStore:
    """Find what an earlier request with the same transaction id sent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def event_ids(self, keys: Sequence[tuple[str, str, str, str]]) -> dict[tuple[str, ...], str]:
        """Give the event sent for each ``(user_id, device_id, scope, txn_id)`` that was used before."""
        records = await self._database.fetch(_FIND, *(list(column) for column in zip(*keys, strict=True)))
        return {tuple(record)[:4]: record["event_id"] for record in records}

    async def forget_piece(self, connection: Connection, older_than_s: int) -> bool:
        """Remove some of the ids of a certain age, the oldest first; False when none is left."""
        more: bool = await connection.fetchval(_FORGET, older_than_s)
        return more
