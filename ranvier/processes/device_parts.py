"""Devices' keys, messages between devices, key backups: what end-to-end encryption needs of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.storage.cross_signing import CrossSigningStore
from ranvier.storage.database import Database
from ranvier.storage.device_keys import DeviceKeyStore
from ranvier.storage.device_lists import DeviceListStore
from ranvier.storage.devices import DeviceStore
from ranvier.storage.events import EventStore
from ranvier.storage.key_backup import KeyBackupStore
from ranvier.storage.to_device import ToDeviceStore
from ranvier.sync.context import UserSection
from ranvier.sync.sections.device_lists import DeviceListsSection
from ranvier.sync.sections.one_time_keys import OneTimeKeyCountsSection, UnusedFallbackKeysSection
from ranvier.sync.sections.to_device import ToDeviceSection
from ranvier.users.cross_signing import CrossSigning
from ranvier.users.device_keys import DeviceKeys, KeyCounts
from ranvier.users.device_lists import DeviceLists
from ranvier.users.key_backup import KeyBackups
from ranvier.users.to_device import ToDevice, ToDeviceInboxes


class CoreParts(Protocol):
    """What is needed of the core."""

    @property
    def database(self) -> Database:
        """Connections."""

    @property
    def appender(self) -> Appender:
        """Writes to the log."""

    @property
    def tail(self) -> Tail:
        """The newest rows."""

    @property
    def events(self) -> EventStore:
        """Events of any age."""

    @property
    def rooms(self) -> Rooms:
        """Rooms in memory."""

    @property
    def memberships(self) -> Memberships:
        """Who is in which room."""


@dataclass(frozen=True)
class DeviceParts:
    """The objects, under the names that endpoints ask for. ``to_device_inboxes.run`` is to run always."""

    cross_signing: CrossSigning
    device_keys: DeviceKeys
    device_lists: DeviceLists
    key_backups: KeyBackups
    key_counts: KeyCounts
    to_device: ToDevice
    to_device_inboxes: ToDeviceInboxes

    def sync_sections(self) -> Mapping[str, UserSection]:
        """Give the sections of a sync answer by their keys."""
        return {
            "to_device": ToDeviceSection(self.to_device_inboxes),
            "device_lists": DeviceListsSection(self.device_lists),
            "device_one_time_keys_count": OneTimeKeyCountsSection(self.key_counts),
            "device_unused_fallback_key_types": UnusedFallbackKeysSection(self.key_counts),
        }


def build_devices(core: CoreParts, *, clock: Clock, server_name: str) -> DeviceParts:
    """Build what concerns encryption between devices."""
    database, appender, tail = core.database, core.appender, core.tail
    key_store = DeviceKeyStore(database)
    to_device_store = ToDeviceStore(database)
    return DeviceParts(
        cross_signing=CrossSigning(store=CrossSigningStore(database), appender=appender, tail=tail),
        device_keys=DeviceKeys(store=key_store, appender=appender, tail=tail, server_name=server_name),
        device_lists=DeviceLists(
            store=DeviceListStore(database),
            events=core.events,
            memberships=core.memberships,
            rooms=core.rooms,
            tail=tail,
        ),
        key_backups=KeyBackups(store=KeyBackupStore(database)),
        key_counts=KeyCounts(store=key_store, tail=tail),
        to_device=ToDevice(
            store=to_device_store,
            devices=DeviceStore(database),
            appender=appender,
            tail=tail,
            server_name=server_name,
        ),
        to_device_inboxes=ToDeviceInboxes(store=to_device_store, appender=appender, tail=tail, clock=clock),
    )
