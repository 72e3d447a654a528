"""How far users have read, and since when they are in rooms: what unread counts begin with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database
from ranvier.storage.events import TimelineSpan

_MAX_CHANGES: Final = 20

_READ = """
SELECT room_id, thread_id, max(event_pos) AS pos FROM receipts
WHERE user_id = $1 AND room_id = ANY ($2) AND receipt_type IN ('m.read', 'm.read.private')
GROUP BY room_id, thread_id
"""
_MEMBER_CHANGES = f"""
SELECT w.room_nid, d.pos, e.pdu FROM unnest($2::bigint[]) AS w (room_nid)
CROSS JOIN LATERAL (
    SELECT pos, event_nid FROM state_deltas
    WHERE room_nid = w.room_nid AND type = 'm.room.member' AND state_key = $1
    ORDER BY pos DESC LIMIT {_MAX_CHANGES}
) d LEFT JOIN events e ON e.event_nid = d.event_nid
ORDER BY w.room_nid, d.pos DESC
"""
_BEFORE = """
SELECT e.event_nid FROM unnest($1::bigint[]) AS w (room_nid)
CROSS JOIN LATERAL (
    SELECT event_nid, pos FROM events
    WHERE room_nid = w.room_nid AND pos < $2 AND pos > 0 AND NOT rejected AND NOT soft_failed
    ORDER BY pos DESC LIMIT $3
) e ORDER BY e.pos DESC LIMIT $3
"""
_STARTS = """
SELECT w.room_nid, e.pos FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w (room_nid, after, upto)
CROSS JOIN LATERAL (
    SELECT pos FROM events
    WHERE room_nid = w.room_nid AND pos > w.after AND pos <= w.upto AND NOT rejected AND NOT soft_failed
    ORDER BY pos DESC OFFSET $4 LIMIT 1
) e
"""
_TALLIES = """
SELECT user_id, room_nid, upto, rules, tally FROM unread_tallies
WHERE user_id = $1 AND room_nid = ANY ($2) AND rules = $3
"""
_REDACTED_SINCE = """
SELECT e.room_nid, t.pos FROM unnest($1::bigint[], $2::bigint[]) AS w (room_nid, upto)
JOIN events e ON e.room_nid = w.room_nid AND e.pos > w.upto AND e.pos IS NOT NULL
  AND e.type = 'm.room.redaction'
JOIN redactions r ON r.event_nid = e.event_nid
JOIN events t ON t.event_id = r.target_id AND t.room_nid = e.room_nid
WHERE t.redacted_by IS NOT NULL AND t.pos <= w.upto
"""
_KEEP = """
INSERT INTO unread_tallies AS t (user_id, room_nid, upto, rules, tally)
SELECT user_id, room_nid, upto, rules, tally
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[])
    AS n (user_id, room_nid, upto, rules, tally)
ON CONFLICT (user_id, room_nid) DO UPDATE
    SET upto = excluded.upto, rules = excluded.rules, tally = excluded.tally
    WHERE t.upto < excluded.upto OR t.rules <> excluded.rules
"""


class KeptTally(NamedTuple):
    """What was counted for a user in a room by some rules, up to a position.

    ``tally`` is as ``users.unread`` writes it.
    """

    user_id: str
    room_nid: int
    upto: int
    rules: str
    tally: bytes


class ReadMark(NamedTuple):
    """A user has read a thread up to ``pos``; ``thread_id`` is empty for an unthreaded receipt, or main."""

    room_id: str
    thread_id: str
    pos: int


class MemberChange(NamedTuple):
    """A member event of a user at ``pos``; None if it was taken away."""

    room_nid: int
    pos: int
    pdu: bytes | None


class UnreadStore:
    """Read what unread counts begin with, for many rooms at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_marks(self, user_id: str, room_ids: Sequence[str]) -> list[ReadMark]:
        """Give how far a user has read, by the receipt that is further ahead, public or private."""
        return [ReadMark(*record) for record in await self._database.fetch(_READ, user_id, room_ids)]

    async def member_changes(self, user_id: str, room_nids: Sequence[int]) -> list[MemberChange]:
        """Give the last changes of a user's membership in each room, the newest first."""
        return [MemberChange(*r) for r in await self._database.fetch(_MEMBER_CHANGES, user_id, room_nids)]

    async def starts(self, spans: Sequence[TimelineSpan], count: int) -> dict[int, int]:
        """Give for parts of timelines (by room_nid) the position after which their last ``count`` events are.

        Those with fewer events are left out.
        """
        records = await self._database.fetch(
            _STARTS,
            [span.room_nid for span in spans],
            [span.after for span in spans],
            [span.upto for span in spans],
            count,
        )
        return {record["room_nid"]: record["pos"] for record in records}

    async def tallies(self, user_id: str, room_nids: Sequence[int], rules: str) -> dict[int, KeptTally]:
        """Give what was counted for a user by some rules, by room_nid."""
        records = await self._database.fetch(_TALLIES, user_id, room_nids, rules)
        return {record["room_nid"]: KeptTally(*record) for record in records}

    async def redacted_since(self, tallies: Collection[KeptTally]) -> dict[int, set[int]]:
        """Give, by room_nid, the positions of events that were redacted after tallies were written."""
        found: dict[int, set[int]] = {}
        if tallies:
            columns = [it.room_nid for it in tallies], [it.upto for it in tallies]
            for record in await self._database.fetch(_REDACTED_SINCE, *columns):
                found.setdefault(record["room_nid"], set()).add(record["pos"])
        return found

    async def keep(self, tallies: Sequence[KeptTally]) -> None:
        """Write what was counted, unless something newer is there."""
        await self._database.execute(_KEEP, *map(list, zip(*tallies, strict=True)))

    async def newest_before(self, room_nids: Sequence[int], pos: int, limit: int) -> list[int]:
        """Give the event_nid of the newest events of some rooms before a position, the newest first."""
        return [r["event_nid"] for r in await self._database.fetch(_BEFORE, room_nids, pos, limit)]
