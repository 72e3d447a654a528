"""Devices' keys, messages between devices, key backup; built on the core."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.processes.core import Core
from ranvier.storage.cross_signing import CrossSigningStore
from ranvier.storage.device_keys import DeviceKeyStore
from ranvier.storage.device_lists import DeviceListStore
from ranvier.storage.devices import DeviceStore
from ranvier.storage.key_backup import KeyBackupStore
from ranvier.storage.to_device import ToDeviceStore
from ranvier.users.cross_signing import CrossSigning
from ranvier.users.device_keys import DeviceKeys, KeyCounts
from ranvier.users.device_lists import DeviceLists
from ranvier.users.key_backup import KeyBackups
from ranvier.users.to_device import ToDevice, ToDeviceInboxes


@dataclass(frozen=True)
class EncryptionParts:
    """The objects, under the names that endpoints ask for."""

    cross_signing: CrossSigning
    device_keys: DeviceKeys
    device_lists: DeviceLists
    inboxes: ToDeviceInboxes
    key_backups: KeyBackups
    key_counts: KeyCounts
    to_device: ToDevice


def build_encryption(core: Core) -> EncryptionParts:
    """Build what concerns end-to-end encryption. ``inboxes.run`` is to run always."""
    database, appender, tail = core.database, core.appender, core.tail
    server_name = core.identity.server_name
    key_store = DeviceKeyStore(database)
    to_device_store = ToDeviceStore(database)
    return EncryptionParts(
        cross_signing=CrossSigning(store=CrossSigningStore(database), appender=appender, tail=tail),
        device_keys=DeviceKeys(store=key_store, appender=appender, tail=tail, server_name=server_name),
        device_lists=DeviceLists(
            store=DeviceListStore(database),
            events=core.events,
            memberships=core.memberships,
            rooms=core.rooms,
            tail=tail,
        ),
        inboxes=ToDeviceInboxes(store=to_device_store, appender=appender, tail=tail, clock=core.clock),
        key_backups=KeyBackups(store=KeyBackupStore(database), appender=appender),
        key_counts=KeyCounts(store=key_store, tail=tail),
        to_device=ToDevice(
            store=to_device_store,
            devices=DeviceStore(database),
            appender=appender,
            tail=tail,
            server_name=server_name,
        ),
    )
