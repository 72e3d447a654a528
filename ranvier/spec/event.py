"""A persistent event as the rules see it: a lazy view on a PDU that somebody, perhaps oddly, made."""

from __future__ import annotations

from typing import Any

import orjson

from ranvier.spec.room_versions import RoomVersion

StateKey = tuple[str, str]
"""``(type, state_key)``: what a piece of room state is found by."""


class Event:
    """Give typed access to one PDU without copying or completing it.

    ``pdu`` is the JSON object as signed and sent to other servers, ``event_id`` its id in this
    room version. Constructing checks nothing: an odd but legal event must not be refused by us
    alone, because that would split the room. Checks live in ``spec.event_format``.
    """

    __slots__ = ("_raw", "content", "event_id", "pdu", "room_id", "sender", "state_key", "type", "version")

    def __init__(
        self,
        pdu: dict[str, Any],
        event_id: str,
        version: RoomVersion,
        *,
        raw: bytes | None = None,
    ) -> None:
        self.pdu = pdu
        self.event_id = event_id
        self.version = version
        self.type: str = pdu["type"]
        self.sender: str = pdu["sender"]
        self.state_key: str | None = pdu.get("state_key")
        self.content: dict[str, Any] = pdu["content"]
        # "the room ID is the event ID of the create event with the sigil ! instead of $" (v12)
        self.room_id: str = pdu["room_id"] if "room_id" in pdu else "!" + event_id[1:]
        self._raw = raw

    def __repr__(self) -> str:
        return f"Event({self.event_id}, {self.type}, state_key={self.state_key!r}, {self.sender})"

    @property
    def raw(self) -> bytes:
        """The PDU as JSON bytes (made once)."""
        if self._raw is None:
            self._raw = orjson.dumps(self.pdu)
        return self._raw

    @property
    def is_state(self) -> bool:
        """Whether the event is part of the room's state."""
        return self.state_key is not None

    @property
    def key(self) -> StateKey:
        """``(type, state_key)`` of a state event."""
        assert self.state_key is not None
        return (self.type, self.state_key)

    @property
    def depth(self) -> int:
        """Depth in the DAG, as claimed by the sender."""
        return int(self.pdu["depth"])

    @property
    def origin_server_ts(self) -> int:
        """Milliseconds since the epoch, as claimed by the sender."""
        return int(self.pdu["origin_server_ts"])

    @property
    def prev_event_ids(self) -> list[str]:
        """Ids of the events that this one follows."""
        return self._references("prev_events")

    @property
    def auth_event_ids(self) -> list[str]:
        """Ids of the events that allow this one, as listed in the PDU."""
        return self._references("auth_events")

    def _references(self, field: str) -> list[str]:
        if self.version.event_id_in_pdu:
            return [pair[0] for pair in self.pdu[field]]
        references: list[str] = self.pdu[field]
        return references

    @property
    def redacts(self) -> str | None:
        """Id of the event that a redaction names, wherever this room version keeps it."""
        holder = self.content if self.version.redacts_in_content else self.pdu
        target = holder.get("redacts")
        return target if isinstance(target, str) else None
