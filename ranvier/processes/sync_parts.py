"""``/sync``: the notifier, the sections and their assembler, built on everything that they tell of."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.processes.core import Core
from ranvier.processes.room_parts import RoomParts
from ranvier.processes.user_data import UserParts
from ranvier.sync.assemble import SyncAssembler
from ranvier.sync.notifier import Notifier
from ranvier.sync.render import PreviousStates, Renderer
from ranvier.sync.sections.account_data import AccountDataSection, RoomAccountDataSection
from ranvier.sync.sections.receipts import ReceiptsSection
from ranvier.sync.sections.rooms import RoomSections


class NoUnread:
    async def initial(self, context, room_ids):
        return {}
    since = initial


@dataclass(frozen=True)
class SyncParts:
    """The objects, under the names that endpoints ask for. ``notifier.run`` is to run always."""

    assembler: SyncAssembler
    notifier: Notifier
    renderer: Renderer


def build_sync(
    core: Core,
    *,
    rooms: RoomParts,
    users: UserParts,
) -> SyncParts:
    """Build what answers ``/sync``."""
    notifier = Notifier(tail=core.tail, bus=core.bus, rooms=core.rooms, memberships=core.memberships)
    renderer = Renderer(
        previous_states=PreviousStates(events=core.events, tail=core.tail),
        visibility=rooms.visibility,
        memberships=core.memberships,
        relations=rooms.relations,
        clock=core.clock,
    )
    receipts = ReceiptsSection(store=users.receipt_store, tail=core.tail, ignored=users.ignored_users.of)
    assembler = SyncAssembler(
        tail=core.tail,
        bus=core.bus,
        notifier=notifier,
        memberships=core.memberships,
        rooms=core.rooms,
        store=core.room_store,
        events=core.events,
        renderer=renderer,
        room_answers=RoomSections(
            rooms=core.rooms,
            tail=core.tail,
            events=core.events,
            store=core.room_store,
            visibility=rooms.visibility,
        ),
        unread=NoUnread(),
        user_sections={
            "account_data": AccountDataSection(
                store=users.account_data_store, push_rules=users.push_rules, tail=core.tail
            ),
        },
        room_sections={
            "ephemeral": [receipts],
            "account_data": [RoomAccountDataSection(store=users.account_data_store, tail=core.tail)],
        },
        ignored=users.ignored_users.of,
        forgotten=rooms.forgotten.of,
        now_ms=core.clock.now_ms,
    )
    return SyncParts(assembler=assembler, notifier=notifier, renderer=renderer)
