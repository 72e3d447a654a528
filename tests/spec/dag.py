"""A small room for pure tests: events by name, forks at will, and the loading that resolution asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyroaring import BitMap64

from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import auth_event_keys
from ranvier.spec.room_versions import ROOM_VERSIONS, RoomVersion
from ranvier.spec.state_res import Resolution

State = dict[StateKey, int]


def user(name: str) -> str:
    """Make a full user id of a short name (``bob`` is of the server ``hs``)."""
    return name if name.startswith("@") else f"@{name}:hs"


def make_event(
    version: RoomVersion,
    name: str,
    sender: str,
    type: str,
    content: Mapping[str, Any],
    *,
    state_key: str | None = None,
    prev_events: Sequence[str] = ("$before:hs",),
    auth_events: Sequence[str] = (),
    create: str = "$create:hs",
    ts: int = 0,
    depth: int = 1,
    **fields: Any,
) -> Event:
    """Make an event that the rules read; hashes and signatures are no business of theirs."""

    def references(event_ids: Sequence[str]) -> list[Any]:
        return [[event_id, {}] if version.event_id_in_pdu else event_id for event_id in event_ids]

    pdu: dict[str, Any] = {
        "type": type,
        "sender": user(sender),
        "content": dict(content),
        "prev_events": references(prev_events),
        "auth_events": references(auth_events),
        "origin_server_ts": ts,
        "depth": depth,
        **fields,
    }
    if state_key is not None:
        pdu["state_key"] = state_key
    if not version.room_id_is_create_hash:
        pdu.setdefault("room_id", "!room:hs")
    elif type != "m.room.create":
        pdu.setdefault("room_id", "!" + create[1:])
    return Event(pdu, f"${name}:hs", version)


class Dag:
    """Build a room; each event follows the last one unless it says ``after``, and is named.

    Every event, allowed or not, enters the state after it: what is not allowed is a test's own choice.
    """

    def __init__(self, version: str = "11", *, reverse_nids: bool = False) -> None:
        self.version = ROOM_VERSIONS[version]
        self.events: dict[str, Event] = {}
        self.nids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.after: dict[str, State] = {}
        self.chains: dict[int, BitMap64] = {}
        self._reverse = reverse_nids
        self._last: list[str] = []

    # -- building ----------------------------------------------------------------------

    def add(
        self,
        name: str,
        sender: str,
        type: str,
        content: Mapping[str, Any],
        *,
        state_key: str | None = None,
        after: str | Sequence[str] | None = None,
        cite: Sequence[str] | None = None,
        ts: int | None = None,
    ) -> Event:
        """Add an event after others (resolving their states), citing what the rules say unless told."""
        previous = self._last if after is None else [after] if isinstance(after, str) else list(after)
        before = self.resolve(*previous) if previous else {}
        if cite is None:
            keys = auth_event_keys(
                self.version, type=type, sender=user(sender), state_key=state_key, content=content
            )
            cite = [self.names[before[key]] for key in keys if key in before]
        nid = 1_000_000 - len(self.events) if self._reverse else len(self.events) + 1
        event = make_event(
            self.version,
            name,
            sender,
            type,
            content,
            state_key=state_key,
            prev_events=[f"${other}:hs" for other in previous],
            auth_events=[f"${other}:hs" for other in cite],
            ts=len(self.events) * 1000 if ts is None else ts,
            depth=1 + max((self.events[other].depth for other in previous), default=0),
        )
        self.events[name], self.nids[name], self.names[nid] = event, nid, name
        chain = BitMap64()
        for other in cite:
            chain |= self.chains[self.nids[other]]
            chain.add(self.nids[other])
        self.chains[nid] = chain
        self.after[name] = {**before, event.key: nid} if event.is_state else before
        self._last = [name]
        return event

    def create(self, creator: str = "alice", **content: Any) -> Dag:
        """Begin the room as ``create``, its creator joined as ``create-join``."""
        if self.version.creator_in_content:
            content["creator"] = user(creator)
        self.add("create", creator, "m.room.create", content, state_key="")
        self.member("create-join", creator, creator, "join")
        return self

    def member(self, name: str, sender: str, target: str, membership: str, **placing: Any) -> Event:
        """Add a membership event."""
        content = {"membership": membership}
        return self.add(name, sender, "m.room.member", content, state_key=user(target), **placing)

    def join(self, name: str, who: str, **placing: Any) -> Event:
        """Let a user join."""
        return self.member(name, who, who, "join", **placing)

    def rules(self, name: str, sender: str, rule: str, **placing: Any) -> Event:
        """Set the join rule."""
        content = {"join_rule": rule}
        return self.add(name, sender, "m.room.join_rules", content, state_key="", **placing)

    def power(
        self, name: str, sender: str, users: Mapping[str, int], *, levels: Any = None, **placing: Any
    ) -> Event:
        """Set the power levels of users, and other levels (``levels={"invite": 50}``)."""
        content = {"users": {user(who): level for who, level in users.items()}, **(levels or {})}
        return self.add(name, sender, "m.room.power_levels", content, state_key="", **placing)

    def topic(self, name: str, sender: str, **placing: Any) -> Event:
        """Set a topic."""
        return self.add(name, sender, "m.room.topic", {"topic": name}, state_key="", **placing)

    def message(self, name: str, sender: str, **placing: Any) -> Event:
        """Send a message."""
        return self.add(name, sender, "m.room.message", {"body": name}, **placing)

    # -- resolving ---------------------------------------------------------------------

    def resolve(self, *names: str) -> State:
        """Resolve the states after events."""
        return self.resolve_states([self.after[name] for name in names])

    def resolve_states(self, states: Sequence[State], *, rejected: Sequence[str] = ()) -> State:
        """Resolve states, giving the resolution exactly what it says it needs, as the server does."""
        resolution = Resolution(self.version, states)
        chains: dict[int, BitMap64] = {}
        for _ in range(4):
            if not (missing := resolution.missing_chains(chains)):
                break
            chains.update((nid, self.chains[nid]) for nid in missing)
        else:
            raise AssertionError("more than three rounds of loading chains")
        needed = resolution.needed_events(chains)
        loaded = {nid: self._event(nid) for nid in needed.nids}
        auth = resolution.needed_auth_events(loaded)
        loaded.update((nid, self._event(nid)) for nid in auth.nids)
        for event_id in auth.event_ids:
            nid = self.nids[event_id[1:].removesuffix(":hs")]
            loaded[nid] = self._event(nid)
        for nid in needed.power_levels_among:
            if self._event(nid).type == "m.room.power_levels":
                loaded[nid] = self._event(nid)
        rejected_nids = {self.nids[name] for name in rejected}
        return resolution.resolve(loaded, chains, rejected=rejected_nids)

    def _event(self, nid: int) -> Event:
        return self.events[self.names[nid]]

    def at(self, state: Mapping[StateKey, int], type: str, state_key: str = "") -> str | None:
        """Name the event that a state has at a key."""
        nid = state.get((type, user(state_key) if type == "m.room.member" else state_key))
        return None if nid is None else self.names[nid]

    def full_state(self, state: Mapping[StateKey, int]) -> dict[StateKey, Event]:
        """Give the events of a state."""
        return {key: self._event(nid) for key, nid in state.items()}
