"""``/sync``: the notifier, the sections and their assembler, built on everything that they tell of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ranvier.config import Config
from ranvier.processes.core import Core
from ranvier.processes.encryption import EncryptionParts
from ranvier.processes.ephemeral import EphemeralParts
from ranvier.processes.old_sync import build_event_stream, build_initial_sync
from ranvier.processes.room_parts import RoomParts
from ranvier.processes.user_data import UserParts
from ranvier.rooms.erased_users import ErasedUsers
from ranvier.storage.erasure import ErasureStore
from ranvier.storage.log import head
from ranvier.sync.ahead import Ahead
from ranvier.sync.assemble import SyncAssembler
from ranvier.sync.context import UserSection
from ranvier.sync.ephemeral_news import EphemeralNews
from ranvier.sync.event_stream import EventStream
from ranvier.sync.initial_sync import InitialSync
from ranvier.sync.long_polls import LongPolls
from ranvier.sync.notifier import Notifier
from ranvier.sync.plain import PlainNews
from ranvier.sync.render import PreviousStates, Renderer
from ranvier.sync.sections.account_data import AccountDataSection, RoomAccountDataSection
from ranvier.sync.sections.device_lists import DeviceListsSection
from ranvier.sync.sections.one_time_keys import OneTimeKeyCountsSection, UnusedFallbackKeysSection
from ranvier.sync.sections.presence import PresenceSection
from ranvier.sync.sections.receipts import ReceiptsSection
from ranvier.sync.sections.rooms import RoomSections
from ranvier.sync.sections.to_device import ToDeviceSection
from ranvier.sync.sections.typing import TypingSection
from ranvier.sync.sections.unread import UnreadSection


@dataclass(frozen=True)
class SyncParts:
    """The objects, under the names that endpoints ask for. ``notifier.run`` is to run always."""

    assembler: SyncAssembler
    long_polls: LongPolls
    event_stream: EventStream
    initial_syncs: InitialSync
    notifier: Notifier
    renderer: Renderer


def build_sync(
    core: Core,
    config: Config,
    *,
    rooms: RoomParts,
    users: UserParts,
    encryption: EncryptionParts,
    ephemeral: EphemeralParts,
) -> SyncParts:
    """Build what answers ``/sync``."""
    notifier = Notifier(tail=core.tail, bus=core.bus, rooms=core.rooms, memberships=core.memberships)
    renderer = Renderer(
        previous_states=PreviousStates(events=core.events, tail=core.tail),
        visibility=rooms.visibility,
        memberships=core.memberships,
        relations=rooms.relations,
        erased=ErasedUsers(store=ErasureStore(core.database), tail=core.tail),
        clock=core.clock,
    )
    unread = UnreadSection(unread=users.unread)
    room_answers = RoomSections(
        rooms=core.rooms,
        tail=core.tail,
        events=core.events,
        store=core.room_store,
        visibility=rooms.visibility,
    )
    plain = PlainNews(
        tail=core.tail,
        bus=core.bus,
        ephemeral=EphemeralNews(bus=core.bus, memberships=core.memberships, rooms=core.rooms),
        notifier=notifier,
        memberships=core.memberships,
        ignored=users.ignored_users,
        unread=users.unread,
        key_counts=encryption.key_counts,
        room_sections=room_answers,
        clock=core.clock,
    )
    always: dict[str, UserSection] = {
        "device_one_time_keys_count": OneTimeKeyCountsSection(encryption.key_counts),
        "device_unused_fallback_key_types": UnusedFallbackKeysSection(encryption.key_counts),
    }
    ahead = Ahead(tail=core.tail, head=partial(head, core.database))
    assembler = SyncAssembler(
        tail=core.tail,
        ahead=ahead,
        bus=core.bus,
        notifier=notifier,
        memberships=core.memberships,
        rooms=core.rooms,
        store=core.room_store,
        events=core.events,
        renderer=renderer,
        room_answers=room_answers,
        unread=unread,
        user_sections={**_user_sections(core, config, users, encryption, ephemeral), **always},
        room_sections={
            "ephemeral": [
                ReceiptsSection(store=users.receipt_store, tail=core.tail, ignored=users.ignored_users.of),
                TypingSection(
                    typing_users=ephemeral.typing_users, tail=core.tail, ignored=users.ignored_users.of
                ),
            ],
            "account_data": [RoomAccountDataSection(store=users.account_data_store, tail=core.tail)],
        },
        ignored=users.ignored_users.of,
        invites_blocked=users.account_data.invites_blocked,
        forgotten=rooms.forgotten.of,
        now_ms=core.clock.now_ms,
        plain=plain,
    )
    long_polls = LongPolls(
        notifier=notifier,
        memberships=core.memberships,
        filters=users.filters,
        presence=ephemeral.presence,
        plain=plain,
    )
    return SyncParts(
        assembler=assembler,
        event_stream=build_event_stream(
            core, config, ahead, notifier, renderer, rooms=rooms, users=users, ephemeral=ephemeral
        ),
        initial_syncs=build_initial_sync(
            core, config, renderer, rooms=rooms, users=users, ephemeral=ephemeral
        ),
        long_polls=long_polls,
        notifier=notifier,
        renderer=renderer,
    )


def _user_sections(
    core: Core,
    config: Config,
    users: UserParts,
    encryption: EncryptionParts,
    ephemeral: EphemeralParts,
) -> dict[str, UserSection]:
    """Give the section of each top-level key. To-device messages come before what they unlock."""
    return {
        "account_data": AccountDataSection(
            store=users.account_data_store, push_rules=users.push_rules, tail=core.tail
        ),
        "presence": PresenceSection(
            config=config.presence,
            states=ephemeral.presence_states,
            shown=ephemeral.shown_presence,
            store=ephemeral.presence_store,
            rooms=core.rooms,
            ignored=users.ignored_users.of,
        ),
        "to_device": ToDeviceSection(encryption.inboxes),
        "device_lists": DeviceListsSection(encryption.device_lists),
    }
