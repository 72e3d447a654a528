"""What must be equal in two worlds that claim to be of the same moment, and what need not.

Not compared, because the protocol itself does not keep it equal:
- `unsigned` apart from redaction: ages, transaction IDs, bundled aggregations grow without a word;
- the timeline beyond the overlap: both are windows that end now, and their beginnings differ;
- the content of an event that is redacted on either side: clients redact themselves;
- heroes where the room has a name or alias: they "may be omitted" then, so an old list may linger;
- empty account data, which is how it is deleted, and an empty list of tags;
- a threaded receipt beside an unthreaded one of the same user and type on the same event: one m.receipt
  event has room for one of them, and the unthreaded covers the other;
- left rooms, unless the filter asks for them, and rooms that were forgotten: nothing tells of it;
- what was redacted in a room after the user left: nothing tells of it either;
- members that lazy loading left out; those that are known must be right (`stale_members`).
"""

from dataclasses import dataclass, field
from typing import Any

from tests.clients.sync_model import Room, World

Json = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """One way to sync."""

    name: str
    filter: Json = field(default_factory=dict)
    state_after: bool = False

    @property
    def lazy(self) -> bool:
        """Are members only sent when they have said something?"""
        return bool(self.filter.get("room", {}).get("state", {}).get("lazy_load_members"))

    @property
    def with_left(self) -> bool:
        """Does an initial sync list the rooms that were left?"""
        return bool(self.filter.get("room", {}).get("include_leave"))


def differences(grown: World, fresh: World, mode: Mode, forgotten: set[str]) -> list[str]:
    """List in words how the world that grew by increments differs from a fresh one; empty when equal."""
    found = compare("account data", without_empty(grown.account_data), without_empty(fresh.account_data))
    memberships = [visible_rooms(world, mode, forgotten) for world in (grown, fresh)]
    found += compare("memberships", *memberships)
    for room_id in memberships[0].keys() & memberships[1].keys():
        found += [
            f"{room_id} ({memberships[1][room_id]}): {difference}"
            for difference in room_differences(grown.rooms[room_id], fresh.rooms[room_id], mode)
        ]
    return found


def compare(what: str, grown: Any, fresh: Any) -> list[str]:
    """Say which keys (or the whole) differ."""
    if grown == fresh:
        return []
    if isinstance(grown, dict) and isinstance(fresh, dict):
        keys = sorted(grown.keys() | fresh.keys(), key=str)
        return [
            f"{what} {key}: grown {grown.get(key)!r}, fresh {fresh.get(key)!r}"
            for key in keys
            if grown.get(key) != fresh.get(key)
        ]
    return [f"{what}: grown {grown!r}, fresh {fresh!r}"]


def without_empty(contents: dict[str, Json]) -> dict[str, Json]:
    """Drop account data that was deleted by emptying it, and tags when there are none."""
    return {type_: content for type_, content in contents.items() if content not in ({}, {"tags": {}})}


def visible_rooms(world: World, mode: Mode, forgotten: set[str]) -> dict[str, str]:
    """Map the rooms that an initial sync in this mode would list to their section."""
    return {
        room_id: room.membership
        for room_id, room in world.rooms.items()
        if room_id not in forgotten and (mode.with_left or room.membership != "leave")
    }


def room_differences(grown: Room, fresh: Room, mode: Mode) -> list[str]:
    """Compare one room that both sides list in the same section."""
    if fresh.membership in ("invite", "knock"):
        return compare("stripped state", stripped(grown), stripped(fresh))
    found = state_differences(grown, fresh, mode) + timeline_differences(grown, fresh)
    if fresh.membership == "join":
        named = has_name(fresh)
        found += compare("summary", summary(grown, named), summary(fresh, named))
        found += compare("unread", counts(grown.unread), counts(fresh.unread))
        found += compare("unread threads", thread_counts(grown), thread_counts(fresh))
        found += compare("receipts", receipts(grown), receipts(fresh))
        found += compare("account data", without_empty(grown.account_data), without_empty(fresh.account_data))
    return found


def state_differences(grown: Room, fresh: Room, mode: Mode) -> list[str]:
    """Compare the state; a lazy world may know more members than a fresh one, but none fewer."""
    redacted = grown.redacted | fresh.redacted
    here, there = ({key: essence(e, redacted) for key, e in room.state.items()} for room in (grown, fresh))
    if mode.lazy:
        here = {key: e for key, e in here.items() if key in there or key[0] != "m.room.member"}
    return compare("state", here, there)


def timeline_differences(grown: Room, fresh: Room) -> list[str]:
    """Compare the newest events as far back as both windows reach."""
    overlap = min(len(grown.timeline), len(fresh.timeline))
    if overlap == 0:
        return compare("timeline is empty", not grown.timeline, not fresh.timeline)
    redacted = grown.redacted | fresh.redacted
    here, there = (
        [essence(event, redacted) for event in room.timeline[-overlap:]] for room in (grown, fresh)
    )
    ids = [event["event_id"] for event in fresh.timeline[-overlap:]]
    found = compare("timeline", here, there)
    if fresh.membership != "leave":
        gone = [[event_id for event_id in ids if event_id in room.redacted] for room in (grown, fresh)]
        found += compare("redacted", *gone)
    return found


def essence(event: Json, redacted: set[str]) -> Json:
    """Keep what must not differ of an event."""
    keys = {"event_id", "type", "sender", "origin_server_ts", "state_key"}
    kept = {key: event[key] for key in keys & event.keys()}
    if event["event_id"] not in redacted:
        kept["content"] = event["content"]
    return kept


def stripped(room: Room) -> Json:
    """Keep sender and content of the stripped state."""
    return {
        "/".join(key): {name: event[name] for name in ("sender", "content")}
        for key, event in room.stripped.items()
    }


def has_name(room: Room) -> bool:
    """Does the room have a name or an alias, so that it needs no heroes?"""
    return any(
        room.state.get((type_, ""), {}).get("content", {}).get(key)
        for type_, key in (("m.room.name", "name"), ("m.room.canonical_alias", "alias"))
    )


def summary(room: Room, named: bool) -> Json:
    """Keep the counts, and the heroes where a name is made of them."""
    kept = {key: value for key, value in room.summary.items() if key != "m.heroes"}
    return kept if named else {**kept, "m.heroes": sorted(room.summary.get("m.heroes", []))}


def receipts(room: Room) -> dict[tuple[str, str, str | None], tuple[str, int]]:
    """Leave out threaded receipts where an unthreaded one is on the same event."""
    unthreaded = {key[:2]: event for key, (event, _) in room.receipts.items() if key[2] is None}
    return {
        key: value
        for key, value in room.receipts.items()
        if key[2] is None or unthreaded.get(key[:2]) != value[0]
    }


def counts(unread: Json) -> tuple[int, int]:
    """Read absent counts as 0."""
    return unread.get("notification_count", 0), unread.get("highlight_count", 0)


def thread_counts(room: Room) -> dict[str, tuple[int, int]]:
    """Leave out threads without notifications, as a server may."""
    every = {thread: counts(unread) for thread, unread in room.unread_threads.items()}
    return {thread: count for thread, count in every.items() if count != (0, 0)}


def stale_members(lazy: World, truth: World) -> list[str]:
    """List members of joined rooms that a lazy client believes in and that are not so any more."""
    found = []
    for room_id, room in truth.rooms.items():
        known = lazy.rooms.get(room_id)
        if room.membership != "join" or known is None:
            continue
        for key, event in known.state.items():
            now = room.state.get(key, {}).get("event_id")
            if key[0] == "m.room.member" and event["event_id"] != now:
                found.append(f"{room_id}: {key[1]} is {event['event_id']}, should be {now}")
    return found
