"""A make-believe server elsewhere: its users write signed events into a room, wherever in its history."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroaring import BitMap64

from ranvier.rooms.import_room import RoomImporter
from ranvier.rooms.outliers import Outliers
from ranvier.rooms.receive_event import EventReceiver, Outcome, Verdict
from ranvier.rooms.received_pdu import KeyRequest
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import auth_event_keys
from ranvier.spec.event_format import build_pdu
from ranvier.spec.event_hashes import reference_hash
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.spec.signatures import SigningKey, VerifyKey, finish_event
from ranvier.spec.state_res import resolve
from ranvier.storage.room_imports import RoomImportStore
from tests.core import KEY, SERVER_NAME, Core

State = dict[StateKey, str]


class KnownKeys:
    """Hand out the keys of servers that a test knows."""

    def __init__(self) -> None:
        self._keys = {(SERVER_NAME, KEY.key_id): KEY.verify_key}

    def add(self, server_name: str, key: SigningKey) -> None:
        """Know a server's key."""
        self._keys[server_name, key.key_id] = key.verify_key

    async def verify_keys(self, wanted: Collection[KeyRequest]) -> Mapping[KeyRequest, VerifyKey]:
        """Give those that are known."""
        return {
            request: self._keys[request.server_name, request.key_id]
            for request in wanted
            if (request.server_name, request.key_id) in self._keys
        }


def new_outliers(core: Core) -> Outliers:
    """Build what stores outliers, as ``processes`` does."""
    return Outliers(events=core.events, graph=core.graph, nids=core.nids, pool=core.pool)


def new_importer(core: Core) -> RoomImporter:
    """Build what takes rooms over, as ``processes`` does."""
    return RoomImporter(
        server_name=SERVER_NAME,
        rooms=core.rooms,
        room_store=core.room_store,
        writer=core.writer,
        appender=core.appender,
        tail=core.tail,
        graph=core.graph,
        imports=RoomImportStore(core.database),
        outliers=new_outliers(core),
        nids=core.nids,
    )


def new_receiver(core: Core) -> EventReceiver:
    """Build the receiver of a core, as ``processes`` does."""
    return EventReceiver(
        rooms=core.rooms,
        writer=core.writer,
        appender=core.appender,
        tail=core.tail,
        events=core.events,
        graph=core.graph,
        forks=core.forks,
        outliers=new_outliers(core),
        nids=core.nids,
        pool=core.pool,
    )


@dataclass
class RemoteServer:
    """One room as other servers' users see and extend it.

    Every event is placed ``after`` others and cites what the state there has, resolved by a straightforward
    use of ``spec.state_res`` that shares nothing with the storage.
    """

    room_id: str
    version_id: str
    events: dict[str, Event] = field(default_factory=dict)
    after: dict[str, State] = field(default_factory=dict)
    keys: KnownKeys = field(default_factory=KnownKeys)
    _signers: dict[str, SigningKey] = field(default_factory=dict)
    _nids: dict[str, int] = field(default_factory=dict)
    _chains: dict[int, BitMap64] = field(default_factory=dict)
    _time: int = 1_700_000_000_000

    @classmethod
    async def of_room(cls, core: Core, room_id: str) -> RemoteServer:
        """Know everything that a room of ours has by now."""
        room = await core.rooms.get(room_id)
        server = cls(room_id, room.version.identifier)
        for row in await core.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=10_000):
            server.learn(row.event)
        return server

    @classmethod
    def create(cls, creator: str, version_id: str = "11") -> RemoteServer:
        """Make a public room elsewhere."""
        version = ROOM_VERSIONS[version_id]
        server = cls(
            "" if version.room_id_is_create_hash else f"!elsewhere:{creator.partition(':')[2]}", version_id
        )
        content: dict[str, Any] = {"room_version": version_id}
        if version.creator_in_content:
            content["creator"] = creator
        create = server.make(creator, "m.room.create", content, state_key="", after=[])
        server.room_id = create.room_id
        server.member(creator, creator, "join")
        server.power(creator, {} if version.privileged_creators else {creator: 100})
        server.make(creator, "m.room.join_rules", {"join_rule": "public"}, state_key="")
        return server

    def auth_chain(self, event_ids: Iterable[str]) -> list[Event]:
        """Give all that some events rest on."""
        looking = list(event_ids)
        found: dict[str, Event] = {}
        for event_id in looking:
            for other in self.events[event_id].auth_event_ids:
                if other not in found:
                    found[other] = self.events[other]
                    looking.append(other)
        return list(found.values())

    def learn(self, event: Event) -> Event:
        """Add an event of another server to the history."""
        self.events[event.event_id] = event
        nid = self._nids[event.event_id] = len(self._nids) + 1
        self._chains[nid] = self._chain(event.auth_event_ids)
        before = self.state(event.prev_event_ids)
        self.after[event.event_id] = {**before, event.key: event.event_id} if event.is_state else before
        return event

    def _chain(self, auth_ids: Iterable[str]) -> BitMap64:
        chain = BitMap64()
        for event_id in auth_ids:
            chain |= self._chains[self._nids[event_id]]
            chain.add(self._nids[event_id])
        return chain

    def state(self, event_ids: Sequence[str]) -> State:
        """Resolve the states after some events."""
        if not event_ids:
            return {}
        states = [{k: self._nids[v] for k, v in self.after[event_id].items()} for event_id in event_ids]
        events = {nid: self.events[event_id] for event_id, nid in self._nids.items()}
        names = {nid: event_id for event_id, nid in self._nids.items()}
        resolved = resolve(ROOM_VERSIONS[self.version_id], states, events, self._chains)
        return {key: names[nid] for key, nid in resolved.items()}

    def ends(self) -> list[str]:
        """Name the events that nothing follows yet."""
        followed = {other for event in self.events.values() for other in event.prev_event_ids}
        return [event_id for event_id in self.events if event_id not in followed]

    def make(
        self,
        sender: str,
        type: str,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        after: Sequence[Event | str] | None = None,
        redacts: str | None = None,
        ts: int | None = None,
        auth: Sequence[str] | None = None,
        learn: bool = True,
    ) -> Event:
        """Make a signed event after others (the ends of the history unless told)."""
        version = ROOM_VERSIONS[self.version_id]
        previous = self.ends() if after is None else [e if isinstance(e, str) else e.event_id for e in after]
        state = self.state(previous)
        if auth is None:
            keys = auth_event_keys(version, type=type, sender=sender, state_key=state_key, content=content)
            auth = [state[key] for key in keys if key in state]
        self._time += 1000
        domain = sender.partition(":")[2]
        named = {*previous, *auth}
        hashes = {e: reference_hash(self.events[e].pdu, version) if e in self.events else "" for e in named}
        pdu = build_pdu(
            version,
            room_id=self.room_id or None,
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            prev_events=previous,
            auth_events=auth,
            depth=1 + max((self.events[e].depth for e in previous if e in self.events), default=0),
            origin_server_ts=self._time if ts is None else ts,
            redacts=redacts,
            event_id=f"${os.urandom(6).hex()}:{domain}" if version.event_id_in_pdu else None,
            reference_hashes=hashes,
        )
        event_id = finish_event(pdu, version, domain, self._signer(domain))
        event = Event(pdu, event_id, version)
        return self.learn(event) if learn else event

    def member(self, sender: str, target: str, membership: str, **placing: Any) -> Event:
        """Make a member event."""
        content = {"membership": membership}
        return self.make(sender, "m.room.member", content, state_key=target, **placing)

    def topic(self, sender: str, topic: str, **placing: Any) -> Event:
        """Set a topic."""
        return self.make(sender, "m.room.topic", {"topic": topic}, state_key="", **placing)

    def message(self, sender: str, body: str, **placing: Any) -> Event:
        """Say something."""
        return self.make(sender, "m.room.message", {"msgtype": "m.text", "body": body}, **placing)

    def power(self, sender: str, users: Mapping[str, int], **placing: Any) -> Event:
        """Set power levels, and leave the rest at their defaults."""
        return self.make(sender, "m.room.power_levels", {"users": dict(users)}, state_key="", **placing)

    def _signer(self, domain: str) -> SigningKey:
        if domain == SERVER_NAME:
            return KEY
        if domain not in self._signers:
            self._signers[domain] = SigningKey("ed25519:1", os.urandom(32))
            self.keys.add(domain, self._signers[domain])
        return self._signers[domain]

    async def send(self, receiver: EventReceiver, *events: Event) -> list[Outcome]:
        """Send events to a server."""
        return await receiver.receive(
            self.room_id, [event.pdu for event in events], origin="remote.test", keys=self.keys
        )

    async def send_accepted(self, receiver: EventReceiver, *events: Event) -> None:
        """Send events that must be accepted."""
        outcomes = await self.send(receiver, *events)
        assert {outcome.verdict for outcome in outcomes} == {Verdict.ACCEPTED}, outcomes
