"""``/events`` and ``/initialSync``, built on what ``/sync`` is made of."""

from __future__ import annotations

from ranvier.config import Config
from ranvier.processes.core import Core
from ranvier.processes.ephemeral import EphemeralParts
from ranvier.processes.room_parts import RoomParts
from ranvier.processes.user_data import UserParts
from ranvier.storage.room_directory import RoomDirectoryStore
from ranvier.sync.ahead import Ahead
from ranvier.sync.event_stream import EventStream
from ranvier.sync.initial_sync import InitialSync
from ranvier.sync.notifier import Notifier
from ranvier.sync.render import Renderer
from ranvier.sync.sections.account_data import AccountDataSection, RoomAccountDataSection
from ranvier.sync.sections.presence import PresenceSection
from ranvier.sync.sections.receipts import ReceiptsSection
from ranvier.sync.sections.rooms import RoomSections
from ranvier.sync.sections.typing import TypingSection


def build_event_stream(
    core: Core,
    config: Config,
    ahead: Ahead,
    notifier: Notifier,
    renderer: Renderer,
    *,
    rooms: RoomParts,
    users: UserParts,
    ephemeral: EphemeralParts,
) -> EventStream:
    """Build what answers ``/events``."""
    tail, ignored = core.tail, users.ignored_users.of
    return EventStream(
        tail=tail,
        ahead=ahead,
        bus=core.bus,
        clock=core.clock,
        notifier=notifier,
        memberships=core.memberships,
        access=rooms.access,
        visibility=rooms.visibility,
        timeline=rooms.timeline,
        events=core.events,
        renderer=renderer,
        ignored=users.ignored_users,
        invites_blocked=users.account_data.invites_blocked,
        user_sections=[_presence(core, config, users, ephemeral), _account_data(core, users)],
        room_sections=[
            ReceiptsSection(store=users.receipt_store, tail=tail, ignored=ignored),
            TypingSection(typing_users=ephemeral.typing_users, tail=tail, ignored=ignored),
            RoomAccountDataSection(store=users.account_data_store, tail=tail),
        ],
    )


def build_initial_sync(
    core: Core,
    config: Config,
    renderer: Renderer,
    *,
    rooms: RoomParts,
    users: UserParts,
    ephemeral: EphemeralParts,
) -> InitialSync:
    """Build what answers ``/initialSync``."""
    return InitialSync(
        tail=core.tail,
        bus=core.bus,
        memberships=core.memberships,
        access=rooms.access,
        timeline=rooms.timeline,
        events=core.events,
        renderer=renderer,
        room_answers=RoomSections(
            rooms=core.rooms,
            tail=core.tail,
            events=core.events,
            store=core.room_store,
            visibility=rooms.visibility,
        ),
        directory_store=RoomDirectoryStore(core.database),
        ignored=users.ignored_users,
        invites_blocked=users.account_data.invites_blocked,
        forgotten=rooms.forgotten,
        presence=_presence(core, config, users, ephemeral),
        account_data=_account_data(core, users),
        room_account_data=RoomAccountDataSection(store=users.account_data_store, tail=core.tail),
    )


def _presence(core: Core, config: Config, users: UserParts, ephemeral: EphemeralParts) -> PresenceSection:
    return PresenceSection(
        config=config.presence,
        states=ephemeral.presence_states,
        shown=ephemeral.shown_presence,
        store=ephemeral.presence_store,
        rooms=core.rooms,
        ignored=users.ignored_users.of,
    )


def _account_data(core: Core, users: UserParts) -> AccountDataSection:
    return AccountDataSection(store=users.account_data_store, push_rules=users.push_rules, tail=core.tail)
