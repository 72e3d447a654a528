"""What is done with rooms: making, joining, sending, reading, finding them; built on the core."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ranvier.config import Config
from ranvier.processes.accounts import AccountParts
from ranvier.processes.core import Core
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.actor import InvitesBlocked, Limit, ProfileOf
from ranvier.rooms.aliases import Aliases
from ranvier.rooms.create import RoomCreator
from ranvier.rooms.directory import Directory
from ranvier.rooms.forget import ForgottenRooms
from ranvier.rooms.membership import Membership
from ranvier.rooms.redact import Redactor
from ranvier.rooms.relations import Relations
from ranvier.rooms.send import Sending
from ranvier.rooms.space_hierarchy import SpaceHierarchy
from ranvier.rooms.summary import RoomSummaries
from ranvier.rooms.timeline import Timeline
from ranvier.rooms.transactions import Transactions
from ranvier.rooms.upgrade import RoomUpgrades
from ranvier.rooms.visibility import Visibility
from ranvier.storage.aliases import AliasStore
from ranvier.storage.auto_joins import AutoJoinStore
from ranvier.storage.forgotten_rooms import ForgottenRoomStore
from ranvier.storage.relations import RelationStore
from ranvier.storage.room_directory import RoomDirectoryStore
from ranvier.sync.state_at import StateAt
from ranvier.users.auto_join import AutoJoin


@dataclass(frozen=True)
class RoomParts:
    """The objects, under the names that endpoints ask for."""

    access: RoomAccess
    aliases: Aliases
    directory: Directory
    forgotten: ForgottenRooms
    membership: Membership
    relation_store: RelationStore
    relations: Relations
    room_creator: RoomCreator
    room_summaries: RoomSummaries
    room_upgrades: RoomUpgrades
    sending: Sending
    space_hierarchy: SpaceHierarchy
    state_at: StateAt
    timeline: Timeline
    visibility: Visibility


def build_rooms(
    core: Core, config: Config, *, profile_of: ProfileOf, invites_blocked: InvitesBlocked, limit: Limit
) -> RoomParts:
    """Build what concerns rooms."""
    server_name = config.server.server_name
    alias_store = AliasStore(core.database)
    directory_store = RoomDirectoryStore(core.database)
    relation_store = RelationStore(core.database)
    visibility = Visibility(store=core.room_store, tail=core.tail)
    state_at = StateAt(rooms=core.rooms, tail=core.tail, events=core.events, store=core.room_store)
    forgotten = ForgottenRooms(
        store=ForgottenRoomStore(core.database),
        memberships=core.memberships,
        appender=core.appender,
        tail=core.tail,
    )
    membership = Membership(
        server_name=server_name,
        rooms=core.rooms,
        writer=core.writer,
        memberships=core.memberships,
        forgotten=forgotten,
        profile_of=profile_of,
        invites_blocked=invites_blocked,
        limit=limit,
        forget_on_leave=config.rooms.forget_rooms_on_leave,
        block_invites=config.rooms.block_non_admin_invites,
    )
    aliases = Aliases(
        server_name=server_name,
        store=alias_store,
        rooms=core.rooms,
        writer=core.writer,
        appender=core.appender,
        clock=core.clock,
        creation_rules=config.rooms.alias_creation_rules,
        require_membership=config.rooms.require_membership_for_aliases,
    )
    directory = Directory(
        store=directory_store,
        aliases=alias_store,
        rooms=core.rooms,
        appender=core.appender,
        publication_rules=config.rooms.room_list_publication_rules,
    )
    room_creator = RoomCreator(
        server_name=server_name,
        writer=core.writer,
        membership=membership,
        aliases=aliases,
        directory=directory,
        config=config.rooms,
    )
    return RoomParts(
        access=RoomAccess(
            rooms=core.rooms,
            visibility=visibility,
            events=core.events,
            tail=core.tail,
            states_at=state_at,
            is_forgotten=forgotten.is_forgotten,
        ),
        aliases=aliases,
        directory=directory,
        forgotten=forgotten,
        membership=membership,
        relation_store=relation_store,
        relations=Relations(store=relation_store, tail=core.tail),
        room_creator=room_creator,
        room_summaries=RoomSummaries(store=directory_store, memberships=core.memberships),
        room_upgrades=RoomUpgrades(
            rooms=core.rooms,
            writer=core.writer,
            membership=membership,
            aliases=aliases,
            directory=directory,
            room_creator=room_creator,
        ),
        sending=_build_sending(core, config, relation_store, membership, aliases, limit),
        space_hierarchy=SpaceHierarchy(store=directory_store, memberships=core.memberships),
        state_at=state_at,
        timeline=Timeline(events=core.events, tail=core.tail, relations=relation_store),
        visibility=visibility,
    )


def build_auto_join(
    core: Core, config: Config, accounts: AccountParts, rooms: RoomParts, new_users: asyncio.Event
) -> AutoJoin:
    """Build what joins new users to rooms. ``run`` is to run always."""
    return AutoJoin(
        config=config.registration.auto_join,
        server_name=config.server.server_name,
        store=AutoJoinStore(core.database),
        accounts=accounts.accounts,
        rooms=core.rooms,
        aliases=rooms.aliases,
        membership=rooms.membership,
        room_creator=rooms.room_creator,
        clock=core.clock,
        new_users=new_users,
    )


def _build_sending(
    core: Core,
    config: Config,
    relation_store: RelationStore,
    membership: Membership,
    aliases: Aliases,
    limit: Limit,
) -> Sending:
    # Redactions of other people's events count under a limit of their own where there is one.
    others_limit = "rc_admin_redaction" if "rc_admin_redaction" in config.rate_limits else "rc_message"
    return Sending(
        writer=core.writer,
        rooms=core.rooms,
        events=core.events,
        relations=relation_store,
        tail=core.tail,
        transactions=Transactions(store=core.transactions, appender=core.appender, tail=core.tail),
        redactor=Redactor(
            writer=core.writer,
            events=core.events,
            tail=core.tail,
            limit=limit,
            others_limit=others_limit,
        ),
        set_member=membership.set_state,
        check_aliases=aliases.check_canonical,
        limit=limit,
    )
