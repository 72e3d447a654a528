"""Unread counts in sync: ``unread_notifications`` and ``unread_thread_notifications`` of joined rooms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import orjson

from ranvier.sync.context import SyncContext
from ranvier.users.unread import Unread
from ranvier.users.unread_tally import Count, Counts


class UnreadCounts(NamedTuple):
    """The counts of one room, as an answer shows them."""

    counts: Counts

    def parts(self, *, threads: bool) -> list[bytes]:
        """Give the keys of a room with their values.

        "If unread_thread_notifications was specified as true on the RoomEventFilter, these counts will only
        be for the main timeline rather than all events in the room."
        """
        if not threads:
            return [b'"unread_notifications":' + _json(self.counts.total)]
        parts = [b'"unread_notifications":' + _json(self.counts.main)]
        if self.counts.threads:
            by_root = [orjson.dumps(root) + b":" + _json(it) for root, it in self.counts.threads.items()]
            parts.append(b'"unread_thread_notifications":{%b}' % b",".join(by_root))
        return parts


class UnreadSection:
    """Ask for the counts of rooms that an answer tells of."""

    def __init__(self, *, unread: Unread) -> None:
        self._unread = unread

    async def initial(self, context: SyncContext, room_ids: Iterable[str]) -> Mapping[str, UnreadCounts]:
        """Give the counts of some rooms."""
        counts = await self._unread.counts(context.user_id, room_ids)
        return {room_id: UnreadCounts(it) for room_id, it in counts.items()}

    async def since(self, context: SyncContext, room_ids: Iterable[str]) -> Mapping[str, UnreadCounts]:
        """Give the counts of rooms with something new: "MUST update it as it changes"."""
        return await self.initial(context, room_ids)


def _json(count: Count) -> bytes:
    return b'{"highlight_count":%d,"notification_count":%d}' % (count.highlights, count.notifications)
