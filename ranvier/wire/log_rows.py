"""Rows of the log, as they are kept in memory and as they cross from one process to another."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson

from ranvier.spec.event import Event, StateKey
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS, RoomVersion

PURGED_ROOM: Final = "purged_room"
"""The kind of the rows that say that a room is gone; what is in memory of it is to be forgotten."""


class LogRow(msgspec.Struct, array_like=True, gc=False, kw_only=True):
    """Tell one thing that is not an event: a receipt, account data, a to-device message, …

    ``kind`` names what it is and which columns mean what; ``body`` is mostly JSON, made once.
    ``pos`` is 0 until the row is committed.
    """

    kind: str
    pos: int = 0
    room_id: str | None = None
    user_id: str | None = None
    device_id: str | None = None
    key: str | None = None
    key2: str | None = None
    body: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that the row takes in memory, roughly."""
        return 200 + len(self.body or b"")


class EventRow(msgspec.Struct, array_like=True, gc=False, eq=False, kw_only=True):
    """One event of a room with what this server knows of it.

    Everything costly is made on first use and kept: the parsed PDU, the bytes that clients get.
    Rows are shared by all readers of a process, so the only thing that ever changes in a committed
    row is ``redacted_because`` (set once, when a redaction takes effect).

    ``pos`` is the position in the log (0 until committed, negative for backfilled history),
    ``state_changes`` the keys of the room's current state that changed with this event (for most
    state events their own key; more or others where the room's history forked), ``redacts`` the id of the
    event on which a redaction took effect, ``room_snapshot`` the snapshot of the room's current state
    after it and how many steps that is from a full copy (None for a row read from the database),
    ``is_only_end`` that it follows all that came before: the room's ends are known without parsing it.

    A server holds tens of thousands of these, and every worker reads each from the bus: so it is a struct
    that msgspec fills, and at which the collector of cyclic garbage never looks. (It is in no cycle, but for
    events that redact each other, which only servers of rooms of version 1 and 2 can make up.)
    The fields whose names begin with ``known_`` are what was made on first use: they do not cross to other
    processes, and readers ask for ``event``, ``membership`` and ``client``.
    """

    event_nid: int
    room_nid: int
    room_id: str
    version_id: str
    event_id: str
    type: str
    state_key: str | None
    sender: str
    depth: int
    origin_server_ts: int
    pdu: bytes
    snapshot_nid: int | None
    pos: int = 0
    replaces_nid: int | None = None
    auth_chain: bytes | None = None
    txn_device: str | None = None
    txn_id: str | None = None
    state_changes: tuple[StateKey, ...] = ()
    redacts: str | None = None
    room_snapshot: tuple[int, int] | None = None
    is_only_end: bool = False
    redacted_because: EventRow | None = None
    known_event: Event | None = None
    known_membership: str | None = None
    known_client: bytes | None = None

    def __repr__(self) -> str:
        return f"EventRow(pos={self.pos}, {self.event_id}, {self.type}, state_key={self.state_key!r})"

    @property
    def size(self) -> int:
        """Bytes that the row takes in memory, roughly (with its parsed and rendered forms)."""
        return 800 + 4 * len(self.pdu)

    @property
    def version(self) -> RoomVersion:
        """The rules of its room."""
        return ROOM_VERSIONS[self.version_id]

    @property
    def event(self) -> Event:
        """The event as signed, for the rules (never redacted here)."""
        if self.known_event is None:
            self.known_event = Event(orjson.loads(self.pdu), self.event_id, self.version, raw=self.pdu)
        return self.known_event

    @property
    def visible_pdu(self) -> dict[str, Any]:
        """The PDU as readers may see it: redacted if a redaction took effect."""
        pdu = self.event.pdu
        return redact(pdu, self.version) if self.redacted_because is not None else pdu

    @property
    def content(self) -> dict[str, Any]:
        """The content as readers may see it: redacted if a redaction took effect."""
        if self.redacted_because is None:
            return self.event.content
        content: dict[str, Any] = self.visible_pdu["content"]
        return content

    @property
    def read_once(self) -> dict[str, Any]:
        """The visible PDU for who looks at thousands of rows, and at each but once.

        It is not kept: parsed, the members of a large room take ten times the memory.
        """
        if self.known_event is not None:
            return self.visible_pdu
        pdu: dict[str, Any] = orjson.loads(self.pdu)
        return redact(pdu, self.version) if self.redacted_because is not None else pdu

    @property
    def key(self) -> StateKey:
        """``(type, state_key)`` of a state event."""
        assert self.state_key is not None
        return (self.type, self.state_key)

    @property
    def membership(self) -> str | None:
        """``content.membership`` of an m.room.member event."""
        if self.known_membership is None and self.type == "m.room.member":
            value = self.event.content.get("membership")
            self.known_membership = value if isinstance(value, str) else None
        return self.known_membership

    @property
    def relation(self) -> tuple[str, str] | None:
        """``(event_id, rel_type)`` of ``m.relates_to`` as it was sent, if it has both, sane, without NUL."""
        # Every process asks this of every event: most need not be parsed for it. (No form of JSON that is
        # written here escapes letters.)
        if self.known_event is None and b'"m.relates_to"' not in self.pdu:
            return None
        relation = self.event.content.get("m.relates_to")
        if not isinstance(relation, dict):
            return None
        target, rel_type = relation.get("event_id"), relation.get("rel_type")
        if not isinstance(target, str) or not isinstance(rel_type, str):
            return None
        # PostgreSQL's text holds no NUL; such an event is related to nothing.
        if len(target) > 255 or len(rel_type) > 255 or "\0" in target or "\0" in rel_type:
            return None
        return target, rel_type

    @property
    def client(self) -> bytes:
        """What clients get of the event: the inside of a JSON object, without ``unsigned`` and ``room_id``.

        Made once for all readers; see ``sync.render`` for the whole object.
        """
        if self.known_client is None:
            redacted = self.redacted_because is not None
            self.known_client = _render_client(self, self.read_once, redacted=redacted)
        return self.known_client

    @property
    def redacted_pdu(self) -> dict[str, Any]:
        """The PDU in its redacted form, for readers from whom the content is kept."""
        return redact(self.event.pdu, self.version)

    @property
    def redacted_client(self) -> bytes:
        """What clients get of the event from whom its content is kept; as ``client``, made each time."""
        return _render_client(self, self.redacted_pdu, redacted=True)

    def replace_event(self, event: Event) -> None:
        """Have another form of the same event, before anybody else knows the row."""
        self.pdu = event.raw
        self.known_event = event
        self.known_client = None

    def set_redacted(self, because: EventRow) -> None:
        """Let readers see the redacted form from now on."""
        if self.redacted_because is None:
            self.known_client = None
            self.redacted_because = because


def _render_client(row: EventRow, pdu: dict[str, Any], *, redacted: bool) -> bytes:
    shown: dict[str, Any] = {
        "content": pdu["content"],
        "event_id": row.event_id,
        "origin_server_ts": row.origin_server_ts,
        "sender": row.sender,
        "type": row.type,
    }
    if row.state_key is not None:
        shown["state_key"] = row.state_key
    if row.type == "m.room.redaction":
        # "redacts" is shown in both places, whatever the room version (client-server API, m.room.redaction)
        target = row.event.redacts
        if target is not None and not redacted:
            shown["redacts"] = target
            shown["content"] = {**pdu["content"], "redacts": target}
    return orjson.dumps(shown)[1:-1]


Row = EventRow | LogRow


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """What one commit put into the log: the rows of the positions ``previous`` + 1 to ``last``, in order."""

    previous: int
    last: int
    rows: list[Row]
