"""Filters: which rooms and events a client wants of ``/sync``, ``/messages`` and ``/context``.

A filter that asks for nothing in particular costs nothing: test ``is_everything`` first.
Source: client-server API, "Filtering".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from ranvier.spec.errors import bad_json, invalid_param
from ranvier.spec.globs import Glob, whole_glob
from ranvier.spec.property_paths import Path, parse_path

MAX_LIST: Final = 2000
"""Entries of the longest list of rooms, senders or types."""
MAX_GLOBS: Final = 100
"""Types with a ``*`` in one list."""
MAX_FIELDS: Final = 200
MAX_FIELD_DEPTH: Final = 16
_MAX_REMEMBERED = 1024

_Shape = TypeVar("_Shape")

_Entry = Annotated[str, msgspec.Meta(max_length=255)]
_Entries = Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_LIST)] | None
# NOTSPEC: "must be an integer greater than 0", but clients that want no timeline at all ask for 0
_Limit = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] | None


class _Types:
    """Match event types against a list, of which an entry may have ``*``; outcomes are remembered."""

    __slots__ = ("_exact", "_globs", "_known")

    def __init__(self, types: Iterable[str]) -> None:
        types = list(types)
        self._exact = frozenset(it for it in types if "*" not in it)
        self._globs: list[Glob] = [whole_glob(it, joker=False) for it in types if "*" in it]
        self._known: dict[str, bool] = {}

    def __contains__(self, event_type: str) -> bool:
        if not self._globs:
            return event_type in self._exact
        known = self._known.get(event_type)
        if known is None:
            known = event_type in self._exact or any(it.matches(event_type) for it in self._globs)
            if len(self._known) < _MAX_REMEMBERED:
                self._known[event_type] = known
        return known


class EventFilter(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """Say which events (presence, account data) to give. An absent list restricts nothing."""

    limit: _Limit = None
    senders: _Entries = None
    not_senders: _Entries = None
    types: _Entries = None
    not_types: _Entries = None

    @cached_property
    def is_everything(self) -> bool:
        """Whether every event matches, so that ``matches`` need not be called."""
        return self._any_event

    @cached_property
    def is_nothing(self) -> bool:
        """Whether surely no event matches, so that none need be fetched."""
        return self.senders == () or self.types == () or "*" in (self.not_types or ())

    def matches(self, event_type: str, sender: str | None = None) -> bool:
        """Say whether an event passes. ``sender`` is ``None`` for what has none (account data)."""
        return self._any_event or self._passes(event_type, sender)

    def _passes(self, event_type: str, sender: str | None) -> bool:
        # "A matching type will be excluded even if it is listed in the types filter", senders likewise
        if sender in self._not_senders or event_type in self._not_types:
            return False
        if self.senders is not None and sender not in self._senders:
            return False
        return self.types is None or event_type in self._types

    @cached_property
    def _any_event(self) -> bool:
        return self.senders is None and self.types is None and not self.not_senders and not self.not_types

    @cached_property
    def _senders(self) -> frozenset[str]:
        return frozenset(self.senders or ())

    @cached_property
    def _not_senders(self) -> frozenset[str]:
        return frozenset(self.not_senders or ())

    @cached_property
    def _types(self) -> _Types:
        return _Types(self.types or ())

    @cached_property
    def _not_types(self) -> _Types:
        return _Types(self.not_types or ())


class RoomEventFilter(EventFilter, frozen=True, omit_defaults=True, dict=True):
    """Say which events of rooms to give.

    ``related_by_senders`` and ``related_by_rel_types`` ask about other events, those that relate to
    the one in question: whoever has the relations at hand applies them (``needs_relations``).
    """

    rooms: _Entries = None
    not_rooms: _Entries = None
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    related_by_senders: _Entries = None
    related_by_rel_types: _Entries = None

    @cached_property
    def is_everything(self) -> bool:
        """Whether every event of every room matches (leaving relations aside)."""
        return self._any_room and self.contains_url is None and self._any_event

    @cached_property
    def is_nothing(self) -> bool:
        """Whether surely no event matches, so that none need be fetched."""
        return self.rooms == () or super().is_nothing

    @cached_property
    def needs_relations(self) -> bool:
        """Whether the filter asks who relates to an event, and how."""
        return self.related_by_senders is not None or self.related_by_rel_types is not None

    def matches_room(self, room_id: str) -> bool:
        """Say whether any event of this room can pass."""
        return self._any_room or _room_passes(room_id, self._rooms, self._not_rooms)

    def matches(
        self,
        event_type: str,
        sender: str | None = None,
        room_id: str | None = None,
        *,
        has_url: bool = False,
    ) -> bool:
        """Say whether an event of a room passes.

        ``room_id`` may be left out by who asked ``matches_room`` before; ``has_url`` says whether the
        event's content has the key ``url``.
        """
        if self.is_everything:
            return True
        if self.contains_url is not None and self.contains_url is not has_url:
            return False
        if room_id is not None and not self.matches_room(room_id):
            return False
        return self._any_event or self._passes(event_type, sender)

    def matches_relations(self, relations: Iterable[tuple[str, str]]) -> bool:
        """Say whether one of an event's relations, ``(rel_type, sender)``, is what is asked for."""
        return any(
            (self.related_by_rel_types is None or rel_type in self.related_by_rel_types)
            and (self.related_by_senders is None or sender in self.related_by_senders)
            for rel_type, sender in relations
        )

    @cached_property
    def _any_room(self) -> bool:
        return self.rooms is None and not self.not_rooms

    @cached_property
    def _rooms(self) -> frozenset[str] | None:
        return None if self.rooms is None else frozenset(self.rooms)

    @cached_property
    def _not_rooms(self) -> frozenset[str]:
        return frozenset(self.not_rooms or ())


def _room_passes(room_id: str, rooms: frozenset[str] | None, not_rooms: frozenset[str]) -> bool:
    # "A matching room will be excluded even if it is listed in the rooms filter"
    return room_id not in not_rooms and (rooms is None or room_id in rooms)


_EVERY_EVENT: Final = EventFilter()
_EVERY_ROOM_EVENT: Final = RoomEventFilter()


class RoomFilter(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """Say which rooms to give, and which events of each section of a room."""

    rooms: _Entries = None
    not_rooms: _Entries = None
    include_leave: bool = False
    state: RoomEventFilter = _EVERY_ROOM_EVENT
    timeline: RoomEventFilter = _EVERY_ROOM_EVENT
    ephemeral: RoomEventFilter = _EVERY_ROOM_EVENT
    account_data: RoomEventFilter = _EVERY_ROOM_EVENT

    @cached_property
    def is_every_room(self) -> bool:
        """Whether no room is left out by ``rooms`` and ``not_rooms``."""
        return self.rooms is None and not self.not_rooms

    def matches_room(self, room_id: str) -> bool:
        """Say whether the room is wanted at all ("applied before the filters in ephemeral, …")."""
        return self.is_every_room or _room_passes(room_id, self._rooms, self._not_rooms)

    @cached_property
    def _rooms(self) -> frozenset[str] | None:
        return None if self.rooms is None else frozenset(self.rooms)

    @cached_property
    def _not_rooms(self) -> frozenset[str]:
        return frozenset(self.not_rooms or ())


_EVERY_ROOM: Final = RoomFilter()

_Tree = dict[str, "_Tree | None"]
"""Property names to keep; ``None`` keeps all that is below."""


class Filter(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """Say what a client wants of ``/sync``."""

    event_fields: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_FIELDS)] | None = None
    event_format: Literal["client", "federation"] = "client"
    presence: EventFilter = _EVERY_EVENT
    account_data: EventFilter = _EVERY_EVENT
    room: RoomFilter = _EVERY_ROOM

    @property
    def selects_fields(self) -> bool:
        """Whether events are to be cut down by ``project``; an empty list of fields means all."""
        return bool(self.event_fields)

    def project(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Give the event with no other properties than ``event_fields``; the event stays as it is."""
        return _projected(event, self._tree) if self._tree else dict(event)

    @cached_property
    def _tree(self) -> _Tree:
        tree: _Tree = {}
        for field in self.event_fields or ():
            _add_path(tree, parse_path(field))
        return tree


NO_FILTER: Final = Filter()
"""What a client gets that names no filter."""


def parse_filter(definition: object) -> Filter:
    """Read the JSON of a filter: the body of ``POST …/filter`` or the inline ``filter`` of ``/sync``.

    Unknown keys are ignored. Raises 400 ``M_BAD_JSON`` on wrong shapes, ``M_INVALID_PARAM`` on wrong values.
    """
    parsed = _convert(definition, Filter)
    for entry in parsed.event_fields or ():
        if len(parse_path(entry)) > MAX_FIELD_DEPTH:
            raise invalid_param(f"event_fields: a path has at most {MAX_FIELD_DEPTH} names")
    room = parsed.room
    _check_ids("room", "!", room.rooms, room.not_rooms)
    for events in (room.state, room.timeline, room.ephemeral, room.account_data):
        _check_room_events(events)
    _check_events(parsed.presence)
    _check_events(parsed.account_data)
    return parsed


def parse_room_event_filter(definition: object) -> RoomEventFilter:
    """Read the JSON of a ``RoomEventFilter``: the ``filter`` of ``/messages``, ``/context`` and search.

    Raises like ``parse_filter``.
    """
    parsed = _convert(definition, RoomEventFilter)
    _check_room_events(parsed)
    return parsed


def to_json(filter_: Filter) -> dict[str, Any]:
    """Give the filter as JSON, without what is as by default."""
    definition: dict[str, Any] = msgspec.to_builtins(filter_)
    return definition


def _convert(definition: object, shape: type[_Shape]) -> _Shape:
    if not isinstance(definition, dict):
        raise bad_json("A filter must be a JSON object")
    try:
        return msgspec.convert(definition, shape)
    except msgspec.ValidationError as error:
        raise bad_json(f"Wrong filter: {error}") from None


def _check_room_events(events: RoomEventFilter) -> None:
    _check_events(events)
    _check_ids("room", "!", events.rooms, events.not_rooms)
    _check_ids("user", "@", events.related_by_senders)


def _check_events(events: EventFilter) -> None:
    _check_ids("user", "@", events.senders, events.not_senders)
    for types in (events.types, events.not_types):
        if sum("*" in it for it in types or ()) > MAX_GLOBS:
            raise invalid_param(f"A list of types may have at most {MAX_GLOBS} entries with '*'")


def _check_ids(noun: str, sigil: str, *lists: tuple[str, ...] | None) -> None:
    for entry in (entry for entries in lists for entry in entries or ()):
        if not entry.startswith(sigil):
            raise invalid_param(f"{entry!r} in the filter is not a {noun} id")


def _add_path(tree: _Tree, path: Path) -> None:
    for name in path[:-1]:
        branch = tree.setdefault(name, {})
        if branch is None:  # a shorter path keeps all of it already
            return
        tree = branch
    tree[path[-1]] = None


def _projected(value: Mapping[str, Any], tree: _Tree) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, branch in tree.items():
        if name not in value:
            continue
        inner = value[name]
        if branch is None:
            kept[name] = inner
        elif isinstance(inner, Mapping) and (projected := _projected(inner, branch)):
            kept[name] = projected
    return kept
