"""Send events on behalf of users: what a client may ask for, before the room's rules decide."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import orjson

from ranvier.log.tail import Tail
from ranvier.rooms.actor import Actor, Limit
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import STATE_SCOPE, Draft, Txn
from ranvier.rooms.redact import REDACTION, Redactor
from ranvier.rooms.relations import ANNOTATION, THREAD
from ranvier.rooms.room import MEMBER, Room
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.transactions import Transactions
from ranvier.spec.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param
from ranvier.spec.unpadded_base64 import encode_urlsafe_base64
from ranvier.storage.events import EventStore
from ranvier.storage.relations import RelationStore
from ranvier.wire.log_rows import EventRow

MAX_TXN_ID: Final = 255

SetMember = Callable[[Actor, str, str, Mapping[str, Any], Txn | None], Awaitable[str]]
"""Sets a member event by the rules of membership: actor, room_id, target, content, txn; gives its id."""

CheckAliases = Callable[[Room, Mapping[str, Any]], Awaitable[None]]
"""Checks the content of a room's next m.room.canonical_alias event. Raises 400 ``M_BAD_ALIAS``, …"""


class Sender(Actor, Protocol):
    """An actor who sends, with what is known of the device and the account."""

    @property
    def device_id(self) -> str | None:
        """The device, None for an application service without one."""

    @property
    def shadow_banned(self) -> bool:
        """Whether what the user sends only seems to be sent."""


class Sending:
    """Send message events, state events and redactions."""

    def __init__(
        self,
        *,
        writer: RoomWriter,
        rooms: Rooms,
        events: EventStore,
        relations: RelationStore,
        tail: Tail,
        transactions: Transactions,
        redactor: Redactor,
        set_member: SetMember,
        check_aliases: CheckAliases,
        limit: Limit,
    ) -> None:
        self._writer = writer
        self._rooms = rooms
        self._events = events
        self._relations = relations
        self._tail = tail
        self._transactions = transactions
        self._redactor = redactor
        self._set_member = set_member
        self._check_aliases = check_aliases
        self._limit = limit

    async def send(
        self,
        sender: Sender,
        room_id: str,
        type: str,
        content: dict[str, Any],
        txn_id: str,
        *,
        origin_server_ts: int | None = None,
    ) -> str:
        """Send a message event and give its id, the first one for a repeated transaction id.

        Raises 403 ``M_FORBIDDEN``, 400 ``M_DUPLICATE_ANNOTATION``, ``M_UNKNOWN`` (a thread under an event
        that has a relation), 413 ``M_TOO_LARGE``, 429 ``M_LIMIT_EXCEEDED``.
        """
        _check_texts(room_id, type, txn_id)
        if type == REDACTION:
            target_id = _target_of(content)
            return await self.redact(
                sender, room_id, target_id, content, txn_id, scope="send", origin_server_ts=origin_server_ts
            )
        txn = _txn(sender, f"send {room_id} {type}", txn_id)

        async def send() -> str:
            return await self._send(sender, room_id, type, content, txn, origin_server_ts)

        return await self._transactions.once(txn, send)

    async def redact(
        self,
        sender: Sender,
        room_id: str,
        event_id: str,
        content: Mapping[str, Any],
        txn_id: str,
        *,
        scope: str = "redact",
        origin_server_ts: int | None = None,
    ) -> str:
        """Redact an event and give the redaction's id; see ``Redactor.redact`` for what it raises."""
        _check_texts(room_id, event_id, txn_id)
        txn = _txn(sender, f"{scope} {room_id} {event_id if scope == 'redact' else REDACTION}", txn_id)

        async def send() -> str:
            await self._check_room(room_id)
            if sender.shadow_banned:
                return _pretended()
            return await self._redactor.redact(
                sender, room_id, event_id, content, txn=txn, origin_server_ts=origin_server_ts
            )

        return await self._transactions.once(txn, send)

    async def send_state(
        self,
        sender: Sender,
        room_id: str,
        type: str,
        state_key: str,
        content: dict[str, Any],
        *,
        once_id: str | None = None,
        origin_server_ts: int | None = None,
    ) -> str:
        """Set a piece of state and give the id of the event that is then in force.

        For a repeated ``once_id`` and the same content it is that of the first time, whatever was set since.
        Raises 403 ``M_FORBIDDEN`` and, for some types, what their own rules raise (``M_BAD_ALIAS``, …).
        """
        _check_texts(type, state_key)
        send = partial(self._send_state, sender, room_id, type, state_key, content, origin_server_ts)
        if once_id is None:
            return await send(None)
        # With another content it is no repeat: clients that trace give one id to all that belongs together.
        scope = f"{STATE_SCOPE} {room_id} {type} {state_key} {_digest(content)}"
        # No device's: the client did not choose the id, and is not shown it.
        txn = Txn(sender.user_id, "", scope, once_id)
        return await self._transactions.once(txn, partial(send, txn))

    async def _send_state(
        self,
        sender: Sender,
        room_id: str,
        type: str,
        state_key: str,
        content: dict[str, Any],
        origin_server_ts: int | None,
        txn: Txn | None,
    ) -> str:
        if type == MEMBER:
            return await self._set_member(sender, room_id, state_key, content, txn)
        sender.require_unsuspended()
        room = await self._check_room(room_id)
        if sender.rate_limited:
            self._limit("rc_message", sender.user_id)
        if type == "m.room.canonical_alias" and not state_key:
            await self._check_aliases(room, content)
        if sender.shadow_banned:
            return _pretended()
        row = await self._writer.write(
            room_id,
            lambda draft: draft.add(
                sender=sender.user_id,
                type=type,
                state_key=state_key,
                content=content,
                origin_server_ts=origin_server_ts,
            ),
            txn,
        )
        return row.event_id

    async def _send(
        self,
        sender: Sender,
        room_id: str,
        type: str,
        content: dict[str, Any],
        txn: Txn,
        origin_server_ts: int | None,
    ) -> str:
        sender.require_unsuspended()
        if sender.rate_limited:
            self._limit("rc_message", sender.user_id)
        await self._check_room(room_id)
        if sender.shadow_banned:
            return _pretended()
        relation = _relation_of(content)
        if relation is not None:
            await self._check_relation(sender.user_id, room_id, type, content, relation)

        def add(draft: Draft) -> EventRow:
            if relation is not None and relation[1] == ANNOTATION:
                newest = (*self._tail.related_to(relation[0]), *draft.events)
                _check_not_annotated(newest, sender.user_id, type, content)
            return draft.add(
                sender=sender.user_id, type=type, content=content, origin_server_ts=origin_server_ts
            )

        return (await self._writer.write(room_id, add, txn)).event_id

    async def _check_room(self, room_id: str) -> Room:
        """Refuse a room that is not known as one that the sender is not in: it tells strangers nothing."""
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in that room")
        return room

    async def _check_relation(
        self, user_id: str, room_id: str, type: str, content: Mapping[str, Any], relation: tuple[str, str]
    ) -> None:
        target_id, rel_type = relation
        if rel_type == THREAD:
            target = self._tail.event(target_id)
            if target is None:
                target = (await self._events.by_ids([target_id])).get(target_id)
            # "It is not possible to create a thread from an event which itself is the child of an event
            # relationship"
            if target is not None and target.room_id == room_id and target.relation is not None:
                raise MatrixError("M_UNKNOWN", 400, "A thread can not start at an event that has a relation")
        elif rel_type == ANNOTATION:
            target = self._tail.event(target_id)
            if target is None:  # else all that relates to it is in the tail, and looked at when it is written
                earlier = await self._relations.annotations_by(target_id, user_id, type)
                _check_not_annotated(earlier, user_id, type, content)


def _check_texts(*texts: str) -> None:
    for text in texts:
        if len(text) > MAX_TXN_ID:
            raise invalid_param(f"Types, keys and ids are at most {MAX_TXN_ID} characters")


def _txn(sender: Sender, scope: str, txn_id: str) -> Txn:
    return Txn(sender.user_id, sender.device_id or "", scope, txn_id)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(orjson.dumps(content), digest_size=16).hexdigest()


def _target_of(content: Mapping[str, Any]) -> str:
    target = content.get("redacts")
    if target is None:
        raise missing_param("A redaction must name the event in 'redacts'")
    if not isinstance(target, str):
        raise bad_json("'redacts' must be an event id")
    return target


def _relation_of(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """Give ``(event_id, rel_type)`` of what is to be sent, if it relates to anything."""
    relation = content.get("m.relates_to")
    if not isinstance(relation, dict):
        return None
    target, rel_type = relation.get("event_id"), relation.get("rel_type")
    if not isinstance(target, str) or not isinstance(rel_type, str):
        return None
    return target, rel_type


def _check_not_annotated(
    earlier: Iterable[EventRow], user_id: str, type: str, content: Mapping[str, Any]
) -> None:
    """Refuse to react twice in the same way.

    Source: client-server API, "Avoiding duplicate annotations": identical event type and annotation key,
    unless the first event has been redacted.
    """
    wanted = content["m.relates_to"]
    for row in earlier:
        if row.sender != user_id or row.type != type or row.redacted_because is not None:
            continue
        relation = row.event.content.get("m.relates_to")
        if (
            isinstance(relation, dict)
            and relation.get("rel_type") == ANNOTATION
            and relation.get("event_id") == wanted["event_id"]
            and relation.get("key") == wanted.get("key")
        ):
            raise MatrixError("M_DUPLICATE_ANNOTATION", 400, "You have reacted in this way already")


def _pretended() -> str:
    """Make an event id as a shadow-banned user gets it: nothing was sent."""
    return "$" + encode_urlsafe_base64(secrets.token_bytes(32))
