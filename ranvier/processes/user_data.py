"""What users keep: account data, tags, push rules, filters, profiles, receipts; built on the core."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.config import Config
from ranvier.processes.core import Core
from ranvier.storage.account_data import AccountDataStore
from ranvier.storage.filters import FilterStore
from ranvier.storage.profiles import ProfileStore
from ranvier.storage.push_rules import PushRuleStore
from ranvier.storage.receipts import ReceiptStore
from ranvier.storage.unread import UnreadStore
from ranvier.storage.user_directory import UserDirectoryStore
from ranvier.users.account_data import AccountData, IgnoredUsers
from ranvier.users.filters import Filters
from ranvier.users.notes import RoomNotes
from ranvier.users.notifications import Notifications
from ranvier.users.profile_changes import ProfileChanges
from ranvier.users.profiles import ProfileRules, Profiles
from ranvier.users.push_rules import PushRules
from ranvier.users.receipts import Receipts
from ranvier.users.tags import Tags
from ranvier.users.unread import Unread
from ranvier.users.unread_gaps import UnreadGaps
from ranvier.users.upgraded_rooms import UpgradedRooms
from ranvier.users.user_directory import UserDirectory
from ranvier.users.user_directory_upkeep import UserDirectoryUpkeep


@dataclass(frozen=True)
class UserParts:
    """The objects, under the names that endpoints ask for."""

    account_data: AccountData
    account_data_store: AccountDataStore
    filters: Filters
    ignored_users: IgnoredUsers
    notifications: Notifications
    profile_changes: ProfileChanges
    profiles: Profiles
    push_rules: PushRules
    receipt_store: ReceiptStore
    receipts: Receipts
    tags: Tags
    unread: Unread
    upgraded_rooms: UpgradedRooms
    user_directory: UserDirectory
    user_directory_upkeep: UserDirectoryUpkeep


def build_user_data(core: Core, config: Config) -> UserParts:
    """Build what concerns the data of users.

    ``profile_changes.run`` and ``user_directory_upkeep.run`` are to run always, in one process at a time.
    """
    database, appender, tail = core.database, core.appender, core.tail
    account_data_store = AccountDataStore(database)
    account_data = AccountData(store=account_data_store, appender=appender, tail=tail)
    profile_store = ProfileStore(database)
    receipt_store = ReceiptStore(database)
    profiles = Profiles(
        store=profile_store,
        appender=appender,
        tail=tail,
        memberships=core.memberships,
        rules=ProfileRules(
            server_name=config.server.server_name,
            require_auth=config.profiles.require_auth,
            limit_to_users_who_share_rooms=config.profiles.limit_to_users_who_share_rooms,
            enable_set_displayname=config.registration.enable_set_displayname,
            enable_set_avatar_url=config.registration.enable_set_avatar_url,
        ),
    )
    ignored_users = IgnoredUsers(store=account_data_store, tail=tail)
    push_rules = PushRules(store=PushRuleStore(database), appender=appender, tail=tail)
    unread_store = UnreadStore(database)
    directory_store = UserDirectoryStore(database)
    tags = Tags(store=account_data_store, account_data=account_data)
    notes = RoomNotes(tail=tail, events=core.events)
    return UserParts(
        account_data=account_data,
        account_data_store=account_data_store,
        filters=Filters(store=FilterStore(database), timeline_limit=config.rooms.filter_timeline_limit),
        ignored_users=ignored_users,
        notifications=Notifications(
            store=unread_store,
            events=core.events,
            notes=notes,
            rooms=core.rooms,
            memberships=core.memberships,
            push_rules=push_rules,
            ignored=ignored_users,
            tail=tail,
        ),
        profile_changes=ProfileChanges(
            store=profile_store, memberships=core.memberships, writer=core.writer, tail=tail
        ),
        profiles=profiles,
        push_rules=push_rules,
        receipt_store=receipt_store,
        receipts=Receipts(
            store=receipt_store,
            events=core.events,
            memberships=core.memberships,
            appender=appender,
            tail=tail,
            clock=core.clock,
            account_data=account_data,
        ),
        tags=tags,
        upgraded_rooms=UpgradedRooms(
            rooms=core.rooms,
            memberships=core.memberships,
            tags=tags,
            account_data=account_data,
            push_rules=push_rules,
        ),
        unread=Unread(
            store=unread_store,
            notes=notes,
            gaps=UnreadGaps(store=unread_store, events=core.events, notes=notes, tail=tail),
            rooms=core.rooms,
            memberships=core.memberships,
            push_rules=push_rules,
            ignored=ignored_users,
            tail=tail,
        ),
        user_directory=UserDirectory(
            store=directory_store,
            memberships=core.memberships,
            config=config.user_directory,
            server_name=config.server.server_name,
        ),
        user_directory_upkeep=UserDirectoryUpkeep(store=directory_store, tail=tail),
    )
