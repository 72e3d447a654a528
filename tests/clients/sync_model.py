"""A client's model of the world, built from nothing but /sync answers, as the specification says to."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
# Servers that do not speak v1.16 yet know `state_after` by the name of its proposal, MSC4222.
STATE_AFTER = ("state_after", "org.matrix.msc4222.state_after")


@dataclass
class Room:
    """A room as far as the client was told."""

    membership: str = "join"
    state: dict[tuple[str, str], Json] = field(default_factory=dict)
    timeline: list[Json] = field(default_factory=list)
    stripped: dict[tuple[str, str], Json] = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    unread: Json = field(default_factory=dict)
    unread_threads: Json = field(default_factory=dict)
    account_data: dict[str, Json] = field(default_factory=dict)
    # (receipt type, user, thread or None) -> (event, ts)
    receipts: dict[tuple[str, str, str | None], tuple[str, int]] = field(default_factory=dict)
    redacted: set[str] = field(default_factory=set)


@dataclass
class World:
    """All that one device knows; `apply` each answer in order."""

    since: str | None = None
    rooms: dict[str, Room] = field(default_factory=dict)
    account_data: dict[str, Json] = field(default_factory=dict)
    to_device: list[Json] = field(default_factory=list)
    devices_changed: set[str] = field(default_factory=set)
    devices_left: set[str] = field(default_factory=set)
    key_counts: Json = field(default_factory=dict)

    def apply(self, answer: Json) -> None:
        """Take in one answer and its token."""
        rooms = answer.get("rooms", {})
        check_sections(rooms)
        for room_id, update in rooms.get("invite", {}).items():
            self._stripped(room_id, "invite", update["invite_state"]["events"])
        for room_id, update in rooms.get("knock", {}).items():
            self._stripped(room_id, "knock", update["knock_state"]["events"])
        for room_id, update in rooms.get("leave", {}).items():
            room = self.rooms.setdefault(room_id, Room())
            room.membership, room.stripped = "leave", {}
            apply_events(room, update)
        for room_id, update in rooms.get("join", {}).items():
            room = self.rooms.setdefault(room_id, Room())
            room.membership, room.stripped = "join", {}
            apply_events(room, update)
            apply_extras(room, update)
        for event in answer.get("account_data", {}).get("events", []):
            self.account_data[event["type"]] = event["content"]
        self._devices(answer)
        self.since = answer["next_batch"]

    def _stripped(self, room_id: str, membership: str, events: list[Json]) -> None:
        room = self.rooms.setdefault(room_id, Room())
        room.membership = membership
        room.stripped = {(event["type"], event["state_key"]): event for event in events}

    def _devices(self, answer: Json) -> None:
        self.to_device += answer.get("to_device", {}).get("events", [])
        lists = answer.get("device_lists", {})
        for user in lists.get("changed", []):
            self.devices_changed.add(user)
            self.devices_left.discard(user)
        for user in lists.get("left", []):
            self.devices_left.add(user)
            self.devices_changed.discard(user)
        self.key_counts = answer.get("device_one_time_keys_count", self.key_counts)


def check_sections(rooms: Json) -> None:
    """Insist that each room is in one section: clients read the sections in different orders."""
    listed = [room_id for section in rooms.values() for room_id in section]
    twice = {room_id for room_id in listed if listed.count(room_id) > 1}
    assert not twice, f"in two sections of one answer: {twice}"


def apply_events(room: Room, update: Json) -> None:
    """Apply `state` and `timeline`, or `state_after`.

    `state` holds up to the start of the timeline, so the state events of the timeline follow it;
    with `state_after` the timeline must not touch the state.
    """
    timeline = update.get("timeline", {})
    events = timeline.get("events", [])
    after = next((update[key] for key in STATE_AFTER if key in update), None)
    state = update.get("state", {}).get("events", []) if after is None else after.get("events", [])
    changes = state + ([event for event in events if "state_key" in event] if after is None else [])
    for event in changes:
        room.state[event["type"], event["state_key"]] = event
    if timeline.get("limited"):
        room.timeline = []
    known = {event["event_id"] for event in room.timeline}
    room.timeline += [event for event in events if event["event_id"] not in known]
    for event in state + events:
        if is_redacted(event):
            room.redacted.add(event["event_id"])
        if event["type"] == "m.room.redaction":
            redacts = event.get("redacts") or event["content"].get("redacts")
            if redacts:
                room.redacted.add(redacts)


def is_redacted(event: Json) -> bool:
    """Does the server say that it has taken the content out?"""
    return "redacted_because" in event.get("unsigned", {})


def apply_extras(room: Room, update: Json) -> None:
    """Apply what belongs to joined rooms alone: summary, counts, account data, receipts."""
    room.summary.update(update.get("summary", {}))
    if "unread_notifications" in update:
        room.unread = update["unread_notifications"]
        # "If no threads have notification counts, this whole object can be omitted."
        room.unread_threads = update.get("unread_thread_notifications", {})
    for event in update.get("account_data", {}).get("events", []):
        room.account_data[event["type"]] = event["content"]
    for event in update.get("ephemeral", {}).get("events", []):
        if event["type"] == "m.receipt":
            apply_receipts(room, event["content"])


def apply_receipts(room: Room, content: Json) -> None:
    """Each user has one receipt of a type in a thread (or in none): the newest told replaces it."""
    for event_id, by_type in content.items():
        for receipt_type, by_user in by_type.items():
            for user_id, data in by_user.items():
                room.receipts[receipt_type, user_id, data.get("thread_id")] = (event_id, data["ts"])
