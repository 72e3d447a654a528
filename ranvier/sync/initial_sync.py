"""``GET /initialSync`` and ``GET /rooms/{roomId}/initialSync``: where a follower of ``/events`` begins.

Source: client-server API, "Syncing" (deprecated) and "Room Previews".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import orjson

from ranvier.log.bus import Bus
from ranvier.log.tail import Tail
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.actor import Actor, InvitesBlocked
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.timeline import IgnoredUsers, Timeline
from ranvier.spec.filters import Filter, RoomEventFilter, RoomFilter
from ranvier.storage.events import EventStore
from ranvier.storage.room_directory import RoomDirectoryStore
from ranvier.sync.context import RoomSection, SyncContext, UserSection
from ranvier.sync.event_stream import events_of
from ranvier.sync.render import Renderer, Rendering
from ranvier.sync.sections.rooms import Asked, RoomAnswer, RoomSections
from ranvier.wire.log_rows import EventRow
from ranvier.wire.tokens import Token

_EVERY_EVENT: Final = RoomEventFilter()
_MEMBERSHIPS: Final = ("invite", "join", "leave", "ban")
"""Those that the specification gives for ``membership``; who knocks has none here."""


class Forgotten(Protocol):
    """Know which rooms users forgot."""

    async def of(self, user_id: str, /) -> frozenset[str]:
        """Give the ids of the rooms that a user forgot."""


class InitialSync:
    """Tell everything at once, of all rooms or of one."""

    def __init__(
        self,
        *,
        tail: Tail,
        bus: Bus,
        memberships: Memberships,
        access: RoomAccess,
        timeline: Timeline,
        events: EventStore,
        renderer: Renderer,
        room_answers: RoomSections,
        directory_store: RoomDirectoryStore,
        ignored: IgnoredUsers,
        invites_blocked: InvitesBlocked,
        forgotten: Forgotten,
        presence: UserSection,
        account_data: UserSection,
        room_account_data: RoomSection,
    ) -> None:
        self._tail = tail
        self._bus = bus
        self._memberships = memberships
        self._access = access
        self._timeline = timeline
        self._events = events
        self._renderer = renderer
        self._room_answers = room_answers
        self._directory_store = directory_store
        self._ignored = ignored
        self._invites_blocked = invites_blocked
        self._forgotten = forgotten
        self._presence = presence
        self._account_data = account_data
        self._room_account_data = room_account_data

    # -- one room --------------------------------------------------------------------------------------

    async def of_room(self, actor: Actor, device_id: str | None, room_id: str, limit: int) -> bytes:
        """Give a room's state and its last ``limit`` events, as of now or as of leaving it.

        Raises 403 ``M_FORBIDDEN`` for who is not and was not in it, unless it is world-readable.
        """
        view = await self._access.access_room(actor, room_id)
        upto = self._tail.pos if view.as_of is None else view.as_of
        ignored = await self._ignored.of(view.user_id)
        page = await self._timeline.backwards(
            view, upto=upto, limit=limit, filter=_EVERY_EVENT, ignored=ignored
        )
        rows = page.rows[::-1]
        state = list((await self._access.state(view)).values())
        rendering = await self._renderer.prepare([*rows, *state], user_id=view.user_id, device_id=device_id)
        parts = [
            _membership(view.membership),
            [_messages(rendering, rows, None if page.end is None else Token(page.end), Token(upto))],
            [b'"state":[', *await rendering.event_list(state), b"]"],
            [_visibility(room_id in await self._directory_store.published_among([room_id]))],
        ]
        context = self._context(actor.user_id, device_id, [room_id])
        if view.membership == "join":
            data = await self._room_account_data.initial(context, [room_id])
            parts.append([b'"account_data":[', b",".join(data.get(room_id, ())), b"]"])
        return b"".join(_room(room_id, parts))

    # -- everything ------------------------------------------------------------------------------------

    async def of_user(self, user_id: str, device_id: str | None, limit: int, *, archived: bool) -> bytes:
        """Give everything that a user has; with ``archived`` also the rooms that they left."""
        upto = self._now()
        ignored = await self._ignored.of(user_id)
        told = await self._told(user_id, archived, ignored)
        joined = [m.room_id for m in told if m.membership == "join"]
        context = self._context(user_id, device_id, joined)
        asked = Asked(
            user_id=user_id,
            device_id=device_id,
            filter=Filter(room=RoomFilter(timeline=RoomEventFilter(limit=limit))),
            ignored=frozenset(ignored),
            upto=upto.pos,
            since=None,
            full_state=False,
            state_after=True,
        )
        left = [m for m in told if m.membership in ("leave", "ban")]
        found = await self._room_answers.whole(asked, [m for m in told if m.membership == "join"])
        found += await self._room_answers.left(asked, left)
        answers = {answer.room_id: answer for answer in found}
        invites = await self._events.by_nids([m.event_nid for m in told if m.membership == "invite"])
        rendering = await self._rendering(user_id, device_id, answers.values(), invites.values())
        published = await self._directory_store.published_among([m.room_id for m in told])
        data = await self._room_account_data.initial(context, joined) if joined else {}
        rooms: list[bytes] = []
        for m in told:
            parts = [_membership(m.membership), [_visibility(m.room_id in published)]]
            if (answer := answers.get(m.room_id)) is not None:
                end = upto if m.membership == "join" else Token(m.pos)
                parts += await _timeline_and_state(rendering, answer, end)
                parts.append([b'"account_data":[', b",".join(data.get(m.room_id, ())), b"]"])
            else:
                parts.append([b'"invite":', rendering.event(invites[m.event_nid])])
            rooms += [b",", *_room(m.room_id, parts)]
        return b'{"end":"%b","presence":[%b],"account_data":[%b],"rooms":[%b]}' % (
            str(upto).encode(),
            events_of(await self._presence.initial(context)),
            events_of(await self._account_data.initial(context)),
            b"".join(rooms[1:]),
        )

    async def _told(self, user_id: str, archived: bool, ignored: Iterable[str]) -> list[Membership]:
        """Give the memberships that are told of: "rooms that the user has been invited to or has joined"."""
        memberships = list((await self._memberships.of(user_id)).values())
        forgotten = await self._forgotten.of(user_id) if archived else frozenset()
        unheard = frozenset(ignored)
        invited = any(m.membership == "invite" for m in memberships)
        blocked = invited and await self._invites_blocked(user_id)
        return [
            m
            for m in memberships
            if m.membership == "join"
            or (m.membership == "invite" and not blocked and m.sender not in unheard)
            or (m.membership in ("leave", "ban") and archived and m.room_id not in forgotten)
        ]

    async def _rendering(
        self,
        user_id: str,
        device_id: str | None,
        answers: Iterable[RoomAnswer],
        invites: Iterable[EventRow],
    ) -> Rendering:
        rows = list(invites)
        for answer in answers:
            rows += answer.window.rows
            rows += answer.state
        return await self._renderer.prepare(rows, user_id=user_id, device_id=device_id)

    def _now(self) -> Token:
        count, epoch = self._bus.ephemeral_now()
        return Token(self._tail.pos, count, epoch)

    def _context(self, user_id: str, device_id: str | None, joined: Sequence[str]) -> SyncContext:
        return SyncContext(
            user_id=user_id,
            device_id=device_id,
            filter=Filter(),
            since=None,
            upto=self._now(),
            joined=joined,
            newly_joined=frozenset(joined),
            left=frozenset(),
            in_tail=False,
        )


def _room(room_id: str, parts: Sequence[Sequence[bytes]]) -> list[bytes]:
    pieces = [b'{"room_id":', orjson.dumps(room_id)]
    for part in parts:
        if part:
            pieces += [b",", *part]
    return [*pieces, b"}"]


def _membership(membership: str | None) -> list[bytes]:
    return [b'"membership":"%b"' % membership.encode()] if membership in _MEMBERSHIPS else []


def _visibility(published: bool) -> bytes:
    return b'"visibility":"public"' if published else b'"visibility":"private"'


def _messages(rendering: Rendering, rows: Sequence[EventRow], start: Token | None, end: Token) -> bytes:
    """Write a chunk: "If no earlier events are available, [start] may be omitted"."""
    before = b"" if start is None else b'"start":"%b",' % str(start).encode()
    return b'"messages":{%b"end":"%b","chunk":%b}' % (before, str(end).encode(), rendering.events(rows))


async def _timeline_and_state(rendering: Rendering, answer: RoomAnswer, end: Token) -> list[list[bytes]]:
    window = answer.window
    start = Token(window.rows[0].pos - 1 if window.rows else window.start)
    return [
        [_messages(rendering, window.rows, start if window.limited else None, end)],
        [b'"state":[', *await rendering.event_list(answer.state), b"]"],
    ]
