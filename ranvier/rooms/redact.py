"""Redact events: who may, and what the redaction says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ranvier.log.tail import Tail
from ranvier.rooms.actor import Actor, Limit
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft, Txn
from ranvier.spec.errors import forbidden, not_found
from ranvier.spec.ids import domain_of
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow

REDACTION: Final = "m.room.redaction"


class Redactor:
    """Send redactions on behalf of users.

    ``limit`` counts them, those of others' events under the name ``others_limit``.
    """

    def __init__(
        self,
        *,
        writer: RoomWriter,
        events: EventStore,
        tail: Tail,
        limit: Limit,
        others_limit: str = "rc_message",
    ) -> None:
        self._writer = writer
        self._events = events
        self._tail = tail
        self._limit = limit
        self._others_limit = others_limit

    async def redact(
        self,
        actor: Actor,
        room_id: str,
        event_id: str,
        content: Mapping[str, Any],
        *,
        txn: Txn | None = None,
        origin_server_ts: int | None = None,
    ) -> str:
        """Redact an event and give the redaction's id; ``content`` is the redaction's, without ``redacts``.

        Source: client-server API, "Redactions": own events, others' with the redact level, and events of
        this server's users if the actor is an administrator of the server. Raises 404 ``M_NOT_FOUND`` for
        an event that is not in the room, 403 ``M_FORBIDDEN``, 429 ``M_LIMIT_EXCEEDED``.
        """
        target = self._tail.event(event_id)
        if target is None:
            target = (await self._events.by_ids([event_id])).get(event_id)
        if target is None or target.room_id != room_id:
            raise not_found("That event is not in this room")
        own = target.sender == actor.user_id
        if not own:
            actor.require_unsuspended()
        if actor.rate_limited:
            self._limit("rc_message" if own else self._others_limit, actor.user_id)
        redacted = target

        def add(draft: Draft) -> EventRow:
            _check_may_redact(draft, actor, redacted)
            return draft.add(
                sender=actor.user_id,
                type=REDACTION,
                content={key: value for key, value in content.items() if key != "redacts"},
                redacts=redacted,
                origin_server_ts=origin_server_ts,
            )

        return (await self._writer.write(room_id, add, txn)).event_id


def _check_may_redact(draft: Draft, actor: Actor, target: EventRow) -> None:
    if target.type == "m.room.create":
        raise forbidden("The event that creates a room can not be redacted")
    if target.sender == actor.user_id:
        return
    levels = draft.power_levels
    if levels.user_level(actor.user_id) >= levels.redact:
        return
    # "Server administrators may redact events sent by users on their server."
    if actor.is_admin and domain_of(target.sender) == domain_of(actor.user_id):
        return
    raise forbidden("You may not redact events of others in this room")
